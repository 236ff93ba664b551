"""Numbers that a sum of unit vectors tells about how its vectors point."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["concentration", "mean_pairwise_cosine", "resultant_length"]


def resultant_length(unit_sum: Tensor, count: Tensor) -> Tensor:
    """R = |sum u_i| / n, in [0, 1]: 0 for directions that cancel, 1 for one direction.

    Args:
        unit_sum: (..., d) sum of n unit vectors.
        count: (...) n.

    Example:
        >>> resultant_length(torch.tensor([3.0, 4.0]), torch.tensor(10))
        tensor(0.5000)
    """
    length: Tensor = torch.linalg.vector_norm(unit_sum, dim=-1) / count
    return length


def mean_pairwise_cosine(unit_sum: Tensor, count: Tensor) -> Tensor:
    """Mean cosine between two different vectors, (|sum u|^2 - n) / (n (n - 1)).

    Exact for all n (n - 1) / 2 pairs, from one vector and one count. NaN for fewer than two.

    Args:
        unit_sum: (..., d) sum of n unit vectors.
        count: (...) n.

    Example:
        >>> u = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=-1)
        >>> gram = u @ u.T
        >>> pairs = (gram.sum() - 5) / 20
        >>> torch.allclose(mean_pairwise_cosine(u.sum(0), torch.tensor(5)), pairs)
        True
    """
    cosine = (unit_sum.square().sum(-1) - count) / (count * (count - 1))
    return cosine.masked_fill(torch.as_tensor(count < 2, device=cosine.device), float("nan"))


def concentration(resultant: Tensor, dimension: int, variance: Tensor | None = None) -> Tensor:
    """Concentration of a von Mises-Fisher law on the sphere in R^p, R (p - R^2) / (1 - R^2).

    Args:
        resultant: (...) resultant length R.
        dimension: p.
        variance: (...) 1 - R^2, where it is known better than from R.

    Reference: Banerjee, Dhillon, Ghosh & Sra, "Clustering on the unit hypersphere using von
    Mises-Fisher distributions", JMLR 6 (2005), equation 4.4.

    Example:
        >>> concentration(torch.tensor(0.5), 3)
        tensor(1.8333)
    """
    square = resultant.square()
    return resultant * (dimension - square) / (1 - square if variance is None else variance)
