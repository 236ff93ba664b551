"""The cosine transform against SciPy, shares and differences against the Gram matrix itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dct, dctn

from geomhooks.functional import (
    cosine_basis,
    cosines,
    dct_spectrum,
    finite_differences,
    low_frequency_share,
)


def vectors(seed: int, T: int = 12, d: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((T, d)))


def circle(T: int, turns: float = 1.0) -> torch.Tensor:
    angle = torch.arange(T).double() * (2 * math.pi * turns / T)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


@pytest.mark.parametrize("length", [1, 2, 7, 512])
def test_the_basis_is_the_transform(length: int) -> None:
    expected = dct(np.eye(length), axis=0, norm="ortho").T
    np.testing.assert_allclose(cosine_basis(length).numpy(), expected, atol=1e-13)
    np.testing.assert_array_equal(cosine_basis(length, 1), cosine_basis(length)[:, :1])


@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_the_spectrum(length: int) -> None:
    gram = cosines(vectors(0, length))
    expected = dctn(gram.numpy(), norm="ortho")
    np.testing.assert_allclose(dct_spectrum(gram).numpy(), expected, atol=1e-12)
    few = min(3, length)
    np.testing.assert_allclose(dct_spectrum(gram, few).numpy(), expected[:few, :few], atol=1e-12)
    assert float(dct_spectrum(gram).trace()) == pytest.approx(length)


@given(st.integers(0, 2**31), st.integers(1, 14))
def test_the_share_is_that_of_the_spectrum(seed: int, frequencies: int) -> None:
    pos = vectors(seed)
    spectrum = dctn(cosines(pos).numpy(), norm="ortho")
    expected = np.trace(spectrum[:frequencies, :frequencies]) / len(pos)
    assert float(low_frequency_share(pos, frequencies)) == pytest.approx(expected, rel=1e-10)


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_differences_are_the_largest_of_the_gram_matrix(seed: int, order: int) -> None:
    pos = vectors(seed)
    both = np.diff(np.diff(cosines(pos).numpy(), order, axis=0), order, axis=1)
    found = finite_differences(pos, order)
    np.testing.assert_allclose(found.numpy(), np.diag(both), atol=1e-10)
    assert float(found.max()) == pytest.approx(np.abs(both).max(), rel=1e-10)


def test_a_circle_is_smooth_and_noise_is_not() -> None:
    smooth, rough = circle(256), vectors(0, 256, 300)
    assert float(low_frequency_share(smooth, 10)) > 0.999
    assert float(low_frequency_share(rough, 10)) == pytest.approx(10 / 256, rel=0.2)
    step = 2 - 2 * math.cos(2 * math.pi / 256)
    torch.testing.assert_close(
        finite_differences(smooth), torch.full((255,), step, dtype=torch.float64)
    )
    for order, expected in ((1, 2), (2, 6), (3, 20)):
        assert float(finite_differences(rough, order).mean()) == pytest.approx(expected, rel=0.05)


def test_one_planted_frequency() -> None:
    """Signs of a cosine would not do; a path whose Gram matrix is one known pair of frequencies."""
    T, k = 64, 9
    angle = math.pi * (2 * torch.arange(T).double() + 1) * k / (2 * T)
    path = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert float(low_frequency_share(path, k)) < 0.55
    assert float(dct_spectrum(cosines(path))[k, k]) == pytest.approx(T / 2)


@given(st.integers(0, 2**31), st.sampled_from([1e-20, 1e20]))
def test_neither_rotation_nor_scale_changes_them(seed: int, scale: float) -> None:
    pos = vectors(seed)
    changed = scale * pos @ torch.linalg.qr(vectors(seed + 1, 5)).Q
    torch.testing.assert_close(low_frequency_share(changed, 3), low_frequency_share(pos, 3))
    torch.testing.assert_close(finite_differences(changed), finite_differences(pos))


def test_zero_has_no_direction() -> None:
    pos = vectors(0)
    pos[3] = 0
    assert torch.isnan(low_frequency_share(pos))
    assert torch.isnan(finite_differences(pos)).nonzero()[:, 0].tolist() == [2, 3]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="frequencies=6: 1 to 5"):
        cosine_basis(5, 6)
    with pytest.raises(ValueError, match=r"\(T, T\) is needed, found \(2, 3\)"):
        dct_spectrum(torch.ones(2, 3))
    with pytest.raises(ValueError, match="a positive number is needed"):
        low_frequency_share(torch.ones(2, 3), 0)
    with pytest.raises(ValueError, match=r"order=3: for 3 positions 1 to 2 is needed"):
        finite_differences(torch.ones(3, 2), 3)
