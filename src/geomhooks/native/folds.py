"""Following the contexts of a token stream: which are open, which close, which are kept."""

from __future__ import annotations

import numpy as np

from geomhooks.native.compiling import compiled
from geomhooks.native.places import place

__all__ = ["fold", "observe"]

EMPTY = np.iinfo(np.int64).min  # the key of a row that holds nothing


@compiled("void(i4[:,::1], b1[::1], b1, i8, f8[:,::1], i8[::1], f8[::1], f8[::1], i8[:,::1],"
          "f8[:,::1])")  # fmt: skip
def fold(cells, closing, interval, reach, design, covered, averaged, weight, ends, edges):
    """Close contexts: see ``Contexts._fold``.

    A context that covers an interval of positions touches two rows and columns of the design, one
    with holes a few more.

    Args:
        cells: (M, T) how often each covers each position.
        closing: (M,) those that are closed.
        interval: each is known to cover an interval.
        reach: no position at or beyond it is covered.
        design: (T + 1, T + 1) added to.
        covered: (T + 1,) added to.
        averaged: (T + 1,) added to.
        weight: (M,) is written.
        ends: (M, 2) is written, where ``interval``.
        edges: (reach + 1, M) zeros, is written where not.
    """
    at, by = np.empty(reach + 1, np.int64), np.empty(reach + 1, np.int64)
    for i in range(len(closing)):
        weight[i] = 0.0
        length, number, before = 0, 0, 0
        if closing[i]:
            for t in range(reach + 1):
                here = cells[i, t] if t < reach else 0
                length += here
                if here != before:
                    at[number], by[number] = t, here - before
                    number += 1
                before = here
        if interval:
            ends[i, 0] = ends[i, 1] = 0
        if length == 0:
            continue
        weight[i] = 1.0 / length
        if interval:
            ends[i, 0], ends[i, 1] = at[0], at[number - 1]
        for a in range(number):
            covered[at[a]] += by[a]
            averaged[at[a]] += weight[i] * by[a]
            if not interval:
                edges[at[a], i] = by[a]
            for c in range(number):
                design[at[a], at[c]] += weight[i] * by[a] * by[c]


@compiled("void(b1[:,:], b1, i8, i8[:,:], b1, i8[:,:], i8[::1], i4[:,::1], i8[::1])")
def cover(real, columns, start, positions, by_row, segments, rows, cells, position_count):
    """Count how often each context covers each position: see ``Tokens.cells``.

    What comes before ``cells`` (M, P) and ``position_count`` (P,), which are added to, is described
    at :class:`geomhooks.forwards.tokens.TokenArrays`.
    """
    batch, length = real.shape
    for b in range(batch):
        for t in range(length):
            if real[b, t]:
                at = start + t if columns else positions[b, t]
                cells[rows[b] if by_row else segments[b, t], at] += 1
                position_count[at] += 1


@compiled()
def hashed(key):
    """:func:`geomhooks.accumulators.table.hash_keys` of one key."""
    z = np.uint64(key) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(1))


@compiled("void(i4[:,::1], i8[::1], i8[::1], b1, b1, i8,"
          "i8[::1], i8[::1], i4[:,::1], i8[::1], i8[::1], i8[::1], i4[:,::1], i8[::1],"
          "f8[:,::1], i8[::1], f8[::1], i8[::1], i8[::1], i8[::1],"
          "i8[::1], b1[::1], f8[::1], i8[:,::1], f8[:,::1], i8[::1], b1[::1])")  # fmt: skip
def observe(
    cells, keys, groups, continues, interval, reach,
    open_key, open_priority, open_cells, open_group, kept_key, kept_priority, kept_cells,
    kept_group, design, covered, averaged, closed, split, time,
    slot, fresh, weight, ends, edges, kept_slot, kept_fresh,
):  # fmt: skip
    """Open contexts, and close those whose rows they take: see ``Contexts._step``.

    ``cells`` (M, P) is what each context covers in this forward, ``keys`` and ``groups`` (M,) are
    their ids and labels; ``continues``, ``interval`` and ``reach`` are as in :func:`fold`. The
    tensors of the accumulator, ``open_key`` to ``time``, are changed. Written are ``slot`` (M,) and
    ``fresh`` (M,), their rows of the open table; ``weight``, ``ends`` and ``edges``, as by
    :func:`fold`; ``kept_slot`` (M,) and ``kept_fresh`` (M,), where those that are closed go.
    """
    number, positions = cells.shape
    valid, priority = np.empty(number, np.bool_), np.empty(number, np.int64)
    time[0] += 1
    for i in range(number):
        valid[i], priority[i] = cells[i].any(), -time[0]
    before = open_key.copy()
    place(keys, priority, valid, open_key, open_priority, slot, fresh)
    if not continues:
        closing, key = np.empty(number, np.bool_), np.empty(number, np.int64)
        complete = np.zeros((number, positions), np.int32)
        for i in range(number):
            key[i] = before[slot[i]]
            closing[i] = fresh[i] and key[i] != EMPTY
            priority[i] = hashed(key[i])
            if closing[i]:
                complete[i] = open_cells[slot[i]]
                closed[0] += 1
        fold(complete, closing, interval, reach, design, covered, averaged, weight, ends, edges)
        place(key, priority, closing, kept_key, kept_priority, kept_slot, kept_fresh)
        for i in range(number):
            if kept_slot[i] < len(kept_key) - 1:
                if kept_fresh[i]:
                    kept_cells[kept_slot[i]] = 0
                    kept_group[kept_slot[i]] = open_group[slot[i]]
                elif closing[i]:
                    split[0] += 1
                kept_cells[kept_slot[i]] += complete[i]
    for i in range(number):
        if slot[i] < len(open_key) - 1:
            if fresh[i]:
                open_cells[slot[i]] = 0
                open_group[slot[i]] = groups[i]
            open_cells[slot[i]] += cells[i]
