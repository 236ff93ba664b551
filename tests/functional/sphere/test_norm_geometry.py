"""Where outputs of norms are, against torch's own norms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from geomhooks.functional import norm_constants, norm_residuals, sphere_ratio, standardise

D = 16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(states: Tensor, gain: Tensor, shift: Tensor, eps: float, centred: bool) -> Tensor:
    width = (states.shape[-1],)
    if centred:
        return F.layer_norm(states, width, gain, shift, eps)
    return F.rms_norm(states, width, gain, eps) + shift


@pytest.mark.parametrize("centred", [True, False])
def test_standardise(centred: bool) -> None:
    states = 3 * draw(4, 5, D, seed=1) + 2
    for eps in (1e-12, 0.1):
        own = norm(states, torch.ones(D).double(), torch.zeros(D).double(), eps, centred)
        found = standardise(states, eps, centred=centred)
        torch.testing.assert_close(found, own, rtol=1e-12, atol=1e-12)
        ratio = torch.linalg.vector_norm(found, dim=-1) / math.sqrt(D)
        torch.testing.assert_close(sphere_ratio(states, eps, centred=centred), ratio)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1e-12, 1e-2]), st.booleans(), st.integers(2, 9))
def test_outputs_are_on_the_ellipsoid_and_in_the_plane(
    seed: int, eps: float, centred: bool, width: int
) -> None:
    states, gain, shift = draw(7, width, seed=seed), draw(width, seed=seed + 1), 4 * draw(width)
    gain = gain + 0.1 * gain.sign()
    outputs = norm(states, gain, shift, eps, centred)
    radius = sphere_ratio(states, eps, centred=centred)
    found = norm_residuals(outputs, gain, shift, centred=centred, radius=radius)
    assert found.left_out == 0
    assert float(found.ellipsoid.abs().max()) < 1e-9
    without = norm_residuals(outputs, gain, shift, centred=centred).ellipsoid
    torch.testing.assert_close(without, radius.square() - 1, rtol=1e-6, atol=1e-9)
    if centred:
        assert found.plane is not None
        assert float(found.plane.max()) < 1e-9
        constants = norm_constants(gain, shift)
        assert constants.plane_normal is not None
        assert constants.plane_distance is not None
        along = outputs @ constants.plane_normal - constants.plane_distance
        assert float(along.abs().max()) < 1e-9
        assert float(torch.linalg.vector_norm(constants.plane_normal)) == pytest.approx(1)
    else:
        assert found.plane is None


def test_outputs_of_another_norm_are_found_out() -> None:
    states, gain, shift = draw(5, D, seed=1), draw(D, seed=2), draw(D, seed=3)
    outputs = norm(states, gain, shift, 0.0, True)
    for wrong in (
        norm_residuals(outputs * 1.1, gain, shift),
        norm_residuals(outputs, gain, shift + 0.1),
        norm_residuals(norm(states, gain, shift, 0.0, False), gain, shift),
    ):
        assert wrong.plane is not None
        assert float(wrong.plane.max()) > 1e-2


def test_constants() -> None:
    gain, shift = torch.tensor([2.0, -4.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 0.0, 4.0])
    found = norm_constants(gain, shift)
    assert found.shift_length == 5
    assert (found.largest_axis, found.smallest_axis, found.anisotropy) == (8, 2, 4)
    inverse = 1 / gain
    assert found.plane_normal is not None
    torch.testing.assert_close(found.plane_normal, inverse / inverse.norm())
    torch.testing.assert_close(found.plane_distance, (shift / gain).sum() / inverse.norm())
    other = norm_constants(gain, shift, centred=False)
    assert other.plane_normal is other.plane_distance is None
    assert other.largest_axis == 8


def test_the_axes_bound_the_lengths_of_outputs() -> None:
    gain = draw(D, seed=5)
    outputs = norm(draw(500, D, seed=6), gain, torch.zeros(D).double(), 0.0, True)
    lengths = torch.linalg.vector_norm(outputs, dim=-1)
    found = norm_constants(gain)
    assert found.smallest_axis < lengths.min() < lengths.max() < found.largest_axis


def test_gains_of_zero() -> None:
    states, shift = draw(9, D, seed=1), draw(D, seed=2)
    for gone in ([3], [0, 3, 7]):
        gain = draw(D, seed=3)
        gain[gone] = 0.0
        outputs = norm(states, gain, shift, 0.0, True)
        found = norm_residuals(outputs, gain, shift)
        assert found.left_out == len(gone)
        assert found.plane is not None
        assert float(found.ellipsoid.max()) < 1e-9
        assert float(found.plane.max()) < 1e-7
        wrong = norm_residuals(1.5 * (outputs - shift) + shift, gain, shift)
        assert float(wrong.ellipsoid.min()) > 0.1
        constants = norm_constants(gain, shift)
        assert torch.isinf(constants.anisotropy)
        assert constants.plane_normal is not None
        assert constants.plane_distance is not None
        if len(gone) == 1:  # the plane is that of this entry's shift
            assert constants.plane_normal[3] == 1
            torch.testing.assert_close(constants.plane_distance, shift[3])
        else:
            assert torch.isnan(constants.plane_normal).all()
    # With one entry left out its x follows from the others, and both conditions are equalities.
    moved = outputs.clone()
    moved[:, 1] += 5 * gain[1]
    assert norm_residuals(moved, gain, shift).ellipsoid.max() > 0.1


def test_errors() -> None:
    ones = torch.ones(3)
    with pytest.raises(ValueError, match=r"gain: shape \(d,\) is needed, found \(3, 1\)"):
        norm_constants(ones[:, None])
    with pytest.raises(ValueError, match=r"shift: shape \(3,\) is needed.*found \(2,\)"):
        norm_constants(ones, ones[:2])
    with pytest.raises(ValueError, match=r"outputs: shape \(..., 3\) is needed, found \(2, 4\)"):
        norm_residuals(torch.ones(2, 4), ones)
    with pytest.raises(ValueError, match="gain: all are about zero"):
        norm_residuals(torch.ones(2, 3), 0 * ones)
