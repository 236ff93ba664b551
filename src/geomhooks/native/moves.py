"""The move from one state to another alone, where neither is the input of a site."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import carray
from torch import Tensor

from geomhooks.native.compiling import for_types, with_loop
from geomhooks.native.entries import BITS
from geomhooks.native.site import address_of, call
from geomhooks.native.sums import of_move, of_state, put_move
from geomhooks.native.threads import address, run_on_threads, team_size, thread_number

__all__ = ["run_moves"]

MOVE = "void({0}[:,:,::1], {0}[:,:,::1], i8, i8, f8[:,:,::1])"


@for_types(MOVE)
def move(h, y, begin, end, found):
    """The moves h - y; arguments as in :func:`geomhooks.native.sums.sums`."""
    width = h.shape[2]
    nothing = np.zeros(width)
    for b in range(h.shape[0]):
        for t in range(begin, end):
            row, before = h[b, t], y[b, t]
            ones, dot, square = of_move(row, before)
            in_ones, in_square, _ = of_state(before, nothing)
            in_radius = math.sqrt(max(in_square - in_ones * in_ones / width, 0.0))
            put_move(found, b, t, width, ones, dot, square, in_ones, in_radius)


WORK, BATCH, LENGTH, WIDTH, H, Y, FOUND, WORKERS, TOLD = range(9)
loop: Any = None  # whichever `with_loop` puts here


@cache
def work(dtype: torch.dtype) -> Any:
    """:func:`move` of a part of the columns."""
    kind = BITS[dtype]

    def share(data):  # type: ignore[no-untyped-def]
        n = carray(data, (TOLD,), np.int64)
        batch, length, width, workers = n[BATCH], n[LENGTH], n[WIDTH], n[WORKERS]
        for worker in range(thread_number(), workers, team_size()):
            loop(
                carray(address(n[H]), (batch, length, width), kind),
                carray(address(n[Y]), (batch, length, width), kind),
                length * worker // workers,
                length * (worker + 1) // workers,
                carray(address(n[FOUND]), (8, batch, length), np.float64),
            )

    return numba.cfunc("void(voidptr)", cache=True)(with_loop(share, move(dtype)))


@cache
def run() -> Any:
    """Start the threads."""

    def whole(data):  # type: ignore[no-untyped-def]
        n = carray(data, (TOLD,), np.int64)
        run_on_threads(address(n[WORK]), data, n[WORKERS], 0)

    return call(whole)


def run_moves(out: Tensor, into: Tensor, found: Any, workers: int) -> None:
    """Find the moves from ``into`` to ``out`` (B, T, d) on some threads.

    Args:
        out: contiguous.
        into: contiguous, of the same type.
        found: (8, B, T), is written.
        workers: how many threads.
    """
    where = out.data_ptr(), into.data_ptr(), address_of(found)
    told = np.array([work(out.dtype).address, *out.shape, *where, workers], np.int64)
    run()(address_of(told))
