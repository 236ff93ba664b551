"""Which curves of trainings go together and which do not, in sentences made of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from geomhooks.report.finding import Finding
from geomhooks.report.scalar_names import named
from geomhooks.report.spreads import Names, Numbers, find_spreads, say_spread

if TYPE_CHECKING:
    from geomhooks.history import History

__all__ = ["find_turns"]


def find_turns(histories: Mapping[str, History], found: Numbers, names: Names) -> list[Finding]:
    """Which curves of histories go together, and which do not; what differs at the end.

    Args:
        histories: by what to call them.
        found: by :func:`geomhooks.comparing.compare_histories`.
        names: what to call the files.
    """
    places = [
        (pair["spearman"]["value"], name, pair)
        for name, scalar in found["scalars"].items()
        for pair in scalar.get("pairs", [])
        if math.isfinite(pair["spearman"]["value"])
    ]
    findings = []
    if places:
        for subject, place in (
            ("go together", max(places, key=lambda place: place[0])),
            ("go apart", min(places, key=lambda place: place[0])),
        ):
            value, name, pair = place
            site, _, scalar = name.partition("/")
            who = " and ".join(names[file] for file in pair["files"])
            low, high = (pair["spearman"][key] for key in ("low", "high"))
            findings.append(
                Finding(
                    subject,
                    f"{named(scalar).heading} at {site}, of {who}: Spearman's correlation over "
                    f"the steps is {value:.2f} ({low:.2f} to {high:.2f}), the "
                    f"{'largest' if subject == 'go together' else 'smallest'} of {len(places)}.",
                    f"training_{scalar.replace('/', '_')}",
                )
            )
    distances = [
        (pair["warping_distance"], name, pair)
        for name, scalar in found["scalars"].items()
        for pair in scalar.get("pairs", [])
    ]
    same = [place for place in distances if place[0] == 0]
    if same and len(same) == len(distances):
        findings.insert(0, Finding("the same", "All curves that are compared are equal."))
    findings += _at_the_end(histories, found)
    reasons: dict[str, list[str]] = {}
    for name, scalar in found["scalars"].items():
        if "unavailable" in scalar:
            reasons.setdefault(scalar["unavailable"], []).append(name)
    for reason, which in reasons.items():
        more = f" and {len(which) - 1} more" if len(which) > 1 else ""
        findings.append(Finding("caution", f"{which[0]}{more}: {reason}."))
    return findings


def _at_the_end(histories: Mapping[str, History], found: Numbers) -> Iterator[Finding]:
    """Which scalars differ most and least at the last step that all have."""
    called = list(histories)
    last = found["steps"][-1]
    values = [history.scalars(last) for history in histories.values()]
    pairs = []
    for i, j in combinations(range(len(called)), 2):
        sites: dict[str, Any] = {}
        for name in found["scalars"]:
            site, _, scalar = name.partition("/")
            one, other = (values[k].get(name, math.nan) for k in (i, j))
            numbers = {"first": one, "second": other, "difference": other - one}
            of_site = sites.setdefault(site, {"scalars": {}})
            of_site["scalars"][scalar] = numbers | {"standard_error": None}
        pairs.append({"files": [called[i], called[j]], "sites": sites})
    spreads = sorted(find_spreads({"pairs": pairs}), key=lambda spread: -spread.relative)
    own = {name: name for name in called}
    if spreads and spreads[0].relative > 0:
        for subject, spread in (("differs most", spreads[0]), ("differs least", spreads[-1])):
            text = f"At step {last:,}: {say_spread(spread, own)}"
            yield Finding(subject, text, f"training_{spread.scalar.replace('/', '_')}")
