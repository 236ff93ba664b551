"""The page that compares runs: their numbers, their figures beside each other, and in words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from geomhooks.errors import FigureError
from geomhooks.history import History
from geomhooks.report import figures
from geomhooks.report.comparison_summary import find_differences
from geomhooks.report.comparison_tables import geometry_tables, history_tables, scalars_of
from geomhooks.report.comparison_turns import find_turns
from geomhooks.report.page import model_title
from geomhooks.report.rendering import Entry, draw, render, write_page
from geomhooks.report.scalar_names import named
from geomhooks.report.summary import describe_input, explain_parts
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
        ...     with torch.no_grad(), gh.watch(model, "0", statistics=[gh.Sphere()]) as watch:
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
        sections, tables = _of_geometries(geometries, found, names), geometry_tables(found, names)
        findings = find_differences(geometries, found, names)
        sites = next(iter(geometries.values())).sites
        read = " ".join(
            f"{_who(name, file)}: {model_title(geometries[name])}, "
            f"{describe_input(geometries[name])}"
            for file, name in names.items()
        )
    else:
        sections, tables = _of_histories(histories, found), history_tables(found, names)
        findings, sites = find_turns(histories, found, names), _sites_of(found)
        steps = found["steps"]
        who = ", ".join(_who(name, file) for file, name in names.items())
        read = f"{who}: {len(steps):,} steps in common, {steps[0]:,} to {steps[-1]:,}."
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


def _who(name: str, file: str) -> str:
    """What a run is called, and of which file it is."""
    return name if name == file else f"{name} ({file})"


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
