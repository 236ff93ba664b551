"""Spectra by factors against dense decompositions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.functional import (
    coverage,
    coverage_index,
    effective_rank,
    explained_ratio,
    factored_svd,
    symmetric_part,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))


@settings(deadline=None, max_examples=40)
@given(SIZES, st.integers(0, 10**6))
def test_singular_values_and_vectors(sizes: tuple[int, int, int], seed: int) -> None:
    rows, columns, inner = sizes
    left, right = draw(2, rows, inner, seed=seed), draw(2, columns, inner, seed=seed + 1)
    dense = left @ right.mT
    found = factored_svd(left, right)
    number = min(sizes)
    assert found.values.shape == (2, number)
    own = torch.linalg.svdvals(dense)
    torch.testing.assert_close(found.values, own[:, :number], rtol=1e-9, atol=1e-12)
    assert own[:, number:].numel() == 0 or float(own[:, number:].max()) < 1e-12 * float(own.max())
    torch.testing.assert_close(
        (found.left * found.values[:, None]) @ found.right.mT, dense, rtol=1e-9, atol=1e-11
    )
    eye = torch.eye(number).double().expand(2, -1, -1)
    for vectors in (found.left, found.right):
        torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=1e-12)
    for values, others in zip(found.values, own, strict=True):
        # Zeros add nothing to the effective rank: that of the factors is that of the matrix.
        assert float(effective_rank(values)) == pytest.approx(float(effective_rank(others)), 1e-9)


def test_a_pair_of_vectors_is_that_of_the_matrix() -> None:
    left, right = draw(30, 4, seed=1), draw(20, 4, seed=2)
    found = factored_svd(left, right)
    u, _, vh = torch.linalg.svd(left @ right.T)
    along = (found.left * u[:, :4]).sum(0)
    torch.testing.assert_close(along.abs(), torch.ones(4).double())
    torch.testing.assert_close((found.right * vh[:4].T).sum(0), along)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6))
def test_the_symmetric_part(width: int, inner: int, seed: int) -> None:
    left, right = draw(width, inner, seed=seed), draw(width, inner, seed=seed + 1)
    dense = left @ right.T
    symmetric, apart = (dense + dense.T) / 2, (dense - dense.T) / 2
    found = symmetric_part(left, right)
    number = min(width, 2 * inner)
    own = torch.linalg.eigvalsh(symmetric)
    own = own[own.abs().argsort(descending=True)]
    kept = own[:number].sort(descending=True).values
    torch.testing.assert_close(found.eigenvalues, kept, rtol=1e-9, atol=1e-12 * float(own[0].abs()))
    rebuilt = (found.vectors * found.eigenvalues) @ found.vectors.T
    torch.testing.assert_close(rebuilt, symmetric, rtol=1e-9, atol=1e-11)
    share = float(apart.square().sum() / dense.square().sum())
    assert float(found.antisymmetric_share) == pytest.approx(share, rel=1e-9, abs=1e-15)
    positive = float(own.clamp(min=0).sum() / own.abs().sum())
    assert float(found.positive_share) == pytest.approx(positive, rel=1e-9)
    if 2 * inner <= width:  # Sylvester
        assert (int(found.positive), int(found.negative)) == (inner, inner)


def test_inertia_of_known_matrices() -> None:
    factor = draw(8, 3, seed=1)
    positive = symmetric_part(factor, factor)
    assert (int(positive.positive), int(positive.negative)) == (3, 0)
    assert float(positive.antisymmetric_share) < 1e-30
    assert float(positive.positive_share) == pytest.approx(1)
    negative = symmetric_part(factor, -factor)
    assert (int(negative.positive), int(negative.negative)) == (0, 3)
    mixed = symmetric_part(factor, factor * torch.tensor([1.0, -1.0, 1.0]).double())
    assert (int(mixed.positive), int(mixed.negative)) == (2, 1)
    # x y^T - y x^T is all antisymmetric, and what is left of its symmetric part is rounding.
    x, y = factor[:, :1], factor[:, 1:2]
    apart = symmetric_part(torch.cat((x, y), 1), torch.cat((y, -x), 1))
    assert (int(apart.positive), int(apart.negative)) == (0, 0)
    assert float(apart.antisymmetric_share) == pytest.approx(1)
    batch = symmetric_part(torch.stack((factor, factor)), torch.stack((factor, -factor)))
    assert batch.positive.tolist() == [3, 0]
    zero = symmetric_part(torch.zeros(4, 1), torch.zeros(4, 1))
    assert torch.isnan(zero.antisymmetric_share)
    assert (int(zero.positive), int(zero.negative)) == (0, 0)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(0, 0.999))
def test_coverage(values: list[float], share: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    curve = coverage(tensor)
    for rank in range(len(values)):
        assert float(curve[rank]) == pytest.approx(float(explained_ratio(tensor, rank + 1)))
    # As the published figure finds its red line.
    ordered = np.sort(values)[::-1]
    published = np.argmax(np.cumsum(ordered) / sum(ordered) > share)
    found = int(coverage_index(tensor, share))
    assert found == published or abs(float(curve[min(found, published)]) - share) < 1e-12


def test_coverage_of_heads_and_of_nothing() -> None:
    values = torch.tensor([[4.0, 4.0, 4.0, 4.0], [0.0] * 4, [1.0, float("nan"), 0.0, 0.0]])
    found = coverage_index(values)
    assert found[0] == 3
    assert torch.isnan(found[1:]).all()
    assert coverage_index(torch.tensor([1.0, 0.0]), 0.0) == 0


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"of the same k are needed, found \(4, 2\) and \(4, 3\)"):
        factored_svd(torch.ones(4, 2), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"of the same k are needed, found \(0, 2\)"):
        factored_svd(torch.ones(0, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"the same d, found \(4, 2\) and \(5, 2\)"):
        symmetric_part(torch.ones(4, 2), torch.ones(5, 2))
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="from 0 to below 1 is needed"):
            coverage_index(torch.ones(3), share)
