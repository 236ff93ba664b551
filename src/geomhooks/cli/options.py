"""How the values of options are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["STATISTICS", "NoReportOption", "ReportOption", "names_in"]

STATISTICS = "pos_ctx,sphere"  # that are measured unless others are named
ReportOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Page of figures to write. [default: beside the output, as .html]"
    ),
]
NoReportOption = Annotated[bool, typer.Option("--no-report", help="Write no page of figures.")]


def names_in(commas: str) -> tuple[str, ...]:
    """Names with commas between them.

    Example:
        >>> names_in("pos_ctx, sphere,")
        ('pos_ctx', 'sphere')
    """
    return tuple(name.strip() for name in commas.split(",") if name.strip())
