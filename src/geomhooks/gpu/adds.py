"""Adding a forward's small sums where they belong, in a launch for each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from geomhooks.accumulators.two_way import FOLLOWING, TwoWay
from geomhooks.gpu import on_device_of

if TYPE_CHECKING:
    from geomhooks.accumulators.contexts import Step
    from geomhooks.accumulators.unit_vectors import UnitVectors
    from geomhooks.forwards.tokens import Tokens

__all__ = ["add_directions", "add_moments", "count_tokens", "follow", "try_out"]

TOKENS = 256  # of a program that counts them
ENTRIES = 256  # of a program that adds vectors
COLUMNS = 64  # of a program that adds to moments
LARGEST = tl.constexpr(1.7976931348623157e308)


@triton.jit
def try_out(number):
    """Add one."""
    tl.store(number, tl.load(number) + 1)


def count_tokens(sums: TwoWay, tokens: Tokens, keep: Tensor, around: Tensor) -> Tensor:
    """Count tokens by position and by context, and add up |x|^2: see ``TwoWay.count``."""
    grid, by_row, columns = tokens.grids, tokens.segments is None, tokens.start is not None
    counts = torch.zeros(tokens.number + 1, dtype=torch.int64, device=keep.device)
    with on_device_of(keep):
        _count[(-(-keep.numel() // TOKENS),)](
            keep.contiguous(), around.to(torch.float64).contiguous(),
            keep if columns else tokens.positions.contiguous(),
            grid.rows if by_row else grid.segments, sums["position_count"], counts, sums["square"],
            keep.numel(), tokens.length, tokens.start or 0,
            COLUMNS=columns, BY_ROW=by_row, C=TOKENS, enable_fp_fusion=True,
        )  # fmt: skip
    return counts[:-1]


@triton.jit(do_not_specialize=["tokens", "length", "start"])
def _count(
    keep, around, positions, contexts, by_position, by_context, square, tokens, length, start,
    COLUMNS: tl.constexpr, BY_ROW: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    kept = tl.load(keep + i, mask=i < tokens, other=0) != 0
    row, column = i // length, i % length
    if COLUMNS:
        position = column + start
    else:
        position = tl.load(positions + i, mask=kept, other=0)
    if BY_ROW:
        context = tl.load(contexts + row, mask=kept, other=0)
    else:
        context = tl.load(contexts + i, mask=kept, other=0)
    one = tl.full([C], 1, tl.int64)
    tl.atomic_add(by_position + position, one, mask=kept, sem="relaxed")
    tl.atomic_add(by_context + context, one, mask=kept, sem="relaxed")
    total = tl.sum(tl.load(around + i, mask=kept, other=0.0), 0)
    tl.atomic_add(square, total, sem="relaxed")


def follow(sums: TwoWay, steps: list[Step], added: Tensor, counts: Tensor) -> None:
    """Close contexts, then add a forward's to those open: see ``TwoWay.follow``.

    A step's contexts are closed in the rows that they are then opened in, each by programs of its
    own, which take some entries each.
    """
    added, counts = added.to(torch.float64).contiguous(), counts.contiguous()
    width = added.shape[1]
    held = [sums[name] for name in FOLLOWING]
    with on_device_of(added):
        for step in steps:
            fold, slot = step.fold, step.open.slot.contiguous()
            weight, ends, edges, kept = added, slot, added, step.open
            if fold is not None:
                weight, kept = fold.weight, fold.kept
                ends = slot if fold.ends is None else fold.ends.contiguous()
                edges = added if fold.edges is None else fold.edges
            _follow[(len(slot), -(-width // ENTRIES))](
                added, counts, step.rows.start, slot, step.open.fresh.contiguous(),
                weight.contiguous(), ends, edges, len(edges), *edges.stride(),
                kept.slot.contiguous(), kept.fresh.contiguous(), *held, width,
                len(sums["open_sum"]) - 1, len(sums["kept_sum"]) - 1,
                FOLD=fold is not None, INTERVAL=fold is not None and fold.ends is not None,
                C=64, D=ENTRIES, enable_fp_fusion=True,
            )  # fmt: skip


@triton.jit
def close(
    i, columns, inside, leads, row, weight, slot, ends, differences, reach, by_position, by_context,
    kept, begun, open_count, edges, context_square, context_mean, kept_sum, kept_count, width,
    kept_nowhere, INTERVAL: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Move one complete context's sum into those of all, and into its row of those kept."""
    if weight > 0:
        mean = row * weight
        tl.atomic_add(context_square, tl.sum(row * mean, 0), sem="relaxed")
        tl.atomic_add(context_mean + columns, mean, mask=inside, sem="relaxed")
        if INTERVAL:
            to = edges + tl.load(ends + 2 * i) * width + columns
            tl.atomic_add(to, mean, mask=inside, sem="relaxed")
            to = edges + tl.load(ends + 2 * i + 1) * width + columns
            tl.atomic_add(to, -mean, mask=inside, sem="relaxed")
        else:
            for first in range(0, reach, C):
                t = first + tl.arange(0, C)
                of = differences + t * by_position + i * by_context
                by = tl.load(of, mask=t < reach, other=0.0)
                at = tl.min(tl.where(by != 0, t, reach), 0)
                while at < reach:
                    factor = tl.sum(tl.where(t == at, by, 0.0), 0)
                    to = edges + at.to(tl.int64) * width + columns
                    tl.atomic_add(to, factor * mean, mask=inside, sem="relaxed")
                    by = tl.where(t == at, 0.0, by)
                    at = tl.min(tl.where(by != 0, t, reach), 0)
        goes = tl.load(kept + i)
        if goes < kept_nowhere:
            begins = tl.load(begun + i) != 0
            place = kept_sum + goes * width + columns
            before = tl.where(begins, 0.0, tl.load(place, mask=inside, other=0.0))
            tl.store(place, before + row.to(tl.float32), mask=inside)
            if leads:
                number = tl.where(begins, 0, tl.load(kept_count + goes))
                tl.store(kept_count + goes, number + tl.load(open_count + slot))


@triton.jit(do_not_specialize=["begin", "reach", "nowhere", "kept_nowhere"])
def _follow(
    added, counts, begin, slots, fresh, weights, ends, differences, reach, by_position, by_context,
    kept, begun, open_sum, open_count, edges, context_square, context_mean, kept_sum, kept_count,
    width, nowhere, kept_nowhere,
    FOLD: tl.constexpr, INTERVAL: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * D + tl.arange(0, D)
    inside = columns < width
    leads = tl.program_id(1) == 0  # counts are added by one of a context's programs
    slot = tl.load(slots + i)
    if slot < nowhere:
        new = tl.load(fresh + i) != 0
        row = tl.load(open_sum + slot * width + columns, mask=inside, other=0.0)
        if FOLD:
            close(
                i, columns, inside, leads, row, tl.load(weights + i), slot, ends, differences,
                reach, by_position, by_context, kept, begun, open_count, edges, context_square,
                context_mean, kept_sum, kept_count, width, kept_nowhere, INTERVAL, C,
            )  # fmt: skip
        row = tl.where(new, 0.0, row)
        row += tl.load(added + (begin + i) * width + columns, mask=inside, other=0.0)
        tl.store(open_sum + slot * width + columns, row, mask=inside)
        if leads:
            number = tl.where(new, 0, tl.load(open_count + slot))
            tl.store(open_count + slot, number + tl.load(counts + begin + i))


def add_directions(
    vectors: UnitVectors, about: Tensor, count: Tensor, offset: Tensor, square: Tensor
) -> None:
    """Add sums of unit vectors: see ``UnitVectors.add``."""
    kinds, groups, width = offset.shape
    with on_device_of(offset):
        _add_directions[(kinds * groups, -(-width // ENTRIES))](
            about.contiguous(), count.contiguous(), offset.contiguous(), square.contiguous(),
            vectors["about"], vectors["count"], vectors["offset"], vectors["square"], width,
            GROUPS=groups, D=ENTRIES, enable_fp_fusion=True,
        )  # fmt: skip


@triton.jit
def _add_directions(
    about, count, offset, square, e, number, total, squares, width,
    GROUPS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    columns = tl.program_id(1) * D + tl.arange(0, D)
    inside = columns < width
    at = i * width + columns
    part = tl.load(offset + at, mask=inside, other=0.0)
    tl.store(total + at, tl.load(total + at, mask=inside, other=0.0) + part, mask=inside)
    if i % GROUPS == 0:
        at = i // GROUPS * width + columns
        tl.store(e + at, tl.load(about + at, mask=inside, other=0.0), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(number + i, tl.load(number + i) + tl.load(count + i))
        tl.store(squares + i, tl.load(squares + i) + tl.load(square + i))


def add_moments(moments: Any, values: Tensor, start: int, where: Tensor) -> None:
    """Add values (F, L, B, T) of L sites to their moments: see ``Moments.add_each``.

    Positions are columns, from ``start`` on.
    """
    features, sites, batch, length = values.shape
    with on_device_of(values):
        for index, one in enumerate(moments):
            shift = one["shift"], one["shifted"]
            _settle[(features,)](
                values, where, *shift, index, sites, batch * length, C=1024, enable_fp_fusion=True
            )
            _add_moments[(features, -(-length // COLUMNS))](
                values, where, one["shift"], one["count"], one["total"], one["squares"], one["min"],
                one["max"], index, sites, batch, length, start, one["count"].shape[1],
                C=COLUMNS, enable_fp_fusion=True,
            )  # fmt: skip


@triton.jit(do_not_specialize=["site", "sites", "tokens"])
def _settle(values, where, shift, shifted, site, sites, tokens, C: tl.constexpr):
    f = tl.program_id(0).to(tl.int64)
    looking = tl.load(shifted + f) == 0
    first = f * 0
    while looking & (first < tokens):
        i = first + tl.arange(0, C)
        value = tl.load(values + (f * sites + site) * tokens + i, mask=i < tokens, other=0.0)
        counts = tl.load(where + (f * 0 + site) * tokens + i, mask=i < tokens, other=0) != 0
        counts = counts & (tl.abs(value) <= LARGEST)
        at = tl.min(tl.where(counts, i, tokens), 0)
        if at < tokens:
            tl.store(shift + f, tl.sum(tl.where(i == at, value, 0.0), 0))
            tl.store(shifted + f, at >= 0)
            looking = at < 0
        first += C


@triton.jit(do_not_specialize=["site", "sites", "batch", "length", "start", "rows"])
def _add_moments(
    values, where, shift, count, total, squares, least, greatest, site, sites, batch, length, start,
    rows, C: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * C + tl.arange(0, C)
    there = t < length
    about = tl.load(shift + f)
    number, sums = tl.zeros([C], tl.int64), tl.zeros([C], tl.float64)
    powers = tl.zeros([C], tl.float64)
    low, high = sums + float("inf"), sums - float("inf")
    for b in range(batch):
        at = (f * sites + site) * batch + b
        value = tl.load(values + at * length + t, mask=there, other=0.0)
        to = (f * 0 + site) * batch + b
        counts = tl.load(where + to * length + t, mask=there, other=0) != 0
        counts = counts & (tl.abs(value) <= LARGEST)
        moved = tl.where(counts, value - about, 0.0)
        number += tl.where(counts, 1, 0)
        sums += moved
        powers += moved * moved
        low = tl.minimum(low, tl.where(counts, value, float("inf")))
        high = tl.maximum(high, tl.where(counts, value, -float("inf")))
    to = f * rows + start + t
    tl.store(count + to, tl.load(count + to, mask=there, other=0) + number, mask=there)
    tl.store(total + to, tl.load(total + to, mask=there, other=0.0) + sums, mask=there)
    tl.store(squares + to, tl.load(squares + to, mask=there, other=0.0) + powers, mask=there)
    tl.store(least + to, tl.minimum(tl.load(least + to, mask=there, other=0.0), low), mask=there)
    tl.store(greatest + to, tl.maximum(tl.load(greatest + to, mask=there, other=0.0), high),
             mask=there)  # fmt: skip
