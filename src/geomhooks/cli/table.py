"""The table of a geometry, a row a site."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table

import geomhooks as gh
from geomhooks.report.columns import Column, columns_of, plain, share

__all__ = ["print_table", "printable", "table"]


def printable(text: str) -> str:
    r"""A text that a terminal shows and does not obey: what does not print is escaped.

    Example:
        >>> printable("a\n\x1b[2J")
        'a\\n\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(geometry: gh.Geometry) -> Table:
    """Shares of variance with the part of them that is sampling noise, and lengths and angles.

    A column stands where at least one site has its number; "-" where a site has none.
    """
    columns = [column for column in columns_of(geometry) if column.brief]
    scalars = geometry.scalars(only=[f"*/{column.scalar}" for column in columns])
    shown = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    shown.add_column("site", no_wrap=True)
    for column in columns:
        shown.add_column(column.brief, justify="right", no_wrap=True, style=column.style)
    for site in geometry.sites:
        values = [scalars.get(f"{site}/{column.scalar}", math.nan) for column in columns]
        shown.add_row(
            printable(site),
            *(_show(column, value) for column, value in zip(columns, values, strict=True)),
        )
    return shown


def _show(column: Column, value: float) -> str:
    """As a page has it; shares without their sign, for room."""
    if math.isnan(value):
        return "-"
    return plain(value) if column.show is share else column.show(value)


def print_table(shown: gh.Geometry | Table) -> None:
    """Print to stdout, whole where that is no terminal; names are no markup."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, width=200)  # a pipe wants whole names
    console.print(table(shown) if isinstance(shown, gh.Geometry) else shown)
