"""What stands out in a geometry, in sentences made of its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from geomhooks.errors import UnidentifiedError
from geomhooks.report.figures.found import lookup
from geomhooks.report.theme import NAMES

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["Finding", "describe_depth", "describe_input", "explain_parts", "find_outstanding"]

EVEN = 1.25  # times the smallest share of a third, up to which thirds are alike
OUTLIER = 3  # times the typical norm
DIRECTED = 0.5  # mean cosine from which states are said to share a direction


class Finding(NamedTuple):
    """One thing that stands out."""

    subject: str
    """in a word or two"""
    text: str
    figure: str = ""
    """name of the figure that shows it"""


def describe_input(geometry: Geometry) -> str:
    """What was read, and with what: one sentence.

    Example:
        >>> import torch, geomhooks as gh
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(10, 4, 3))
        >>> describe_input(watch.geometry())
        '40 tokens of 10 contexts, up to 4 positions; 1 site of width 3.'
    """
    tokens = max(counts["real"] for counts in geometry.tokens.values())
    parts = f"{tokens:,} tokens"
    found = _first(geometry, "pos_ctx")
    width = ""
    if found is not None:
        parts += (
            f" of {int(found.contexts):,} contexts, up to {len(found.position_count):,} positions"
        )
        mean = _read(found, "position_mean")
        width = "" if mean is None else f" of width {mean.shape[-1]:,}"
    number = len(geometry.sites)
    return f"{parts}; {number} site{'s' * (number > 1)}{width}."


def find_outstanding(geometry: Geometry) -> list[Finding]:
    """Where position and context live, what is an outlier, what to doubt; computed, with numbers.

    Example:
        >>> import torch, geomhooks as gh
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> ramp = 10 * torch.arange(4.0)[:, None]  # nearly all there is
        >>> with gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(10, 4, 3) + ramp)
        >>> found = find_outstanding(watch.geometry())
        >>> found[0].subject, found[0].text[:52]
        ('position', 'Position has 99 % of the variance of the hidden stat')
    """
    makers: Iterable[Callable[[Geometry], Iterator[Finding]]] = (
        _in_short,
        _parts,
        _space,
        _first_token,
        _turns,
        _alike,
        _words,
        _components,
        _attention,
        _doubts,
    )
    return [finding for maker in makers for finding in maker(geometry)]


def explain_parts(geometry: Geometry) -> str:
    """What position and context are, where they were measured."""
    if not _scalars(geometry, "pos_ctx.shares.pos"):
        return ""
    return (
        "Each hidden state is split into the mean of all, a part that its position tells (pos), a "
        "part that the text it stands in tells (ctx), and the rest (resid), mostly the word."
    )


def describe_depth(geometry: Geometry) -> str:
    """Where position and context live, in one sentence each; nothing where there are few sites."""
    pos = _scalars(geometry, "pos_ctx.shares.pos")
    ctx = _scalars(geometry, "pos_ctx.shares.ctx")
    sites = [site for site in pos if site in ctx]
    if len(sites) < 3:
        return ""
    return " ".join(
        f"{name} is {_where([shares[site] for site in sites])}."
        for name, shares in (("Position", pos), ("Context", ctx))
    )


def _in_short(geometry: Geometry) -> Iterator[Finding]:
    """Where position and context live, and in how much room."""
    text = describe_depth(geometry)
    if not text:
        return
    ranks = _scalars(geometry, "pos_ctx.stable_rank")
    overlap = _scalars(geometry, "pos_ctx.incoherence.mean")
    if ranks and ranks.keys() == overlap.keys():
        width = geometry[next(iter(ranks))].pos_ctx.mean.shape[-1]
        text += (
            f" Positions use {min(ranks.values()):.1f} to {max(ranks.values()):.1f} of {width} "
            "directions (stable rank), whose mean |cosine| with contexts is "
            f"{min(overlap.values()):.2f} to {max(overlap.values()):.2f}, where 0 is orthogonal."
        )
    yield Finding("in short", text, "variance_shares")


def _where(shares: Sequence[float]) -> str:
    """In which third of the depth a share is large, and by how much.

    Example:
        >>> _where([0.3, 0.3, 0.31])
        'about as strong at all depths: the thirds have 30 %, 30 %, 31 % of the variance'
    """
    third = len(shares) // 3
    parts = {
        "strongest in the first third of the layers": shares[:third],
        "strongest in the middle of the layers": shares[third:-third],
        "strongest in the last third of the layers": shares[-third:],
    }
    means = {name: sum(some) / len(some) for name, some in parts.items()}
    most, least = _extremes(means)
    where = most if means[most] > EVEN * means[least] else "about as strong at all depths"
    values = ", ".join(map(_percent, means.values()))
    return f"{where}: the thirds have {values} of the variance"


def _parts(geometry: Geometry) -> Iterator[Finding]:
    """Where pos and ctx have their largest share."""
    names = {"pos": "Position", "ctx": "Context"}
    for part, name in names.items():
        shares = _scalars(geometry, f"pos_ctx.shares.{part}")
        if not shares:
            continue
        most, least = _extremes(shares)
        text = f"{name} has {_percent(shares[most])} of the variance of the hidden states at {most}"
        noise = _scalars(geometry, f"pos_ctx.noise_shares.{part}").get(most)
        if noise is not None:
            text += f" (a sample of this size gives {_percent(noise)} by chance)"
        if len(shares) > 1:
            last = list(shares)[-1]
            text += (
                f", its largest share, and {_percent(shares[least])} at {least}, its smallest; "
                f"at the last site, {last}, it has {_percent(shares[last])}"
            )
        yield Finding("position" if part == "pos" else "context", text + ".", "variance_shares")


def _space(geometry: Geometry) -> Iterator[Finding]:
    """In how many directions positions differ, how smoothly, and how far from contexts."""
    ranks = _scalars(geometry, "pos_ctx.stable_rank")
    if ranks:
        most, least = _extremes(ranks)
        text = (
            f"Positions differ in few directions where the stable rank of pos is small: it is "
            f"{ranks[least]:.1f} at {least}"
        )
        if len(ranks) > 1:
            text += f" and {ranks[most]:.1f} at {most}, the extremes"
        above = _scalars(geometry, "pos_ctx.rank_above_noise")
        if above:
            fewest, largest = int(min(above.values())), int(max(above.values()))
            between = f"{fewest}" if fewest == largest else f"{fewest} to {largest}"
            text += f"; {between} singular values stand above the noise"
        yield Finding("rank of pos", text + ".", "position_singular_values")
    low = _scalars(geometry, "pos_ctx.smoothness.low_frequency_share")
    if low:
        most, least = _extremes(low)
        text = (
            f"The ten lowest frequencies make {_percent(low[most])} of the directions of pos at "
            f"{most}"
        )
        text += f", and {_percent(low[least])} at {least}" if len(low) > 1 else ""
        yield Finding("smoothness", f"{text}: the more, the smoother.", "position_fourier")
    mean = _scalars(geometry, "pos_ctx.incoherence.mean")
    chance = _scalars(geometry, "pos_ctx.incoherence.expected_mean")
    if mean and chance:
        most = max(mean, key=lambda site: mean[site] / chance[site])
        yield Finding(
            "incoherence",
            f"pos and ctx overlap most at {most}: their mean |cosine| there is {mean[most]:.3f}, "
            f"where random directions would have {chance[most]:.3f}.",
            "position_context_gram",
        )


def _first_token(geometry: Geometry) -> Iterator[Finding]:
    """Positions whose states are far longer than others."""
    ratios: dict[str, tuple[float, float, float]] = {}
    for site in geometry.sites:
        norm = lookup(geometry[site], "sphere.norm")
        rest = lookup(geometry[site], "sphere.without_first.norm.mean")
        if norm is None or not len(norm.at_position.mean):
            continue
        first, others = float(norm.at_position.mean[0]), float(rest)
        if math.isfinite(first) and others > 0:
            ratios[site] = first / others, first, others
    if not ratios:
        return
    far = [site for site, (ratio, *_) in ratios.items() if ratio > OUTLIER]
    most = max(ratios, key=lambda site: ratios[site][0])
    ratio, first, others = ratios[most]
    lengths = f"{first:.4g} against {others:.4g} at {most}, {ratio:.1f} times as long"
    if far:
        where = f"at {far[0]}" if len(far) == 1 else f"at {len(far)} sites, first at {far[0]}"
        text = f"The state at position 0 is an outlier {where}: its norm is {lengths}."
    else:
        text = f"The state at position 0 is no outlier in norm: at most {lengths}."
    yield Finding("first token", text, "length_by_layer")


def _turns(geometry: Geometry) -> Iterator[Finding]:
    angles = {
        site: math.degrees(angle)
        for site, angle in _scalars(geometry, "sphere.without_first.step_angle.mean").items()
    }
    if len(angles) > 1:
        most, least = _extremes(angles)
        yield Finding(
            "turns",
            f"{most} turns the states most, by {angles[most]:.0f}° on average, and {least} least, "
            f"by {angles[least]:.0f}°.",
            "step_angles",
        )


def _alike(geometry: Geometry) -> Iterator[Finding]:
    cosines = _scalars(geometry, "sphere.without_first.anisotropy")
    if not cosines:
        return
    most, _ = _extremes(cosines)
    shared = [site for site, value in cosines.items() if value > DIRECTED]
    text = f"The mean cosine of two states is largest at {most}, {cosines[most]:.2f}"
    text += f"; it is above {DIRECTED} at {len(shared)} of {len(cosines)} sites."
    yield Finding("anisotropy", text, "directions_by_layer")


def _words(geometry: Geometry) -> Iterator[Finding]:
    pulls = _scalars(geometry, "next_word.without_first.pull.mean")
    if not pulls:
        return
    ahead = [site for site, value in pulls.items() if value > 0]
    last = list(pulls)[-1]
    text = (
        f"States are nearer to the next word than to their own from {ahead[0]} on"
        if ahead and ahead == list(pulls)[-len(ahead) :]
        else f"States are nearer to the next word than to their own at {len(ahead)} of "
        f"{len(pulls)} sites"
    )
    nearer = "next" if pulls[last] > 0 else "own"
    yield Finding(
        "next word",
        f"{text}; at the end, {last}, the {nearer} one is ahead by {abs(pulls[last]):.1f} nats.",
        "next_word_pull",
    )


def _components(geometry: Geometry) -> Iterator[Finding]:
    sites = [s for s in geometry.sites if lookup(geometry[s], "components.importance") is not None]
    if not sites:
        return
    terms = lookup(geometry[sites[-1]], "components.importance")
    shares = {name: float(term.mean) for name, term in terms.items()}
    order = sorted(shares, key=lambda name: -shares[name])
    parts = ", ".join(f"{NAMES.get(name, name)} {_percent(shares[name])}" for name in order)
    yield Finding(
        "components", f"The last states, {sites[-1]}, are: {parts}.", "component_importance"
    )


def _attention(geometry: Geometry) -> Iterator[Finding]:
    shares = _scalars(geometry, "attention.mean_shares.pos_pos")
    if shares:
        most, _ = _extremes(shares)
        yield Finding(
            "attention by place",
            f"pos of query and key together make {_percent(shares[most])} of the variance of the "
            f"logits of attention at {most}, more than in any other block.",
            "query_key_shares",
        )


def _doubts(geometry: Geometry) -> Iterator[Finding]:
    """What keeps the numbers from being taken as they are."""
    for part, more in (("pos", "contexts"), ("ctx", "tokens of each context")):
        shares = _scalars(geometry, f"pos_ctx.shares.{part}")
        noise = _scalars(geometry, f"pos_ctx.noise_shares.{part}")
        weak = [site for site in noise if noise[site] > shares.get(site, math.inf) / 2]
        if weak:
            yield Finding(
                "caution",
                f"More than half of the share of {part} is sampling noise at {len(weak)} of "
                f"{len(noise)} sites, first at {weak[0]}; read more {more}.",
                "variance_shares",
            )
    lost = {s: n for s, n in _scalars(geometry, "sphere.non_finite").items() if n > 0}
    if lost:
        most, _ = _extremes(lost)
        yield Finding(
            "caution",
            f"{int(lost[most]):,} states at {most} are not finite and were left out; so at "
            f"{len(lost)} sites.",
        )
    unsure = [s for s, value in _scalars(geometry, "pos_ctx.exact").items() if not value]
    if unsure:
        yield Finding(
            "caution",
            f"At {len(unsure)} sites plain means stand for the exact fit, first at {unsure[0]}.",
        )
    for stream, counts in geometry.tokens.items():
        if counts["beyond"]:
            yield Finding(
                "caution",
                f"{counts['beyond']:,} tokens of {stream or 'the model'} stood beyond the capacity "
                "for positions and are not in the numbers.",
            )


def _scalars(geometry: Geometry, path: str) -> dict[str, float]:
    """A number by site, where there is one that is finite."""
    found = {}
    for site in geometry.sites:
        value = _read(geometry[site], path)
        if isinstance(value, Tensor) and value.ndim == 0 and math.isfinite(float(value)):
            found[site] = float(value)
    return found


def _read(result: Any, path: str) -> Any:
    try:
        return lookup(result, path)
    except UnidentifiedError:
        return None


def _first(geometry: Geometry, path: str) -> Any:
    found = (_read(geometry[site], path) for site in geometry.sites)
    return next((value for value in found if value is not None), None)


def _extremes(values: Mapping[str, float]) -> tuple[str, str]:
    """The sites of the largest and of the smallest value."""
    return max(values, key=lambda site: values[site]), min(values, key=lambda site: values[site])


def _percent(share: float) -> str:
    """Such as "12 %", with a digit more where it is small.

    Example:
        >>> _percent(0.123), _percent(0.0123)
        ('12 %', '1.2 %')
    """
    return f"{100 * share:.0f} %" if abs(share) >= 0.0995 else f"{100 * share:.1f} %"
