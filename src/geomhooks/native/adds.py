"""Adding a forward's small sums where they belong, without an operation for each of them."""

from __future__ import annotations

import numpy as np

from geomhooks.native.compiling import compiled

__all__ = ["count_tokens", "follow", "moments"]

LARGEST = np.finfo(np.float64).max


@compiled(
    "void(f8[:,:,:,::1], b1[:,:,::1], i8, b1, i8, i8[:,:], f8[::1], b1[::1],"
    "i8[:,::1], f8[:,::1], f8[:,::1], f8[:,::1], f8[:,::1])"
)
def moments(
    values, where, site, columns, start, at, shift, shifted, count, total, squares, least, greatest
):
    """Add values (F, L, B, T) of one of L sites to its moments: see ``Moments.add``."""
    features, _, batch, length = values.shape
    for f in range(features):
        if not shifted[f]:
            for b in range(batch):
                for t in range(length):
                    value = values[f, site, b, t]
                    if not shifted[f] and where[site, b, t] and abs(value) <= LARGEST:
                        shift[f], shifted[f] = value, True
        about = shift[f]
        for b in range(batch):
            if columns:
                for t in range(length):
                    value, row = values[f, site, b, t], start + t
                    counts = where[site, b, t] and abs(value) <= LARGEST
                    moved = value - about if counts else 0.0
                    count[f, row] += 1 if counts else 0
                    total[f, row] += moved
                    squares[f, row] += moved * moved
                    least[f, row] = min(least[f, row], value if counts else np.inf)
                    greatest[f, row] = max(greatest[f, row], value if counts else -np.inf)
            else:
                for t in range(length):
                    value, row = values[f, site, b, t], at[b, t]
                    if where[site, b, t] and abs(value) <= LARGEST:
                        moved = value - about
                        count[f, row] += 1
                        total[f, row] += moved
                        squares[f, row] += moved * moved
                        least[f, row] = min(least[f, row], value)
                        greatest[f, row] = max(greatest[f, row], value)


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
