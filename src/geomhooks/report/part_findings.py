"""What stands out of the parts of a model: sublayers, heads, factors, leaders, groups."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from geomhooks.report.finding import Finding, between, extremes, percent, place, read, scalars
from geomhooks.report.theme import NAMES
from geomhooks.results import Result

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["find_parts"]

DOUBTFUL = 2  # times what noise adds, up to which a share between groups may be chance


def find_parts(geometry: Geometry) -> Iterator[Finding]:
    """A sentence or two for each statistic that there is."""
    yield from _updates(geometry)
    yield from _feed_forward(geometry)
    yield from _covariance(geometry)
    yield from _groups(geometry)
    yield from _components(geometry)
    yield from _attention(geometry)
    yield from _factors(geometry)
    yield from _leaders(geometry)


def _updates(geometry: Geometry) -> Iterator[Finding]:
    """Which sublayer turns states most, and where."""
    angles: dict[str, dict[str, float]] = {}
    for name in ("attention", "cross_attention", "mlp"):
        found = scalars(geometry, f"updates.without_first.{name}.step_angle.mean")
        if found:
            angles[name] = found
    if not angles:
        return
    said = []
    for name, found in angles.items():
        most, least = extremes(found)
        text = f"{NAMES.get(name, name)} most at {most}, by {math.degrees(found[most]):.2g}°"
        if len(found) > 1:
            text += f", and least at {least}, by {math.degrees(found[least]):.2g}°"
        said.append(text)
    means = {name: sum(found.values()) / len(found) for name, found in angles.items()}
    most, least = extremes(means)
    text = f"Sublayers turn states: {'; '.join(said)} (means over tokens)"
    if most != least:
        text += (
            f". On average over blocks {NAMES.get(most, most)} turns them by "
            f"{math.degrees(means[most]):.2g}° and {NAMES.get(least, least)} by "
            f"{math.degrees(means[least]):.2g}°"
        )
    yield Finding("updates", f"{text}.", "")


def _feed_forward(geometry: Geometry) -> Iterator[Finding]:
    """How linear the layers are, free of what a fit of as many weights has by chance."""
    fits = scalars(geometry, "feed_forward_fit.r_squared")
    if not fits:
        return
    adjusted = {}
    for site, value in fits.items():
        result = geometry[site].feed_forward_fit
        count, rank = int(result.count), int(result.rank)
        if count > rank + 1:
            adjusted[site] = 1 - (1 - value) * (count - 1) / (count - 1 - rank)
    if not adjusted:
        text = (
            "Too few tokens were read to say how linear feed-forward layers are: any fit is good."
        )
        yield Finding("feed-forward", text)
        return
    most, least = extremes(adjusted)
    text = f"A linear map makes {percent(adjusted[most])} of what the feed-forward layer makes"
    text += f" at {most}, the most linear" if len(adjusted) > 1 else f" at {most}"
    if len(adjusted) > 1:
        text += f", and {percent(adjusted[least])} at {least}, the least"
    yield Finding("feed-forward", f"{text} (R^2, adjusted for how many weights are fitted).")


def _covariance(geometry: Geometry) -> Iterator[Finding]:
    shares = scalars(geometry, "covariance.leading_share")
    ranks = scalars(geometry, "covariance.effective_rank")
    if not shares:
        return
    most, least = extremes(shares)
    width = geometry[most].covariance.mean.shape[-1]
    text = f"The leading direction has {percent(shares[most])} of the variance at {place(most)}"
    text += (
        f" and {percent(shares[least])} at {place(least)}, the extremes" if most != least else ""
    )
    text += f"; each of {width:,} would have {percent(1 / width)} if all were alike"
    if ranks:
        text += f". The effective rank is {between(list(ranks.values()), lambda v: f'{v:.0f}')}"
    yield Finding("variance", f"{text}.")


def _groups(geometry: Geometry) -> Iterator[Finding]:
    """How far groups differ, against what contexts shared out at random would give."""
    shares = scalars(geometry, "group_means.between_share")
    tokens = scalars(geometry, "group_means.between_noise_share")
    of_contexts = scalars(geometry, "pos_ctx.shares.ctx")
    noise = {}
    for site in shares:
        groups = int((geometry[site].group_means.count > 0).sum())
        contexts = int(geometry[site].pos_ctx.contexts) if site in of_contexts else 0
        drawn = of_contexts[site] * (groups - 1) / (contexts - 1) if contexts > 1 else 0.0
        noise[site] = max(tokens.get(site, 0.0), drawn)
    if not shares:
        return
    most = max(shares, key=lambda site: shares[site] - noise[site])
    if shares[most] <= DOUBTFUL * noise[most]:
        most, _ = extremes(shares)
        text = (
            f"Groups differ by no more than chance may give: {percent(shares[most])} of the "
            f"variance is between their means at {place(most)}, where chance gives about "
            f"{percent(noise[most])}"
        )
    else:
        text = (
            f"{percent(shares[most])} of the variance is between the means of groups at "
            f"{place(most)}{', more than elsewhere' if len(shares) > 1 else ''}, where chance "
            f"gives about {percent(noise[most])}"
        )
    if most not in of_contexts:
        text += ", as if tokens were independent, which those of one text are not"
    yield Finding("groups", f"{text}.")


def _components(geometry: Geometry) -> Iterator[Finding]:
    sites = [s for s in geometry.sites if read(geometry[s], "components.importance") is not None]
    if not sites:
        return
    terms = read(geometry[sites[-1]], "components.importance")
    shares = {name: float(term.mean) for name, term in terms.items()}
    order = sorted(shares, key=lambda name: -shares[name])
    parts = ", ".join(f"{NAMES.get(name, name)} {percent(shares[name])}" for name in order)
    text = f"The last states, {sites[-1]}, are: {parts}."
    yield Finding("components", text, "component_importance")


def _attention(geometry: Geometry) -> Iterator[Finding]:
    """Of which parts of query and key the logits of attention vary."""
    sites = [s for s in geometry.sites if read(geometry[s], "attention.mean_shares") is not None]
    pairs = {s: geometry[s].attention.mean_shares.scalars() for s in sites}
    pairs = {s: p for s, p in pairs.items() if all(map(math.isfinite, p.values()))}
    if not pairs:
        return
    means = {
        name: sum(found[name] for found in pairs.values()) / len(pairs)
        for name in next(iter(pairs.values()))
    }
    first, second = sorted(means, key=lambda name: -means[name])[:2]
    text = (
        f"The logits of attention vary most with {_pair(first)}, {percent(means[first])} of their "
        f"variance on average over {len(pairs)} block{'s' * (len(pairs) > 1)}, and then with "
        f"{_pair(second)}, {percent(means[second])}"
    )
    places = {site: found["pos_pos"] for site, found in pairs.items()}
    most, least = extremes(places)
    text += f"; pos of query and key together make {percent(places[most])} at {most}"
    text += f" and {percent(places[least])} at {least}, the extremes" if most != least else ""
    yield Finding("attention", f"{text}.", "query_key_shares")


def _pair(name: str) -> str:
    query, _, key = name.partition("_")
    return f"{query} of the query with {key} of the key"


def _factors(geometry: Geometry) -> Iterator[Finding]:
    """At which layers factors of a dictionary are strongest."""
    found = {
        s: v for s in geometry.sites if (v := read(geometry[s], "factors.importance")) is not None
    }
    if not found or len({len(value) for value in found.values()}) > 1:
        return
    importance = torch.stack([value.nan_to_num() for value in found.values()])
    sites = list(found)
    active = importance.amax(0) > 0
    if not bool(active.any()):
        yield Finding("factors", "No factor of the dictionary was active.")
        return
    text = f"{int(active.sum()):,} of {len(active):,} factors were active"
    if len(sites) > 1:
        peaks = Counter(importance[:, active].argmax(0).tolist())
        homes = [f"{number:,} at {place(sites[at])}" for at, number in peaks.most_common(3)]
        text += f"; they are at home (strongest) most often {', '.join(homes)}"
    active_at = scalars(geometry, "factors.l0")
    if active_at:
        text += f". A token has {between(list(active_at.values()), lambda v: f'{v:.3g}')} active"
        text += " factors on average"
    yield Finding("factors", f"{text}.", "factor_importance")


def _leaders(geometry: Geometry) -> Iterator[Finding]:
    """How many tokens lead, and in which layer most lead that did not before."""
    leaders = scalars(geometry, "leaders.without_first.mean_heads.leaders")
    new = _mean_over_heads(geometry, "leaders.without_first.new_leaders")
    if not leaders:
        return
    most, least = extremes(leaders)
    text = (
        f"In the mean over heads {leaders[most]:.2g} tokens of a context lead at {most} (they "
        "attend most to themselves"
    )
    text += f"), and {leaders[least]:.2g} at {least}, the extremes" if most != least else ")"
    if len(new) > 1:
        first, *later = new
        most = max(later, key=lambda site: new[site])
        text += f"; after {first}, most that did not lead before are at {most}, {new[most]:.2g}"
    yield Finding("leaders", f"{text}.", "leaders_by_layer")


def _mean_over_heads(geometry: Geometry, path: str) -> Mapping[str, float]:
    found = {}
    for site in geometry.sites:
        value = read(geometry[site], path)
        if isinstance(value, Result) and math.isfinite(mean := float(value.mean.nanmean())):
            found[site] = mean
    return found
