r"""Whether runs of one condition are closer to each other than to the others.

Six runs, three of which differ in nothing but their seed, have 15 distances, 3 of them within the
condition. The question is whether those 3 are smaller than chance would have it.

What chance is, is the point. To shuffle the 15 distances (Pitman's test, as Mickus & Vazquez do,
over all C(15, 3) = 455 choices) takes them for independent, which they are not: each run is in
five. One odd run makes five large distances at once. The honest null shuffles the runs: it asks
which three of six runs could have been the ones of the same condition, and there are only 20 ways,
so that no p-value below 0.05 can come out of such a design, where Pitman's goes down to 0.0022.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations
from math import comb, factorial, prod
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.functional.compare.resampling import tolerance

__all__ = ["ConditionTest", "condition_test"]


class ConditionTest(NamedTuple):
    """A test of same-condition against different-condition pairs."""

    same: float
    """mean distance of pairs of one condition"""
    different: float
    """mean distance of the other pairs"""
    statistic: float
    """``different`` less ``same``; or Mann and Whitney's U, how often a pair of one condition is
    farther apart than another pair, ties counting half"""
    p_value: float
    arrangements: int
    """how many were looked at; no p-value is below one over their number"""
    exact: bool
    """all arrangements were; otherwise so many random ones and the given one"""


def condition_test(
    distances: Tensor,
    conditions: Sequence[Hashable],
    *,
    statistic: Literal["mean", "mann_whitney"] = "mean",
    permute: Literal["runs", "pairs"] = "runs",
    alternative: Literal["two-sided", "closer"] = "two-sided",
    limit: int = 100_000,
    seed: int = 0,
) -> ConditionTest:
    """Permutation test of whether runs of one condition are closer than others.

    Args:
        distances: (R, R) between runs, symmetric, such as :func:`warping_distances`.
        conditions: R labels, the same for runs of one condition.
        statistic: difference of the mean distances, or of their mean ranks, which is the test of
            Mann and Whitney, exact with ties as well.
        permute: "runs", which is valid if runs could be exchanged; or "pairs", as published, which
            takes distances for independent and gives too small p-values. See above.
        alternative: "two-sided", or that pairs of one condition are "closer".
        limit: of arrangements that are all looked at. Where there are more, so many are drawn at
            random, and ``exact`` is False.
        seed: of the draws.

    Raises:
        ValueError: no such matrix, labels that do not fit, no two runs of one condition, or none of
            different ones.

    Example:
        >>> at = torch.tensor([0.0, 1.0, 2.0, 10.0, 20.0, 40.0])
        >>> distances = (at[:, None] - at).abs()
        >>> found = condition_test(distances, "aaabcd", alternative="closer")
        >>> found.p_value, found.arrangements
        (0.05, 20)
        >>> pitman = condition_test(distances, "aaabcd", alternative="closer", permute="pairs")
        >>> round(pitman.p_value, 4), pitman.arrangements
        (0.0022, 455)
    """
    for name, given, allowed in (
        ("statistic", statistic, ("mean", "mann_whitney")),
        ("permute", permute, ("runs", "pairs")),
        ("alternative", alternative, ("two-sided", "closer")),
    ):
        if given not in allowed:
            raise ValueError(f"{name}={given!r}: {' or '.join(map(repr, allowed))} is needed")
    if limit < 1:
        raise ValueError(f"limit={limit}: a positive number is needed")
    matrix = _matrix(distances)
    numbers = {condition: number for number, condition in enumerate(dict.fromkeys(conditions))}
    labels = np.array([numbers[condition] for condition in conditions])
    if len(labels) != len(matrix):
        raise ValueError(f"conditions: {len(matrix)} labels are needed, found {len(labels)}")
    rows, columns = np.triu_indices(len(matrix), 1)
    values, same = matrix[rows, columns], labels[rows] == labels[columns]
    if not same.any() or same.all():
        raise ValueError(
            f"conditions {list(conditions)}: two runs of one condition and two of different ones "
            "are needed"
        )
    if permute == "pairs":
        others, exact = _choices(same, limit, seed)
    else:
        others, exact = _relabelled(labels, rows, columns, limit, seed)
    scores = values if statistic == "mean" else _midranks(values)
    inside = int(same.sum())
    whole = scores.sum()

    def gaps(masks: np.ndarray) -> np.ndarray:
        within = masks.astype(np.float64) @ scores
        gap: np.ndarray = (whole - within) / (len(scores) - inside) - within / inside
        return gap

    found, null = float(gaps(same[None])[0]), gaps(others)
    if alternative == "two-sided":
        null, bound = np.abs(null), abs(found)
    else:
        bound = found
    # Scores may be large and their gap zero, so that rounding is measured by the scores.
    as_large = int((null >= bound - tolerance(float(np.abs(scores).max()))).sum())
    arrangements = len(null) + (not exact)
    u = float(scores[same].sum() - inside * (inside + 1) / 2)
    return ConditionTest(
        float(values[same].mean()),
        float(values[~same].mean()),
        found if statistic == "mean" else u,
        (as_large + (not exact)) / arrangements,
        arrangements,
        exact,
    )


def _matrix(distances: Tensor) -> np.ndarray:
    matrix: np.ndarray = distances.detach().to("cpu", torch.float64).numpy()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 3:
        raise ValueError(
            f"distances: shape (R, R) with R from 3 is needed, found {tuple(distances.shape)}"
        )
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    if not np.isfinite(pairs).all() or not np.allclose(matrix, matrix.T, equal_nan=True):
        raise ValueError("distances: finite numbers are needed, the same both ways")
    return matrix


def _choices(same: np.ndarray, limit: int, seed: int) -> tuple[np.ndarray, bool]:
    """Which pairs could have been of one condition if any pairs could."""
    number, inside = len(same), int(same.sum())
    if comb(number, inside) <= limit:
        chosen = np.array(list(combinations(range(number), inside)))
        masks = np.zeros((len(chosen), number), np.bool_)
        masks[np.arange(len(chosen))[:, None], chosen] = True
        return masks, True
    random = np.random.default_rng(seed)
    return random.permuted(np.tile(same, (limit, 1)), axis=1), False


def _relabelled(
    labels: np.ndarray, rows: np.ndarray, columns: np.ndarray, limit: int, seed: int
) -> tuple[np.ndarray, bool]:
    """Which pairs could have been of one condition if any runs could have had the labels."""
    sizes = sorted(Counter(labels.tolist()).values())
    ways = factorial(len(labels)) // prod(map(factorial, sizes))
    ways //= prod(factorial(number) for number in Counter(sizes).values())
    if ways <= limit:
        others = np.array([*_partitions(len(labels), sizes)])
    else:
        random = np.random.default_rng(seed)
        others = random.permuted(np.tile(labels, (limit, 1)), axis=1)
    return others[:, rows] == others[:, columns], ways <= limit


def _partitions(number: int, sizes: Sequence[int]) -> Iterator[list[int]]:
    """All ways to part runs into groups of these sizes, as the number of each run's group.

    Example:
        >>> list(_partitions(3, [1, 2]))
        [[0, 1, 1], [0, 0, 1], [0, 1, 0]]
    """

    def part(free: tuple[int, ...], left: Counter[int], group: int) -> Iterator[dict[int, int]]:
        if not free:
            yield {}
            return
        first, rest = free[0], free[1:]
        for size in sorted(size for size in left if left[size]):
            for companions in combinations(rest, size - 1):
                others = tuple(run for run in rest if run not in companions)
                for tail in part(others, left - Counter([size]), group + 1):
                    yield {**tail, **dict.fromkeys((first, *companions), group)}

    for found in part(tuple(range(number)), Counter(sizes), 0):
        yield [found[run] for run in range(number)]


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[place]
    return ranks
