"""The buffer of chosen contexts against dictionaries that keep everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomhooks.accumulators.table import hash_keys
from geomhooks.accumulators.trajectory_states import KeptTokens, TokenStates
from geomhooks.forwards.tokens import Tokens

KEYS, ROOM, LENGTH, WIDTH = 7, 3, 4, 2


def forward(rng: np.random.Generator, packed: bool) -> tuple[Tokens, torch.Tensor]:
    """Some rows of tokens of any contexts at any positions, some not real, and their states."""
    batch, length = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    keys = torch.from_numpy(rng.integers(0, KEYS, batch if not packed else KEYS))
    positions = torch.from_numpy(rng.integers(0, LENGTH + 2, (batch, length)))
    real = torch.from_numpy(rng.random((batch, length)) < 0.7)
    groups = torch.full_like(keys, -1)
    tokens = Tokens(real, positions, None, keys, groups, capacity=LENGTH + 2)
    tokens.rows = (keys[:, None] == keys[None]).to(torch.int8).argmax(1)
    if packed:
        tokens.keys, tokens.rows = torch.from_numpy(rng.permutation(KEYS)), None
        segments = torch.from_numpy(rng.integers(0, KEYS, (batch, length)))
        tokens.segments = torch.where(real, segments, KEYS)
    tokens.ids = torch.from_numpy(rng.integers(0, 99, (batch, length)))
    states = torch.from_numpy(rng.standard_normal((batch, length, WIDTH)))
    states[~real] = float("nan")
    return tokens, states


def note(seen: dict[Any, list[Any]], tokens: Tokens, states: torch.Tensor) -> None:
    """Put down everything, by context and position."""
    for b, t in tokens.real.nonzero().tolist():
        row = tokens.rows[b] if tokens.segments is None else tokens.segments[b, t]
        place = int(tokens.keys[row]), int(tokens.positions[b, t])
        if place[1] < LENGTH:
            seen.setdefault(place, []).append((int(tokens.ids[b, t]), states[b, t].numpy()))


@pytest.mark.parametrize("contexts", [ROOM, (5, 0, 2)], ids=["a sample", "some by id"])
@given(seed=st.integers(0, 2**32 - 1), forwards=st.integers(1, 6), shards=st.integers(1, 3))
def test_any_stream(contexts: Any, seed: int, forwards: int, shards: int) -> None:
    rng = np.random.default_rng(seed)
    seen: dict[Any, list[Any]] = {}
    made = []
    for _ in range(shards):
        kept, states = KeptTokens(contexts, LENGTH), TokenStates(ROOM, LENGTH, WIDTH)
        made.append((kept.allocate(), states.allocate()))
        for _ in range(forwards):
            tokens, hidden = forward(rng, packed=bool(rng.integers(2)))
            note(seen, tokens, hidden)
            made[-1][1].add(hidden, made[-1][0].observe(tokens))
    (kept, states), *others = made
    for theirs, their_states in others:
        states.merge(their_states, kept.merge(theirs))
    keys = sorted({key for key, _ in seen})
    if contexts == ROOM:
        ids = torch.tensor(keys, dtype=torch.int64)
        wanted = sorted(ids[hash_keys(ids).argsort()][:ROOM].tolist())
    else:
        wanted = sorted(set(keys) & set(contexts))
    rows = kept.rows()
    assert kept["key"][rows].tolist() == wanted
    for row, key in zip(rows.tolist(), wanted, strict=True):
        for position in range(LENGTH):
            found = seen.get((key, position), [])
            assert int(kept["times"][row, position]) == len(found)
            assert int(states["times"][row, position]) == len(found)
            assert int(kept["ids"][row, position]) == max((i for i, _ in found), default=-1)
            mean = states.mean[row, position].numpy()
            expected = np.mean([s for _, s in found], 0) if found else np.full(WIDTH, np.nan)
            np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(states["total"]).all(), "nothing is left of what is not kept"


def test_states_need_to_be_told_what_to_follow() -> None:
    one, other = (TokenStates(1, 2, 3).allocate() for _ in range(2))
    with pytest.raises(TypeError, match=r"needs what KeptTokens\.merge returned"):
        one.merge(other)
