"""What ``Sphere`` puts down at each site of a forward, and adds up when the forward ends.

The numbers of a token are few, and every operation on them costs more to start than to run. So the
sites of a forward leave their sums over entries, and one pass does the mathematics for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators import Moments
from geomhooks.functional.steps import centred_square, step
from geomhooks.reductions import Reduced
from geomhooks.statistics.base import Reading, Site
from geomhooks.tokens import Tokens
from geomhooks.unit_vectors import offsets

__all__ = ["BINS", "HIGH", "LOW", "Note", "add_notes", "features", "norm_gaps", "step_angle"]

STATE = ("norm", "ones", "ones_share", "radius")
STEP = ("step_angle", "radial", "tangential")
STATE_SUMS = ("squared_norm", "ones", "shifted_squared_norm", "shift_dot")
STEP_SUMS = (
    "in_squared_norm",
    "in_ones",
    "update_ones",
    "update_dot",
    "slope",
    "across_squared_norm",
)
# Natural logarithm of the radius: steps of 1/8 from exp(-10) to exp(15), and open ends.
LOW, HIGH, PER_UNIT = -10, 15, 8
BINS = (HIGH - LOW) * PER_UNIT + 2


def has_path(site: Site) -> bool:
    """The site is a block of a stack whose blocks are all watched."""
    return site.kind == "block" and site.has_input and site.whole_stack


def features(site: Site) -> tuple[str, ...]:
    """What is measured of each token of a site."""
    names: tuple[str, ...] = STATE
    if site.has_input:
        names += STEP
    if has_path(site):
        names += ("path_length", "chord", "tortuosity") if site.last else ("path_length",)
    if site.norm_eps is not None:  # RMSNorm has the sphere without the plane
        names += ("sphere_gap", "plane_gap") if site.norm_centred else ("sphere_gap",)
    return names


@dataclass
class Note:
    """One forward at one site, in sums over entries.

    Attributes:
        state: the site's accumulators.
        site: where.
        tokens: which entries are real.
        keep: (B, T) bool, tokens that count.
        sums: (4 or 10, B, T), ``STATE_SUMS`` and, with an input, ``STEP_SUMS``.
        unit_sum: (4, d), see :class:`~geomhooks.reductions.Reduced`.
        shift: (d,) the site's fixed shift.
        extra: (B, T) each: the chord at a last block; gaps at a norm module.
    """

    state: Mapping[str, Any]
    site: Site
    tokens: Tokens
    keep: Tensor
    sums: Tensor
    unit_sum: Tensor
    shift: Tensor
    extra: list[Tensor]

    @classmethod
    def of(cls, state: Mapping[str, Any], reading: Reading, extra: list[Tensor]) -> Note:
        """Put down a reading, without its hidden states."""
        r, site = reading.reductions, reading.site
        assert r.unit_sum is not None
        names = STATE_SUMS + (STEP_SUMS if site.has_input else ())
        sums = torch.stack([getattr(r, name) for name in names])
        return cls(state, site, reading.tokens, r.keep, sums, r.unit_sum, reading.shift, extra)


def add_notes(notes: Iterable[Note]) -> None:
    """Add one forward to the accumulators of all its sites."""
    groups: dict[Any, list[Note]] = {}
    runs: Counter[str] = Counter()
    for note in notes:
        site = note.site
        # A module that runs again in one forward adds to the same state, so in a turn of its own.
        runs[site.name] += 1
        key = (features(site), site.stack, id(note.tokens), note.sums.device, runs[site.name])
        groups.setdefault(key, []).append(note)
    paths: dict[str, Tensor] = {}
    for group in groups.values():
        add_group(group, paths)


def add_group(group: list[Note], paths: dict[str, Tensor]) -> None:
    """Add sites with the same features and tokens; ``paths`` goes from blocks to later blocks."""
    site, tokens, wide = group[0].site, group[0].tokens, group[0].shift.dtype
    width = site.width
    keep = torch.stack([note.keep for note in group])
    sums = torch.stack([note.sums for note in group], 1).to(wide)
    square, ones, around, along = sums[: len(STATE_SUMS)]
    norm, radius = square.sqrt(), centred_square(square, ones, width).sqrt()
    share = (ones.square() / (width * square)).nan_to_num(0.0)
    values = [norm, ones / width**0.5, share, radius]
    if site.has_input:
        moved = step(width, *sums[len(STATE_SUMS) :])
        values += moved
        if has_path(site):
            values += follow_path(group, moved.angle, paths)
    if site.norm_eps is not None:
        values += [torch.stack(gap) for gap in zip(*(note.extra for note in group), strict=True)]
    found = torch.stack(values, -1)
    where = keep[..., None] & torch.isfinite(found)
    Moments.add_each([note.state["moments"] for note in group], found, tokens.at, where)
    first = tokens.positions == 0
    add_directions(group, keep, norm, radius, ones, around, along, first)
    add_counts(group, keep, radius, first)


def follow_path(group: list[Note], angle: Tensor, paths: dict[str, Tensor]) -> list[Tensor]:
    """Path length up to each block (L, B, T); at the last also the chord, and their ratio."""
    site = group[0].site
    if site.first:
        before = torch.zeros_like(angle[0])
    elif site.stack in paths:
        before = paths[site.stack].to(angle.device)  # blocks may be on several devices
    else:  # the first block was skipped in this forward
        before = torch.full_like(angle[0], float("nan"))
    path = before + angle.cumsum(0)
    paths[site.stack] = path[-1]
    if not site.last:
        return [path]
    chord = torch.stack([note.extra[0] for note in group])
    return [path, chord, path / chord]


def add_directions(
    group: list[Note],
    keep: Tensor,
    norm: Tensor,
    radius: Tensor,
    ones: Tensor,
    around: Tensor,
    along: Tensor,
    first: Tensor,
) -> None:
    """Add the unit vectors of the states, centred and as they are.

    Args:
        group: L notes.
        keep: (L, B, T) tokens that count.
        norm: (L, B, T) |h|.
        radius: (L, B, T) |h - m 1|.
        ones: (L, B, T) sum of the entries of h.
        around: (L, B, T) |x|^2, x = h - shift.
        along: (L, B, T) <x, shift>.
        first: (B, T) tokens at position 0.
    """
    width = group[0].site.width
    shift = torch.stack([note.shift for note in group])
    unit_sum = torch.stack([note.unit_sum for note in group]).to(shift.dtype)
    # Centred: less the parts along the ones direction, of x as of the shift.
    total = shift.sum(1)[:, None, None]
    x_ones = ones - total
    centred = shift - shift.mean(1, keepdim=True)
    for name, row, length, square, dot, vector in (
        (
            "centred",
            0,
            radius,
            around - x_ones.square() / width,
            along - x_ones * total / width,
            centred,
        ),
        ("raw", 1, norm, around, along, shift),
    ):
        shift_length = torch.linalg.vector_norm(vector, dim=1)
        each = offsets(length, square, dot, shift_length[:, None, None])
        directed = keep & (length > 0)
        groups = torch.stack([directed & ~first, directed & first], 1)
        multiple = torch.where(groups, each.along[:, None], 0.0).sum((2, 3))
        spread = torch.where(groups, each.square[:, None], 0.0).sum((2, 3))
        sums = unit_sum[:, row::2]
        if name == "centred":
            sums = sums - sums.mean(2, keepdim=True)
        offset = sums + multiple[..., None] * vector[:, None]
        about = vector / shift_length.clamp(min=torch.finfo(vector.dtype).tiny)[:, None]
        number = groups.sum((2, 3))
        for index, note in enumerate(group):
            note.state[name].add(about[index], number[index], offset[index], spread[index])


def add_counts(group: list[Note], keep: Tensor, radius: Tensor, first: Tensor) -> None:
    """Add to the histograms of the radius, and count what was left out as not finite."""
    bins = ((radius.log() - LOW) * PER_UNIT + 1).clamp(0, BINS - 1).to(torch.int64) + BINS * first
    bins, counted = bins.flatten(1), keep.flatten(1).to(torch.int64)
    lost = group[0].tokens.real & ~keep
    number = torch.stack([lost & ~first, lost & first], 1).sum((2, 3))
    for index, note in enumerate(group):
        note.state["log_radius"].value.view(-1).index_add_(0, bins[index], counted[index])
        note.state["non_finite"].value.add_(number[index])


def step_angle(moved: Reduced, width: int, wide: torch.dtype) -> Tensor:
    """Angle of one move, (B, T)."""
    return step(width, *(getattr(moved, name).to(wide) for name in STEP_SUMS)).angle


def norm_gaps(reading: Reading) -> list[Tensor]:
    """How far a norm's output before gain and bias is from the sphere, and from the plane."""
    site, r, taps = reading.site, reading.reductions, reading.taps
    assert r.in_squared_norm is not None
    assert r.in_ones is not None
    assert site.norm_eps is not None
    width, eps, wide = site.width, site.norm_eps, reading.shift.dtype
    square, ones = r.in_squared_norm.to(wide), r.in_ones.to(wide)
    scatter = (centred_square(square, ones, width) if site.norm_centred else square) / width
    gain, bias = taps["gain"].to(wide), taps["bias"].to(wide)
    # Where a gain is about zero the output tells nothing; there the input stands in for it.
    mean = (ones / width)[..., None] if site.norm_centred else 0.0
    expected = (taps["in"].to(wide) - mean) / (scatter + eps).sqrt()[..., None]
    usable = gain.abs() > 1e-6 * gain.abs().amax()
    before = torch.where(usable, (taps["out"].to(wide) - bias) / gain, expected)
    length = torch.linalg.vector_norm(before, dim=-1) / width**0.5
    gap = (length - (scatter / (scatter + eps)).sqrt()).abs()
    return [gap, before.sum(-1).abs() / width**0.5] if site.norm_centred else [gap]
