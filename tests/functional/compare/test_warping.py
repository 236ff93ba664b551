"""Dynamic time warping against the recursion itself; series keep their sign."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geomhooks.errors import MissingExtraError
from geomhooks.functional.compare import warping_distance, warping_distances, z_normalise


def by_recursion(x: np.ndarray, y: np.ndarray) -> float:
    table = np.full((len(x) + 1, len(y) + 1), np.inf)
    table[0, 0] = 0
    for i, a in enumerate(x, 1):
        for j, b in enumerate(y, 1):
            table[i, j] = abs(a - b) + min(table[i - 1, j], table[i, j - 1], table[i - 1, j - 1])
    return float(table[-1, -1])


@given(st.integers(0, 2**31), st.booleans())
def test_the_recursion(seed: int, normalise: bool) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.standard_normal(9).cumsum(), 3 * rng.standard_normal(12).cumsum()
    cut = other[:9]
    sides = [(s - s.mean()) / s.std() for s in (one, cut)] if normalise else [one, cut]
    found = warping_distance(torch.from_numpy(one), torch.from_numpy(other), normalise=normalise)
    assert found == pytest.approx(by_recursion(*sides), rel=1e-12)


def test_without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [torch.randn(20, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    fast = warping_distances(runs)
    monkeypatch.setattr("dtaidistance.dtw.dtw_cc", None)
    torch.testing.assert_close(warping_distances(runs), fast)


def test_all_pairs() -> None:
    steps = torch.arange(40.0)
    early, late = ((-(steps - peak).square() / 8).exp() for peak in (12, 28))
    found = warping_distances([early, late, (steps / 2).sin(), 5 * early + 3])
    torch.testing.assert_close(found, found.T)
    assert found.diagonal().tolist() == [0, 0, 0, 0]
    assert found[0, 3] < 1e-4, "neither scale nor offset counts"
    assert found[0, 1] < 0.01 * found[0, 2], "the same curve, but later"


@given(st.integers(0, 2**31))
def test_normalising_keeps_the_order(seed: int) -> None:
    """The published form turns each series around: distances stay, correlations change sign."""
    rng = np.random.default_rng(seed)
    series, quality = torch.from_numpy(rng.standard_normal((2, 10)))
    found = z_normalise(series)
    np.testing.assert_allclose(found.numpy(), stats.zscore(series.numpy()), atol=1e-12)
    published = (series.mean() - series) / series.std(correction=0)
    true = stats.spearmanr(series, quality).statistic
    assert stats.spearmanr(found, quality).statistic == pytest.approx(true)
    assert stats.spearmanr(published, quality).statistic == pytest.approx(-true)
    assert warping_distance(found, quality, normalise=False) == pytest.approx(
        warping_distance(-found, -quality, normalise=False)
    )


def test_columns_are_series() -> None:
    table = torch.randn(7, 3).double()
    torch.testing.assert_close(
        z_normalise(table), torch.stack([z_normalise(c) for c in table.T], 1)
    )


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(5.0)
    for flat in (torch.full((9,), 0.1), torch.full((9,), 1e6), torch.zeros(9)):
        with pytest.raises(ValueError, match="one does not vary"):
            z_normalise(flat)
    with pytest.raises(ValueError, match=r"S from 2 is needed, found \(1,\)"):
        z_normalise(torch.ones(1))
    with pytest.raises(ValueError, match="not finite; leave those checkpoints out"):
        z_normalise(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="runs: two or more are needed, found 1"):
        warping_distances([numbers])
    with pytest.raises(ValueError, match=r"of finite numbers is needed, found \(2, 5\)"):
        warping_distances([numbers, torch.ones(2, 5)])
    with pytest.raises(ValueError, match="of finite numbers is needed"):
        warping_distances([numbers, numbers / 0])
    monkeypatch.setitem(sys.modules, "dtaidistance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'geomhooks\[compare\]'"):
        warping_distance(numbers, numbers)
