"""The bound holds and the error is that of the definition; factors are exact where they must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn, idctn
from torch import Tensor

from geomhooks.functional import cosines, kernel_factorisation, low_frequency_bound


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 3), st.floats(0, 30))
def test_the_bound_holds(seed: int, frequencies: int, order: int, smoothness: float) -> None:
    path = draw(24, 5, seed=seed)
    path = path + smoothness * torch.arange(24).double()[:, None] / 24 * draw(5, seed=seed + 1)
    found = low_frequency_bound(path, frequencies, order)
    gram = cosines(path).numpy()
    spectrum = dctn(gram, norm="ortho")
    spectrum[frequencies:] = spectrum[:, frequencies:] = 0
    error = np.linalg.norm(gram - idctn(spectrum, norm="ortho"), 2) / 24
    assert float(found.error) == pytest.approx(error, abs=1e-12)
    assert float(found.error) <= min(1, float(found.bound)) + 1e-12
    both = np.block([[gram, gram[:, ::-1]], [gram[::-1], gram[::-1, ::-1]]])
    for axis in (0, 1):
        for _ in range(order):
            both = both - np.roll(both, 1, axis)
    assert float(found.difference) == pytest.approx(np.abs(both).max() * 24 ** (2 * order))


def test_smooth_and_rough_paths() -> None:
    angle = torch.linspace(0, 2 * math.pi, 256).double()
    smooth = low_frequency_bound(torch.stack([angle.cos(), angle.sin()], 1), 32)
    rough = low_frequency_bound(draw(256, 64, seed=0), 32)
    assert smooth.error < 0.01
    assert smooth.bound < 0.15
    assert rough.error > smooth.error * 5
    assert rough.bound > 1


def test_of_a_row_that_points_nowhere() -> None:
    found = low_frequency_bound(torch.zeros(4, 3), 2)
    assert all(torch.isnan(number) for number in found)
    with pytest.raises(ValueError, match="order=0"):
        low_frequency_bound(torch.ones(4, 3), 2, order=0)


def test_factors() -> None:
    basis = torch.linalg.qr(draw(10, 10, seed=1)).Q
    spans = basis[:, :3], basis[:, 3:8]
    x = [draw(6, span.shape[1], seed=2) @ span.T for span in spans]
    y = [draw(4, span.shape[1], seed=3) @ span.T for span in spans]
    weight = draw(10, 10, seed=4)
    exact = kernel_factorisation((x[0], x[1]), (y[0], y[1]), weight, spans)
    torch.testing.assert_close(exact.total, (x[0] + x[1]) @ weight @ (y[0] + y[1]).T)
    for a in range(2):
        for b in range(2):
            torch.testing.assert_close(exact.factors[a, b], x[a] @ weight @ y[b].T)
    assert exact.max_error < 1e-12
    product = exact.factors.exp().prod(0).prod(0)
    torch.testing.assert_close(product, exact.total.exp())

    # A direction of pos is left out of its span: what is lost is what it would have made.
    fewer = kernel_factorisation((x[0], x[1]), (y[0], y[1]), weight, (basis[:, :2], basis[:, 3:8]))
    inside = basis[:, [0, 1, 3, 4, 5, 6, 7]]
    project = inside @ inside.T
    lost = exact.total - (x[0] + x[1]) @ project @ weight @ project @ (y[0] + y[1]).T
    assert float(fewer.max_error) == pytest.approx(float(lost.abs().max()))
    spread = exact.total - exact.total.mean()
    assert float(fewer.relative_error) == pytest.approx(float(lost.norm() / spread.norm()))
    with pytest.raises(ValueError, match="of one width are needed"):
        kernel_factorisation((x[0], x[1]), (y[0], y[1]), torch.eye(4), spans)
