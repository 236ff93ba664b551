"""Components against a dense decomposition, and paths whose turns are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomhooks.functional import principal_components, winding_number


def random(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (4, 4)])
def test_components(shape: tuple[int, int]) -> None:
    vectors = random(shape)
    found = principal_components(vectors, 3)
    singular = np.linalg.svd(vectors.numpy(), compute_uv=False)
    np.testing.assert_allclose(found.shares.numpy(), singular[:3] ** 2 / (singular**2).sum())
    torch.testing.assert_close(found.axes @ found.axes.T, torch.eye(3).double())
    torch.testing.assert_close(vectors @ found.axes.T, found.scores)
    np.testing.assert_allclose(found.scores.norm(dim=0).numpy(), singular[:3])
    assert (found.axes.gather(1, found.axes.abs().argmax(1, keepdim=True)) > 0).all()
    everything = principal_components(vectors, min(shape))
    torch.testing.assert_close(everything.scores @ everything.axes, vectors)


def test_a_planted_spiral() -> None:
    """Two and a half turns in a plane of 20 dimensions, in noise."""
    angle = torch.linspace(0, 5 * math.pi, 200, dtype=torch.float64)
    plane = torch.linalg.qr(random((20, 2))).Q.T
    path = torch.stack([angle.cos(), angle.sin()], dim=1)
    pos = path @ plane + 0.01 * random((200, 20), seed=1)
    found = principal_components(pos)
    assert float(found.shares.sum()) > 0.99
    assert float(winding_number(found.scores).abs()) == pytest.approx(2.5, abs=0.02)
    assert float(torch.linalg.det(found.axes @ plane.T).abs()) == pytest.approx(1, abs=1e-3)


@given(st.floats(-20, 20), st.floats(-3, 3), st.sampled_from([1e-20, 1.0, 1e20]))
def test_known_turns(turns: float, start: float, scale: float) -> None:
    angle = start + torch.linspace(0, 2 * math.pi * turns, 200, dtype=torch.float64)
    path = scale * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert float(winding_number(path)) == pytest.approx(turns, abs=1e-9)
    assert float(winding_number(path.flip(0))) == pytest.approx(-turns, abs=1e-9)


def test_a_line_through_the_origin_turns_by_half() -> None:
    path = torch.stack([torch.linspace(-1, 1, 10), torch.zeros(10)], dim=1)
    assert float(winding_number(path).abs()) == pytest.approx(0.5)
    assert float(winding_number(path + torch.tensor([0.0, 1e-6])).abs()) == pytest.approx(
        0.5, abs=1e-5
    )


def test_what_has_none() -> None:
    assert torch.isnan(winding_number(torch.ones(1, 2)))
    found = principal_components(torch.full((4, 3), float("nan")))
    assert [tuple(part.shape) for part in found] == [(4, 2), (2, 3), (2,)]
    assert all(torch.isnan(part).all() for part in found)
    assert torch.isnan(principal_components(torch.zeros(4, 3)).shares).all()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 3 principal components"):
        principal_components(torch.ones(4, 3), 4)
    with pytest.raises(ValueError, match=r"\(T, 2\) is needed, found \(4, 3\)"):
        winding_number(torch.ones(4, 3))
