"""What differs between runs and what does not, in sentences made of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from geomhooks.comparing.geometries import match_sites
from geomhooks.report.comparison_agreement import find_agreement
from geomhooks.report.depth import PARTS, describe_depth, find_small_samples
from geomhooks.report.finding import Finding, percent, place
from geomhooks.report.part_shares import apart, part_shares
from geomhooks.report.spreads import (
    SURE,
    Names,
    Numbers,
    find_spreads,
    say_spread,
)

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["find_differences"]

RUNS = 4  # of which it is said where position and context live
OWN = "pos_ctx/shares/"  # scalars of which it is said apart, free of chance, what differs


def find_differences(runs: Mapping[str, Geometry], found: Numbers, names: Names) -> list[Finding]:
    """What differs most, what stays the same, and what to doubt, of geometries.

    Args:
        runs: by what to call them.
        found: by :func:`geomhooks.comparing.compare_geometries`.
        names: what to call the files.
    """
    makers = (
        _runs(runs, names),
        _samples(runs),
        _depths(runs),
        _shares(runs, found, names),
        _scalars(found, names),
        find_agreement(found, names),
        _pairs(found, names),
        _conditions(found),
        _doubts(found),
    )
    return [finding for maker in makers for finding in maker]


def _runs(runs: Mapping[str, Geometry], names: Names) -> Iterator[Finding]:
    """Which models and files are compared."""
    for file, name in names.items():
        run = runs[name]
        kind, _, rest = run.measured_on.partition(" ")
        model, _, size = rest.rpartition(" (")
        settings = run.notes.get("settings")
        told = settings.get("model") if isinstance(settings, Mapping) else None
        what = " ".join(filter(None, [kind, Path(str(told or model)).name, f"({_grouped(size)}"]))
        yield Finding(
            name, f"{what if model else run.measured_on}, read from the file {Path(file).name}."
        )


def _grouped(size: str) -> str:
    """As "22,713,216 parameters)"."""
    number, _, unit = size.partition(" ")
    return f"{int(number):,} {unit}" if number.isascii() and number.isdecimal() else size


def _samples(runs: Mapping[str, Geometry]) -> Iterator[Finding]:
    """Which samples are too small, and for what."""
    said: dict[str, list[str]] = {}
    for name, run in runs.items():
        for finding in find_small_samples(run):
            said.setdefault(finding.text, []).append(name)
    for text, which in said.items():
        yield Finding("caution", f"{', '.join(which)}: {text}")


def _depths(runs: Mapping[str, Geometry]) -> Iterator[Finding]:
    for name, run in list(runs.items())[:RUNS]:
        text = describe_depth(run)
        if text:
            yield Finding(f"{name}, by depth", text, "compared_pos_ctx_shares_pos")


def _shares(runs: Mapping[str, Geometry], found: Numbers, names: Names) -> Iterator[Finding]:
    """Where runs differ in what position and context have beyond chance."""
    files = list(names)
    sites = match_sites(files, [runs[names[file]] for file in files])
    for part, called in PARTS.items():
        shares = {file: part_shares(runs[names[file]], part) for file in files}
        places = []
        for pair in found["pairs"]:
            one, other = pair["files"]
            for label in pair["sites"]:
                first = shares[one].get(sites[label][files.index(one)])
                second = shares[other].get(sites[label][files.index(other)])
                if first is not None and second is not None:
                    places.append((first, second, label, one, other))
        if not places:
            continue
        beyond = [spot for spot in places if apart(spot[0], spot[1])]
        first, second, label, one, other = max(
            beyond or places, key=lambda spot: abs(spot[0].value - spot[1].value)
        )
        text = (
            f"The share of {called} differs beyond noise at {len(beyond)} of {len(places)} places"
            if beyond
            else f"The share of {called} differs nowhere by more than noise"
        )
        if beyond:
            text += (
                f"; most at {place(label)}: {percent(first.value)} in {names[one]} and "
                f"{percent(second.value)} in {names[other]}, what chance adds taken off"
            )
        yield Finding(called, f"{text}.", f"compared_pos_ctx_shares_{part}")


def _scalars(found: Numbers, names: Names) -> Iterator[Finding]:
    """Which scalars differ most and least, and which differences are no noise."""
    everything = sorted(find_spreads(found), key=lambda spread: -spread.relative)
    spreads = [s for s in everything if not s.scalar.startswith(OWN)] or everything
    if not spreads:
        return
    first, last = spreads[0], spreads[-1]
    if everything[0].relative == 0:
        yield Finding("the same", "All numbers that are compared are equal.", "run_differences")
        return
    yield Finding("differs most", say_spread(first, names), _figure(first.scalar))
    if len(spreads) > 2:
        yield Finding("differs next", say_spread(spreads[1], names), _figure(spreads[1].scalar))
    if len(spreads) > 1:
        yield Finding("differs least", say_spread(last, names), _figure(last.scalar))
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


def _pairs(found: Numbers, names: Names) -> Iterator[Finding]:
    """Of several runs, which are most alike."""
    if len(found["pairs"]) < 2:
        return
    distances = []
    for pair in found["pairs"]:
        spreads = [spread.relative for spread in find_spreads({"pairs": [pair]})]
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
        mean = best["runs"]["mean"]
        floor = mean["exact"] and mean["p_value"] * mean["arrangements"] <= 1 + 1e-9
        least = f", the least that {mean['arrangements']} arrangements can give" if floor else ""
        yield Finding(
            "conditions",
            f"Runs of one condition are closer in {closer} of {len(tests)} distances; the smallest "
            f"p with runs shuffled is {mean['p_value']:.2g}, of {measure} at "
            f"{label}, of {len(tests)} that were tried{least}.",
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


def _figure(scalar: str) -> str:
    return f"compared_{scalar.replace('/', '_')}"
