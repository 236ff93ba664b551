r"""Differences between the means of groups, and how well they are known.

From the count :math:`n_g`, the mean :math:`m_g` and the scatter :math:`S_g = \sum (x - m_g)(x -
m_g)^T` of each group, or the diagonal of the scatter. Groups may differ in size and in spread.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float, as_matrix

__all__ = ["MeanDifference", "mean_difference"]


class MeanDifference(NamedTuple):
    """Mean of one group less that of another."""

    difference: Tensor
    """(d,)"""
    standard_error: Tensor
    """(d,) of each entry"""
    squared_length: Tensor
    """() of the difference, without the noise in it: unbiased, and negative at times where the
    groups do not differ"""
    noise: Tensor
    """() what noise is expected to add to the squared length of the difference"""


def mean_difference(
    count: Tensor, mean: Tensor, scatter: Tensor, first: int, second: int
) -> MeanDifference:
    r"""Difference of two means with its standard error, for groups of unequal variance (Welch).

    .. math::
        \delta = m_a - m_b, \quad
        V = \frac{S_a}{n_a (n_a - 1)} + \frac{S_b}{n_b (n_b - 1)}

    The standard errors are the roots of the diagonal of V, the noise is its trace, and the squared
    length is :math:`|\delta|^2 - \operatorname{tr} V`. Vectors count as independent; tokens of one
    context are not, and the errors of their means are larger than this says.

    Args:
        count: (G,) of each group.
        mean: (G, d).
        scatter: (G, d, d), or its diagonals (G, d).
        first: index of the group a, and
        second: of the group b.

    Returns:
        Errors are NaN where a group has fewer than two vectors, the difference where it has none.

    Raises:
        ValueError: shapes that do not fit together.
        IndexError: there is no such group.

    Example:
        >>> found = mean_difference(
        ...     torch.tensor([3, 3]),
        ...     torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        ...     torch.tensor([[6.0, 6.0], [0.0, 0.0]]),
        ...     0,
        ...     1,
        ... )
        >>> found.difference, found.standard_error
        (tensor([1., 0.]), tensor([1., 1.]))
    """
    mean = as_matrix(mean, "mean", "(G, d)")
    groups, width = mean.shape
    spread = as_float(scatter)
    if spread.shape == (groups, width, width):
        spread = spread.diagonal(dim1=1, dim2=2)
    if spread.shape != mean.shape or count.shape != (groups,):
        raise ValueError(
            f"mean {tuple(mean.shape)} needs a count ({groups},) and a scatter ({groups}, {width}, "
            f"{width}) or ({groups}, {width}), found {tuple(count.shape)} and "
            f"{tuple(scatter.shape)}"
        )
    for index in (first, second):
        if not -groups <= index < groups:
            raise IndexError(f"group {index}: there are {groups} groups")
    pair = torch.tensor([first, second], device=mean.device)
    number = count.to(mean)[pair][:, None]
    means = mean[pair].masked_fill(number < 1, float("nan"))
    variance = (spread.to(mean)[pair] / (number * (number - 1))).masked_fill(
        number < 2, float("nan")
    )
    error, difference = variance.sum(0), means[0] - means[1]
    return MeanDifference(
        difference, error.sqrt(), difference.square().sum() - error.sum(), error.sum()
    )
