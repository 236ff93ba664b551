"""Sums of unit vectors, kept so that even vectors that are nearly parallel tell how near.

1 - R^2, with R the length of the mean unit vector, is lost in R itself once R is near 1, as it is
wherever a few entries of a hidden state dwarf the rest. It is the variance of the unit vectors
u_i, and like any variance it keeps its digits about a fixed vector e near the mean:

    1 - R^2 = (1/n) sum |u_i - e|^2 - |(1/n) sum (u_i - e)|^2
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field, counts
from geomhooks.gpu import load as load_kernels
from geomhooks.gpu import runs_on
from geomhooks.native import load, usable

__all__ = ["Offsets", "UnitVectors", "offsets"]


class Offsets(NamedTuple):
    """What each vector h = x + s contributes to sums about e = s / |s|.

    Attributes:
        along: how much of s there is in u - e beside x / |h|.
        square: |u - e|^2.
    """

    along: Tensor
    square: Tensor


def offsets(length: Tensor, square: Tensor, dot: Tensor, shift_length: Tensor) -> Offsets:
    """Split u - e into a multiple of x and one of s, without a difference of large numbers.

    With r = |h|, r_s = |s| and r_s - r = -(2 <x, s> + |x|^2) / (r + r_s),

        u - e = x / r + s (r_s - r) / (r r_s).

    Args:
        length: (...) |h|.
        square: (...) |x|^2.
        dot: (...) <x, s>.
        shift_length: () |s|; where it is zero, e is zero as well.

    Example:
        >>> s, x = torch.tensor([3.0, 4.0]), torch.tensor([-3.0, 0.0])
        >>> o = offsets((x + s).norm(), x @ x, x @ s, s.norm())
        >>> u, e = (x + s) / 4, s / 5
        >>> (
        ...     torch.allclose(x / 4 + o.along * s, u - e),
        ...     torch.allclose(o.square, (u - e).square().sum()),
        ... )
        (True, True)
    """
    shorter = -(2 * dot + square) / (length + shift_length)
    usable = shift_length > 0
    along = torch.where(usable, shorter / (length * shift_length), 0.0)
    ratio = torch.where(usable, shorter / shift_length, 0.0)
    spread = (square + 2 * dot * ratio + shorter.square() * usable) / length.square()
    return Offsets(along, spread)


class UnitVectors(Accumulator):
    """Sums of unit vectors of a few kinds, each about a fixed unit vector, in a few groups.

    Args:
        kinds: number of kinds.
        groups: number of groups.
        width: d.
    """

    def __init__(self, kinds: int, groups: int, width: int) -> None:
        f64 = torch.float64
        super().__init__(
            {
                "about": Field((kinds, width), f64),
                "count": counts((kinds, groups)),
                "offset": Field((kinds, groups, width), f64),
                "square": Field((kinds, groups), f64),
            }
        )

    def add(self, about: Tensor, count: Tensor, offset: Tensor, square: Tensor) -> None:
        """Add sums over some vectors.

        Args:
            about: (kinds, d) e, the same at every call.
            count: (kinds, groups) how many vectors.
            offset: (kinds, groups, d) sum of u - e.
            square: (kinds, groups) sum of |u - e|^2.
        """
        given = about, count, offset, square
        if usable(*given, self["square"]):
            held = (self.array(name) for name in ("about", "count", "offset", "square"))
            load().add_directions(*(tensor.numpy() for tensor in given), *held)
            return
        if runs_on(*given, self["square"]):
            load_kernels().add_directions(self, *given)
            return
        self["about"].copy_(about)
        self["count"].add_(count)
        self["offset"].add_(offset)
        self["square"].add_(square)

    def merge(self, other: UnitVectors, plan: Any = None) -> None:
        """Add the other's vectors, moved to this one's e."""
        device = self["square"].device
        if not bool(self["count"].any()) and not bool(self["about"].any()):
            self["about"].copy_(other["about"].to(device))
        theirs = {name: tensor.to(device) for name, tensor in other.tensors.items()}
        delta = (theirs["about"] - self["about"])[:, None]
        count = theirs["count"]
        self["count"].add_(count)
        self["square"].add_(theirs["square"] + 2 * (theirs["offset"] * delta).sum(-1))
        self["square"].add_(count * delta.square().sum(-1))
        self["offset"].add_(theirs["offset"] + count[..., None] * delta)

    def pooled(self, kind: int, groups: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Number of vectors of some groups, their sum (d,), and their 1 - R^2."""
        count = self["count"][kind, groups].sum()
        offset = self["offset"][kind, groups].sum(0)
        variance = self["square"][kind, groups].sum() / count - (offset / count).square().sum()
        return count, offset + count * self["about"][kind], variance.clamp(min=0)
