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

__all__ = ["OnePass", "reduce_fused", "reduce_move_fused", "workers_for"]

PER_THREAD = 1 << 17
PIECE = 1 << 18  # entries of a half-precision state that are widened at a time
OVER_TOKENS = frozenset({"position_sum", "context_sum", "directions"})


class OnePass(Reduced):
    """What one pass has put down, as tensors on its memory that are made when they are asked for.

    Args:
        numbers: float64, laid out as :func:`geomhooks.native.site.scratch` says.
        shape: (B, T, d) of the state.
        workers: how many threads took the pass.
        shift: (d,).
        moves: the block's input was there.
        groups: (M, d) sums by context, or None where they are gone.
        address: where the numbers are.
    """

    def __init__(
        self,
        numbers: Any,
        shape: Sequence[int],
        workers: int,
        shift: Tensor,
        *,
        moves: bool,
        groups: Any = None,
        address: int = 0,
    ) -> None:
        self._parts = numbers, shape, shift, moves, groups
        self.workers = workers
        self.address = address or load("site").address_of(numbers)

    @property
    def found(self) -> Any:
        """(8, B, T) what the entries of each token add up to."""
        numbers, (batch, length, _), *_ = self._parts
        return numbers[: 8 * batch * length].reshape(8, batch, length)

    def __getattr__(self, name: str) -> Any:
        super().__getattr__(name)  # which raises, should it be no reduction
        found = self.__dict__[name] = self._find(name)
        return found

    def _find(self, name: str) -> Any:
        numbers, (batch, length, width), shift, moves, groups = self._parts
        native, tokens, workers = load("sums"), batch * length, self.workers
        tallies = 8 * tokens + 4 * workers * width
        keep = tallies + 12 * workers
        if name in native.FOUND and (moves or name not in MOVES):
            return torch.from_numpy(self.found[native.FOUND.index(name)])
        if name == "keep":
            flags = numbers[keep:].view(np.bool_)[:tokens]
            return torch.from_numpy(flags.reshape(batch, length))
        if name == "context_sum" and groups is not None:
            return torch.from_numpy(groups)
        if name == "directions":
            units = numbers[8 * tokens : tallies].reshape(workers, 2, 2, width)
            parts = units, numbers[tallies:keep].reshape(workers, 2, 2, 3)
            about, number = np.empty((2, width)), np.empty((2, 2), np.int64)
            offset, square = np.empty((2, 2, width)), np.empty((2, 2))
            native.directions(*parts, shift.numpy(), about, number, offset, square)
            return Directions(*map(torch.from_numpy, (about, number, offset, square)))
        return None


MOVES = ("radial", "tangential", "outward")


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
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    batch, length, width = out.shape
    entered = into if "step" in needs else None
    columns, start = tokens.start is not None, tokens.start or 0
    target = position_sum
    if target is None:
        rows = length if columns else tokens.capacity
        target, start = torch.zeros((rows, width), dtype=torch.float64), 0
    whole = out.dtype == dtype and (entered is None or entered.dtype == dtype)
    workers = workers_for(out) if columns and whole else 1
    numbers = np.empty(load("site").scratch(batch, length, width, workers))
    groups = np.zeros((workers, (batch if tokens.segments is None else tokens.number) + 1, width))
    over_tokens = bool(needs & OVER_TOKENS)
    given = (numbers, groups, out, entered, tokens, start, shift, known, target, over_tokens)
    (_all_at_once if whole else _in_pieces)(dtype, workers, *given)
    r = OnePass(
        numbers,
        (batch, length, width),
        workers,
        shift,
        moves=entered is not None,
        groups=groups[0, :-1],
    )
    if position_sum is None:
        r.position_sum = target
    if "shifted" in needs:
        r.shifted = torch.where(r.keep[..., None], out.to(dtype) - shift.to(dtype), 0.0)
    return r


def _all_at_once(
    dtype: torch.dtype,
    workers: int,
    numbers: Any,
    groups: Any,
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    start: int,
    shift: Tensor,
    known: Reduced | None,
    target: Tensor,
    over_tokens: bool,
) -> None:
    """The pass over a state that need not be widened."""
    native = load("site")
    where = native.TokensRecord(tokens.arrays._replace(start=start), tokens.number)
    states = [out.contiguous(), *(() if into is None else (into.contiguous(),))]
    told = native.describe_site(dtype, shift.numpy(), over_tokens)
    native.describe_sums(told, {"position_sum": target.numpy()})
    told[native.OF_TOKENS], told[native.WORKERS] = where.address, workers
    told[native.H : native.H + len(states)] = [state.data_ptr() for state in states]
    if isinstance(known, OnePass):
        told[native.KNOWN] = known.address
    told[native.NUMBERS], told[native.CONTEXTS] = map(native.address_of, (numbers, groups))
    native.run()(native.address_of(told))


def _in_pieces(
    dtype: torch.dtype,
    workers: int,
    numbers: Any,
    groups: Any,
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    start: int,
    shift: Tensor,
    known: Reduced | None,
    target: Tensor,
    over_tokens: bool,
) -> None:
    """The pass over a state in half precision, a few columns at a time."""
    loop = load("sums").sums(dtype)
    batch, length, width = out.shape
    found, rest = np.split(numbers, [8 * batch * length])
    units, tallies, keep = np.split(rest, [4 * width, 4 * width + 12])
    found_of_input = np.empty((0, 0, 0))
    if isinstance(known, OnePass):
        found_of_input = known.found
    real, first, columns, _, positions, by_row, segments, _ = tokens.arrays
    wide, narrow = shift.numpy(), shift.to(dtype).numpy()
    numbers[8 * batch * length :] = 0
    for begin, end, h, y in _pieces(out, out if into is None else into, dtype):
        loop(
            h, y, into is not None, found_of_input, real, first, narrow, wide,
            torch.finfo(dtype).max, begin, end, begin, columns, start,
            positions, by_row, segments, over_tokens, found.reshape(8, batch, length),
            keep.view(np.bool_)[: batch * length].reshape(batch, length), target.numpy(),
            groups[0], units.reshape(2, 2, width), tallies.reshape(2, 2, 3),
        )  # fmt: skip
    if tokens.rows is not None and by_row:
        groups[0, :-1] = gather_rows(torch.from_numpy(groups[0, :-1]), tokens).numpy()


def reduce_move_fused(out: Tensor, into: Tensor) -> Reduced:
    """The reductions of the move from ``into`` to ``out`` (B, T, d) alone, for all tokens."""
    native = load("moves")
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    found = np.empty((8, *out.shape[:2]))
    if out.dtype == into.dtype == dtype:
        states = out.contiguous().numpy(), into.contiguous().numpy()
        native.run_moves(dtype, *states, found, workers_for(out))
    else:
        for begin, end, h, y in _pieces(out, into, dtype):
            native.move(dtype)(h, y, begin, end, begin, found)
    sums = dict(zip(load("sums").FOUND, torch.from_numpy(found).unbind(), strict=True))
    keep = torch.ones(out.shape[:2], dtype=torch.bool)
    return Reduced(keep, **{name: sums[name] for name in MOVES})


def workers_for(states: Tensor) -> int:
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
