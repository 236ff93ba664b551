r"""ScreeNOT: which singular values of a matrix stand out from noise of unknown covariance.

A hard threshold for singular values that is optimal in the limit of large matrices, low rank plus
noise, for the mean squared error of the low-rank matrix. It needs an upper bound k on the rank and
no knowledge of the noise: the k leading singular values are replaced by what the bulk of noise
would put there, and the threshold t is where a functional F of that pseudo-noise is -4:

.. math::
    \Phi(y) = \frac{1}{p} \sum_i \frac{y}{y^2 - z_i^2}, \quad
    D(y) = \Phi(y) \left(\gamma \Phi(y) + \frac{1 - \gamma}{y}\right), \quad
    F(y) = y D'(y) / D(y)

Reference: D. Donoho, M. Gavish & E. Romanov, "ScreeNOT: exact MSE-optimal singular value
thresholding in correlated noise", Annals of Statistics 51 (2023) 122-148, arXiv 2009.12297.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from geomhooks.functional.rank import singular_values
from geomhooks.functional.shapes import as_matrix

__all__ = ["ScreeNOT", "screenot"]

Strategy = Literal["imputation", "winsorization", "zero"]
DEFAULT_BOUND = 20  # that of Song & Zhong


class ScreeNOT(NamedTuple):
    """What the procedure finds."""

    rank: Tensor
    """() how many singular values are above the threshold, a whole number as a float"""
    threshold: Tensor
    """()"""


def screenot(
    vectors: Tensor,
    bound: int | None = None,
    strategy: Strategy = "imputation",
    shape: tuple[int, int] | None = None,
) -> ScreeNOT:
    """Estimate the rank of a matrix seen through noise.

    The published algorithm, except that the threshold is found to twelve digits of the noise
    whatever its scale, where the reference package stops at an absolute 1e-5.

    Args:
        vectors: (T, d), a row each; or their singular values (p,) with ``shape``.
        bound: k, an upper bound on the rank; the result never exceeds it, and one that reaches it
            asks for a larger bound. By default 20, or less where the matrix is too small for it.
        strategy: what replaces the k leading singular values: the shape of the edge of a bulk,
            scaled by the distance between the k + 1st and the 2k + 1st ("imputation", needs
            2k + 1 < p); the k + 1st ("winsorization", needs k < p); or zero ("zero", the same).
        shape: (T, d), where singular values are given.

    Returns:
        Rank and threshold; NaN where an entry is not finite, or where the matrix is too small for
        a bound of 1: p < 4 with imputation, p < 2 else.

    Raises:
        ValueError: a bound or strategy that is not allowed; singular values without their shape.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> left, right, noise = (
        ...     torch.randn(*shape, generator=generator) for shape in ((100, 3), (3, 60), (100, 60))
        ... )
        >>> screenot(left @ right + noise).rank
        tensor(3.)
    """
    if vectors.ndim == 1:
        if shape is None:
            raise ValueError("singular values need the shape of their matrix: screenot(shape=...)")
        if min(shape) != len(vectors):
            raise ValueError(f"shape={shape} has {min(shape)} singular values, not {len(vectors)}")
        rows, columns = shape
    else:
        rows, columns = as_matrix(vectors, "vectors", "(T, d), or (p,) singular values,").shape
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy={strategy!r}: one of {', '.join(get_args(Strategy))} is needed")
    values = singular_values(vectors)
    p = len(values)
    most = (p - 2) // 2 if strategy == "imputation" else p - 1
    if bound is None:
        bound = min(DEFAULT_BOUND, most)
    elif not 1 <= bound <= most:
        allowed = f"1 to {most} is needed" if most > 0 else "the matrix is too small"
        raise ValueError(
            f"bound={bound}: {allowed}, for {strategy} with {p} singular values ({rows} x "
            f"{columns}); take a smaller bound, None for the largest one up to {DEFAULT_BOUND}, or "
            "another strategy"
        )
    found = values.detach().cpu().double().numpy()
    if bound < 1 or not np.isfinite(found[0]):
        nan = values.new_full((), float("nan"))
        return ScreeNOT(nan, nan)
    noise = pseudo_noise(found, bound, strategy)
    threshold = optimal_threshold(noise, min(rows, columns) / max(rows, columns))
    rank = float((found > threshold).sum())
    return ScreeNOT(values.new_full((), rank), values.new_full((), threshold))


def pseudo_noise(values: np.ndarray, bound: int, strategy: Strategy) -> np.ndarray:
    """Singular values with the leading ones replaced by what noise would put there.

    Args:
        values: (p,) the largest first.
        bound: how many are replaced, k.
        strategy: by what.
    """
    noise = values.copy()
    if strategy == "zero":
        noise[:bound] = 0
    elif strategy == "winsorization":
        noise[:bound] = values[bound]
    else:
        # The distribution of noise ends like a square root, so that the quantile at a distance
        # l / p from the edge is (l / p)^(2/3) below it.
        fall = (np.arange(bound) / bound) ** (2 / 3)
        step = values[bound] - values[2 * bound]
        noise[:bound] = values[bound] + step * (1 - fall) / (2 ** (2 / 3) - 1)
    return noise


def optimal_threshold(noise: np.ndarray, gamma: float) -> float:
    """The t where F(t) = -4; F rises from minus infinity at the largest value to -2 at infinity.

    Args:
        noise: (p,) singular values of the pseudo-noise.
        gamma: smaller over larger side of the matrix.
    """
    top = float(noise.max())
    if top == 0:
        return 0.0
    squares = (noise / top) ** 2

    def functional(y: float) -> float:
        gap = y * y - squares
        phi = float((y / gap).mean())
        slope = -float(((y * y + squares) / gap**2).mean())
        factor = gamma * phi + (1 - gamma) / y
        return y * (slope / phi + (gamma * slope - (1 - gamma) / y**2) / factor)

    low, high = 1.0, 2.0
    while functional(high) < -4:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if functional(middle) < -4:
            low = middle
        else:
            high = middle
    return top * (low + high) / 2
