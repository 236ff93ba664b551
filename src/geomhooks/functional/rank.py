r"""How many directions a set of vectors really uses.

Every function takes vectors (T, d), a row each and not centred, or their singular values (p,),
p = min(T, d), where they are known already. A vector, unlike a matrix, can only be the latter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float, as_matrix

__all__ = [
    "effective_rank",
    "explained_ratio",
    "rank_above",
    "singular_values",
    "stable_rank",
]


def singular_values(vectors: Tensor) -> Tensor:
    """Singular values, the largest first; all NaN where an entry is not finite.

    Args:
        vectors: (T, d), or singular values (p,) in any order.

    Raises:
        ValueError: neither a matrix nor a vector, or empty.

    Example:
        >>> singular_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, -4.0]]))
        tensor([4., 3.])
    """
    if vectors.ndim == 1 and len(vectors) > 0:
        return as_float(vectors).sort(descending=True).values
    vectors = as_matrix(vectors, "vectors", "(T, d), or (p,) singular values,")
    if not bool(torch.isfinite(vectors).all()):
        return vectors.new_full((min(vectors.shape),), float("nan"))
    values: Tensor = torch.linalg.svdvals(vectors)
    return values


def relative_values(vectors: Tensor) -> Tensor:
    """Singular values over the largest, so that no power of them leaves the range of floats."""
    values = singular_values(vectors)
    return values / values[0]


def stable_rank(vectors: Tensor) -> Tensor:
    r"""Sum of the squared singular values over the largest of them.

    .. math:: \|P\|_F^2 / \|P\|_{op}^2 = \sum_i \sigma_i^2 / \sigma_1^2

    It is between 1 and the rank. Small singular values, such as noise gives, hardly change it; it
    is a measure of the rank of pos in Song & Zhong (arXiv 2310.04861). NaN where all vectors are
    zero or an entry is not finite.

    Args:
        vectors: (T, d), or their singular values (p,).

    Example:
        >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
        tensor(1.5000)
    """
    return relative_values(vectors).square().sum()


def effective_rank(vectors: Tensor) -> Tensor:
    r"""Exponential of the entropy of the singular values as shares of their sum.

    .. math:: \exp(-\sum_i p_i \log p_i), \quad p_i = \sigma_i / \sum_j \sigma_j

    It is between 1 and the rank, and equals the rank where all singular values that are not zero
    are equal. Many small ones raise it much more than the stable rank. NaN where all vectors are
    zero or an entry is not finite.

    Args:
        vectors: (T, d), or their singular values (p,).

    Reference: O. Roy & M. Vetterli, "The effective rank: a measure of effective dimensionality",
    EUSIPCO (2007) 606-610.

    Example:
        >>> effective_rank(torch.eye(4))
        tensor(4.)
    """
    shares = relative_values(vectors)
    shares = shares / shares.sum()
    rank: Tensor = (-torch.special.xlogy(shares, shares).sum()).exp()
    return rank


def explained_ratio(vectors: Tensor, rank: int | Tensor) -> Tensor:
    r"""Share of the leading singular values in the sum of all of them.

    .. math:: \sum_{i \le r} \sigma_i / \sum_i \sigma_i

    A share of the nuclear norm, as in Song & Zhong, not of the energy. NaN where all vectors are
    zero, an entry is not finite, or the rank is NaN.

    Args:
        vectors: (T, d), or their singular values (p,).
        rank: r, such as :func:`screenot` estimates it.

    Raises:
        ValueError: the rank is negative or larger than p.

    Example:
        >>> explained_ratio(torch.tensor([3.0, 2.0, 1.0]), 1)
        tensor(0.5000)
    """
    values = relative_values(vectors)
    number = float(rank)
    if number != number:
        return values.new_full((), float("nan"))
    if not 0 <= number <= len(values):
        raise ValueError(f"rank={number:g}: there are {len(values)} singular values")
    return values[: int(number)].sum() / values.sum()


def rank_above(vectors: Tensor, floor: float | Tensor) -> Tensor:
    """How many singular values stand above a floor, such as noise alone is expected to reach.

    Args:
        vectors: (T, d), or their singular values (p,).
        floor: () as of :func:`singular_value_floor`.

    Returns:
        () a whole number, as a float; NaN where the floor or an entry is not finite.

    Example:
        >>> rank_above(torch.tensor([3.0, 2.0, 1.0]), 1.5)
        tensor(2.)
    """
    values = singular_values(vectors)
    floor = torch.as_tensor(floor, dtype=values.dtype, device=values.device)
    number = (values > floor).sum().to(values.dtype)
    return number.masked_fill(~torch.isfinite(values[0] + floor), float("nan"))
