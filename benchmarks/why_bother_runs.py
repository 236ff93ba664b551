"""Runs of the study of geometry indicators over training, and their series."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from translator_checkpoints import INDICATORS, TERMS, Checkpoint

__all__ = ["Key", "Run", "is_flat", "keys", "layers", "number", "numbers"]


class Run(NamedTuple):
    """The checkpoints of a training."""

    name: str
    condition: str
    checkpoints: list[Checkpoint]

    def quality(self, name: str) -> Tensor:
        """(S,) of each checkpoint; less loss is better."""
        if name == "step":
            return torch.tensor([float(one.step) for one in self.checkpoints])
        sign = -1 if name == "loss" else 1
        return torch.tensor([sign * one.quality[name] for one in self.checkpoints]).double()

    def series(self, key: Key, layer: int = -1, decoding: str = "generated") -> Tensor:
        """(S,) means over all tokens."""
        rows = [
            c.means[decoding, key.method][layer, key.at, key.indicator] for c in self.checkpoints
        ]
        return torch.tensor(rows).double()


class Key(NamedTuple):
    """One indicator of one term."""

    method: str
    indicator: int
    term: str

    @property
    def at(self) -> int:
        """Which of the method's terms."""
        return TERMS[self.method].index(self.term)

    def __str__(self) -> str:
        return f"{self.method}/{INDICATORS[self.indicator]}/{self.term}"


def keys() -> Iterator[Key]:
    """All of both methods."""
    for method, terms in TERMS.items():
        for indicator in range(len(INDICATORS)):
            for term in terms:
                yield Key(method, indicator, term)


def layers(runs: list[Run]) -> int:
    """Sites of the decoder."""
    return len(runs[0].checkpoints[0].means["generated", "by_part"])


def is_flat(series: Tensor) -> bool:
    """Nothing to be compared."""
    return float(series.max() - series.min()) <= 1e-9 * float(series.abs().max())


def number(value: float) -> float | None:
    """With five digits, as a file has it; what is not finite is none."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def numbers(values: Any) -> list[float | None]:
    """Of several."""
    return [number(float(value)) for value in values]
