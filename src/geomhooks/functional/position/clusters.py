r"""Clusters of vectors: how alike they are within and between groups, and which groups there are.

With unit vectors :math:`u_i`, :math:`s_g` the sum and :math:`n_g` the number of those of group g,

.. math::
    \text{intra} = \frac{\sum_g |s_g|^2 - n_g}{\sum_g n_g (n_g - 1)}, \quad
    \text{inter} = \frac{|\sum_g s_g|^2 - \sum_g |s_g|^2}{(\sum_g n_g)^2 - \sum_g n_g^2}

are the mean cosines over all pairs of different vectors, of one group and of two.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError
from geomhooks.functional.cosines import unit_rows
from geomhooks.functional.shapes import as_matrix

__all__ = [
    "Clusters",
    "Similarity",
    "find_clusters",
    "group_similarity",
    "published_group_similarity",
]

BLOCK = 1 << 22  # cosines at a time


class Similarity(NamedTuple):
    """Means over pairs of vectors."""

    inter: Tensor
    """() of two groups"""
    intra: Tensor
    """() of one group"""


class Clusters(NamedTuple):
    """Groups that were found."""

    labels: Tensor
    """(n,) int64, 0 to k - 1, the largest cluster first"""
    centres: Tensor
    """(k, d)"""
    silhouette: Tensor
    """() mean silhouette of all vectors, between -1 and 1"""
    silhouettes: dict[int, float]
    """the same for every number of clusters that was tried"""


def group_similarity(vectors: Tensor, labels: Tensor) -> Similarity:
    """Mean cosine within and between groups, over pairs of different vectors.

    An unbiased estimate for independent vectors: a vector is not compared with itself, and cosines
    keep their signs, so that both are near zero for groups that mean nothing.

    Args:
        vectors: (n, d), such as ctx.
        labels: (n,) integers.

    Returns:
        NaN where there is no such pair, or a vector is zero or not finite.

    Raises:
        ValueError: shapes that do not fit together.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> group_similarity(vectors, torch.tensor([7, 7, 9, 9]))
        Similarity(inter=tensor(0.), intra=tensor(1.))
    """
    unit, group = _grouped(vectors, labels)
    count = torch.bincount(group)
    sums = unit.new_zeros(len(count), unit.shape[1]).index_add_(0, group, unit)
    squares, number = sums.square().sum(), len(unit)
    inter, intra = sums.sum(0).square().sum() - squares, squares - number
    pairs = number**2 - int(count.square().sum()), int((count * (count - 1)).sum())
    # Where there is no pair, rounding may have left more than zero.
    nothing = unit.new_full((), float("nan"))
    return Similarity(
        inter / pairs[0] if pairs[0] else nothing, intra / pairs[1] if pairs[1] else nothing
    )


def published_group_similarity(vectors: Tensor, labels: Tensor) -> Similarity:
    """Mean absolute cosine within and between groups, as the code of Song & Zhong has it.

    Every vector is compared with itself, too, which adds (1 - intra) / n_g to a group of n_g
    vectors, and the absolute value makes both positive for groups that mean nothing: about 0.03 in
    768 dimensions. In that code (arXiv 2310.04861) all groups are of one size; here each pair
    has the same weight.

    Args:
        vectors: (n, d), such as ctx.
        labels: (n,) integers.

    Returns:
        inter is NaN where there is one group; NaN where a vector is zero or not finite.

    Raises:
        ValueError: shapes that do not fit together.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        >>> published_group_similarity(vectors, torch.tensor([0, 0, 1]))
        Similarity(inter=tensor(0.), intra=tensor(1.))
    """
    unit, group = _grouped(vectors, labels)
    number = len(unit)
    within, whole = unit.new_zeros(()), unit.new_zeros(())
    step = max(1, BLOCK // number)
    for start in range(0, number, step):
        rows = slice(start, start + step)
        cosine = (unit[rows] @ unit.T).abs()
        whole = whole + cosine.sum()
        within = within + (cosine * (group[rows, None] == group)).sum()
    same = int(torch.bincount(group).square().sum())
    return Similarity((whole - within) / (number**2 - same), within / same)


def _grouped(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors, and their groups numbered from 0."""
    unit = unit_rows(vectors)
    if labels.shape != (len(unit),):
        raise ValueError(
            f"labels: one for each of {len(unit)} vectors is needed, found {tuple(labels.shape)}"
        )
    return unit, torch.unique(labels.to(unit.device), return_inverse=True)[1]


def find_clusters(
    vectors: Tensor,
    numbers: Iterable[int] = range(2, 11),
    directions: bool = True,
    seed: int = 0,
    restarts: int = 10,
) -> Clusters:
    """Group vectors by k-means, with the number of groups that has the largest silhouette.

    A silhouette compares the distance of a vector to its own cluster with that to the nearest other
    one. It cannot say that there are no clusters at all: look at its size, which is near zero then.

    Args:
        vectors: (n, d), such as ctx.
        numbers: the numbers of clusters to try; those that are not below n are left out.
        directions: cluster the vectors' directions, so that distance means angle.
        seed: of the starting points.
        restarts: k-means runs from so many starting points for each number, of which the one with
            the least sum of squares counts.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: no matrix, entries that are not finite, zero vectors that have no direction, or
            no number of clusters that is allowed.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> vectors = torch.randn(60, 8, generator=generator) * 0.1
        >>> vectors[:40, 0] += 1
        >>> vectors[40:, 1] += 1
        >>> find_clusters(vectors).labels.unique(return_counts=True)
        (tensor([0, 1]), tensor([40, 20]))
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise MissingExtraError(
            "find_clusters() needs scikit-learn: pip install 'geomhooks[clusters]'"
        ) from error
    vectors = as_matrix(vectors, "vectors", "(n, d)")
    points = unit_rows(vectors) if directions else vectors
    if not bool(torch.isfinite(points).all()):
        bad = int((~torch.isfinite(points)).any(1).sum())
        raise ValueError(
            f"{bad} of {len(points)} vectors are not finite, or zero and so without direction; "
            "leave them out"
        )
    asked = sorted(set(numbers))
    tried = [number for number in asked if 2 <= number < len(points)]
    if not tried:
        raise ValueError(f"numbers={asked}: {len(points)} vectors need some number from 2 to n - 1")
    array = points.detach().cpu().numpy()
    distinct = len(np.unique(array, axis=0))
    best, silhouettes = None, {}
    for number in tried:
        if number > distinct:
            break  # as many clusters cannot be told apart
        found = KMeans(number, n_init=restarts, random_state=seed).fit(array)
        silhouettes[number] = float(silhouette_score(array, found.labels_))
        if best is None or silhouettes[number] > silhouettes[best[0]]:
            best = number, found
    if best is None:
        raise ValueError(f"only {distinct} vectors are different: no {tried[0]} clusters")
    number, found = best
    labels = torch.from_numpy(found.labels_).long()
    order = torch.bincount(labels, minlength=number).argsort(descending=True, stable=True)
    return Clusters(
        order.argsort()[labels].to(vectors.device),
        torch.from_numpy(found.cluster_centers_)[order].to(vectors),
        vectors.new_tensor(silhouettes[number]),
        silhouettes,
    )
