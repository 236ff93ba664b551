"""What moves while a model is trained, in sentences made of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from geomhooks.history import History
from geomhooks.report.finding import Finding
from geomhooks.report.scalar_names import named

__all__ = ["ends", "find_movement"]

SHARES, NOISE_SHARES = "pos_ctx/shares/", "pos_ctx/noise_shares/"
SHOWN = 3  # scalars of which it is said how they moved


def find_movement(history: History, scalars: Sequence[str]) -> list[Finding]:
    """Of some scalars those that moved most, and where, from the first step to the last.

    Args:
        history: of a training.
        scalars: their names after those of the sites.

    Example:
        >>> import torch, geomhooks as gh
        >>> model, history = torch.nn.Sequential(torch.nn.Linear(4, 4)), gh.History()
        >>> with torch.no_grad(), gh.watch(model, sites="0", statistics=[gh.Sphere()]) as watch:
        ...     for step in (0, 10):
        ...         _ = model(torch.ones(2, 3, 4))
        ...         history.append(step, watch.geometry())
        >>> find_movement(history, ["sphere/norm/mean"])[0].text[:46]
        'Nothing moved between step 0 and step 10.'
    """
    steps = history.steps
    if len(steps) < 2:
        return []
    moved = sorted(
        (found for scalar in scalars for found in _moved(history, scalar)),
        key=lambda found: -found[0],
    )
    if not moved:
        return []
    if moved[0][0] == 0:
        text = f"Nothing moved between step {steps[0]:,} and step {steps[-1]:,}."
        return [Finding("over training", text)]
    return [
        Finding("over training", text, f"training_{scalar.replace('/', '_')}")
        for _, text, scalar in moved[:SHOWN]
    ]


def ends(history: History, name: str) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """The first and the last step at which a scalar is finite, with its values; None for none."""
    steps, values = history.curve(name)
    pairs = zip(steps.tolist(), values.tolist(), strict=True)
    finite = [(step, value) for step, value in pairs if math.isfinite(value)]
    return (finite[0], finite[-1]) if finite else None


def _moved(history: History, scalar: str) -> Iterator[tuple[float, str, str]]:
    """How far a scalar moved at the site at which it moved most, as part of its larger value."""
    ending = f"/{scalar}"
    places = []
    for name in history.names:
        found = ends(history, name) if name.endswith(ending) else None
        if found is not None:
            (first, before), (last, after) = found
            places.append((abs(after - before), name[: -len(ending)], first, before, last, after))
    if not places:
        return
    distance, site, first, before, last, after = max(places)
    what = named(scalar)
    text = (
        f"{what.heading}: {'up' if after > before else 'down'} most at {site}, from "
        f"{what.show(before)} at step {first:,} to {what.show(after)} at step {last:,}."
    )
    if scalar.startswith(SHARES):
        chance = ends(history, f"{site}/{scalar.replace(SHARES, NOISE_SHARES)}")
        if chance is not None:
            (_, earlier), (_, later) = chance
            text = (
                f"{text[:-1]}, where samples of these sizes give {what.show(earlier)} and "
                f"{what.show(later)} by chance."
            )
            if distance <= max(earlier, later):
                text = f"{text[:-1]}; it moved by no more than that."
    yield distance / (max(abs(before), abs(after)) or 1.0), text, scalar
