"""Fits from moments are those of least squares over the samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomhooks.functional.components.linear_fit import linear_fit


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1.0, 1e6]))
def test_as_least_squares_over_the_samples(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64) * scale + 3 * scale
    y = x[:, :3] @ torch.randn(3, 4, generator=generator, dtype=torch.float64) / scale
    y = y + torch.randn(60, 4, generator=generator, dtype=torch.float64)
    fit = linear_fit(torch.cov(torch.cat([x, y], 1).T, correction=0), 5)
    design = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(design, y).solution
    left = ((y - design @ solution) ** 2).sum(0)
    expected = 1 - left / ((y - y.mean(0)) ** 2).sum(0)
    assert torch.allclose(fit.of_entries, expected, atol=1e-9)
    assert torch.allclose(fit.r_squared, expected.mean(), atol=1e-9)
    assert torch.allclose(fit.weight, solution[:5].T, rtol=1e-6, atol=1e-9 / scale)
    whole = 1 - left.sum() / ((y - y.mean(0)) ** 2).sum()
    assert torch.allclose(fit.of_variance, whole, atol=1e-9)
    assert int(fit.rank) == 5


def test_inputs_without_freedom_and_outputs_that_do_not_vary() -> None:
    x = torch.randn(30, 3, dtype=torch.float64)
    x = torch.cat([x, x[:, :1] - x[:, 1:2], torch.zeros(30, 1, dtype=torch.float64)], 1)
    y = torch.stack([x[:, 0] + 2 * x[:, 3], torch.zeros(30, dtype=torch.float64)], 1)
    fit = linear_fit(torch.cov(torch.cat([x, y], 1).T), 5)
    assert int(fit.rank) == 3
    assert float(fit.r_squared) == pytest.approx(1)
    assert fit.of_entries.isnan().tolist() == [False, True]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"found \(3, 2\) and 1"):
        linear_fit(torch.zeros(3, 2), 1)
    with pytest.raises(ValueError, match=r"found \(2, 2\) and 2"):
        linear_fit(torch.zeros(2, 2), 2)
