r"""Whether two models put the same tokens in the same order.

A number for each token (a cosine, a share, a norm) from two models that read the same tokens, such
as two seeds that are given the same reference translations: their rank correlation says how far the
number belongs to the tokens and not to the run (Mickus & Vazquez compare decompositions so).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.functional.compare.ranks import places, spearman
from geomhooks.functional.compare.resampling import (
    Interval,
    bootstrap_interval,
    normal_quantile,
    scipy_stats,
)

__all__ = ["RankAgreement", "rank_agreement"]


class RankAgreement(NamedTuple):
    """A rank correlation and how well it is known."""

    value: float
    interval: Interval
    number: int
    """of tokens that count"""
    left_out: int
    """tokens without a finite number in both"""


def rank_agreement(
    first: Tensor,
    second: Tensor,
    clusters: Tensor | None = None,
    *,
    coefficient: Literal["spearman", "kendall"] = "spearman",
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> RankAgreement:
    r"""Rank correlation of two numbers for each token, with a confidence interval.

    Tokens of one context are alike, and n of them say less than n independent ones. Where it is
    said which token belongs to which context, contexts are drawn, with all their tokens, in a
    bootstrap. Otherwise the interval takes tokens for independent: on the scale of
    :math:`z = \operatorname{artanh} \rho` with the standard error

    .. math:: \sqrt{\frac{1 + \rho^2 / 2}{n - 3}} \quad \text{or, for Kendall's tau,} \quad
        \sqrt{\frac{0.437}{n - 4}}

    (Bonett & Wright 2000; Fieller, Hartley & Pearson 1957).

    Args:
        first: (n,) a number for each token, of one model.
        second: (n,) of the other, for the same tokens.
        clusters: (n,) integers, the context or sentence of each token.
        coefficient: Spearman's rho, or Kendall's tau-b, which SciPy computes.
        level: of the interval.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        NaN where one model has the same number for all tokens.

    Raises:
        ValueError: shapes that do not fit, or fewer than two tokens with finite numbers.
        MissingExtraError: SciPy, which some of this needs, is not installed.

    Example:
        >>> tokens = torch.arange(20.0)
        >>> found = rank_agreement(tokens, tokens.square())
        >>> found.value, found.number
        (1.0, 20)
        >>> other = torch.tensor([1.0, 3, 2, 5, 4, 7, 6, 9, 8, 10])
        >>> low, high, *_ = rank_agreement(torch.arange(10.0), other).interval
        >>> round(low, 2), round(high, 2)
        (0.74, 0.99)
    """
    if coefficient not in ("spearman", "kendall"):
        raise ValueError(f'coefficient={coefficient!r}: "spearman" or "kendall" is needed')
    sides = [_vector(first, "first"), _vector(second, "second")]
    number = len(sides[0])
    groups = np.arange(number) if clusters is None else clusters.detach().cpu().numpy()
    if sides[1].shape != sides[0].shape or groups.shape != (number,):
        raise ValueError(
            f"a number for each of the same tokens is needed, found first {tuple(first.shape)}, "
            f"second {tuple(second.shape)}"
            + ("" if clusters is None else f", clusters {tuple(clusters.shape)}")
        )
    finite = np.isfinite(sides[0]) & np.isfinite(sides[1])
    one, other, groups = sides[0][finite], sides[1][finite], places(groups[finite])
    kept = int(finite.sum())
    if kept < 2:
        raise ValueError(f"{kept} of {number} tokens have finite numbers in both; two are needed")
    order = (places(one), places(other))

    def correlation(times: np.ndarray) -> float:
        """Where each context stands so many times."""
        weights = times[groups]
        if coefficient == "spearman":
            return spearman(*order, weights)
        x, y = (np.repeat(side, weights) for side in order)
        if not (len(x) and np.ptp(x) and np.ptp(y)):
            return math.nan
        return float(scipy_stats().kendalltau(x, y).statistic)

    count = int(groups.max()) + 1
    value = correlation(np.ones(count, np.int64))
    if clusters is None:
        interval = _on_artanh(value, kept, coefficient, level)
    else:
        interval = bootstrap_interval(correlation, count, level, draws, seed, "contexts")
    return RankAgreement(value, interval, kept, number - kept)


def _on_artanh(value: float, number: int, coefficient: str, level: float) -> Interval:
    quantile = normal_quantile(level)
    freedom = number - (3 if coefficient == "spearman" else 4)
    method = "Fisher's z, tokens taken for independent"
    if freedom < 1 or math.isnan(value):
        return Interval(math.nan, math.nan, level, method)
    if abs(value) == 1:
        return Interval(value, value, level, method)
    variance = (1 + value**2 / 2) if coefficient == "spearman" else 0.437
    reach = quantile * math.sqrt(variance / freedom)
    low, high = (math.tanh(math.atanh(value) + sign * reach) for sign in (-1, 1))
    return Interval(low, high, level, method)


def _vector(values: Tensor, name: str) -> np.ndarray:
    if values.ndim != 1:
        raise ValueError(f"{name}: shape (n,) is needed, found {tuple(values.shape)}")
    array: np.ndarray = values.detach().to("cpu", torch.float64).numpy()
    return array
