"""Cosines against NumPy, at scales whose squares floats cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geomhooks.functional import cosines, unit_rows


@pytest.mark.parametrize("scale", [1e-200, 1e-20, 1.0, 1e20, 1e200])
def test_cosines(scale: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 6)), rng.standard_normal((5, 6))
    expected = a @ b.T / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    found = cosines(torch.from_numpy(scale * a), torch.from_numpy(b))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-14)
    gram = cosines(torch.from_numpy(scale * a))
    np.testing.assert_allclose(gram.diagonal().numpy(), 1, rtol=1e-14)


def test_float32_of_small_scale() -> None:
    rows = unit_rows(torch.tensor([[3e-30, 4e-30], [3e30, -4e30]]))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.6, -0.8]]))


def test_zero_points_nowhere() -> None:
    found = cosines(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert torch.isnan(found).tolist() == [[True, True], [True, False]]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(n, d\) is needed, found \(3,\)"):
        cosines(torch.ones(3))
    with pytest.raises(ValueError, match="widths 2 and 3"):
        cosines(torch.ones(1, 2), torch.ones(1, 3))
