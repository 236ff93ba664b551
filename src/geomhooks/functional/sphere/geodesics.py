r"""Directions on the sphere: angles between them, and the arcs of great circles that join them.

With a and b of length 1, :math:`\theta` the angle between them and v orthogonal to a,

.. math::
    \mathrm{Log}_a(b) = \theta \, \frac{b - \langle a, b \rangle a}
        {|b - \langle a, b \rangle a|}, \qquad
    \mathrm{Exp}_a(v) = \cos |v| \; a + \sin |v| \; \frac{v}{|v|}

take the sphere to its tangent space at a and back. Vectors of any length stand for their
directions. Where ``centred``, the mean of the entries is taken off first, as LayerNorm does: what
remains are directions in the plane orthogonal to the ones direction. All is computed in float64,
so that angles keep their digits however small they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float
from geomhooks.functional.sphere.steps import move

__all__ = [
    "GeodesicDistance",
    "angle_between",
    "exp_map",
    "geodesic_distance",
    "log_map",
    "slerp",
]


class GeodesicDistance(NamedTuple):
    """How far points are from the arc between two directions, and beside which point of it."""

    angle: Tensor
    """(...) in radians, to the nearest point of the arc"""
    along: Tensor
    """(...) where on the arc that is: 0 at its start, 1 at its end; NaN if both are one point"""


def angle_between(vectors: Tensor, others: Tensor, *, centred: bool = False) -> Tensor:
    """Angles between vectors, in radians, from 0 to pi.

    They come from the difference of the two (``sphere.steps.move``), so
    that the angle between nearly equal vectors is right to its last digits.

    Args:
        vectors: (..., d).
        others: (..., d), broadcast against the vectors.
        centred: take the mean of the entries off first.

    Returns:
        (...) NaN where a vector is zero.

    Raises:
        ValueError: the vectors are of different widths.

    Example:
        >>> round(float(angle_between(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 3e-6]))), 12)
        1e-06
    """
    kind = _common(vectors, others)
    start, end = (_points(v, centred) for v in (vectors, others))
    update = end - start
    square, dot = start.square().sum(-1), (update * start).sum(-1)
    slope, none = dot / square, torch.zeros_like(dot)
    across = (update - slope[..., None] * start).square().sum(-1)
    moved = move(start.shape[-1], square, none, none, dot, slope, across)
    angle = torch.atan2(moved.tangential, moved.outward)
    return angle.masked_fill(end.square().sum(-1) == 0, float("nan")).to(kind)


def log_map(base: Tensor, points: Tensor, *, centred: bool = False) -> Tensor:
    """Where directions are as seen from one of them, in its tangent space.

    Args:
        base: (..., d) the direction to look from.
        points: (..., d) directions, broadcast against the base.
        centred: take the mean of the entries off first.

    Returns:
        (..., d) orthogonal to the base, of the length of the angle to it. NaN for the point
        opposite to the base, to which all ways are equally long, and for zero.

    Raises:
        ValueError: base and points are of different widths.

    Example:
        >>> log_map(torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([[0.0000, 0.0000],
                [0.0000, 1.5708]])
    """
    kind = _common(base, points)
    return _log(*(_unit(_points(v, centred)) for v in (base, points))).to(kind)


def exp_map(base: Tensor, tangents: Tensor) -> Tensor:
    """Where one arrives that leaves a direction along a great circle: undoes :func:`log_map`.

    Args:
        base: (..., d) the direction to leave from.
        tangents: (..., d) which way and, by their lengths, how far in radians; what they have along
            the base counts nothing.

    Returns:
        (..., d) of length 1.

    Raises:
        ValueError: base and tangents are of different widths.

    Example:
        >>> exp_map(torch.tensor([2.0, 0.0]), torch.tensor([0.0, torch.pi / 6]))
        tensor([0.8660, 0.5000])
    """
    kind = _common(base, tangents)
    start, way = _unit(_points(base, False)), _points(tangents, False)
    return _exp(start, way - (way * start).sum(-1, keepdim=True) * start).to(kind)


def slerp(
    start: Tensor, end: Tensor, fractions: Tensor | float, *, centred: bool = False
) -> Tensor:
    r"""Points along the geodesic between two directions, at constant speed.

    .. math:: \frac{\sin((1 - f) \theta) \, a + \sin(f \theta) \, b}{\sin \theta}

    Args:
        start: (..., d) a.
        end: (..., d) b.
        fractions: f, of any shape: 0 at the start, 1 at the end, beyond them the same great circle.
        centred: take the mean of the entries off first.

    Returns:
        (*fractions, ..., d) of length 1; NaN where the ends are opposite, which many geodesics
        join, or zero.

    Raises:
        ValueError: the ends are of different widths.

    Reference: K. Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.

    Example:
        >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0]), torch.tensor([0.0, 0.5]))
        tensor([[1.0000, 0.0000],
                [0.7071, 0.7071]])
    """
    kind = _common(start, end)
    a, b = (_unit(_points(v, centred)) for v in (start, end))
    way = _log(a, b)
    share = torch.as_tensor(fractions, dtype=torch.float64, device=way.device)
    return _exp(a, share.reshape(share.shape + (1,) * way.ndim) * way).to(kind)


def geodesic_distance(
    points: Tensor, start: Tensor, end: Tensor, *, centred: bool = False
) -> GeodesicDistance:
    """How far directions are from the geodesic between two others.

    The geodesic is the shorter arc of the great circle. A point beside it is seen from the plane of
    that circle; for one that lies beyond an end, the end is nearest.

    Args:
        points: (..., d), broadcast against the ends.
        start: (..., d).
        end: (..., d).
        centred: take the mean of the entries off first.

    Returns:
        NaN where the ends are opposite, or a vector is zero.

    Raises:
        ValueError: the vectors are of different widths.

    Example: half way, and 0.1 radians off.
        >>> start, end = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
        >>> point = exp_map(slerp(start, end, 0.5), torch.tensor([0.0, 0.0, 0.1]))
        >>> geodesic_distance(point, start, end)
        GeodesicDistance(angle=tensor(0.1000), along=tensor(0.5000))
    """
    kind = _common(points, start, end)
    p, a, b = (_unit(_points(v, centred)) for v in (points, start, end))
    way = _log(a, b)
    whole = torch.linalg.vector_norm(way, dim=-1)
    # Where both ends are one point, the arc is that point.
    side = torch.where(whole[..., None] > 0, way / whole[..., None], way)
    x, y = (p * a).sum(-1), (p * side).sum(-1)
    out = torch.linalg.vector_norm(p - x[..., None] * a - y[..., None] * side, dim=-1)
    turned = torch.atan2(y, x)
    to_start, to_end = angle_between(p, a), angle_between(p, b)
    inside = (turned >= 0) & (turned <= whole)
    beyond = (to_end < to_start).to(p.dtype)
    along = torch.where(inside, turned / whole, beyond)
    angle = torch.where(
        inside & (whole > 0), torch.atan2(out, torch.hypot(x, y)), torch.minimum(to_start, to_end)
    )
    lost = whole.isnan() | p.isnan().any(-1)
    angle = angle.masked_fill(lost, float("nan"))
    along = along.masked_fill(lost | (whole == 0), float("nan"))
    return GeodesicDistance(angle.to(kind), along.to(kind))


def _common(*vectors: Tensor) -> torch.dtype:
    """The type of the result; float32 at least.

    Raises:
        ValueError: widths differ.
    """
    widths = [v.shape[-1] if v.ndim else 0 for v in vectors]
    if len(set(widths)) > 1 or not widths[0]:
        shapes = ", ".join(str(tuple(v.shape)) for v in vectors)
        raise ValueError(f"vectors (..., d) of one width are needed, found {shapes}")
    kind = as_float(vectors[0]).dtype
    for vector in vectors[1:]:
        kind = torch.promote_types(kind, vector.dtype)
    return kind


def _points(vectors: Tensor, centred: bool) -> Tensor:
    points = vectors.double()
    return points - points.mean(-1, keepdim=True) if centred else points


def _unit(points: Tensor) -> Tensor:
    """Over their lengths; NaN for zero."""
    unit: Tensor = points / torch.linalg.vector_norm(points, dim=-1, keepdim=True)
    return unit


def _log(a: Tensor, b: Tensor) -> Tensor:
    update = b - a
    along = (update * a).sum(-1, keepdim=True)
    across = update - along * a
    length = torch.linalg.vector_norm(across, dim=-1, keepdim=True)
    angle = torch.atan2(length, 1 + along)
    return torch.where((length == 0) & (angle == 0), across, across * (angle / length))


def _exp(a: Tensor, way: Tensor) -> Tensor:
    angle = torch.linalg.vector_norm(way, dim=-1, keepdim=True)
    there: Tensor = angle.cos() * a + torch.sinc(angle / torch.pi) * way
    return there
