r"""Paths of words through depth: states of the layers as points on the sphere, one after the other.

After R. Molina, "Traveling Words: A Geometric Interpretation of Transformers" (arXiv 2309.07315): a
norm puts every state on a sphere, on which a block moves it. With :math:`\theta_l` the angle
between the states of layers l and l + 1,

.. math::
    \text{path length} = \sum_l \theta_l, \quad
    \text{chord} = \angle(x_1, x_L), \quad
    \text{tortuosity} = \frac{\text{path length}}{\text{chord}} \ge 1.

On the sphere of radius :math:`\sqrt d` lengths are :math:`\sqrt d` times as long. The formulas are
derived from that picture; the paper measures no angle.

LayerNorm's sphere lies in the plane orthogonal to the ones direction: hidden states that go into
one are taken there by ``centred=True``. Those that go into an RMSNorm are not, nor are states that
have been through the norm, whose gain and shift move them out of that plane.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from geomhooks.functional.sphere.geodesics import GeodesicDistance, angle_between, geodesic_distance

__all__ = ["SpherePath", "angles_from_first", "layer_angles", "path_deviation", "sphere_path"]


class SpherePath(NamedTuple):
    """Lengths of paths on the unit sphere, in radians."""

    steps: Tensor
    """(L-1, ...) angles between successive layers"""
    length: Tensor
    """(...) their sum"""
    chord: Tensor
    """(...) angle between the first layer and the last"""
    tortuosity: Tensor
    """(...) length over chord, 1 for a geodesic; NaN or infinite for a path that ends where it
    began"""


def layer_angles(states: Tensor, *, centred: bool = True) -> Tensor:
    """Angle between the states of each layer and the next.

    Args:
        states: (L, ..., d) in forward order, such as ``geometry.stack("trajectories.states")``.
        centred: take the mean of the entries off first; True for LayerNorm, False for RMSNorm.

    Returns:
        (L-1, ...) in radians; NaN where a state is zero or not finite.

    Raises:
        ValueError: there are not two layers.

    Example:
        >>> import torch
        >>> layer_angles(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), centred=False)
        tensor([0.7854, 0.7854])
    """
    states = _layers(states)
    return angle_between(states[:-1], states[1:], centred=centred)


def angles_from_first(states: Tensor, *, centred: bool = True) -> Tensor:
    """Angle between the states of the first layer and of each.

    Args:
        states: (L, ..., d) in forward order.
        centred: as in :func:`layer_angles`.

    Returns:
        (L, ...) in radians, of which the first is 0; NaN where a state is zero or not finite.

    Raises:
        ValueError: there are not two layers.

    Example:
        >>> import torch
        >>> angles_from_first(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), centred=False)
        tensor([0.0000, 0.7854, 1.5708])
    """
    states = _layers(states)
    return angle_between(states[:1], states, centred=centred)


def sphere_path(states: Tensor, *, centred: bool = True) -> SpherePath:
    """Length of the path through all layers, its chord, and how much longer it is than that.

    Args:
        states: (L, ..., d) in forward order.
        centred: as in :func:`layer_angles`.

    Raises:
        ValueError: there are not two layers.

    Example: along a quarter of a circle, and back by half.
        >>> import torch
        >>> states = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> path = sphere_path(states, centred=False)
        >>> path.length, path.chord, path.tortuosity
        (tensor(2.3562), tensor(0.7854), tensor(3.))
    """
    states = _layers(states)
    steps = layer_angles(states, centred=centred)
    chord = angle_between(states[0], states[-1], centred=centred)
    length = steps.sum(0)
    return SpherePath(steps, length, chord, length / chord)


def path_deviation(states: Tensor, *, centred: bool = True) -> GeodesicDistance:
    """How far each layer is from the geodesic between the first and the last.

    Args:
        states: (L, ..., d) in forward order.
        centred: as in :func:`layer_angles`.

    Returns:
        ``angle`` (L, ...) to the nearest point of the geodesic, and ``along`` (L, ...), where on it
        that point is, from 0 to 1. Layers far off the geodesic mostly are nearest to an end.

    Raises:
        ValueError: there are not two layers.

    Example: the second of three states is off by a right angle.
        >>> import torch
        >>> states = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> path_deviation(states, centred=False).angle
        tensor([0.0000, 1.5708, 0.0000])
    """
    states = _layers(states)
    return geodesic_distance(states, states[:1], states[-1:], centred=centred)


def _layers(states: Tensor) -> Tensor:
    if states.ndim < 2 or len(states) < 2 or not states.shape[-1]:
        raise ValueError(
            f"states: shape (L, ..., d) of two layers or more is needed, found "
            f"{tuple(states.shape)}"
        )
    return states
