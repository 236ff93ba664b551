"""Transformer factors (Yun et al., arXiv 2103.15949) of any model and text, learned from hooks.

One sparse dictionary for every second layer, learned while the model reads, then held against a
random dictionary and principal directions on text that it has not read. See README.md beside this
file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from corpora import labelled
from environment import environment
from factor_readings import candidates, count, layer_of, markdown, senses, summary
from pretrained import CARRIED, pretrained
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.functional import (
    SparseCoder,
    initial_dictionary,
    largest_projections,
    signal_to_noise,
    unit_rows,
)

RESULTS = Path(__file__).parent / "results" / "transformer_factors"
HELD_OUT = 10  # one text in ten
SETTLES = 1.5  # step times length of running means, as published
WORDS = "left", "like", "mean"  # verbs, and something else
OF_PRINCIPAL = 8  # states that principal directions are of, for each factor
SEARCHES = 8  # halvings of the interval in which a penalty is looked for


def main() -> None:
    """Learn, compare, and write the results down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="minilm", help=f"{', '.join(CARRIED)}; name or folder")
    parser.add_argument("--text", default="documentation", help="or the Brown corpus's folder")
    parser.add_argument("--size", type=int, default=1000, help="factors")
    parser.add_argument("--penalty", type=float, default=0.08, help="in units of a state's length")
    parser.add_argument(
        "--steps", type=float, nargs="+", default=[0.03, 0.01], help="one after another"
    )
    parser.add_argument("--forwards", type=int, nargs="+", default=[90, 50], help="of each step")
    parser.add_argument("--updates", type=int, default=4, help="mini-batches a forward")
    parser.add_argument("--iterations", type=int, default=40, help="of sparse coding, in learning")
    parser.add_argument("--rows", type=int, default=8, help="windows a forward")
    parser.add_argument("--length", type=int, default=64, help="tokens of a window")
    parser.add_argument("--unseen", type=int, default=800, help="held-out states to compare on")
    parser.add_argument("--read", type=int, default=100, help="windows to see factors at work on")
    parser.add_argument("--dictionary", type=Path, help="a learned one, instead of learning")
    parser.add_argument("--names", type=Path, help="JSON from numbers of factors to their names")
    parser.add_argument("--candidates", type=int, default=0, help="factors to print of each level")
    parser.add_argument("--words", nargs="*", default=list(WORDS), help="with two senses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.forwards, arguments.unseen = 40, [12, 12], 200
        arguments.read, arguments.model = 30, "tiny"
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load(arguments.model)
    seen, unseen = texts(arguments.text)
    sites = every_second(model)
    others = windows(unseen, tokenizer, arguments.length, arguments.seed)
    hidden = states(model, sites, others, arguments.unseen, arguments.seed)
    name = Path(arguments.model).name
    file = arguments.out / f"{name}.json"
    if arguments.dictionary is None:
        read = windows(seen, tokenizer, arguments.length, arguments.seed)
        first = states(model, sites, read, arguments.size, arguments.seed)
        learned, log = learn(model, sites, read, unit_rows(first), arguments)
        more = unit_rows(states(model, sites, read, OF_PRINCIPAL * arguments.size, arguments.seed))
        gh.save_dictionary(
            arguments.out / f"{name}.safetensors", learned, penalty=arguments.penalty,
            relative=True, notes={"text": text_name(arguments.text), "sites": sites},
        )  # fmt: skip
        found = {
            "model": name,
            "text": text_name(arguments.text),
            "sites": sites,
            "settings": settings(arguments),
            "learning": log,
            "held_out": compare(unit_rows(hidden), learned, more, arguments.penalty),
            "environment": environment(),
        }
        file.write_text(json.dumps(found, indent=1) + "\n")
        print("\n".join(table(found)), flush=True)
    found = json.loads(file.read_text())
    kept = gh.load_dictionary(arguments.dictionary or file.with_suffix(".safetensors"))
    coder = kept.coder(iterations=200, tolerance=1e-2)
    counted = arguments.out / f"{name}-factors.safetensors"
    if arguments.dictionary is None or not counted.exists():
        geometry, seconds = count(model, sites, others[: arguments.read], coder, arguments.rows)
        geometry.save(counted)
        found["factors"] = summary(geometry) | {
            "windows": min(arguments.read, len(others)),
            "cpu_seconds_per_million_states": round(seconds),
        }
        if Path(arguments.text).is_dir():
            given = model, tokenizer, sites, coder
            found["senses"] = senses(*given, Path(arguments.text), arguments.words)
    geometry = gh.load(counted)
    print("\n".join(candidates(geometry, tokenizer, arguments.candidates)), flush=True)
    if arguments.names is not None:
        names = json.loads(arguments.names.read_text())
        found["names"] = names
        lines = markdown(f"{name} over {found['text']}", geometry, tokenizer, names)
        file.with_suffix(".md").write_text("\n".join(lines))
    file.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(readings(found)), flush=True)


def text_name(corpus: str) -> str:
    """What a corpus is called in results."""
    return "Brown corpus" if Path(corpus).is_dir() else Path(corpus).name


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a dictionary was learned with."""
    names = ("size", "penalty", "steps", "forwards", "updates", "iterations", "rows", "length",
             "unseen", "seed")  # fmt: skip
    return {name: getattr(arguments, name) for name in names}


def load(name: str) -> tuple[nn.Module, Any]:
    """A model without its head, and its tokenizer."""
    if name == "tiny":
        from subjects import tiny

        model, tokenizer = tiny()
        return model.base_model.eval(), tokenizer
    model, tokenizer = pretrained(name)
    return model.eval(), tokenizer


def texts(corpus: str) -> tuple[list[str], list[str]]:
    """The texts of a corpus: those to learn from, and every tenth, held out."""
    every = (
        sorted(topics.values()) if corpus == "documentation" else [t for _, t in labelled(corpus)]
    )
    unseen = every[HELD_OUT - 1 :: HELD_OUT]
    return [text for i, text in enumerate(every) if i % HELD_OUT != HELD_OUT - 1], unseen


def windows(some: Sequence[str], tokenizer: Any, length: int, seed: int) -> Tensor:
    """(C, T) ids of the texts in windows side by side, without special tokens, shuffled."""
    rows = []
    for text in some:
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        rows += [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(rows)[torch.randperm(len(rows), generator=generator)]


def every_second(model: nn.Module) -> list[str]:
    """The input of the first block, and every second block, as the authors sample BERT's layers."""
    return gh.watch(model, statistics=[gh.Sphere()]).sites[::2]


def forever(read: Tensor, rows: int) -> Iterator[Tensor]:
    """Batches of windows, from the beginning again after the last."""
    while True:
        yield from read.split(rows)


def learn(
    model: nn.Module, sites: list[str], read: Tensor, start: Tensor, how: argparse.Namespace
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The dictionary, and how learning went.

    It begins with states of the text, which takes fewer mini-batches than random directions do.
    """
    dictionary, log, batches = start, [], forever(read, how.rows)
    for step, forwards in zip(how.steps, how.forwards, strict=True):
        learning = gh.FactorLearning(
            how.size, how.penalty, start=dictionary, seed=how.seed, step=step,
            updates_per_forward=how.updates, iterations=how.iterations,
            waiting=3 * 100 * how.updates, revive=True, length=round(SETTLES / step),
        )  # fmt: skip
        start, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad(), gh.watch(model, sites=sites, statistics=[learning]) as watch:
            for number in range(1, forwards + 1):
                model(input_ids=next(batches))
                if number % 20 == 0 or number == forwards:
                    found = watch.geometry().model.factor_learning
                    if int(found.updates):
                        log.append(progress(found, step, start, cpu))
                        print(json.dumps(log[-1]), flush=True)
        geometry = watch.geometry()
        dictionary = geometry.model.factor_learning.dictionary.clone()
    return dictionary, log


def progress(found: Any, step: float, start: float, cpu: float) -> dict[str, Any]:
    """How learning stands."""
    numbers = {name: float(f"{float(found[name]):.5g}") for name in ("snr", "l0", "objective")}
    counts = {name: int(found[name]) for name in ("updates", "vectors", "tokens", "dead")}
    seconds = {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    return {"step": step, **counts, **numbers, **seconds}


def states(model: nn.Module, sites: list[str], read: Tensor, number: int, seed: int) -> Tensor:
    """Some states (N, d), as many of one layer as of another, but perhaps for the last."""
    each = -(-number // len(sites))
    rows = -(-4 * each // read.shape[1])  # of four times as many tokens
    with torch.no_grad():
        out = model(input_ids=read[:rows], output_hidden_states=True).hidden_states
    generator = torch.Generator().manual_seed(seed)
    picked = []
    for site in sites:
        flat = out[layer_of(site)].flatten(0, 1)
        picked.append(flat[torch.randperm(len(flat), generator=generator)[:each]])
    return torch.cat(picked)[:number]


def compare(hidden: Tensor, learned: Tensor, read: Tensor, penalty: float) -> dict[str, Any]:
    """Energy of unseen states over what is left of them, each way with as many coefficients.

    Of states of one length, as in learning: else a few that are a hundred times as long as
    others, as in many models those at position 0 are, would be all that counts.
    """
    chance = initial_dictionary(*learned.shape, seed=1)
    found: dict[str, Any] = {"states": len(hidden)}
    active = None
    for name, dictionary in (("learned", learned), ("random", chance)):
        given = (
            penalty if active is None else penalty_for(dictionary, hidden, active.mean(), penalty)
        )
        coder = SparseCoder(dictionary, given, relative=True, tolerance=1e-4)
        codes = coder(hidden)
        number = (codes > 0).sum(1).float()
        found[name] = row(hidden, coder.decode(codes), number) | {"penalty": round(given, 4)}
        active = number if active is None else active
    assert active is not None
    basis = torch.linalg.eigh((read.T @ read).double())[1].T.to(hidden)
    found["principal"] = row(hidden, largest_projections(hidden, basis, active), active)
    return found


def row(hidden: Tensor, decoded: Tensor, active: Tensor) -> dict[str, float]:
    """Signal to noise, and how many coefficients that took."""
    snr = float(signal_to_noise(hidden, decoded))
    return {"snr": float(f"{snr:.4g}"), "l0": round(float(active.mean()), 2)}


def penalty_for(dictionary: Tensor, hidden: Tensor, wanted: Tensor, first: float) -> float:
    """The penalty with which codes have as many activations as wanted."""
    low, high = first / 4, 0.9
    some = hidden[:: max(1, len(hidden) // 400)]
    for _ in range(SEARCHES):
        middle = (low * high) ** 0.5
        codes = SparseCoder(dictionary, middle, relative=True, iterations=150)(some)
        more = (codes > 0).sum(1).float().mean() > wanted
        low, high = (middle, high) if more else (low, middle)
    return (low * high) ** 0.5


def table(found: dict[str, Any]) -> list[str]:
    """What was found, for a reader."""
    held, last = found["held_out"], found["learning"][-1]
    lines = [
        f"{found['model']} over {found['text']}: {found['settings']['size']} factors, "
        f"{last['dead']} of them dead",
        "",
        f"{'held-out states':>16} {'SNR':>7} {'L0':>6}",
    ]
    return lines + [
        f"{name:>16} {held[name]['snr']:7.2f} {held[name]['l0']:6.1f}"
        for name in ("learned", "principal", "random")
    ]


def readings(found: dict[str, Any]) -> list[str]:
    """What factors stand for, for a reader."""
    factors = found["factors"]
    lines = ["", f"factors by level: {factors['levels']}", ""]
    lines.append(f"{'layer':>24} {'SNR':>7} {'L0':>6}  entropy of tokens: low, mid, high")
    for site, one in factors["layers"].items():
        entropy = " ".join(f"{value:5.2f}" for value in one["entropy"].values())
        lines.append(f"{site:>24} {one['snr']:7.2f} {one['l0']:6.1f}  {entropy}")
    return lines + [
        f"{one['word']:>8} verb at {one['site']}: factor {one['factor']}, F1 {one['f1']:.3f} "
        f"({one['f1_of_always']:.3f} of saying so always)"
        for one in found.get("senses", [])
    ]


if __name__ == "__main__":
    main()
