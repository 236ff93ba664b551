"""All that Song & Zhong (arXiv 2310.04861) tabulate, at every layer of any model, from the stream.

One pass of a model over windows of text, or of random tokens; nothing is kept of the activations.
As they do, windows have no special tokens and their first token is left out. Other than they do,
every token enters the relative norm, contexts are those whose positions are measured, and layers
are all of them. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora import Windows, draw, draw_random
from environment import environment
from pretrained import CARRIED, pretrained
from torch import nn

import geomhooks as gh
from geomhooks.functional import published_group_similarity

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "song_zhong.json"
PUBLISHED = FOLDER / "published" / "song_zhong.json"
COLUMNS = 13  # of the paper's tables
BATCH = 16
ROUND = 5  # digits of a result
QUANTITIES = (
    "rank",
    "rank_above_noise",
    "stable_rank",
    "relative_norm",
    "relative_norm_uncentred",
    "low_frequency_share",
    "incoherence",
    "incoherence_expected",
    "incoherence_max",
    "inter",
    "intra",
    "inter_unbiased",
    "intra_unbiased",
    "pos_noise_share",
)


def main() -> None:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--models", nargs="+", default=["minilm"], help=f"{', '.join(CARRIED)}; hub name or folder"
    )
    parser.add_argument(
        "--texts",
        nargs="+",
        default=["documentation", "random"],
        help="documentation; random; the folder of the Brown corpus; a .jsonl file (text, group)",
    )
    parser.add_argument("--contexts", type=int, default=240)
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.contexts, arguments.length = ["tiny"], 24, 32
    for name in arguments.models:
        model, tokenizer, paper = load(name)
        for text in arguments.texts:
            given = arguments.contexts, arguments.length, arguments.seed
            windows = (
                draw_random(model.config.vocab_size, *given)
                if text == "random"
                else draw(text, tokenizer, *given)
            )
            start = time.perf_counter()
            found = measure(model, windows)
            run = {
                "model": Path(name).name if name not in CARRIED else name,
                "text": Path(text).name,
                "blocks": len(found["sites"]) - 1,
                "contexts": len(windows.ids),
                "length": windows.ids.shape[1],
                "labels": windows.names,
                "seed": arguments.seed,
                "seconds": round(time.perf_counter() - start, 1),
                **found,
                "environment": environment(),
            }
            print("\n".join(table(run, paper)), flush=True)
            if not arguments.quick or arguments.out != RESULTS:
                write(run, arguments.out)


def load(name: str) -> tuple[nn.Module, Any, str | None]:
    """A model, its tokenizer, and its name among the paper's, if it is one of them."""
    if name == "tiny":
        from subjects import tiny

        model, tokenizer = tiny()
        return model.base_model.eval(), tokenizer, None
    model, tokenizer = pretrained(name)
    paper = name_in_paper(model.config)
    if paper and json.loads(PUBLISHED.read_text())["models"][paper].get("causal"):
        # They load this encoder as a decoder, so that a token sees none that follow.
        model, tokenizer = pretrained(name, is_decoder=True)
    return model.eval(), tokenizer, paper


def name_in_paper(config: Any) -> str | None:
    """The model of the paper that has this configuration."""
    sizes = {
        "model_type": config.model_type,
        "blocks": config.num_hidden_layers,
        "width": config.hidden_size,
        "vocabulary": config.vocab_size,
    }
    for name, theirs in json.loads(PUBLISHED.read_text())["models"].items():
        if sizes.items() <= theirs.items():
            return str(name)
    return None


@torch.inference_mode()
def measure(model: nn.Module, windows: Windows) -> dict[str, Any]:
    """The quantities of every site, in forward order."""
    contexts, length = windows.ids.shape
    statistic = gh.PosCtx(contexts=contexts, positions=length, second_moment=True)
    device = next(model.parameters()).device
    with gh.watch(model, sites="blocks", statistics=[statistic], skip_positions=1) as watch:
        for first in range(0, contexts, BATCH):
            part = slice(first, first + BATCH)
            labels = None if windows.labels is None else windows.labels[part].to(device)
            with watch.tokens(groups=labels):
                model(input_ids=windows.ids[part].to(device), **without_cache(model))
    geometry = watch.geometry()
    rows = [quantities(geometry[site].pos_ctx) for site in geometry.sites]
    columns = {name: [rounded(row.get(name)) for row in rows] for name in QUANTITIES}
    return {"sites": geometry.sites, **columns}


def without_cache(model: nn.Module) -> dict[str, bool]:
    """Causal models would keep what the next token needs."""
    return {"use_cache": False} if getattr(model.config, "use_cache", False) else {}


def quantities(found: Any) -> dict[str, float]:
    """What the paper tabulates, of one site."""
    numbers = {
        "rank": found.rank,
        "rank_above_noise": found.rank_above_noise,
        "stable_rank": found.stable_rank,
        "relative_norm": found.relative_norm.centred,
        "relative_norm_uncentred": found.relative_norm.uncentred,
        "low_frequency_share": found.smoothness.low_frequency_share,
        "incoherence": found.incoherence.mean,
        "incoherence_expected": found.incoherence.expected_mean,
        "incoherence_max": found.incoherence.max,
        "pos_noise_share": found.noise_shares.pos / found.shares.pos,
    }
    if "similarity" in found:
        published = published_group_similarity(found.ctx, found.context_group)
        numbers |= {"inter": published.inter, "intra": published.intra}
        numbers |= {f"{name}_unbiased": found.similarity[name] for name in ("inter", "intra")}
    return {name: float(number) for name, number in numbers.items()}


def rounded(value: float | None) -> float | int | None:
    """A number as a file has it; NaN is none."""
    if value is None or np.isnan(value):
        return None
    return int(value) if value == int(value) else round(value, ROUND)


def columns_of(layers: int) -> list[int]:
    """The hidden states that the paper tabulates of so many."""
    return [int(at) for at in np.linspace(0, layers - 1, min(COLUMNS, layers))]


def table(run: dict[str, Any], paper: str | None = None) -> list[str]:
    """Lines of a run, and of what the paper has of this model, under each other."""
    layers = len(run["sites"])
    shown = columns_of(layers)
    labels = f", {len(run['labels'])} labels" if run["labels"] else ""
    lines = [
        f"\n{run['model']}, {run['text']}: {run['contexts']} contexts of {run['length']} tokens"
        f"{labels}; {run['seconds']} s",
        line("", [f"L{layer}" for layer in shown], "mean (dev.)", str),
    ]
    for name in QUANTITIES:
        values = run[name]
        if all(value is None for value in values):
            continue
        lines.append(line(name, [values[layer] for layer in shown], summary(values)))
        for row in published(paper):
            if name in row:
                title = f"  published, {row['corpus']}"
                theirs = row[name]
                if isinstance(theirs, list):
                    lines.append(line(title, theirs, summary(theirs)))
                else:
                    lines.append(line(title, [], f"{theirs:.2f} ({row[f'{name}_deviation']:.2f})"))
    return lines


def published(paper: str | None) -> list[dict[str, Any]]:
    """The paper's rows of a model."""
    rows: list[dict[str, Any]] = json.loads(PUBLISHED.read_text())["rows"]
    return [row for row in rows if row["model"] == paper]


def summary(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over layers."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3g} ({np.std(known):.2g})"


def digits(value: float | None) -> str:
    """A number in six characters."""
    if value is None:
        return "-"
    return f"{value:d}" if isinstance(value, int) else f"{value:.3f}"


def line(name: str, values: Sequence[Any], end: str, show: Callable[[Any], str] = digits) -> str:
    """A row of the table."""
    return f"{name:26s}" + "".join(f"{show(value):>8s}" for value in values) + f"  {end}"


def write(run: dict[str, Any], path: Path) -> None:
    """Put a run in a file of runs, in the place of an earlier one of that model and text."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    others = [r for r in runs if (r["model"], r["text"]) != (run["model"], run["text"])]
    runs = sorted([*others, run], key=lambda r: (r["model"], r["text"]))
    lines = ",\n".join(" " + one_line_a_field(each) for each in runs)
    path.write_text(f'{{"runs": [\n{lines}\n]}}\n')


def one_line_a_field(run: dict[str, Any]) -> str:
    """JSON with a line for each field."""
    fields = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in run.items())
    return "{\n" + ",\n".join(fields) + "\n }"


if __name__ == "__main__":
    main()
