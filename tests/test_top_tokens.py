"""Rankings of tokens: those of a full sort, whatever way the tokens come."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.accumulators.top_tokens import Candidates, TokenRows, TopTokens, TopValues
from geomhooks.forwards.tokens import Tokens

FACTORS, LENGTH, REACH = 3, 5, 1


class Record(NamedTuple):
    """A token with the values of all factors; `id` says which it is."""

    context: int
    position: int
    id: int
    values: list[int]


def tokens_of(rows: list[list[Record]]) -> tuple[Tokens, Tensor]:
    """A forward of rows of one context each, and its values (B T, F); what is no token is NaN."""
    longest = max(map(len, rows))
    shape = len(rows), longest
    real = torch.zeros(shape, dtype=torch.bool)
    positions, ids = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    values = torch.full((*shape, FACTORS), float("nan"))
    for b, row in enumerate(rows):
        for t, record in enumerate(row):
            real[b, t], positions[b, t], ids[b, t] = True, record.position, record.id
            values[b, t] = torch.tensor(record.values, dtype=torch.float32)
    keys = torch.tensor([row[0].context for row in rows])
    tokens = Tokens(real, positions, None, keys, torch.full_like(keys, -1), capacity=99, ids=ids)
    # Rows of equal context are one, as where the user states contexts.
    tokens.rows = (keys[:, None] == keys).to(torch.int8).argmax(1)
    return tokens, values.flatten(0, 1)


def add(top: TopTokens, values_top: TopValues, rows: list[list[Record]], at_once: int) -> None:
    tokens, values = tokens_of(rows)
    found = Candidates(TokenRows.of(tokens, REACH), LENGTH, top.distinct)
    real = tokens.real.reshape(-1)
    for first in range(0, len(values), at_once):
        part = slice(first, first + at_once)
        found.add(values[part], part, real[part])
        values_top.add(values[part], real[part])
    top.add(found)


def sorted_fully(records: list[Record], factor: int, distinct: bool) -> list[tuple[int, ...]]:
    """Value, context, position and id of the first records."""
    listed = [(r.values[factor], r.context, r.position, r.id) for r in records]
    listed = sorted((-v, c, p, i) for v, c, p, i in listed if v > 0)
    if distinct:
        best: dict[int, tuple[int, ...]] = {}
        for record in listed:
            best.setdefault(record[1], record)
        listed = sorted(best.values())
    return [(-v, c, p, i) for v, c, p, i in listed[:LENGTH]]


def listed(top: TopTokens, factor: int) -> list[tuple[int, ...]]:
    columns = [top[name][factor].tolist() for name in ("value", "context", "position")]
    columns.append(top["window"][factor, :, REACH].tolist())
    return [tuple(map(int, record)) for record in zip(*columns, strict=True)]


@pytest.mark.parametrize("distinct", [False, True])
@given(data=st.data())
def test_any_way_is_a_full_sort(distinct: bool, data: st.DataObject) -> None:
    """Pieces of contexts, forwards, parts of them, and shards in any order; values often tie."""
    draw = data.draw
    names = draw(st.lists(st.integers(-3, 2**62), min_size=1, max_size=6, unique=True))
    value = st.lists(st.integers(-1, 3), min_size=FACTORS, max_size=FACTORS)
    records = [
        Record(context, position, 0, draw(value))
        for context in names
        for position in range(draw(st.integers(1, 6)))
    ]
    records = [record._replace(id=number) for number, record in enumerate(records)]
    pieces: list[list[Record]] = []
    for context in names:
        own = [record for record in records if record.context == context]
        cut = draw(st.integers(0, len(own)))
        pieces += [piece for piece in (own[:cut], own[cut:]) if piece]
    pieces = draw(st.permutations(pieces))
    cuts = sorted(draw(st.sets(st.integers(1, max(len(pieces) - 1, 1)), max_size=3)))
    shards = []
    for start, end in zip([0, *cuts], [*cuts, len(pieces)], strict=True):
        top = TopTokens(FACTORS, LENGTH, REACH, distinct).allocate()
        largest = TopValues(FACTORS, LENGTH).allocate()
        size, at_once = draw(st.integers(1, 3)), draw(st.integers(1, 9))
        for first in range(start, end, size):
            add(top, largest, pieces[first : min(first + size, end)], at_once)
        shards.append((top, largest))
    shards = draw(st.permutations(shards))
    whole, values = shards[0]
    for other, others in shards[1:]:
        whole.merge(other)
        values.merge(others)
    for factor in range(FACTORS):
        expected = sorted_fully(records, factor, distinct)
        assert listed(whole, factor) == expected + [(0, -1, -1, -1)] * (LENGTH - len(expected))
        alone = [record[0] for record in sorted_fully(records, factor, distinct=False)]
        assert values["value"][factor].tolist() == alone + [0.0] * (LENGTH - len(alone))


def test_windows_stay_within_contexts_and_real_tokens() -> None:
    """Two contexts in one row, a hole in the mask, and the ends."""
    real = torch.tensor([[True, True, True, False, True, True]])
    segments = torch.tensor([[0, 0, 1, 2, 1, 1]])
    ids = torch.tensor([[10, 11, 12, 13, 14, 15]])
    keys = torch.tensor([7, 8])
    tokens = Tokens(real, torch.tensor([[0, 1, 0, 1, 2, 3]]), None, keys, keys, ids=ids)
    tokens.segments = segments
    rows = TokenRows.of(tokens, 2)
    assert rows.windows[[0, 1, 2, 4, 5]].tolist() == [
        [-1, -1, 10, 11, -1],
        [-1, 10, 11, -1, -1],
        [-1, -1, 12, -1, 14],
        [12, -1, 14, 15, -1],
        [-1, 14, 15, -1, -1],
    ]
    assert rows.context_id[real[0]].tolist() == [7, 7, 8, 8, 8]
    tokens.ids = None
    assert (TokenRows.of(tokens, 2).windows == -1).all()


def test_values_are_kept_to_the_last_bit() -> None:
    """The key that sorts them holds them whole, the least positive ones and the largest ones."""
    info = torch.finfo(torch.float32)
    values = [info.max, 1.0, 1.0 + info.eps, info.tiny, info.smallest_normal / 8, 0.3]
    grid = torch.arange(len(values))[None]
    keys = torch.tensor([0])
    tokens = Tokens(grid >= 0, grid, 0, keys, keys)
    found = Candidates(TokenRows.of(tokens, 0), 6, distinct=False)
    found.add(torch.tensor(values)[:, None], slice(0, 6), torch.ones(6, dtype=torch.bool))
    kept, at = found.leading()
    assert kept[0].tolist() == torch.tensor(values).sort(descending=True).values.tolist()
    assert at[0].tolist() == [0, 2, 1, 5, 3, 4]
