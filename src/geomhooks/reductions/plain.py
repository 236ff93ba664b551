"""The definition of every reduction, in ordinary torch operations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.accumulators.unit_vectors import offsets
from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.sphere.steps import centred_square, move

__all__ = [
    "NAMES",
    "Directions",
    "Reduced",
    "directions_of",
    "reduce_move_plain",
    "reduce_plain",
    "sites_that_wait",
    "unit_weights",
]

NAMES = frozenset(
    {
        "squared_norm",
        "ones",
        "norm",
        "radius",
        "shifted_squared_norm",
        "position_sum",
        "context_sum",
        "directions",
        "step",
        "shifted",
    }
)


LENGTHS = frozenset({"norm", "radius"})
OF_A_TOKEN = 8 * 8  # bytes that a site's reductions keep of a token, at most
MAY_WAIT = 1 << 20


class Directions(NamedTuple):
    """Sums of unit vectors u about a fixed one e, which is the direction of the shift.

    By kind (0: of h less the mean m of its entries, 1: of h itself) and by group (0: tokens at
    positions other than 0, 1: tokens at position 0).

    Attributes:
        about: (2, d) e, by kind.
        number: (2, 2) int64, how many; a zero vector has no direction.
        offset: (2, 2, d) sum of u - e.
        square: (2, 2) sum of |u - e|^2.
    """

    about: Tensor
    number: Tensor
    offset: Tensor
    square: Tensor


class Reduced:
    """The reductions of one site and forward; ``None`` where no statistic needs it.

    x = h - shift. Sums run over the tokens in ``keep``; all are in float32 at least, and in float64
    where the hidden states are or it costs nothing more.

    Attributes:
        keep: (B, T) bool, tokens that are real and whose hidden state is finite.
        squared_norm: (B, T) |h|^2.
        ones: (B, T) sum of the entries of h.
        norm: (B, T) |h|.
        radius: (B, T) |h - m 1|, m the mean of the entries of h.
        shifted_squared_norm: (B, T) |x|^2.
        position_sum: (T, d), or (capacity, d) where positions are not columns: sum of x. None where
            it was added straight to a tensor of the state.
        context_sum: (M, d) sum of x.
        directions: sums of the states' unit vectors.
        radial: (B, T) part of the centred update from the block's input y along y_c = y - m 1.
        tangential: (B, T) its part across y_c.
        outward: (B, T) |y_c| + radial, so that the angle of the step is atan2(tangential, outward).
        shifted: (B, T, d) x, 0 where not kept; only for statistics that need products of it.
    """

    keep: Tensor
    squared_norm: Tensor | None
    ones: Tensor | None
    norm: Tensor | None
    radius: Tensor | None
    shifted_squared_norm: Tensor | None
    position_sum: Tensor | None
    context_sum: Tensor | None
    directions: Directions | None
    radial: Tensor | None
    tangential: Tensor | None
    outward: Tensor | None
    shifted: Tensor | None

    def __init__(self, keep: Tensor, **found: Any) -> None:
        self.keep = keep
        self.__dict__.update(found)

    def __getattr__(self, name: str) -> Any:
        if name not in Reduced.__annotations__:
            raise AttributeError(f"{name!r} is no reduction; see geomhooks.reductions.Reduced")
        return None


def sites_that_wait(tokens: int, width: int) -> int:
    """How many sites of a forward may keep the reductions of their tokens to be added up together.

    Together they take no more memory than a quarter of a hidden state in float32, or a MiB.

    Args:
        tokens: of the forward, B T.
        width: d.
    """
    return max(1, max(MAY_WAIT, tokens * width) // (OF_A_TOKEN * tokens))


def reduce_plain(
    needs: frozenset[str],
    out: Tensor,
    into: Tensor | None,
    tokens: Tokens,
    shift: Tensor,
    known: Reduced | None = None,
    position_sum: Tensor | None = None,
) -> Reduced:
    """Compute what is needed of ``out`` (B, T, d) and the block's input ``into`` (B, T, d).

    Args:
        needs: names out of :data:`NAMES`.
        out: hidden states.
        into: the block's input, or None.
        tokens: which entries are real, their positions and contexts.
        shift: (d,) the vector that sums are taken about.
        known: the reductions of ``into`` as the output of another site.
        position_sum: (capacity, d) a tensor that the sums by position are added to, instead of
            being handed out.
    """
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    width = out.shape[-1]
    h = out.to(dtype)
    shift = shift.to(dtype)
    squared = h.square().sum(-1)
    keep = tokens.real & torch.isfinite(squared)
    x = torch.where(keep[..., None], h - shift, 0.0)
    r = Reduced(keep)
    r.squared_norm = torch.where(keep, squared, 0.0)
    r.ones = torch.where(keep, h.sum(-1), 0.0)
    if needs & LENGTHS:
        wide = wide_of(h)
        square, ones = r.squared_norm.to(wide), r.ones.to(wide)
        r.norm, r.radius = square.sqrt(), centred_square(square, ones, width).sqrt()
    r.shifted_squared_norm = x.square().sum(-1)
    if "position_sum" in needs and position_sum is None:
        r.position_sum = sum_by_position(x, tokens)
    elif position_sum is not None:
        add_by_position(position_sum, x, tokens)
    if "context_sum" in needs:
        r.context_sum = sum_by_context(x, tokens)
    if "directions" in needs:
        first = tokens.first
        weights = unit_weights(r.squared_norm, r.ones, keep, first, width)
        sums = (weights.view(4, -1) @ x.reshape(-1, width)).view(2, 2, width)
        r.directions = directions_of(r, sums, x @ shift, shift, first)
    if "step" in needs and into is not None:
        add_move(r, h, into.to(dtype), known)
    if "shifted" in needs:
        r.shifted = x
    return r


def add_move(r: Reduced, h: Tensor, y: Tensor, known: Reduced | None = None) -> Reduced:
    """Fill in the reductions of the update h - y from the block's input y."""
    if known is not None and known.squared_norm is not None and known.ones is not None:
        square, ones = known.squared_norm.to(y.dtype), known.ones.to(y.dtype)
    else:
        square, ones = y.square().sum(-1), y.sum(-1)
    update, width = h - y, h.shape[-1]
    total, dot = update.sum(-1), (update * y).sum(-1)
    slope = slope_of(square, ones, dot, total, width)
    across = (update - slope[..., None] * y).square().sum(-1)
    sums = (v.to(wide_of(h)) for v in (square, ones, total, dot, slope, across))
    r.radial, r.tangential, r.outward = move(width, *sums)
    return r


def slope_of(square: Tensor, ones: Tensor, dot: Tensor, update_ones: Tensor, width: int) -> Tensor:
    """The multiple of y_c that comes nearest to u_c, both less the mean of their entries."""
    slope = (dot - update_ones * ones / width) / (square - ones.square() / width)
    return slope.nan_to_num(0.0, 0.0, 0.0)


def reduce_move_plain(out: Tensor, into: Tensor) -> Reduced:
    """The reductions of the move from ``into`` to ``out`` (B, T, d) alone, for all tokens."""
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    everything = torch.ones(out.shape[:-1], dtype=torch.bool, device=out.device)
    return add_move(Reduced(everything), out.to(dtype), into.to(dtype))


def unit_weights(squared: Tensor, ones: Tensor, keep: Tensor, first: Tensor, width: int) -> Tensor:
    """Weights (2, 2, B, T), by kind and group, with which x adds up to the sums of directions."""
    centred = 1 / (squared - ones.square() / width).clamp(min=0).sqrt()
    raw = 1 / squared.sqrt()
    # A zero vector has no direction: its weight is 0, not infinite.
    weights = torch.stack([centred, raw])
    weights = torch.where(keep & torch.isfinite(weights), weights, 0.0)
    return torch.stack([torch.where(first, 0.0, weights), torch.where(first, weights, 0.0)], 1)


def directions_of(
    r: Reduced, unit_sum: Tensor, along: Tensor, shift: Tensor, first: Tensor
) -> Directions:
    """Sums of unit vectors from what is known of each token.

    Args:
        r: squared norms and sums of entries.
        unit_sum: (2, 2, d) sums of x times :func:`unit_weights`.
        along: (B, T) <x, shift>.
        shift: (d,).
        first: (B, T) tokens at position 0.
    """
    assert r.squared_norm is not None
    assert r.ones is not None
    assert r.shifted_squared_norm is not None
    wide, width = wide_of(unit_sum), shift.shape[0]
    shift, along = shift.to(wide), along.to(wide)
    square, ones, around = (v.to(wide) for v in (r.squared_norm, r.ones, r.shifted_squared_norm))
    total = shift.sum()
    x_ones = ones - total
    # Centred: less the parts along the ones direction, of x as of the shift.
    lengths = torch.stack([(square - ones.square() / width).clamp(min=0), square]).sqrt()
    squares = torch.stack([around - x_ones.square() / width, around])
    dots = torch.stack([along - x_ones * total / width, along])
    vectors = torch.stack([shift - shift.mean(), shift])
    shift_lengths = torch.linalg.vector_norm(vectors, dim=1)
    each = offsets(lengths, squares, dots, shift_lengths[:, None, None])
    directed = r.keep & (lengths > 0)
    groups = torch.stack([directed & ~first, directed & first], 1)
    multiple = torch.where(groups, each.along[:, None], 0.0).sum((2, 3))
    sums = unit_sum.to(wide)
    sums = torch.stack([sums[0] - sums[0].mean(-1, keepdim=True), sums[1]])
    return Directions(
        vectors / shift_lengths.clamp(min=torch.finfo(wide).tiny)[:, None],
        groups.sum((2, 3)),
        sums + multiple[..., None] * vectors[:, None],
        torch.where(groups, each.square[:, None], 0.0).sum((2, 3)),
    )


def sum_by_position(x: Tensor, tokens: Tokens) -> Tensor:
    """Sum x (B, T, d) by position."""
    if tokens.start is not None:
        return x.sum(0)
    sums = x.new_zeros((tokens.capacity, x.shape[-1]), dtype=wide_of(x))
    add_by_position(sums, x, tokens)
    return sums


def add_by_position(sums: Tensor, x: Tensor, tokens: Tokens) -> None:
    """Add x (B, T, d) to sums by position (capacity, d)."""
    if tokens.start is not None:
        sums[tokens.start : tokens.start + tokens.length].add_(x.sum(0))
    else:
        sums.index_add_(0, tokens.positions.reshape(-1), x.flatten(0, 1).to(sums.dtype))


def sum_by_context(x: Tensor, tokens: Tokens) -> Tensor:
    """Sum x (B, T, d) by context, (M, d)."""
    if tokens.segments is not None:
        sums = x.new_zeros((tokens.number + 1, x.shape[-1]), dtype=wide_of(x))
        sums.index_add_(0, tokens.segments.reshape(-1), x.flatten(0, 1).to(sums.dtype))
        return sums[:-1]
    return gather_rows(x.sum(1), tokens)


def gather_rows(sums: Tensor, tokens: Tokens) -> Tensor:
    """Sums by row (B, d) to sums by context, where several rows may be one context."""
    if tokens.rows is None:
        return sums
    return torch.zeros_like(sums).index_add_(0, tokens.rows, sums)


def wide_of(x: Tensor) -> torch.dtype:
    """The type for sums of many rows, float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64
