"""How the variance of a cloud of vectors is spread over directions, from its covariance."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "condition_number",
    "leading_share",
    "participation_ratio",
    "spectrum",
]


def spectrum(covariance: Tensor, rank: int | None = None) -> Tensor:
    r"""Eigenvalues of a covariance (d, d), the largest first, in float64 (d,).

    They are the variances along the principal directions. What rounding leaves of an eigenvalue
    that is zero, :math:`d \epsilon` of the largest, is set to zero.

    Args:
        covariance: (d, d), symmetric.
        rank: the most eigenvalues that can be different from zero, such as n - 1 for n vectors.

    Raises:
        ValueError: it is no square matrix.

    Example:
        >>> spectrum(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        tensor([3., 1.], dtype=torch.float64)
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"a covariance is (d, d); this is {tuple(covariance.shape)}")
    if covariance.device.type == "mps":  # which has neither float64 nor eigenvalues
        covariance = covariance.cpu()
    covariance = covariance.to(torch.float64)
    if not bool(torch.isfinite(covariance).all()):
        return covariance.new_full((len(covariance),), float("nan"))
    values = torch.linalg.eigvalsh(covariance).flip(0)
    if rank is not None:
        values[max(0, rank) :] = 0.0
    least = len(values) * torch.finfo(values.dtype).eps * values[:1].abs()
    return torch.where(values > least, values, 0.0)


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    r"""How many equal eigenvalues would have the same first two moments.

    .. math:: \left(\sum_i \lambda_i\right)^2 / \sum_i \lambda_i^2

    Between 1 and the effective rank: small eigenvalues count less (for instance P. Gao et al., "A
    theory of multineuronal dimensionality, dynamics and measurement", bioRxiv 214262, 2017). From n
    vectors it cannot exceed n - 1, and it is too low while n is not much larger than it. NaN where
    all are zero.

    Args:
        eigenvalues: (..., d), not negative.

    Example:
        >>> participation_ratio(torch.tensor([3.0, 1.0]))
        tensor(1.6000)
    """
    shares = eigenvalues / eigenvalues.sum(-1, keepdim=True)
    return 1 / shares.square().sum(-1)


def leading_share(eigenvalues: Tensor) -> Tensor:
    r"""Share of the largest eigenvalue in their sum, :math:`\lambda_1 / \sum_i \lambda_i`.

    Its reciprocal is the stable rank :math:`\|X\|_F^2 / \|X\|_{op}^2` of the centred vectors X. NaN
    where all are zero.

    Args:
        eigenvalues: (..., d), not negative.

    Example:
        >>> leading_share(torch.tensor([3.0, 1.0]))
        tensor(0.7500)
    """
    return eigenvalues.amax(-1) / eigenvalues.sum(-1)


def condition_number(eigenvalues: Tensor) -> Tensor:
    r"""The largest eigenvalue over the least, :math:`\lambda_1 / \lambda_d`; infinite for zero.

    Args:
        eigenvalues: (..., d), not negative.

    Example:
        >>> condition_number(torch.tensor([[3.0, 1.0], [3.0, 0.0]]))
        tensor([3., inf])
    """
    return eigenvalues.amax(-1) / eigenvalues.amin(-1)
