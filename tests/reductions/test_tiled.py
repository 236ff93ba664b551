"""The tiled reductions are the plain ones, whatever the tiles, the mask and the layout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.calls import Call, Statement
from geomhooks.reductions import NAMES, Reduced, plain, tiled
from geomhooks.tokens import Tokens, TokenStream

CAPACITY = 12


def resolve(batch: int, length: int, statement: Statement, past: int = 0) -> Tokens:
    stream = TokenStream("", CAPACITY, 8, 1)
    stream.allocate(torch.device("cpu"))
    return stream.resolve(Call(past=past), statement, batch, length)


def assert_same(found: Reduced, expected: Reduced, size: float) -> None:
    """Every field, to a few units in the last place of sums over entries of this size."""
    for field in dataclasses.fields(Reduced):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert (mine is None) == (theirs is None), field.name
        if mine is None:
            continue
        if mine.dtype == torch.bool:
            assert torch.equal(mine, theirs), field.name
            continue
        kept = expected.keep if mine.shape[:2] == expected.keep.shape else None
        if kept is not None:  # what is not kept may be anything
            mask = kept.reshape(kept.shape + (1,) * (mine.ndim - 2))
            mine, theirs = (torch.where(mask, v, 0.0) for v in (mine, theirs))
        torch.testing.assert_close(
            mine.double(), theirs.double(), rtol=1e-4, atol=1e-5 * size, msg=field.name
        )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.sampled_from(["columns", "positions", "contexts", "packed"]),
    st.sampled_from([4, 64, 1 << 20]),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_tiles_do_not_matter(
    batch: int,
    length: int,
    width: int,
    dtype: torch.dtype,
    layout: str,
    tile_bytes: int,
    seed: int,
    poisoned: bool,
) -> None:
    random = torch.Generator().manual_seed(seed)
    into = torch.randn((batch, length, width), generator=random)
    out = into + torch.randn(into.shape, generator=random)
    mask = torch.rand((batch, length), generator=random) > 0.3
    if poisoned:
        out[0, 0, 0] = torch.tensor([float("nan"), float("inf")])[seed % 2]
    positions = torch.randint(0, CAPACITY, (batch, length), generator=random)
    contexts = torch.randint(0, 3, (batch, length), generator=random)
    statement = {
        "columns": Statement(mask),
        "positions": Statement(mask, positions),
        "contexts": Statement(mask, contexts=contexts[:, 0]),
        "packed": Statement(mask, positions, contexts),
    }[layout]
    tokens = resolve(batch, length, statement)
    shift = torch.randn(width, generator=random).to(dtype).double()
    arguments = (NAMES, out.to(dtype), into.to(dtype), tokens, shift)
    before = tiled.TILE_BYTES
    tiled.TILE_BYTES = tile_bytes
    try:
        found = tiled.reduce_tiled(*arguments)
    finally:
        tiled.TILE_BYTES = before
    assert_same(found, plain.reduce_plain(*arguments), size=width)


@pytest.mark.parametrize("reduce", [plain.reduce_plain, tiled.reduce_tiled])
def test_what_is_known_of_the_input_is_not_computed_again(reduce: object) -> None:
    """The reductions of a block's input are taken from the site that had it as its output."""
    into, out = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    tokens = resolve(2, 3, Statement())
    needs, shift = frozenset({"step"}), torch.zeros(4)
    known = Reduced(tokens.real, torch.full((2, 3), 7.0), torch.full((2, 3), 5.0))
    found = reduce(needs, out, into, tokens, shift, known)  # type: ignore[operator]
    assert found.in_squared_norm is known.squared_norm
    assert found.in_ones is known.ones


def test_a_radial_move_has_no_angle() -> None:
    """Where h = c y the move is along y: nothing of |u|^2 may leak into the tangential part."""
    from geomhooks.functional.steps import step

    y = torch.randn(1, 5, 64)

    def angle(reduce_update: object) -> Tensor:
        r = reduce_update(1.5 * y, y)  # type: ignore[operator]
        sums = (r.in_squared_norm, r.in_ones, r.update_ones, r.update_dot, r.slope)
        return step(64, *(s.double() for s in sums), r.across_squared_norm.double()).angle

    assert float(angle(plain.reduce_update_plain).max()) < 1e-6
    assert float(angle(tiled.reduce_update_tiled).max()) < 1e-6
