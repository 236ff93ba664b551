"""Differences of means against SciPy's test of Welch, and against repeated draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from geomhooks.functional import (
    between_groups,
    group_moments,
    mean_difference,
    mean_distances,
    standard_errors,
)


def summary(groups: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count, mean and scatter of each group."""
    centred = [group - group.mean(0) for group in groups]
    return (
        torch.tensor([len(group) for group in groups]),
        torch.from_numpy(np.stack([group.mean(0) for group in groups])),
        torch.from_numpy(np.stack([rows.T @ rows for rows in centred])),
    )


@given(st.integers(0, 2**31))
def test_ratio_to_the_error_is_the_statistic_of_welch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [
        size * rng.standard_normal((number, 3)) for size, number in ((1, 5), (3, 9), (0.2, 30))
    ]
    count, mean, scatter = summary(groups)
    found = mean_difference(count, mean, scatter, 0, 2)
    expected = ttest_ind(groups[0], groups[2], equal_var=False).statistic
    np.testing.assert_allclose((found.difference / found.standard_error).numpy(), expected)
    diagonals = mean_difference(count, mean, scatter.diagonal(dim1=1, dim2=2), 0, -1)
    for one, other in zip(found, diagonals, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(found.noise, found.standard_error.square().sum())


def test_the_squared_length_is_free_of_noise() -> None:
    """Mean over 400 draws of two groups; the plain squared length is more than twice as large."""
    rng = np.random.default_rng(0)
    shift = np.array([0.5, 0, 0, 0, 0, 0, 0, 0])
    found = [
        mean_difference(
            *summary([shift + rng.standard_normal((40, 8)), 1.5 * rng.standard_normal((90, 8))]),
            0,
            1,
        )
        for _ in range(400)
    ]
    lengths = torch.stack([one.squared_length for one in found])
    plain = torch.stack([one.difference.square().sum() for one in found]).mean()
    error = float(lengths.std()) / 20
    assert float(lengths.mean()) == pytest.approx(0.25, abs=4 * error)
    noise = float(torch.stack([one.noise for one in found]).mean())
    assert noise == pytest.approx(8 / 40 + 8 * 2.25 / 90, rel=0.05)
    assert float(plain) == pytest.approx(0.25 + noise, abs=4 * error)
    deviation = torch.stack([one.difference for one in found]).std(0)
    typical = torch.stack([one.standard_error for one in found]).mean(0)
    torch.testing.assert_close(typical, deviation, rtol=0.15, atol=0)


def test_groups_that_are_too_small() -> None:
    count, zeros = torch.tensor([0, 1, 2]), torch.zeros(3, 2)
    assert torch.isnan(mean_difference(count, zeros, zeros, 0, 2).difference).all()
    single = mean_difference(count, zeros, zeros, 1, 2)
    assert single.difference.tolist() == [0, 0]
    assert torch.isnan(single.standard_error).all()
    assert torch.isnan(single.squared_length)


def test_what_is_refused() -> None:
    count, mean = torch.ones(3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"a scatter \(3, 2, 2\) or \(3, 2\), found \(3,\) and"):
        mean_difference(count, mean, torch.zeros(3), 0, 1)
    with pytest.raises(ValueError, match=r"needs a count \(3,\)"):
        mean_difference(torch.ones(2), mean, mean, 0, 1)
    with pytest.raises(IndexError, match="group 3: there are 3 groups"):
        mean_difference(count, mean, mean, 0, 3)


def test_groups_among_each_other() -> None:
    """Distances are those of each pair; of groups that do not differ, none is left on average."""
    numbers = torch.tensor([20, 35, 50, 1])
    labels = torch.repeat_interleave(torch.arange(4), numbers)
    distances, shares = [], []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(len(labels), 6, generator=generator, dtype=torch.float64)
        moments = group_moments(vectors, labels, 4)
        found = mean_distances(*moments)
        for a, b in ((0, 1), (2, 1)):
            pair = mean_difference(*moments, a, b)
            torch.testing.assert_close(found.squared_length[a, b], pair.squared_length)
            torch.testing.assert_close(found.noise[a, b], pair.noise)
        assert torch.isnan(found.squared_length[:, 3]).all()
        assert found.squared_length.diagonal()[:3].tolist() == [0, 0, 0]
        distances.append(found.squared_length[0, 1])
        pooled = between_groups(*(part[:3] for part in moments))
        shares.append(pooled.share - pooled.noise_share)
    for each in (torch.stack(distances), torch.stack(shares)):
        assert abs(float(each.mean())) < 4 * float(each.std()) / 200**0.5


def test_moments_of_labelled_vectors() -> None:
    vectors, labels = torch.randn(9, 3).double(), torch.tensor([0, 2, -1, 2, 0, 5, 2, 0, 0])
    found = group_moments(vectors, labels, 4)
    assert found.number.tolist() == [4, 0, 3, 0]
    for group in (0, 2):
        own = vectors[labels == group]
        torch.testing.assert_close(found.mean[group], own.mean(0))
        torch.testing.assert_close(found.scatter[group], own.var(0) * (len(own) - 1))
        error = standard_errors(found.number, found.scatter)[group]
        torch.testing.assert_close(error, own.std(0) / len(own) ** 0.5)
    assert torch.isnan(found.mean[[1, 3]]).all()
    with pytest.raises(ValueError, match=r"9 vectors.*found \(3,\) and groups=4"):
        group_moments(vectors, labels[:3], 4)
