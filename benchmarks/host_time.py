"""Host time of a site's hook beyond its kernels, where states cost next to nothing.

Blocks that do next to nothing are run bare, watched, and watched with the compiled loops taken out:
what is left then is Python, torch's own calling of hooks included. On a CPU the loops are the
kernels. What is done once a forward (tokens, contexts, opening and closing) is told apart by the
number of blocks: time is a line in it, whose slope is a site's. Of the processor's time, not the
clock's; medians of rounds in turn.

    python benchmarks/host_time.py

writes ``benchmarks/results/host-time-cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from environment import environment
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.forwards.shortcut import Shortcut
from geomhooks.native import load

SHAPE = (1, 4, 64)
FEW, MANY = 8, 72
STATISTICS = {
    "PosCtx": lambda: [gh.PosCtx(positions=64, contexts=64)],
    "Sphere": lambda: [gh.Sphere(positions=64)],
    "both": lambda: [gh.PosCtx(contexts=64), gh.Sphere(positions=64)],
}


class Block(nn.Module):
    """A block that costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(SHAPE[-1]))

    def forward(self, states: Tensor) -> Tensor:
        """Add a bias."""
        return states + self.bias


class Model(nn.Module):
    """A stack of them."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(number))

    def forward(self, states: Tensor) -> Tensor:
        """Run all."""
        for block in self.blocks:
            states = block(states)
        return states


class WithoutLoops(ExitStack):
    """Inside, the compiled loops of a site and of a forward's end are not run."""

    def __init__(self) -> None:
        super().__init__()
        made = Shortcut.__init__

        def make(way: Shortcut, *arguments: object) -> None:
            made(way, *arguments)  # type: ignore[arg-type]
            way._run = lambda _: None

        self.enter_context(patch.object(Shortcut, "__init__", make))
        self.enter_context(patch.object(load("notes"), "whole", lambda: lambda _: None))


def main() -> None:
    """Measure each set of statistics."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--forwards", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="few forwards: does it run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    forwards, rounds = (5, 1) if arguments.quick else (arguments.forwards, arguments.rounds)
    torch.set_num_threads(1)
    found: dict[str, list[tuple[float, ...]]] = {label: [] for label in STATISTICS}
    for _ in range(rounds):
        for label, chosen in STATISTICS.items():
            found[label].append(lines(chosen, forwards))
    rows = []
    for label, each in found.items():
        host, loops, once = (statistics.median(values) for values in zip(*each, strict=True))
        row = {
            "statistics": label,
            "host_microseconds_a_site": round(host, 2),
            "loops_microseconds_a_site": round(loops, 2),
            "host_microseconds_a_forward": round(once, 1),
        }
        rows.append(row)
        print(
            f"{label:7s} a site: host {host:5.1f} us, loops {loops:5.1f} us; "
            f"a forward besides: {once:4.0f} us",
            flush=True,
        )
    result = {"environment": environment(), "shape": SHAPE, "rows": rows}
    path = arguments.out or Path(__file__).parent / "results" / "host-time-cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def lines(chosen: Callable[[], list[gh.Statistic]], forwards: int) -> tuple[float, float, float]:
    """Microseconds of the host and of the loops at a site, and of the host besides at a forward."""
    few, many = (times(number, chosen(), forwards) for number in (FEW, MANY))
    bare, full, host = ((b - a) / (MANY - FEW) * 1e6 for a, b in zip(few, many, strict=True))
    return host - bare, full - host, (few[2] - few[0]) * 1e6 - FEW * (host - bare)


def times(blocks: int, chosen: list[gh.Statistic], forwards: int) -> tuple[float, float, float]:
    """Seconds of a forward: bare, watched, and watched without the loops."""
    model, states = Model(blocks).eval(), torch.randn(SHAPE)
    given = {"states": states}
    bare = median(model, given, forwards)
    with gh.watch(model, sites="blocks.*", statistics=chosen):
        full = median(model, given, forwards)
    with WithoutLoops(), gh.watch(model, sites="blocks.*", statistics=chosen):
        host = median(model, given, forwards)
    return bare, full, host


@torch.no_grad()
def median(model: nn.Module, given: dict[str, Tensor], forwards: int) -> float:
    """Median seconds of a forward, after some that are not counted."""
    seconds = []
    for _ in range(forwards + 5):
        start = time.thread_time()
        model(**given)
        seconds.append(time.thread_time() - start)
    return statistics.median(seconds[5:])


if __name__ == "__main__":
    main()
