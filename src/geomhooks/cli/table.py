"""The table of a geometry, a row a site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from glob import escape
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

import geomhooks as gh
from geomhooks.comparing.options import choose_scalars

__all__ = ["print_table", "printable", "table"]


def printable(text: str) -> str:
    r"""A text that a terminal shows and does not obey: what does not print is escaped.

    Example:
        >>> printable("a\n\x1b[2J")
        'a\\n\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


MOST = 8  # columns of a statistic that has none of its own


class _Column(NamedTuple):
    header: str
    scalar: str
    show: Callable[[float], str] = "{:.3f}".format
    style: str = ""


def _length(value: float) -> str:
    return f"{value:.4g}" if value < 1e5 else f"{value:.2e}"


def _degrees(value: float) -> str:
    return f"{math.degrees(value):.1f}°"


_COLUMNS = (
    _Column("pos", "pos_ctx/shares/pos", style="bold"),
    _Column("noise", "pos_ctx/noise_shares/pos", style="dim"),
    _Column("ctx", "pos_ctx/shares/ctx", style="bold"),
    _Column("noise", "pos_ctx/noise_shares/ctx", style="dim"),
    _Column("resid", "pos_ctx/shares/resid", style="bold"),
    _Column("between\ngroups", "group_means/between_share", style="bold"),
    _Column("noise", "group_means/between_noise_share", style="dim"),
    _Column("norm", "sphere/norm/mean", _length),
    _Column("radius", "sphere/radius/mean", _length),
    _Column("step\nangle", "sphere/step_angle/mean", _degrees),
    _Column("attention\nstep", "updates/attention/step_angle/mean", _degrees),
    _Column("mlp\nstep", "updates/mlp/step_angle/mean", _degrees),
    _Column("aniso-\ntropy", "sphere/anisotropy"),
    _Column("next-word\npull", "next_word/pull/mean", "{:.2f}".format),
    _Column("cosine\nto next", "next_word/next_cosine/mean"),
    _Column("and to\nown", "next_word/own_cosine/mean"),
    _Column("effective\nrank", "covariance/effective_rank", _length),
    _Column("leading\nshare", "covariance/leading_share"),
    _Column("clus-\nters", "leaders/cluster_count/mean", "{:.1f}".format, "bold"),
    _Column("leaders\na head", "leaders/mean_heads/leaders", "{:.2f}".format, "bold"),
    _Column("without\nposition 0", "leaders/without_first/mean_heads/leaders", "{:.2f}".format),
    _Column("new", "leaders/mean_heads/new_leaders", "{:.2f}".format),
    _Column("overlap\nwith first", "leaders/mean_heads/overlap"),
    _Column("basins", "leaders/mean_heads/basins", "{:.2f}".format),
    _Column("to po-\nsition 0", "leaders/mean_heads/sink"),
    _Column("soft-\nness", "leaders/mean_heads/softness"),
    _Column("active\nfactors", "factors/l0", _length),
    _Column("signal\nto noise", "factors/snr", _length),
)


def table(geometry: gh.Geometry) -> Table:
    """Shares of variance with the part of them that is sampling noise, and lengths and angles.

    A column stands where at least one site has its number; "-" where a site has none.
    """
    scalars = geometry.scalars(only=[f"*/{column.scalar}" for column in _COLUMNS])
    terms = geometry.scalars(only="*/components/importance/*/mean")
    columns = [
        column
        for column in (*_COLUMNS, *_terms(terms))
        if any(f"{site}/{column.scalar}" in scalars | terms for site in geometry.sites)
    ]
    columns += _others(geometry, columns)
    scalars |= terms | geometry.scalars(only=[f"*/{column.scalar}" for column in columns])
    shown = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    shown.add_column("site", no_wrap=True)
    for column in columns:
        shown.add_column(column.header, justify="right", no_wrap=True, style=column.style)
    for site in geometry.sites:
        values = [scalars.get(f"{site}/{column.scalar}", math.nan) for column in columns]
        shown.add_row(
            printable(site),
            *(
                "-" if math.isnan(value) else column.show(value)
                for column, value in zip(columns, values, strict=True)
            ),
        )
    return shown


def _terms(scalars: Iterable[str]) -> list[_Column]:
    """How important each term of the hidden states is."""
    found = dict.fromkeys(name.rpartition("/components/")[2] for name in scalars)
    names = {name: name.split("/")[1].replace("_", " ") for name in found}
    return [
        _Column(f"importance\nof {term}", f"components/{name}", style="bold")
        for name, term in names.items()
    ]


def _others(geometry: gh.Geometry, columns: Sequence[_Column]) -> list[_Column]:
    """Some numbers of statistics of which no column tells, such as a user's own."""
    told = {column.scalar.partition("/")[0] for column in columns}
    made: dict[str, _Column] = {}
    for site in geometry.sites:
        for statistic in sorted(set(geometry[site]) - told):
            names = geometry.scalars(only=f"{escape(site)}/{statistic}/*")
            for name in choose_scalars(names)[:MOST]:
                scalar = name.removeprefix(f"{site}/")
                header = "\n".join(scalar.split("/")[1:]).replace("_", " ")
                made.setdefault(scalar, _Column(header, scalar, "{:.4g}".format))
    return list(made.values())


def print_table(shown: gh.Geometry | Table) -> None:
    """Print to stdout, whole where that is no terminal; names are no markup."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, width=200)  # a pipe wants whole names
    console.print(table(shown) if isinstance(shown, gh.Geometry) else shown)
