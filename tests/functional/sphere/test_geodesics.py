"""Angles against their series, maps that undo each other, and arcs whose points are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.functional import angle_between, exp_map, geodesic_distance, log_map, slerp
from tests.reference import angle, centred, unit

seeds = st.integers(0, 2**32 - 1)


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@given(seeds, st.integers(2, 9), st.booleans())
def test_angles_are_those_of_arc_cosines(seed: int, width: int, around_mean: bool) -> None:
    a, b = vectors(6, width, seed=seed), 3 * vectors(6, width, seed=seed + 1)
    ours = angle_between(a, b, centred=around_mean).numpy()
    x, y = (centred(v.numpy()) if around_mean else v.numpy() for v in (a, b))
    np.testing.assert_allclose(np.cos(ours), (unit(x) * unit(y)).sum(1), atol=1e-12)
    np.testing.assert_allclose(ours, angle(x, y), atol=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-15, 1e-30])
def test_small_angles_keep_their_digits(size: float) -> None:
    """A turn by ``size`` in the plane of the first two axes; its tangent is the second entry."""
    start = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    end = torch.tensor([2.0, 2.0 * math.tan(size), 0.0], dtype=torch.float64)
    assert float(angle_between(start, end)) == pytest.approx(size, rel=1e-14)
    assert float(angle_between(end, start)) == pytest.approx(size, rel=1e-14)


@given(seeds, st.floats(1e-6, 1e-2))
def test_small_angles_between_states_in_float32(seed: int, size: float) -> None:
    """What float32 vectors really are apart, in any direction."""
    start = vectors(20, seed=seed).float()
    end = (start.double() + size * vectors(20, seed=seed + 1)).float()
    true = float(angle(start.double().numpy()[None], end.double().numpy()[None])[0])
    found = angle_between(start, end)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(true, rel=1e-6)


def test_angles_near_half_a_turn_and_of_equal_vectors() -> None:
    start = vectors(5)
    assert float(angle_between(start, -2 * start)) == pytest.approx(math.pi, abs=1e-15)
    assert float(angle_between(start, start)) == 0.0
    turned = exp_map(start, (math.pi - 1e-6) * unit_tangent(start))
    assert float(angle_between(start, turned)) == pytest.approx(math.pi - 1e-6, abs=1e-14)


def unit_tangent(base: Tensor, seed: int = 7) -> Tensor:
    way = vectors(*base.shape, seed=seed)
    way = way - (way * base).sum(-1, keepdim=True) * base / base.square().sum(-1, keepdim=True)
    return torch.nn.functional.normalize(way, dim=-1)


@given(seeds, st.integers(2, 8), st.floats(1e-9, math.pi - 1e-3))
def test_log_and_exp_undo_each_other(seed: int, width: int, length: float) -> None:
    base = vectors(4, width, seed=seed)
    way = length * unit_tangent(base, seed + 1)
    there = exp_map(base, way)
    torch.testing.assert_close(there.norm(dim=-1), torch.ones(4).double())
    torch.testing.assert_close(log_map(base, there), way, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(log_map(base, 5 * there), way, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        angle_between(base, there),
        torch.full((4,), length, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-14,
    )


def test_logs_lie_in_the_tangent_space_and_are_as_long_as_the_angle() -> None:
    base, points = vectors(6), vectors(3, 5, 6, seed=1)
    logs = log_map(base, points)
    assert logs.shape == points.shape
    assert float((logs @ base).abs().max()) < 1e-14
    torch.testing.assert_close(logs.norm(dim=-1), angle_between(base, points))
    assert torch.equal(log_map(base, base), torch.zeros(6).double())
    around = log_map(base, points, centred=True)
    assert float(around.sum(-1).abs().max()) < 1e-14


def test_what_is_along_the_base_takes_nobody_anywhere() -> None:
    base = vectors(4)
    way = 0.3 * unit_tangent(base)
    torch.testing.assert_close(exp_map(base, way + 2 * base), exp_map(base, way))


@given(seeds, st.integers(2, 6), st.floats(-0.5, 1.5))
def test_slerp_is_the_published_formula(seed: int, width: int, share: float) -> None:
    a, b = (
        unit(vectors(3, width, seed=seed).numpy()),
        unit(vectors(3, width, seed=seed + 1).numpy()),
    )
    theta = angle(a, b)[:, None]
    expected = (np.sin((1 - share) * theta) * a + np.sin(share * theta) * b) / np.sin(theta)
    found = slerp(torch.from_numpy(a), torch.from_numpy(7 * b), share)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_slerp_goes_at_constant_speed_however_short_the_way() -> None:
    start = vectors(5)
    for length in (1e-12, 1e-3, 3.0):
        end = exp_map(start, length * unit_tangent(start))
        path = slerp(start, end, torch.linspace(0, 1, 11, dtype=torch.float64))
        assert path.shape == (11, 5)
        steps = angle_between(path[:-1], path[1:])
        np.testing.assert_allclose(steps, length / 10, rtol=1e-2 if length < 1e-9 else 1e-9)
    torch.testing.assert_close(path[0], start / start.norm())
    torch.testing.assert_close(path[-1], end)
    assert slerp(vectors(4, 5), vectors(4, 5, seed=1), torch.ones(2, 3)).shape == (2, 3, 4, 5)
    assert torch.equal(slerp(start, start, 0.4), start / start.norm())


@given(seeds, st.floats(0.05, 0.95), st.floats(1e-6, 1.5))
def test_distance_to_a_geodesic(seed: int, share: float, off: float) -> None:
    """A point is put beside the arc at a right angle, so its distance is known."""
    a, b = vectors(5, seed=seed), vectors(5, seed=seed + 1)
    foot = slerp(a, b, share)
    way = log_map(foot, b)
    aside = vectors(5, seed=seed + 2)
    for taken in (foot, way / way.norm()):
        aside = aside - (aside @ taken) * taken
    point = 3 * exp_map(foot, off * aside / aside.norm())
    found = geodesic_distance(point, a, b)
    assert float(found.angle) == pytest.approx(off, rel=1e-6)
    assert float(found.along) == pytest.approx(share, abs=1e-6)


def test_beyond_the_ends_of_a_geodesic_the_end_is_nearest() -> None:
    angles = torch.tensor([-0.3, -2.0, 0.2, 1.4, 3.0], dtype=torch.float64)
    points = torch.stack([angles.cos(), angles.sin(), 0 * angles], dim=1)
    start, end = points.new_tensor([1.0, 0.0, 0.0]), points.new_tensor([0.0, 1.0, 0.0])
    found = geodesic_distance(points, start, end)
    np.testing.assert_allclose(found.along, [0, 0, 0.4 / math.pi, 2.8 / math.pi, 1], atol=1e-12)
    np.testing.assert_allclose(found.angle, [0.3, 2, 0, 0, 3 - math.pi / 2], atol=1e-12)


def test_the_nearest_point_of_many() -> None:
    """The distance is no larger than that to any point of the arc, and reached by one of them."""
    a, b, points = vectors(4), vectors(4, seed=1), vectors(30, 4, seed=2)
    arc = slerp(a, b, torch.linspace(0, 1, 2001))
    nearest = angle_between(points[:, None], arc).amin(1)
    found = geodesic_distance(points, a, b).angle
    np.testing.assert_allclose(found, nearest, atol=1e-3)
    assert (found <= nearest + 1e-12).all()


def test_a_geodesic_of_one_point() -> None:
    found = geodesic_distance(vectors(3, 4), vectors(4, seed=1), 2 * vectors(4, seed=1))
    torch.testing.assert_close(found.angle, angle_between(vectors(3, 4), vectors(4, seed=1)))
    assert torch.isnan(found.along).all()


def test_what_has_no_direction_or_no_way() -> None:
    zero, some = torch.zeros(3), torch.tensor([1.0, 2.0, 2.0])
    nan = torch.full((3,), float("nan"))
    for odd in (zero, nan):
        for pair in ((odd, some), (some, odd)):
            assert torch.isnan(angle_between(*pair))
            assert torch.isnan(log_map(*pair)).all()
            assert torch.isnan(slerp(*pair, 0.5)).all()
            assert torch.isnan(geodesic_distance(some, *pair).angle)
        assert torch.isnan(geodesic_distance(odd, some, some.flip(0)).angle)
    assert torch.isnan(angle_between(torch.ones(3), some, centred=True))
    assert torch.isnan(log_map(some, -some)).all()
    assert all(torch.isnan(part) for part in geodesic_distance(some.flip(0), some, -some))


def test_types() -> None:
    half, single, double = (
        vectors(3).to(kind) for kind in (torch.bfloat16, torch.float32, torch.float64)
    )
    assert angle_between(half, half).dtype == torch.float32
    assert log_map(single, double).dtype == torch.float64
    assert slerp(half, single, 0.5).dtype == torch.float32


def test_what_is_refused() -> None:
    message = r"vectors \(..., d\) of one width are needed, found \(2,\), \(3,\)"
    for function in (angle_between, log_map, exp_map):
        with pytest.raises(ValueError, match=message):
            function(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=message):
        slerp(torch.ones(2), torch.ones(3), 0.5)
    with pytest.raises(ValueError, match=r"found \(4,\), \(2,\), \(4,\)"):
        geodesic_distance(torch.ones(4), torch.ones(2), torch.ones(4))
    with pytest.raises(ValueError, match=r"found \(\), \(3,\)"):
        angle_between(torch.tensor(1.0), torch.ones(3))
