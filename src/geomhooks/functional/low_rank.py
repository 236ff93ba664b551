r"""Spectra of matrices that are known by their factors, M = L R^T with L and R (d, k).

A head's matrices are d by d and of rank k at most. QR of both factors leaves k by k work, which
gives the same numbers as the d by d matrix does (up to zeros) at a cost of d k^2 instead of d^3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float

__all__ = [
    "FactoredSVD",
    "SymmetricPart",
    "coverage",
    "coverage_index",
    "factored_svd",
    "symmetric_part",
]


class FactoredSVD(NamedTuple):
    """Singular values and vectors of L R^T, the largest first; p = min(d, k, e)."""

    left: Tensor
    """(..., d, p) left vectors, a column each"""
    values: Tensor
    """(..., p)"""
    right: Tensor
    """(..., e, p) right vectors, a column each"""


class SymmetricPart(NamedTuple):
    """What (M + M^T) / 2 is, of M = L R^T; the d - p eigenvalues that are not here are zero."""

    eigenvalues: Tensor
    """(..., p) the largest first, p = min(d, 2 k)"""
    vectors: Tensor
    """(..., d, p) a column each"""
    positive: Tensor
    """(...) how many are positive, beyond rounding"""
    negative: Tensor
    """(...) how many are negative"""
    positive_share: Tensor
    """(...) of the sum of their absolute values, what is positive; NaN where all are zero"""
    antisymmetric_share: Tensor
    """(...) of the sum of squares of M, what (M - M^T) / 2 has: 0 for a symmetric M, about 1/2 for
    a random one, 1 for an antisymmetric one; NaN where M is zero"""


def factored_svd(left: Tensor, right: Tensor) -> FactoredSVD:
    """The singular value decomposition of L R^T, by that of a matrix k by k.

    Vectors of singular values that are zero, or equal, are any that fit; signs are arbitrary, the
    same for both vectors of a pair.

    Args:
        left: (..., d, k) L.
        right: (..., e, k) R.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> left, right = torch.randn(2, 9, 3).double(), torch.randn(2, 7, 3).double()
        >>> found = factored_svd(left, right)
        >>> dense = torch.linalg.svdvals(left @ right.mT)
        >>> torch.allclose(found.values, dense[:, :3]), found.left.shape
        (True, torch.Size([2, 9, 3]))
    """
    left, right = as_factors(left, right)
    (q, r), (other_q, other_r) = (torch.linalg.qr(factor) for factor in (left, right))
    u, values, vh = torch.linalg.svd(r @ other_r.mT, full_matrices=False)
    return FactoredSVD(q @ u, values, other_q @ vh.mT)


def coverage(values: Tensor) -> Tensor:
    r"""Share of the leading singular values in their sum, for every number of them.

    .. math:: c_r = \sum_{i \le r} \sigma_i / \sum_i \sigma_i, \quad r = 1, \ldots, p

    Molina's coverage curve (arXiv 2309.07315), of each head; :func:`explained_ratio` is one point
    of it. NaN where all are zero.

    Args:
        values: (..., p) singular values, in any order.

    Example:
        >>> coverage(torch.tensor([3.0, 0.0, 1.0]))
        tensor([0.7500, 1.0000, 1.0000])
    """
    ordered = as_float(values).sort(dim=-1, descending=True).values
    return ordered.cumsum(-1) / ordered.sum(-1, keepdim=True)


def coverage_index(values: Tensor, share: float = 0.99) -> Tensor:
    """Index of the first singular value with which the coverage is above a share, from 0.

    It takes one singular value more than the index says. The published figure puts index i at
    i / (p - 1) of the features, not at (i + 1) / p, and so shows slightly fewer than it takes.

    Args:
        values: (..., p) singular values, in any order.
        share: from 0 to below 1.

    Returns:
        (...) a whole number, as a float; NaN where all are zero or one is not finite.

    Raises:
        ValueError: the share is out of range.

    Example:
        >>> coverage_index(torch.tensor([[6.0, 3.0, 1.0], [100.0, 0.5, 0.1]]))
        tensor([2., 0.])
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share:g}: from 0 to below 1 is needed, such as 0.99")
    found = coverage(values)
    # The last is 1 but for rounding.
    index = (found[..., :-1] <= share).sum(-1).to(found.dtype)
    return index.masked_fill(~torch.isfinite(found[..., -1]), float("nan"))


def symmetric_part(left: Tensor, right: Tensor) -> SymmetricPart:
    r"""Eigenvalues and inertia of the symmetric part of M = L R^T, by 2 k by 2 k work.

    .. math:: (M + M^\top)/2 = \tfrac12 [L\ R] \begin{pmatrix} 0 & I \\ I & 0 \end{pmatrix}
        [L\ R]^\top

    For a query-key form it says which directions attract their like (positive) and which repel
    them. By Sylvester's law of inertia there are exactly k of each wherever the 2 k columns of L
    and R are independent, as they are in general where 2 k <= d: the numbers tell ranks, and the
    sizes (``positive_share``) what the head does.

    Args:
        left: (..., d, k) L.
        right: (..., d, k) R.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> part = symmetric_part(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [2.0]]))
        >>> part.eigenvalues, int(part.positive), int(part.negative), part.antisymmetric_share
        (tensor([ 1., -1.]), 1, 1, tensor(0.5000))
    """
    left, right = as_factors(left, right)
    if left.shape[-2] != right.shape[-2]:
        raise ValueError(
            f"a symmetric part needs factors of the same d, found {tuple(left.shape)} and "
            f"{tuple(right.shape)}"
        )
    inner = left.shape[-1]
    q, r = torch.linalg.qr(torch.cat((left, right), -1))
    whole = r[..., :inner] @ r[..., inner:].mT  # M in the basis q
    values, vectors = torch.linalg.eigh((whole + whole.mT) / 2)
    values, vectors = values.flip(-1), vectors.flip(-1)
    sizes = values.abs()
    # As large as M is, not its symmetric part, which may be nothing but rounding.
    least = values.shape[-1] * torch.finfo(values.dtype).eps * torch.linalg.matrix_norm(whole)
    squares = whole.square().sum((-2, -1))
    apart = (whole - whole.mT).square().sum((-2, -1)) / 4
    return SymmetricPart(
        values,
        q @ vectors,
        (values > least[..., None]).sum(-1),
        (values < -least[..., None]).sum(-1),
        values.clamp(min=0).sum(-1) / sizes.sum(-1),
        apart / squares,
    )


def as_factors(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 at least, and in the same dtype.

    Raises:
        ValueError: no product of one with the other transposed.
    """
    fits = left.ndim == right.ndim >= 2 and left.shape[:-2] == right.shape[:-2]
    if not fits or left.shape[-1] != right.shape[-1] or 0 in (*left.shape, *right.shape):
        raise ValueError(
            "factors (..., d, k) and (..., e, k) of the same k are needed, found "
            f"{tuple(left.shape)} and {tuple(right.shape)}"
        )
    kind = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    return left.to(kind), right.to(kind)
