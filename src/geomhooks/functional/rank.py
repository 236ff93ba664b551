"""How many directions a set of vectors really uses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stable_rank"]


def stable_rank(vectors: Tensor) -> Tensor:
    r"""Sum of the squared singular values over the largest of them.

    .. math:: \|P\|_F^2 / \|P\|_{op}^2 = \sum_i \sigma_i^2 / \sigma_1^2

    It is between 1 and the rank. Small singular values, such as noise gives, hardly change it; it
    is the measure of the rank of pos in Song & Zhong (arXiv 2310.04861). NaN where all vectors are
    zero.

    Args:
        vectors: (T, d), a row each; not centred.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
        tensor(1.5000)
    """
    rows, columns = vectors.shape
    gram = vectors @ vectors.T if rows <= columns else vectors.T @ vectors
    if not bool(torch.isfinite(gram).all()):
        return gram.new_full((), float("nan"))
    squares = torch.linalg.eigvalsh(gram)
    rank: Tensor = gram.diagonal().sum() / squares[-1]
    return rank
