"""Stationarity and Granger's test: planted series are told apart, and noise passes for nothing."""

from __future__ import annotations

import builtins
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from geomhooks.errors import MissingExtraError
from geomhooks.functional.compare import granger_test, holm, settled, stationarity


def noise(seed: int, number: int = 200) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(number))


def autoregressive(seed: int, number: int = 200, by: float = 0.5) -> torch.Tensor:
    found, e = np.zeros(number), noise(seed, number).numpy()
    for t in range(1, number):
        found[t] = by * found[t - 1] + e[t]
    return torch.from_numpy(found)


def test_planted_kinds_of_series() -> None:
    """Noise, what forgets, what wanders, and what rises steadily."""
    verdicts: dict[str, list[str]] = {"noise": [], "forgets": [], "wanders": [], "rises": []}
    about_trend = []
    for seed in range(20):
        rising = noise(seed) + 0.1 * torch.arange(200)
        for name, series in (
            ("noise", noise(seed)),
            ("forgets", autoregressive(seed)),
            ("wanders", noise(seed).cumsum(0)),
            ("rises", rising),
        ):
            verdicts[name].append(stationarity(series).verdict)
        about_trend.append(stationarity(rising, trend="linear").verdict)
    assert verdicts["noise"].count("stationary") >= 17
    assert verdicts["forgets"].count("stationary") >= 16
    assert verdicts["wanders"].count("wanders") >= 12
    assert verdicts["wanders"].count("stationary") <= 1
    assert verdicts["rises"].count("stationary") == 0
    assert about_trend.count("stationary") >= 17


def test_the_tests_are_statsmodels_own() -> None:
    from statsmodels.tsa.stattools import adfuller

    series = autoregressive(3)
    found = stationarity(series)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of another class of results to come
        expected = adfuller(series.numpy(), regression="c", autolag="AIC")
    assert found[:2] == pytest.approx(tuple(expected[:2]))
    assert 0.01 <= found.stationary_p_value <= 0.1


def test_differences_until_it_is_settled() -> None:
    counts = [
        [settled(series).differences for series in (n, n.cumsum(0), n.cumsum(0).cumsum(0))]
        for n in map(noise, range(12))
    ]
    for kind, expected in enumerate((0, 1, 2)):
        assert sum(row[kind] == expected for row in counts) >= 9
    twice = settled(noise(0).cumsum(0), most=1)
    torch.testing.assert_close(twice.series, noise(0)[1:])
    never = settled(noise(0).cumsum(0), most=0)
    assert (never.differences, never.tests.verdict, len(never.series)) == (0, "wanders", 200)


def test_f_test_of_each_lag() -> None:
    """Against both regressions written out."""
    x, y = noise(0, 60), noise(1, 60) + 0.4 * noise(0, 60).roll(1)
    found = granger_test(x, y, most_lags=4)
    assert (found.number, len(found.p_values)) == (60, 4)
    for lags in range(1, 5):
        own, both = ([y[lags - 1 - lag : 59 - lag] for lag in range(lags)] for _ in range(2))
        both += [x[lags - 1 - lag : 59 - lag] for lag in range(lags)]
        left = []
        for columns in (own, both):
            table = torch.stack([torch.ones(60 - lags, dtype=torch.float64), *columns], 1)
            rest = y[lags:] - table @ torch.linalg.lstsq(table, y[lags:, None]).solution[:, 0]
            left.append(float(rest @ rest))
        freedom = 60 - lags - 2 * lags - 1
        f = (left[0] - left[1]) / lags / (left[1] / freedom)
        assert float(found.p_values[lags - 1]) == pytest.approx(stats.f.sf(f, lags, freedom))
    assert found.uncorrected == float(found.p_values.min())
    assert found.p_value == pytest.approx(min(1, 4 * found.uncorrected))
    assert found.lags == 1 + int(found.p_values.argmin())


def test_planted_causes_are_found_and_noise_is_not() -> None:
    """The published rule takes noise for a cause several times as often as it says."""
    planted, back, published, corrected = 0, 0, 0, 0
    for seed in range(120):
        x, own = noise(2 * seed, 80), noise(2 * seed + 1, 80)
        if seed < 10:
            effect = 0.7 * x.roll(3) + own
            planted += granger_test(x, effect).p_value <= 0.01
            back += granger_test(effect, x).p_value <= 0.01
        unrelated = granger_test(x, own)
        assert len(unrelated.p_values) == 15
        published += unrelated.uncorrected <= 0.01
        corrected += unrelated.p_value <= 0.01
    assert planted >= 8
    assert back <= 1
    assert corrected <= 4
    assert published > max(4, corrected)


def test_few_checkpoints_have_few_lags() -> None:
    assert len(granger_test(noise(0, 12), noise(1, 12)).p_values) == 3
    assert len(granger_test(noise(0, 43), noise(1, 43)).p_values) == 13
    assert granger_test(noise(0, 20), 2 * noise(0, 20)).p_value > 0.9, "no cause of itself"


def test_holm() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(30) ** 3
    expected = multipletests(p, method="holm")[1]
    np.testing.assert_allclose(holm(torch.from_numpy(p)).numpy(), expected)
    found = holm([0.02, math.nan, 0.01]).tolist()
    assert found[::2] == [0.02, 0.02]
    assert math.isnan(found[1])
    assert holm([]).shape == (0,)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"series: shape \(S,\) with S from 12 is needed, found"):
        stationarity(torch.ones(11))
    with pytest.raises(ValueError, match="series: it does not vary"):
        stationarity(torch.full((20,), 3.0))
    with pytest.raises(ValueError, match="trend='c': 'constant' or 'linear' is needed"):
        stationarity(noise(0), trend="c")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level=1: a number between 0 and 1"):
        stationarity(noise(0), level=1)
    with pytest.raises(ValueError, match="most=-1: a number from 0"):
        settled(noise(0), most=-1)
    with pytest.raises(ValueError, match=r"cause: some numbers are not finite; leave those"):
        granger_test(noise(0).log(), noise(1))
    with pytest.raises(ValueError, match=r"found cause \(200,\) and effect \(199,\)"):
        granger_test(noise(0), noise(1)[1:])
    late = torch.zeros(20).double()
    late[-1] = 1
    with pytest.raises(ValueError, match=r"one stays the same for long, .* that 6 lags cannot be"):
        granger_test(late, noise(0, 20))
    with pytest.raises(ValueError, match="most_lags=0"):
        granger_test(noise(0), noise(1), most_lags=0)
    with pytest.raises(ValueError, match=r"p_values: numbers \(m,\) from 0 to 1"):
        holm([0.5, 1.5])
    own = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("statsmodels"):
            raise ImportError(name)
        return own(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="pip install 'geomhooks\\[compare\\]'"):
        stationarity(noise(0))
