"""Cosines between vectors, whatever their lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_matrix

__all__ = ["cosines", "unit_rows"]


def unit_rows(vectors: Tensor) -> Tensor:
    """Rows over their lengths; NaN for a row of zeros, which points nowhere.

    Args:
        vectors: (n, d).

    Raises:
        ValueError: not a matrix, or an empty one.

    Example:
        >>> unit_rows(torch.tensor([[3e30, 4e30]]))
        tensor([[0.6000, 0.8000]])
    """
    vectors = as_matrix(vectors, "vectors", "(n, d)")
    # Divided by the largest entry first: squares of small or large ones leave the range of floats.
    scaled = vectors / vectors.abs().amax(1, keepdim=True)
    unit: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return unit


def cosines(vectors: Tensor, others: Tensor | None = None) -> Tensor:
    r"""Cosines of all pairs, :math:`\langle u_i, v_j \rangle / (|u_i| |v_j|)`.

    Args:
        vectors: (m, d).
        others: (n, d), by default the vectors themselves: their cosine Gram matrix.

    Returns:
        (m, n), NaN where a vector is zero.

    Raises:
        ValueError: no matrices, or of different widths.

    Example:
        >>> cosines(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([[0.0000],
                [0.7071]])
    """
    left = unit_rows(vectors)
    right = left if others is None else unit_rows(others)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"vectors of widths {left.shape[1]} and {right.shape[1]} have no cosine")
    kind = torch.promote_types(left.dtype, right.dtype)
    return left.to(kind) @ right.to(kind).T
