r"""How alike the rows of two matrices lie, whatever the bases are: CKA and Procrustes.

Two runs see the same n contexts and have a vector for each, such as ctx. Both numbers here are the
same when one side is rotated, moved, or scaled, so that they can be had of models with bases, and
widths, of their own. Columns are centred first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.compare.resampling import (
    Interval,
    check_level,
    jackknife_interval,
    permuted,
)
from geomhooks.functional.shapes import as_matrix

__all__ = ["Alikeness", "MatchedRows", "cka", "match_rows", "procrustes_distance"]


class Alikeness(NamedTuple):
    """How alike two sets of vectors lie, and how well that is known."""

    value: float
    interval: Interval
    p_value: float
    """of rows so alike when those of one side are shuffled"""
    expected: float
    """mean over shuffled rows: what vectors of these two shapes show if rows mean nothing"""


class MatchedRows(NamedTuple):
    """Rows that two tables have in common."""

    first: Tensor
    """(n,) indices into the first"""
    second: Tensor
    """(n,) into the second, the same ids in the same order"""


def match_rows(first: Tensor, second: Tensor) -> MatchedRows:
    """Rows of equal id, in ascending order of it.

    Ids say that contexts are the same only if they were given for that:
    ``watch.tokens(contexts=ids)``, or by ``geomhooks measure``, which makes them of the text.
    Without, each run numbers its contexts apart from all others', and nothing matches.

    Args:
        first: (C,) such as ``context_id`` of :class:`geomhooks.PosCtx`, all different.
        second: (C',).

    Raises:
        ValueError: other shapes, or an id stands twice.

    Example:
        >>> match_rows(torch.tensor([5, 7, 9]), torch.tensor([9, 8, 5]))
        MatchedRows(first=tensor([0, 2]), second=tensor([2, 0]))
    """
    for ids, name in ((first, "first"), (second, "second")):
        if ids.ndim != 1 or len(torch.unique(ids)) != len(ids):
            raise ValueError(f"{name}: ids (C,) that are all different are needed")
    second = second.to(first.device)
    order, other = first.argsort(), second.argsort()
    order = order[torch.isin(first[order], second)]
    other = other[torch.isin(second[other], first)]
    return MatchedRows(order, other)


def cka(
    first: Tensor,
    second: Tensor,
    *,
    unbiased: bool = True,
    groups: int = 40,
    level: float = 0.95,
    permutations: int = 199,
    seed: int = 0,
) -> Alikeness:
    r"""Linear centred kernel alignment: the correlation of the two sides' similarities of rows.

    With centred X and Y (Kornblith et al. 2019, arXiv 1905.00414)

    .. math:: \frac{|X^T Y|^2}{|X^T X| \, |Y^T Y|},

    in Frobenius norms, is between 0 and 1, and near 1 for anything whose width is not far below n,
    since each row is compared with itself. ``unbiased`` leaves those terms out, by the estimator
    :math:`HSIC_1` of Song et al. 2012 in place of all three (as Nguyen, Raghu & Kornblith 2021,
    arXiv 2010.15327); it is zero on average for sides that have nothing in common, and may be
    below.

    Args:
        first: (n, d) a row for each context; n from 4, of which 8 or more say something.
        second: (n, d') rows of the same contexts.
        unbiased: leave out what each row has with itself.
        groups: into which rows are dealt for the jackknife of the interval.
        level: of the interval.
        permutations: of the rows, for the p-value; NaN for 0.
        seed: of all draws.

    Returns:
        NaN where one side does not vary, or where what is left of its own variation without bias
        is not positive.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, or too few rows.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
        >>> turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
        >>> round(cka(rows, 3 * rows @ turn).value, 6)
        1.0
    """
    rows = _same_rows(first, second)
    similar = [side @ side.T for side in rows]
    product = _unbiased_product if unbiased else _product

    def alignment(one: Tensor, other: Tensor) -> float:
        k, m = similar[0][one][:, one], similar[1][other][:, other]
        own = product(k, k), product(m, m)
        return product(k, m) / math.sqrt(own[0] * own[1]) if min(own) > 0 else math.nan

    within = (-1.0 if unbiased else 0.0, 1.0)
    return _alikeness(alignment, len(rows[0]), within, groups, level, permutations, seed)


def procrustes_distance(
    first: Tensor,
    second: Tensor,
    *,
    groups: int = 40,
    level: float = 0.95,
    permutations: int = 199,
    seed: int = 0,
) -> Alikeness:
    r"""What is left between two sets of rows after the best rotation.

    With centred X and Y of norm 1,

    .. math:: \min_Q |X Q - Y|^2 = 2 - 2 |X^T Y|_*,

    the sum of the singular values, over all orthogonal Q (Schönemann 1966; Ding, Denain &
    Steinhardt 2021, arXiv 2108.01661): 0 for the same shape, at most 2. Rows of different widths
    are made up with zeros. With n not far above the width, a rotation can fit much of what means
    nothing: compare with ``expected``.

    Args:
        first: (n, d) a row for each context.
        second: (n, d') rows of the same contexts.
        groups: into which rows are dealt for the jackknife of the interval.
        level: of the interval.
        permutations: of the rows, for the p-value; NaN for 0.
        seed: of all draws.

    Returns:
        NaN where one side does not vary.

    Raises:
        ValueError: as :func:`cka`.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> square = torch.tensor([[1.0, 1], [1, -1], [-1, -1], [-1, 1]])
        >>> found = procrustes_distance(square, 5 + square[:, [1, 0]] * 2)
        >>> abs(round(found.value, 6))
        0.0
    """

    def nuclear(matrix: Tensor) -> float:
        return float(torch.linalg.svdvals(matrix).sum())

    rows = _same_rows(first, second)

    def distance(one: Tensor, other: Tensor) -> float:
        x, y = rows[0][one], rows[1][other]
        x, y = x - x.mean(0), y - y.mean(0)
        norm = float(x.norm() * y.norm())
        return max(0.0, 2 - 2 * nuclear(x.T @ y) / norm) if norm > 0 else math.nan

    number = len(rows[0])
    return _alikeness(distance, number, (0.0, 2.0), groups, level, permutations, seed, nearer=True)


def _alikeness(
    statistic: Callable[[Tensor, Tensor], float],
    number: int,
    within: tuple[float, float],
    groups: int,
    level: float,
    permutations: int,
    seed: int,
    nearer: bool = False,
) -> Alikeness:
    """Value, interval and p-value of a statistic of indices into the rows of both sides."""
    every = torch.arange(number, device="cpu")
    value = statistic(every, every)
    # Four rows are needed for any number, so that the largest group has to leave as many behind.
    if number - math.ceil(number / min(max(2, groups), number)) >= 4 and not math.isnan(value):
        interval = jackknife_interval(
            lambda stay: statistic(stay, stay),
            *(value, number, level, groups, seed, "contexts", within),
        )
    else:
        check_level(level)
        interval = Interval(math.nan, math.nan, level, f"none of {number} contexts")
    sign = -1 if nearer else 1
    chance = permuted(
        lambda order: sign * statistic(every, order), sign * value, number, permutations, seed
    )
    return Alikeness(value, interval, chance.p_value, sign * chance.expected)


def _same_rows(first: Tensor, second: Tensor) -> list[Tensor]:
    """Both sides centred and of moderate size, in float64, in as few columns as they span."""
    found = []
    for side, name in ((first, "first"), (second, "second")):
        rows = as_matrix(side.detach(), name, "(n, d)").cpu().double()
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{name}: some entries are not finite")
        rows = rows - rows.mean(0)
        largest = rows.abs().max()
        if largest > 0:
            rows = rows / largest
        if rows.shape[1] > rows.shape[0]:  # a rotation, which changes nothing here
            rows = torch.linalg.qr(rows.T).R.T
        found.append(rows)
    if len(found[0]) != len(found[1]) or len(found[0]) < 4:
        raise ValueError(
            "rows of the same four or more contexts are needed, found "
            f"first {tuple(first.shape)} and second {tuple(second.shape)}"
        )
    return found


def _product(k: Tensor, m: Tensor) -> float:
    """Of two matrices of similarities, centred."""
    return float((_centred(k) * m).sum())


def _centred(k: Tensor) -> Tensor:
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


def _unbiased_product(k: Tensor, m: Tensor) -> float:
    """HSIC_1, times n (n - 3), of two matrices of similarities whose diagonal does not count."""
    number = len(k)
    off = 1 - torch.eye(number, dtype=k.dtype, device=k.device)
    k, m = k * off, m * off
    sums = k.sum(0), m.sum(0)
    whole = float(sums[0].sum() * sums[1].sum()) / ((number - 1) * (number - 2))
    return float((k * m).sum()) + whole - 2 * float(sums[0] @ sums[1]) / (number - 2)
