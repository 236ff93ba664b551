r"""Differences between the means of groups, and how well they are known.

From the count :math:`n_g`, the mean :math:`m_g` and the scatter :math:`S_g = \sum (x - m_g)(x -
m_g)^T` of each group, or the diagonal of the scatter. Groups may differ in size and in spread.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float, as_matrix

__all__ = [
    "BetweenGroups",
    "GroupMoments",
    "MeanDifference",
    "MeanDistances",
    "between_groups",
    "group_moments",
    "mean_difference",
    "mean_distances",
    "standard_errors",
]


class GroupMoments(NamedTuple):
    """What the functions here take of each group."""

    number: Tensor
    """(G,) int64"""
    mean: Tensor
    """(G, d), NaN for groups without vectors"""
    scatter: Tensor
    """(G, d) sums of squared deviations from the mean"""


class MeanDistances(NamedTuple):
    """Between the means of all pairs of groups."""

    squared_length: Tensor
    """(G, G) of the differences, without the noise in it"""
    noise: Tensor
    """(G, G) what noise is expected to add"""


class BetweenGroups(NamedTuple):
    """How much of the variance of all vectors is between the means of groups."""

    share: Tensor
    """()"""
    noise_share: Tensor
    """() what noise is expected to add to it"""


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


def group_moments(vectors: Tensor, labels: Tensor, groups: int) -> GroupMoments:
    """Number, mean and scatter of each group.

    Args:
        vectors: (n, d), such as ctx, so that contexts are what is independent.
        labels: (n,) integers; vectors with others than 0 to G - 1 are left out.
        groups: G.

    Raises:
        ValueError: shapes that do not fit together, or no group.

    Example:
        >>> group_moments(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, -1]), 1)
        GroupMoments(number=tensor([2]), mean=tensor([[2.]]), scatter=tensor([[2.]]))
    """
    vectors = as_matrix(vectors, "vectors", "(n, d)")
    if labels.shape != (len(vectors),) or groups < 1:
        raise ValueError(
            f"labels: one for each of {len(vectors)} vectors, and a group or more, are needed; "
            f"found {tuple(labels.shape)} and groups={groups}"
        )
    inside = (labels >= 0) & (labels < groups)
    row = labels[inside].to(vectors.device, torch.int64)
    vectors = vectors[inside.to(vectors.device)]
    count = torch.bincount(row, minlength=groups)
    empty = vectors.new_zeros(groups, vectors.shape[1])
    mean = empty.index_add(0, row, vectors) / count[:, None]
    return GroupMoments(count, mean, empty.index_add(0, row, (vectors - mean[row]).square()))


def standard_errors(count: Tensor, scatter: Tensor) -> Tensor:
    """Standard errors of the means of independent vectors, (G, d); NaN for fewer than two.

    Args:
        count: (G,).
        scatter: (G, d).

    Example:
        >>> standard_errors(torch.tensor([3]), torch.tensor([[6.0, 0.0]]))
        tensor([[1., 0.]])
    """
    return variance_of_mean(count, scatter).sqrt()


def mean_distances(count: Tensor, mean: Tensor, scatter: Tensor) -> MeanDistances:
    """Squared distances between the means of all pairs of groups, as :func:`mean_difference`.

    Args:
        count: (G,) of each group.
        mean: (G, d), about a point that is not far from them, whatever it is.
        scatter: (G, d).

    Returns:
        NaN where a group has fewer than two vectors.

    Example:
        >>> count, mean = torch.tensor([3, 3]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> found = mean_distances(count, mean, torch.tensor([[0.6, 0.0], [0.0, 0.6]]))
        >>> found.squared_length
        tensor([[0.0000, 0.8000],
                [0.8000, 0.0000]])
    """
    noise = variance_of_mean(count, scatter).sum(1)
    square = torch.cdist(mean, mean, compute_mode="donot_use_mm_for_euclid_dist").square()
    both = noise[:, None] + noise
    itself = torch.eye(len(mean), dtype=torch.bool, device=mean.device) & ~both.isnan()
    both = both.masked_fill(itself, 0.0)
    return MeanDistances(square - both, both)


def between_groups(count: Tensor, mean: Tensor, scatter: Tensor) -> BetweenGroups:
    r"""Share of the sum of squares of all vectors that is between the means of their groups.

    .. math::
        B = \sum_g n_g |m_g - m|^2, \quad
        \text{noise} = \sum_g \Bigl(1 - \frac{n_g}{n}\Bigr) \frac{\operatorname{tr} S_g}{n_g - 1}

    both divided by :math:`B + \sum_g \operatorname{tr} S_g`.

    Args:
        count: (G,) of each group.
        mean: (G, d), about a point that is not far from them, whatever it is.
        scatter: (G, d).

    Returns:
        The noise is NaN where a group has a single vector, which says nothing of its spread.

    Example:
        >>> count, mean = torch.tensor([2, 2]), torch.tensor([[1.0], [3.0]])
        >>> between_groups(count, mean, torch.tensor([[1.0], [3.0]]))
        BetweenGroups(share=tensor(0.5000), noise_share=tensor(0.2500))
    """
    some = count > 0
    number, means, within = count[some].to(mean), mean[some], scatter[some].sum(1)
    part = number / number.sum()
    square = (number * (means - part @ means).square().sum(1)).sum()
    noise = ((1 - part) * within / (number - 1)).sum()
    whole = square + within.sum()
    return BetweenGroups(square / whole, noise / whole)


def variance_of_mean(count: Tensor, scatter: Tensor) -> Tensor:
    """(G, d), NaN for fewer than two vectors."""
    number = count.to(scatter)[:, None]
    return (scatter / (number * (number - 1))).masked_fill(number < 2, float("nan"))
