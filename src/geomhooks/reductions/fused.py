"""The reductions on a CPU in one pass over memory, by the compiled loops of ``native``.

Half-precision states are widened a piece at a time, and large ones are shared out among threads, as
many as torch uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from geomhooks.native import load
from geomhooks.reductions.plain import Directions, Reduced, gather_rows

if TYPE_CHECKING:
    from geomhooks.tokens import Tokens

__all__ = ["reduce_fused", "reduce_move_fused"]

PER_THREAD = 1 << 20
PIECE = 1 << 18  # entries of a half-precision state that are widened at a time
OVER_TOKENS = frozenset({"position_sum", "context_sum", "directions"})


def reduce_fused(
    needs: frozenset[str],
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    shift: Tensor,
    known: Reduced | None = None,
    position_sum: Tensor | None = None,
) -> Reduced:
    """Compute what :func:`~geomhooks.reductions.plain.reduce_plain` computes, in float64."""
    native = load("sums")
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    batch, length, width = out.shape
    moves = "step" in needs and into is not None
    in_ones = in_radius = np.empty((0, 0))
    input_known = known is not None and known.ones is not None and known.radius is not None
    if known is not None and known.ones is not None and known.radius is not None:
        in_ones, in_radius = known.ones.double().numpy(), known.radius.double().numpy()
    real, first, columns, start, positions, by_row, segments, _ = tokens.arrays
    workers = _workers(out) if columns else 1
    target = position_sum
    if target is None:
        rows = length if columns else tokens.capacity
        target = torch.zeros((rows, width), dtype=torch.float64)
    found = np.empty((8, batch, length))
    keep = np.empty((batch, length), np.bool_)
    contexts = np.zeros((workers, (batch if by_row else tokens.number) + 1, width))
    units, tallies = np.zeros((workers, 2, 2, width)), np.zeros((workers, 2, 2, 3))
    by_position, wide_shift = target.numpy(), shift.numpy()
    arguments = (
        moves,
        input_known,
        in_ones,
        in_radius,
        real,
        first,
        wide_shift.astype(np.float64 if dtype == torch.float64 else np.float32),
        wide_shift,
        torch.finfo(dtype).max,
    )
    where = (
        columns,
        start if position_sum is not None else 0,
        positions,
        by_row,
        segments,
        bool(needs & OVER_TOKENS),
        found,
        keep,
        by_position,
    )
    loop = native.sums(dtype)

    def work(worker: int, begin: int, end: int, h: Tensor, y: Tensor, offset: int) -> None:
        own = contexts[worker], units[worker], tallies[worker]
        loop(h.numpy(), y.numpy(), *arguments, begin, end, offset, *where, *own)

    _share_out(work, workers, out, into if moves else None, dtype)
    sums = torch.from_numpy(found).unbind()
    r = Reduced(torch.from_numpy(keep), sums[native.SQUARE], sums[native.ONES])
    r.norm, r.radius = sums[native.NORM], sums[native.RADIUS]
    r.shifted_squared_norm = sums[native.AROUND]
    if "position_sum" in needs and position_sum is None:
        r.position_sum = target
    if "context_sum" in needs:
        by_context = torch.from_numpy(contexts.sum(0) if workers > 1 else contexts[0])[:-1]
        r.context_sum = gather_rows(by_context, tokens) if by_row else by_context
    if "directions" in needs:
        about, number = np.empty((2, width)), np.empty((2, 2), np.int64)
        offset, square = np.empty((2, 2, width)), np.empty((2, 2))
        native.directions(units, tallies, wide_shift, about, number, offset, square)
        r.directions = Directions(*map(torch.from_numpy, (about, number, offset, square)))
    if moves:
        _take_moves(r, sums)
    if "shifted" in needs:
        r.shifted = torch.where(r.keep[..., None], out.to(dtype) - shift.to(dtype), 0.0)
    return r


def reduce_move_fused(out: Tensor, into: Tensor) -> Reduced:
    """The reductions of the move from ``into`` to ``out`` (B, T, d) alone, for all tokens."""
    native = load("sums")
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    found = np.empty((8, *out.shape[:2]))
    loop = native.move(dtype)

    def work(worker: int, begin: int, end: int, h: Tensor, y: Tensor, offset: int) -> None:
        loop(h.numpy(), y.numpy(), begin, end, offset, found)

    _share_out(work, _workers(out), out, into, dtype)
    r = Reduced(torch.ones(out.shape[:2], dtype=torch.bool))
    _take_moves(r, torch.from_numpy(found).unbind())
    return r


def _take_moves(r: Reduced, found: Sequence[Tensor]) -> None:
    native = load("sums")
    r.radial, r.tangential = found[native.RADIAL], found[native.TANGENTIAL]
    r.outward = found[native.OUTWARD]


def _workers(states: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), states.numel() // PER_THREAD, states.shape[1]))


def _share_out(
    work: Callable[[int, int, int, Tensor, Tensor, int], None],
    workers: int,
    out: Tensor,
    into: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Have the columns worked on, each by one worker; this thread is one of them."""
    into = out if into is None else into
    length = out.shape[1]
    if out.dtype == dtype and into.dtype == dtype:
        out, into = out.contiguous(), into.contiguous()
        step = length
    else:
        step = max(1, PIECE // max(1, out.numel() // length))

    def columns_of(worker: int) -> None:
        begin, end = length * worker // workers, length * (worker + 1) // workers
        if step >= length and out.dtype == dtype and into.dtype == dtype:
            work(worker, begin, end, out, into, 0)
            return
        for at in range(begin, end, step):
            until = min(at + step, end)
            h, y = (s[:, at:until].to(dtype).contiguous() for s in (out, into))
            work(worker, at, until, h, y, at)

    others = [_pool(os.getpid()).submit(columns_of, worker) for worker in range(1, workers)]
    columns_of(0)
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads for one process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(
        max(1, (os.cpu_count() or 1) - 1), thread_name_prefix=f"geomhooks-{process}"
    )
