"""Ranks against the singular values themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomhooks.functional import (
    effective_rank,
    explained_ratio,
    rank_above,
    singular_values,
    stable_rank,
)

SHAPES = [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)]


def random(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_rank_is_that_of_a_dense_decomposition(shape: tuple[int, int]) -> None:
    vectors = random(shape)
    singular = np.linalg.svd(vectors, compute_uv=False)
    shares = singular / singular.sum()
    expected = {
        stable_rank: (singular**2).sum() / singular[0] ** 2,
        effective_rank: np.exp(-(shares * np.log(shares)).sum()),
    }
    for given_as in (vectors, singular, singular[::-1].copy()):
        tensor = torch.from_numpy(given_as)
        for function, value in expected.items():
            assert float(function(tensor)) == pytest.approx(value, rel=1e-12)
        for rank in range(len(singular) + 1):
            ratio = singular[:rank].sum() / singular.sum()
            assert float(explained_ratio(tensor, rank)) == pytest.approx(ratio, rel=1e-12)
        np.testing.assert_allclose(singular_values(tensor).numpy(), singular, rtol=1e-12)


def test_known_ranks() -> None:
    line = torch.outer(torch.arange(1.0, 6.0), torch.ones(3)).double()
    assert float(stable_rank(line)) == pytest.approx(1, rel=1e-12)
    assert float(effective_rank(line)) == pytest.approx(1, rel=1e-12)
    angle = torch.arange(12).double() * torch.pi / 6
    circle = torch.stack([angle.cos(), angle.sin(), torch.zeros(12)], dim=1)
    assert float(stable_rank(circle)) == pytest.approx(2, rel=1e-12)
    assert float(effective_rank(circle)) == pytest.approx(2, rel=1e-12)
    assert float(stable_rank(torch.eye(7).double())) == pytest.approx(7, rel=1e-12)
    assert float(effective_rank(torch.eye(7).double())) == pytest.approx(7, rel=1e-12)


@given(st.integers(0, 2**31), st.sampled_from([1e-150, 1e-20, 1.0, 1e20, 1e150]))
def test_neither_rotation_nor_scale_changes_a_rank(seed: int, scale: float) -> None:
    vectors = torch.from_numpy(random((7, 5), seed))
    rotation = torch.linalg.qr(torch.from_numpy(random((5, 5), seed + 1))).Q
    changed = scale * vectors @ rotation
    for function in (stable_rank, effective_rank, lambda v: explained_ratio(v, 2)):
        torch.testing.assert_close(function(changed), function(vectors))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scales_whose_squares_float32_cannot_hold(scale: float) -> None:
    vectors = torch.from_numpy(random((7, 5))).float()
    torch.testing.assert_close(stable_rank(scale * vectors), stable_rank(vectors))
    torch.testing.assert_close(effective_rank(scale * vectors), effective_rank(vectors))


def test_a_floor_counts_what_stands_above_it() -> None:
    values = torch.tensor([5.0, 3.0, 3.0, 1.0]).double()
    counts = [float(rank_above(values, floor)) for floor in (0.0, 1.0, 2.9, 3.0, 5.0)]
    assert counts == [4, 3, 3, 1, 0]
    matrix = torch.diag(values)[:, [2, 0, 3, 1]]
    assert float(rank_above(matrix, torch.tensor(2.0))) == 3
    assert torch.isnan(rank_above(values, float("nan")))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_what_has_no_rank(value: float) -> None:
    nothing = torch.full((3, 4), value)
    assert torch.isnan(stable_rank(nothing))
    assert torch.isnan(effective_rank(nothing))
    assert torch.isnan(explained_ratio(nothing, 1))
    assert torch.isnan(explained_ratio(torch.eye(3), torch.tensor(float("nan"))))


def test_narrow_numbers_are_widened() -> None:
    vectors = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    for kind in (torch.float16, torch.bfloat16, torch.int64):
        assert float(stable_rank(vectors.to(kind))) == pytest.approx(1.5)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(T, d\).*is needed, found \(2, 3, 4\)"):
        stable_rank(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"found \(0, 4\)"):
        effective_rank(torch.zeros(0, 4))
    for rank in (-1, 4):
        with pytest.raises(ValueError, match="there are 3 singular values"):
            explained_ratio(torch.eye(3), rank)
