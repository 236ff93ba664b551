"""The reductions on a CPU in one pass over memory, by the compiled loops of ``native``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from geomhooks.native import load
from geomhooks.reductions.plain import Directions, Reduced

if TYPE_CHECKING:
    from geomhooks.forwards.tokens import Tokens

__all__ = ["DTYPES", "OnePass", "reduce_fused", "reduce_move_fused", "workers_for"]

DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
PER_THREAD = 1 << 17
OVER_TOKENS = frozenset({"position_sum", "context_sum", "directions"})


class OnePass(Reduced):
    """What one pass has put down, as tensors on its memory that are made when they are asked for.

    Args:
        block: (n, size) float64, of which one row is laid out as
            :func:`geomhooks.native.site.scratch` says:
        row: its number, and
        address: where it is.
        shape: (B, T, d) of the state.
        workers: how many threads took the pass.
        shift: (d,).
        moves: the block's input was there.
        groups: (M, d) sums by context, or None where they are gone.
    """

    def __init__(
        self,
        block: Any,
        row: int,
        address: int,
        shape: Sequence[int],
        workers: int,
        shift: Tensor,
        moves: bool,
        groups: Any = None,
    ) -> None:
        self._parts = row, shape, shift, moves, groups
        self.block = block
        self.workers = workers
        self.address = address

    def __getattr__(self, name: str) -> Any:
        super().__getattr__(name)  # which raises, should it be no reduction
        found = self.__dict__[name] = self._find(name)
        return found

    def _find(self, name: str) -> Any:
        row, (batch, length, width), shift, moves, groups = self._parts
        numbers, tokens, workers = self.block[row], batch * length, self.workers
        native = load("sums")
        tallies = 8 * tokens + 4 * workers * width
        keep = tallies + 12 * workers
        if name in native.FOUND and (moves or name not in MOVES):
            at = native.FOUND.index(name) * tokens
            return torch.from_numpy(numbers[at : at + tokens].reshape(batch, length))
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
    native, (batch, length, width) = load("site"), out.shape
    states = alike(out, into) if into is not None and "step" in needs else alike(out)
    columns, start = tokens.start is not None, tokens.start or 0
    target = position_sum
    if target is None:
        rows = length if columns else tokens.capacity
        target, start = torch.zeros((rows, width), dtype=torch.float64, device="cpu"), 0
    workers = workers_for(out) if columns else 1
    block = np.empty((1, native.scratch(batch, length, width, workers)))
    groups = np.empty((workers, (batch if tokens.segments is None else tokens.number) + 1, width))
    where = native.TokensRecord(tokens.arrays._replace(start=start), tokens.number)
    told = native.describe_site(states[0].dtype, shift.numpy(), bool(needs & OVER_TOKENS))
    native.describe_sums(told, {"position_sum": target.numpy()})
    told[native.OF_TOKENS], told[native.WORKERS] = where.address, workers
    told[native.H : native.H + len(states)] = [state.data_ptr() for state in states]
    told[native.KNOWN] = known.address if isinstance(known, OnePass) else 0
    told[native.NUMBERS], told[native.CONTEXTS] = map(native.address_of, (block, groups))
    native.run()(native.address_of(told))
    where_found, moves, by_context = int(told[native.NUMBERS]), len(states) == 2, groups[0, :-1]
    r = OnePass(block, 0, where_found, out.shape, workers, shift, moves, by_context)
    if position_sum is None:
        r.position_sum = target
    if "shifted" in needs:
        dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
        r.shifted = torch.where(r.keep[..., None], out.to(dtype) - shift.to(dtype), 0.0)
    return r


def reduce_move_fused(out: Tensor, into: Tensor) -> Reduced:
    """The reductions of the move from ``into`` to ``out`` (B, T, d) alone, for all tokens."""
    found = np.empty((8, *out.shape[:2]))
    load("moves").run_moves(*alike(out, into), found, workers_for(out))
    sums = dict(zip(load("sums").FOUND, torch.from_numpy(found).unbind(), strict=True))
    keep = torch.ones(out.shape[:2], dtype=torch.bool, device="cpu")
    return Reduced(keep, **{name: sums[name] for name in MOVES})


def alike(*states: Tensor) -> list[Tensor]:
    """States as the loops read them: contiguous, and of one type, which they mostly are."""
    dtype = states[0].dtype
    if any(state.dtype != dtype for state in states):
        dtype = torch.promote_types(dtype, states[1].dtype)
    return [state.to(dtype).contiguous() for state in states]


def workers_for(states: Tensor) -> int:
    """How many threads are worth their starting."""
    most = min(states.numel() // PER_THREAD, states.shape[1])
    return max(1, min(load("threads").threads(), most)) if most > 1 else 1
