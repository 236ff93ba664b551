"""The move of a state on the hyper-sphere, from sums over its entries.

With y the state before and h = y + u after, both centred (less the mean of their entries, marked
c), r = |y_c| and e = y_c / r:

    radial      rho = <u_c, e>                      how far it moves outwards
    tangential  tau = sqrt(|u_c|^2 - rho^2)         how far it moves along the sphere
    angle       theta = atan2(tau, r + rho)         between y_c and h_c

The angle comes from the update itself and keeps its digits where it is small, which the arc cosine
of a cosine near 1 does not. (Geometry of pre-norm residual updates after R. Molina, "Traveling
Words", arXiv 2309.07315.)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Move", "centred_square", "move"]


class Move(NamedTuple):
    """Radial and tangential part of an update, and r + rho, how far out along e it ends."""

    radial: Tensor
    tangential: Tensor
    outward: Tensor


def centred_square(square: Tensor, ones: Tensor, width: int) -> Tensor:
    """|h - m 1|^2 from |h|^2 and the sum of the entries; m is their mean."""
    return (square - ones.square() / width).clamp(min=0)


def move(
    width: int,
    in_square: Tensor,
    in_ones: Tensor,
    update_ones: Tensor,
    update_dot: Tensor,
    slope: Tensor,
    across_square: Tensor,
) -> Move:
    """Radial and tangential part of a move from y by u; all tensors of one shape.

    Where a move is mostly radial, tau^2 = |u_c|^2 - rho^2 has no digits left. So the part of u
    along y is taken off before squaring: with c near rho / r, and u' = u - c y,
    tau^2 = |u'_c|^2 - (rho - c r)^2, and the last term is next to nothing.

    Args:
        width: d.
        in_square: |y|^2.
        in_ones: sum of the entries of y.
        update_ones: sum of the entries of u.
        update_dot: <u, y>.
        slope: c.
        across_square: |u - c y|^2.

    Example: a quarter turn in the plane orthogonal to the ones direction.
        >>> import torch
        >>> y, u = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([-1.0, 1.0, 0.0])
        >>> u = u + torch.tensor([1.0, 1.0, -2.0]) / 3**0.5
        >>> c = torch.tensor(-1.0)
        >>> m = move(3, y @ y, y.sum(), u.sum(), u @ y, c, (u - c * y) @ (u - c * y))
        >>> round(float(torch.atan2(m.tangential, m.outward)), 4)
        1.5708
        >>> [round(float(v), 4) for v in m]
        [-1.4142, 1.4142, 0.0]
    """
    radius = centred_square(in_square, in_ones, width).sqrt()
    radial = (update_dot - update_ones * in_ones / width) / radius
    across = centred_square(across_square, update_ones - slope * in_ones, width)
    tangential = (across - (radial - slope * radius).square()).clamp(min=0).sqrt()
    return Move(radial, tangential, radius + radial)
