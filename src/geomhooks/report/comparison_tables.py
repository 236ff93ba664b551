"""The tables of the page that compares runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from geomhooks.report.scalar_names import named
from geomhooks.report.tables import Cell, Table

__all__ = ["geometry_tables", "history_tables", "scalars_of"]

Numbers = Mapping[str, Any]


def scalars_of(found: Numbers) -> list[str]:
    """Names of the scalars that were compared, after those of their sites."""
    if found["kind"] == "history":
        return list(dict.fromkeys(name.partition("/")[2] for name in found["scalars"]))
    sites = (site for pair in found["pairs"] for site in pair["sites"].values())
    return list(dict.fromkeys(name for site in sites for name in site["scalars"]))


def geometry_tables(found: Numbers, names: Mapping[str, str]) -> list[Table]:
    """What the command prints: differences, contexts, positions, tests."""
    level = f"{100 * found['level']:g} %"
    scalars = scalars_of(found)
    rows = [
        (f"{names[pair['files'][1]]} less {names[pair['files'][0]]}", label, site)
        for pair in found["pairs"]
        for label, site in pair["sites"].items()
    ]
    several = len(found["pairs"]) > 1
    sites = "A name that ends in @in is what comes into a block. Click a heading to sort."
    first = [("runs", "which less which")] * several + [("site", "in forward order")]

    def table(name: str, heading: str, said: str, heads: Any, cells: Any) -> Table:
        lines = [
            [*[Cell(None, pair)] * several, Cell(None, label), *cells(site)]
            for pair, label, site in rows
        ]
        return Table(name, heading, f"{said} {sites}", [*first, *heads], lines)

    made = []
    if scalars:
        with_error = {
            name: any(
                site["scalars"].get(name, {}).get("standard_error") is not None
                for _, _, site in rows
            )
            for name in scalars
        }
        heads = []
        for name, known in with_error.items():
            heads.append((_header(name), f"difference of {name}"))
            heads += [("±", f"standard error of the difference of {name}")] * known

        def differences(site: Numbers) -> Iterator[Cell]:
            for name, known in with_error.items():
                scalar = site["scalars"].get(name, {})
                yield _cell(scalar.get("difference"), named(name).difference)
                if known:
                    yield _cell(scalar.get("standard_error"), named(name).error)

        which = f": {rows[0][0]}" if not several else ""
        said = f"Differences{which}; ± is one standard error, as if tokens were independent."
        made.append(table("differences", "Differences", said, heads, differences))
    if any("cka" in site.get("ctx", {}) for _, _, site in rows):
        heads = [("contexts", "that both have read, and were compared")]
        for name in ("CKA", "Procrustes"):
            heads += [(name, f"{name} of ctx"), ("from", f"{level} interval"), ("to", level)]
            heads += [("by chance", "what unrelated runs would have")] * (name == "Procrustes")
            heads.append(("p", "how often chance is as good"))

        def contexts(site: Numbers) -> Iterator[Cell]:
            ctx = site.get("ctx", {})
            yield _cell(ctx.get("compared"), "{:.0f}".format)
            for name in ("cka", "procrustes"):
                part = ctx.get(name, {})
                keys = ["value", "low", "high", *["expected"] * (name == "procrustes"), "p_value"]
                yield from (_cell(part.get(key)) for key in keys)

        said = "How alike ctx lies for the contexts that both have read."
        made.append(table("contexts", "Contexts", said, heads, contexts))
    if any("overlap" in part for _, _, site in rows for part in site.get("pos", {}).values()):
        heads = []
        for side in ("positions", "directions"):
            heads += [(f"over {side}", f"overlap of pos over {side}")]
            heads += [("by chance", "of unrelated runs"), ("p", "how often chance is as good")]

        def positions(site: Numbers) -> Iterator[Cell]:
            for side in ("positions", "directions"):
                part = site.get("pos", {}).get(side, {})
                keys = ("overlap", "expected_overlap", "p_value")
                yield from (_cell(part.get(key)) for key in keys)

        said = "How far the leading spaces of pos are the same, from 0 to 1."
        made.append(table("positions", "Positions", said, heads, positions))
    tests = found.get("tests", {})
    groups = [(label, name, t) for label, of in tests.items() for name, t in of.items()]
    return made + _tests_table(groups, found)


def history_tables(found: Numbers, names: Mapping[str, str]) -> list[Table]:
    """What the command prints of histories: curves, and tests."""
    level = f"{100 * found['level']:g} %"
    heads = [
        ("scalar", "site and number"),
        ("runs", "that are compared"),
        ("steps", "at which all are finite"),
        ("warping distance", "dynamic time warping: 0 is the same curve, however fast"),
        ("Spearman", "whether they rise and fall at the same steps"),
        ("from", f"{level} interval"),
        ("to", level),
    ]
    rows, groups = [], []
    for name, scalar in found["scalars"].items():
        if "tests" in scalar:
            groups.append((name, "warping distance", scalar["tests"]))
        for pair in scalar.get("pairs", []):
            spearman = pair["spearman"]
            numbers = [pair["warping_distance"], *(spearman[k] for k in ("value", "low", "high"))]
            who = " and ".join(names[file] for file in pair["files"])
            steps = _cell(scalar["steps"], "{:.0f}".format)
            rows.append([Cell(None, name), Cell(None, who), steps, *map(_cell, numbers)])
    said = "How alike the curves of each scalar are. Click a heading to sort."
    made = [Table("curves", "Curves", said, heads, rows)] if rows else []
    return made + _tests_table(groups, found)


def _tests_table(groups: Sequence[tuple[str, str, Numbers]], found: Numbers) -> list[Table]:
    """Whether files of one condition are closer."""
    done = [(place, name, tests) for place, name, tests in groups if "runs" in tests]
    if not done:
        return []
    heads = [("where", "site or scalar"), ("distance", "what is measured")]
    heads += [("same", "mean distance within a condition")]
    heads += [("different", "mean distance between conditions")]
    heads += [("p, runs shuffled", "honest"), ("p, pairs shuffled", "as is published")]
    rows = [
        [
            *(Cell(None, place), Cell(None, name)),
            *(_cell(tests["same"]), _cell(tests["different"])),
            *(_cell(tests[who]["mean"]["p_value"]) for who in ("runs", "pairs")),
        ]
        for place, name, tests in done
    ]
    said = (
        f"Whether runs of one condition are closer, conditions {','.join(found['conditions'])}. "
        f"No p with runs shuffled is below {1 / done[0][2]['runs']['mean']['arrangements']:.2g}."
    )
    return [Table("tests", "Conditions", said, heads, rows)]


def _header(scalar: str) -> str:
    """A scalar in a few letters, for the head of a column."""
    return scalar.removesuffix("/mean").removeprefix("pos_ctx/").replace("/", " ").replace("_", " ")


def _cell(value: float | None, show: Any = "{:.3f}".format) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell(math.nan, "-")
    return Cell(value, show(value))
