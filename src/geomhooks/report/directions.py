"""In how many directions positions differ, how smoothly, and how far from those of contexts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from geomhooks.report.finding import Finding, between, extremes, percent, place, read, scalars

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["find_directions"]

FREQUENCIES = 10  # of the low-frequency share
SMOOTH = 1.5  # times what chance gives, from which positions are said to move smoothly


def find_directions(
    geometry: Geometry, pos: Sequence[str], ctx: Sequence[str]
) -> Iterator[Finding]:
    """What is said of directions, at sites where pos, and where ctx, is more than noise."""
    if not pos:
        return
    yield from _rank(geometry, pos)
    yield from _smoothness(geometry, pos)
    yield from _incoherence(geometry, [site for site in pos if site in ctx])


def _rank(geometry: Geometry, sites: Sequence[str]) -> Iterator[Finding]:
    ranks = _only(scalars(geometry, "pos_ctx.stable_rank"), sites)
    if not ranks:
        return
    width = geometry[sites[0]].pos_ctx.mean.shape[-1]
    text = (
        f"Positions differ in {between(list(ranks.values()), lambda v: f'{v:.1f}')} of {width:,} "
        "directions, each counted by how much of pos it has (stable rank)"
    )
    if len(ranks) > 1:
        most, least = extremes(ranks)
        if f"{ranks[most]:.1f}" != f"{ranks[least]:.1f}":
            text += f": most at {place(most)}, fewest at {place(least)}"
    above = _only(scalars(geometry, "pos_ctx.rank_above_noise"), sites)
    if above:
        text += (
            f". Counting weak directions as much as strong ones, {_whole(above)} singular values "
            "stand above the noise"
        )
        if read(geometry[sites[0]], "pos_ctx.covariance") is None:
            text += ", a count that is too high where noise is not equal in all directions"
    yield Finding("rank of pos", f"{text}.", "position_singular_values")


def _smoothness(geometry: Geometry, sites: Sequence[str]) -> Iterator[Finding]:
    low = _only(scalars(geometry, "pos_ctx.smoothness.low_frequency_share"), sites)
    chance = {
        site: FREQUENCIES / int((geometry[site].pos_ctx.position_count > 0).sum()) for site in low
    }
    low = {site: value for site, value in low.items() if chance[site] < 1}
    if not low:
        return
    most, least = extremes(low)
    if low[most] < SMOOTH * chance[most]:
        return
    text = f"The ten lowest frequencies make {percent(low[most])} of the directions of pos at "
    text += place(most)
    text += f", and {percent(low[least])} at {place(least)}" if len(low) > 1 else ""
    text += (
        f", where directions drawn at random give {percent(chance[most])}: the more, the smoother."
    )
    yield Finding("smoothness", text, "position_fourier")


def _incoherence(geometry: Geometry, sites: Sequence[str]) -> Iterator[Finding]:
    mean = _only(scalars(geometry, "pos_ctx.incoherence.mean"), sites)
    chance = scalars(geometry, "pos_ctx.incoherence.expected_mean")
    mean = {site: value for site, value in mean.items() if site in chance}
    if not mean:
        return
    most = max(mean, key=lambda site: mean[site] / chance[site])
    text = (
        f"The mean |cosine| of pos and ctx is {between(list(mean.values()), _three)}, where "
        f"directions drawn at random have {between([chance[site] for site in mean], _three)} and "
        "0 is orthogonal"
    )
    text += f"; they overlap most at {place(most)}, {mean[most]:.3f}" if len(mean) > 1 else ""
    yield Finding("incoherence", f"{text}.", "position_context_gram")


def _three(value: float) -> str:
    return f"{value:.3f}"


def _whole(values: dict[str, float]) -> str:
    return between(list(values.values()), lambda value: f"{int(value)}")


def _only(values: dict[str, float], sites: Sequence[str]) -> dict[str, float]:
    return {site: value for site, value in values.items() if site in sites}
