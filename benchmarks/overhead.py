"""How much longer a watched forward takes than a bare one.

Bare and watched forwards alternate in one process, so that both see the same machine; the ratio of
each pair is taken and the median of the ratios reported, with their quartiles. Below a few per cent
a wall-clock ratio drowns in noise, so the time spent inside the hooks is also measured directly, as
a share of the rest of the forward. The smallest model is also measured compiled against compiled,
and steps of the Hugging Face Trainer with and without the callback.

    python benchmarks/overhead.py [--pairs 15] [--device cpu] [--models NAME...] [--quick]

writes ``benchmarks/results/overhead-<device>.json`` (or ``--out``) and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from environment import environment
from timing import quartiles, share_in_hooks, timed, watched
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import geomhooks as gh
from geomhooks.integrations.huggingface import GeometryCallback


def bert(width: int, layers: int, heads: int) -> nn.Module:
    """An encoder of some shape."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return BertModel(BertConfig(**sizes, intermediate_size=4 * width), add_pooling_layer=False)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "MiniLM-L6 shape": lambda: bert(384, 6, 12),
    "GPT-2 124M shape": lambda: GPT2Model(GPT2Config()),
    "SmolLM2-135M shape": lambda: LlamaModel(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
        )
    ),
}
STATISTICS: dict[str, Callable[[], list[gh.Statistic]]] = {
    "PosCtx": lambda: [gh.PosCtx()],
    "Sphere": lambda: [gh.Sphere()],
    "both": lambda: [gh.PosCtx(), gh.Sphere()],
}


def main() -> None:
    """Measure every model, shape and set of statistics."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print a result file as Markdown, and be done")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())["rows"]))
        return
    device, pairs = torch.device(arguments.device), arguments.pairs
    shapes = [(8, 256), (16, 512)] if device.type == "cpu" else [(16, 1024)]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    chosen = {name: MODELS[name] for name in arguments.models}
    trained = {"batch": 8, "length": 256, "width": 384, "layers": 6}
    if arguments.quick:
        chosen, shapes, pairs = {"tiny": lambda: bert(16, 2, 2)}, [(2, 16)], 1
        trained = {"batch": 2, "length": 16, "width": 16, "layers": 2}
    rows = []
    for name, build in chosen.items():
        torch.manual_seed(0)
        model = build().eval().to(device, dtype)
        # The larger shape takes minutes on a CPU; one model shows what it changes.
        large = device.type == "cuda" or name.startswith("MiniLM")
        for batch, length in shapes if large else shapes[:1]:
            for masked in (False, True):
                for label in STATISTICS if not masked else ["both"]:
                    row = {
                        "model": name,
                        "shape": [batch, length],
                        "mask": masked,
                        "statistics": label,
                        **measure(model, batch, length, masked, STATISTICS[label](), pairs),
                    }
                    rows.append(row)
                    print(show(row), flush=True)
    name, build = next(iter(chosen.items()))
    torch.manual_seed(0)
    model = build().eval().to(device, dtype)
    # Compiling takes longer than all that is tried quickly.
    model.compile(backend="eager" if arguments.quick else "inductor")
    rows.append(compiled_row(name, model, shapes[0], pairs))
    print(show(rows[-1]), flush=True)
    for every in (1, 10):
        rows.append(callback_row(every, steps=10 * pairs, **trained))
        print(show(rows[-1]), flush=True)
    result = {"environment": environment(), "dtype": str(dtype), "rows": rows}
    path = arguments.out or Path(__file__).parent / "results" / f"overhead-{device.type}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


@torch.no_grad()
def measure(
    model: nn.Module,
    batch: int,
    length: int,
    masked: bool,
    chosen: list[gh.Statistic],
    pairs: int,
) -> dict[str, Any]:
    """Median ratio of watched to bare, and the time in the hooks as a share of the rest."""
    device = next(model.parameters()).device
    ids = torch.randint(1000, (batch, length), device=device)
    inputs = {"input_ids": ids}
    if masked:
        lengths = torch.linspace(length // 2, length, batch, device=device).round()
        inputs["attention_mask"] = (torch.arange(length, device=device) < lengths[:, None]).long()
    if not isinstance(model, BertModel):
        inputs["use_cache"] = False
    watch = gh.watch(model, statistics=chosen)
    for _ in range(2):
        timed(model, inputs)
        watched(model, inputs, watch)
    bare, ratios = [], []
    for index in range(pairs):
        # Whoever goes second finds warm caches: take turns.
        if index % 2:
            slow, fast = watched(model, inputs, watch), timed(model, inputs)
        else:
            fast, slow = timed(model, inputs), watched(model, inputs, watch)
        bare.append(fast)
        ratios.append(slow / fast)
    low, median, high = quartiles(ratios)
    return {
        "bare_ms": round(1e3 * statistics.median(bare), 2),
        "ratio": round(median, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "share_in_hooks": round(share_in_hooks(model, inputs, watch), 4),
        "state_mib": round(watch.nbytes / 2**20, 1),
    }


def compiled_row(name: str, model: nn.Module, shape: tuple[int, int], pairs: int) -> dict[str, Any]:
    """A compiled model watched, against the same compiled and bare."""
    found = measure(model, *shape, False, STATISTICS["both"](), pairs)
    row = {"model": f"{name}, compiled", "shape": list(shape), "mask": False}
    return {**row, "statistics": "both", **found}


def callback_row(
    every: int, steps: int, batch: int, length: int, width: int, layers: int
) -> dict[str, Any]:
    """Training steps of the Hugging Face Trainer with the callback, against those without."""
    texts = [{"input_ids": t, "labels": t} for t in torch.randint(1000, (batch * steps, length))]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    sizes = {"n_embd": width, "n_layer": layers, "n_head": max(2, width // 64)}
    folder = tempfile.mkdtemp()
    for on in (False, True, False, True):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=1024))
        clock = StepTimes()
        callbacks: list[Any] = [clock]
        if on:
            callbacks.append(GeometryCallback(every=every, statistics=STATISTICS["both"]()))
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            max_steps=steps,
            logging_steps=max(10, steps // 3),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            Trainer(model, settings, train_dataset=texts, callbacks=callbacks).train()
        seconds[on] += clock.seconds
    bare, slow = (statistics.median(seconds[on]) for on in (False, True))
    low, _, high = (q / bare for q in quartiles(seconds[True]))
    return {
        "model": f"Trainer, every={every}",
        "shape": [batch, length],
        "mask": False,
        "statistics": "both",
        "bare_ms": round(1e3 * bare, 2),
        "ratio": round(slow / bare, 4),
        "quartiles": [round(low, 4), round(high, 4)],
    }


class StepTimes(TrainerCallback):
    """Seconds of each training step, logging included, after the first two."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A step begins where the last one has ended and been logged."""
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """One number a step."""
        return [after - before for before, after in pairwise(self.times[2:])]


def show(row: dict[str, Any]) -> str:
    """One line of the table."""
    shape = "x".join(map(str, row["shape"]))
    return (
        f"{row['model']:20s} {shape:8s} {'mask' if row['mask'] else '':4s} {row['statistics']:7s} "
        f"bare {row['bare_ms']:8.1f} ms  ratio {row['ratio']:.3f} "
        f"[{row['quartiles'][0]:.3f}, {row['quartiles'][1]:.3f}]  "
        + (
            f"in hooks {100 * row['share_in_hooks']:.2f} %  state {row['state_mib']:.0f} MiB"
            if "share_in_hooks" in row
            else ""
        )
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | batch x time | statistics | ratio to bare (quartiles) "
        "| time in hooks over the rest | state |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = " x ".join(map(str, row["shape"])) + (", mask" if row["mask"] else "")
        low, high = row["quartiles"]
        ratio = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        hooks = f"{100 * row['share_in_hooks']:.1f} %" if "share_in_hooks" in row else ""
        state = f"{row['state_mib']:.0f} MiB" if "state_mib" in row else ""
        cells = (row["model"], shape, row["statistics"], ratio, hooks, state)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
