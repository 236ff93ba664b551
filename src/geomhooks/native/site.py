"""All that one site does with one forward, in one call: the pass over its state, and the adding up.

An operation costs more to start than the small sums of a site cost to add, and so does each array
that a compiled loop is given. A site therefore writes down once where its state is, a forward where
its tokens are, and the loop is given one address.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import carray

from geomhooks.native.adds import count_tokens, follow
from geomhooks.native.compiling import with_loop
from geomhooks.native.entries import BITS, WIDE
from geomhooks.native.sums import AROUND, sums
from geomhooks.native.threads import address, run_on_threads, team_size, thread_number

__all__ = [
    "TokensRecord",
    "address_of",
    "call",
    "describe_site",
    "describe_sums",
    "run",
    "scratch",
    "work",
]

# What a forward's tokens tell: numbers, and addresses of arrays.
(BATCH, LENGTH, COLUMNS, START, BY_ROW, NUMBER, REAL, FIRST, POSITIONS, SEGMENTS, ROWS,
 OPENED, SLOT, FRESH, CLOSING, CLOSED, WEIGHT, INTERVALS, ENDS, REACH, DIFFERENCES, KEPT, BEGUN,
 TOKENS) = range(24)  # fmt: skip

# What a site tells: of its state, where an address may be 0 for what it has not,
(WORK, WIDTH, CAPACITY, SHIFT, FORWARDS, POSITION_SUM, OVER_TOKENS,
 POSITION_COUNT, SQUARE, OPEN_SUM, OPEN_COUNT, OPEN_ROWS, EDGES, EDGE_ROWS, CONTEXT_SQUARE,
 CONTEXT_MEAN, KEPT_SUM, KEPT_COUNT, KEPT_ROWS) = range(19)  # fmt: skip
# and of one forward.
CALL = 19
CALLED = struct.Struct("7q")
(OF_TOKENS, WORKERS, H, Y, KNOWN, NUMBERS, CONTEXTS, SITE) = range(CALL, CALL + 8)

loop: Any = None  # whichever `with_loop` puts here


@cache
def work(dtype: torch.dtype) -> Any:
    """What each of some threads does: :func:`geomhooks.native.sums.sums` of a part of the columns.

    The sums of contexts and directions are each thread's own, and begin at zero.
    """
    kind, wide = BITS[dtype], WIDE[dtype]
    limit = float(np.finfo(wide).max)

    def share(data):  # type: ignore[no-untyped-def]
        n = carray(data, (SITE,), np.int64)
        t = carray(address(n[OF_TOKENS]), (TOKENS,), np.int64)
        batch, length, width, workers = t[BATCH], t[LENGTH], n[WIDTH], n[WORKERS]
        groups = (batch if t[BY_ROW] else t[NUMBER]) + 1
        tokens, states = (batch, length), (batch, length, width)
        moves, known = n[Y] != 0, (8 if n[KNOWN] else 0, batch, length)
        wide_shift = carray(address(n[SHIFT]), (width,), np.float64)
        shift = wide_shift.astype(wide)
        at_units = n[NUMBERS] + 8 * 8 * batch * length
        at_tallies = at_units + 8 * 4 * workers * width
        at_keep = at_tallies + 8 * 12 * workers
        for worker in range(thread_number(), workers, team_size()):
            contexts = carray(address(n[CONTEXTS]), (workers, groups, width), np.float64)[worker]
            units = carray(address(at_units), (workers, 2, 2, width), np.float64)[worker]
            tallies = carray(address(at_tallies), (workers, 2, 2, 3), np.float64)[worker]
            contexts[:] = 0
            units[:] = 0
            tallies[:] = 0
            loop(
                carray(address(n[H]), states, kind),
                carray(address(n[Y] if moves else n[H]), states, kind),
                moves,
                carray(address(n[KNOWN]), known, np.float64),
                carray(address(t[REAL]), tokens, np.bool_),
                carray(address(t[FIRST]), tokens, np.bool_),
                shift,
                wide_shift,
                limit,
                length * worker // workers,
                length * (worker + 1) // workers,
                t[COLUMNS] != 0,
                t[START],
                carray(address(t[POSITIONS]), tokens, np.int64),
                t[BY_ROW] != 0,
                carray(address(t[SEGMENTS]), tokens, np.int64),
                n[OVER_TOKENS] != 0,
                carray(address(n[NUMBERS]), (8, batch, length), np.float64),
                carray(address(at_keep), tokens, np.bool_),
                carray(address(n[POSITION_SUM]), (n[CAPACITY], width), np.float64),
                contexts,
                units,
                tallies,
            )

    return numba.cfunc("void(voidptr)", cache=True)(with_loop(share, sums(dtype)))


@cache
def run() -> Callable[[int], None]:
    """A function of the address of a site's record, which does the whole of its work.

    It shares the pass over the state out among ``WORKERS`` threads, and adds what was found to the
    two-way sums and the count of forwards, where their addresses are given.
    """

    def whole(data):  # type: ignore[no-untyped-def]
        n = carray(data, (SITE,), np.int64)
        t = carray(address(n[OF_TOKENS]), (TOKENS,), np.int64)
        batch, length, width, workers = t[BATCH], t[LENGTH], n[WIDTH], n[WORKERS]
        run_on_threads(address(n[WORK]), data, workers, 0)
        groups = (batch if t[BY_ROW] else t[NUMBER]) + 1
        contexts = carray(address(n[CONTEXTS]), (workers, groups, width), np.float64)
        for worker in range(1, workers):
            for group in range(groups):
                for j in range(width):
                    contexts[0, group, j] += contexts[worker, group, j]
        rows = carray(address(t[ROWS]), (batch,), np.int64)
        if t[BY_ROW]:
            for row in range(batch):
                if rows[row] != row:  # a row of the context of one before it
                    for j in range(width):
                        contexts[0, rows[row], j] += contexts[0, row, j]
                        contexts[0, row, j] = 0
        if n[FORWARDS] != 0:
            carray(address(n[FORWARDS]), (1,), np.int64)[0] += 1
        if n[POSITION_COUNT] == 0:
            return
        counts = np.zeros(groups, np.int64)
        found = carray(address(n[NUMBERS]), (8, batch, length), np.float64)
        at_keep = n[NUMBERS] + 8 * (8 * batch * length + workers * 4 * (width + 3))
        count_tokens(
            carray(address(at_keep), (batch, length), np.bool_),
            found[AROUND],
            t[COLUMNS] != 0,
            t[START],
            carray(address(t[POSITIONS]), (batch, length), np.int64),
            t[BY_ROW] != 0,
            carray(address(t[SEGMENTS]), (batch, length), np.int64),
            rows,
            carray(address(n[POSITION_COUNT]), (n[CAPACITY],), np.int64),
            carray(address(n[SQUARE]), (1,), np.float64),
            counts,
        )
        opened, closing = t[OPENED], t[CLOSING]
        intervals = t[INTERVALS] != 0
        ends, touched = (closing, 0) if intervals else (0, closing)
        follow(
            contexts[0],
            counts,
            0,
            carray(address(t[SLOT]), (opened,), np.int64),
            carray(address(t[FRESH]), (opened,), np.bool_),
            carray(address(t[CLOSED]), (closing,), np.int64),
            carray(address(t[WEIGHT]), (closing,), np.float64),
            intervals,
            carray(address(t[ENDS]), (ends, 2), np.int64),
            carray(address(t[DIFFERENCES]), (t[REACH], touched), np.float64),
            carray(address(t[KEPT]), (closing,), np.int64),
            carray(address(t[BEGUN]), (closing,), np.bool_),
            carray(address(n[OPEN_SUM]), (n[OPEN_ROWS], width), np.float64),
            carray(address(n[OPEN_COUNT]), (n[OPEN_ROWS],), np.int64),
            carray(address(n[EDGES]), (n[EDGE_ROWS], width), np.float64),
            carray(address(n[CONTEXT_SQUARE]), (1,), np.float64),
            carray(address(n[CONTEXT_MEAN]), (width,), np.float64),
            carray(address(n[KEPT_SUM]), (n[KEPT_ROWS], width), np.float32),
            carray(address(n[KEPT_COUNT]), (n[KEPT_ROWS],), np.int64),
        )

    return call(whole)


def call(function: Callable[[Any], None]) -> Callable[[int], None]:
    """Compile what is given one address, to be called from Python, which may go on meanwhile."""
    compiled = numba.cfunc("void(voidptr)", cache=True)(function)
    entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
    entry.kept = compiled  # type: ignore[attr-defined]  # its code lives as long
    return entry


def address_of(array: Any) -> int:
    """Where an array is; it has to be contiguous, and kept for as long as that is used."""
    found: int = array.__array_interface__["data"][0]
    return found


def scratch(batch: int, length: int, width: int, workers: int) -> int:
    """How many float64 numbers a site's forward is put down in, beside the sums of contexts.

    They are ``found`` (8, B, T), ``units`` (W, 2, 2, d), ``tallies`` (W, 2, 2, 3) and ``keep``
    (B, T) bytes, in this order.
    """
    return 8 * batch * length + workers * 4 * (width + 3) + -(-batch * length // 8)


class TokensRecord:
    """Where a forward's tokens are.

    Args:
        arrays: see :class:`geomhooks.forwards.tokens.TokenArrays`.
        number: how many contexts there are, M.
        step: see :attr:`geomhooks.accumulators.contexts.Step.arrays`, where the contexts are
            followed.
    """

    def __init__(self, arrays: Any, number: int, step: Any = None) -> None:
        real, first, columns, start, positions, by_row, segments, rows = arrays
        # What there is no room to copy in a record is kept alive by it.
        self.kept = [real, first, positions, segments, rows]
        told = [*real.shape, columns, start, by_row, number, *map(address_of, self.kept)]
        if step is not None:
            _, slot, fresh, closed, weight, intervals, ends, differences, kept, begun = step
            self.kept += [slot, fresh, closed, weight, ends, differences, kept, begun]
            slot, fresh, closed, weight, ends, differences, kept, begun = self.kept[5:]
            told += [len(slot), *map(address_of, (slot, fresh)), len(closed)]
            told += [*map(address_of, (closed, weight)), intervals, address_of(ends)]
            told += [len(differences), *map(address_of, (differences, kept, begun))]
        self.numbers = np.zeros(TOKENS, np.int64)
        self.numbers[: len(told)] = told
        self.address = address_of(self.numbers)


def describe_site(dtype: torch.dtype, shift: Any, over_tokens: bool, forwards: Any = None) -> Any:
    """A site's record, where :func:`describe_sums` and what each forward tells are still to come.

    Args:
        dtype: of the hidden states.
        shift: (d,).
        over_tokens: sums over tokens are wanted.
        forwards: () int64 that counts them, or None.
    """
    told = np.zeros(SITE, np.int64)
    told[WORK], told[WIDTH] = work(dtype).address, len(shift)
    told[SHIFT], told[OVER_TOKENS] = address_of(shift), over_tokens
    told[FORWARDS] = 0 if forwards is None else address_of(forwards)
    return told


def describe_sums(told: Any, sums: Mapping[str, Any]) -> None:
    """Say in a site's record where its sums for the two-way fit are, or a part of them."""
    for name, place in (
        ("position_sum", POSITION_SUM),
        ("position_count", POSITION_COUNT),
        ("square", SQUARE),
        ("open_sum", OPEN_SUM),
        ("open_count", OPEN_COUNT),
        ("edges", EDGES),
        ("context_square", CONTEXT_SQUARE),
        ("context_mean", CONTEXT_MEAN),
        ("kept_sum", KEPT_SUM),
        ("kept_count", KEPT_COUNT),
    ):
        if name in sums:
            told[place] = address_of(sums[name])
    for name, place in (
        ("position_sum", CAPACITY),
        ("open_sum", OPEN_ROWS),
        ("edges", EDGE_ROWS),
        ("kept_sum", KEPT_ROWS),
    ):
        if name in sums:
            told[place] = len(sums[name])
