"""Weights in the basis of pos: planted directions, and what does not depend on the basis."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from geomhooks.functional import (
    pos_basis,
    query_key_weight,
    universal_threshold,
    weight_alignment,
)

T, D = 40, 64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DIRECTIONS = torch.linalg.qr(draw(D, 3, seed=1)).Q
POS = (
    torch.linalg.qr(draw(T, 3, seed=2)).Q
    @ torch.diag(torch.tensor([9.0, 5.0, 2.0]).double())
    @ DIRECTIONS.T
)


def test_the_basis() -> None:
    basis = pos_basis(torch.cat((POS, torch.full((2, D), float("nan")).double())))
    assert basis.rank == 3
    eye = torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(basis.vectors.T @ basis.vectors, eye, atol=1e-12, rtol=0)
    along = (basis.vectors[:, :3].T @ DIRECTIONS).abs()
    torch.testing.assert_close(along, eye[:3, :3], atol=1e-12, rtol=0)


def test_planted_entries_are_found() -> None:
    basis = pos_basis(POS)
    v = basis.vectors
    noise = draw(D, D, seed=3) * 1e-3
    planted = 2 * torch.outer(v[:, 0], v[:, 1]) - 3 * torch.outer(v[:, 2], v[:, 0])
    diagonal = draw(D, seed=4)
    off = planted + noise
    off = off - off.diagonal().diag()
    found = weight_alignment(off + diagonal.diag(), basis, leading=3)
    torch.testing.assert_close(found.diagonal, diagonal)
    torch.testing.assert_close(found.rotated, v.T @ off @ v, atol=1e-12, rtol=1e-12)
    assert found.kept[0, 1]
    assert found.kept[2, 0]
    torch.testing.assert_close(found.max, found.rotated[0, 1])
    torch.testing.assert_close(found.min, found.rotated[2, 0])
    assert abs(float(found.max) - 2) < 0.2
    assert abs(float(found.min) + 3) < 0.2
    assert found.leading_share > 0.85
    squares = float(diagonal.square().sum())
    whole = squares + float(off.square().sum())
    assert float(found.diagonal_share) == pytest.approx(squares / whole)
    kept = float(found.rotated[found.kept].square().sum())
    assert float(found.sparse_share) == pytest.approx(kept / whole)
    assert 0.9 < float(found.diagonal_share + found.sparse_share) < 1


def test_without_preference_nothing_leads() -> None:
    found = weight_alignment(draw(D, D, seed=5), pos_basis(POS), leading=16)
    assert float(found.leading_share) == pytest.approx((16 / D) ** 2, rel=0.2)
    assert found.kept.sum() <= 2


def test_extremes_are_those_that_pos_determines() -> None:
    """Entries beyond the rank of pos turn with the arbitrary rest of the basis."""
    basis = pos_basis(POS)
    turned = basis.vectors.clone()
    turned[:, 3:] = turned[:, 3:] @ torch.linalg.qr(draw(D - 3, D - 3, seed=6)).Q
    weight = query_key_weight(draw(D, 4, seed=7), draw(D, 4, seed=8))
    one, other = (weight_alignment(weight, b) for b in (basis, basis._replace(vectors=turned)))
    assert (one.rotated - other.rotated).abs().max() > 0.1
    for name in ("max", "min", "diagonal_share"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    torch.testing.assert_close(one.rotated.norm(), other.rotated.norm())
    torch.testing.assert_close(one.std, other.std, rtol=1e-2, atol=0)


def test_threshold_and_weight() -> None:
    matrix = draw(768, 768, seed=9)
    assert float(universal_threshold(matrix) / matrix.std()) == pytest.approx(5.155, abs=1e-3)
    query, key = draw(2, D, 4, seed=10), draw(2, D, 4, seed=11)
    weight = query_key_weight(query, key)
    x, y = draw(D, seed=12), draw(D, seed=13)
    for head in range(2):
        logit = (x @ query[head]) @ (y @ key[head]) / math.sqrt(4)
        torch.testing.assert_close(x @ weight[head] @ y, logit)


def test_errors() -> None:
    with pytest.raises(ValueError, match="no row is finite"):
        pos_basis(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match=r"weight: shape \(64, 64\) is needed, found \(3, 3\)"):
        weight_alignment(torch.eye(3), pos_basis(POS))
    with pytest.raises(ValueError, match="pos is zero"):
        weight_alignment(torch.eye(3), pos_basis(torch.zeros(2, 3)))
