"""What holds of every file: it is refused by a plain error, or everything can be done with it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

import geomhooks as gh
from geomhooks.cli.commands import run
from geomhooks.errors import (
    FigureError,
    FileFormatError,
    GeomhooksError,
    MissingExtraError,
    SchemaError,
    SiteError,
    UnidentifiedError,
)
from geomhooks.report import report_page
from geomhooks.results import Result

MAX_BYTES = 1 << 26
CODES = (1, 2, 3, 5, 7)  # nothing to draw or to compare, no tokenizer, a file in the way


class Page(HTMLParser):
    """The elements of a page with their attributes' names, and the texts of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[tuple[str, tuple[str, ...]]] = set()
        self.links: set[str] = set()
        self.scripts: list[tuple[str | None, str]] = []
        self._script: str | bool | None = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add((tag, tuple(sorted(name for name, _ in attrs))))
        self.links |= {str(v) for n, v in attrs if n in ("href", "src", "action")}
        if tag == "script":
            self._script = dict(attrs).get("type")
            self.scripts.append((self._script, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = False

    def handle_data(self, data: str) -> None:
        if self._script is not False:
            kind, text = self.scripts.pop()
            self.scripts.append((kind, text + data))


def check_page(page: str, known: Page) -> None:
    """No element but those of a page of a valid file, no link, and data that can be read.

    Args:
        page: to be looked at.
        known: a page with everything that the template has.
    """
    found = Page(page)
    assert found.elements <= known.elements, found.elements - known.elements
    assert all(link.startswith("#") or link in known.links for link in found.links), found.links
    for kind, script in found.scripts:
        if kind == "application/json":
            json.loads(script)
        else:
            assert (kind, script) in known.scripts
    page.encode()


def check_error(error: Exception, path: Path | str) -> None:
    """It is one of ours, of few words, that names the file or what is in it."""
    told = str(error)
    assert isinstance(error, FileFormatError | SchemaError), repr(error)
    assert str(path) in told
    assert len(told) < len(str(path)) + 800, told
    assert "Error(" not in told


def read_geometry(path: Path, known: Page | None) -> bool:
    """Read a geometry; what was read can be used. False where it was refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            geometry = gh.load(path, max_bytes=MAX_BYTES)
        except GeomhooksError as error:
            check_error(error, path)
            return False
        use(geometry, path, known)
    return True


def use(geometry: gh.Geometry, path: Path, known: Page | None) -> None:
    """Everything that one does with a geometry."""
    assert repr(geometry)
    assert geometry.tokens
    check_page(f"<div>{geometry._repr_html_()}</div>", notebook())
    scalars = geometry.scalars()
    assert all(isinstance(value, float) for value in scalars.values())
    geometry.frame()
    results = [geometry.model, *(geometry[site] for site in geometry.sites)]
    names: set[str] = set()
    for result in results:
        check_page(result._repr_html_(), notebook())
        names |= set(read_all(result, slow=known is not None))
        assert repr(result)
    for name in sorted(names)[::7]:
        with suppress(SiteError, SchemaError, UnidentifiedError):
            assert geometry.stack(name).ndim
    again = path.with_name("again.safetensors")
    geometry.save(again)
    saved = gh.load(again, max_bytes=MAX_BYTES)
    assert saved.scalars().keys() == scalars.keys()
    saved._state.shards = ["another shard"]
    with suppress(SchemaError):  # of what depends on the order of its tokens
        gh.merge([geometry, saved]).scalars()
        gh.merge([geometry, saved], unite=True)
    if known is not None:
        with suppress(FigureError):
            check_page(report_page(geometry), known)


def read_all(result: Result, prefix: str = "", *, slow: bool) -> Iterator[str]:
    """Read every result, and groups of contexts where there is time for it; their paths."""
    for name in result:
        if name == "clusters" and not slow:
            continue
        try:
            value = result[name]
        except (UnidentifiedError, MissingExtraError):
            continue
        if isinstance(value, Result):
            yield from read_all(value, f"{prefix}{name}.", slow=slow)
        elif isinstance(value, torch.Tensor):
            assert value.device.type == "cpu"
            yield f"{prefix}{name}"


def read_history(path: Path, known: Page | None) -> bool:
    """Read a history; what was read can be used. False where it was refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            history = gh.History.load(path, max_bytes=MAX_BYTES)
        except GeomhooksError as error:
            check_error(error, path)
            return False
        assert repr(history)
        history.frame()
        for name in history.names:
            history.curve(name)
        for step in history:
            assert all(isinstance(value, float) for value in history.scalars(step).values())
        history.save(path.with_name("again.safetensors"))
        assert gh.History.load(path.with_name("again.safetensors")).names == history.names
        for step in history.kept:
            try:
                geometry = history[step]
            except GeomhooksError as error:
                check_error(error, f"step {step}")
                return False
            geometry.scalars()
        if known is not None:
            with suppress(FigureError):
                check_page(report_page(history), known)
        if history.kept:
            history.append(history.steps[-1] + 1, history[history.kept[-1]])
    return True


def read_dictionary(path: Path, known: Page | None) -> bool:
    """Read a dictionary; it makes codes. False where it was refused."""
    try:
        found = gh.load_dictionary(path)
    except GeomhooksError as error:
        check_error(error, path)
        return False
    found.coder(iterations=3)(torch.ones(2, found.dictionary.shape[1]))
    return True


def check_command(arguments: list[str], capsys: Any) -> int:
    """A command ends well, or with a code of its own and one line."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = run(arguments)
    out, err = capsys.readouterr()
    assert all(character.isprintable() or character == "\n" for character in out + err)
    if code:
        assert code in CODES, (code, err)
        assert err.startswith("geomhooks: "), err
        assert err.count("\n") == 1, err
    return code


@cache
def notebook() -> Page:
    """All elements that a notebook may be shown."""
    from tests.report.geometries import everything

    geometry = everything()
    geometry.scalars()
    shown = [geometry._repr_html_(), *(geometry[site]._repr_html_() for site in geometry.sites)]
    return Page(f"<div>{''.join(shown)}</div>")
