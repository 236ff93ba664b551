"""The directive ``results``: tables of a result file of ``benchmarks/results``, made as pages are.

``{results} overhead-cpu`` shows when, on what and with which versions it was measured, and a table
for each list of rows in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def told(environment: dict[str, Any]) -> str:
    """When, where and with what something was measured."""
    machine = environment["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in environment["packages"].items())
    device = machine["gpu"] or f"{machine['threads']} threads of {machine['processor']}"
    return f"{environment['date']}, {device}; Python {environment['python']}, {versions}."


def cells(row: dict[str, Any]) -> dict[str, str]:
    """The columns of a row; what it holds several of has a column each."""
    found: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= cells({f"{name}: {key}": one for key, one in value.items()})
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for one in value:
                (first, at), *rest = one.items()
                found |= cells({f"{key} at {at} {first}": number for key, number in rest})
        else:
            found[name.replace("_", " ").replace("mib", "MiB")] = shown(value)
    return found


def shown(value: Any) -> str:
    """One cell."""
    if isinstance(value, list):
        return (
            " x ".join(map(shown, value))
            if isinstance(value[0], int)
            else (" to ".join(map(shown, value)))
        )
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def table_of(rows: list[dict[str, Any]]) -> nodes.table:
    """A table with a column for all that any of the rows has."""
    lines = [cells(row) for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    group = nodes.tgroup(cols=len(names))
    group += [nodes.colspec(colwidth=1) for _ in names]
    head, body = nodes.thead(), nodes.tbody()
    for target, texts in (
        (head, [names]),
        (body, [[line.get(name, "") for name in names] for line in lines]),
    ):
        for line in texts:
            row = nodes.row()
            row += [nodes.entry("", nodes.paragraph(text=text)) for text in line]
            target += row
    group += [head, body]
    return nodes.table("", group)


class Results(SphinxDirective):
    """Shows a result file."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """What it says of the machine, and its tables."""
        path = RESULTS / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        found = json.loads(path.read_text())
        made: list[nodes.Node] = [nodes.paragraph(text=told(found["environment"]))]
        lists = {
            name: rows
            for name, rows in found.items()
            if isinstance(rows, list) and rows and isinstance(rows[0], dict)
        }
        if not lists:
            raise self.error(f"{path.name} has no rows")
        for name, rows in lists.items():
            if len(lists) > 1:
                made.append(nodes.paragraph("", "", nodes.strong(text=name)))
            made.append(table_of(rows))
        return made


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("results", Results)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
