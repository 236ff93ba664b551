"""Angles between spaces against SciPy, chance against draws, planted and unrelated spaces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from geomhooks.functional.compare import (
    pos_subspace_angles,
    principal_angles,
    subspace_angles,
)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, width: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, width, width)).Q


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6))
def test_angles_are_those_of_scipy(seed: int, one: int, other: int) -> None:
    first, second = normal(seed, 7, one), normal(seed + 1, 7, other)
    found = principal_angles(first, second)
    expected = np.sort(linalg.subspace_angles(first.numpy(), second.numpy()))
    # SciPy has 1e-8 at times where spaces of unequal dimension meet, and the angle is zero.
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)
    torch.testing.assert_close(principal_angles(second, first), found)
    torch.testing.assert_close(principal_angles(3 * first @ normal(2, one, one), second), found)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-5, 0.7, 1.5, math.pi / 2])
def test_small_and_large_angles_to_the_last_digits(angle: float) -> None:
    one = torch.eye(5, 2).double()
    other = one.clone()
    entries = [0, math.cos(angle), 0, math.sin(angle), 0]
    other[:, 1] = torch.tensor(entries, dtype=torch.float64)
    turn = rotation(0, 5)
    found = principal_angles(turn @ one, turn @ other)
    assert float(found[1]) == pytest.approx(angle, rel=1e-9, abs=1e-15)


def test_overlap_is_the_mean_squared_cosine() -> None:
    found = subspace_angles(normal(0, 30, 8), normal(1, 30, 5), 3, permutations=0)
    assert found.overlap == pytest.approx(float(found.angles.cos().square().mean()))
    assert math.isnan(found.p_value)
    bases = [torch.linalg.svd(normal(i, 30, w)).U[:, :3] for i, w in ((0, 8), (1, 5))]
    torch.testing.assert_close(found.angles, principal_angles(*bases))


def test_what_chance_gives() -> None:
    """Against 500 draws of both spaces; and in a plane by hand: the angle of two random lines."""
    draws = [
        subspace_angles(normal(2 * i, 12, 3), normal(2 * i + 1, 12, 3), 3, permutations=0)
        for i in range(500)
    ]
    angles = torch.stack([one.angles for one in draws])
    error = 4 * angles.std(0) * (1 / 500 + 1 / 200) ** 0.5
    assert ((angles.mean(0) - draws[0].expected_angles).abs() < error).all()
    overlaps = torch.tensor([one.overlap for one in draws])
    assert draws[0].expected_overlap == 3 / 12
    assert float(overlaps.mean()) == pytest.approx(0.25, abs=4 * float(overlaps.std()) / 500**0.5)
    line = subspace_angles(normal(0, 2, 1), normal(1, 2, 1), 1, permutations=0)
    assert float(line.expected_angles[0]) == pytest.approx(math.pi / 4, abs=4 * 0.46 / 200**0.5)


def test_unrelated_rows_are_told_apart_no_more_often_than_said() -> None:
    values = np.array(
        [
            subspace_angles(normal(i, 20, 6), normal(1000 + i, 20, 6), 2, permutations=39).p_value
            for i in range(200)
        ]
    )
    for level in (0.05, 0.2, 0.5):
        error = 3.5 * (level * (1 - level) / 200) ** 0.5
        assert (values <= level + 1e-9).mean() == pytest.approx(level, abs=error)


def pos(seed: int, positions: int, width: int, noise: float = 0.1) -> torch.Tensor:
    """A path of two strong patterns over positions, in directions of its own, and noise."""
    at = torch.arange(positions).double() * (2 * math.pi / positions)
    patterns = torch.stack([at.cos(), at.sin()], 1)
    path = patterns @ normal(seed, 2, width) + noise * normal(seed + 1, positions, width)
    return path - path.mean(0)


def test_two_models_share_patterns_over_positions_but_no_directions() -> None:
    one, other = pos(0, 64, 30), pos(10, 64, 30)
    shared = pos_subspace_angles(one, other, 2)
    assert shared.overlap > 0.95
    assert shared.p_value == 0.001
    assert shared.expected_overlap == 2 / 63
    turned = pos_subspace_angles(one, other @ rotation(3, 30), 2)
    torch.testing.assert_close(turned.angles, shared.angles)
    wider = pos_subspace_angles(one, pos(10, 64, 50), 2)
    assert wider.overlap > 0.95
    apart = pos_subspace_angles(one, other, 2, side="directions")
    assert apart.overlap < 0.4
    assert apart.p_value > 0.01
    later = pos_subspace_angles(one, one + 0.1 * normal(5, 64, 30), 2, side="directions")
    assert later.overlap > 0.95
    assert later.p_value == 0.001


def test_positions_that_were_not_seen() -> None:
    one, other = pos(0, 40, 12), pos(10, 50, 12)
    holes = one.clone()
    holes[[3, 17]] = math.nan
    seen = [i for i in range(40) if i not in (3, 17)]
    found = pos_subspace_angles(holes, other, 2, permutations=9)
    expected = subspace_angles(one[seen], other[seen], 2, centre=True, permutations=9)
    torch.testing.assert_close(found, expected)
    directions = pos_subspace_angles(holes, other, 2, side="directions", permutations=9)
    expected = subspace_angles(one[seen].T, other.T, 2, permutations=9)
    torch.testing.assert_close(directions, expected)


def test_the_same_space_is_the_same() -> None:
    found = pos_subspace_angles(pos(0, 40, 12), 7 * pos(0, 40, 12), 3)
    assert found.overlap == pytest.approx(1, abs=1e-12)
    assert float(found.angles.max()) < 1e-12


def test_what_is_refused() -> None:
    one = pos(0, 20, 6)
    with pytest.raises(ValueError, match=r"as many rows, found \(20, 6\) and \(19, 6\)"):
        subspace_angles(one, one[:19], 2)
    with pytest.raises(ValueError, match="second spans 1 dimensions, and 2 are asked for"):
        subspace_angles(one, one[:, :1] @ one[:1], 2)
    with pytest.raises(ValueError, match="first spans 6 dimensions, and 7 are asked for"):
        pos_subspace_angles(one, one, 7)
    with pytest.raises(ValueError, match="first spans 2 dimensions, and 3 are asked for"):
        principal_angles(torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 0]]), torch.ones(3, 1))
    with pytest.raises(ValueError, match="first: some entries are not finite"):
        subspace_angles(one / 0, one, 2)
    with pytest.raises(ValueError, match='"positions" or "directions" is needed'):
        pos_subspace_angles(one, one, 2, side="left")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many rows"):
        pos_subspace_angles(one, pos(1, 20, 7), 2, side="directions")
    with pytest.raises(ValueError, match="permutations=-1"):
        subspace_angles(one, one, 2, permutations=-1)
