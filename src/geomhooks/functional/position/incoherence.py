r"""How nearly orthogonal two sets of vectors are, and what chance alone would give.

For directions drawn uniformly from the unit sphere of R^d, cos^2 follows a beta distribution with
parameters 1/2 and (d - 1)/2.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.functional.cosines import unit_rows

__all__ = ["Incoherence", "expected_incoherence", "incoherence"]

BLOCK = 1 << 22  # cosines at a time


class Incoherence(NamedTuple):
    """Of the |cos| between all pairs."""

    mean: Tensor
    max: Tensor


def incoherence(vectors: Tensor, others: Tensor) -> Incoherence:
    """Mean and largest |cos| between the vectors of two sets.

    Song & Zhong (arXiv 2310.04861) call pos and ctx incoherent where it is small.

    Args:
        vectors: (m, d), such as pos.
        others: (n, d), such as ctx.

    Returns:
        NaN where a vector is zero or not finite.

    Raises:
        ValueError: no matrices, or of different widths.

    Example:
        >>> incoherence(torch.eye(3)[:2], torch.tensor([[0.0, 0.6, 0.8]]))
        Incoherence(mean=tensor(0.3000), max=tensor(0.6000))
    """
    left, right = unit_rows(vectors), unit_rows(others)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"vectors of widths {left.shape[1]} and {right.shape[1]} have no cosine")
    kind = torch.promote_types(left.dtype, right.dtype)
    left, right = left.to(kind), right.to(kind)
    total, largest = left.new_zeros(()), left.new_zeros(())
    step = max(1, BLOCK // len(right))
    for start in range(0, len(left), step):
        cosine = (left[start : start + step] @ right.T).abs()
        total, largest = total + cosine.sum(), torch.maximum(largest, cosine.max())
    return Incoherence(total / (len(left) * len(right)), largest)


@lru_cache(maxsize=64)
def _expected(dimension: int, pairs: int) -> tuple[float, float]:
    if dimension == 1:
        return 1.0, 1.0
    half = dimension / 2
    mean = math.exp(math.lgamma(half) - math.lgamma(half + 0.5)) / math.sqrt(math.pi)
    if pairs == 1:
        return mean, mean
    # P(|cos| > x) < 2 exp(-(d - 1) x^2 / 2): above the end no pair is to be expected.
    end = min(1.0, math.sqrt(2 * (math.log(2 * pairs) + 37) / (dimension - 1)))
    angle = np.linspace(math.acos(end), math.pi / 2, 8193)
    density = np.sin(angle) ** (dimension - 2)
    step = angle[1] - angle[0]
    within = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    within = np.minimum(within / within[-1], 1 - 1e-16)
    some = -np.expm1(pairs * np.log1p(-within)) * np.sin(angle)
    return mean, float((some[1:] + some[:-1]).sum() / 2 * step)


def expected_incoherence(dimension: int, pairs: int) -> Incoherence:
    r"""What :func:`incoherence` is expected to be for directions without any order.

    .. math::
        E |\cos| = \frac{\Gamma(d/2)}{\sqrt\pi \, \Gamma((d+1)/2)}, \quad
        E \max |\cos| \approx \int_0^1 1 - P(|\cos| \le x)^N \, dx

    The mean is exact. The maximum takes the N pairs as independent; they are so two by two, and in
    the limit the extreme angles are distributed as if all were (T. Cai, J. Fan & T. Jiang,
    "Distributions of angles in random packing on spheres", JMLR 14 (2013) 1837-1864).

    Args:
        dimension: d.
        pairs: N, the product of the sizes of both sets.

    Returns:
        Two numbers, float64.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> expected_incoherence(768, 127 * 256)
        Incoherence(mean=tensor(0.0288, dtype=torch.float64),
                    max=tensor(0.1540, dtype=torch.float64))
    """
    if dimension < 1 or pairs < 1:
        raise ValueError(
            f"expected_incoherence(dimension={dimension}, pairs={pairs}): positive numbers are "
            "needed"
        )
    mean, largest = _expected(int(dimension), int(pairs))
    return Incoherence(
        torch.tensor(mean, dtype=torch.float64, device="cpu"),
        torch.tensor(largest, dtype=torch.float64, device="cpu"),
    )
