"""The reductions on a CPU in one pass over memory, by the compiled loops of ``native``.

Half-precision states are widened a piece at a time; others are shared out among torch's threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from geomhooks.native import load
from geomhooks.reductions.plain import Directions, Reduced, gather_rows

if TYPE_CHECKING:
    from geomhooks.tokens import Tokens

__all__ = ["reduce_fused", "reduce_move_fused"]

PER_THREAD = 1 << 17
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
    whole = out.dtype == dtype and (into is None or into.dtype == dtype)
    workers = _workers(out) if columns and whole else 1
    target = position_sum
    if target is None:
        rows = length if columns else tokens.capacity
        target, start = torch.zeros((rows, width), dtype=torch.float64), 0
    found = np.empty((8, batch, length))
    keep = np.empty((batch, length), np.bool_)
    contexts = np.zeros((workers, (batch if by_row else tokens.number) + 1, width))
    units, tallies = np.zeros((workers, 2, 2, width)), np.zeros((workers, 2, 2, 3))
    by_position, wide_shift = target.numpy(), shift.numpy()
    narrow_shift = wide_shift.astype(np.float64 if dtype == torch.float64 else np.float32)
    limit, over_tokens = torch.finfo(dtype).max, bool(needs & OVER_TOKENS)
    entered = out if into is None or not moves else into
    if workers > 1:
        h, y = out.contiguous().numpy(), entered.contiguous().numpy()
        native.run_shared(
            dtype, (batch, length, width, len(by_position), contexts.shape[1], workers),
            (moves, input_known, columns, start, by_row, over_tokens), limit,
            (h, y, real, first, narrow_shift, wide_shift, in_ones, in_radius, positions, segments,
             found, keep, by_position, contexts, units, tallies),
        )  # fmt: skip
    else:
        loop = native.sums(dtype)
        for begin, end, h, y in _pieces(out, entered, dtype):
            loop(
                h, y, moves, input_known, in_ones, in_radius, real, first, narrow_shift,
                wide_shift, limit, begin, end, begin, columns, start, positions, by_row, segments,
                over_tokens, found, keep, by_position, contexts[0], units[0], tallies[0],
            )  # fmt: skip
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
    for begin, end, h, y in _pieces(out, into, dtype):
        native.move(dtype)(h, y, begin, end, begin, found)
    r = Reduced(torch.ones(out.shape[:2], dtype=torch.bool))
    _take_moves(r, torch.from_numpy(found).unbind())
    return r


def _take_moves(r: Reduced, found: Sequence[Tensor]) -> None:
    native = load("sums")
    r.radial, r.tangential = found[native.RADIAL], found[native.TANGENTIAL]
    r.outward = found[native.OUTWARD]


def _workers(states: Tensor) -> int:
    """How many threads are worth their starting."""
    most = min(states.numel() // PER_THREAD, states.shape[1])
    return max(1, min(load("threads").threads(), most)) if most > 1 else 1


def _pieces(out: Tensor, into: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int, Any, Any]]:
    """The columns of two states, all at once or, to be widened, a few at a time."""
    length = out.shape[1]
    whole = out.dtype == dtype and into.dtype == dtype
    step = length if whole else max(1, PIECE // max(1, out.numel() // length))
    for at in range(0, length, step):
        h, y = (s[:, at : at + step].to(dtype).contiguous().numpy() for s in (out, into))
        yield at, min(at + step, length), h, y
