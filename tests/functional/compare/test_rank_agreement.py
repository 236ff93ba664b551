"""Rank correlations against SciPy, and how often their intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geomhooks.functional.compare import rank_agreement
from geomhooks.functional.compare.ranks import places, spearman


def tied(seed: int, number: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers, many of them equal; the first two are not."""
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, 6, (2, number)).astype(float)
    one[:2], other[:2] = (0, 1), (3, 4)
    return one, other


@given(st.integers(0, 2**31))
def test_both_coefficients_with_ties(seed: int) -> None:
    one, other = tied(seed)
    given = torch.from_numpy(one), torch.from_numpy(other)
    rho, tau = rank_agreement(*given), rank_agreement(*given, coefficient="kendall")
    assert rho.value == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
    assert tau.value == pytest.approx(stats.kendalltau(one, other).statistic, abs=1e-12)
    assert rho.number == tau.number == 15


@given(st.integers(0, 2**31))
def test_a_weight_is_how_often_an_entry_stands(seed: int) -> None:
    one, other = tied(seed)
    times = np.random.default_rng(seed + 1).integers(0, 4, len(one))
    times[:2] = 1
    expected = stats.spearmanr(np.repeat(one, times), np.repeat(other, times)).statistic
    assert spearman(places(one), places(other), times) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**31))
def test_laws(seed: int) -> None:
    """Only the order counts; turning one side around turns the sign; sides may be swapped."""
    one, other = map(torch.from_numpy, tied(seed))
    value = rank_agreement(one, other).value
    assert rank_agreement(one.exp(), 3 * other - 7).value == pytest.approx(value, abs=1e-12)
    assert rank_agreement(-one, other).value == pytest.approx(-value, abs=1e-12)
    assert rank_agreement(other, one).value == pytest.approx(value, abs=1e-12)


def test_interval_on_the_scale_of_z() -> None:
    """By hand: rho = 1 - 6 * 8 / 990."""
    other = torch.tensor([1.0, 3, 2, 5, 4, 7, 6, 9, 8, 10])
    found = rank_agreement(torch.arange(10.0), other, level=0.9)
    rho = 1 - 48 / 990
    reach = stats.norm.ppf(0.95) * math.sqrt((1 + rho**2 / 2) / 7)
    assert found.value == pytest.approx(rho, abs=1e-12)
    expected = math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach)
    assert found.interval[:2] == pytest.approx(expected, abs=1e-9)
    tau = rank_agreement(torch.arange(10.0), other, coefficient="kendall")
    reach = stats.norm.ppf(0.975) * math.sqrt(0.437 / 6)
    assert tau.value == pytest.approx(37 / 45)
    expected = math.tanh(math.atanh(37 / 45) - reach), math.tanh(math.atanh(37 / 45) + reach)
    assert tau.interval[:2] == pytest.approx(expected, abs=1e-9)


def test_tokens_of_a_context_are_no_independent_ones() -> None:
    """Both models' numbers have a part that all tokens of a context share, each its own: no
    agreement. The interval over contexts holds zero about as often as it says; that over tokens
    seldom.
    """
    rng = np.random.default_rng(0)
    contexts = np.repeat(np.arange(30), 8)
    holds = {"contexts": 0, "tokens": 0}
    for repeat in range(100):
        one, other = (
            torch.from_numpy(rng.standard_normal(30)[contexts] + 0.3 * rng.standard_normal(240))
            for _ in range(2)
        )
        drawn = rank_agreement(one, other, torch.from_numpy(contexts), draws=200, seed=repeat)
        plain = rank_agreement(one, other)
        assert drawn.value == plain.value
        holds["contexts"] += drawn.interval.low <= 0 <= drawn.interval.high
        holds["tokens"] += plain.interval.low <= 0 <= plain.interval.high
    assert holds["contexts"] >= 87
    assert holds["tokens"] <= 65


def test_a_planted_agreement_is_found_and_identical_models_agree() -> None:
    rng = np.random.default_rng(1)
    shared = rng.standard_normal(400)
    one, other = (torch.from_numpy(shared + rng.standard_normal(400)) for _ in range(2))
    contexts = torch.arange(400) // 10
    found = rank_agreement(one, other, contexts, draws=300)
    assert 0.3 < found.interval.low < found.value < found.interval.high < 0.65
    assert "40 contexts" in found.interval.method
    again = rank_agreement(one, other, contexts, draws=300)
    assert found == again, "the seed decides"
    same = rank_agreement(one, one, contexts, draws=50)
    assert (same.value, same.interval.low, same.interval.high) == (1, 1, 1)
    tau = rank_agreement(one, other, contexts, draws=50, coefficient="kendall")
    assert 0 < tau.interval.low < tau.value < tau.interval.high < found.interval.high


def test_many_contexts_take_the_middle_of_the_draws() -> None:
    rng = np.random.default_rng(2)
    one = torch.from_numpy(rng.standard_normal(500))
    other = one + torch.from_numpy(rng.standard_normal(500))
    found = rank_agreement(one, other, torch.arange(500) // 2, draws=400)
    plain = rank_agreement(one, other)
    assert found.interval[:2] == pytest.approx(plain.interval[:2], abs=0.03)


def test_what_is_left_out_and_what_says_nothing() -> None:
    one = torch.tensor([1.0, math.nan, 2.0, 3.0, math.inf])
    found = rank_agreement(one, torch.tensor([1.0, 2.0, 3.0, 9.0, 4.0]))
    assert (found.value, found.number, found.left_out) == (1, 3, 2)
    assert math.isnan(found.interval.low), "three tokens leave no degree of freedom"
    flat = rank_agreement(torch.ones(9), torch.arange(9.0))
    assert math.isnan(flat.value)
    single = rank_agreement(torch.arange(9.0), torch.arange(9.0), torch.zeros(9))
    assert math.isnan(single.interval.low)
    assert "two or more are needed" in single.interval.method


def test_what_is_refused() -> None:
    numbers = torch.arange(5.0)
    with pytest.raises(ValueError, match=r"found first \(5,\), second \(4,\)$"):
        rank_agreement(numbers, numbers[:4])
    with pytest.raises(ValueError, match=r"second \(5,\), clusters \(3,\)"):
        rank_agreement(numbers, numbers, torch.zeros(3))
    with pytest.raises(ValueError, match=r"first: shape \(n,\) is needed, found \(5, 1\)"):
        rank_agreement(numbers[:, None], numbers)
    with pytest.raises(ValueError, match="1 of 5 tokens have finite numbers in both"):
        rank_agreement(numbers, torch.tensor([math.nan] * 4 + [1.0]))
    with pytest.raises(ValueError, match='"spearman" or "kendall" is needed'):
        rank_agreement(numbers, numbers, coefficient="pearson")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level=95: a number between 0 and 1"):
        rank_agreement(numbers, numbers, level=95)
