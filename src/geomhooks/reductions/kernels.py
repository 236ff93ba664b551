"""The kernels of ``on_cuda``: a pass over the hidden states, and the mathematics of what it found.

A program of :func:`scan` owns ``C`` neighbouring columns of the batch and goes down its rows, a
tile of (C, d) at a time. Sums over entries tell what each token weighs; then, while the tile is
still in registers, it is added to the sums by position, which stay in registers until the last row,
and to those by context and of directions.

float32 is enough for sums over entries if large numbers are kept out of them. Most states are near
the shift s, and what they differ by, x = h - s, is small where their entries are large, so

    <h, 1> = <x, 1> + <s, 1>        |h|^2 = |s|^2 + 2 <x, s> + |x|^2

keep their digits, the terms of s being in float64. For the few states that are not near it, which
is |x| >= 2 |h|, sums over h itself are taken.

A tile is held as N pieces of E entries, so that a warp has whole rows of it where d is at most
1024: sums over entries then need no other warp. Names in the plural are tuples of N tensors (C, E),
or sums over them entry by entry.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["RAW", "add_by_position", "finish_directions", "finish_tokens", "scan"]

# What ``scan`` finds of each token, RAW numbers side by side. For tokens that are not near the
# shift, SUM and ALONG are <h, 1> and <h, s> instead.
RAW = 16
SQUARE, X_SQUARE = tl.constexpr(0), tl.constexpr(1)  # |h|^2, |x|^2
SUM, ALONG = tl.constexpr(2), tl.constexpr(3)  # <x, 1>, <x, s>
MOVE_SUM, MOVE_DOT = tl.constexpr(4), tl.constexpr(5)  # <u, 1> and <u, y> of u = h - y
SLOPE, ACROSS = tl.constexpr(6), tl.constexpr(7)  # c about <u_c, y_c> / |y_c|^2, and |u - c y|^2
IN_SUM, IN_SQUARE = tl.constexpr(8), tl.constexpr(9)  # of y
WEIGHT = tl.constexpr(10)  # 1 / |h - m 1|, and 0 where that has no direction
SIZE = tl.constexpr(16)

LARGEST = tl.constexpr(3.4028234663852886e38)
ROUNDING = tl.constexpr(5e-7)  # what of a sum of float32 numbers may be nothing but rounding


@triton.jit
def of_shift(shift, columns, inside, width):
    """The shift (d,) in float64; <s, 1>, |s|^2 and |s - mean|^2."""
    s = tl.load(shift + columns, mask=inside, other=0.0)
    total = tl.sum(s, 0)
    centred = tl.where(inside, s - total / width, 0.0)
    return s, total, tl.sum(s * s, 0), tl.sum(centred * centred, 0)


@triton.jit
def centred_square(near, square, x_square, ones, along, total, s_square, s_centred, width):
    """|h - m 1|^2 from sums over entries, in their type; 0 where it is nothing but rounding."""
    direct = square - ones * ones / width
    direct = tl.where(direct > ROUNDING * square, direct, 0.0)
    about = s_centred + 2 * (along - ones * total / width) + (x_square - ones * ones / width)
    noise = ROUNDING * (tl.sqrt(x_square) * tl.sqrt(s_square) + x_square)
    return tl.where(near, tl.where(about > noise, about, 0.0), direct)


@triton.jit
def side_by_side(a, b, c, d, e, f, g, h):
    """Eight numbers a token (C,) as (C, 2, 2, 2)."""
    ae, cg = tl.join(a, e), tl.join(c, g)
    bf, dh = tl.join(b, f), tl.join(d, h)
    return tl.join(tl.join(ae, cg), tl.join(bf, dh))


@triton.jit
def add_by_key(key, none, x, sums, columns, inside, width):
    """Add rows of x (C, d) to the rows ``key`` (C,) of ``sums``, once for each key that occurs."""
    current = tl.min(key, 0)
    while current < none:
        part = tl.sum(tl.where((key == current)[:, None], x, 0.0), 0)
        to = sums + current * width + columns
        tl.atomic_add(to, part.to(tl.float64), mask=inside, sem="relaxed")
        key = tl.where(key == current, none, key)
        current = tl.min(key, 0)


@triton.jit(do_not_specialize=["batch", "length", "rows_each", "capacity", "start", "number"])
def scan(
    h, h_row, h_column, h_entry,
    y, y_row, y_column, y_entry,
    real, first, contexts, shift, in_ones, in_radius,
    raw, by_position, by_context, units,
    batch, length, width, rows_each, capacity, start, number,
    STATE: tl.constexpr, MOVES: tl.constexpr, KNOWN: tl.constexpr, POSITIONS: tl.constexpr,
    CONTEXTS: tl.constexpr, UNITS: tl.constexpr, ALONE: tl.constexpr, STRIPES: tl.constexpr,
    C: tl.constexpr, N: tl.constexpr, E: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Read C columns of some rows of the hidden states h (B, T, d) and of the block's input y.

    Args:
        h: (B, T, d).
        h_row: its strides.
        h_column: see there.
        h_entry: see there.
        y: (B, T, d), looked at where ``MOVES``.
        y_row: its strides.
        y_column: see there.
        y_entry: see there.
        real: (B, T) bool.
        first: (B, T) bool, tokens at position 0; looked at where ``UNITS``.
        contexts: (B,) or (B, T) int64, as ``CONTEXTS`` says.
        shift: (d,) float64.
        in_ones: (B, T) float64, sum of the entries of y, where ``KNOWN``.
        in_radius: (B, T) float64, |y - m 1|, where ``KNOWN``.
        raw: (B, T, RAW) float32 is written.
        by_position: (capacity, d) float64 added to.
        by_context: (number, d) float64 added to.
        units: (STRIPES, 2, 2, d) float64 added to, by kind and group; summed over stripes.
        batch: B.
        length: T.
        width: d.
        rows_each: how many rows a program goes down.
        capacity: positions from here on are left out.
        start: position of column 0.
        number: contexts from here on are none.
        STATE: sums of h are wanted.
        MOVES: sums of h - y are wanted.
        KNOWN: those of y alone need not be taken.
        POSITIONS: positions are columns, and sums by position are wanted.
        CONTEXTS: 1: a row is a context; 2: each token has its own; 0: no sums by context.
        UNITS: sums of directions are wanted.
        ALONE: no other program adds to these columns.
        STRIPES: in how many places programs add up directions, so that they seldom meet.
        C: columns of a tile.
        N: pieces of a tile.
        E: entries of a piece.
        D: a power of two, at least d.
    """
    t = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    there = t < length
    lane = tl.arange(0, E)
    low = tl.program_id(1).to(tl.int64) * rows_each
    high = tl.minimum(low + rows_each, batch)
    nothing, zero = tl.zeros([C, E], tl.float32), tl.zeros([C], tl.float32)
    two = tl.arange(0, 2)
    eight = two[:, None, None] * 4 + two[None, :, None] * 2 + two[None, None, :]
    if STATE:
        every = tl.arange(0, D)
        _, wide_total, wide_square, wide_centred = of_shift(shift, every, every < width, width)
        total, s_square = wide_total.to(tl.float32), wide_square.to(tl.float32)
        s_centred = wide_centred.to(tl.float32)
    shifts, position_sums, centred_sums, raw_sums = (), (), (), ()
    for n in tl.static_range(N):
        if STATE:
            columns = n * E + lane
            s = tl.load(shift + columns, mask=columns < width, other=0.0)
            shifts = shifts + (s.to(tl.float32)[None, :],)
        position_sums = position_sums + (nothing,)
        centred_sums = centred_sums + (nothing,)
        raw_sums = raw_sums + (nothing,)
    stripe = (tl.program_id(0) + tl.program_id(1)) % STRIPES
    to_units = units + stripe * 4 * width
    for b in range(low, high):
        at = b * length + t
        present = tl.load(real + at, mask=there, other=0) != 0
        of_h, of_y = h + b * h_row + t * h_column, y + b * y_row + t * y_column
        square, x_square, ones, along, held = zero, zero, zero, zero, zero
        move_sum, move_dot, slope, across_square = zero, zero, zero, zero
        y_sum, y_square = zero, zero
        states, befores = (), ()
        for n in tl.static_range(N):
            columns = n * E + lane
            mask = present[:, None] & (columns < width)[None, :]
            place = of_h[:, None] + columns[None, :] * h_entry
            states = states + (tl.load(place, mask=mask, other=0.0).to(tl.float32),)
            if MOVES:
                place = of_y[:, None] + columns[None, :] * y_entry
                befores = befores + (tl.load(place, mask=mask, other=0.0).to(tl.float32),)
        if STATE:
            squares, x_sums, x_squares, alongs = nothing, nothing, nothing, nothing
            for n in tl.static_range(N):
                x = states[n] - shifts[n]
                squares += states[n] * states[n]
                x_sums += x
                x_squares += x * x
                alongs += x * shifts[n]
            square, x_square = tl.sum(squares, 1), tl.sum(x_squares, 1)
            ones, along = tl.sum(x_sums, 1), tl.sum(alongs, 1)
            near = x_square < 4 * square
            kept = present & (square <= LARGEST)  # which NaN is not
            begins = kept
            if UNITS:
                begins = kept & (tl.load(first + at, mask=there, other=0) != 0)
            far = tl.where(kept & ~near, 1, 0)
            found = tl.sum(far + tl.where(begins, C + 1, 0), 0)
            if found % (C + 1) > 0:  # some are far
                sums, alongs = nothing, nothing
                for n in tl.static_range(N):
                    sums += states[n]
                    alongs += states[n] * shifts[n]
                ones = tl.where(near, ones, tl.sum(sums, 1))
                along = tl.where(near, along, tl.sum(alongs, 1))
        if MOVES:
            moves, dots, acrosses = nothing, nothing, nothing
            for n in tl.static_range(N):
                moves += states[n] - befores[n]
                dots += (states[n] - befores[n]) * befores[n]
            move_sum, move_dot = tl.sum(moves, 1), tl.sum(dots, 1)
            if KNOWN:
                y_sum = tl.load(in_ones + at, mask=there, other=0.0).to(tl.float32)
                radius = tl.load(in_radius + at, mask=there, other=0.0).to(tl.float32)
                y_centred = radius * radius
            else:
                sums, squares = nothing, nothing
                for n in tl.static_range(N):
                    sums += befores[n]
                    squares += befores[n] * befores[n]
                y_sum, y_square = tl.sum(sums, 1), tl.sum(squares, 1)
                y_centred = y_square - y_sum * y_sum / width
            slope = (move_dot - move_sum * y_sum / width) / y_centred
            slope = tl.where(tl.abs(slope) <= LARGEST, slope, 0.0)
            for n in tl.static_range(N):
                across = (states[n] - befores[n]) - slope[:, None] * befores[n]
                acrosses += across * across
            across_square = tl.sum(acrosses, 1)
        if UNITS:
            length_square = tl.where(near, s_square + 2 * along + x_square, square)
            radius_square = centred_square(
                near, square, x_square, ones, along, total, s_square, s_centred, width
            )
            weight = tl.where(kept & (radius_square > 0), tl.rsqrt(radius_square), 0.0)
            raw_weight = tl.where(kept & (square > 0), tl.rsqrt(length_square), 0.0)
            held = weight
            if found > C:  # some begin
                for n in tl.static_range(N):
                    columns = n * E + lane
                    inside = columns < width
                    x = tl.where(begins[:, None], states[n] - shifts[n], 0.0)
                    part = tl.sum(weight[:, None] * x, 0).to(tl.float64)
                    to = to_units + width + columns
                    tl.atomic_add(to, part, mask=inside, sem="relaxed")
                    part = tl.sum(raw_weight[:, None] * x, 0).to(tl.float64)
                    tl.atomic_add(to + 2 * width, part, mask=inside, sem="relaxed")
                weight = tl.where(begins, 0.0, weight)
                raw_weight = tl.where(begins, 0.0, raw_weight)
        if STATE or MOVES:
            to = raw + at[:, None, None, None] * SIZE + eight[None, :, :, :]
            mask = there[:, None, None, None]
            part = side_by_side(
                square, x_square, ones, along, move_sum, move_dot, slope, across_square
            )
            tl.store(to, part, mask=mask)
            if UNITS or (MOVES and not KNOWN):
                part = side_by_side(y_sum, y_square, held, zero, zero, zero, zero, zero)
                tl.store(to + 8, part, mask=mask)
        if (POSITIONS or CONTEXTS) or UNITS:
            position_then, centred_then, raw_then = position_sums, centred_sums, raw_sums
            position_sums, centred_sums, raw_sums = (), (), ()
            if CONTEXTS == 1:
                to_context = by_context + tl.load(contexts + b) * width
            if CONTEXTS == 2:
                none = number.to(tl.int64)
                key = tl.load(contexts + at, mask=kept, other=0)
                key = tl.where(kept, key, none)
            for n in tl.static_range(N):
                columns = n * E + lane
                inside = columns < width
                x = tl.where(kept[:, None], states[n] - shifts[n], 0.0)
                if POSITIONS:
                    position_sums = position_sums + (position_then[n] + x,)
                else:
                    position_sums = position_sums + (nothing,)
                if UNITS:
                    centred_sums = centred_sums + (centred_then[n] + weight[:, None] * x,)
                    raw_sums = raw_sums + (raw_then[n] + raw_weight[:, None] * x,)
                else:
                    centred_sums = centred_sums + (nothing,)
                    raw_sums = raw_sums + (nothing,)
                if CONTEXTS == 1:
                    part = tl.sum(x, 0).to(tl.float64)
                    tl.atomic_add(to_context + columns, part, mask=inside, sem="relaxed")
                if CONTEXTS == 2:
                    add_by_key(key, none, x, by_context, columns, inside, width)
    for n in tl.static_range(N):
        columns = n * E + lane
        inside = columns < width
        if UNITS:
            part = tl.sum(centred_sums[n], 0).to(tl.float64)
            tl.atomic_add(to_units + columns, part, mask=inside, sem="relaxed")
            part = tl.sum(raw_sums[n], 0).to(tl.float64)
            tl.atomic_add(to_units + 2 * width + columns, part, mask=inside, sem="relaxed")
        if POSITIONS:
            to = by_position + (start + t)[:, None] * width + columns[None, :]
            mask = (there & (start + t < capacity))[:, None] & inside[None, :]
            added = position_sums[n].to(tl.float64)
            if ALONE:
                tl.store(to, tl.load(to, mask=mask, other=0.0) + added, mask=mask)
            else:
                tl.atomic_add(to, added, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["tokens", "length", "capacity"])
def add_by_position(
    h, h_row, h_column, h_entry, keep, order, positions, shift, by_position,
    tokens, length, width, capacity, C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Add h - shift to the sums by position, where positions are no columns.

    A program takes C tokens of all that are sorted by position, and D of their entries.

    Args:
        h: (B, T, d).
        h_row: its strides.
        h_column: see there.
        h_entry: see there.
        keep: (B, T) bool, those that count.
        order: (B T,) int64, tokens sorted by position.
        positions: (B T,) int64, theirs; capacity where there is none.
        shift: (d,) float64.
        by_position: (capacity, d) float64 added to.
        tokens: B T.
        length: T.
        width: d.
        capacity: how many positions there are.
        C: tokens of a tile.
        D: entries of a tile.
    """
    i = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    columns = tl.program_id(1) * D + tl.arange(0, D)
    inside = columns < width
    token = tl.load(order + i, mask=i < tokens, other=0)
    kept = tl.load(keep + token, mask=i < tokens, other=0) != 0
    none = capacity.to(tl.int64)
    position = tl.load(positions + i, mask=kept, other=0)
    position = tl.where(kept, position, none)
    mask = kept[:, None] & inside[None, :]
    place = (token // length) * h_row + (token % length) * h_column
    place = place[:, None] + columns[None, :] * h_entry
    state = tl.load(h + place, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(shift + columns, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(mask, state - s[None, :], 0.0)
    add_by_key(position, none, x, by_position, columns, inside, width)


@triton.jit
def of_direction(weight, near, x_square, dot, s_square):
    """:func:`geomhooks.accumulators.unit_vectors.offsets` of vectors of length 1 / ``weight``.

    ``dot`` is <x, s> for those near the shift, <h, s> for others.
    """
    directed = weight > 0
    s_length = tl.sqrt(s_square)
    inverse = 1 / tl.where(s_square > 0, s_length, 1.0)
    inverse = tl.where(s_square > 0, inverse, 0.0)
    length = 1 / tl.where(directed, weight, 1.0)
    shorter = -(2 * dot + x_square) / (length + s_length)
    shorter = tl.where(near, shorter, s_length - length)
    ratio = shorter * inverse
    spread = x_square + 2 * dot * ratio + tl.where(s_square > 0, shorter * shorter, 0.0)
    spread = tl.maximum(spread, 0.0) * weight * weight
    apart = tl.where(s_square > 0, tl.maximum(2 - 2 * dot * weight * inverse, 0.0), 1.0)
    spread = tl.where(near, spread, apart)
    line = tl.where(directed, ratio * weight, 0.0)
    return tl.where(directed, 1.0, 0.0), line, tl.where(directed, spread, 0.0)


@triton.jit
def tally(to, group, number, line, spread):
    """Add what a program's tokens have to three sums."""
    tl.atomic_add(to, tl.sum(tl.where(group, number, 0.0), 0), sem="relaxed")
    tl.atomic_add(to + 1, tl.sum(tl.where(group, line, 0.0), 0), sem="relaxed")
    tl.atomic_add(to + 2, tl.sum(tl.where(group, spread, 0.0), 0), sem="relaxed")


@triton.jit(do_not_specialize=["tokens"])
def finish_tokens(
    raw, real, first, shift, in_ones, in_radius, keep, found, tallies, tokens, width,
    STATE: tl.constexpr, MOVES: tl.constexpr, KNOWN: tl.constexpr, UNITS: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """What the sums over entries say of each token, in float64; C tokens a program.

    Args:
        raw: (B, T, RAW) float32, as :func:`scan` wrote it.
        real: (B, T) bool.
        first: (B, T) bool.
        shift: (d,) float64.
        in_ones: (B, T) float64, as in :func:`scan`.
        in_radius: (B, T) float64, as in :func:`scan`.
        keep: (B, T) bool is written where ``STATE``: tokens that are real and finite.
        found: (8, B, T) float64 is written, its rows as in :mod:`geomhooks.native.sums`.
        tallies: (2, 2, 3) float64 added to: number of directions, multiples of the shift in the
            sum of u - e, and sum of |u - e|^2.
        tokens: B T.
        width: d.
        STATE: as in :func:`scan`.
        MOVES: as in :func:`scan`.
        KNOWN: as in :func:`scan`.
        UNITS: as in :func:`scan`.
        C: tokens of a program.
        D: entries of the shift, at least d.
    """
    i = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    n = tokens.to(tl.int64)
    there = i < n
    of = raw + i * SIZE
    if STATE:
        columns = tl.arange(0, D)
        _, total, s_square, s_centred = of_shift(shift, columns, columns < width, width)
        square = tl.load(of + SQUARE, mask=there, other=0.0)
        kept = (tl.load(real + i, mask=there, other=0) != 0) & (square <= LARGEST)
        tl.store(keep + i, kept, mask=there)
        square = tl.where(kept, square, 0.0).to(tl.float64)
        x_square = tl.load(of + X_SQUARE, mask=kept, other=0.0).to(tl.float64)
        sums = tl.load(of + SUM, mask=kept, other=0.0).to(tl.float64)
        along = tl.load(of + ALONG, mask=kept, other=0.0).to(tl.float64)
        near = x_square < 4 * square
        centred = centred_square(
            near, square, x_square, sums, along, total, s_square, s_centred, width
        )
        square = tl.where(near, s_square + 2 * along + x_square, square)
        ones = tl.where(near, sums + total, sums)
        tl.store(found + i, tl.where(kept, square, 0.0), mask=there)
        tl.store(found + n + i, tl.where(kept, ones, 0.0), mask=there)
        tl.store(found + 2 * n + i, tl.where(kept, x_square, 0.0), mask=there)
        tl.store(found + 3 * n + i, tl.where(kept, tl.sqrt(square), 0.0), mask=there)
        tl.store(found + 4 * n + i, tl.where(kept, tl.sqrt(centred), 0.0), mask=there)
    if UNITS:
        begins = kept & (tl.load(first + i, mask=there, other=0) != 0)
        others = kept & ~begins
        weight = tl.load(of + WEIGHT, mask=kept, other=0.0).to(tl.float64)
        around = tl.maximum(x_square - sums * sums / width, 0.0)
        dot = along - sums * total / width
        directed, line, spread = of_direction(weight, near, around, dot, s_centred)
        tally(tallies, others, directed, line, spread)
        tally(tallies + 3, begins, directed, line, spread)
        weight = tl.where(square > 0, 1 / tl.sqrt(tl.where(square > 0, square, 1.0)), 0.0)
        directed, line, spread = of_direction(weight, near, x_square, along, s_square)
        tally(tallies + 6, others, directed, line, spread)
        tally(tallies + 9, begins, directed, line, spread)
    if MOVES:
        move_sum = tl.load(of + MOVE_SUM, mask=there, other=0.0).to(tl.float64)
        move_dot = tl.load(of + MOVE_DOT, mask=there, other=0.0).to(tl.float64)
        slope = tl.load(of + SLOPE, mask=there, other=0.0).to(tl.float64)
        across = tl.load(of + ACROSS, mask=there, other=0.0).to(tl.float64)
        if KNOWN:
            y_sum = tl.load(in_ones + i, mask=there, other=0.0)
            radius = tl.load(in_radius + i, mask=there, other=0.0)
        else:
            y_sum = tl.load(of + IN_SUM, mask=there, other=0.0).to(tl.float64)
            y_square = tl.load(of + IN_SQUARE, mask=there, other=0.0).to(tl.float64)
            radius = tl.sqrt(tl.maximum(y_square - y_sum * y_sum / width, 0.0))
        radial = (move_dot - move_sum * y_sum / width) / radius
        aside = move_sum - slope * y_sum
        across = tl.maximum(across - aside * aside / width, 0.0)
        rest = radial - slope * radius
        tangential = tl.sqrt(tl.maximum(across - rest * rest, 0.0))
        tl.store(found + 5 * n + i, radial, mask=there)
        tl.store(found + 6 * n + i, tangential, mask=there)
        tl.store(found + 7 * n + i, radius + radial, mask=there)


@triton.jit
def finish_directions(
    units, tallies, shift, about, count, offset, square, width,
    STRIPES: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Sums of unit vectors u about e; a program for each kind and group.

    Args:
        units: (STRIPES, 2, 2, d) float64, as :func:`scan` added to it.
        tallies: (2, 2, 3) float64, as :func:`finish_tokens` added to it.
        shift: (d,) float64.
        about: (2, d) float64, e is written, zero where the shift is.
        count: (2, 2) int64 is written.
        offset: (2, 2, d) float64 is written.
        square: (2, 2) float64 is written.
        width: d.
        STRIPES: as in :func:`scan`.
        D: entries of a program, at least d.
    """
    kind, group = tl.program_id(0), tl.program_id(1)
    which = kind * 2 + group
    columns = tl.arange(0, D)
    inside = columns < width
    vector, total, _, _ = of_shift(shift, columns, inside, width)
    sums = tl.zeros([D], tl.float64)
    for stripe in tl.static_range(STRIPES):
        place = (stripe * 4 + which) * width + columns
        sums += tl.load(units + place, mask=inside, other=0.0)
    if kind == 0:
        vector = tl.where(inside, vector - total / width, 0.0)
        sums -= tl.sum(sums, 0) / width
    length = tl.sqrt(tl.sum(vector * vector, 0))
    line = tl.load(tallies + which * 3 + 1)
    tl.store(offset + which * width + columns, sums + line * vector, mask=inside)
    tl.store(count + which, tl.load(tallies + which * 3).to(tl.int64))
    tl.store(square + which, tl.load(tallies + which * 3 + 2))
    if group == 0:
        e = vector / tl.where(length > 0, length, 1.0)
        tl.store(about + kind * width + columns, e, mask=inside)
