"""A geometry as a table: a row a site, a column a number; and small curves, as pictures of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from geomhooks.report.columns import Column, columns_of
from geomhooks.report.theme import COLOURS

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["Cell", "Table", "geometry_table", "site_table", "sparkline"]


class Cell(NamedTuple):
    """A number, and how it is shown; a text where there is none."""

    value: float | None
    text: str


class Table(NamedTuple):
    """A table of a page."""

    name: str
    heading: str
    explanation: str
    columns: Sequence[tuple[str, str]]
    """what stands above each, and what it means"""
    rows: Sequence[Sequence[Cell]]


def site_table(
    geometry: Geometry, columns: Sequence[Column]
) -> tuple[list[Column], dict[str, list[Cell]]]:
    """The columns that at least one site has, and their cells by site."""
    scalars = geometry.scalars(only=[f"*/{column.scalar}" for column in columns])
    shown = [
        column
        for column in columns
        if any(f"{site}/{column.scalar}" in scalars for site in geometry.sites)
    ]
    rows = {}
    for site in geometry.sites:
        values = [scalars.get(f"{site}/{column.scalar}", math.nan) for column in shown]
        rows[site] = [
            Cell(value, column.show(value) if math.isfinite(value) else "-")
            for column, value in zip(shown, values, strict=True)
        ]
    return shown, rows


def geometry_table(geometry: Geometry) -> list[Table]:
    """The tables of a page: all sites, and the whole model, each where it has numbers."""
    made = []
    columns, rows = site_table(geometry, columns_of(geometry))
    if columns:
        explanation = (
            "A name that ends in @in is what comes into a block; the others are what comes out. "
            "Click a heading to sort; point at it for what it means."
        )
        heads = [("site", "in forward order"), *((c.header, c.about) for c in columns)]
        cells = [[Cell(None, site), *row] for site, row in rows.items()]
        made.append(Table("sites", "All sites", explanation, heads, cells))
    whole = geometry.model.scalars()
    if whole:
        numbers = [
            [Cell(None, name), Cell(value, f"{value:.6g}" if math.isfinite(value) else "-")]
            for name, value in whole.items()
        ]
        heads = [("number", "statistic and result"), ("value", "of all sites together")]
        made.append(Table("model", "The whole model", "What is of no single site.", heads, numbers))
    return made


def sparkline(
    values: Sequence[float], title: str, colour: str = COLOURS["pos"], width: int = 110
) -> str:
    """A small curve as a piece of SVG, with a title that is read out; gaps where it is not finite.

    Example:
        >>> sparkline([0.0, 1.0], "a < b", width=20)
        '<svg ...><title>a &lt; b</title><path d="M1.0 17.0L19.0 1.0" .../></svg>'
    """
    height, most = 18, 128
    if len(values) > most:
        values = [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
    finite = [value for value in values if math.isfinite(value)]
    path, pen = "", "M"
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    for index, value in enumerate(values):
        if not math.isfinite(value):
            pen = "M"
            continue
        x = 1 + index / max(1, len(values) - 1) * (width - 2)
        y = height - 1 - (value - low) / ((high - low) or 1) * (height - 2)
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><title>{escape(title)}</title><path d="{path}" '
        f'fill="none" stroke="{colour}" stroke-width="1.4" stroke-linecap="round"/></svg>'
    )
