"""What stands out in a geometry, in sentences made of its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from geomhooks.report.depth import describe_depth, find_depths, find_small_samples
from geomhooks.report.figures.found import lookup
from geomhooks.report.finding import Finding, extremes, place, read, scalars
from geomhooks.report.part_findings import find_parts
from geomhooks.report.part_shares import SURE

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["Finding", "describe_depth", "describe_input", "explain_parts", "find_outstanding"]

OUTLIER = 3  # times the typical norm
DIRECTED = 0.5  # mean cosine from which states are said to share a direction


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
            f" of {int(found.contexts):,} context{'s' * (int(found.contexts) != 1)}, up to "
            f"{len(found.position_count):,} positions"
        )
        mean = read(found, "position_mean")
        width = "" if mean is None else f" of width {mean.shape[-1]:,}"
    number = len(geometry.sites)
    return f"{parts}; {number} site{'s' * (number > 1)}{width}."


def find_outstanding(geometry: Geometry) -> list[Finding]:
    """What to beware of, where position and context live, what is an outlier; with numbers.

    Example:
        >>> import torch, geomhooks as gh
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> ramp = 10 * torch.arange(4.0)[:, None]  # nearly all there is
        >>> with gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(torch.randn(40, 4, 3) + ramp)
        >>> found = {one.subject: one.text for one in find_outstanding(watch.geometry())}
        >>> found["position"][:36]
        'Position has 99 % of the variance at'
    """
    makers: Iterable[Callable[[Geometry], Iterator[Finding]]] = (
        find_small_samples,
        find_depths,
        _first_token,
        _turns,
        _alike,
        _words,
        find_parts,
        _doubts,
    )
    return [finding for maker in makers for finding in maker(geometry)]


def explain_parts(geometry: Geometry) -> str:
    """What position and context are, where they were measured."""
    if not scalars(geometry, "pos_ctx.shares.pos"):
        return ""
    return (
        "Each hidden state is split into the mean of all, a part that its position tells (pos), a "
        "part that the text it stands in tells (ctx), and the rest (resid), mostly the word."
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
    far = [site for site, (ratio, *_) in ratios.items() if ratio > OUTLIER]
    if not far:
        return
    most = max(ratios, key=lambda site: ratios[site][0])
    ratio, first, others = ratios[most]
    where = f"at {place(far[0])}" if len(far) == 1 else f"at {len(far)} sites, first at {far[0]}"
    text = (
        f"The state at position 0 is an outlier {where}: its norm is {first:.4g} against "
        f"{others:.4g} at {most}, {ratio:.1f} times as long."
    )
    yield Finding("first token", text, "length_by_layer")


def _turns(geometry: Geometry) -> Iterator[Finding]:
    """Which block turns states most, unless all turn them alike."""
    path = "sphere.without_first.step_angle"
    angles = scalars(geometry, f"{path}.mean")
    variances, counts = (scalars(geometry, f"{path}.{name}") for name in ("variance", "count"))
    if len(angles) < 2:
        return
    most, least = extremes(angles)
    noise = math.sqrt(sum(variances[site] / max(1, counts[site] - 1) for site in (most, least)))
    shown = {f"{math.degrees(angles[site]):.0f}" for site in (most, least)}
    if len(shown) > 1 and angles[most] - angles[least] > SURE * noise:
        yield Finding(
            "turns",
            f"{most} turns the states most, by {math.degrees(angles[most]):.0f}° on average, and "
            f"{least} least, by {math.degrees(angles[least]):.0f}°.",
            "step_angles",
        )


def _alike(geometry: Geometry) -> Iterator[Finding]:
    """Where states share a direction."""
    cosines = scalars(geometry, "sphere.without_first.anisotropy")
    shared = [site for site, value in cosines.items() if value > DIRECTED]
    if not shared:
        return
    most, _ = extremes(cosines)
    yield Finding(
        "anisotropy",
        f"States share a direction at {len(shared)} of {len(cosines)} sites: the mean cosine of "
        f"two is above {DIRECTED}, and largest at {place(most)}, {cosines[most]:.2f}.",
        "directions_by_layer",
    )


def _words(geometry: Geometry) -> Iterator[Finding]:
    pulls = scalars(geometry, "next_word.without_first.pull.mean")
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


def _doubts(geometry: Geometry) -> Iterator[Finding]:
    """What keeps the numbers from being taken as they are."""
    lost = {s: n for s, n in scalars(geometry, "sphere.non_finite").items() if n > 0}
    if lost:
        most, _ = extremes(lost)
        yield Finding(
            "caution",
            f"{int(lost[most]):,} states at {most} are not finite and were left out; so at "
            f"{len(lost)} sites.",
        )
    unsure = [s for s, value in scalars(geometry, "pos_ctx.exact").items() if not value]
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


def _first(geometry: Geometry, path: str) -> Any:
    found = (read(geometry[site], path) for site in geometry.sites)
    return next((value for value in found if value is not None), None)
