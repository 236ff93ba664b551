"""Gain and bias of a norm as they were when it ran last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field

__all__ = ["NormWeights"]


class NormWeights(Accumulator):
    """Gain and bias of a norm as they were when it ran last.

    Shards of one model have the same. Where they differ, as windows of a training do, a merge keeps
    those of the shard that is merged last.

    Args:
        width: d.

    Example:
        >>> weights = NormWeights(2).allocate()
        >>> weights.add(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]))
        >>> weights["gain"]
        tensor([1., 2.], dtype=torch.float64)
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            {
                "gain": Field((width,), torch.float64),
                "bias": Field((width,), torch.float64),
                "known": Field((), torch.bool, False),
            }
        )

    def add(self, gain: Tensor, bias: Tensor) -> None:
        """Put down what they are now."""
        self["gain"].copy_(gain)
        self["bias"].copy_(bias)
        self["known"].fill_(True)

    def merge(self, other: NormWeights, plan: Any = None) -> None:
        """Take the other's, where it has any."""
        for name in ("gain", "bias", "known"):
            mine, theirs = self[name], other[name].to(self.device)
            mine.copy_(torch.where(other["known"].to(self.device), theirs, mine))
