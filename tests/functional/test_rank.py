"""Ranks against the singular values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geomhooks.functional import stable_rank


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)])
def test_stable_rank(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(0).standard_normal(shape)
    singular = np.linalg.svd(vectors, compute_uv=False)
    expected = (singular**2).sum() / singular[0] ** 2
    assert float(stable_rank(torch.from_numpy(vectors))) == pytest.approx(expected, rel=1e-12)


def test_known_ranks() -> None:
    line = torch.outer(torch.arange(1.0, 6.0), torch.ones(3)).double()
    assert float(stable_rank(line)) == pytest.approx(1, rel=1e-12)
    angle = torch.arange(12).double() * torch.pi / 6
    circle = torch.stack([angle.cos(), angle.sin(), torch.zeros(12)], dim=1)
    assert float(stable_rank(circle)) == pytest.approx(2, rel=1e-12)
    assert float(stable_rank(torch.eye(7).double())) == pytest.approx(7, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_what_has_no_rank(value: float) -> None:
    assert torch.isnan(stable_rank(torch.full((3, 4), value)))
