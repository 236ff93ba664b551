"""Adding a forward's small sums where they belong, without an operation for each of them."""

from __future__ import annotations

import numpy as np

from geomhooks.native.compiling import compiled

__all__ = ["add_directions", "add_feature", "count_tokens", "follow", "moments"]

LARGEST = np.finfo(np.float64).max


@compiled()
def sort_out(values, where, about, counts, moved, low, high):
    """Of one row's values, which count, what they are about a shift, and neutral ones elsewhere."""
    for t in range(len(values)):
        value = values[t]
        counted = where[t] and abs(value) <= LARGEST  # which NaN is not
        counts[t] = 1 if counted else 0
        moved[t] = value - about if counted else 0.0
        low[t] = value if counted else np.inf
        high[t] = value if counted else -np.inf


# A loop for each of the five, since only loops that write to one place are vectorized.


@compiled()
def add_to(values, total):
    """Add to a row."""
    for t in range(len(values)):
        total[t] += values[t]


@compiled()
def add_squares(values, total):
    """Add squares to a row."""
    for t in range(len(values)):
        total[t] += values[t] * values[t]


@compiled()
def lower_to(values, least):
    """Lower a row to values that are less."""
    for t in range(len(values)):
        least[t] = values[t] if values[t] < least[t] else least[t]


@compiled()
def raise_to(values, greatest):
    """Raise a row to values that are greater."""
    for t in range(len(values)):
        greatest[t] = values[t] if values[t] > greatest[t] else greatest[t]


@compiled()
def add_feature(
    row, where, columns, start, at, f, shift, shifted, count, total, squares, least, greatest,
    counts, moved, low, high,
):  # fmt: skip
    """Add one batch row of one feature; the last four are room for as many numbers."""
    length = len(row)
    for t in range(length):
        if shifted[f]:
            break
        if where[t] and abs(row[t]) <= LARGEST:
            shift[f], shifted[f] = row[t], True
    sort_out(row, where, shift[f], counts, moved, low, high)
    if columns:
        end = start + length
        add_to(counts, count[f, start:end])
        add_to(moved, total[f, start:end])
        add_squares(moved, squares[f, start:end])
        lower_to(low, least[f, start:end])
        raise_to(high, greatest[f, start:end])
        return
    for t in range(length):
        if counts[t]:
            to = at[t]
            count[f, to] += 1
            total[f, to] += moved[t]
            squares[f, to] += moved[t] * moved[t]
            least[f, to] = min(least[f, to], low[t])
            greatest[f, to] = max(greatest[f, to], high[t])


@compiled(
    "void(f8[:,:,:,::1], b1[:,:,::1], i8, b1, i8, i8[:,:], f8[::1], b1[::1],"
    "i8[:,::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[:,::1])"
)
def moments(
    values, where, site, columns, start, at, shift, shifted, count, total, squares, least, greatest
):
    """Add values (F, L, B, T) of one of L sites to its moments: see ``Moments.add``."""
    features, _, batch, length = values.shape
    counts = np.empty(length, np.int64)
    moved, low, high = np.empty(length), np.empty(length), np.empty(length)
    for f in range(features):
        for b in range(batch):
            to = at[0] if columns else at[b]
            add_feature(
                values[f, site, b], where[site, b], columns, start, to, f, shift, shifted,
                count, total, squares, least, greatest, counts, moved, low, high,
            )  # fmt: skip


@compiled("void(b1[:,::1], f8[:,:], b1, i8, i8[:,:], b1, i8[:,:], i8[::1], i8[::1], f8[::1],"
          "i8[::1])")  # fmt: skip
def count_tokens(
    keep, around, columns, start, positions, by_row, segments, rows, position_count, square,
    by_context,
):  # fmt: skip
    """Count tokens by position and by context, and add up |x|^2: see ``TwoWay.count``."""
    batch, length = keep.shape
    total = 0.0
    for b in range(batch):
        number = 0
        for t in range(length):
            if keep[b, t]:
                number += 1
                total += around[b, t]
                position_count[start + t if columns else positions[b, t]] += 1
                if not by_row:
                    by_context[segments[b, t]] += 1
        if by_row:
            by_context[rows[b]] += number
    square[0] += total


@compiled()
def add_multiple(row, factor, to):
    """Add a multiple of one row to another."""
    for j in range(row.shape[0]):
        to[j] += factor * row[j]


@compiled("void(f8[:,::1], i8[::1], i8, i8[::1], b1[::1],"
          "i8[::1], f8[::1], b1, i8[:,::1], f8[:,::1], i8[::1], b1[::1], f8[:,::1], i8[::1],"
          "f8[:,::1], f8[::1], f8[::1], f4[:,::1], i8[::1])")  # fmt: skip
def follow(
    sums, counts, first, slot, fresh,
    closed, weight, intervals, ends, differences, kept, begun, open_sum, open_count,
    edges, context_square, context_mean, kept_sum, kept_count,
):  # fmt: skip
    """Close contexts, then add a forward's to those open: see ``TwoWay.follow``."""
    width, nowhere = open_sum.shape[1], kept_sum.shape[0] - 1
    for i in range(closed.shape[0]):
        if not weight[i] > 0:
            continue
        row, w = open_sum[closed[i]], weight[i]
        square = 0.0
        for j in range(width):
            square += row[j] * row[j]
        context_square[0] += w * square
        add_multiple(row, w, context_mean)
        if intervals:
            add_multiple(row, w, edges[ends[i, 0]])
            add_multiple(row, -w, edges[ends[i, 1]])
        else:
            for t in range(differences.shape[0]):
                if differences[t, i] != 0:
                    add_multiple(row, w * differences[t, i], edges[t])
        if kept[i] < nowhere:
            if begun[i]:
                kept_sum[kept[i]] = 0
                kept_count[kept[i]] = 0
            for j in range(width):
                kept_sum[kept[i], j] += row[j]
            kept_count[kept[i]] += open_count[closed[i]]
    nowhere = open_sum.shape[0] - 1
    for i in range(slot.shape[0]):
        if slot[i] < nowhere:
            if fresh[i]:
                open_sum[slot[i]] = 0
                open_count[slot[i]] = 0
            add_multiple(sums[first + i], 1.0, open_sum[slot[i]])
            open_count[slot[i]] += counts[first + i]


@compiled("void(f8[:,::1], i8[:,::1], f8[:,:,::1], f8[:,::1], f8[:,::1], i8[:,::1], f8[:,:,::1],"
          "f8[:,::1])")  # fmt: skip
def add_directions(about, number, offset, square, e, count, total, squares):
    """Add sums of unit vectors: see ``UnitVectors.add``."""
    for kind in range(about.shape[0]):
        e[kind] = about[kind]
        for group in range(number.shape[1]):
            count[kind, group] += number[kind, group]
            squares[kind, group] += square[kind, group]
            add_multiple(offset[kind, group], 1.0, total[kind, group])
