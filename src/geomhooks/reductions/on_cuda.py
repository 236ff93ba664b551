"""The reductions on a GPU in one pass over memory, by the kernels next door.

What has to move for a site and forward, with N = B T tokens of width d and e bytes an entry:

    hidden states, block's input     2 e N d      read once
    sums by position, in the state   16 T d       read and written, 8 bytes each; as often as
                                                  programs share a column, where there are few
    sums by context                  8 N d / C    added in the L2 cache, a row for every C columns
    sums over entries, of tokens     2 * 64 N     written, and read again to be finished
    what is handed out of tokens     64 N         written

C is 8 where d is at most 1024, 4 at 2048, 2 at 4096 and 1 at 8192: a tile is always as wide as the
states, so that nothing has to be read again, and has to stay in registers. Only where positions are
no columns of the batch (left padding, packing) the states are read a second time, in the order of
their positions, since adding them up one by one would be N d atomic additions.

Nothing waits for the device, no shape depends on data and no allocation outlives the call but what
it returns, so a CUDA graph can hold it.

Sums are taken in float32 within a tile and in float64 beyond it, see ``kernels``.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.gpu import on_device_of, runs_on
from geomhooks.reductions.plain import Directions, Reduced, reduce_plain

if TYPE_CHECKING:
    from geomhooks.forwards.tokens import Tokens

__all__ = ["Tile", "kernels_run", "reduce_move_triton", "reduce_triton", "tile_for"]

TYPES = (torch.float32, torch.bfloat16, torch.float16)
STRIPES = 8
TOKENS = 128  # of a program that finishes tokens
SORTED, ENTRIES = 32, 256  # of a tile of tokens sorted by position
MOST_ROWS = 128  # that a program goes down, since it adds them up in float32


class Tile(NamedTuple):
    """How the states are cut up: C columns by N pieces of E entries, rows to a program, warps."""

    columns: int
    pieces: int
    entries: int
    rows: int
    warps: int


def kernels_run(*states: Tensor) -> bool:
    """The kernels can run on these states."""
    return all(state.dtype in TYPES for state in states) and runs_on(*states)


@cache
def load() -> Any:
    """The kernels, imported when they are wanted: Triton takes a while."""
    return import_module("geomhooks.reductions.kernels")


@cache
def tile_for(batch: int, length: int, width: int, processors: int) -> Tile:
    """A tile that stays in registers, which leaves each multiprocessor room for eight warps."""
    entries = max(16, _power_of_two(width) // 4)
    if width > 64:  # a warp reads 16 bytes a thread at once
        entries = max(256, entries)
    pieces = -(-width // entries)
    columns = max(1, min(_power_of_two(length), 8, 8192 // (4 * entries)))
    warps = max(1, min(columns * entries // 256, 8))
    tiles = -(-length // columns)
    programs = processors * (8 // warps)
    parts = min(batch, max(programs // tiles, -(-batch // MOST_ROWS), 1))
    return Tile(columns, pieces, entries, -(-batch // parts), warps)


@cache
def processors_of(device: torch.device) -> int:
    """How many multiprocessors there are."""
    if device.type != "cuda":  # Triton's interpreter
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def reduce_triton(
    needs: frozenset[str],
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    shift: Tensor,
    known: Reduced | None = None,
    position_sum: Tensor | None = None,
) -> Reduced:
    """Compute what :func:`~geomhooks.reductions.plain.reduce_plain` computes, in float64.

    States of other types than bfloat16, float16 and float32 are left to it.
    """
    moves = "step" in needs and into is not None
    if out.dtype not in TYPES or (moves and into is not None and into.dtype not in TYPES):
        return reduce_plain(needs, out, into, tokens, shift, known, position_sum)
    with on_device_of(out):
        return _reduce(needs, out, into if moves else None, tokens, shift, known, position_sum)


def reduce_move_triton(out: Tensor, into: Tensor) -> Reduced:
    """The reductions of the move from ``into`` to ``out`` (B, T, d) alone, for all tokens."""
    everything = torch.ones(out.shape[:2], dtype=torch.bool, device=out.device)
    with on_device_of(out):
        _, found = _scan(out, into, everything, everything, None, None)
    r = Reduced(everything)
    r.radial, r.tangential, r.outward = found[5:]
    return r


def _reduce(
    needs: frozenset[str],
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    shift: Tensor,
    known: Reduced | None,
    position_sum: Tensor | None,
) -> Reduced:
    batch, length, width = out.shape
    device, wide = out.device, torch.float64
    grid = tokens.grids
    columns, by_row = tokens.start is not None, tokens.segments is None
    positions = "position_sum" in needs or position_sum is not None
    contexts, units = "context_sum" in needs, "directions" in needs
    target, start = position_sum, tokens.start or 0
    if target is None and positions:
        target = torch.zeros((length if columns else tokens.capacity, width), dtype=wide,
                             device=device)  # fmt: skip
        start = 0
    number = batch if by_row else tokens.number
    # One allocation is zeroed, and cut up.
    sizes = [number * width if contexts else 0, STRIPES * 4 * width if units else 0, 12]
    by_context, unit_sums, tallies = torch.split(
        torch.zeros(sum(sizes), dtype=wide, device=device), sizes
    )
    keep, found = _scan(
        out, into, grid.real, grid.first, shift, known,
        positions=target if columns and positions else None, start=start,
        contexts=(grid.rows if by_row else grid.segments) if contexts else None, by_row=by_row,
        by_context=by_context, number=number, units=unit_sums if units else None,
        tallies=tallies,
    )  # fmt: skip
    if positions and not columns:
        assert target is not None
        grid_of = (-(-batch * length // SORTED), -(-width // ENTRIES))
        load().add_by_position[grid_of](
            out, *out.stride(), keep, grid.order, grid.sorted, shift, target,
            batch * length, length, width, tokens.capacity, C=SORTED, D=ENTRIES,
            enable_fp_fusion=True,
        )  # fmt: skip
    r = Reduced(keep, squared_norm=found[0], ones=found[1], shifted_squared_norm=found[2])
    r.norm, r.radius = found[3], found[4]
    if "position_sum" in needs and position_sum is None:
        r.position_sum = target
    if contexts:
        r.context_sum = by_context.view(number, width)
    if units:
        r.directions = _directions(unit_sums, tallies, shift, width)
    if into is not None:
        r.radial, r.tangential, r.outward = found[5:]
    if "shifted" in needs:
        x = out.to(torch.float32) - shift.to(torch.float32)
        r.shifted = torch.where(keep[..., None], x, 0.0)
    return r


def _scan(
    out: Tensor,
    into: Tensor | None,
    real: Tensor,
    first: Tensor,
    shift: Tensor | None,
    known: Reduced | None,
    *,
    positions: Tensor | None = None,
    start: int = 0,
    contexts: Tensor | None = None,
    by_row: bool = True,
    by_context: Tensor | None = None,
    number: int = 0,
    units: Tensor | None = None,
    tallies: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Read the states, and finish their tokens; returns ``keep``, and 8 numbers of each."""
    kernels = load()
    batch, length, width = out.shape
    tile = tile_for(batch, length, width, processors_of(out.device))
    raw = torch.empty((batch, length, kernels.RAW), dtype=torch.float32, device=out.device)
    keep = real
    if shift is not None:
        keep = torch.empty((batch, length), dtype=torch.bool, device=out.device)
    found = torch.empty((8, batch, length), dtype=torch.float64, device=out.device)
    in_ones = in_radius = found  # stand-ins, where nothing is known
    input_known = into is not None and known is not None
    if known is not None and known.ones is not None and known.radius is not None:
        in_ones, in_radius = known.ones.double().contiguous(), known.radius.double().contiguous()
    else:
        input_known = False
    y = out if into is None else into
    state, moves = shift is not None, into is not None
    parts = -(-batch // tile.rows)
    kernels.scan[(-(-length // tile.columns), parts)](
        out, *out.stride(), y, *y.stride(),
        real, first, first if contexts is None else contexts,
        found if shift is None else shift, in_ones, in_radius, raw,
        found if positions is None else positions, found if by_context is None else by_context,
        found if units is None else units,
        batch, length, width, tile.rows, 0 if positions is None else len(positions), start, number,
        STATE=state, MOVES=moves, KNOWN=input_known, POSITIONS=positions is not None,
        CONTEXTS=0 if contexts is None else 1 if by_row else 2, UNITS=units is not None,
        ALONE=parts == 1, STRIPES=STRIPES, C=tile.columns, N=tile.pieces, E=tile.entries,
        D=_power_of_two(width), num_warps=tile.warps, enable_fp_fusion=True,
    )  # fmt: skip
    kernels.finish_tokens[(-(-batch * length // TOKENS),)](
        raw, real, first, found if shift is None else shift, in_ones, in_radius, keep, found,
        found if tallies is None else tallies, batch * length, width,
        STATE=state, MOVES=moves, KNOWN=input_known, UNITS=units is not None,
        C=TOKENS, D=_power_of_two(width), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return keep, found.unbind()


def _directions(units: Tensor, tallies: Tensor, shift: Tensor, width: int) -> Directions:
    """Sums of unit vectors, from what was added up of them."""
    sizes = [2 * width, 4 * width, 4]
    space = torch.empty(sum(sizes), dtype=torch.float64, device=units.device)
    about, offset, square = torch.split(space, sizes)
    count = torch.empty((2, 2), dtype=torch.int64, device=units.device)
    load().finish_directions[(2, 2)](
        units, tallies, shift, about, count, offset, square, width,
        STRIPES=STRIPES, D=_power_of_two(width), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return Directions(about.view(2, width), count, offset.view(2, 2, width), square.view(2, 2))


def _power_of_two(size: int) -> int:
    """The least power of two that is at least this."""
    return 1 << max(0, size - 1).bit_length()
