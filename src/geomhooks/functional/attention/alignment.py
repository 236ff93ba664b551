r"""Query-key weights in the basis of pos: a diagonal, and what a few directions of pos hold.

Song & Zhong (arXiv 2310.04861) find that the weights W of a head's logits, x^T W y, are nearly a
diagonal in the entries of the hidden state plus a matrix that is sparse in the basis of pos,

.. math:: W \approx \mathrm{diag}(W) + V L V^\top,

with V the right singular vectors of pos.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float, as_matrix

__all__ = [
    "PosBasis",
    "WeightAlignment",
    "pos_basis",
    "query_key_weight",
    "universal_threshold",
    "weight_alignment",
]


class PosBasis(NamedTuple):
    """Right singular vectors of pos, the leading first, made up to a whole basis."""

    vectors: Tensor
    """(d, d) V, a column each"""
    rank: int
    """how many belong to singular values that are not zero: the others are any basis of the rest"""


class WeightAlignment(NamedTuple):
    """A head's weights in the basis of pos."""

    rotated: Tensor
    """(d, d) R = V^T (W - diag(W)) V"""
    diagonal: Tensor
    """(d,) diag(W), which is not in R"""
    threshold: Tensor
    """() the universal threshold of R"""
    kept: Tensor
    """(d, d) bool, where |R| is above it"""
    max: Tensor
    """() largest entry of R in the first ``rank`` rows and columns"""
    min: Tensor
    """() smallest entry there"""
    std: Tensor
    """() of all of R; nearly the same in every basis, since the sum of squares is"""
    diagonal_share: Tensor
    """() of the sum of squares of W, what stands on its diagonal"""
    sparse_share: Tensor
    """() and in the entries of R that are kept; the rest is the remainder to one"""
    leading_share: Tensor
    """() of the sum of squares of R, what stands in its first ``leading`` rows and columns; a
    matrix without preference has (leading / d)^2"""


def query_key_weight(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """The d by d matrix of a head's logits, x^T W y, without norm, biases and rotary embedding.

    Args:
        query: (..., d, k) weight, x^T W_Q.
        key: (..., d, k) weight; of the head's group, where heads share keys.
        scale: 1 / sqrt(k) by default.
    """
    weight: Tensor = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return weight


def pos_basis(pos: Tensor) -> PosBasis:
    """Right singular vectors of pos.

    Args:
        pos: (T, d); rows with a NaN, at positions that were not seen, are left out.

    Raises:
        ValueError: not a matrix, or no row is left.

    Example:
        >>> pos_basis(torch.tensor([[0.0, 2.0, 0.0], [0.0, -2.0, 0.0]])).vectors[:, 0].abs()
        tensor([0., 1., 0.])
    """
    pos = as_matrix(pos, "pos")
    pos = pos[torch.isfinite(pos).all(1)]
    if not len(pos):
        raise ValueError("pos: no row is finite")
    _, values, right = torch.linalg.svd(pos, full_matrices=True)
    smallest = values[0] * max(pos.shape) * torch.finfo(pos.dtype).eps
    return PosBasis(right.mT, int((values > smallest).sum()))


def universal_threshold(matrix: Tensor) -> Tensor:
    r"""The size that noise of this spread hardly reaches: std * sqrt(2 ln n), for n entries.

    Args:
        matrix: any shape.
    """
    threshold: Tensor = as_float(matrix).std(correction=0) * math.sqrt(2 * math.log(matrix.numel()))
    return threshold


def weight_alignment(weight: Tensor, basis: PosBasis, leading: int = 20) -> WeightAlignment:
    """A head's query-key weights in the basis of pos.

    Vectors of the basis beyond the rank of pos are arbitrary, and entries of R there too; ``max``
    and ``min`` leave them out, where the published code does not. ``kept`` has them all.

    Args:
        weight: (d, d), of :func:`query_key_weight`.
        basis: of :func:`pos_basis`, for the states at the attention's input.
        leading: how many directions of pos ``leading_share`` is about.

    Raises:
        ValueError: shapes do not fit, or pos is zero.

    Example:
        >>> pos = torch.randn(30, 2) @ torch.randn(2, 32)
        >>> basis = pos_basis(pos)
        >>> axis = basis.vectors[:, 0]
        >>> found = weight_alignment(torch.eye(32) + 20 * torch.outer(axis, axis), basis, 2)
        >>> bool(found.kept[0, 0]), bool(found.leading_share > 0.5)
        (True, True)
    """
    weight = as_matrix(weight, "weight", "(d, d)")
    width = len(basis.vectors)
    if weight.shape != (width, width):
        raise ValueError(f"weight: shape {(width, width)} is needed, found {tuple(weight.shape)}")
    if not basis.rank:
        raise ValueError("pos is zero everywhere and has no basis")
    vectors = basis.vectors.to(weight)
    diagonal = weight.diagonal()
    rotated = vectors.T @ (weight - diagonal.diag()) @ vectors
    threshold = universal_threshold(rotated)
    kept = rotated.abs() > threshold
    determined = rotated[: basis.rank, : basis.rank]
    squares = rotated.square()
    whole = weight.square().sum()
    return WeightAlignment(
        rotated,
        diagonal,
        threshold,
        kept,
        determined.max(),
        determined.min(),
        rotated.std(correction=0),
        diagonal.square().sum() / whole,
        squares[kept].sum() / whole,
        squares[:leading, :leading].sum() / squares.sum(),
    )
