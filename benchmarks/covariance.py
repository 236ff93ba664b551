"""What a covariance costs: the time in its hooks as a share of the forward, and of its product.

Random weights in the shape of real models, batches of 8 contexts of 256 tokens, every block and the
input of the first. Forwards that are looked at and those that are passed over are timed apart; the
share of a fraction is that of both, as often as they come. Then the product itself, a site's worth
of hidden states at a time: as it is done, against a plain float32 product, one in float64 of states
that are widened as a whole, and NumPy's, which calls a symmetric update (syrk).

    python benchmarks/covariance.py [--forwards 6] [--device cpu] [--quick]

writes ``benchmarks/results/covariance-<device>.json`` and prints two tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from overhead import MODELS
from timing import Clock, clocked_hooks, synchronize, watched
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.accumulators.turns import is_chosen
from geomhooks.reductions.products import add_products
from geomhooks.watcher import Watch

GRID, FRACTION = (8, 256), 0.1
SHAPES = {"GPT-2 124M shape": 768, "SmolLM2-135M shape": 576, "width of a 7B model": 4096}
STATISTICS: dict[str, tuple[float, Callable[[], list[gh.Statistic]]]] = {
    "Covariance()": (1.0, lambda: [gh.Covariance()]),
    "Covariance(0.1)": (FRACTION, lambda: [gh.Covariance(FRACTION)]),
    "PosCtx": (1.0, lambda: [gh.PosCtx()]),
    "PosCtx, second moment": (1.0, lambda: [gh.PosCtx(second_moment=True)]),
    "the same of 0.1": (
        FRACTION,
        lambda: [gh.PosCtx(second_moment=True, second_moment_fraction=FRACTION)],
    ),
    "both, one product": (1.0, lambda: [gh.PosCtx(second_moment=True), gh.Covariance()]),
}


def main() -> None:
    """Measure every model with every statistic, then the product at every width."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--forwards", type=int, default=6, help="of each kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="does it run: a model, a width, once")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device, forwards = torch.device(arguments.device), arguments.forwards
    names = [name for name in SHAPES if name in MODELS]
    widths, grid = dict(SHAPES), GRID
    if arguments.quick:
        widths, forwards, grid = {"MiniLM-L6 shape": 384}, 1, (2, 16)
        names = list(widths)
    rows = [
        row
        for name in names
        for row in model_rows(name, MODELS[name]().eval().to(device), grid, forwards)
    ]
    products = [product_row(name, (*grid, d), device, forwards) for name, d in widths.items()]
    path = arguments.out or Path(__file__).parent / "results" / f"covariance-{device.type}.json"
    result = {"environment": environment(), "rows": rows, "products": products}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path.name}")


@torch.no_grad()
def model_rows(
    name: str, model: nn.Module, grid: tuple[int, int], forwards: int
) -> list[dict[str, Any]]:
    """A row for each choice of statistics."""
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {"input_ids": torch.randint(1000, grid, device=device)}
    if not name.startswith("MiniLM"):
        inputs["use_cache"] = False
    rows = []
    for label, (fraction, build) in STATISTICS.items():
        watch = gh.watch(model, statistics=build())
        found = shares(model, inputs, watch, fraction, forwards)
        row = {"model": name, "shape": list(grid), "statistics": label, **found}
        row["state_mib"] = round(watch.nbytes / 2**20, 1)
        rows.append(row)
        passed = row["share_when_passed_over"]
        print(
            f"{name:20s} {label:22s} forward {row['rest_ms']:8.1f} ms  in hooks "
            f"{100 * row['share']:5.2f} % (looked at {100 * row['share_when_looked_at']:5.2f} %"
            + (f", passed over {100 * passed:.2f} %)" if passed is not None else ")")
            + f"  state {row['state_mib']:.0f} MiB",
            flush=True,
        )
    return rows


def shares(
    model: nn.Module, inputs: dict[str, Any], watch: Watch, fraction: float, forwards: int
) -> dict[str, Any]:
    """Time in the hooks over that of the rest of the forward; medians over forwards of a kind."""
    found: dict[bool, list[float]] = {True: [], False: []}
    rests = []
    watched(model, inputs, watch)  # the first allocates and compiles
    number = 1
    while len(found[True]) < forwards or (fraction < 1 and len(found[False]) < forwards):
        clock = Clock()
        with clocked_hooks(clock):
            whole = watched(model, inputs, watch)
        rest = whole - clock.seconds
        found[is_chosen(number, fraction)].append(clock.seconds / rest)
        rests.append(rest)
        number += 1
    looked = statistics.median(found[True])
    passed = statistics.median(found[False]) if found[False] else None
    share = looked if passed is None else fraction * looked + (1 - fraction) * passed
    return {
        "rest_ms": round(1e3 * statistics.median(rests), 2),
        "share": round(share, 4),
        "share_when_looked_at": round(looked, 4),
        "share_when_passed_over": None if passed is None else round(passed, 4),
    }


def product_row(
    name: str, shape: tuple[int, int, int], device: torch.device, times: int
) -> dict[str, Any]:
    """Milliseconds of one site's product, each way in turn; and how far each is from float64."""
    states, width = torch.randn(shape, device=device), shape[2]
    keep = torch.ones(shape[:2], dtype=torch.bool, device=device)
    shift = torch.zeros(width, dtype=torch.float64, device=device)
    rows = states.flatten(0, 1)
    moment = gh.SecondMoment(width).allocate(device)
    total = torch.zeros(width, width, dtype=torch.float64, device=device)

    def as_it_is_done() -> Tensor:
        add_products([moment], states, keep, shift)
        return moment.outer / moment["forwards"]

    ways: dict[str, Callable[[], Any]] = {
        "as_it_is_done": lambda: add_products([moment], states, keep, shift),
        "float32": lambda: total.add_(rows.T @ rows),
        "float64": lambda: total.add_(rows.double().T @ rows.double()),
    }
    if device.type == "cpu":
        array = rows.numpy()
        ways["numpy_syrk"] = lambda: total.add_(torch.from_numpy(np.matmul(array.T, array)))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(times + 1):
        for way, run in ways.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if repeat:
                seconds[way].append(time.perf_counter() - start)
    exact = rows.double().T @ rows.double()
    scale = torch.outer(exact.diagonal(), exact.diagonal()).sqrt()
    error = float(((as_it_is_done() - exact) / scale).abs().max())
    row: dict[str, Any] = {"width": width, "name": name, "shape": list(shape)}
    row |= {f"{way}_ms": round(1e3 * statistics.median(s), 2) for way, s in seconds.items()}
    row["error"] = error
    print(
        f"{name:20s} {row['shape']}  "
        + "  ".join(f"{way} {row[f'{way}_ms']:.1f} ms" for way in ways)
        + f"  error {error:.1e}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
