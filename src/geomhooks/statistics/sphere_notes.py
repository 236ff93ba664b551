"""What ``Sphere`` puts down at each site of a forward, and adds up for many sites at once.

The numbers of a token are few, and every operation on them costs more to start than to run. So the
sites of a forward leave their sums over entries, and one pass does the mathematics for all of them,
or for as many as may wait (:func:`geomhooks.reductions.sites_that_wait`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Moments
from geomhooks.forwards.tokens import Tokens
from geomhooks.native import load
from geomhooks.reductions import OnePass, Reduced
from geomhooks.reductions.plain import wide_of
from geomhooks.statistics.base import Reading, Site

__all__ = ["BINS", "HIGH", "LOW", "Note", "add_notes", "features", "norm_gaps", "step_angle"]

STATE = ("norm", "ones", "ones_share", "radius")
STEP = ("step_angle", "radial", "tangential")
SUMS = ("norm", "ones", "radius", "radial", "tangential", "outward")
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


@dataclass(slots=True)
class Note:
    """One forward at one site, in sums over entries.

    Attributes:
        state: the site's accumulators.
        site: where.
        tokens: which entries are real.
        shift: (d,).
        reduced: the site's reductions.
        extra: (B, T) each, by name: the chord at a last block; gaps at a norm module.
            None where there are none.
    """

    state: Mapping[str, Any]
    site: Site
    tokens: Tokens
    shift: Tensor
    reduced: Reduced
    extra: Mapping[str, Tensor] | None


def add_notes(notes: Iterable[Note], paths: dict[Any, Tensor]) -> None:
    """Add sites of one forward to their accumulators.

    Args:
        notes: in the order in which the sites ran.
        paths: path lengths up to the last blocks of the forward that were added, by stack and
            shape; changed to those after these sites.
    """
    groups: dict[Any, dict[str, Note]] = {}
    for note in notes:
        site = note.site
        key: tuple[Any, ...] = site.stack, site.width, id(note.tokens)
        group = groups.get(key)
        # A module that runs again in one forward adds to the same state, so in a turn of its own.
        while group is not None and site.name in group:
            key = *key, "again"
            group = groups.get(key)
        if group is None:
            group = groups[key] = {}
        group[site.name] = note
    for group in groups.values():
        together = list(group.values())
        native = all(isinstance(note.reduced, OnePass) for note in together)
        (add_group_native if native else add_group)(together, paths)


def add_group_native(group: list[Note], paths: dict[Any, Tensor]) -> None:
    """What :func:`add_group` does, by the compiled loops."""
    native, tokens, stack = load("notes"), group[0].tokens, group[0].site.stack
    nowhere = torch.full(tokens.real.shape, float("nan"), dtype=torch.float64, device="cpu")
    before = paths.setdefault((stack, tokens.real.shape), nowhere)
    records = records_of(group)
    found = [note.reduced for note in group]
    records[:, native.NUMBERS] = np.fromiter([one.address for one in found], np.int64)
    records[:, native.PARTS] = np.fromiter([one.workers for one in found], np.int64)
    extra = [(index, note.extra) for index, note in enumerate(group) if note.extra]
    extras = [(index, n, v.contiguous()) for index, found in extra for n, v in found.items()]
    for index, name, value in extras:
        records[index, native.EXTRA[name]] = value.data_ptr()
    native.add_notes(tokens.record, records, before.numpy())


# Where the compiled loop finds the states of some sites, and what tells that they are elsewhere.
_records: WeakKeyDictionary[Accumulator, tuple[Any, Any]] = WeakKeyDictionary()


def records_of(group: list[Note]) -> Any:
    """The records of sites, which are written down once, as long as they come together."""
    first, key = group[0].state["moments"], (Accumulator.replaced, [n.site.name for n in group])
    known = _records.get(first)
    if known is None or known[0] != key:
        records = [
            load("notes").describe_note(
                note.site,
                note.shift.numpy(),
                {n: {f: a.array(f) for f in a.fields} for n, a in note.state.items()},
                (BINS, LOW, PER_UNIT),
            )
            for note in group
        ]
        known = _records[first] = key, np.stack(records)
    return known[1].copy()


def add_group(group: list[Note], paths: dict[Any, Tensor]) -> None:
    """Add sites of one stack and its tokens; ``paths`` goes from blocks to later blocks."""
    width, tokens = group[0].site.width, group[0].tokens
    keep = torch.stack([note.reduced.keep for note in group])
    wide = wide_of(keep)
    none = torch.zeros(tokens.real.shape, dtype=wide, device=keep.device)
    found = [getattr(note.reduced, name) for note in group for name in SUMS]
    found = [none if one is None else one.to(wide) for one in found]
    sums = torch.stack(found).view(len(group), len(SUMS), *none.shape).unbind(1)
    norm, ones, radius, radial, tangential, outward = sums
    along = ones / width**0.5
    columns = {
        "norm": norm,
        "ones": along,
        "ones_share": (along / norm).square().nan_to_num(0.0),
        "radius": radius,
    }
    if any(note.site.has_input for note in group):
        angle = torch.atan2(tangential, outward)
        columns |= {"step_angle": angle, "radial": radial, "tangential": tangential}
        columns["path_length"] = follow_path(group, angle, paths)
    by_features: dict[tuple[str, ...], list[int]] = {}
    for index, note in enumerate(group):
        by_features.setdefault(features(note.site), []).append(index)
    for names, indices in by_features.items():
        values = torch.stack([column(name, columns, group, indices) for name in names])
        some = [group[index].state["moments"] for index in indices]
        Moments.add_each(some, values, tokens.at, keep[chosen(indices)])
    add_counts(group, keep, radius)
    for note in group:
        assert note.reduced.directions is not None
        note.state["directions"].add(*note.reduced.directions)


def column(
    name: str, columns: Mapping[str, Tensor], group: list[Note], indices: list[int]
) -> Tensor:
    """One feature at some of the sites, (L', B, T)."""
    if name == "tortuosity":
        return torch.stack(
            [columns["path_length"][i] / extra_of(group[i], "chord") for i in indices]
        )
    if name in columns:
        return columns[name][chosen(indices)]
    return torch.stack([extra_of(group[i], name) for i in indices])


def extra_of(note: Note, name: str) -> Tensor:
    """What there is of each token beside sums over entries."""
    assert note.extra is not None
    return note.extra[name]


def chosen(indices: list[int]) -> slice | list[int]:
    """Indices as a slice where they follow each other, which copies nothing."""
    first, last = indices[0], indices[-1]
    return slice(first, last + 1) if len(indices) == last - first + 1 else indices


def follow_path(group: list[Note], angle: Tensor, paths: dict[Any, Tensor]) -> Tensor:
    """Path length up to each block, (L, B, T); at what is no block it means nothing."""
    found = []
    for index, note in enumerate(group):
        site, stack = note.site, (note.site.stack, angle[index].shape)
        if not has_path(site):
            found.append(angle[index])
            continue
        if site.first:
            before = torch.zeros_like(angle[index])
        elif stack in paths:
            before = paths[stack].to(angle.device)  # blocks may be on several devices
        else:  # the first block was skipped in this forward
            before = torch.full_like(angle[index], float("nan"))
        paths[stack] = before + angle[index]
        found.append(paths[stack])
    return torch.stack(found)


def add_counts(group: list[Note], keep: Tensor, radius: Tensor) -> None:
    """Add to the histograms of the radius, and count what was left out as not finite."""
    first = group[0].tokens.first
    bins = (radius.float().log_() - LOW).mul_(PER_UNIT).add_(1).clamp_(0, BINS - 1)
    bins, counted = bins.to(torch.int64).add_(BINS * first), keep.flatten(1).to(torch.int64)
    bins = bins.flatten(1)
    lost = group[0].tokens.real & ~keep
    number = torch.stack([lost & ~first, lost & first], 1).sum((2, 3))
    for index, note in enumerate(group):
        note.state["log_radius"].value.view(-1).index_add_(0, bins[index], counted[index])
        note.state["non_finite"].value.add_(number[index])


def step_angle(moved: Reduced) -> Tensor:
    """Angle of one move, (B, T)."""
    assert moved.tangential is not None
    assert moved.outward is not None
    return torch.atan2(moved.tangential, moved.outward)


def norm_gaps(reading: Reading) -> dict[str, Tensor]:
    """How far a norm's output before gain and bias is from the sphere, and from the plane.

    (B, T) each; NaN where no gain is large enough to tell.
    """
    site, taps = reading.site, reading.taps
    assert site.norm_eps is not None
    width, eps, wide = site.width, site.norm_eps, reading.shift.dtype
    entered = taps["in"].to(wide)
    mean = entered.mean(-1, keepdim=True) if site.norm_centred else 0.0
    scatter = (entered - mean).square().mean(-1)
    gain, bias = taps["gain"].to(wide), taps["bias"].to(wide)
    # A gain of about zero leaves nothing of an entry in the output, or, beside a bias, less than
    # half of the digits that it is rounded to. There the input stands in for it.
    expected = (entered - mean) / (scatter + eps).sqrt()[..., None]
    least = torch.finfo(taps["out"].dtype).eps ** 0.5
    usable = gain.abs() > torch.maximum(least * bias.abs(), 1e-6 * gain.abs().amax())
    before = torch.where(usable, (taps["out"].to(wide) - bias) / gain, expected)
    before = torch.where(usable.any(), before, float("nan"))
    length = torch.linalg.vector_norm(before, dim=-1) / width**0.5
    gap = (length - (scatter / (scatter + eps)).sqrt()).abs()
    gaps = {"sphere_gap": gap}
    if site.norm_centred:
        gaps["plane_gap"] = before.sum(-1).abs() / width**0.5
    return gaps
