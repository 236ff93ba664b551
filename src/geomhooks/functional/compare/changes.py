r"""Whether two curves over the checkpoints of a run move together.

:func:`geomhooks.functional.compare.curve_agreement` correlates the numbers at each checkpoint;
:func:`geomhooks.functional.compare.change_agreement` what changes between two checkpoints a < b,
:math:`x_b - x_a` with :math:`q_b - q_a`, as Mickus & Vazquez do for the parts of a decomposition
and the quality of the translations.

S checkpoints have S(S-1)/2 pairs, which are not so many observations: each checkpoint is in S - 1
of them, and those that follow each other are alike. Intervals therefore come from a circular block
bootstrap over checkpoints (Politis & Romano 1992). They are about the checkpoints of one run: how
another run would go on, only other runs tell. And two curves that both rise agree, whatever they
have to do with each other; ``largest_gap=1`` looks at changes from one checkpoint to the next,
where a common trend is out of the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.functional.compare.ranks import pearson, places, spearman
from geomhooks.functional.compare.resampling import Interval, percentile_interval
from geomhooks.functional.compare.warping import z_normalise

__all__ = ["ChangeAgreement", "change_agreement", "curve_agreement"]


class ChangeAgreement(NamedTuple):
    """A correlation over checkpoints or over pairs of them."""

    value: float
    interval: Interval
    number: int
    """of checkpoints, of their differences, or of pairs, that were correlated"""


def change_agreement(
    values: Tensor,
    quality: Tensor,
    *,
    pairs: int | None = 20_000,
    largest_gap: int | None = None,
    block: int | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> ChangeAgreement:
    r"""Spearman's correlation of change with change, over pairs of checkpoints a < b.

    Bringing the series to deviation 1 before, as is published, changes nothing here, unless its
    sign is turned on the way (:func:`geomhooks.functional.compare.z_normalise`).

    Args:
        values: (S,) a number at each checkpoint; or (S, N), whose change is then the sum over the N
            of :math:`|z_b - z_a|`, each normalised.
        quality: (S,) such as BLEU, or minus the loss.
        pairs: at most so many are drawn from all; ``None`` takes all. Published are 1,000.
        largest_gap: only pairs at most so many checkpoints apart.
        block: checkpoints in a block of the bootstrap; by default the cube root of S, rounded up
            (Hall, Horowitz & Jing 1995). Take more where numbers stay alike for longer.
        level: of the interval.
        draws: of the bootstrap. In each, a pair stands as often as its two checkpoints together.
        seed: of all draws.

    Returns:
        NaN where one of the two never changes.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, fewer than three
            checkpoints, or no pair.

    Example:
        >>> steps = torch.arange(30.0)
        >>> change_agreement(steps.sqrt(), steps, largest_gap=1).number
        29
        >>> round(change_agreement(-steps.square(), steps).value, 2)
        -0.9
    """
    number = _checkpoints(values, quality, ("values", "quality"))
    if largest_gap is not None and largest_gap < 1:
        raise ValueError(f"largest_gap={largest_gap}: a positive number is needed")
    if pairs is not None and pairs < 1:
        raise ValueError(f"pairs={pairs}: a positive number, or None for all, is needed")
    early, late = np.triu_indices(number, 1)
    if largest_gap is not None:
        near = late - early <= largest_gap
        early, late = early[near], late[near]
    if pairs is not None and pairs < len(early):
        chosen = np.random.default_rng(seed).choice(len(early), pairs, replace=False)
        early, late = early[chosen], late[chosen]
    x, q = (side.detach().to("cpu", torch.float64) for side in (values, quality))
    if x.ndim == 2:
        x = z_normalise(x)
    change = (x[late] - x[early]).numpy()
    change = np.abs(change).sum(1) if change.ndim == 2 else change
    order = places(change), places((q[late] - q[early]).numpy())

    def correlation(times: np.ndarray) -> float:
        return spearman(*order, times[early] * times[late])

    value, interval = _with_interval(correlation, number, block, level, draws, seed)
    return ChangeAgreement(value, interval, len(early))


def curve_agreement(
    first: Tensor,
    second: Tensor,
    *,
    coefficient: Literal["spearman", "pearson"] = "spearman",
    differences: int = 0,
    block: int | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> ChangeAgreement:
    """Correlation of two curves at the same checkpoints.

    Such as one number of two runs, or of free and of forced decoding of one run.

    Args:
        first: (S,) a number at each checkpoint.
        second: (S,).
        coefficient: Spearman's, or Pearson's.
        differences: how many times to take the change from one checkpoint to the next of both
            before, so that a trend that both have is out of the way.
        block: as :func:`change_agreement`.
        level: of the interval.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        NaN where one of the curves is flat.

    Raises:
        ValueError: as :func:`change_agreement`, or too few checkpoints for so many differences.

    Example:
        >>> steps = torch.arange(9.0)
        >>> curve_agreement(steps, steps.exp()).value
        1.0
        >>> round(curve_agreement(steps, steps.exp(), coefficient="pearson").value, 2)
        0.74
        >>> curve_agreement(steps, steps.exp(), differences=1).value
        nan
    """
    if coefficient not in ("spearman", "pearson"):
        raise ValueError(f'coefficient={coefficient!r}: "spearman" or "pearson" is needed')
    number = _checkpoints(first, second, ("first", "second"))
    if first.ndim != 1:
        raise ValueError(f"first: shape (S,) is needed, found {tuple(first.shape)}")
    if not 0 <= differences <= number - 3:
        raise ValueError(
            f"differences={differences}: 0 to {number - 3} can be taken of {number} checkpoints"
        )
    sides = [
        np.diff(side.detach().to("cpu", torch.float64).numpy(), differences)
        for side in (first, second)
    ]
    order = sides if coefficient == "pearson" else [places(side) for side in sides]
    correlate = pearson if coefficient == "pearson" else spearman

    def correlation(times: np.ndarray) -> float:
        return correlate(order[0], order[1], times)

    number -= differences
    return ChangeAgreement(*_with_interval(correlation, number, block, level, draws, seed), number)


def _with_interval(
    correlation: Callable[[np.ndarray], float],
    number: int,
    block: int | None,
    level: float,
    draws: int,
    seed: int,
) -> tuple[float, Interval]:
    """The correlation, and the middle of what it is in bootstrap samples of checkpoints."""
    block = math.ceil(number ** (1 / 3)) if block is None else block
    if not 1 <= block <= number:
        raise ValueError(f"block={block}: 1 to {number}, the checkpoints, are possible")
    if draws < 1:
        raise ValueError(f"draws={draws}: a positive number is needed")
    random = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        starts = random.integers(number, size=-(-number // block))
        chosen = (starts[:, None] + np.arange(block)).reshape(-1)[:number] % number
        found[draw] = correlation(np.bincount(chosen, minlength=number))
    method = f"bootstrap over {number} checkpoints in blocks of {block}"
    return correlation(np.ones(number)), percentile_interval(found, level, method)


def _checkpoints(values: Tensor, other: Tensor, names: tuple[str, str]) -> int:
    if values.ndim not in (1, 2) or other.ndim != 1 or len(values) != len(other):
        raise ValueError(
            "a number of each at the same checkpoints is needed, found "
            f"{names[0]} {tuple(values.shape)} and {names[1]} {tuple(other.shape)}"
        )
    if len(other) < 3:
        raise ValueError(f"three checkpoints or more are needed, found {len(other)}")
    for name, side in zip(names, (values, other), strict=True):
        if not bool(torch.isfinite(side).all()):
            raise ValueError(f"{name}: some numbers are not finite; leave those checkpoints out")
    return len(other)
