"""What input, attention, feed-forward layers and biases contribute to hidden states, by layer.

"How to Dissect a Muppet" (Mickus, Paperno & Constant, arXiv 2206.03529) at every layer of any
model: the importance of each term of e = i + h + f + c, the same by origin after Oh & Schuler, and
how linear the feed-forward layers are. One pass over windows of text; nothing is kept of the
activations.

    python benchmarks/muppet.py [--models minilm mpnet] [--text documentation] [--contexts 240]

writes ``benchmarks/results/muppet.json`` (or ``--out``) and prints tables beside the published row.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from corpora import Windows, draw
from environment import environment
from pretrained import CARRIED
from song_zhong import load, without_cache
from torch import nn

import geomhooks as gh

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "muppet.json"
PUBLISHED = FOLDER / "published" / "muppet.json"
BATCH = 16
ROUND = 4


def main() -> None:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--models",
        nargs="+",
        default=["minilm", "mpnet"],
        help=f"{', '.join(CARRIED)}; hub name or folder",
    )
    parser.add_argument(
        "--text",
        default="documentation",
        help="documentation; the folder of the Brown corpus; a .jsonl file (text, group)",
    )
    parser.add_argument("--contexts", type=int, default=240)
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.contexts, arguments.length = ["tiny"], 24, 32
    runs = []
    for name in arguments.models:
        model, tokenizer, _ = load(name)
        windows = draw(
            arguments.text, tokenizer, arguments.contexts, arguments.length, arguments.seed
        )
        start = time.perf_counter()
        run = {
            "model": name if name in CARRIED else Path(name).name,
            "text": Path(arguments.text).name,
            "contexts": len(windows.ids),
            "length": windows.ids.shape[1],
            "seed": arguments.seed,
            **measure(model, windows),
            "seconds": round(time.perf_counter() - start, 1),
        }
        runs.append(run)
        print("\n".join(table(run)), flush=True)
        result = {"environment": environment(), "runs": runs}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(published())))
    print(f"written to {arguments.out}")


@torch.inference_mode()
def measure(model: nn.Module, windows: Windows) -> dict[str, Any]:
    """Importance by layer and term, by both methods, and R^2."""
    terms = passed(model, windows, [gh.Components(), gh.FeedForwardFit()])
    origins = passed(model, windows, [gh.Components(method="oh_schuler")])
    found: dict[str, Any] = {"sites": terms.sites}
    for name, geometry in (("importance", terms), ("by_origin", origins)):
        rows = [geometry[site].components.importance for site in geometry.sites]
        found[name] = {
            term: {
                "mean": [rounded(row[term].mean) for row in rows],
                "deviation": [rounded(row[term].variance.sqrt()) for row in rows],
            }
            for term in rows[0]
        }
    fits = [terms[site].get("feed_forward_fit") for site in terms.sites]
    found["r_squared"] = [None if fit is None else rounded(fit.r_squared) for fit in fits]
    gaps = [terms[site].components.gap.max for site in terms.sites]
    return found | {"largest_gap": float(max(gaps))}


def passed(model: nn.Module, windows: Windows, statistics: list[gh.Statistic]) -> gh.Geometry:
    """One pass over all windows."""
    length = windows.ids.shape[1]
    with gh.watch(model, sites="blocks", statistics=statistics, positions=length) as watch:
        for ids in windows.ids.split(BATCH):
            model(input_ids=ids, **without_cache(model))
    return watch.geometry()


def rounded(value: torch.Tensor) -> float | None:
    """A number as a file has it; NaN is none."""
    return None if bool(value.isnan()) else round(float(value), ROUND)


def published() -> dict[str, Any]:
    """The paper's row, as a run."""
    row = json.loads(PUBLISHED.read_text())
    means = {term: {"mean": values} for term, values in row["importance"].items()}
    return row | {"importance": means}


def table(run: dict[str, Any]) -> list[str]:
    """Lines of a run, a column a layer."""
    layers = len(run["r_squared"])
    lines = [
        f"\n{run['model']}, {run['text']}: mean importance of the terms",
        line("", [f"L{layer}" for layer in range(layers)]),
        *(line(term, found["mean"]) for term, found in run["importance"].items()),
        line("R^2 of feed-forward", run["r_squared"]),
    ]
    for term, found in run.get("by_origin", {}).items():
        lines.append(line(f"by origin: {term}", found["mean"]))
    return lines


def line(name: str, values: list[Any]) -> str:
    """A row of the table."""
    shown = ("-" if v is None else f"{v:.3f}" if isinstance(v, float) else v for v in values)
    return f"{name:24s}" + "".join(f"{value!s:>8s}" for value in shown)


if __name__ == "__main__":
    main()
