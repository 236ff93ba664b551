r"""How far layers take tokens towards what they attend to.

Under hardmax attention a token goes :math:`\gamma = \alpha / (1 + \alpha)` of the way to the mean
:math:`m_i` of what it attends to. Where that is one leader for good, its distance to it falls by
:math:`1 / (1 + \alpha)` in each layer:

.. math:: |z^k - \ell| = (1 + \alpha)^{-k} \, |z^0 - \ell|

Of any layer that takes z to z' it can be asked how far it does the same:
:math:`\gamma = \langle z' - z, m - z \rangle / |m - z|^2`, and what of z' - z is not along m - z.
After arXiv 2407.01602, and derived from it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.hardmax.dynamics import step_gain
from geomhooks.functional.hardmax.token_arguments import as_states, as_valid
from geomhooks.functional.shapes import as_float

__all__ = ["Attraction", "attraction", "convergence_rate", "supports"]


class Attraction(NamedTuple):
    """How a layer moves tokens with respect to their goals; NaN where a token is at its goal."""

    ratio: Tensor
    """(...) distance to the goal after, over before"""
    gain: Tensor
    """(...) gamma, the share of the way that it went: 1 / (1 + alpha) of it is left"""
    step: Tensor
    """(...) alpha = gamma / (1 - gamma)"""
    unexplained: Tensor
    """(...) of the squared length of the way that it went, the share that is not along the goal;
    NaN where it did not move"""


def attraction(states: Tensor, moved: Tensor, goals: Tensor) -> Attraction:
    """How far tokens went towards their goals.

    Args:
        states: (..., d) before a layer.
        moved: (..., d) after it.
        goals: (..., d), the mean of what each attends to.

    Example: half of the way, and something aside.
        >>> goal, moved = torch.tensor([4.0, 0.0]), torch.tensor([2.0, 1.0])
        >>> found = attraction(torch.zeros(2), moved, goal)
        >>> found.gain, found.step, found.unexplained
        (tensor(0.5000), tensor(1.), tensor(0.2000))
    """
    states, moved, goals = as_float(states), as_float(moved), as_float(goals)
    way, went = goals - states, moved - states
    square, length = way.square().sum(-1), went.square().sum(-1)
    along = (went * way).sum(-1)
    gain = along / square
    aside = (went - gain[..., None] * way).square().sum(-1)
    left = torch.linalg.vector_norm(goals - moved, dim=-1)
    return Attraction(left / square.sqrt(), gain, gain / (1 - gain), aside / length)


def convergence_rate(step: float | Tensor) -> float:
    r"""By what the distance to a fixed target is multiplied in each layer, in the long run.

    :math:`1 / (1 + \alpha)`, or the spectral radius of :math:`(I + V)^{-1}`.

    Args:
        step: alpha, or (d, d) the matrix V.

    Raises:
        ValueError: alpha is not positive, V is not square, or I + V is singular.

    Example:
        >>> round(convergence_rate(0.5), 6), convergence_rate(torch.diag(torch.tensor([1.0, 3.0])))
        (0.666667, 0.5)
    """
    if not isinstance(step, Tensor) or not step.ndim:
        number = float(step) if isinstance(step, Tensor) else step
        return 1 - float(step_gain(number, torch.empty(0, device="cpu")))
    step = as_float(step)
    gain = step_gain(step, step)
    assert isinstance(gain, Tensor)
    return float(
        torch.linalg.eigvals(torch.eye(len(gain), device=gain.device).to(gain) - gain).abs().max()
    )


def supports(states: Tensor, directions: Tensor, valid: Tensor | None = None) -> Tensor:
    """How far tokens reach in some directions: the support function of their convex hull.

    Hulls that shrink, as under hardmax attention, have supports that do not grow.

    Args:
        states: (..., n, d).
        directions: (m, d).
        valid: (..., n) bool or integers, 0 for False: which tokens count.

    Returns:
        (..., m) -inf where no token is valid.

    Example:
        >>> supports(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(2))
        tensor([1., 2.])
    """
    states = as_states(states)
    reach = states @ directions.to(states).T
    valid = as_valid(valid, states.shape[:-1])
    if valid is not None:
        reach = reach.masked_fill(~valid[..., None], -torch.inf)
    return reach.amax(-2)
