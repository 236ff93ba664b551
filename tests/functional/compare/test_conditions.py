"""Tests of conditions against SciPy, by hand, and over runs that differ in nothing."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geomhooks.functional.compare import condition_test

PUBLISHED = "aaabcd"  # three seeds of one condition, and three other runs


def random_distances(seed: int, runs: int = 6, ties: bool = False) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.integers(1, 5, (runs, runs)) if ties else rng.random((runs, runs)), 1)
    return torch.from_numpy(upper + upper.T).double()


def apart(distances: torch.Tensor, conditions: str) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.triu_indices(len(conditions), 1)
    labels = np.array(list(conditions))
    same = labels[rows] == labels[columns]
    values = distances.numpy()[rows, columns]
    return values[same], values[~same]


@given(st.integers(0, 2**31))
def test_pairs_shuffled_is_the_test_of_pitman(seed: int) -> None:
    distances = random_distances(seed)
    same, different = apart(distances, PUBLISHED)

    def gap(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(x.mean(axis) - y.mean(axis))

    expected = stats.permutation_test(
        (same, different), gap, vectorized=True, n_resamples=np.inf, alternative="greater"
    )
    found = condition_test(distances, PUBLISHED, permute="pairs")
    assert found.arrangements == len(expected.null_distribution) == 455
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.exact
    assert abs(found.statistic) == pytest.approx(expected.statistic)
    assert found.statistic == pytest.approx(found.different - found.same)
    assert (found.same, found.different) == pytest.approx((same.mean(), different.mean()))


@given(st.integers(0, 2**31))
def test_ranks_of_pairs_shuffled_is_the_test_of_mann_and_whitney(seed: int) -> None:
    distances = random_distances(seed)
    same, different = apart(distances, PUBLISHED)
    for ours, theirs in (("two-sided", "two-sided"), ("closer", "less")):
        expected = stats.mannwhitneyu(same, different, alternative=theirs, method="exact")
        found = condition_test(
            distances, PUBLISHED, statistic="mann_whitney", permute="pairs", alternative=ours
        )
        assert found.statistic == pytest.approx(expected.statistic)
        assert found.p_value == pytest.approx(expected.pvalue)
    tied = random_distances(seed, ties=True)
    found = condition_test(tied, PUBLISHED, statistic="mann_whitney", permute="pairs")
    assert found.statistic == pytest.approx(stats.mannwhitneyu(*apart(tied, PUBLISHED)).statistic)


@pytest.mark.parametrize(
    ("conditions", "ways"),
    [(PUBLISHED, 20), ("aabb", 3), ("aaabbb", 10), ("aabbc", 15), ("aabbcc", 15), ("abac", 6)],
)
@pytest.mark.parametrize("statistic", ["mean", "mann_whitney"])
def test_runs_shuffled_is_all_orders_of_the_labels(
    conditions: str, ways: int, statistic: str
) -> None:
    for seed in range(5):
        distances = random_distances(seed, len(conditions), ties=seed % 2 == 0)
        ranks = torch.from_numpy(
            stats.rankdata(distances.numpy()[np.triu_indices(len(conditions), 1)])
        )
        scores = torch.zeros_like(distances)
        scores[tuple(torch.triu_indices(len(conditions), len(conditions), 1))] = ranks
        scores = distances if statistic == "mean" else scores + scores.T
        gaps = []
        for labels in permutations(conditions):
            same, different = apart(scores, "".join(labels))
            gaps.append(different.mean() - same.mean())
        large = np.abs(gaps) >= abs(gaps[0]) - 1e-9
        found = condition_test(distances, conditions, statistic=statistic)
        assert found.p_value == pytest.approx(large.mean())
        assert (found.arrangements, found.exact) == (ways, True)
        closer = condition_test(distances, conditions, statistic=statistic, alternative="closer")
        assert closer.p_value == pytest.approx((np.array(gaps) >= gaps[0] - 1e-9).mean())


def points(rng: np.random.Generator, conditions: str, shift: float) -> torch.Tensor:
    """Distances of runs in the plane, a few of them odd; those of a condition lie together."""
    centres = {c: shift * rng.standard_normal(2) for c in sorted(set(conditions))}
    spread = rng.lognormal(0, 1, (len(conditions), 1))
    at = torch.from_numpy(
        spread * rng.standard_normal((len(conditions), 2)) + [centres[c] for c in conditions]
    )
    return torch.cdist(at, at)


def test_runs_of_no_conditions_are_told_apart_no_more_often_than_said() -> None:
    """400 sets of runs that differ in nothing. Shuffling runs is right; pairs finds too much."""
    rng = np.random.default_rng(0)
    found = {"runs": [], "pairs": []}
    for _ in range(400):
        distances = points(rng, PUBLISHED, 0.0)
        for permute, values in found.items():
            values.append(condition_test(distances, PUBLISHED, permute=permute).p_value)
    runs, pairs = (np.array(found[permute]) for permute in ("runs", "pairs"))
    for level in (0.05, 0.1, 0.2):
        error = 3 * (level * (1 - level) / 400) ** 0.5
        assert (runs <= level + 1e-9).mean() < level + error
    assert (pairs <= 0.1).mean() > 0.15


def test_planted_conditions_are_found_and_identical_runs_are_not() -> None:
    rng = np.random.default_rng(1)
    conditions = "aaaabbbb"
    found = [condition_test(points(rng, conditions, 20.0), conditions) for _ in range(20)]
    assert sum(one.p_value == pytest.approx(1 / 35) for one in found) >= 15
    assert all(one.same < one.different for one in found if one.p_value < 0.05)
    same = condition_test(torch.ones(6, 6) - torch.eye(6), PUBLISHED)
    assert (same.statistic, same.p_value) == (0, 1)
    alike = condition_test(torch.zeros(6, 6), PUBLISHED, permute="pairs")
    assert alike.p_value == 1


def test_the_smallest_p_value_of_the_published_design() -> None:
    at = torch.tensor([0.0, 0.1, 0.2, 100, 300, 700])
    distances = (at[:, None] - at).abs()
    for statistic in ("mean", "mann_whitney"):
        runs, pairs = (
            condition_test(
                distances, PUBLISHED, statistic=statistic, permute=p, alternative="closer"
            )
            for p in ("runs", "pairs")
        )
        assert runs.p_value == pytest.approx(1 / 20)
        assert pairs.p_value == pytest.approx(1 / 455)


@pytest.mark.parametrize("permute", ["runs", "pairs"])
def test_too_many_arrangements_are_drawn(permute: str) -> None:
    distances = points(np.random.default_rng(2), "aaaabbbb", 3.0)
    whole = condition_test(distances, "aaabbccc", permute=permute, limit=10_000_000)
    drawn = condition_test(distances, "aaabbccc", permute=permute, limit=270, seed=1)
    assert whole.exact
    assert (drawn.exact, drawn.arrangements) == (False, 271)
    assert drawn.p_value == pytest.approx(whole.p_value, abs=0.1)
    assert drawn.p_value >= 1 / 271
    again = condition_test(distances, "aaabbccc", permute=permute, limit=270, seed=1)
    assert again == drawn
    assert condition_test(distances, "aaabbccc", permute=permute, limit=270, seed=2) != drawn


def test_labels_are_anything() -> None:
    distances = random_distances(0, 4)
    for labels in ([1, 1, 2, 2], ["x", "x", "y", "y"], [("a", 1), ("a", 1), None, None]):
        assert condition_test(distances, labels) == condition_test(distances, "aabb")


def test_what_is_refused() -> None:
    distances = random_distances(0, 4)
    for conditions in ("aaaa", "abcd"):
        with pytest.raises(ValueError, match="two runs of one condition and two of different"):
            condition_test(distances, conditions)
    with pytest.raises(ValueError, match="conditions: 4 labels are needed, found 3"):
        condition_test(distances, "aab")
    with pytest.raises(ValueError, match=r"R from 3 is needed, found \(2, 2\)"):
        condition_test(distances[:2, :2], "aa")
    for bad in (distances.triu(), distances / 0):
        with pytest.raises(ValueError, match="finite numbers are needed, the same both ways"):
            condition_test(bad, "aabb")
    with pytest.raises(ValueError, match="permute='labels': 'runs' or 'pairs' is needed"):
        condition_test(distances, "aabb", permute="labels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit=0"):
        condition_test(distances, "aabb", limit=0)
