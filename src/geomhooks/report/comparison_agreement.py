"""Whether contexts and positions of runs lie alike, beside chance, in sentences made of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard

from geomhooks.report.finding import Finding, place
from geomhooks.report.spreads import Names, Numbers

__all__ = ["find_agreement"]

CHANCE = 0.05  # p-value up to which something is no chance
CLOSE = 0.15  # ways that are called alike
Places = list[tuple[Any, str, Sequence[str]]]
ALIKE = (  # how far on the way from chance to the same
    (0.9, "nearly the same"),
    (0.5, "much alike"),
    (0.2, "partly alike"),
    (-math.inf, "hardly alike"),
)


def find_agreement(found: Numbers, names: Names) -> Iterator[Finding]:
    """Of contexts, and of positions in both senses."""
    yield from _contexts(found, names)
    yield from _positions(found, names)


def _contexts(found: Numbers, names: Names) -> Iterator[Finding]:
    """Whether contexts lie alike."""
    places = _places(found, lambda site: site.get("ctx", {}).get("cka"))
    places = [spot for spot in places if math.isfinite(spot[0]["value"])]
    if places:
        text = _agreement("Contexts lie", "CKA of ctx", "value", "expected", places, found, names)
        yield Finding("contexts", text, "agreement_cka")


def _positions(found: Numbers, names: Names) -> Iterator[Finding]:
    """Whether positions move alike."""
    sides: Mapping[Literal["positions", "directions"], str] = {
        "positions": "The curves along which positions move are",
        "directions": "The directions that positions use are",
    }
    for side, said in sides.items():
        places = _places(found, lambda site, side=side: site.get("pos", {}).get(side))
        places = [spot for spot in places if "overlap" in spot[0]]
        if places:
            keys = "overlap", "expected_overlap"
            text = _agreement(said, "the overlap", *keys, places, found, names)
            yield Finding(side, text, f"agreement_{side}")


def _agreement(
    said: str, what: str, key: str, chance: str, places: Places, found: Numbers, names: Names
) -> str:
    """How alike something is, at the most and at the least, beside chance.

    What one would have by chance counts as none, and what is the same as all.
    """

    def way(part: Numbers) -> float:
        none = part[chance] if _finite(part.get(chance)) else 0.0
        return float((part[key] - none) / (1 - none)) if none < 1 else 1.0

    def alike(way: float) -> str:
        return next(word for bound, word in ALIKE if way >= bound)

    def spot(one: tuple[Numbers, str, Sequence[str]]) -> str:
        none = one[0].get(chance)
        by_chance = f", by chance {max(0.0, float(none)):.2f}" if _finite(none) else ""
        where = f"{place(one[1])}{_who(one[2], found, names)}"
        return f"at {where} ({one[0][key]:.2f}{by_chance})"

    most = max(places, key=lambda one: one[0][key])
    least = min(places, key=lambda one: one[0][key])
    high, low = way(most[0]), way(least[0])
    # What lies close together is not put on two sides of a bound.
    if high - low < CLOSE or alike(high) == alike(low):
        text = f"{said} {alike((high + low) / 2)}{' everywhere' * (len(places) > 1)}"
        text += f": {what} is {'largest ' * (len(places) > 1)}{spot(most)}"
        text += f" and smallest {spot(least)}" if len(places) > 1 else ""
    else:
        text = f"{said} {alike(high)} {spot(most)} and {alike(low)} {spot(least)} by {what}"
    values = [one[0]["p_value"] for one in places if _finite(one[0].get("p_value"))]
    return f"{text}, where 1 is the same{_tested(values, found.get('permutations'))}."


def _tested(values: Sequence[float], permutations: int | None) -> str:
    """What permutations say; p is never less than one over one more than these are.

    Example:
        >>> _tested([0.01, 0.01], 99)[26:]
        'chance: p is at most 0.01, the least that 99 permutations can give'
        >>> _tested([0.01, 0.3], 99)
        '; at 1 of 2 places it is no more than chance (p > 0.05)'
        >>> _tested([0.1, 0.3], 9)
        '; 9 permutations are too few to tell it from chance: p is 0.1 at least'
    """
    if not values:
        return ""
    least = 1 / (permutations + 1) if permutations else 0.0
    if least > CHANCE:
        return (
            f"; {permutations} permutations are too few to tell it from chance: p is {least:.2g} "
            "at least"
        )
    chance = [value for value in values if value > CHANCE]
    if chance:
        return (
            f"; at {len(chance)} of {len(values)} places it is no more than chance (p > {CHANCE})"
        )
    text = f"; everywhere more than by chance: p is at most {max(values):.2g}"
    floor = permutations and max(values) <= least * (1 + 1e-9)
    return f"{text}, the least that {permutations} permutations can give" if floor else text


def _places(found: Numbers, pick: Any) -> Places:
    """What is at the sites of all pairs, where there is something."""
    return [
        (part, label, pair["files"])
        for pair in found["pairs"]
        for label, site in pair["sites"].items()
        if (part := pick(site)) is not None
    ]


def _who(files: Sequence[str], found: Numbers, names: Names) -> str:
    """Which pair, where there are several."""
    several = len(found["pairs"]) > 1
    return f" ({' and '.join(names[file] for file in files)})" if several else ""


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
