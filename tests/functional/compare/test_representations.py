"""CKA and Procrustes against dense formulas and SciPy, and how often their intervals hold."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from geomhooks.errors import MissingExtraError
from geomhooks.functional.compare import cka, match_rows, procrustes_distance


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quick(function, *sides: torch.Tensor, **options) -> float:
    return function(*sides, permutations=0, groups=2, **options).value


def hsic_by_sums(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimate as a mean over all ordered quadruples of different rows."""
    from itertools import permutations

    n = len(k)
    total = sum(
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(n), 4)
    )
    return total / math.perm(n, 4)


@given(st.integers(0, 2**31))
def test_the_unbiased_estimate_is_a_mean_over_quadruples(seed: int) -> None:
    one, other = normal(seed, 6, 3).numpy(), normal(seed + 1, 6, 2).numpy()
    k, m = one @ one.T, other @ other.T
    own = hsic_by_sums(k, k) * hsic_by_sums(m, m)
    found = quick(cka, torch.from_numpy(one), torch.from_numpy(other))
    if hsic_by_sums(k, k) > 0 and hsic_by_sums(m, m) > 0:
        assert found == pytest.approx(hsic_by_sums(k, m) / math.sqrt(own), abs=1e-9)
    else:
        assert math.isnan(found)


@given(st.integers(0, 2**31))
def test_the_plain_estimate(seed: int) -> None:
    one, other = normal(seed, 9, 4).numpy() + 5, normal(seed + 1, 9, 12).numpy()
    x, y = one - one.mean(0), other - other.mean(0)
    expected = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    found = quick(cka, torch.from_numpy(one), torch.from_numpy(other), unbiased=False)
    assert found == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**31), st.sampled_from([3, 20]))
def test_the_best_rotation(seed: int, width: int) -> None:
    one, other = normal(seed, 10, width) + 2, normal(seed + 1, 10, width)
    x, y = ((side - side.mean(0)).numpy() for side in (one, other))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    best, _ = linalg.orthogonal_procrustes(x, y)
    expected = np.linalg.norm(x @ best - y) ** 2
    assert quick(procrustes_distance, one, other) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**31), st.sampled_from([1e-12, 1.0, 1e12]))
def test_rotations_moves_and_scales_do_not_count(seed: int, scale: float) -> None:
    one, other = normal(seed, 12, 5), normal(seed + 1, 12, 7)
    turn = torch.linalg.qr(normal(seed + 2, 7, 7)).Q
    moved = scale * (other @ turn + 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    for function in (cka, procrustes_distance):
        value = quick(function, one, other)
        assert quick(function, one, moved) == pytest.approx(value, abs=1e-5, nan_ok=True)
        assert quick(function, other, one) == pytest.approx(value, abs=1e-9, nan_ok=True)
        assert quick(function, one[order], other[order]) == pytest.approx(
            value, abs=1e-9, nan_ok=True
        )
    wider = torch.cat([other, torch.zeros(12, 30)], 1)
    assert quick(procrustes_distance, one, wider) == pytest.approx(
        quick(procrustes_distance, one, other)
    )


def test_unrelated_sides() -> None:
    """The unbiased form is zero on average where the plain one is near one; chance says so of the
    distance, and p-values are as large as they should be.
    """
    found = [
        cka(normal(i, 20, 40), normal(1000 + i, 20, 40), permutations=19, groups=2)
        for i in range(150)
    ]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 4 * values.std() / 150**0.5
    assert quick(cka, normal(0, 20, 40), normal(1, 20, 40), unbiased=False) > 0.5
    shares = np.array([one.p_value for one in found])
    assert (shares <= 0.05 + 1e-9).mean() == pytest.approx(0.05, abs=0.06)
    assert (shares <= 0.5 + 1e-9).mean() == pytest.approx(0.5, abs=0.15)
    distances = [
        procrustes_distance(normal(i, 20, 40), normal(99 + i, 20, 40), permutations=19, groups=2)
        for i in range(40)
    ]
    assert distances[0].expected < 0.7, "a rotation fits much of what means nothing"
    gaps = np.array([one.value - one.expected for one in distances])
    assert abs(gaps.mean()) < 4 * gaps.std() / 40**0.5


def pair(seed: int, number: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that share four directions, in bases of their own."""
    shared = normal(seed, number, 4) * torch.tensor([2.0, 1, 1, 0.5]).double()
    sides = (shared + noise * normal(seed + i, number, 4) for i in (10_001, 20_002))
    one, other = sides
    return one @ torch.linalg.qr(normal(7, 4, 4)).Q, other


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """The truth by hand: linear CKA of the covariances, diag(4, 1, 1, 1/4), plus 1/4 in each."""
    within = torch.tensor([4.25, 1.25, 1.25, 0.5]).double()
    shared = torch.tensor([4.0, 1, 1, 0.25]).double()
    truth = float(shared.square().sum() / within.square().sum())
    distance = float(2 - 2 * shared.sum() / within.sum())
    holds = [0, 0]
    for repeat in range(100):
        sides = pair(repeat, 120, 0.5)
        found = cka(*sides, permutations=0, groups=30, seed=repeat)
        holds[0] += found.interval.low <= truth <= found.interval.high
        left = procrustes_distance(*sides, permutations=0, groups=30, seed=repeat)
        holds[1] += left.interval.low <= distance <= left.interval.high
    assert all(86 <= number <= 100 for number in holds), holds


def test_planted_and_identical_rows() -> None:
    one, other = pair(0, 60, 0.5)
    for function in (cka, procrustes_distance):
        found = function(one, other)
        assert found.p_value == 0.005
        assert found.interval.low < found.value < found.interval.high
        assert "60 contexts in 40 groups" in found.interval.method
        assert function(one, other) == found, "the seed decides"
        shuffled = function(
            one, other[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
        )
        assert shuffled.p_value > 0.01
    same = cka(one, 4 * one - 1)
    assert (same.value, same.interval.low, same.interval.high) == pytest.approx((1, 1, 1))
    nothing = procrustes_distance(one, 4 * one - 1)
    assert (nothing.value, nothing.interval.high) == pytest.approx((0, 0), abs=1e-12)


def test_rows_of_equal_id() -> None:
    first, second = torch.tensor([30, 10, 20, 40]), torch.tensor([20, 50, 30, 5])
    found = match_rows(first, second)
    assert first[found.first].tolist() == second[found.second].tolist() == [20, 30]
    nothing = match_rows(first, torch.tensor([1, 2]))
    assert len(nothing.first) == len(nothing.second) == 0
    with pytest.raises(ValueError, match="second: ids"):
        match_rows(first, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="first: ids"):
        match_rows(first[:, None], second)


def test_too_few_rows_for_an_interval() -> None:
    found = cka(normal(0, 4, 2), normal(1, 4, 2), permutations=0)
    assert math.isnan(found.interval.low)
    assert found.interval.method == "none of 4 contexts"
    assert math.isnan(quick(cka, torch.ones(5, 2), normal(0, 5, 2)))
    assert math.isnan(quick(procrustes_distance, torch.ones(5, 2), normal(0, 5, 2)))


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = normal(0, 9, 3)
    for function in (cka, procrustes_distance):
        with pytest.raises(ValueError, match=r"found first \(9, 3\) and second \(8, 3\)"):
            function(one, one[:8])
        with pytest.raises(ValueError, match=r"four or more contexts are needed, found first \(3"):
            function(one[:3], one[:3])
        with pytest.raises(ValueError, match="second: some entries are not finite"):
            function(one, one / 0)
        with pytest.raises(ValueError, match="level=2"):
            function(one, one, level=2)
        with pytest.raises(ValueError, match="groups=1: two or more"):
            function(one, one, groups=1)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'geomhooks\[compare\]'"):
        cka(one, one)
