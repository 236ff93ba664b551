"""Where position and context live, by the names of layers, as far as the sample can tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from geomhooks.report.directions import find_directions
from geomhooks.report.finding import Finding, between, listed, percent, place, read, scalars
from geomhooks.report.part_shares import Share, apart, part_shares, sample_size

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["describe_depth", "find_depths", "find_small_samples"]

FEW = 20  # contexts, below which it is said how few they are
MOST = 0.5  # share from which a part is most of it
FLAT = 0.1  # of the whole range; steps back by less leave a curve rising
ALONE = 0.25  # share of one position in pos from which it is said
EVEN = 4  # times its even part that a position must have as well
BESIDE = 0.1  # share of a further position
PARTS: Mapping[Literal["pos", "ctx"], str] = {"pos": "position", "ctx": "context"}


def find_small_samples(geometry: Geometry) -> Iterator[Finding]:
    """What the sample is too small to tell."""
    size = sample_size(geometry)
    if size is None:
        return
    contexts, positions = size
    if contexts < 2:
        yield Finding(
            "caution",
            "One context cannot separate position from words: all that is said of pos and ctx "
            "below, in figures and in tables, is as it has to be. Read more contexts.",
        )
    elif positions < 2:
        yield Finding(
            "caution",
            "Contexts of one position cannot separate context from words: all that is said of pos "
            "and ctx below is as it has to be. Read longer contexts.",
        )
    elif contexts < FEW:
        yield Finding(
            "caution",
            f"{contexts} contexts are few: what is said of pos and ctx is of these contexts, and "
            "others may differ. Read more.",
        )


def find_depths(geometry: Geometry) -> Iterator[Finding]:
    """How much position, context and the rest have, where, and in which directions."""
    shares = {part: part_shares(geometry, part) for part in PARTS}
    if not shares["pos"] or not shares["ctx"]:
        return
    rest = scalars(geometry, "pos_ctx.corrected_shares.resid")
    rest = rest or scalars(geometry, "pos_ctx.shares.resid")
    text = (
        "What neither position nor context tells (resid, in a language model mostly the word) has "
        f"{between(list(rest.values()))} of the variance"
    )
    if min(rest.values()) > MOST:
        text += ", most of it" + (" at every site" if len(rest) > 1 else "")
    text += f"; {_amount(shares['pos'], 'position')}, {_amount(shares['ctx'], 'context')}"
    if not _unknown(shares["pos"]):
        text += ". What chance adds is taken off"
    yield Finding("in short", f"{text}.", "variance_shares")
    for part, name in PARTS.items():
        yield Finding(name, f"{_depth(name, shares[part])}.", "variance_shares")
    yield from _special_positions(geometry, shares["pos"])
    pos, ctx = ([site for site, s in shares[part].items() if s.beyond] for part in PARTS)
    yield from find_directions(geometry, pos, ctx)


def describe_depth(geometry: Geometry) -> str:
    """Where position and context live, in one sentence each; nothing where it cannot be told."""
    said = {name: part_shares(geometry, part) for part, name in PARTS.items()}
    return " ".join(f"{_depth(name, shares)}." for name, shares in said.items() if shares)


def _amount(shares: Mapping[str, Share], name: str) -> str:
    """How much a part has, in short."""
    if not any(share.beyond for share in shares.values()):
        return f"{name} no more than chance"
    return f"{name} {between([share.value for share in shares.values()])}"


def _depth(name: str, shares: Mapping[str, Share]) -> str:
    """Where a part is large, as far as noise lets one say."""
    name = name[:1].upper() + name[1:]
    chances = [share.chance for share in shares.values()]
    chance = "" if _unknown(shares) else between(chances)
    weak = [site for site, share in shares.items() if not share.beyond]
    if len(weak) == len(shares):
        raw = between([share.raw for share in shares.values()])
        return (
            f"{name} has no more than a sample of this size gives by chance, at any site: about "
            f"{raw} of the variance, where chance gives {chance}"
        )
    beside = f" (chance, {chance}, is taken off)" if chance else " (chance is in it)"
    most = max(shares, key=lambda site: shares[site].value)
    least = min(shares, key=lambda site: shares[site].value)
    values = [share.value for share in shares.values()]
    if len(shares) == 1:
        text = f"{name} has {percent(values[0])} of the variance at {place(most)}{beside}"
    elif not apart(shares[most], shares[least]) or percent(values[0]) == between(values):
        text = (
            f"{name} has {between(values)} of the variance{beside}, at no site more than at "
            "another beyond noise"
        )
    else:
        text = f"{name} {_course(shares, most, least)}{beside}"
    if weak:
        text += f"; no more than chance at {listed([place(site) for site in weak])}"
    return text


def _course(shares: Mapping[str, Share], most: str, least: str) -> str:
    """Whether shares that differ rise or fall with depth, or where they are large and small."""
    sites = list(shares)
    values = [share.value for share in shares.values()]
    spread = shares[most].value - shares[least].value
    for word, sign, ends in (("rises", 1, (least, most)), ("falls", -1, (most, least))):
        steps = [sign * (b - a) for a, b in pairwise(values)]
        first, last = sites[0], sites[-1]
        ordered = min(steps) >= -FLAT * spread and apart(shares[first], shares[last])
        if len(sites) > 2 and ordered and ends == (first, last):
            text = (
                f"{word} with depth, from {percent(values[0])} of the variance at {place(first)} "
                f"to {percent(values[-1])} at {place(last)}"
            )
            step = max(range(len(steps)), key=steps.__getitem__)
            big = len(steps) > 2 and steps[step] > MOST * spread
            return (
                f"{text}, more than half of that way at {place(sites[step + 1])}" if big else text
            )
    text = f"is largest at {_with_equals(shares, most)}"
    others = [site for site in sites if site != most and apart(shares[site], shares[most])]
    if len(sites) > 3 and len(others) > 1:
        following = max(others, key=lambda site: shares[site].value)
        text += f", then at {place(following)}, with {percent(shares[following].value)}"
    text += f", and smallest at {_with_equals(shares, least)}"
    if len(sites) > 2 and sites[-1] not in (most, least):
        text += f"; at the end, {place(sites[-1])}, it has {percent(shares[sites[-1]].value)}"
    return text


def _with_equals(shares: Mapping[str, Share], site: str) -> str:
    """A site and its share, and which others noise cannot tell from it."""
    equal = [other for other in shares if other != site and not apart(shares[other], shares[site])]
    beside = f" and, within noise, at {listed([place(site) for site in equal])}" if equal else ""
    return f"{place(site)}{beside}, with {percent(shares[site].value)} of the variance"


def _special_positions(geometry: Geometry, shares: Mapping[str, Share]) -> Iterator[Finding]:
    """Positions of which one or a few make much of pos."""
    found: dict[str, dict[int, float]] = {}
    for site, share in shares.items():
        result = geometry[site].pos_ctx
        # What noise adds to each is off, as from the share; with few contexts at late positions it
        # would hide the others.
        error = read(result, "pos_standard_error")
        noise = 0.0 if error is None else error.square()
        square = (result.position_count * (result.pos.square().sum(1) - noise)).nan_to_num()
        seen = int((result.position_count > 0).sum())
        if not share.beyond or not float(square.sum()) > 0:
            continue
        parts = square / square.sum()
        if float(parts.max()) >= max(ALONE, EVEN / seen):
            order = parts.argsort(descending=True)[:3].tolist()
            large = max(BESIDE, EVEN / seen)
            found[site] = {t: float(parts[t]) for t in order if float(parts[t]) >= large}
    if not found:
        return
    site = max(found, key=lambda site: sum(found[site].values()) * shares[site].value)
    parts_at, share = found[site], shares[site]
    first, *others = parts_at
    text = f"Position {first} alone makes {percent(parts_at[first])} of pos at {place(site)}"
    for other in others:
        text += f", and position {other} another {percent(parts_at[other])}"
    kept = share.value * (1 - sum(parts_at.values()))
    without = "it" if not others else "them"
    text += (
        f"; without {without} pos would have about {percent(max(0.0, kept))} of the variance "
        f"there and not {percent(share.value)}"
    )
    if len(found) > 1:
        text += f". A position has such a part of pos at {len(found)} of {len(shares)} sites"
    text += (
        ". The first and the last token of a text are special ones in many tokenizers: such a "
        "part tells which token stands there more than where it stands, and makes the directions "
        "of pos few."
    )
    yield Finding("few positions", text, "position_spiral")


def _unknown(shares: Mapping[str, Share]) -> bool:
    """Whether it is not known what chance adds."""
    return any(math.isnan(share.chance) for share in shares.values())
