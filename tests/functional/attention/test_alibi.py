"""Slopes as published, and biases of distance alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomhooks.functional import alibi, alibi_slopes


def test_published_slopes() -> None:
    """The paper's of 8 and of 16 heads, and its code's of 12: those of 8 and 4 of those of 16."""
    eight = torch.tensor([1 / 2**h for h in range(1, 9)])
    sixteen = torch.tensor([2 ** (-h / 2) for h in range(1, 17)])
    torch.testing.assert_close(alibi_slopes(8), eight)
    torch.testing.assert_close(alibi_slopes(16), sixteen)
    torch.testing.assert_close(alibi_slopes(12), torch.cat((eight, sixteen[:8:2])))
    torch.testing.assert_close(alibi_slopes(1), torch.tensor([1 / 256]))


@given(st.integers(1, 200))
def test_slopes_of_any_number_of_heads(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert len(slopes.unique()) == heads
    assert ((slopes >= 2**-8) & (slopes < 1)).all()


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
def test_only_distance_counts(start: int, length: int, keys: int) -> None:
    slopes = alibi_slopes(4)
    there = alibi(slopes, torch.arange(length), torch.arange(keys))
    moved = alibi(slopes, torch.arange(length) + start, torch.arange(keys) + start)
    assert there.shape == (4, length, keys)
    assert torch.equal(there, moved)
    assert (there.tril() <= 0).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"heads=0: a positive integer is needed"):
        alibi_slopes(0)
