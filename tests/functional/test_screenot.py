"""ScreeNOT against the package of its authors, and on planted ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomhooks.functional import screenot, singular_values
from tests.published import LETTERS, published_screenot


def smooth_low_rank(rank: int, noise: float) -> np.ndarray:
    """Cosines of position in random directions, of falling size, in noise: (511, 768)."""
    positions = np.arange(511)[:, None]
    frequency = np.arange(1, rank + 1)[None, :]
    shape = np.cos(np.pi * (2 * positions + 1) * frequency / (2 * 511))
    axes = np.linalg.qr(np.random.default_rng(1).standard_normal((768, rank)))[0].T
    scale = np.diag(10 / np.arange(1, rank + 1))
    return shape @ scale @ axes + noise * np.random.default_rng(2).standard_normal((511, 768))


@pytest.mark.parametrize(("rank", "threshold"), [(5, 2.94172), (10, 2.98542)])
def test_planted_ranks_at_the_size_of_the_paper(rank: int, threshold: float) -> None:
    found = screenot(torch.from_numpy(smooth_low_rank(rank, 0.05)))
    assert float(found.rank) == rank
    assert float(found.threshold) == pytest.approx(threshold, abs=2e-5)


@pytest.mark.parametrize("strategy", list(LETTERS))
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (70, 70), (200, 30)])
def test_the_package_finds_the_same(shape: tuple[int, int], strategy: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        signal = rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
        colour = np.linspace(0.3, 2, shape[1])  # noise of unequal size across dimensions
        matrix = signal + colour * rng.standard_normal(shape)
        for bound in (1, 3, 10):
            rank, threshold = published_screenot(matrix, bound, strategy)
            found = screenot(torch.from_numpy(matrix), bound, strategy)  # type: ignore[arg-type]
            assert float(found.rank) == rank
            assert float(found.threshold) == pytest.approx(threshold, abs=1.5e-5)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 4), st.sampled_from([1e-200, 1e-20, 1e20, 1e200]))
def test_neither_scale_nor_rotation_changes_it(seed: int, rank: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((50, rank)) @ rng.standard_normal((rank, 40))
    matrix = matrix + 0.2 * rng.standard_normal((50, 40))
    rotation = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    expected = screenot(torch.from_numpy(matrix), bound=8)
    found = screenot(torch.from_numpy(scale * matrix @ rotation), bound=8)
    assert found.rank == expected.rank
    assert float(found.threshold) == pytest.approx(scale * float(expected.threshold), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_float32_of_any_scale(scale: float) -> None:
    matrix = torch.from_numpy(smooth_low_rank(5, 0.05)).float()
    assert float(screenot(scale * matrix).rank) == 5


def test_singular_values_do_as_well_as_their_matrix() -> None:
    matrix = torch.from_numpy(smooth_low_rank(5, 0.05))
    assert screenot(singular_values(matrix), shape=(511, 768)) == screenot(matrix)
    with pytest.raises(ValueError, match="need the shape"):
        screenot(singular_values(matrix))
    with pytest.raises(ValueError, match="has 4 singular values, not 511"):
        screenot(singular_values(matrix), shape=(4, 5))


def test_without_noise_the_threshold_is_zero() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0] + [0.0] * 9))
    rank, threshold = screenot(matrix, bound=5)
    assert (float(rank), float(threshold)) == (3, 0)
    assert float(screenot(torch.zeros(9, 9)).rank) == 0


def test_the_bound_that_fits() -> None:
    """Imputation needs 2k + 1 < p; of small matrices a smaller k is taken, of tiny ones none."""
    for p in range(1, 50):
        values = torch.linspace(2, 1, p).double()
        found = screenot(values, shape=(p, 100))
        most = min(20, (p - 2) // 2)
        if most < 1:
            assert torch.isnan(found.rank)
            assert torch.isnan(found.threshold)
            continue
        assert found == screenot(values, bound=most, shape=(p, 100))
        if most < 20:
            with pytest.raises(ValueError, match=f"bound={most + 1}: 1 to {most} is needed"):
                screenot(values, bound=most + 1, shape=(p, 100))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="bound=0: 1 to 4 is needed"):
        screenot(torch.eye(10), bound=0)
    with pytest.raises(ValueError, match="the matrix is too small"):
        screenot(torch.eye(3), bound=1)
    with pytest.raises(ValueError, match="one of imputation, winsorization, zero is needed"):
        screenot(torch.eye(10), strategy="i")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"found \(2, 3, 4\)"):
        screenot(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_rank(value: float) -> None:
    matrix = torch.eye(10)
    matrix[2, 3] = value
    assert torch.isnan(torch.stack(screenot(matrix))).all()
