"""The sums behind means and variances of groups: how many, their sum, and that of their squares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field, counts

__all__ = ["GroupSums"]

# Tokens widened at a time: on a CPU few enough to stay in its cache.
ROWS, ROWS_ON_DEVICES = 256, 1 << 15


class GroupSums(Accumulator):
    """For each group the number, the sum and the sum of squares of x, by entry.

    x is a hidden state about its site's fixed shift. All is in float64, since groups may lie far
    from that shift when measured by their own spread.

    Args:
        groups: G. Two more rows follow them, of tokens without a label (negative ones), and of
            tokens whose label is G or more.
        width: d.
    """

    def __init__(self, groups: int, width: int) -> None:
        self.groups = groups
        rows = groups + 2
        super().__init__(
            {
                "count": counts((rows,)),
                "total": Field((rows, width), torch.float64),
                "squares": Field((rows, width), torch.float64),
            }
        )

    def add(self, hidden: Tensor, labels: Tensor, keep: Tensor, shift: Tensor) -> None:
        """Add a forward.

        Args:
            hidden: (B, T, d) hidden states.
            labels: (B, T) int64, any.
            keep: (B, T) bool, tokens that count; others may hold NaN.
            shift: (d,).
        """
        count, total, squares = self["count"], self["total"], self["squares"]
        beyond = torch.where(labels < 0, self.groups, self.groups + 1)
        inside = (labels >= 0) & (labels < self.groups)
        row = torch.where(inside, labels, beyond).reshape(-1)
        kept, states = keep.reshape(-1), hidden.flatten(0, 1)
        count.index_add_(0, row, kept.to(torch.int64))
        shift = shift.to(total.dtype)
        step = ROWS if hidden.device.type == "cpu" else ROWS_ON_DEVICES
        for first in range(0, len(states), step):
            piece = slice(first, first + step)
            x = states[piece].to(total.dtype) - shift
            x = x.masked_fill_(~kept[piece, None], 0.0)
            total.index_add_(0, row[piece], x)
            squares.index_add_(0, row[piece], x.square_())

    def rebase(self, delta: Tensor, followed: Any) -> None:
        """Express the sums about a shift that is smaller by ``delta`` (d,)."""
        count = self["count"][:, None]
        self["squares"].add_(2 * delta * self["total"] + count * delta.square())
        self["total"].add_(count * delta)

    def merge(self, other: GroupSums, plan: Any = None) -> None:
        """Add the other's sums, about the same shift."""
        for name, mine in self.tensors.items():
            mine.add_(other[name].to(mine.device))
