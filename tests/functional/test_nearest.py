"""Nearest rows in blocks, against all products at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from geomhooks.functional import align_signs, factored_svd, nearest_rows
from geomhooks.functional import nearest as source

V, D = 37, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(1, V),
    st.integers(1, 50),
    st.sampled_from(["dot", "cosine"]),
)
def test_nearest(seed: int, k: int, block: int, metric: str) -> None:
    vectors, rows = draw(5, D, seed=seed), draw(V, D, seed=seed + 1)
    found = nearest_rows(vectors, rows, k, metric=metric, block=block)  # type: ignore[arg-type]
    if metric == "dot":
        dense = vectors @ rows.T
    else:
        dense = F.normalize(vectors, dim=1) @ F.normalize(rows, dim=1).T
    order = dense.argsort(dim=1, descending=True)[:, :k]
    assert torch.equal(found.indices, order)
    torch.testing.assert_close(found.scores, dense.gather(1, order))


def test_nearest_of_many_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "VECTORS", 3)
    vectors, rows = draw(8, D, seed=1), draw(V, D, seed=2)
    expected = (vectors @ rows.T).topk(4).indices
    assert torch.equal(nearest_rows(vectors, rows, 4).indices, expected)
    assert torch.equal(align_signs(vectors, rows, block=5), signs(vectors, rows))


def signs(vectors: Tensor, rows: Tensor) -> Tensor:
    products = vectors @ rows.T
    return torch.where(products.amax(1) >= (-products).amax(1), 1.0, -1.0).double()


def test_rows_that_point_nowhere_come_last() -> None:
    rows = draw(4, D, seed=1)
    rows[1] = 0.0
    rows[2] = float("nan")
    for metric in ("dot", "cosine"):
        found = nearest_rows(rows[:1], rows, 4, metric=metric)  # type: ignore[arg-type]
        last = {1, 2} if metric == "cosine" else {2}
        assert set(found.indices[0, -len(last) :].tolist()) == last
        assert bool((found.scores[0, -len(last) :] == -torch.inf).all())


def test_signs_make_a_decomposition_the_same_whatever_signs_it_came_with() -> None:
    left, right, rows = draw(D, 3, seed=1), draw(D, 3, seed=2), draw(V, D, seed=3)
    found = factored_svd(left, right)
    aligned = []
    for flip in (1.0, -1.0):
        vectors = flip * found.right.T
        sign = align_signs(vectors, rows)
        aligned.append((sign[:, None] * vectors, sign[:, None] * flip * found.left.T))
        products = sign[:, None] * vectors @ rows.T
        assert bool((products.amax(1) >= -products.amin(1)).all())
    torch.testing.assert_close(aligned[0], aligned[1])
    assert align_signs(torch.ones(1, 1), torch.tensor([[1.0], [-1.0]])).tolist() == [1.0]


def test_errors() -> None:
    words = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"rows: shape \(V, 2\) .* found \(3, 1\)"):
        nearest_rows(words, words[:, :1])
    with pytest.raises(ValueError, match="k=4 and block=8192: from 1 to the 3 rows there are"):
        nearest_rows(words, words, 4)
    with pytest.raises(ValueError, match="metric 'l2': 'dot' or 'cosine' is needed"):
        nearest_rows(words, words, 1, metric="l2")  # type: ignore[arg-type]
