"""Indicators of the terms of a sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomhooks.functional.components.indicators import indicators


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1e-4, 1.0, 1e4]))
def test_by_their_definitions(seed: int, number: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    terms = scale * torch.randn(number, 2, 3, 6, generator=generator, dtype=torch.float64)
    state, found = terms.sum(0), indicators(terms)
    assert torch.allclose(found.importance.sum(0), torch.ones(2, 3, dtype=torch.float64))
    cosine = torch.nn.functional.cosine_similarity(terms, state[None], dim=-1, eps=0)
    assert torch.allclose(found.cosine, cosine)
    assert torch.allclose(found.l2, torch.linalg.vector_norm(terms - state, dim=-1))
    lengths = torch.linalg.vector_norm(terms, dim=-1)
    assert torch.allclose(found.norm_ratio, lengths / torch.linalg.vector_norm(state, dim=-1))
    assert torch.allclose(found.importance, found.cosine * found.norm_ratio)


def test_a_term_that_is_nothing() -> None:
    found = indicators(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    assert found.importance.tolist() == [1.0, 0.0]
    assert found.cosine[1].isnan()
    assert found.norm_ratio.tolist() == [1.0, 0.0]


def test_a_term_that_is_nearly_all() -> None:
    """The small term's length is the distance of the other from the state, to all digits."""
    terms = torch.tensor([[1.0, 1.0], [1e-6, -1e-6]])
    assert torch.allclose(indicators(terms).l2[0], terms[1].norm(), rtol=0.1)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"found \(2, 3\) and \(2,\)"):
        indicators(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"found \(3,\) and None"):
        indicators(torch.zeros(3))
