r"""A norm before attention as a projection, a scaling and an affine map.

LayerNorm takes a state to the hyperplane :math:`H = \{\hat x : \sum_i \hat x_i = 0\}` by an
orthogonal projection, there to the sphere of radius :math:`\sqrt d`, and then through
:math:`y = \hat x \Gamma + \beta`: what comes out lies on the ellipsoid with centre :math:`\beta`
and semi-axes :math:`\sqrt d\,|\gamma_i|`, and in the plane

.. math::
    \sum_i \Bigl(\frac{y_i - \beta_i}{\gamma_i}\Bigr)^2 = d, \qquad
    \sum_i \frac{y_i - \beta_i}{\gamma_i} = 0.

RMSNorm does not project: its sphere is that of all d dimensions, and there is no plane. Epsilon
takes states inside the sphere, to the radius
:math:`\sqrt d \sqrt{\sigma^2 / (\sigma^2 + \epsilon)}`. The picture is R. Molina's ("Traveling
Words", arXiv 2309.07315); plane and ellipsoid follow from it. Their intersection is an ellipsoid
too, with axes of its own (P. Riechers, "Geometry and Dynamics of LayerNorm", arXiv 2405.04134).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float

__all__ = [
    "NormConstants",
    "NormResiduals",
    "norm_constants",
    "norm_residuals",
    "sphere_ratio",
    "standardise",
]


class NormConstants(NamedTuple):
    """What a norm's weights say of where its outputs are."""

    shift_length: Tensor
    """() |beta|, how far the centre of the ellipsoid is from the origin"""
    plane_normal: Tensor | None
    """(d,) of length 1, along 1 / gamma; None for RMSNorm. NaN where several gains are zero, and
    the outputs lie in more planes than one"""
    plane_distance: Tensor | None
    """() of the plane from the origin, signed along the normal; None for RMSNorm"""
    largest_axis: Tensor
    """() the largest semi-axis of the ellipsoid, sqrt(d) max |gamma|"""
    smallest_axis: Tensor
    """() the smallest; the semi-axes of the plane's cut through the ellipsoid lie between both"""
    anisotropy: Tensor
    """() the largest over the smallest; infinite where a gain is zero"""


class NormResiduals(NamedTuple):
    """How far outputs of a norm are from where they must be: zero but for rounding and epsilon."""

    ellipsoid: Tensor
    """(...) sum of ((y - beta) / gamma)^2 over d, less 1"""
    plane: Tensor | None
    """(...) |sum of (y - beta) / gamma| over sqrt(d), the distance of x from its hyperplane; None
    for RMSNorm"""
    left_out: int
    """how many entries were, because their gains are about zero"""


def standardise(states: Tensor, eps: float = 0.0, *, centred: bool = True) -> Tensor:
    """What a norm makes of states before its gain and shift.

    Args:
        states: (..., d).
        eps: epsilon.
        centred: True for LayerNorm, False for RMSNorm.

    Example:
        >>> standardise(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]])
    """
    states = as_float(states)
    if centred:
        states = states - states.mean(-1, keepdim=True)
    return states * (states.square().mean(-1, keepdim=True) + eps).rsqrt()


def sphere_ratio(states: Tensor, eps: float, *, centred: bool = True) -> Tensor:
    r"""Length of the standardised state over sqrt(d), which epsilon makes less than 1.

    .. math:: \sqrt{\sigma^2 / (\sigma^2 + \epsilon)}

    Args:
        states: (..., d) before the norm.
        eps: epsilon.
        centred: True for LayerNorm, False for RMSNorm.

    Example:
        >>> sphere_ratio(torch.tensor([0.6, 0.6, -0.6, -0.6]), 0.64)
        tensor(0.6000)
    """
    states = as_float(states)
    square = states.var(-1, correction=0) if centred else states.square().mean(-1)
    return (square / (square + eps)).sqrt()


def norm_constants(
    gain: Tensor, shift: Tensor | None = None, *, centred: bool = True
) -> NormConstants:
    """Centre, plane and axes of the ellipsoid on which the outputs of a norm lie.

    Args:
        gain: (d,) gamma.
        shift: (d,) beta; None for zero.
        centred: True for LayerNorm, False for RMSNorm.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> found = norm_constants(torch.tensor([1.0, 0.5]), torch.tensor([2.0, 1.0]))
        >>> found.plane_normal, found.plane_distance
        (tensor([0.4472, 0.8944]), tensor(1.7889))
        >>> found.anisotropy
        tensor(2.)
    """
    gain, shift = as_affine(gain, shift)
    sizes = gain.abs()
    largest, smallest = sizes.max(), sizes.min()
    normal = distance = None
    if centred:
        # 1 / gamma itself is infinite where a gain is zero, its direction is not.
        along = smallest / gain if smallest > 0 else (gain == 0).to(gain)
        if int((gain == 0).sum()) > 1:
            along = torch.full_like(gain, float("nan"))
        normal = along / torch.linalg.vector_norm(along)
        distance = normal @ shift
    root = math.sqrt(len(gain))
    return NormConstants(
        torch.linalg.vector_norm(shift),
        normal,
        distance,
        root * largest,
        root * smallest,
        largest / smallest,
    )


def norm_residuals(
    outputs: Tensor,
    gain: Tensor,
    shift: Tensor | None = None,
    *,
    centred: bool = True,
    radius: Tensor | float = 1.0,
    least: float = 1e-6,
) -> NormResiduals:
    r"""How far outputs of a norm are from its ellipsoid and its plane.

    An entry whose gain is about zero does not tell its x, and is left out. What it may have had is
    then allowed for: with q and s the sums of squares and of entries over the others, and z entries
    left out, q may fall short of d, and s may be as far from zero as
    :math:`\sqrt{z (d - q)}`; only what goes beyond counts. With every entry in it, both are exact.

    Args:
        outputs: (..., d) of the norm.
        gain: (d,) gamma.
        shift: (d,) beta; None for zero.
        centred: True for LayerNorm, False for RMSNorm.
        radius: (...) of :func:`sphere_ratio`, to allow for epsilon; by default 1.
        least: gains at most so large, relative to the largest of all gains and shifts, are about
            zero.

    Raises:
        ValueError: shapes do not fit, or no gain is above ``least``.

    Example:
        >>> gain, shift = torch.tensor([2.0, 1.0]), torch.tensor([5.0, 0.0])
        >>> norm_residuals(torch.tensor([[3.0, 1.0], [7.0, 1.0]]), gain, shift)
        NormResiduals(ellipsoid=tensor([0., 0.]), plane=tensor([0.0000, 1.4142]), left_out=0)
    """
    gain, shift = as_affine(gain, shift)
    outputs = as_float(outputs)
    width = len(gain)
    if outputs.shape[-1] != width:
        raise ValueError(f"outputs: shape (..., {width}) is needed, found {tuple(outputs.shape)}")
    kind = torch.promote_types(outputs.dtype, gain.dtype)
    outputs = outputs.to(kind)
    gain, shift = gain.to(outputs), shift.to(outputs)
    kept = gain.abs() > least * torch.maximum(gain.abs().max(), shift.abs().max())
    left_out = width - int(kept.sum())
    if left_out == width:
        raise ValueError("gain: all are about zero, and nothing tells where the outputs should be")
    states = (outputs - shift)[..., kept] / gain[kept]
    radius = torch.as_tensor(radius, dtype=outputs.dtype, device=outputs.device)
    whole = radius.square() * width
    square, total = states.square().sum(-1), states.sum(-1).abs()
    ellipsoid = (square - whole) / width
    if left_out:
        ellipsoid = ellipsoid.clamp(min=0)
        total = (total - (left_out * (whole - square).clamp(min=0)).sqrt()).clamp(min=0)
    return NormResiduals(ellipsoid, total / math.sqrt(width) if centred else None, left_out)


def as_affine(gain: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both (d,), in float32 at least.

    Raises:
        ValueError: shapes do not fit.
    """
    if gain.ndim != 1 or not len(gain):
        raise ValueError(f"gain: shape (d,) is needed, found {tuple(gain.shape)}")
    if shift is not None and shift.shape != gain.shape:
        raise ValueError(
            f"shift: shape {tuple(gain.shape)} is needed, as the gain has, found "
            f"{tuple(shift.shape)}"
        )
    gain = as_float(gain)
    return gain, torch.zeros_like(gain) if shift is None else shift.to(gain)
