"""The reductions on a CPU, computed in tiles that stay in its cache.

Two passes over the hidden state: the first takes norms and sums of entries, which tell what each
token weighs; the second takes the sums over tokens. Each works on tiles of two megabytes, so
that only its first operation goes to memory, and everything of the size of (B, T) is done once,
outside the tiles. Sums are taken in pairs (torch's own), which in float32 keeps a digit more than a
matrix product does.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geomhooks.reductions.plain import Reduced, gather_rows, slope_of, unit_weights, wide_of

if TYPE_CHECKING:
    from geomhooks.tokens import Tokens

__all__ = ["reduce_tiled", "reduce_update_tiled"]

TILE_BYTES = 1 << 21

Tile = tuple[slice, slice]
_memory = threading.local()


def reduce_tiled(
    needs: frozenset[str],
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    shift: Tensor,
    known: Reduced | None = None,
) -> Reduced:
    """Compute what :func:`~geomhooks.reductions.plain.reduce_plain` computes."""
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    batch, length, width = out.shape
    shift = shift.to(dtype)
    tiles = _tiles(batch, length, width * dtype.itemsize)
    square, ones = _norms(out, tiles, dtype)
    keep = tokens.real & torch.isfinite(square)
    square, ones = torch.where(keep, square, 0.0), torch.where(keep, ones, 0.0)
    r = Reduced(keep, square, ones)
    r.shifted_squared_norm = torch.empty_like(square)
    if "unit_sum" in needs:
        r.shift_dot = torch.empty_like(square)
    if "shifted" in needs:
        r.shifted = out.new_empty(out.shape, dtype=dtype)
    columns, by_row = tokens.start is not None, tokens.segments is None
    by_position = by_context = None
    if "position_sum" in needs:
        rows = length if columns else tokens.capacity
        shape = torch.Size((rows, width))
        by_position = _scratch(shape, dtype if columns else wide_of(out), "position").zero_()
    if "context_sum" in needs:
        shape = torch.Size((batch if by_row else tokens.number + 1, width))
        by_context = out.new_zeros(shape, dtype=wide_of(out))
    weights = products = None
    if "unit_sum" in needs:
        weights = unit_weights(square, ones, keep, tokens.positions == 0, width)
        weights = weights.transpose(0, 1).contiguous()
        products = out.new_zeros((batch, 4, width), dtype=dtype)
    bits = torch.int64 if dtype == torch.float64 else torch.int32
    mask = -keep[..., None].to(bits)

    for tile in tiles:
        x = torch.sub(out[tile], shift, out=_scratch(out[tile].shape, dtype))
        # Tokens that do not count become zero whatever they hold. A product would let NaN through
        # and a masked fill is five times slower; the bits of any number and of zero give zero.
        x.view(bits).bitwise_and_(mask[tile])
        torch.linalg.vector_norm(x, dim=-1, out=r.shifted_squared_norm[tile])
        if r.shift_dot is not None:
            torch.matmul(x, shift, out=r.shift_dot[tile])
        if r.shifted is not None:
            r.shifted[tile] = x
        if by_position is not None and columns:
            by_position[tile[1]] += x.sum(0) if len(x) > 1 else x[0]
        elif by_position is not None:
            flat = tokens.positions[tile].reshape(-1)
            by_position.index_add_(0, flat, x.flatten(0, 1).to(by_position.dtype))
        if by_context is not None and by_row:
            # Summed in pairs, which keeps a digit more than a matrix product over a long context.
            by_context[tile[0]] += x.sum(1)
        elif by_context is not None and tokens.segments is not None:
            flat = tokens.segments[tile].reshape(-1)
            by_context.index_add_(0, flat, x.flatten(0, 1).to(by_context.dtype))
        if products is not None and weights is not None:
            part = products[tile[0]]
            torch.baddbmm(part, weights[tile[0], :, tile[1]], x, out=part)

    r.shifted_squared_norm.square_()
    r.position_sum = by_position
    if products is not None:
        r.unit_sum = products.sum(0, dtype=torch.float64)
    if by_context is not None:
        r.context_sum = gather_rows(by_context, tokens) if by_row else by_context[:-1]
    if "step" in needs and into is not None:
        _add_update(r, out, into, tiles, dtype, known)
    return r


def reduce_update_tiled(out: Tensor, into: Tensor) -> Reduced:
    """The reductions of the update from ``into`` to ``out`` alone, in float64.

    It is asked for once in a forward, and a large angle over many blocks needs the digits.
    """
    dtype = torch.float64
    batch, length, width = out.shape
    tiles = _tiles(batch, length, width * dtype.itemsize)
    r = Reduced(torch.ones((batch, length), dtype=torch.bool))
    _add_update(r, out, into, tiles, dtype, None)
    return r


def _norms(h: Tensor, tiles: list[Tile], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Squared norm and sum of the entries of each state, (B, T)."""
    norm, total = (h.new_empty(h.shape[:2], dtype=dtype) for _ in range(2))
    for tile in tiles:
        x = h[tile] if h.dtype == dtype else _scratch(h[tile].shape, dtype).copy_(h[tile])
        torch.linalg.vector_norm(x, dim=-1, out=norm[tile])
        torch.sum(x, -1, out=total[tile])
    return norm.square_(), total


def _add_update(
    r: Reduced,
    out: Tensor,
    into: Tensor,
    tiles: list[Tile],
    dtype: torch.dtype,
    known: Reduced | None,
) -> None:
    """Fill in the reductions of the update u = h - y from the block's input y."""
    if known is not None:
        r.in_squared_norm, r.in_ones = known.squared_norm, known.ones
    else:
        r.in_squared_norm, r.in_ones = _norms(into, tiles, dtype)
    assert r.in_squared_norm is not None
    assert r.in_ones is not None
    total, dot, slope, norm = (torch.empty_like(r.in_ones) for _ in range(4))
    width = out.shape[-1]
    for tile in tiles:
        y = into[tile].to(dtype)
        update = torch.sub(out[tile], y, out=_scratch(y.shape, dtype))
        product = torch.mul(update, y, out=_scratch(y.shape, dtype, "product"))
        torch.sum(product, -1, out=dot[tile])
        # Not the difference of two sums, which would lose the digits of a small update.
        torch.sum(update, -1, out=total[tile])
        slope[tile] = slope_of(
            r.in_squared_norm[tile], r.in_ones[tile], dot[tile], total[tile], width
        )
        torch.addcmul(update, y, slope[tile][..., None], value=-1, out=product)
        torch.linalg.vector_norm(product, dim=-1, out=norm[tile])
    r.update_ones, r.update_dot, r.slope = total, dot, slope
    r.across_squared_norm = norm.square_()


def _scratch(shape: torch.Size, dtype: torch.dtype, use: str = "tile") -> Tensor:
    """Memory to work in, kept from site to site; taken anew, its pages would be faulted in anew."""
    size = shape.numel()
    held: Tensor | None = getattr(_memory, use, None)
    if held is None or held.dtype != dtype or len(held) < size:
        with torch.inference_mode(False):
            held = torch.empty(size, dtype=dtype)
        setattr(_memory, use, held)
    return held[:size].view(shape)


def _tiles(batch: int, length: int, row_bytes: int) -> list[Tile]:
    """Cut (batch, length) rows into pieces of about ``TILE_BYTES``."""
    rows = max(1, TILE_BYTES // row_bytes)
    if rows >= length:
        step = max(1, rows // max(length, 1))
        return [(slice(b, min(b + step, batch)), slice(0, length)) for b in range(0, batch, step)]
    return [
        (slice(b, b + 1), slice(t, min(t + rows, length)))
        for b in range(batch)
        for t in range(0, length, rows)
    ]
