"""Intervals and p-values by drawing again: what the comparisons here have in common.

Whatever is drawn comes from NumPy's or torch's generator with the seed that is given, so that a
result can be had again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError

__all__ = ["Interval", "Permuted"]


FEW = 200  # things to draw from


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float
    level: float
    """how often such intervals hold the true value, if what the method takes for granted is so"""
    method: str
    """how it was found, and of what"""


class Permuted(NamedTuple):
    """A number beside those that permutations give."""

    p_value: float
    """share of arrangements, the given one among them, with a number as large or larger; exact in
    that it errs at most as often as it says, however many are drawn (Phipson & Smyth 2010)"""
    expected: float
    """mean over the permutations"""


def scipy_stats() -> Any:
    """The module ``scipy.stats``.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError(
            "this comparison needs SciPy: pip install 'geomhooks[compare]'"
        ) from error
    return stats


def check_level(level: float) -> None:
    """Raise where a confidence level is none.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: a number between 0 and 1, such as 0.95, is needed")


def normal_quantile(level: float) -> float:
    """How many standard deviations either side hold that share of a normal distribution."""
    check_level(level)
    return NormalDist().inv_cdf((1 + level) / 2)


def percentile_interval(values: np.ndarray, level: float, method: str) -> Interval:
    """The middle of the numbers that draws gave; NaN where one of them is."""
    check_level(level)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, method)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    number: int,
    level: float,
    draws: int,
    seed: int,
    of: str,
) -> Interval:
    """Bootstrap by SciPy: bias-corrected and accelerated (Efron 1987) where things are few.

    With more than 200 the correction is small, and would take a computation for each of them; the
    interval is then the middle of the draws.

    Args:
        statistic: takes how often each of the things drawn is there, (number,).
        number: of things to draw from, with replacement.
        level: of the interval.
        draws: how many.
        seed: of the draws.
        of: what is drawn, for the description.

    Returns:
        NaN where a draw gives NaN, or there is a single thing; a point where all draws agree.
    """
    check_level(level)
    method = f"bootstrap over {number} {of}"
    if number < 2:
        return Interval(math.nan, math.nan, level, f"{method}: two or more are needed")
    with warnings.catch_warnings():
        # Draws that all agree are told by SciPy as data without spread, with a NaN.
        warnings.simplefilter("ignore")
        found = scipy_stats().bootstrap(
            (np.arange(number),),
            lambda drawn: statistic(np.bincount(drawn, minlength=number)),
            n_resamples=draws,
            vectorized=False,
            confidence_level=level,
            method="BCa" if number <= FEW else "percentile",
            random_state=np.random.default_rng(seed),
        )
    values = found.bootstrap_distribution
    low, high = found.confidence_interval
    if not math.isfinite(low) and np.isfinite(values).all():
        return percentile_interval(values, level, method)
    return Interval(float(low), float(high), level, method)


def jackknife_interval(
    statistic: Callable[[Tensor], float],
    value: float,
    number: int,
    level: float,
    groups: int,
    seed: int,
    of: str,
    within: tuple[float, float],
) -> Interval:
    r"""From what leaving out each of G groups of rows does, with Student's t of G - 1 degrees.

    .. math:: s^2 = \frac{G - 1}{G} \sum_g (\theta_{-g} - \bar\theta)^2

    (Shao & Wu 1989). A bootstrap, which takes rows twice, would count a row as agreeing with
    itself; leaving out does not.

    Args:
        statistic: takes the indices of the rows that stay.
        value: of all rows.
        number: of rows, n.
        level: of the interval.
        groups: G, into which the rows are dealt at random; n where that is less.
        seed: of the deal.
        of: what a row is, for the description.
        within: what the statistic can be, to which the interval is cut.
    """
    check_level(level)
    groups = min(groups, number)
    if groups < 2:
        raise ValueError(f"groups={groups}: two or more are needed")
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed), device="cpu")
    left = []
    for group in range(groups):
        stay = torch.ones(number, dtype=torch.bool, device="cpu")
        stay[order[group::groups]] = False
        left.append(statistic(stay.nonzero()[:, 0]))
    deviations = np.asarray(left) - np.mean(left)
    error = math.sqrt((groups - 1) / groups * float(deviations @ deviations))
    reach = error * float(scipy_stats().t.ppf((1 + level) / 2, groups - 1))
    low, high = max(value - reach, within[0]), min(value + reach, within[1])
    return Interval(low, high, level, f"jackknife over {number} {of} in {groups} groups")


def permuted(
    statistic: Callable[[Tensor], float], value: float, number: int, permutations: int, seed: int
) -> Permuted:
    """How large a number is among those of random orders; NaN where none are wanted.

    Args:
        statistic: takes an order of the n rows.
        value: of the order that is given.
        number: n.
        permutations: how many to draw.
        seed: of the draws.
    """
    if permutations < 0:
        raise ValueError(f"permutations={permutations}: a number from 0 is needed")
    if not permutations or math.isnan(value):
        return Permuted(math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    null = np.array(
        [
            statistic(torch.randperm(number, generator=generator, device="cpu"))
            for _ in range(permutations)
        ]
    )
    as_large = int((null >= value - tolerance(value)).sum())
    return Permuted((1 + as_large) / (1 + permutations), float(null.mean()))


def tolerance(value: float) -> float:
    """What rounding may make of numbers that are equal."""
    return 1e-10 * max(abs(value), 1e-10)
