"""Adding up, at the end of a forward, what ``Sphere`` has put down at its sites.

Of each site the numbers of its tokens go to moments by position, to a histogram and to the sums of
directions; sites are shared out among torch's threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import carray

from geomhooks.native.adds import add_directions, add_feature
from geomhooks.native.site import (
    BATCH,
    COLUMNS,
    FIRST,
    LENGTH,
    POSITIONS,
    REAL,
    START,
    TOKENS,
    address_of,
    call,
)
from geomhooks.native.sums import NORM, ONES, OUTWARD, RADIAL, RADIUS, TANGENTIAL, directions
from geomhooks.native.threads import address, run_on_threads, team_size, thread_number, threads

__all__ = ["EXTRA", "NUMBERS", "PARTS", "add_notes", "describe_note"]

# What the forward tells,
OF_TOKENS, SITES, NOTES, ANGLES, PATHS, BEFORE, WORKERS, MEASURE, ADD, ALL = range(10)
# and each site: numbers, and addresses, 0 for what it has not.
(WIDTH, NUMBERS, PARTS, SHIFT, HAS_INPUT, HAS_PATH, IS_FIRST, CHORD, SPHERE_GAP, PLANE_GAP,
 FEATURES, CAPACITY, MOMENT_SHIFT, SHIFTED, COUNT, TOTAL, SQUARES, LEAST, GREATEST,
 HISTOGRAM, BINS, LOW, PER_UNIT, LOST, ABOUT, NUMBER, OFFSET, SQUARE,
 NOTE) = range(29)  # fmt: skip
# Where the record of a site says that it has each of the features; norm, ones, their share and the
# radius are everywhere.
WANTS = (
    -1, -1, -1, -1, HAS_INPUT, HAS_INPUT, HAS_INPUT, HAS_PATH, CHORD, CHORD, SPHERE_GAP, PLANE_GAP
)  # fmt: skip
MOMENTS = {
    "shift": MOMENT_SHIFT,
    "shifted": SHIFTED,
    "count": COUNT,
    "total": TOTAL,
    "squares": SQUARES,
    "min": LEAST,
    "max": GREATEST,
}
EXTRA = {"chord": CHORD, "sphere_gap": SPHERE_GAP, "plane_gap": PLANE_GAP}
DIRECTIONS = {"about": ABOUT, "count": NUMBER, "offset": OFFSET, "square": SQUARE}


@cache
def measure() -> Any:
    """The angle of the step at every token of some of the sites."""

    def share(data):  # type: ignore[no-untyped-def]
        told = carray(data, (ALL,), np.int64)
        t = carray(address(told[OF_TOKENS]), (TOKENS,), np.int64)
        batch, length, sites = t[BATCH], t[LENGTH], told[SITES]
        notes = carray(address(told[NOTES]), (sites, NOTE), np.int64)
        angles = carray(address(told[ANGLES]), (sites, batch, length), np.float64)
        for site in range(thread_number(), sites, team_size()):
            if notes[site, HAS_INPUT]:
                found = carray(address(notes[site, NUMBERS]), (8, batch, length), np.float64)
                for b in range(batch):
                    for i in range(length):
                        angles[site, b, i] = math.atan2(
                            found[TANGENTIAL, b, i], found[OUTWARD, b, i]
                        )

    return numba.cfunc("void(voidptr)", cache=True)(share)


@cache
def add() -> Any:
    """Add some of the sites to their states."""

    def share(data):  # type: ignore[no-untyped-def]
        told = carray(data, (ALL,), np.int64)
        t = carray(address(told[OF_TOKENS]), (TOKENS,), np.int64)
        batch, length, sites = t[BATCH], t[LENGTH], told[SITES]
        grid = (batch, length)
        notes = carray(address(told[NOTES]), (sites, NOTE), np.int64)
        angles = carray(address(told[ANGLES]), (sites, batch, length), np.float64)
        paths = carray(address(told[PATHS]), (sites, batch, length), np.float64)
        real = carray(address(t[REAL]), grid, np.bool_)
        first = carray(address(t[FIRST]), grid, np.bool_)
        positions = carray(address(t[POSITIONS]), grid, np.int64)
        columns, start = t[COLUMNS] != 0, t[START]
        counts, row = np.empty(length, np.int64), np.empty(length)
        moved, low, high = np.empty(length), np.empty(length), np.empty(length)
        for site in range(thread_number(), sites, team_size()):
            n = notes[site]
            width, parts = n[WIDTH], n[PARTS]
            found = carray(address(n[NUMBERS]), (8, batch, length), np.float64)
            at = n[NUMBERS] + 8 * 8 * batch * length
            units = carray(address(at), (parts, 2, 2, width), np.float64)
            at += 8 * 4 * parts * width
            tallies = carray(address(at), (parts, 2, 2, 3), np.float64)
            keep = carray(address(at + 8 * 12 * parts), grid, np.bool_)
            features, size = n[FEATURES], (n[FEATURES], n[CAPACITY])
            shift = carray(address(n[MOMENT_SHIFT]), (features,), np.float64)
            shifted = carray(address(n[SHIFTED]), (features,), np.bool_)
            count = carray(address(n[COUNT]), size, np.int64)
            total = carray(address(n[TOTAL]), size, np.float64)
            squares = carray(address(n[SQUARES]), size, np.float64)
            least = carray(address(n[LEAST]), size, np.float64)
            greatest = carray(address(n[GREATEST]), size, np.float64)
            chord = carray(address(n[CHORD]), grid, np.float64)
            sphere_gap = carray(address(n[SPHERE_GAP]), grid, np.float64)
            plane_gap = carray(address(n[PLANE_GAP]), grid, np.float64)
            root, f = math.sqrt(width), 0
            for what in range(len(WANTS)):  # in the order of `sphere_notes.features`
                if WANTS[what] >= 0 and n[WANTS[what]] == 0:
                    continue
                for b in range(batch):
                    if what == 0:
                        row[:] = found[NORM, b]
                    elif what == 1:
                        row[:] = found[ONES, b] / root
                    elif what == 2:
                        for i in range(length):
                            norm, ones = found[NORM, b, i], found[ONES, b, i]
                            row[i] = (ones / norm) ** 2 / width if norm != 0 else 0.0
                    elif what == 3:
                        row[:] = found[RADIUS, b]
                    elif what == 4:
                        row[:] = angles[site, b]
                    elif what == 5:
                        row[:] = found[RADIAL, b]
                    elif what == 6:
                        row[:] = found[TANGENTIAL, b]
                    elif what == 7:
                        row[:] = paths[site, b]
                    elif what == 8:
                        row[:] = chord[b]
                    elif what == 9:
                        row[:] = paths[site, b] / chord[b]
                    elif what == 10:
                        row[:] = sphere_gap[b]
                    else:
                        row[:] = plane_gap[b]
                    add_feature(
                        row, keep[b], columns, start, positions[b], f, shift, shifted, count,
                        total, squares, least, greatest, counts, moved, low, high,
                    )  # fmt: skip
                f += 1
            histogram = carray(address(n[HISTOGRAM]), (2, n[BINS]), np.int64)
            lost = carray(address(n[LOST]), (2,), np.int64)
            for b in range(batch):
                for i in range(length):
                    group = 1 if first[b, i] else 0
                    if keep[b, i]:
                        radius, bin_at = found[RADIUS, b, i], 0.0
                        if radius > 0:
                            bin_at = (math.log(radius) - n[LOW]) * n[PER_UNIT] + 1
                        histogram[group, int(min(max(bin_at, 0.0), n[BINS] - 1.0))] += 1
                    elif real[b, i]:
                        lost[group] += 1
            about, number = np.empty((2, width)), np.empty((2, 2), np.int64)
            offset, square = np.empty((2, 2, width)), np.empty((2, 2))
            about_shift = carray(address(n[SHIFT]), (width,), np.float64)
            directions(units, tallies, about_shift, about, number, offset, square)
            add_directions(
                about, number, offset, square,
                carray(address(n[ABOUT]), (2, width), np.float64),
                carray(address(n[NUMBER]), (2, 2), np.int64),
                carray(address(n[OFFSET]), (2, 2, width), np.float64),
                carray(address(n[SQUARE]), (2, 2), np.float64),
            )  # fmt: skip

    return numba.cfunc("void(voidptr)", cache=True)(share)


@cache
def whole() -> Any:
    """A function of the address of what a forward tells, which adds all its sites."""

    def run(data):  # type: ignore[no-untyped-def]
        told = carray(data, (ALL,), np.int64)
        t = carray(address(told[OF_TOKENS]), (TOKENS,), np.int64)
        sites, size = told[SITES], t[BATCH] * t[LENGTH]
        notes = carray(address(told[NOTES]), (sites, NOTE), np.int64)
        run_on_threads(address(told[MEASURE]), data, told[WORKERS], 0)
        angles = carray(address(told[ANGLES]), (sites, size), np.float64)
        paths = carray(address(told[PATHS]), (sites, size), np.float64)
        before = carray(address(told[BEFORE]), (size,), np.float64)
        for site in range(sites):
            if notes[site, HAS_PATH]:
                if notes[site, IS_FIRST]:
                    before[:] = 0
                for i in range(size):
                    before[i] += angles[site, i]
                paths[site] = before
        run_on_threads(address(told[ADD]), data, told[WORKERS], 0)

    return call(run)


def add_notes(tokens: Any, notes: Any, before: Any) -> None:
    """Add the sites of one forward that have the same tokens.

    Args:
        tokens: the forward's :class:`geomhooks.native.site.TokensRecord`.
        notes: (L, NOTE) int64, what :func:`describe_note` says of each site.
        before: (B, T) path length up to the last block before these; changed to that up to the
            last of them.
    """
    sites, size = len(notes), before.size
    steps = np.empty((2, sites, size))
    told = np.zeros(ALL, np.int64)
    told[OF_TOKENS], told[SITES] = tokens.address, sites
    told[NOTES], told[ANGLES] = address_of(notes), address_of(steps)
    told[PATHS], told[BEFORE] = address_of(steps) + 8 * sites * size, address_of(before)
    told[WORKERS] = min(threads(), sites) if sites * size > SERIAL else 1
    told[MEASURE], told[ADD] = measure().address, add().address
    whole()(address_of(told))


SERIAL = 1 << 12  # as many tokens are not worth the starting of threads


def describe_note(
    site: Any, shift: Any, arrays: Mapping[str, Mapping[str, Any]], bins: Sequence[int]
) -> Any:
    """A site's record, where it has still to be said what a forward adds to it.

    That is: at ``NUMBERS`` the address of what :func:`geomhooks.native.site.scratch` lays out, at
    ``PARTS`` for how many threads, and at the places in ``EXTRA`` the addresses of further numbers
    of each token, (B, T) float64.

    Args:
        site: a :class:`geomhooks.statistics.base.Site`.
        shift: (d,) its shift.
        arrays: those of its accumulators.
        bins: number of bins of the histogram, its lower end, and bins per unit.
    """
    note, moments = np.zeros(NOTE, np.int64), arrays["moments"]
    note[WIDTH], note[HAS_INPUT], note[IS_FIRST] = site.width, site.has_input, site.first
    note[SHIFT] = address_of(shift)
    note[HAS_PATH] = site.kind == "block" and site.has_input and site.whole_stack
    note[FEATURES], note[CAPACITY] = moments["count"].shape
    for name, place in MOMENTS.items():
        note[place] = address_of(moments[name])
    for name, place in DIRECTIONS.items():
        note[place] = address_of(arrays["directions"][name])
    note[HISTOGRAM] = address_of(arrays["log_radius"]["value"])
    note[LOST] = address_of(arrays["non_finite"]["value"])
    note[BINS], note[LOW], note[PER_UNIT] = bins
    return note
