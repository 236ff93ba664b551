r"""How good sparse codes are: how far from the minimum, and how much of the states they miss.

The problem is that of :class:`geomhooks.functional.SparseCoder`, and the letters are the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.factors.coding_checks import fitting
from geomhooks.functional.shapes import as_float

__all__ = ["Optimality", "duality_gap", "objective", "optimality", "signal_to_noise"]


class Optimality(NamedTuple):
    """How far codes are from the conditions of a minimum, in the units of the penalty."""

    active: Tensor
    """(...) largest \\|D_c . r - penalty\\| over the factors in use, 0 where none is"""
    inactive: Tensor
    """(...) largest excess of D_c . r over the penalty among the other factors, at least 0"""


def objective(hidden: Tensor, dictionary: Tensor, penalty: float | Tensor, codes: Tensor) -> Tensor:
    r"""What sparse codes minimise, :math:`\frac12 |x - a D|^2 + \lambda |a|_1`, shape (...).

    Args:
        hidden: (..., d) x.
        dictionary: (F, d) D.
        penalty: :math:`\lambda`, or (...) of them.
        codes: (..., F) a.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> objective(torch.tensor([2.0, 1.0]), torch.eye(2), 0.5, torch.tensor([1.5, 0.0]))
        tensor(1.3750)
    """
    hidden, dictionary, penalty, codes = fitting(hidden, dictionary, penalty, codes)
    residual = hidden - codes @ dictionary
    found: Tensor = residual.square().sum(-1) / 2 + (penalty * codes.abs()).sum(-1)
    return found


def duality_gap(
    hidden: Tensor, dictionary: Tensor, penalty: float | Tensor, codes: Tensor
) -> Tensor:
    r"""By how much at most the objective of codes is above its minimum, shape (...).

    The dual of the problem is :math:`\max_\theta \frac12 |x|^2 - \frac12 |x - \theta|^2` over
    :math:`D_c \cdot \theta \le \lambda`. With r the residual, :math:`\theta = s r` for the best s
    that is allowed, the gap is

    .. math:: \tfrac12 (1 - s)^2 |r|^2 + \sum_c a_c (\lambda - s D_c \cdot r),

    whose terms are never negative, so that none of its digits cancel.

    Args:
        hidden: (..., d) x.
        dictionary: (F, d) D.
        penalty: :math:`\lambda`, or (...) of them.
        codes: (..., F) a, none below 0.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> hidden = torch.tensor([2.0, 1.0])
        >>> duality_gap(hidden, torch.eye(2), 0.5, torch.tensor([[1.5, 0.5], [0.0, 0.0]]))
        tensor([0.0000, 1.4062])
        >>> objective(hidden, torch.eye(2), 0.5, torch.zeros(2)) - objective(
        ...     hidden, torch.eye(2), 0.5, torch.tensor([1.5, 0.5])
        ... )
        tensor(1.2500)
    """
    hidden, dictionary, penalty, codes = fitting(hidden, dictionary, penalty, codes)
    return gap_of(hidden, dictionary, penalty, codes)


def optimality(
    hidden: Tensor, dictionary: Tensor, penalty: float | Tensor, codes: Tensor
) -> Optimality:
    r"""How far codes are from being a minimum, by the conditions of Karush, Kuhn and Tucker.

    At the minimum :math:`D_c \cdot r = \lambda` for each factor in use and
    :math:`D_c \cdot r \le \lambda` for all others, r being the residual.

    Args:
        hidden: (..., d).
        dictionary: (F, d) D.
        penalty: :math:`\lambda`, or (...) of them.
        codes: (..., F).

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> hidden, codes = torch.tensor([2.0, 1.0]), torch.tensor([1.25, 0.0])
        >>> optimality(hidden, torch.eye(2), 0.5, codes)
        Optimality(active=tensor(0.2500), inactive=tensor(0.5000))
    """
    hidden, dictionary, penalty, codes = fitting(hidden, dictionary, penalty, codes)
    excess = (hidden - codes @ dictionary) @ dictionary.T - penalty
    used = codes > 0
    active = torch.where(used, excess.abs(), 0.0).amax(-1)
    return Optimality(active, torch.where(used, 0.0, excess).amax(-1).clamp(min=0))


def signal_to_noise(hidden: Tensor, decoded: Tensor) -> Tensor:
    r"""Energy of states over that of what is left of them, :math:`\sum |x|^2 / \sum |x - a D|^2`.

    A plain ratio, as published, not in decibels.

    Args:
        hidden: (..., d).
        decoded: (..., d) what codes stand for.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> signal_to_noise(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.0]]))
        tensor(25.)
    """
    if hidden.shape != decoded.shape:
        raise ValueError(
            f"hidden and decoded: shapes {tuple(hidden.shape)} and {tuple(decoded.shape)} differ"
        )
    hidden = as_float(hidden)
    return hidden.square().sum() / (hidden - decoded).square().sum()


def gap_of(hidden: Tensor, dictionary: Tensor, penalty: float | Tensor, codes: Tensor) -> Tensor:
    """The duality gap; of several penalties the last dimension is one."""
    residual = hidden - codes @ dictionary
    along = residual @ dictionary.T
    energy = residual.square().sum(-1, keepdim=True)
    tiny = torch.finfo(energy.dtype).tiny
    best = 1 + (codes * along).sum(-1, keepdim=True) / energy.clamp(min=tiny)
    # The longest multiple of the residual that keeps every constraint; all are kept where it turns
    # away from every factor.
    largest = along.amax(-1, keepdim=True)
    allowed = torch.where(largest > 0, penalty / largest.clamp(min=tiny), math.inf)
    scale = torch.minimum(best, allowed).clamp(min=0)
    # Rounding of the quotient must not make a term negative.
    slack = (penalty - scale * along).clamp(min=0)
    return ((1 - scale).square() * energy)[..., 0] / 2 + (codes * slack).sum(-1)
