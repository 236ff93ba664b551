"""Principal geodesics against planted ones, and embeddings by UMAP."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.errors import MissingExtraError, UnidentifiedError
from geomhooks.functional import (
    angle_between,
    exp_map,
    frechet_mean,
    log_map,
    principal_geodesics,
    umap_projection,
)


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def frame(width: int, number: int, seed: int = 0) -> Tensor:
    """(number, width) orthonormal rows."""
    return torch.linalg.qr(vectors(width, number, seed=seed)).Q.T


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 9), st.booleans())
def test_the_mean_is_where_the_squared_angles_are_least(
    seed: int, number: int, width: int, around_mean: bool
) -> None:
    width += around_mean
    points = (vectors(width, seed=seed) * 2 + vectors(number, width, seed=seed + 1)).abs()
    points *= torch.arange(1, number + 1)[:, None]
    if around_mean:  # within a right angle of each other, and of other means of their entries
        points[:, 0] += 20 * points.sum(1)
        points += vectors(number, 1, seed=seed + 2)
    mean = frechet_mean(points, centred=around_mean)
    assert float(mean.norm()) == pytest.approx(1)
    assert float(log_map(mean, points, centred=around_mean).mean(0).norm()) < 1e-9

    def spread(about: Tensor) -> float:
        return float(angle_between(about, points, centred=around_mean).square().sum())

    for turn in 1e-3 * vectors(4, width, seed=seed + 3):
        if around_mean:
            turn = turn - turn.mean()
        assert spread(mean) <= spread(exp_map(mean, turn)) + 1e-12


def test_the_mean_of_two_is_half_way_and_lengths_do_not_count() -> None:
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 9.0])
    torch.testing.assert_close(
        frechet_mean(torch.stack([a, b])), torch.tensor([0.5, 0.0, 0.5]).sqrt()
    )
    third = exp_map(a, log_map(a, b) / 3)
    torch.testing.assert_close(frechet_mean(torch.stack([a, 2 * a, b])), third)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_planted_geodesics(size: float) -> None:
    """Points are laid out around a mean along two geodesics, whose lengths and shares are known."""
    base, *axes = frame(12, 3)
    turn = torch.linspace(0, 2 * math.pi, 41, dtype=torch.float64)[:-1]
    scores = size * torch.stack([turn.cos(), 0.5 * turn.sin()], dim=1)
    points = exp_map(base, scores @ torch.stack(axes))
    found = principal_geodesics(7 * points, 2)
    torch.testing.assert_close(found.mean, base, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.shares, torch.tensor([0.8, 0.2]).double())
    torch.testing.assert_close(
        (found.axes @ torch.stack(axes).T).abs(), torch.eye(2).double(), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(found.scores.abs(), scores.abs(), atol=1e-9 * size, rtol=1e-9)
    torch.testing.assert_close(found.transform(points), found.scores, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(found.rebuild(found.scores), points, atol=1e-9, rtol=0)
    assert float((found.axes @ found.mean).abs().max()) < 1e-14


def test_scores_are_those_of_a_dense_decomposition_of_the_tangents() -> None:
    points = vectors(30, 6, seed=3) + 3
    found = principal_geodesics(points, 3)
    logs = log_map(found.mean, points).numpy()
    left, singular, _ = np.linalg.svd(logs, full_matrices=False)
    np.testing.assert_allclose(found.shares, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(
        found.scores.abs().numpy(), np.abs(left[:, :3] * singular[:3]), atol=1e-9
    )
    # The sum of squared angles to the mean is what the shares are of.
    angles = angle_between(found.mean, points)
    assert float(angles.square().sum()) == pytest.approx((singular**2).sum())


def test_further_points_have_the_angle_to_the_mean_that_all_axes_show() -> None:
    points, others = vectors(30, 5) + 2, vectors(3, 4, 5, seed=9) + 2
    found = principal_geodesics(points, 4)
    scores = found.transform(others)
    assert scores.shape == (3, 4, 4)
    torch.testing.assert_close(scores.norm(dim=-1), angle_between(found.mean, others))
    torch.testing.assert_close(found.rebuild(scores), others / others.norm(dim=-1, keepdim=True))


def test_in_the_plane_of_layer_norm() -> None:
    """With the mean entry taken off first, what it was does not matter."""
    points = vectors(20, 6) + torch.arange(6)
    one = principal_geodesics(points, 2, centred=True)
    other = principal_geodesics(points + 100 * vectors(20, 1, seed=1), 2, centred=True)
    torch.testing.assert_close(one.scores, other.scores)
    torch.testing.assert_close(one.transform(points + 5), one.scores)
    assert abs(float(one.mean.sum())) < 1e-12


def test_types_and_points_that_are_not_there() -> None:
    points = (vectors(20, 6) + 2).float()
    found = principal_geodesics(points)
    assert all(
        t.dtype == torch.float32 for t in (found.mean, found.axes, found.shares, found.scores)
    )
    assert found.transform(points.double()).dtype == torch.float64
    assert found.transform(points.half()).dtype == torch.float32
    points[3], points[5] = float("nan"), 0.0
    assert torch.isnan(found.transform(points)).any(1).nonzero()[:, 0].tolist() == [3, 5]
    assert torch.isnan(found.transform(-found.mean)).all()


def test_what_has_no_mean() -> None:
    with pytest.raises(UnidentifiedError, match="2 directions cancel: they have no mean"):
        frechet_mean(torch.tensor([[1.0, 2.0], [-2.0, -4.0]]))
    with pytest.raises(UnidentifiedError, match="6 directions cancel"):
        principal_geodesics(torch.cat([torch.eye(3), -torch.eye(3)]))


def test_a_mean_that_is_not_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geomhooks.functional.sphere.projections.STEPS", 1)
    with pytest.raises(UnidentifiedError, match=r"no Frechet mean of 9 directions was found in 1"):
        frechet_mean(vectors(9, 4) + 1)


def test_what_is_refused() -> None:
    points = vectors(5, 4) + 3
    odd = points.clone()
    odd[1], odd[2, 2] = 0.0, float("inf")
    for function in (frechet_mean, principal_geodesics):
        with pytest.raises(ValueError, match="2 of 5 points are not finite, or zero"):
            function(odd)
        with pytest.raises(ValueError, match=r"points: shape \(n, d\) is needed, found \(4,\)"):
            function(points[0])
    with pytest.raises(ValueError, match="1 of 1 points are not finite, or zero"):
        frechet_mean(torch.ones(1, 3), centred=True)
    with pytest.raises(ValueError, match="number=5: 5 vectors of width 4 have 1 to 4"):
        principal_geodesics(points, 5)
    with pytest.raises(ValueError, match=r"of one width are needed, found \(4,\), \(2, 3\)"):
        principal_geodesics(points).transform(torch.ones(2, 3))


# ---------------------------------------------------------------- UMAP


def two_groups() -> tuple[Tensor, Tensor]:
    """Directions about two that are at a right angle, of all lengths; and the group of each."""
    group = torch.arange(60) % 2
    points = torch.eye(10)[group] + 0.05 * vectors(60, 10).float()
    return points * torch.linspace(0.1, 10, 60)[:, None], group


def test_points_of_one_direction_come_to_lie_together() -> None:
    points, group = two_groups()
    found = umap_projection(points[:50], 2, neighbours=10)
    assert found.embedding.shape == (50, 2)
    placed = found.transform(points[50:].view(2, 5, 10))
    assert placed.shape == (2, 5, 2)
    centres = torch.stack([found.embedding[group[:50] == g].mean(0) for g in (0, 1)])
    nearest = torch.cdist(placed.view(10, 2), centres).argmin(1)
    assert torch.equal(nearest, group[50:])


def test_the_same_seed_gives_the_same_embedding() -> None:
    points, _ = two_groups()
    one, same, other = (umap_projection(points, neighbours=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.embedding, same.embedding)
    assert torch.equal(one.transform(points[:4] + 0.01), same.transform(points[:4] + 0.01))
    assert not torch.equal(one.embedding, other.embedding)


def test_directions_and_points_as_they_are() -> None:
    points, _ = two_groups()
    one = umap_projection(points, neighbours=10)
    # Rounding of the lengths aside it is the same set of directions.
    assert torch.equal(one.embedding, umap_projection(4 * points, neighbours=10).embedding)
    plain = umap_projection(points, neighbours=10, directions=False)
    assert not torch.equal(one.embedding, plain.embedding)


def test_points_that_are_not_there_are_placed_nowhere() -> None:
    points, _ = two_groups()
    found, wanted = umap_projection(points, neighbours=10), points[:4].clone()
    wanted[1], wanted[2, 0] = 0.0, float("nan")
    assert torch.isnan(found.transform(wanted)).all(1).tolist() == [False, True, True, False]
    assert torch.isnan(found.transform(wanted[1])).all()


def test_what_umap_refuses() -> None:
    points, _ = two_groups()
    with pytest.raises(ValueError, match=r"points: shape \(n, d\) is needed, found \(10,\)"):
        umap_projection(points[0])
    with pytest.raises(ValueError, match="60 points: neighbours=60 has to be from 2 to 59"):
        umap_projection(points, neighbours=60)
    with pytest.raises(ValueError, match="number=0 from 1 to 58"):
        umap_projection(points, 0)
    points[7] = 0.0
    with pytest.raises(ValueError, match="1 of 60 points are not finite, or zero"):
        umap_projection(points)
    with pytest.raises(ValueError, match=r"points: shape \(..., 10\) is needed, found \(3,\)"):
        umap_projection(two_groups()[0], neighbours=10).transform(torch.ones(3))


class Greedy:
    """Takes more threads, as numba does where it starts its own."""

    def __init__(self, **_: object) -> None: ...

    def fit_transform(self, rows: np.ndarray) -> np.ndarray:
        self._raw_data = rows
        return self.transform(rows)

    def transform(self, rows: np.ndarray) -> np.ndarray:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return rows[:, :2]


def test_torch_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Greedy))
    before = torch.get_num_threads()
    found = umap_projection(torch.ones(30, 3))
    assert torch.get_num_threads() == before
    assert found.transform(torch.ones(4, 3)).shape == (4, 2)
    assert torch.get_num_threads() == before


def test_without_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'geomhooks\[projections\]'"):
        umap_projection(torch.ones(30, 3))
