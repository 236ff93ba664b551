r"""Whether a series over checkpoints has settled, or wanders.

Two series that wander agree by chance far more often than tests say that take them for noise
(Granger & Newbold 1974), so that their changes are looked at instead. Two tests tell, from either
side: that of Dickey & Fuller takes for granted that a series wanders (has a unit root) and looks
for evidence against it; that of Kwiatkowski, Phillips, Schmidt & Shin (1992) takes for granted
that it is stationary. On a few dozen checkpoints both see only what is gross. By statsmodels.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError
from geomhooks.functional.compare.resampling import check_level

__all__ = ["Settled", "Stationarity", "settled", "stationarity"]

Trend = Literal["constant", "linear"]
TRENDS = {"constant": "c", "linear": "ct"}
FEWEST = 12  # checkpoints; with less, the tests' own regressions have no degrees of freedom


class Stationarity(NamedTuple):
    """Two tests of one series."""

    dickey_fuller: float
    """statistic of the augmented test of Dickey & Fuller, the lags chosen by Akaike's criterion"""
    wanders_p_value: float
    """its p-value: small where the series does not wander"""
    kpss: float
    """statistic of Kwiatkowski, Phillips, Schmidt & Shin"""
    stationary_p_value: float
    """its p-value: small where the series is not stationary; of a table from 0.01 to 0.1, and what
    lies outside is its end"""
    verdict: Literal["stationary", "wanders", "contradictory", "unclear"]
    """"stationary" or "wanders" where both tests say so; "contradictory" where both reject, as a
    series does that is neither; "unclear" where neither does, for want of data"""


class Settled(NamedTuple):
    """A series after as many differences as it took."""

    series: Tensor
    """(S - differences,) float64"""
    differences: int
    """how many times the change from one checkpoint to the next was taken"""
    tests: Stationarity
    """of that series; its verdict is "stationary" unless the most differences were not enough"""


def stationarity(series: Tensor, *, trend: Trend = "constant", level: float = 0.05) -> Stationarity:
    """Both tests of a series over checkpoints.

    Args:
        series: (S,) a number at each checkpoint, evenly spaced.
        trend: what a stationary series may be about: a "constant", or a "linear" trend.
        level: at which a test rejects.

    Raises:
        ValueError: another shape, fewer than 12 checkpoints, numbers that are not finite, or a
            series that does not vary.
        MissingExtraError: statsmodels is not installed.

    Example:
        >>> noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> stationarity(noise).verdict, stationarity(noise.cumsum(0)).verdict
        ('stationary', 'wanders')
    """
    if trend not in TRENDS:
        raise ValueError(f"trend={trend!r}: {' or '.join(map(repr, TRENDS))} is needed")
    check_level(level)
    values = checked_series(series, "series")
    tools = time_series_tools()
    with warnings.catch_warnings():
        # A p-value beyond its table comes with a warning, which the field says; and statsmodels
        # announces results of another class, whose first two entries are the same.
        warnings.simplefilter("ignore")
        augmented, unit_root, *_ = tools.adfuller(values, regression=TRENDS[trend])
        other, stationary, *_ = tools.kpss(values, regression=TRENDS[trend], nlags="auto")
    verdicts: dict[tuple[bool, bool], Any] = {
        (True, False): "stationary",
        (False, True): "wanders",
        (True, True): "contradictory",
        (False, False): "unclear",
    }
    verdict = verdicts[unit_root <= level, stationary <= level]
    return Stationarity(
        float(augmented), float(unit_root), float(other), float(stationary), verdict
    )


def settled(
    series: Tensor, *, most: int = 2, trend: Trend = "constant", level: float = 0.05
) -> Settled:
    """A series, or its differences, or theirs: the first that both tests call stationary.

    Args:
        series: (S,) a number at each checkpoint.
        most: differences to take at most.
        trend: as :func:`stationarity`.
        level: as there.

    Raises:
        ValueError: as :func:`stationarity`, of any series on the way; or ``most`` is negative.
        MissingExtraError: statsmodels is not installed.

    Example:
        >>> noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> settled(noise.cumsum(0)).differences
        1
    """
    if most < 0:
        raise ValueError(f"most={most}: a number from 0 is needed")
    values = series.detach().to("cpu", torch.float64)
    for taken in range(most + 1):
        tests = stationarity(values, trend=trend, level=level)
        if tests.verdict == "stationary" or taken == most:
            break
        values = values.diff()
    return Settled(values, taken, tests)


def checked_series(series: Tensor, name: str, fewest: int = FEWEST) -> np.ndarray:
    """(S,) float64 of a series that tests can be made of.

    Raises:
        ValueError: it is none.
    """
    if series.ndim != 1 or len(series) < fewest:
        raise ValueError(
            f"{name}: shape (S,) with S from {fewest} is needed, found {tuple(series.shape)}"
        )
    values: np.ndarray = series.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: some numbers are not finite; leave those checkpoints out")
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        raise ValueError(f"{name}: it does not vary, and so nothing can be tested")
    return values


def time_series_tools() -> Any:
    """The module ``statsmodels.tsa.stattools``.

    Raises:
        MissingExtraError: statsmodels is not installed.
    """
    try:
        from statsmodels.tsa import stattools
    except ImportError as error:
        raise MissingExtraError(
            "tests of time series need statsmodels: pip install 'geomhooks[compare]'"
        ) from error
    return stattools
