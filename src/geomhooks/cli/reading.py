"""What commands that read texts with a model do: load it, read, write, and print."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

import geomhooks as gh
from geomhooks import measuring
from geomhooks.cli.leader_words import leader_words
from geomhooks.cli.pages import write_beside
from geomhooks.cli.progress import Interrupted, Interrupts, progress_bar
from geomhooks.cli.table import print_table

__all__ = ["load_reader", "print_geometry", "quieten_libraries", "read_texts", "write_page_of"]


def load_reader(name: str, *, quiet: bool = False, **options: Any) -> measuring.Reader:
    """Load a model, and warn of weights that its checkpoint lacks."""
    quieten_libraries()
    reader = measuring.load_model(name, **options)
    if reader.missing and not quiet:
        typer.echo(
            f"warning: {len(reader.missing)} weights are not in the checkpoint of {name} and are "
            f"random: {', '.join(reader.missing[:3])}",
            err=True,
        )
    return reader


def quieten_libraries() -> None:
    """Let one line on stderr be one line; whatever matters in theirs is in ours."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is first imported
    with suppress(ImportError):  # what is missing is told when it is used
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def read_texts(whole: measuring.Run, out: Path) -> gh.Geometry:
    """Read what is left of the texts, write the file, and print the table, by the first process.

    Raises:
        Interrupted: a signal came; what is needed to go on is kept.
    """
    ranks, total = whole.ranks, whole.progress.total
    try:
        with Interrupts() as interrupts, progress_bar(total, shown=ranks.rank == 0) as report:
            geometry = whole.read(report, stop=lambda: bool(interrupts.signal))
    except measuring.Stopped as stopped:
        kept = whole.checkpoint
        next_step = "; the same command with --resume goes on" if kept else "; nothing was written"
        raise Interrupted(f"{stopped}{next_step}", interrupts.signal) from stopped

    def write() -> None:
        if ranks.rank == 0:
            geometry.notes = whole.notes
            measuring.save(geometry, out, whole.notes)

    ranks.together(write)
    # That of rank 0 last: while it is there, the run counts as unfinished.
    for mine in (ranks.rank > 0, ranks.rank == 0):
        if whole.checkpoint and mine:
            whole.checkpoint.unlink(missing_ok=True)
        ranks.gather(mine)
    if ranks.rank:
        return geometry
    print_geometry(geometry, whole.reader)
    progress = whole.progress
    typer.echo(
        f"{progress.tokens:,} tokens of {progress.contexts:,} contexts in {progress.seconds:.0f} s;"
        f" wrote {out} ({out.stat().st_size / 1e6:.1f} MB)\n"
    )
    return geometry


def write_page_of(run: measuring.Run, geometry: gh.Geometry, page: Path | None) -> None:
    """The page of a run that is done, whose model and tokenizer are at hand."""
    prompt = run.prompt if run.labels.capacity else None
    write_beside(geometry, page, words=run.reader.word, model=run.reader.model, prompt=prompt)


def print_geometry(geometry: gh.Geometry, reader: measuring.Reader) -> None:
    """The table of a geometry, and of the words that lead where they were counted."""
    print_table(geometry)
    words = leader_words(geometry, reader.spell)
    if words is not None:
        print_table(words)
