r"""What is added to a state, in the picture of the sphere: how far outwards, and how far along it.

With y the state and u what is added, both less the mean of their entries (marked c), r = |y_c| and
e = y_c / r::

    radial      rho = <u_c, e>                  outwards
    tangential  tau = |u_c - rho e|             along the sphere
    angle       theta = atan2(tau, r + rho)     between y_c and (y + u)_c

A head h of attention adds x_h W_h, with x_h the k entries that it mixes from the values. Its length
is had without these d entries, from :math:`|x_h W_h|^2 = x_h (W_h W_h^T) x_h^T`, and its part along
the state from :math:`\langle x_h W_h, e \rangle = \langle x_h, W_h e \rangle`. (Geometry of
residual updates after R. Molina, "Traveling Words", arXiv 2309.07315.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float

__all__ = ["HeadWrites", "UpdateParts", "head_writes", "update_parts"]


class UpdateParts(NamedTuple):
    """The parts of updates, (...) each."""

    radius: Tensor
    """r, the length of the centred state"""
    norm: Tensor
    """the length of what is added, as it is"""
    radial: Tensor
    """rho"""
    tangential: Tensor
    """tau"""

    @property
    def angle(self) -> Tensor:
        """Theta in radians, exact where it is small."""
        return torch.atan2(self.tangential, self.radius + self.radial)

    @property
    def radial_share(self) -> Tensor:
        """rho^2 / |u_c|^2; NaN where nothing is added."""
        radial = self.radial.square()
        return radial / (radial + self.tangential.square())


class HeadWrites(NamedTuple):
    """The parts of what each head adds, (..., H) each."""

    norm: Tensor
    """the length of x_h W_h, as it is"""
    radial: Tensor
    """rho"""
    tangential: Tensor
    """tau"""


def update_parts(state: Tensor, added: Tensor) -> UpdateParts:
    """Radial and tangential part of updates.

    Args:
        state: (..., d) that is added to.
        added: (..., d).

    Raises:
        ValueError: the shapes differ.

    Example: a quarter turn in the plane orthogonal to the ones direction.
        >>> parts = update_parts(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([-2.0, 0.0, 2.0]))
        >>> [round(float(v), 4) for v in (parts.radius, parts.radial, parts.tangential)]
        [1.4142, -1.4142, 2.4495]
        >>> round(float(parts.angle), 4), round(float(parts.radial_share), 4)
        (1.5708, 0.25)
    """
    if state.shape != added.shape:
        raise ValueError(
            f"a state of shape {tuple(state.shape)} and an update of shape {tuple(added.shape)}; "
            "they must be alike"
        )
    dtype = torch.promote_types(as_float(state).dtype, added.dtype)
    added, y = added.to(dtype), centred(state.to(dtype))
    u = added - added.mean(-1, keepdim=True)
    square, dot = y.square().sum(-1), (y * u).sum(-1)
    slope = (dot / square).nan_to_num(0.0, 0.0, 0.0)
    radius = square.sqrt()
    # The part along y is taken off before squaring: in a difference of squares no digits are left.
    u = u.addcmul_(slope[..., None], y, value=-1)
    tangential = u.square().sum(-1).sqrt()
    return UpdateParts(radius, added.square().sum(-1).sqrt(), dot / radius, tangential)


def head_writes(mixed: Tensor, weight: Tensor, state: Tensor) -> HeadWrites:
    """What each head adds, by work on k entries alone but for one product with the state.

    Args:
        mixed: (..., H, k) what the heads mix from the values.
        weight: (H, k, d) of the projection from the heads.
        state: (..., d) that is added to.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> mixed, weight = torch.randn(5, 2, 3), torch.randn(2, 3, 8)
        >>> state = torch.randn(5, 8)
        >>> heads = head_writes(mixed, weight, state)
        >>> written = (mixed[..., None, :] @ weight)[..., 0, :]
        >>> whole = update_parts(state[:, None].expand(5, 2, 8), written)
        >>> torch.allclose(heads.radial, whole.radial, atol=1e-5)
        True
        >>> torch.allclose(heads.tangential, whole.tangential, atol=1e-4)
        True
    """
    heads, k, width = weight.shape
    if mixed.shape != (*state.shape[:-1], heads, k) or state.shape[-1] != width:
        raise ValueError(
            f"weights (H, k, d) of shape {tuple(weight.shape)} need mixed values (..., H, k) and "
            f"states (..., d), found {tuple(mixed.shape)} and {tuple(state.shape)}"
        )
    dtype = torch.promote_types(as_float(state).dtype, mixed.dtype)
    y, mixed, weight = centred(state.to(dtype)), mixed.to(dtype), weight.to(dtype)
    about = weight - weight.mean(-1, keepdim=True)
    along = (y @ about.reshape(heads * k, width).mT).view(mixed.shape)
    radial = (along * mixed).sum(-1) / torch.linalg.vector_norm(y, dim=-1)[..., None]
    rows = mixed.reshape(-1, heads, k).transpose(0, 1)

    def square(map_: Tensor) -> Tensor:
        """|x_h W_h|^2, (..., H)."""
        found = ((rows @ (map_ @ map_.mT)) * rows).sum(-1)
        return found.clamp(min=0).T.reshape(radial.shape)

    across = (square(about) - radial.square()).clamp(min=0)
    return HeadWrites(square(weight).sqrt(), radial, across.sqrt())


def centred(states: Tensor) -> Tensor:
    """States (..., d) less the mean of their entries."""
    return states - states.mean(-1, keepdim=True)
