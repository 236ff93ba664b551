"""Numbers that are put down once, such as what is known of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators.basic import Accumulator, Field

__all__ = ["Noted"]


class Noted(Accumulator):
    """Numbers that stay as they were first put down.

    Shards of one model have the same. Where they differ, as windows of a training do, a merge keeps
    those of the first that has any.

    Args:
        shape: of the numbers.

    Example:
        >>> noted = Noted((2,)).allocate()
        >>> noted.add(torch.tensor([1.0, 2.0]))
        >>> noted.add(torch.tensor([3.0, 4.0]))
        >>> noted["value"]
        tensor([1., 2.], dtype=torch.float64)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(
            {
                "value": Field(tuple(shape), torch.float64),
                "known": Field((), torch.bool, False),
            }
        )

    def add(self, value: Tensor) -> None:
        """Put numbers down, unless there are some."""
        mine, known = self["value"], self["known"]
        mine.copy_(torch.where(known, mine, value.to(mine)))
        known.fill_(True)

    def merge(self, other: Noted, plan: Any = None) -> None:
        """Take the other's, where this has none."""
        mine, known = self["value"], self["known"]
        mine.copy_(torch.where(known, mine, other["value"].to(mine)))
        known.logical_or_(other["known"].to(known))
