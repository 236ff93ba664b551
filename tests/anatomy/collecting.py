"""A statistic that keeps what it is shown of one forward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import geomhooks as gh
from geomhooks.anatomy import Addition


class Shown(NamedTuple):
    """What was shown at one block."""

    entered: Tensor
    left: Tensor
    additions: tuple[Addition, ...]
    real: Tensor


class Collect(gh.Statistic):
    """What the sublayers of each block add, by site, and by call where a block is called again."""

    taps = ("out", "in")
    uses = ("additions",)

    def __init__(self, heads: bool = False) -> None:
        self.heads = heads
        self.found: dict[str, list[Shown]] = {}
        if heads:
            self.uses = ("additions", "heads")

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"count": gh.Sum(dtype=torch.int64)}

    def update(self, state: Any, reading: Any) -> None:
        shown = Shown(
            reading.taps["in"], reading.taps["out"], reading.additions, reading.tokens.real
        )
        self.found.setdefault(reading.site.name, []).append(shown)
        state["count"].add(reading.tokens.real)

    def compute(self, state: Any) -> dict[str, Any]:
        return {"count": state["count"].value}
