"""Spectra and what is made of them, against NumPy, SciPy and cases known by heart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from geomhooks.functional import (
    condition_number,
    effective_rank,
    leading_share,
    participation_ratio,
    spectrum,
)

OF_EIGENVALUES = (condition_number, effective_rank, leading_share, participation_ratio)


def vectors(number: int, width: int) -> np.ndarray:
    """Vectors about zero mean, of very different variances."""
    found = np.random.default_rng(0).standard_normal((number, width)) * np.logspace(0, 3, width)
    return found - found.mean(0)


@pytest.mark.parametrize(("number", "width"), [(50, 7), (4, 9), (2, 1), (1, 3)])
def test_of_vectors(number: int, width: int) -> None:
    """The eigenvalues are the squared singular values, and everything follows from them."""
    cloud = vectors(number, width)
    values = spectrum(torch.from_numpy(cloud.T @ cloud / number), rank=number - 1)
    squares = np.linalg.svd(cloud, compute_uv=False) ** 2 / number
    expected = np.zeros(width)
    expected[: min(number - 1, width)] = squares[: min(number - 1, width)]
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12 * expected.max())
    if number == 1:
        assert all(torch.isnan(function(values)) for function in OF_EIGENVALUES)
        return
    entropy = scipy.stats.entropy(expected)
    assert float(effective_rank(values)) == pytest.approx(np.exp(entropy), rel=1e-9)
    ratio = expected.sum() ** 2 / (expected**2).sum()
    assert float(participation_ratio(values)) == pytest.approx(ratio, rel=1e-9)
    assert float(leading_share(values)) == pytest.approx(expected[0] / expected.sum(), rel=1e-9)
    with np.errstate(divide="ignore"):
        condition = expected[0] / expected[-1]
    assert float(condition_number(values)) == pytest.approx(condition, rel=1e-6)


def test_known_spectra() -> None:
    even = torch.full((8,), 0.3, dtype=torch.float64)
    for function, value in zip(OF_EIGENVALUES, (1, 8, 1 / 8, 8), strict=True):
        assert float(function(even)) == pytest.approx(value, rel=1e-12)
    line = torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)
    for function, value in zip(OF_EIGENVALUES, (np.inf, 1, 1, 1), strict=True):
        assert float(function(line)) == value
    assert leading_share(torch.stack([even, even])).shape == (2,)


def test_what_rounding_leaves_of_zero_is_zero() -> None:
    direction = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
    values = spectrum(torch.outer(direction, direction))
    assert int((values != 0).sum()) == 1
    assert float(values[0]) == pytest.approx(float(direction @ direction), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_type_gives_float64(dtype: torch.dtype) -> None:
    values = spectrum(torch.diag(torch.tensor([1.0, 4.0, 2.0], dtype=dtype)))
    assert values.dtype == torch.float64
    assert values.tolist() == [4.0, 2.0, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_spectrum(value: float) -> None:
    assert torch.isnan(spectrum(torch.full((3, 3), value))).all()


@pytest.mark.parametrize("function", OF_EIGENVALUES)
def test_no_variance_is_no_number(function: Callable[[Tensor], Tensor]) -> None:
    assert torch.isnan(function(torch.zeros(4)))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 2)])
def test_no_square_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(d, d\)"):
        spectrum(torch.zeros(shape))
