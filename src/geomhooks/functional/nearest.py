"""Which rows, such as the embeddings of words, are nearest to vectors.

Rows are taken in blocks, so that the matrix of all vectors by all rows is never whole.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_matrix

__all__ = ["Metric", "Nearest", "align_signs", "nearest_rows"]

Metric = Literal["dot", "cosine"]

BLOCK = 8192
"""rows at a time"""
VECTORS = 1024
"""vectors that are compared with them at a time"""


class Nearest(NamedTuple):
    """Rows nearest to vectors, the nearest first."""

    indices: Tensor
    """(n, k) int64"""
    scores: Tensor
    """(n, k) dot products or cosines"""


def nearest_rows(
    vectors: Tensor, rows: Tensor, k: int = 5, *, metric: Metric = "dot", block: int = BLOCK
) -> Nearest:
    """The k rows with the largest dot products with vectors, or the largest cosines.

    Among rows with the same score any may come first. Rows with an entry that is not a number, and
    by cosine rows of zeros, come last with a score of minus infinity.

    Args:
        vectors: (n, d).
        rows: (V, d), such as embeddings.
        k: at most V.
        metric: "dot" or "cosine".
        block: rows that are looked at together.

    Raises:
        ValueError: shapes do not fit, or k, metric or block is out of range.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]])
        >>> nearest_rows(torch.tensor([[2.0, 1.0]]), rows, 2).indices
        tensor([[2, 1]])
        >>> nearest_rows(torch.tensor([[2.0, 1.0]]), rows, 2, metric="cosine").indices
        tensor([[2, 0]])
    """
    vectors, rows = check_neighbours(vectors, rows)
    if not 1 <= k <= len(rows) or block < 1:
        raise ValueError(
            f"k={k} and block={block}: from 1 to the {len(rows)} rows there are, and at least 1"
        )
    if metric not in get_args(Metric):
        raise ValueError(f"metric {metric!r}: 'dot' or 'cosine' is needed")
    found = []
    for some in torch.split(vectors, VECTORS):
        if metric == "cosine":
            some = some / torch.linalg.vector_norm(some, dim=1, keepdim=True)
        best = some.new_empty(len(some), 0)
        places = torch.empty(len(some), 0, dtype=torch.int64, device=some.device)
        for number, part in enumerate(torch.split(rows, block)):
            part = part.to(some)
            if metric == "cosine":
                part = part / torch.linalg.vector_norm(part, dim=1, keepdim=True)
            # NaN would come before every number.
            scores = (some @ part.T).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
            top = scores.topk(min(k, len(part)))
            best = torch.cat((best, top.values), 1)
            places = torch.cat((places, top.indices + number * block), 1)
            keep = best.topk(min(k, best.shape[1]))
            best, places = keep.values, places.gather(1, keep.indices)
        found.append((places, best))
    indices, scores = (torch.cat(p) for p in zip(*found, strict=True))
    return Nearest(indices, scores)


def align_signs(vectors: Tensor, rows: Tensor, *, block: int = BLOCK) -> Tensor:
    """Signs (n,) of 1 or -1 with which the largest dot product of each vector with rows is largest.

    The sign of a pair of singular vectors is arbitrary; Molina's code takes for both the one with
    which the right vector comes nearest to a word. Of equal ones it is 1.

    Args:
        vectors: (n, d).
        rows: (V, d).
        block: rows that are looked at together.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> align_signs(torch.eye(2), torch.tensor([[1.0, -3.0], [2.0, 1.0]]))
        tensor([ 1., -1.])
    """
    vectors, rows = check_neighbours(vectors, rows)
    signs = []
    for some in torch.split(vectors, VECTORS):
        above, below = some.new_full((2, len(some)), -math.inf)
        for part in torch.split(rows, block):
            products = some @ part.to(some).T
            above = torch.maximum(above, products.amax(1))
            below = torch.maximum(below, -products.amin(1))
        signs.append(torch.where(above >= below, 1.0, -1.0).to(some))
    return torch.cat(signs)


def check_neighbours(vectors: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors in float32 at least, and the rows as they are.

    Raises:
        ValueError: they are no matrices of the same width.
    """
    vectors = as_matrix(vectors, "vectors", "(n, d)")
    if rows.ndim != 2 or not rows.numel() or rows.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"rows: shape (V, {vectors.shape[1]}) is needed for vectors {tuple(vectors.shape)}, "
            f"found {tuple(rows.shape)}"
        )
    return vectors.to(torch.promote_types(vectors.dtype, rows.dtype)), rows
