"""How far runs differ in each scalar."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from geomhooks.report.scalar_names import named

__all__ = ["SURE", "Names", "Numbers", "Spread", "find_spreads", "say_spread"]

SURE = 1.96  # standard errors
Numbers = Mapping[str, Any]
Names = Mapping[str, str]


class Spread(NamedTuple):
    """How far runs differ in one scalar."""

    scalar: str
    relative: float
    """mean |difference| over all sites and pairs, in units of the mean of the larger value"""
    site: str
    pair: Numbers
    """where the difference is largest"""
    numbers: Numbers


def say_spread(spread: Spread, names: Names) -> str:
    """How far, where most, and whether that is more than noise."""
    one, other = (names[file] for file in spread.pair["files"])
    what, numbers = named(spread.scalar), spread.numbers
    heading = what.heading[:1].upper() + what.heading[1:]
    text = (
        f"{heading}: by {100 * spread.relative:.2g} % of its size on average over sites, most "
        f"at {spread.site}: {what.show(numbers['first'])} in {one} and "
        f"{what.show(numbers['second'])} in {other}"
    )
    error = numbers["standard_error"]
    if error is None:
        return f"{text}."
    within = abs(numbers["difference"]) <= SURE * error
    return f"{text}, ± {what.error(error)}{', which is within noise' * within}."


def find_spreads(found: Numbers) -> Iterator[Spread]:
    """How far runs differ in each scalar that was compared."""
    scalars = dict.fromkeys(
        name
        for pair in found["pairs"]
        for site in pair["sites"].values()
        for name in site["scalars"]
    )
    for scalar in scalars:
        places = [
            (abs(numbers["difference"]), site, pair, numbers)
            for pair in found["pairs"]
            for site, results in pair["sites"].items()
            if (numbers := results["scalars"].get(scalar)) is not None
            and math.isfinite(numbers["difference"])
        ]
        if not places:
            continue
        size = sum(max(abs(n["first"]), abs(n["second"])) for *_, n in places)
        _, site, pair, numbers = max(places, key=lambda place: place[0])
        relative = sum(difference for difference, *_ in places) / size if size else 0.0
        yield Spread(scalar, relative, site, pair, numbers)
