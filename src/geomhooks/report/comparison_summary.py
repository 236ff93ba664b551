"""What differs between runs and what does not, in sentences made of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from geomhooks.report.scalar_names import named
from geomhooks.report.summary import Finding, describe_depth

if TYPE_CHECKING:
    from geomhooks.history import History
    from geomhooks.snapshot import Geometry

__all__ = ["find_differences", "find_turns"]

RUNS = 4  # of which it is said where position and context live
SURE = 1.96  # standard errors
CHANCE = 0.05  # p-value up to which something is no chance
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


def find_differences(runs: Mapping[str, Geometry], found: Numbers, names: Names) -> list[Finding]:
    """What differs most, what stays the same, and what to doubt, of geometries.

    Args:
        runs: by what to call them.
        found: by :func:`geomhooks.comparing.compare_geometries`.
        names: what to call the files.
    """
    makers = (_depths(runs), _scalars(found, names), _contexts(found, names))
    others = (_positions(found, names), _pairs(found, names), _conditions(found))
    return [f for maker in (*makers, *others, _doubts(found)) for f in maker]


def _depths(runs: Mapping[str, Geometry]) -> Iterator[Finding]:
    for name, run in list(runs.items())[:RUNS]:
        text = describe_depth(run)
        if text:
            yield Finding(name, text, "compared_pos_ctx_shares_pos")


def _scalars(found: Numbers, names: Names) -> Iterator[Finding]:
    """Which scalars differ most and least, and which differences are no noise."""
    spreads = sorted(_spreads(found), key=lambda spread: -spread.relative)
    if not spreads:
        return
    first, last = spreads[0], spreads[-1]
    if first.relative == 0:
        yield Finding("the same", "All numbers that are compared are equal.", "run_differences")
        return
    yield Finding("differs most", _spread(first, names), _figure(first.scalar))
    if len(spreads) > 2:
        yield Finding("differs next", _spread(spreads[1], names), _figure(spreads[1].scalar))
    if len(spreads) > 1:
        yield Finding("stays the same", _spread(last, names), _figure(last.scalar))
    sure = [
        abs(numbers["difference"]) > SURE * numbers["standard_error"]
        for pair in found["pairs"]
        for site in pair["sites"].values()
        for numbers in site["scalars"].values()
        if numbers["standard_error"] is not None and math.isfinite(numbers["difference"])
    ]
    if sure:
        yield Finding(
            "beyond noise",
            f"Of {len(sure)} differences of means {sum(sure)} are larger than {SURE} standard "
            "errors, as if tokens were independent, which makes errors too small.",
            "run_differences",
        )


def _spread(spread: Spread, names: Names) -> str:
    one, other = (names[file] for file in spread.pair["files"])
    what, numbers = named(spread.scalar), spread.numbers
    heading = what.heading[:1].upper() + what.heading[1:]
    text = (
        f"{heading}: by {100 * spread.relative:.2g} % of its size on average over sites, most "
        f"at {spread.site}: {what.show(numbers['first'])} in {one} and "
        f"{what.show(numbers['second'])} in {other}"
    )
    error = numbers["standard_error"]
    return f"{text}, ± {what.error(error)}." if error is not None else f"{text}."


def _spreads(found: Numbers) -> Iterator[Spread]:
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


def _contexts(found: Numbers, names: Names) -> Iterator[Finding]:
    """Where contexts lie least alike."""
    places = _places(found, lambda site: site.get("ctx", {}).get("cka"))
    places = [place for place in places if math.isfinite(place[0]["value"])]
    if not places:
        return
    least = min(places, key=lambda place: place[0]["value"])
    most = max(places, key=lambda place: place[0]["value"])
    who = _who(least[2], found, names)
    text = (
        f"Contexts lie alike where CKA of ctx is near 1: it is {most[0]['value']:.2f} at most, at "
        f"{most[1]}, and {least[0]['value']:.2f} at least, at {least[1]}{who}"
    )
    chance = [cka for cka, *_ in places if (cka["p_value"] or 0) > CHANCE]
    tested = any(math.isfinite(cka["p_value"]) for cka, *_ in places if cka["p_value"] is not None)
    if tested:
        text += (
            f"; at {len(chance)} of {len(places)} places it is no more than chance"
            if chance
            else "; everywhere more than by chance"
        )
    yield Finding("contexts", f"{text}.", "agreement_cka")


def _positions(found: Numbers, names: Names) -> Iterator[Finding]:
    """Whether positions move alike."""
    for side, said in (
        ("positions", "Positions move along the same curves"),
        ("directions", "Positions use the same directions"),
    ):
        places = _places(found, lambda site, side=side: site.get("pos", {}).get(side))
        places = [place for place in places if "overlap" in place[0]]
        if not places:
            continue
        least = min(places, key=lambda place: place[0]["overlap"])
        most = max(places, key=lambda place: place[0]["overlap"])
        chance = least[0]["expected_overlap"]
        beside = f", where chance gives {chance:.2f}" if _finite(chance) else ""
        yield Finding(
            side,
            f"{said} where their overlap is near 1: it is {most[0]['overlap']:.2f} at most, at "
            f"{most[1]}, and {least[0]['overlap']:.2f} at least, at {least[1]}"
            f"{_who(least[2], found, names)}{beside}.",
            f"agreement_{side}",
        )


def _pairs(found: Numbers, names: Names) -> Iterator[Finding]:
    """Of several runs, which are most alike."""
    if len(found["pairs"]) < 2:
        return
    distances = []
    for pair in found["pairs"]:
        spreads = [spread.relative for spread in _spreads({"pairs": [pair]})]
        if spreads:
            distances.append((sum(spreads) / len(spreads), pair))
    if len(distances) > 1:
        near = min(distances, key=lambda place: place[0])
        far = max(distances, key=lambda place: place[0])

        def said(place: tuple[float, Numbers]) -> str:
            who = " and ".join(names[file] for file in place[1]["files"])
            return f"{who}, whose numbers differ by {100 * place[0]:.2g} % of their size on average"

        text = f"Most alike are {said(near)}; least alike {said(far)}."
        yield Finding("pairs", text, "run_differences")


def _conditions(found: Numbers) -> Iterator[Finding]:
    tests = [
        (label, measure, test)
        for label, measures in found.get("tests", {}).items()
        for measure, test in measures.items()
        if "runs" in test
    ]
    if tests:
        closer = sum(test["same"] < test["different"] for *_, test in tests)
        label, measure, best = min(tests, key=lambda place: place[2]["runs"]["mean"]["p_value"])
        yield Finding(
            "conditions",
            f"Runs of one condition are closer in {closer} of {len(tests)} distances; the smallest "
            f"p with runs shuffled is {best['runs']['mean']['p_value']:.2g}, of {measure} at "
            f"{label}, of {len(tests)} that were tried.",
        )


def _doubts(found: Numbers) -> Iterator[Finding]:
    """What could not be compared, each reason once."""
    said: dict[str, list[str]] = {}
    for pair in found["pairs"]:
        for label, site in pair["sites"].items():
            parts = {"ctx": site.get("ctx", {})}
            parts |= {f"pos over {side}": part for side, part in site.get("pos", {}).items()}
            for name, part in parts.items():
                if "unavailable" in part:
                    said.setdefault(f"{name}: {part['unavailable']}", []).append(label)
    for reason, labels in said.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        yield Finding("caution", f"{reason} ({labels[0]}{more}).")


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
    spreads = sorted(_spreads({"pairs": pairs}), key=lambda spread: -spread.relative)
    own = {name: name for name in called}
    if spreads and spreads[0].relative > 0:
        for subject, spread in (("differs most", spreads[0]), ("stays the same", spreads[-1])):
            text = f"At step {last:,}: {_spread(spread, own)}"
            yield Finding(subject, text, f"training_{spread.scalar.replace('/', '_')}")


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


def _places(found: Numbers, pick: Any) -> list[tuple[Any, str, Sequence[str]]]:
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


def _figure(scalar: str) -> str:
    return f"compared_{scalar.replace('/', '_')}"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
