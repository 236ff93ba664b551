"""What all pages are made of: figures that may be missing, tables, and the template around them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from geomhooks.errors import FigureError, MissingExtraError, UnidentifiedError
from geomhooks.report.packing import figure_json, json_text
from geomhooks.report.summary import Finding
from geomhooks.report.tables import Table
from geomhooks.report.theme import graph_objects, label, template
from geomhooks.version import __version__

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Drawn", "Entry", "draw", "is_page", "render", "write_page"]

FILES = Path(__file__).parent / "page_files"
MARK = '<meta name="generator" content="geomhooks'


class Entry(NamedTuple):
    """A figure of the page before it is made."""

    name: str
    heading: str
    make: Callable[[], go.Figure]


class Drawn(NamedTuple):
    """A figure of the page, or why there is none."""

    name: str
    heading: str
    data: str = ""
    explanation: str = ""
    reference: str = ""
    note: str = ""
    height: int = 450
    problem: str = ""


def draw(sections: Mapping[str, Sequence[Entry]]) -> dict[str, list[Drawn]]:
    """Make the figures of each section; those whose numbers were not measured are left out."""
    return {
        heading: found
        for heading, entries in sections.items()
        if (found := [made for entry in entries if (made := _draw(entry)) is not None])
    }


def render(
    *,
    title: str,
    read: str,
    findings: Sequence[Finding],
    sections: Mapping[str, Sequence[Drawn]],
    sites: Sequence[str] = (),
    tables: Sequence[Table] = (),
    lead: str = "",
) -> str:
    """The page as a text.

    Args:
        title: of the page; a text of others, as are names in all that follows.
        read: what the numbers are of.
        findings: what is said at the top.
        sections: figures by heading.
        sites: that figures with a slider can show, in forward order.
        tables: at the end.
        lead: what the words of the findings mean.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
    """
    environment, markup, plotly = _engine()
    names = {made.name for found in sections.values() for made in found}
    page: str = environment.get_template("page.html").render(
        title=title,
        read=read,
        findings=[f if f.figure in names else Finding(f.subject, f.text) for f in findings],
        sections={h: [d._replace(data=markup(d.data)) for d in f] for h, f in sections.items()},
        sites=[(label(site), site) for site in sites],
        tables=tables,
        lead=lead,
        plotly=markup(plotly),
        script=markup((FILES / "page.js").read_text(encoding="utf-8")),
        style=markup((FILES / "page.css").read_text(encoding="utf-8")),
        templates=markup(json_text({"light": template(dark=False), "dark": template(dark=True)})),
        generator=markup(MARK),
        version=__version__,
    )
    return page


def write_page(page: str, path: str | os.PathLike[str]) -> None:
    """Write a page whole or not at all."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_page(path: Path) -> bool:
    """Whether a file is a page that was written here, which another may replace."""
    with path.open("rb") as file:
        return MARK.encode() in file.read(2048)


def _engine() -> tuple[Any, Callable[[str], str], str]:
    """What fills the template, what marks a text as finished, and plotly's script."""
    graph_objects()
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError(
            "the report needs jinja2: pip install 'geomhooks[report]'"
        ) from error
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment, Markup, get_plotlyjs()


def _draw(entry: Entry) -> Drawn | None:
    """Make a figure; None where what it shows was not measured."""
    try:
        figure = entry.make()
    except FigureError:
        return None
    except UnidentifiedError as error:
        return Drawn(entry.name, entry.heading, problem=str(error))
    found = figure.to_dict()
    layout = found["layout"]
    about = layout.pop("meta")
    layout.pop("template")
    if (narrow := about.pop("narrow", None)) is not None:
        found["narrow"] = narrow
    return Drawn(
        entry.name,
        entry.heading,
        figure_json(found),
        **about,
        height=int(layout.get("height", 450)),
    )
