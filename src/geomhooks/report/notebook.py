"""How a notebook shows a geometry, and the results of a site: small tables with small curves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from geomhooks.errors import UnidentifiedError
from geomhooks.report.columns import Column, degrees, length, plain, share
from geomhooks.report.figures.found import lookup
from geomhooks.report.tables import site_table, sparkline
from geomhooks.report.theme import COLOURS
from geomhooks.results import Lazy, Result, Unavailable

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["geometry_html", "result_html"]

COLUMNS = (
    Column("pos", "pos_ctx/shares/pos", share, ""),
    Column("ctx", "pos_ctx/shares/ctx", share, ""),
    Column("norm", "sphere/norm/mean", length, ""),
    Column("step", "sphere/step_angle/mean", degrees, ""),
    Column("anisotropy", "sphere/anisotropy", plain, ""),
    Column("pull", "next_word/pull/mean", plain, ""),
)
MOST_SITES = 100
MOST_ROWS = 200


def geometry_html(geometry: Geometry) -> str:
    """A table of a geometry: a row a site, with what each has by position as a curve."""
    columns, rows = site_table(geometry, COLUMNS)
    curves = [name for name, _, _ in CURVES if any(_curve(geometry, s, name) for s in rows)]
    heads = ["site", *(column.header for column in columns), *curves]
    lines = []
    for site in list(rows)[:MOST_SITES]:
        cells = [f"<td style='text-align:right'>{escape(cell.text)}</td>" for cell in rows[site]]
        drawn = [f"<td>{_curve(geometry, site, name)}</td>" for name in curves]
        lines.append(f"<tr><td><code>{escape(site)}</code></td>{''.join(cells + drawn)}</tr>")
    left = len(rows) - len(lines)
    more = f"<p>and {left} sites more</p>" if left > 0 else ""
    caption = escape(f"Geometry of {geometry.measured_on}")
    return _table(caption, heads, lines) + more


def result_html(result: Result) -> str:
    """A table of results by their paths: numbers, shapes, and a curve of what has one index.

    What takes long to compute is shown once it has been read.
    """
    lines = []
    for number, (path, value) in enumerate(_flat(result)):
        if number == MOST_ROWS:
            lines.append("<tr><td colspan='3'>and more</td></tr>")
            break
        shown, drawn = _show(path, value)
        lines.append(
            f"<tr><td><code>{escape(path)}</code></td>"
            f"<td style='text-align:right'>{escape(shown)}</td><td>{drawn}</td></tr>"
        )
    return _table("", ["result", "value", ""], lines)


def _table(caption: str, heads: list[str], lines: list[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(lines)}</table>"


def _flat(result: Result, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in result._values.items():
        if isinstance(value, Lazy) and value.is_computed:
            value = value.value
        if isinstance(value, Result):
            yield from _flat(value, f"{prefix}{name}.")
        elif not (isinstance(value, Unavailable) and value.by_choice):
            yield prefix + name, value


def _show(path: str, value: Any) -> tuple[str, str]:
    if isinstance(value, Lazy):
        return "not computed yet", ""
    if isinstance(value, Unavailable):
        return "unavailable", ""
    if not isinstance(value, Tensor):
        return str(value), ""
    if not value.ndim:
        return f"{value.item():.6g}", ""
    curve = value.ndim == 1 and len(value) > 1 and not value.is_complex()
    return str(tuple(value.shape)), sparkline(value.double().tolist(), path) if curve else ""


def _pos_length(found: Tensor) -> Tensor:
    length: Tensor = found.norm(dim=1)
    return length


def _as_it_is(found: Tensor) -> Tensor:
    return found


CURVES = (
    ("|pos| by position", "pos_ctx.pos", _pos_length),
    ("norm by position", "sphere.norm.at_position.mean", _as_it_is),
)
INK = {"|pos| by position": COLOURS["pos"], "norm by position": COLOURS["state"]}


def _curve(geometry: Geometry, site: str, name: str) -> str:
    """Of one site; nothing where it has none."""
    _, path, make = next(curve for curve in CURVES if curve[0] == name)
    try:
        found = lookup(geometry[site], path)
    except UnidentifiedError:
        found = None
    if found is None or not len(found):
        return ""
    values = make(found).double().tolist()
    finite = [value for value in values if math.isfinite(value)]
    span = f", {min(finite):.3g} to {max(finite):.3g}" if finite else ""
    return sparkline(values, f"{name}{span}", INK[name])
