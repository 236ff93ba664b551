"""Change against change over pairs of checkpoints, against SciPy on the pairs written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geomhooks.functional.compare import change_agreement, curve_agreement


def walk(seed: int, number: int = 60) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(number).cumsum())


@given(st.integers(0, 2**31), st.sampled_from([None, 1, 4]))
def test_all_pairs(seed: int, largest_gap: int | None) -> None:
    values, quality = walk(seed, 12), walk(seed + 1, 12)
    pairs = [
        (a, b) for a, b in combinations(range(12), 2) if largest_gap is None or b - a <= largest_gap
    ]
    changes = [[float(s[b] - s[a]) for a, b in pairs] for s in (values, quality)]
    found = change_agreement(values, quality, largest_gap=largest_gap, draws=2)
    assert found.value == pytest.approx(stats.spearmanr(*changes).statistic, abs=1e-12)
    assert found.number == len(pairs)
    again = change_agreement(5 * values + 2, quality.exp(), largest_gap=largest_gap, draws=2)
    assert again.number == len(pairs)
    turned = change_agreement(-values, quality, largest_gap=largest_gap, draws=2)
    assert turned.value == pytest.approx(-found.value, abs=1e-12), "the sign is the series' own"


def test_several_scalars_change_by_the_sum_of_their_parts() -> None:
    table = torch.stack([walk(0, 15), 100 * walk(1, 15), walk(2, 15)], 1)
    quality = walk(3, 15)
    scores = stats.zscore(table.numpy())
    pairs = list(combinations(range(15), 2))
    total = [np.abs(scores[b] - scores[a]).sum() for a, b in pairs]
    expected = stats.spearmanr(total, [float(quality[b] - quality[a]) for a, b in pairs]).statistic
    assert change_agreement(table, quality, draws=2).value == pytest.approx(expected, abs=1e-12)


def test_sampled_pairs_are_near_all_of_them() -> None:
    values, quality = walk(0, 120), walk(1, 120) + walk(0, 120)
    whole = change_agreement(values, quality, pairs=None, draws=2)
    assert whole.number == 120 * 119 // 2
    found = [
        change_agreement(values, quality, pairs=1000, seed=seed, draws=2) for seed in range(10)
    ]
    assert {one.number for one in found} == {1000}
    assert len({one.value for one in found}) > 1
    assert np.mean([one.value for one in found]) == pytest.approx(whole.value, abs=0.03)


def test_a_bootstrap_sample_is_pairs_of_its_checkpoints() -> None:
    """With one block, which is all checkpoints turned around, every sample is the whole."""
    values, quality = walk(0, 20), walk(1, 20)
    found = change_agreement(values, quality, block=20, draws=5)
    assert found.interval[:2] == pytest.approx((found.value, found.value))
    curve = curve_agreement(values, quality, block=20, draws=5)
    assert curve.interval[:2] == pytest.approx((curve.value, curve.value))
    assert curve.value == pytest.approx(stats.spearmanr(values, quality).statistic)


def test_planted_and_unrelated_changes() -> None:
    """Both runs rise. What moves with quality from step to step is found, what does not is not."""
    rng = np.random.default_rng(0)
    trend = np.linspace(0, 30, 120)
    holds, found, trending = 0, [], []
    for seed in range(30):
        shared, own, other = rng.standard_normal((3, 120))
        quality, coupled, free = (
            torch.from_numpy(trend + part.cumsum()) for part in (shared, shared + 0.5 * own, other)
        )
        options = {"largest_gap": 1, "draws": 200, "seed": seed}
        planted = change_agreement(coupled, quality, **options)
        found.append(planted.interval.low > 0.5)
        null = change_agreement(free, quality, **options)
        holds += null.interval.low <= 0 <= null.interval.high
        # What the trend alone does to changes over longer times:
        trending.append(change_agreement(free, quality, draws=2).value)
    assert all(found)
    assert np.mean(trending) > 0.4
    assert holds >= 24


def test_curves_that_wander_need_blocks() -> None:
    """Slow noise: blocks of one checkpoint take it for many observations, long ones do not."""
    holds = {1: 0, 20: 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        one, other = (
            torch.from_numpy(np.convolve(rng.standard_normal(220), np.ones(12), "valid"))
            for _ in range(2)
        )
        for block in holds:
            found = curve_agreement(one, other, block=block, draws=200, seed=seed)
            holds[block] += found.interval.low <= 0 <= found.interval.high
    assert holds[20] >= 48
    assert holds[1] <= 42


def test_identical_curves() -> None:
    found = curve_agreement(walk(0), walk(0), draws=50)
    assert (found.value, found.interval.low, found.interval.high) == (1, 1, 1)
    assert found.interval.method == "bootstrap over 60 checkpoints in blocks of 4"
    assert np.isnan(curve_agreement(torch.ones(9), torch.arange(9.0), draws=2).value)


def test_what_is_refused() -> None:
    numbers = torch.arange(5.0)
    with pytest.raises(ValueError, match=r"found values \(5,\) and quality \(4,\)"):
        change_agreement(numbers, numbers[:4])
    with pytest.raises(ValueError, match="three checkpoints or more are needed, found 2"):
        curve_agreement(numbers[:2], numbers[:2])
    with pytest.raises(ValueError, match="quality: some numbers are not finite"):
        change_agreement(numbers, numbers / 0)
    with pytest.raises(ValueError, match=r"first: shape \(S,\) is needed, found \(5, 2\)"):
        curve_agreement(torch.ones(5, 2), numbers)
    for options, message in (
        ({"largest_gap": 0}, "largest_gap=0"),
        ({"pairs": 0}, "pairs=0"),
        ({"block": 6}, "block=6: 1 to 5"),
        ({"draws": 0}, "draws=0"),
        ({"level": 1.0}, "level=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            change_agreement(numbers, numbers, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("coefficient", ["spearman", "pearson"])
@pytest.mark.parametrize("differences", [0, 1, 2])
def test_curves_and_their_differences(coefficient: str, differences: int) -> None:
    first, second = walk(0, 25), walk(1, 25) + 0.5 * walk(0, 25)
    found = curve_agreement(first, second, coefficient=coefficient, differences=differences)
    sides = [np.diff(side.numpy(), differences) for side in (first, second)]
    expected = getattr(stats, f"{coefficient}r")(*sides).statistic
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.number == 25 - differences
    assert found.interval.low <= found.value <= found.interval.high


def test_of_curves_with_one_trend_differences_tell_which_belong_together() -> None:
    trend = torch.linspace(0, 30, 80).double()
    shared, own, other = (walk(seed, 80).diff() for seed in (5, 6, 7))
    one, coupled, free = (trend[1:] + part for part in (shared, shared + 0.5 * own, other))
    assert curve_agreement(one, free, draws=2).value > 0.9
    found = [curve_agreement(one, side, differences=1, draws=200) for side in (coupled, free)]
    assert found[0].interval.low > 0.6
    assert found[1].interval.low < 0.1


def test_what_curves_are_refused() -> None:
    with pytest.raises(ValueError, match="coefficient='kendall'"):
        curve_agreement(walk(0), walk(1), coefficient="kendall")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="differences=3: 0 to 2 can be taken of 5 checkpoints"):
        curve_agreement(walk(0, 5), walk(1, 5), differences=3)
    flat = curve_agreement(torch.full((9,), 0.1), walk(0, 9), coefficient="pearson", draws=2)
    assert np.isnan(flat.value)
