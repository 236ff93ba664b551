"""The command ``geomhooks report``: one page of a geometry, or of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import geomhooks as gh
from geomhooks import measuring
from geomhooks.files import kind_of

__all__ = ["report_file"]


def report_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Geometry file, or history file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path(
        "report.html"
    ),
    title: Annotated[
        str | None, typer.Option(help="Of the page. [default: the model's class and name]")
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENIZER",
            help="Hub name or local folder of a tokenizer, for the words of Trajectories.",
        ),
    ] = None,
) -> None:
    """Write one HTML page with all figures of FILE, which opens offline.

    A page that is there already is replaced.
    """
    from geomhooks.report.page import write_report

    measuring.check_writable(out)
    measured = gh.History.load(file) if kind_of(file) == "history" else gh.load(file)
    shown = None
    if words is not None:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(words)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"--words {words}: no tokenizer: {error}") from error
        shown = tokenizer.decode
    try:
        write_report(measured, out, title=title, words=shown)
    except OSError as error:
        raise measuring.OutputError(f"cannot write {out}: {error.strerror or error}") from error
    typer.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
