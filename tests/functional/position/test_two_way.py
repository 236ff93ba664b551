"""The two-way fit from sums alone, against a dense least-squares solve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomhooks.functional import (
    Design,
    connected_positions,
    singular_value_floor,
    variance_components,
)


def design_of(weights: torch.Tensor) -> Design:
    """Of W (C, T), every position of which occurs."""
    gram = weights.T @ (weights / weights.sum(1, keepdim=True))
    return Design.of(weights.sum(0), gram, len(weights))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_positions_are_those_of_a_dense_solve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    C, T, d = 6, 5, 3
    weights = (rng.random((C, T)) < 0.7).astype(float)
    weights[0] = 1  # one context covers all positions and so connects them
    rows, columns = np.nonzero(weights)
    states = rng.standard_normal((len(rows), d))
    indicators = np.zeros((len(rows), C + T))
    indicators[np.arange(len(rows)), columns] = 1
    indicators[np.arange(len(rows)), T + rows] = 1
    solution = np.linalg.lstsq(indicators, states, rcond=None)[0][:T]
    expected = solution - solution.mean(0)

    w = torch.from_numpy(weights)
    s_t, s_c = torch.zeros(T, d).double(), torch.zeros(C, d).double()
    h = torch.from_numpy(states)
    s_t.index_add_(0, torch.from_numpy(columns), h)
    s_c.index_add_(0, torch.from_numpy(rows), h)
    z = s_t - w.T @ (s_c / w.sum(1, keepdim=True))
    found = design_of(w).inverse @ z
    np.testing.assert_allclose((found - found.mean(0)).numpy(), expected, atol=1e-10)


def test_the_inverse_is_the_pseudo_inverse() -> None:
    weights = torch.tensor([[1.0, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]).double()
    design = design_of(weights)
    laplacian = torch.diag(design.count) - design.gram
    torch.testing.assert_close(design.inverse, torch.linalg.pinv(laplacian, hermitian=True))
    assert float(design.inverse_norm) == pytest.approx(
        float(torch.linalg.matrix_norm(design.inverse, 2))
    )


def test_groups_that_nothing_connects() -> None:
    weights = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 1, 0]]).double()
    gram = weights.T @ (weights / weights.sum(1, keepdim=True))
    assert connected_positions(gram) == [[0, 1], [2, 4], [3]]


def test_components_of_a_complete_grid_are_those_of_anova() -> None:
    """(MS_pos - MS_resid) / C and (MS_ctx - MS_resid) / T."""
    C, T = 7, 4
    design = design_of(torch.ones(C, T).double())
    ss_pos, ss_ctx, ss_resid = (torch.tensor(v).double() for v in (30.0, 50.0, 36.0))
    found = variance_components(design, ss_pos, ss_ctx, ss_resid)
    residual = 36.0 / ((C - 1) * (T - 1))
    assert float(found.resid) == pytest.approx(residual)
    assert float(found.pos) == pytest.approx((30.0 / (T - 1) - residual) / C)
    assert float(found.ctx) == pytest.approx((50.0 / (C - 1) - residual) / T)


def test_floor_of_pure_noise() -> None:
    """Position means of isotropic noise: their largest singular value is at the floor."""
    C, T, d = 50, 30, 200
    random = torch.Generator().manual_seed(0)
    states = torch.randn((C, T, d), generator=random, dtype=torch.float64)
    pos = states.mean(0) - states.mean((0, 1))
    design = design_of(torch.ones(C, T).double())
    noise = torch.tensor(float(d)).double()
    floor = singular_value_floor(noise, design.inverse_norm, d, design.inverse.diagonal().sum())
    assert float(floor) == pytest.approx((d**0.5 + (T - 1) ** 0.5) / C**0.5)
    largest = float(torch.linalg.matrix_norm(pos, 2))
    assert 0.9 * float(floor) < largest < 1.02 * float(floor)
