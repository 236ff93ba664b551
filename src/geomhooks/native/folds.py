"""Entering complete contexts in the design of the two-way fit."""

from __future__ import annotations

import numpy as np

from geomhooks.native.compiling import compiled

__all__ = ["fold"]


@compiled("void(i4[:,::1], b1[::1], b1, i8, f8[:,::1], i8[::1], f8[::1], f8[::1], i8[:,::1],"
          "f8[:,::1])")  # fmt: skip
def fold(cells, closing, interval, reach, design, covered, averaged, weight, ends, edges):
    """Close contexts: see ``Contexts._fold``.

    A context that covers an interval of positions touches two rows and columns of the design, one
    with holes a few more.

    Args:
        cells: (M, T) how often each covers each position.
        closing: (M,) those that are closed.
        interval: each is known to cover an interval.
        reach: no position at or beyond it is covered.
        design: (T + 1, T + 1) added to.
        covered: (T + 1,) added to.
        averaged: (T + 1,) added to.
        weight: (M,) is written.
        ends: (M, 2) is written, where ``interval``.
        edges: (reach + 1, M) zeros, is written where not.
    """
    at, by = np.empty(reach + 1, np.int64), np.empty(reach + 1, np.int64)
    for i in range(len(closing)):
        weight[i] = 0.0
        length, number, before = 0, 0, 0
        if closing[i]:
            for t in range(reach + 1):
                here = cells[i, t] if t < reach else 0
                length += here
                if here != before:
                    at[number], by[number] = t, here - before
                    number += 1
                before = here
        if interval:
            ends[i, 0] = ends[i, 1] = 0
        if length == 0:
            continue
        weight[i] = 1.0 / length
        if interval:
            ends[i, 0], ends[i, 1] = at[0], at[number - 1]
        for a in range(number):
            covered[at[a]] += by[a]
            averaged[at[a]] += weight[i] * by[a]
            if not interval:
                edges[at[a], i] = by[a]
            for c in range(number):
                design[at[a], at[c]] += weight[i] * by[a] * by[c]
