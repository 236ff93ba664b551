"""One pass over a hidden state: all its sums over entries, positions, contexts and directions.

The pass goes by pieces of ``ROWS`` tokens of one batch row, which stay in the innermost cache while
they are read twice: first for the sums over entries, in float64, which tell what each token weighs;
then for the sums over tokens, in the type of the state within a piece and in float64 beyond it.
"""

from __future__ import annotations

import math

import numpy as np

from geomhooks.native.compiling import compiled, for_types
from geomhooks.native.entries import widen

__all__ = ["FOUND", "KINDS", "directions", "of_move", "of_state", "put_move", "settle", "sums"]

ROWS = 128
KINDS = 2  # directions are taken of centred states, and of states as they are

# Rows of what is found of each token.
FOUND = (
    "squared_norm", "ones", "shifted_squared_norm", "norm", "radius",
    "radial", "tangential", "outward",
)  # fmt: skip
CLOSE = 1e-6  # |h|^2 is |y|^2 + 2 <u, y> + |u|^2, unless it is so much less that digits are lost
SQUARE, ONES, AROUND, NORM, RADIUS, RADIAL, TANGENTIAL, OUTWARD = range(len(FOUND))


@compiled()
def of_state(row, shift):
    """<h, 1>, |h|^2 and <h, shift>."""
    ones = square = along = 0.0
    for j in range(row.shape[0]):
        h = np.float64(widen(row[j]))
        ones += h
        square += h * h
        along += h * shift[j]
    return ones, square, along


@compiled()
def of_move(row, before):
    """<u, 1>, <u, y> and |u|^2 of the move u = h - y."""
    ones = dot = square = 0.0
    for j in range(row.shape[0]):
        y = np.float64(widen(before[j]))
        u = np.float64(widen(row[j])) - y
        ones += u
        dot += u * y
        square += u * u
    return ones, dot, square


@compiled()
def of_step(row, before, shift):
    """<h, 1> and <h, shift> of a state, <u, y> and |u|^2 of its move u = h - y, in one go."""
    ones = along = dot = square = 0.0
    for j in range(row.shape[0]):
        h, y = np.float64(widen(row[j])), np.float64(widen(before[j]))
        ones += h
        along += h * shift[j]
        u = h - y
        dot += u * y
        square += u * u
    return ones, along, dot, square


@compiled()
def of_direction(inverse, shorter, square, dot, inverse_shift):
    """The offset of one unit vector from the shift's, of a vector whose length is 1 / ``inverse``.

    See :func:`geomhooks.accumulators.unit_vectors.offsets`. ``shorter`` is how much longer the
    shift is than the vector; float64 keeps its digits.
    """
    ratio = shorter * inverse_shift
    spread = square + 2 * dot * ratio + (shorter * shorter if inverse_shift > 0 else 0.0)
    return ratio * inverse, spread * inverse * inverse


@compiled()
def add_four(x0, x1, x2, x3, counts, weights, i, shift, p0, p1, p2, p3, context, centred, raw):
    """Add four tokens of one batch row to the sums of their positions and to those of the piece."""
    k0, k1, k2, k3 = counts[i], counts[i + 1], counts[i + 2], counts[i + 3]
    a0, a1, a2, a3 = weights[0, i], weights[0, i + 1], weights[0, i + 2], weights[0, i + 3]
    b0, b1, b2, b3 = weights[1, i], weights[1, i + 1], weights[1, i + 2], weights[1, i + 3]
    zero = shift.dtype.type(0)
    for j in range(shift.shape[0]):
        v0 = widen(x0[j]) - shift[j] if k0 else zero
        v1 = widen(x1[j]) - shift[j] if k1 else zero
        v2 = widen(x2[j]) - shift[j] if k2 else zero
        v3 = widen(x3[j]) - shift[j] if k3 else zero
        p0[j] += v0
        p1[j] += v1
        p2[j] += v2
        p3[j] += v3
        context[j] += (v0 + v1) + (v2 + v3)
        centred[j] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
        raw[j] += (b0 * v0 + b1 * v1) + (b2 * v2 + b3 * v3)


@compiled()
def put_move(found, b, t, width, ones, dot, square, in_ones, in_radius):
    """Radial and tangential part of one move, and how far out it ends: ``functional.steps``."""
    radial = (dot - ones * in_ones / width) / in_radius
    across = max(square - ones * ones / width, 0.0)
    found[RADIAL, b, t] = radial
    found[TANGENTIAL, b, t] = math.sqrt(max(across - radial * radial, 0.0))
    found[OUTWARD, b, t] = in_radius + radial


@compiled()
def measure(
    h, y, moves, known, real, first, wide_shift, about_shift, limit, b, lo, hi, counts, weights,
    found, keep, tallies,
):  # fmt: skip
    """Sums over the entries of one piece's tokens, which of them count, and what they weigh."""
    width = h.shape[2]
    shift_ones, shift_square, centred_length, raw_length = about_shift
    inverse_centred = 1 / centred_length if centred_length > 0 else 0.0
    inverse_raw = 1 / raw_length if raw_length > 0 else 0.0
    counts[:] = False
    weights[:] = 0
    for t in range(lo, hi):
        row, before = h[b, t], y[b, t]
        if moves:
            # What was left out where it was read before is written down as 0.
            if known.shape[0] and known[SQUARE, b, t] > 0:
                y_square, y_ones = known[SQUARE, b, t], known[ONES, b, t]
            else:
                y_ones, y_square, _ = of_state(before, wide_shift)
            ones, along, dot, move_square = of_step(row, before, wide_shift)
            square = y_square + 2 * dot + move_square
            if not square > CLOSE * y_square:  # of which NaN is one
                ones, square, along = of_state(row, wide_shift)
            y_radius = math.sqrt(max(y_square - y_ones * y_ones / width, 0.0))
            put_move(found, b, t, width, ones - y_ones, dot, move_square, y_ones, y_radius)
        else:
            ones, square, along = of_state(row, wide_shift)
        counted = real[b, t] and square <= limit  # which NaN is not
        keep[b, t] = counted
        if not counted:
            for what in range(RADIAL):
                found[what, b, t] = 0.0
            continue
        around = max(square - 2 * along + shift_square, 0.0)
        radius, norm = math.sqrt(max(square - ones * ones / width, 0.0)), math.sqrt(square)
        found[SQUARE, b, t], found[ONES, b, t], found[AROUND, b, t] = square, ones, around
        found[NORM, b, t], found[RADIUS, b, t] = norm, radius
        counts[t - lo] = True
        group = 1 if first[b, t] else 0
        dot, x_ones = along - shift_square, ones - shift_ones
        if radius > 0:
            inverse = 1 / radius
            line, spread = of_direction(
                inverse,
                centred_length - radius,
                max(around - x_ones * x_ones / width, 0.0),
                dot - x_ones * shift_ones / width,
                inverse_centred,
            )
            weights[0, t - lo] = inverse
            tallies[0, group, 0] += 1
            tallies[0, group, 1] += line
            tallies[0, group, 2] += spread
        if norm > 0:
            inverse = 1 / norm
            line, spread = of_direction(inverse, raw_length - norm, around, dot, inverse_raw)
            weights[1, t - lo] = inverse
            tallies[1, group, 0] += 1
            tallies[1, group, 1] += line
            tallies[1, group, 2] += spread


@compiled()
def add_first(row, shift, weights, i, units):
    """Add the direction of a token at position 0, which is kept apart, and only there."""
    for kind in range(KINDS):
        weight = weights[kind, i]
        weights[kind, i] = 0
        for j in range(shift.shape[0]):
            units[kind, 1, j] += weight * (widen(row[j]) - shift[j])


@compiled()
def pour(small, large):
    """Add a piece's sum to the wide one, and begin it anew."""
    for j in range(small.shape[0]):
        large[j] += small[j]
        small[j] = 0


@compiled()
def add_row(small, large):
    """Add one row to another."""
    for j in range(small.shape[0]):
        large[j] += small[j]


SIGNATURE = (
    "void({0}[:,:,::1], {0}[:,:,::1], b1, f8[:,:,:], b1[:,:], b1[:,:], {1}[::1],"
    "f8[::1], f8, i8, i8,"
    "b1, i8, i8[:,:], b1, i8[:,:], b1, f8[:,:,::1], b1[:,::1], f8[:,::1], f8[:,::1],"
    "f8[:,:,::1], f8[:,:,::1])"
)


@for_types(SIGNATURE)
def sums(
    h, y, moves, known, real, first, shift, wide_shift, limit, begin, end, columns, start,
    positions, by_row, segments, over_tokens, found, keep, by_position, by_context, units, tallies,
):  # fmt: skip
    """Add the columns from ``begin`` to ``end`` of a hidden state to the sums.

    Args:
        h: (B, T, d) hidden states.
        y: (B, T, d) the block's input; anything, where ``moves`` is False.
        moves: the sums of h - y are wanted.
        known: (8, B, T) what was found of y as the state of another site, or (0, 0, 0).
        real: (B, T) tokens that count if they are finite.
        first: (B, T) tokens at position 0.
        shift: (d,) what states are taken about.
        wide_shift: (d,) the same in float64.
        limit: the largest |h|^2 that is taken for finite.
        begin: first column.
        end: last column + 1.
        columns: positions are columns, from ``start`` on.
        start: position of column 0.
        positions: (B, T) where they are not.
        by_row: a row is a context.
        segments: (B, T) the context of each token, where it is not.
        over_tokens: sums over tokens are wanted.
        found: (8, B, T) what the entries of each token add up to.
        keep: (B, T) tokens that are real and finite.
        by_position: (P, d) added to; (0, d) where nobody wants it.
        by_context: (M + 1, d) added to.
        units: (2, 2, d) added to: x / |h - m 1| and x / |h|, at positions other than 0 and at 0.
        tallies: (2, 2, 3) added to: number, multiples of the shift, and |u - e|^2 of those.
    """
    batch, width, wanted = h.shape[0], h.shape[2], by_position.shape[0] > 0
    shift_ones = shift_square = 0.0
    for j in range(width):
        shift_ones += wide_shift[j]
        shift_square += wide_shift[j] * wide_shift[j]
    about_shift = (
        shift_ones,
        shift_square,
        math.sqrt(max(shift_square - shift_ones * shift_ones / width, 0.0)),
        math.sqrt(shift_square),
    )
    counts = np.zeros(ROWS, np.bool_)
    weights = np.zeros((KINDS, ROWS), shift.dtype)
    # Four tokens are added at a time, also beyond the last.
    position = np.zeros((min(ROWS, end - begin + 3), width), shift.dtype)
    context, centred, raw = (
        np.zeros(width, shift.dtype), np.zeros(width, shift.dtype), np.zeros(width, shift.dtype)
    )  # fmt: skip
    for lo in range(begin, end, ROWS):
        hi = min(lo + ROWS, end)
        for b in range(batch):
            measure(
                h, y, moves, known, real, first, wide_shift, about_shift, limit, b, lo, hi, counts,
                weights, found, keep, tallies,
            )  # fmt: skip
            if not over_tokens:
                continue
            for t in range(lo, hi):
                if first[b, t] and keep[b, t]:
                    add_first(h[b, t], shift, weights, t - lo, units)
            for i in range(0, hi - lo, 4):
                # Beyond the last token of the piece nothing counts, whatever is read.
                a, last = lo + i, hi - 1
                add_four(
                    h[b, a], h[b, min(a + 1, last)], h[b, min(a + 2, last)], h[b, min(a + 3, last)],
                    counts, weights, i, shift,
                    position[i], position[i + 1], position[i + 2], position[i + 3],
                    context, centred, raw,
                )  # fmt: skip
            pour(centred, units[0, 0])
            pour(raw, units[1, 0])
            if by_row:
                pour(context, by_context[b])
            else:
                context[:] = 0
                for t in range(lo, hi):
                    if keep[b, t]:
                        add_row(position[t - lo], by_context[segments[b, t]])
            if not columns:
                for t in range(lo, hi):
                    if wanted and keep[b, t]:
                        add_row(position[t - lo], by_position[positions[b, t]])
                position[:] = 0
            elif not by_row:
                for t in range(lo, hi):
                    if wanted:
                        add_row(position[t - lo], by_position[start + t])
                position[:] = 0
        if over_tokens and columns and by_row and wanted:
            for t in range(lo, hi):
                pour(position[t - lo], by_position[start + t])


@compiled(
    "void(f8[:,:,:,::1], f8[:,:,:,::1], f8[::1], f8[:,::1], i8[:,::1], f8[:,:,::1], f8[:,::1])"
)
def directions(units, tallies, shift, about, count, offset, square):
    """Sums of unit vectors u about e, from the parts that several threads have added up.

    Args:
        units: (n, 2, 2, d) as in :func:`sums`.
        tallies: (n, 2, 2, 3).
        shift: (d,).
        about: (2, d) e is written here, zero where the shift is.
        count: (2, 2) number of vectors, by kind and group, is written here;
        offset: (2, 2, d) the sum of u - e, and
        square: (2, 2) the sum of |u - e|^2.
    """
    width = shift.shape[0]
    for kind in range(KINDS):
        vector = shift - shift.mean() if kind == 0 else shift.copy()
        length = math.sqrt((vector * vector).sum())
        about[kind] = vector / length if length > 0 else vector
        for group in range(2):
            total, line = np.zeros(width), 0.0
            count[kind, group], square[kind, group] = 0, 0.0
            for part in range(units.shape[0]):
                total += units[part, kind, group]
                count[kind, group] += np.int64(tallies[part, kind, group, 0])
                line += tallies[part, kind, group, 1]
                square[kind, group] += tallies[part, kind, group, 2]
            if kind == 0:
                total -= total.mean()
            offset[kind, group] = total + line * vector


SETTLE = "void({0}[:,:,::1], i8[::1], b1[::1], f8[::1], b1[::1])"


@for_types(SETTLE)
def settle(h, sample, any_real, value, known):
    """Set the shift from a sample of the tokens of h (B, T, d), once: see ``Shift.settle``."""
    if known[0] or not any_real[0]:
        return
    length, width = h.shape[1], h.shape[2]
    third = sample.shape[0] // 3
    means = np.zeros((3, width))
    for i in range(3 * third):
        row = h[sample[i] // length, sample[i] % length]
        for j in range(width):
            if math.isfinite(row[j]):
                means[i % 3, j] += row[j]
    for j in range(width):
        a, b, c = means[0, j] / third, means[1, j] / third, means[2, j] / third
        # In the type of the hidden states, so that subtracting it rounds nothing away.
        value[j] = h.dtype.type(max(min(a, b), min(max(a, b), c)))
    known[0] = True
