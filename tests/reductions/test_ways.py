"""All ways to reduce a hidden state give the plain numbers, whatever mask, layout and pieces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import geomhooks as gh
from geomhooks.accumulators.turns import Turns
from geomhooks.forwards.calls import Call, Statement
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.forwards.tokens import Tokens
from geomhooks.reductions import NAMES, Reduced, fused, plain, tiled

CAPACITY = 48


def resolve(batch: int, length: int, statement: Statement, past: int = 0) -> Tokens:
    stream = TokenStream("", CAPACITY, 8, 1)
    stream.allocate(torch.device("cpu"))
    return stream.resolve(Call(past=past), statement, batch, length)


def assert_same(found: Reduced, expected: Reduced, size: float) -> None:
    """Every field, to a few units in the last place of sums over entries of this size."""
    for field in Reduced.__annotations__:
        mine, theirs = getattr(found, field), getattr(expected, field)
        assert (mine is None) == (theirs is None), field
        if mine is None:
            continue
        if field == "directions":
            for name, a, b in zip(mine._fields, mine, theirs, strict=True):
                close(a, b, size, f"directions.{name}")
        elif mine.dtype == torch.bool:
            assert torch.equal(mine, theirs), field
        else:
            kept = expected.keep if mine.shape[:2] == expected.keep.shape else None
            if kept is not None:  # what is not kept may be anything
                mask = kept.reshape(kept.shape + (1,) * (mine.ndim - 2))
                mine, theirs = (torch.where(mask, v, 0.0) for v in (mine, theirs))
            close(mine, theirs, size, field)


def close(found: Tensor, expected: Tensor, size: float, name: str) -> None:
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=1e-4, atol=1e-5 * size, equal_nan=True, msg=name
    )


def ways(pieces: int) -> dict[str, Callable[..., Reduced]]:
    """Every way to reduce, made to work in pieces of so many bytes."""

    def in_pieces(module: Any, way: Callable[..., Reduced], names: tuple[str, ...]) -> Any:
        def run(*arguments: Any) -> Reduced:
            with ExitStack() as stack:
                for name in names:
                    stack.enter_context(mock.patch.object(module, name, pieces))
                return way(*arguments)

        return run

    return {
        "tiled": in_pieces(tiled, tiled.reduce_tiled, ("TILE_BYTES",)),
        "fused": in_pieces(fused, fused.reduce_fused, ("PER_THREAD",)),
    }


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([6, 8, 33]),  # of few entries little is left when they are centred
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.sampled_from(["columns", "positions", "contexts", "packed", "packed columns"]),
    st.sampled_from([4, 64, 1 << 20]),
    st.integers(0, 2**31),
    st.booleans(),
    st.booleans(),
)
def test_every_way_gives_the_same(
    batch: int,
    length: int,
    width: int,
    dtype: torch.dtype,
    layout: str,
    pieces: int,
    seed: int,
    poisoned: bool,
    targeted: bool,
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
        "packed columns": Statement(mask, contexts=contexts),
    }[layout]
    tokens = resolve(batch, length, statement)
    shift = torch.randn(width, generator=random).to(dtype).double()
    arguments = (NAMES, out.to(dtype), into.to(dtype), tokens, shift, None)

    def run(way: Callable[..., Reduced]) -> tuple[Reduced, Tensor]:
        target = torch.zeros((CAPACITY, width), dtype=torch.float64)
        return way(*arguments, target if targeted else None), target

    expected, to = run(plain.reduce_plain)
    assert (expected.position_sum is None) == targeted
    for name, way in ways(pieces).items():
        found, target = run(way)
        assert_same(found, expected, size=width)
        close(target, to, width, name)


@pytest.mark.parametrize("reduce", [plain.reduce_plain, ways(4)["tiled"]])
def test_what_is_known_of_the_input_is_not_computed_again(reduce: Any) -> None:
    """The reductions of a block's input are taken from the site that had it as its output."""
    into, out = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    tokens = resolve(2, 3, Statement())
    needs, shift = frozenset({"step"}), torch.zeros(4, dtype=torch.float64)
    square, ones = (torch.full((2, 3), number, dtype=torch.float64) for number in (7.0, 4.0))
    radius = (square - ones.square() / 4).sqrt()
    known = Reduced(tokens.real, squared_norm=square, ones=ones, norm=square.sqrt(), radius=radius)
    found = reduce(needs, out, into, tokens, shift, known)
    torch.testing.assert_close(found.outward - found.radial, radius, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_one_pass_has_put_down_is_known_to_the_next(dtype: torch.dtype) -> None:
    """And what it has left out is not: the input's own numbers are taken then."""
    into, other = torch.randn(2, 3, 16).to(dtype), torch.randn(2, 3, 16).to(dtype)
    into[0, 1], other[0, 1] = 0.0, float("nan")  # a block may replace what is not finite
    tokens, shift = resolve(2, 3, Statement()), torch.zeros(16, dtype=torch.float64)
    known = fused.reduce_fused(NAMES, other, None, tokens, shift)
    square = known.squared_norm
    assert square is not None
    found = fused.reduce_fused(NAMES, into, other, tokens, shift, known)
    plainly = plain.reduce_plain(NAMES, into, other, tokens, shift)
    assert_same(found, plainly, 16)
    square[1] = 4 * square[1]  # as if it were twice as long: the radius follows what is known
    again = fused.reduce_fused(NAMES, into, other, tokens, shift, known)
    assert again.outward is not None
    assert again.radial is not None
    ones = known.ones
    assert ones is not None
    radius = (square - ones.square() / 16).sqrt()
    torch.testing.assert_close((again.outward - again.radial)[1], radius[1])


def test_a_state_that_all_but_vanishes_keeps_its_digits() -> None:
    """|h|^2 from |y|^2 and the move would lose them where a block takes its input away."""
    into = torch.randn(1, 4, 32, dtype=torch.float64) * 1e8
    out = torch.randn(1, 4, 32, dtype=torch.float64)
    tokens, shift = resolve(1, 4, Statement()), torch.zeros(32, dtype=torch.float64)
    known = fused.reduce_fused(NAMES, into, None, tokens, shift)
    found = fused.reduce_fused(NAMES, out, into, tokens, shift, known)
    torch.testing.assert_close(found.norm, out.norm(dim=-1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduce_move", [plain.reduce_move_plain, fused.reduce_move_fused])
def test_a_radial_move_has_no_angle(reduce_move: Any) -> None:
    """Where h = c y the move is along y: nothing of |u|^2 may leak into the tangential part."""
    y = torch.randn(1, 5, 64)
    r = reduce_move(1.5 * y, y)
    angle = torch.atan2(r.tangential, r.outward)
    assert float(angle.max()) < 1e-6


def test_a_second_taker_has_the_position_sums_handed_out() -> None:
    """Two statistics that need one reduction both get it, and neither twice."""

    class PositionSum(gh.Statistic):
        needs = ("position_sum",)

        def accumulators(self, site: Any) -> dict[str, Any]:
            return {"sum": gh.Sum((site.positions, site.width))}

        def update(self, state: Any, reading: Any) -> None:
            total = state["sum"].value[reading.tokens.at]
            total.add_(reading.reductions.position_sum)

        def compute(self, state: Any) -> dict[str, Any]:
            return {"sum": state["sum"].value + 10 * state["shift"]}

    model = torch.nn.Sequential(torch.nn.Identity())
    states = torch.randn(10, 4, 3)
    statistics = [gh.PosCtx(positions=4), PositionSum()]
    with gh.watch(model, sites="0", statistics=statistics) as watch:
        model(states)
    found = watch.geometry()["0"]
    torch.testing.assert_close(found.position_sum.sum.float(), states.sum(0))
    torch.testing.assert_close(found.pos_ctx.position_mean.float(), states.mean(0))


def test_a_statistic_that_passes_over_a_forward_has_nothing_added() -> None:
    """While others look at the forward."""

    class Sums(gh.Statistic):
        needs = ("position_sum",)

        def shared(self, stream: Any) -> dict[str, Any]:
            return {Turns.NAME: Turns()}

        def takes(self, plans: Any) -> bool:
            return plans[Turns.NAME] != 1

        def accumulators(self, site: Any) -> dict[str, Any]:
            return {"sum": gh.Sum((site.positions, site.width))}

        def update(self, state: Any, reading: Any) -> None:
            state["sum"].value[reading.tokens.at].add_(reading.reductions.position_sum)

        def compute(self, state: Any) -> dict[str, Any]:
            return {"sum": state["sum"].value + 2 * state["shift"]}

    model, states = torch.nn.Sequential(torch.nn.Identity()), torch.randn(3, 1, 4, 3)
    with gh.watch(model, sites="0", statistics=[Sums(), gh.Sphere()], positions=4) as watch:
        for batch in states:
            model(batch)
    found = watch.geometry()["0"]
    torch.testing.assert_close(found.sums.sum.float(), states[0, 0] + states[2, 0])
    assert int(found.sphere.norm.count) == 12


def test_fewer_threads_than_were_asked_for() -> None:
    """Where the environment limits OpenMP's threads, those that there are do all the work."""
    program = (
        "import torch, geomhooks as gh\n"
        "torch.set_num_threads(4)\n"
        "model = torch.nn.Sequential(torch.nn.Identity())\n"
        "states = torch.randn(4, 256, 512, generator=torch.Generator().manual_seed(0))\n"
        "with gh.watch(model, sites='0', statistics=[gh.Sphere()]) as watch:\n"
        "    model(states)\n"
        "found = watch.geometry()['0']\n"
        "norms = states.double().norm(dim=-1)\n"
        "assert abs(float(found.sphere.norm.mean - norms.mean())) < 1e-6\n"
        "assert int(found.sphere.norm.count) == 1024\n"
    )
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
