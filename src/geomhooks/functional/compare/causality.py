r"""Whether what one series was tells what another will be, beyond what that one was itself.

With p lags of each, Granger's test compares

.. math:: y_t = a + \sum_{l=1}^{p} b_l y_{t-l} + \sum_{l=1}^{p} c_l x_{t-l} + e_t

with the same without x, by the F-test of c = 0 (Granger 1969; by statsmodels). It says of
"causes" no more than that, and takes both series for stationary: take differences before
(:func:`geomhooks.functional.compare.settled`).

Mickus & Vazquez try p = 1 to 15 and call x a cause where the smallest of the 15 p-values is at
most .01, for 720 pairs of series. The smallest of several p-values is none: of two series of noise
that have nothing to do with each other, that rule calls one a cause of the other in 8 % of cases
with 41 checkpoints (which allow 13 lags), and in 3 to 4 % with 200 or 585, as many as published:
some 30 of 720. What is valid, whatever the p-values have to do with each other, is to multiply the
smallest by how many there were (Bonferroni), and then to correct for the number of pairs of series
(:func:`geomhooks.functional.compare.holm`).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomhooks.functional.compare.stationarity import checked_series, time_series_tools

__all__ = ["GrangerTest", "granger_test", "holm"]


class GrangerTest(NamedTuple):
    """Granger's test at several numbers of lags."""

    p_value: float
    """the smallest of the lags' p-values times their number, at most 1"""
    uncorrected: float
    """the smallest of the lags' p-values, as published; it is not a p-value"""
    lags: int
    """the number of lags that the smallest has"""
    p_values: Tensor
    """(P,) float64, of 1 to P lags"""
    number: int
    """of checkpoints"""


def granger_test(cause: Tensor, effect: Tensor, *, most_lags: int = 15) -> GrangerTest:
    """Whether the past of one series helps to tell the next value of another.

    Args:
        cause: (S,) a number at each checkpoint, such as a term's indicator.
        effect: (S,) such as BLEU.
        most_lags: P; fewer where there are not more than 3 P + 1 checkpoints. Few are better: with
            many, on a short series, the regression has hardly a degree of freedom left.

    Raises:
        ValueError: shapes that do not fit, fewer than 12 checkpoints, numbers that are not finite,
            a series that does not vary, or one that leaves nothing to be tested.
        MissingExtraError: statsmodels is not installed.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> cause, noise = torch.randn(2, 80, generator=generator)
        >>> effect = cause.roll(2) + 0.5 * noise
        >>> found, back = granger_test(cause, effect), granger_test(effect, cause)
        >>> found.p_value < 1e-6, found.p_values[0] > 0.1, back.p_value > 0.1
        (True, tensor(True), True)
    """
    if most_lags < 1:
        raise ValueError(f"most_lags={most_lags}: a positive number is needed")
    x, y = checked_series(cause, "cause"), checked_series(effect, "effect")
    if len(x) != len(y):
        raise ValueError(
            "both need a number at the same checkpoints, found cause "
            f"{tuple(cause.shape)} and effect {tuple(effect.shape)}"
        )
    lags = min(most_lags, (len(x) - 2) // 3)
    tools = time_series_tools()
    try:
        # It prints, and the argument against that is on its way out; and it warns of series that
        # are one and the same, which are no cause of each other.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = tools.grangercausalitytests(np.stack([y, x], 1), lags)
    except RuntimeError as error:
        raise ValueError(
            "cause and effect: one stays the same for long, or is told exactly by the other, so "
            f"that {lags} lags cannot be tested"
        ) from error
    p_values = [float(found[lag][0]["ssr_ftest"][1]) for lag in range(1, lags + 1)]
    smallest = min(p_values)
    return GrangerTest(
        min(1.0, lags * smallest),
        smallest,
        1 + p_values.index(smallest),
        torch.tensor(p_values, dtype=torch.float64, device="cpu"),
        len(x),
    )


def holm(p_values: Sequence[float] | Tensor) -> Tensor:
    """P-values of many tests, corrected so that all at once err at most as often as each says.

    Holm's step-down form of Bonferroni's correction (1979): the i-th smallest of m is multiplied by
    m - i + 1, and none may be smaller than one before it. Nothing is assumed of how tests depend on
    each other.

    Args:
        p_values: (m,); NaN stays NaN, and is no test.

    Returns:
        (m,) float64.

    Raises:
        ValueError: not a list of numbers from 0 to 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        tensor([0.0300, 0.0600, 0.0600], dtype=torch.float64)
    """
    values = torch.as_tensor(p_values, dtype=torch.float64, device="cpu").detach().numpy()
    there = np.isfinite(values)
    if values.ndim != 1 or ((values[there] < 0) | (values[there] > 1)).any():
        raise ValueError(
            f"p_values: numbers (m,) from 0 to 1 are needed, found shape {values.shape}"
            + (f" with {np.nanmin(values)} to {np.nanmax(values)}" if there.any() else "")
        )
    number = int(there.sum())
    corrected = np.full(len(values), np.nan)
    order = np.flatnonzero(there)[np.argsort(values[there], kind="stable")]
    scaled = values[order] * np.arange(number, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return torch.from_numpy(corrected)
