r"""How much of the largest direction of hidden states is position.

Song & Zhong (arXiv 2310.04861) stack one row for each token, all states in M (N, d) and the pos of
each state's position in P, and report

.. math:: \|P\|_{op} / \|M - 1 m^T\|_{op} \quad\text{or}\quad \|P\|_{op} / \|M\|_{op},

with m the mean row of M: the second version of their code takes the mean out, the first does not.
The operator norms need no stacked rows: :math:`\|P\|_{op}^2` is the largest eigenvalue of
:math:`\sum_t n_t pos_t pos_t^T`, that of the centred states :math:`N \lambda_1(\Sigma)` with their
covariance, and that of the states as they are :math:`N \lambda_1(\Sigma + m m^T)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.rank import singular_values
from geomhooks.functional.shapes import as_float, as_matrix

__all__ = ["RelativeNorm", "relative_norm", "relative_norm_of_sample"]


class RelativeNorm(NamedTuple):
    """Both published definitions."""

    centred: Tensor
    """() of the second version of the published code, that of the paper's tables"""
    uncentred: Tensor
    """() of the first version"""


def relative_norm(
    pos: Tensor, covariance: Tensor, mean: Tensor, count: Tensor | None = None
) -> RelativeNorm:
    """The relative norm over all tokens of a stream, from its moments.

    Args:
        pos: (T, d).
        covariance: (d, d) of all tokens, population form.
        mean: (d,) of all tokens, m; where contexts have different lengths that is not the mean of
            the fit, mu.
        count: (T,) tokens at each position, n_t; by default equally many at each.

    Returns:
        NaN where the norm below is zero or an entry is not finite.

    Raises:
        ValueError: shapes that do not fit together.

    Example:
        >>> pos = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> relative_norm(pos, torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([0.0, 0.0]))
        RelativeNorm(centred=tensor(0.5000), uncentred=tensor(0.5000))
    """
    pos = as_matrix(pos, "pos")
    covariance = as_matrix(covariance, "covariance", "(d, d)").to(pos)
    positions, width = pos.shape
    if covariance.shape != (width, width) or mean.shape != (width,):
        raise ValueError(
            f"pos {tuple(pos.shape)} needs a covariance ({width}, {width}) and a mean ({width},), "
            f"found {tuple(covariance.shape)} and {tuple(mean.shape)}"
        )
    count = pos.new_ones(positions) if count is None else count.to(pos)
    if count.shape != (positions,):
        raise ValueError(f"count: shape ({positions},) is needed, found {tuple(count.shape)}")
    mean = as_float(mean).to(pos)
    above = singular_values((count / count.sum()).sqrt()[:, None] * pos)[0]
    return RelativeNorm(
        ratio(above, largest_eigenvalue(covariance).sqrt()),
        ratio(above, largest_eigenvalue(covariance + torch.outer(mean, mean)).sqrt()),
    )


def relative_norm_of_sample(hidden: Tensor, pos: Tensor) -> RelativeNorm:
    """The published form: pos of all contexts against the states of a few contexts.

    The published code takes 32 contexts, 8 for its largest model, that were not among those whose
    means gave pos; its numbers depend on which ones.

    Args:
        hidden: (n, T, d) states of n contexts at all positions.
        pos: (T, d).

    Raises:
        ValueError: shapes that do not fit together.

    Example:
        >>> pos = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> relative_norm_of_sample(torch.stack([pos, pos]), pos)
        RelativeNorm(centred=tensor(1.), uncentred=tensor(1.))
    """
    pos = as_matrix(pos, "pos")
    if hidden.ndim != 3 or hidden.shape[1:] != pos.shape or len(hidden) == 0:
        raise ValueError(
            f"hidden: shape (n, {pos.shape[0]}, {pos.shape[1]}) is needed for pos "
            f"{tuple(pos.shape)}, found {tuple(hidden.shape)}"
        )
    states = as_float(hidden).to(pos).flatten(0, 1)
    above = len(hidden) ** 0.5 * singular_values(pos)[0]
    centred = states - states.mean(0)
    return RelativeNorm(
        ratio(above, singular_values(centred)[0]), ratio(above, singular_values(states)[0])
    )


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """NaN instead of infinity where there is nothing below."""
    return torch.where(below > 0, above / below, float("nan"))


def largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Of a positive semi-definite matrix; NaN where an entry is not finite."""
    if not bool(torch.isfinite(matrix).all()):
        return matrix.new_full((), float("nan"))
    largest: Tensor = torch.linalg.eigvalsh(matrix)[-1].clamp(min=0)
    return largest
