"""Similarities against all pairs, and clusters that were planted."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geomhooks as gh
from geomhooks.functional import find_clusters, group_similarity, published_group_similarity


def planted(
    sizes: list[int], noise: float, width: int = 16, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors around orthogonal axes, shuffled, and which axis each belongs to."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = np.eye(width)[labels] + noise * rng.standard_normal((len(labels), width))
    return torch.from_numpy(vectors), torch.from_numpy(labels)


@given(st.integers(0, 2**31), st.sampled_from([1e-20, 1.0, 1e20]))
def test_similarities_are_means_over_pairs(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    vectors, labels = rng.standard_normal((9, 4)), rng.integers(-2, 2, 9)
    labels[:4] = [5, 5, 9, 9]  # at least two groups, and a pair within one
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    same, other = labels[:, None] == labels, ~np.eye(9, dtype=bool)
    given_as = torch.from_numpy(scale * vectors), torch.from_numpy(labels)
    found = group_similarity(*given_as)
    assert float(found.inter) == pytest.approx(cosine[~same].mean(), abs=1e-12)
    assert float(found.intra) == pytest.approx(cosine[same & other].mean(), abs=1e-12)
    published = published_group_similarity(*given_as)
    assert float(published.inter) == pytest.approx(np.abs(cosine[~same]).mean(), abs=1e-12)
    assert float(published.intra) == pytest.approx(np.abs(cosine[same]).mean(), abs=1e-12)


def test_groups_that_mean_nothing() -> None:
    """Only the unbiased form is near zero; the published one has its two biases."""
    vectors = torch.from_numpy(np.random.default_rng(0).standard_normal((256, 96)))
    labels = torch.arange(4).repeat_interleave(64)
    found = group_similarity(vectors, labels)
    assert abs(float(found.inter)) < 2e-3
    assert abs(float(found.intra)) < 4e-3
    published = published_group_similarity(vectors, labels)
    chance = float(gh.functional.expected_incoherence(96, 1).mean)
    assert float(published.inter) == pytest.approx(chance, rel=0.02)
    assert float(published.intra) == pytest.approx(chance + (1 - chance) / 64, rel=0.02)


def test_more_pairs_than_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given_as = planted([4, 5, 6], 0.3)
    expected = published_group_similarity(*given_as)
    monkeypatch.setattr("geomhooks.functional.position.clusters.BLOCK", 40)
    torch.testing.assert_close(published_group_similarity(*given_as), expected)


def test_pairs_that_do_not_exist() -> None:
    vectors = torch.eye(3)
    alone = group_similarity(vectors, torch.tensor([0, 1, 2]))
    assert torch.isnan(alone.intra)
    assert float(alone.inter) == 0
    together = torch.zeros(3, dtype=torch.int64)
    assert torch.isnan(group_similarity(vectors, together).inter)
    assert torch.isnan(published_group_similarity(vectors, together).inter)
    with pytest.raises(ValueError, match=r"one for each of 3 vectors is needed, found \(2,\)"):
        group_similarity(vectors, torch.tensor([0, 1]))


@pytest.mark.parametrize("directions", [True, False])
def test_planted_clusters_are_found(directions: bool) -> None:
    vectors, labels = planted([20, 50, 30], 0.08)
    found = find_clusters(vectors, range(2, 7), directions=directions)
    assert list(found.silhouettes) == [2, 3, 4, 5, 6]
    assert max(found.silhouettes, key=lambda k: found.silhouettes[k]) == 3
    assert float(found.silhouette) == found.silhouettes[3] > 0.5
    assert found.labels.bincount().tolist() == [50, 30, 20]
    assert torch.equal(found.labels, torch.tensor([2, 0, 1])[labels])
    torch.testing.assert_close(found.centres, torch.eye(16).double()[[1, 2, 0]], atol=0.08, rtol=0)


def test_directions_do_not_see_lengths() -> None:
    vectors, labels = planted([30, 30], 0.05)
    lengths = torch.from_numpy(np.random.default_rng(1).uniform(0.01, 100, (60, 1)))
    for scale in (1e-20, 1e20):
        found = find_clusters(scale * lengths * vectors, [2, 3])
        same = found.labels[:, None] == found.labels
        assert torch.equal(same, labels[:, None] == labels)


def test_the_same_seed_finds_the_same() -> None:
    vectors = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 6)))
    one, two = (find_clusters(vectors, [4], seed=3, restarts=1) for _ in range(2))
    assert torch.equal(one.labels, two.labels)
    assert float(one.silhouette) < 0.3  # there are no clusters, and the silhouette says so


def test_what_is_refused() -> None:
    vectors, _ = planted([5, 5], 0.1)
    with pytest.raises(ValueError, match=r"numbers=\[1, 10\]: 10 vectors need some number"):
        find_clusters(vectors, [1, 10])
    with pytest.raises(ValueError, match="only 1 vectors are different: no 2 clusters"):
        find_clusters(torch.ones(5, 3))
    bad = vectors.clone()
    bad[3] = 0
    bad[4, 1] = float("nan")
    with pytest.raises(ValueError, match="2 of 10 vectors are not finite, or zero"):
        find_clusters(bad)


def test_few_different_vectors() -> None:
    found = find_clusters(torch.eye(3).repeat(4, 1), range(2, 9))
    assert list(found.silhouettes) == [2, 3]
    assert found.silhouettes[3] == pytest.approx(1, abs=1e-6)


def test_the_command_that_installs_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(gh.errors.MissingExtraError, match=r"pip install 'geomhooks\[clusters\]'"):
        find_clusters(torch.eye(4))
