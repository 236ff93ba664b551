"""The page that compares runs: their numbers, their figures beside each other, and in words."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from geomhooks.errors import FigureError
from geomhooks.history import History
from geomhooks.report import figures
from geomhooks.report.comparison_summary import find_differences, find_turns
from geomhooks.report.rendering import Entry, draw, render, write_page
from geomhooks.report.scalar_names import named
from geomhooks.report.summary import describe_input, explain_parts
from geomhooks.report.tables import Cell, Table
from geomhooks.snapshot import Geometry

__all__ = ["comparison_page", "write_comparison"]

PANELS = 4  # runs that are drawn beside each other
AGREEMENTS: Mapping[figures.Measure, str] = {
    "cka": "How alike contexts lie",
    "procrustes": "How far contexts lie apart",
    "positions": "Whether positions move alike",
    "directions": "Whether positions use the same directions",
}
Numbers = Mapping[str, Any]
Runs = Sequence[Geometry] | Sequence[History]


def write_comparison(
    runs: Runs, found: Numbers, path: str | os.PathLike[str], *, title: str | None = None
) -> None:
    """Write the comparison of geometries, or of histories, as one HTML file that opens offline.

    Args:
        runs: two or more.
        found: of them, by :func:`geomhooks.comparing.compare_geometries`, or
            :func:`geomhooks.comparing.compare_histories`.
        path: where to; an existing file is replaced.
        title: of the page; by default what the files are called.

    Raises:
        FigureError: there is nothing that has a figure.
        MissingExtraError: plotly or jinja2 is not installed.

    Example:
        >>> import tempfile, torch, geomhooks as gh
        >>> from geomhooks.comparing import Options, compare_geometries
        >>> runs = []
        >>> for _ in range(2):
        ...     model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        ...     with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()]) as watch:
        ...         _ = model(torch.randn(5, 6, 4))
        ...     runs.append(watch.geometry())
        >>> found = compare_geometries(["a", "b"], runs, Options())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_comparison(runs, found, f"{folder}/comparison.html")
    """
    write_page(comparison_page(runs, found, title=title), path)


def comparison_page(runs: Runs, found: Numbers, *, title: str | None = None) -> str:
    """The comparison as a text; see :func:`write_comparison`."""
    names = run_names(found["files"])
    called = {names[file]: run for file, run in zip(found["files"], runs, strict=True)}
    geometries = {name: run for name, run in called.items() if isinstance(run, Geometry)}
    histories = {name: run for name, run in called.items() if isinstance(run, History)}
    if geometries:
        sections, tables = _of_geometries(geometries, found, names), _tables(found, names)
        findings = find_differences(geometries, found, names)
        sites = next(iter(geometries.values())).sites
        read = " ".join(f"{name}: {describe_input(run)}" for name, run in geometries.items())
    else:
        sections, tables = _of_histories(histories, found), _history_tables(found, names)
        findings, sites = find_turns(histories, found, names), _sites_of(found)
        steps = found["steps"]
        read = f"{len(steps):,} steps in common, {steps[0]:,} to {steps[-1]:,}."
    drawn = draw(sections)
    if not drawn:
        raise FigureError("nothing that these runs have in common has a figure")
    return render(
        title=title or f"{', '.join(names.values())}: compared",
        read=read,
        findings=findings,
        sections=drawn,
        sites=sites,
        tables=tables,
        lead=explain_parts(next(iter(geometries.values()))) if geometries else "",
    )


def run_names(files: Sequence[str]) -> dict[str, str]:
    """What to call files: their names without the ending, or where these are alike their paths.

    Example:
        >>> run_names(["x/a.safetensors", "b.safetensors"])
        {'x/a.safetensors': 'a', 'b.safetensors': 'b'}
        >>> run_names(["x/a.safetensors", "y/a.safetensors"])["x/a.safetensors"]
        'x/a.safetensors'
    """
    stems = [Path(file).stem for file in files]
    if len(set(stems)) == len(stems):
        return dict(zip(files, stems, strict=True))
    return {file: file for file in files}


def scalars_of(found: Numbers) -> list[str]:
    """Names of the scalars that were compared, after those of their sites."""
    if found["kind"] == "history":
        return list(dict.fromkeys(name.partition("/")[2] for name in found["scalars"]))
    sites = (site for pair in found["pairs"] for site in pair["sites"].values())
    return list(dict.fromkeys(name for site in sites for name in site["scalars"]))


def _of_geometries(
    runs: Mapping[str, Geometry], found: Numbers, names: Mapping[str, str]
) -> dict[str, list[Entry]]:
    scalars = scalars_of(found)
    some = dict(list(runs.items())[:PANELS])

    def beside(name: str, heading: str, figure: Any, **given: Any) -> Entry:
        return Entry(name, heading, lambda: _beside(some, partial(figure, **given)))

    return {
        "By layer": [
            Entry(
                f"compared_{scalar.replace('/', '_')}",
                named(scalar).heading,
                partial(figures.runs_compared, runs, scalar),
            )
            for scalar in scalars
        ],
        "Differences": [
            Entry(
                "run_differences",
                "What is more, what is less",
                partial(figures.run_differences, runs, scalars),
            )
        ],
        "Agreement": [
            Entry(
                f"agreement_{measure}",
                heading,
                partial(figures.agreement_by_layer, found["pairs"], measure, names),
            )
            for measure, heading in AGREEMENTS.items()
        ],
        "Side by side": [
            beside("spirals", "The paths of the positions", figures.position_spiral, positions=256),
            beside(
                "grams",
                "Position beside context",
                figures.position_context_gram,
                positions=48,
                contexts=48,
            ),
            beside(
                "singular_values",
                "In how many directions positions differ",
                figures.position_singular_values,
            ),
        ],
    }


def _beside(runs: Mapping[str, Geometry], figure: Any) -> Any:
    """A figure of each run that has it."""
    having = {n: r for n, r in runs.items() if any("pos_ctx" in r[site] for site in r.sites)}
    return figures.side_by_side({name: figure(run) for name, run in having.items()})


def _of_histories(histories: Mapping[str, History], found: Numbers) -> dict[str, list[Entry]]:
    return {
        "Over training": [
            Entry(
                f"training_{scalar.replace('/', '_')}",
                named(scalar).heading,
                partial(figures.runs_over_training, histories, scalar),
            )
            for scalar in scalars_of(found)
        ]
    }


def _sites_of(found: Numbers) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in found["scalars"]))


def _tables(found: Numbers, names: Mapping[str, str]) -> list[Table]:
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


def _history_tables(found: Numbers, names: Mapping[str, str]) -> list[Table]:
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
