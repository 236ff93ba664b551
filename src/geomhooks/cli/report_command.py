"""The command ``geomhooks report``: one page of a geometry, or of a training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import geomhooks as gh
from geomhooks import measuring
from geomhooks.cli.options import names_in
from geomhooks.cli.pages import known_of
from geomhooks.cli.reading import quieten_libraries
from geomhooks.report.figures.found import lookup
from geomhooks.storage.files import kind_of

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
            help="Hub name or local folder of a tokenizer, for the words of tokens. "
            "[default: that of the model, where it is on this machine]",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="What to call contexts, by id. [default: how they begin, where FILE says it]",
        ),
    ] = None,
    groups: Annotated[
        str, typer.Option(help="Names of the group labels 0, 1, ..., commas between.")
    ] = "",
) -> None:
    """Write one HTML page with all figures of FILE, which opens offline.

    A page that is there already is replaced.
    """
    from geomhooks.report.page import write_report

    measuring.check_writable(out)
    measured = gh.History.load(file) if kind_of(file) == "history" else gh.load(file)
    known = known_of(measured) if isinstance(measured, gh.Geometry) else {}
    if labels is not None:
        known["labels"] = _labels(labels)
    if groups:
        if isinstance(measured, gh.Geometry) and not _has_groups(measured):
            raise typer.BadParameter(
                f"--groups: {file} has no labels of groups to name; give them when measuring, by "
                "watch.tokens(groups=...)"
            )
        known["groups"] = names_in(groups)
    spoken = _words(words) if words is not None else _own_words(measured)
    try:
        write_report(measured, out, title=title, words=spoken, **known)
    except OSError as error:
        raise measuring.OutputError(f"cannot write {out}: {error.strerror or error}") from error
    typer.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")


def _has_groups(geometry: gh.Geometry) -> bool:
    """Whether anything in a geometry has the label of a group."""
    for site in geometry.sites:
        labels = lookup(geometry[site], "pos_ctx.context_group")
        counts = lookup(geometry[site], "group_means.count")
        if labels is not None and bool((labels >= 0).any()):
            return True
        if counts is not None and bool(counts.any()):
            return True
    return False


def _labels(path: Path) -> dict[int, str]:
    """Labels by id, of a JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = error.strerror or str(error)
    except json.JSONDecodeError as error:
        why = f"line {error.lineno}, column {error.colno} is no JSON"
    except (ValueError, RecursionError):
        why = "it is no UTF-8 text, or none that can be read"
    else:
        if isinstance(found, dict):
            strange = next((i for i in found if not re.fullmatch(r"-?[0-9]{1,19}", i)), None)
            if strange is None:
                return {int(identity): str(text) for identity, text in found.items()}
            why = f"found the id {strange!r:.80}"
        else:
            why = f"found a {type(found).__name__}"
    raise typer.BadParameter(
        f"--labels {path}: a JSON object of texts by ids of contexts is needed, such as "
        f'{{"3": "a title"}}; {why}'
    )


def _words(name: str) -> Callable[[int], str]:
    """What makes words of ids, by the tokenizer that is named."""
    quieten_libraries()
    try:
        tokenizer = measuring.load_tokenizer(name)
    except measuring.ModelError as error:
        raise typer.BadParameter(f"--words {name}: no tokenizer: {error}") from error
    return lambda token: measuring.text_of(tokenizer, [token])


def _own_words(measured: gh.Geometry | gh.History) -> Callable[[int], str] | None:
    """The same by the tokenizer of the model that was measured; None unless it is at hand."""
    settings: Any = measured.notes.get("settings")
    name = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        return None
    try:
        tokenizer = measuring.load_tokenizer(name, settings.get("gguf_file"), offline=True)
    except gh.errors.GeomhooksError:
        return None
    return lambda token: measuring.text_of(tokenizer, [token])
