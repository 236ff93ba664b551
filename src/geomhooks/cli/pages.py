"""The pages that commands write beside their numbers, which they never fail for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

import geomhooks as gh
from geomhooks import measuring
from geomhooks.measuring import OutputError
from geomhooks.report.figures.found import lookup

__all__ = ["choose_page", "known_of", "write_beside", "write_if_possible"]


def choose_page(out: Path, wanted: Path | None, *, none: bool) -> Path | None:
    """Where the page of a file goes: to the path that is wanted, or beside it; None for none.

    Raises:
        OutputError: the page that is wanted cannot be written, or would replace something else.
    """
    if none and wanted is not None:
        raise typer.BadParameter("--report and --no-report exclude each other; give one of them")
    if none:
        return None
    page = wanted or out.with_suffix(".html")
    if page.resolve() == out.resolve():
        raise typer.BadParameter(
            f"--report {page} is the output itself; name another file, or give --no-report"
            if wanted
            else f"--out {out} ends like its report; name another, or give --no-report"
        )
    if wanted is not None:
        measuring.check_writable(page)
        if (strange := _in_the_way(page)) is not None:
            raise OutputError(strange)
    return page


def write_beside(measured: gh.Geometry | gh.History, page: Path | None, **more: Any) -> None:
    """Write a page, and say where it is; where that fails say why, in one line, and go on.

    Args:
        measured: what was measured, and is safely in its file.
        page: where to, or None.
        more: what the file does not say, see :func:`geomhooks.report.write_report`.
    """
    if page is None:
        return

    def write(path: Path) -> None:
        from geomhooks.report.page import write_report

        known = known_of(measured) if isinstance(measured, gh.Geometry) else {}
        write_report(measured, path, **known, **more)

    write_if_possible(page, write)


def write_if_possible(page: Path, write: Callable[[Path], None], option: str = "--report") -> None:
    """Write a page that nobody asked for by name, and say where it is, or why there is none.

    Args:
        page: where to.
        write: does it.
        option: names another place.
    """
    try:
        if (strange := _in_the_way(page, option)) is not None:
            raise OutputError(strange)
        write(page)
    except Exception as error:  # whatever it is: hours of measuring are not to end in a failure
        told = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"no report was written: {told}", err=True)
        return
    typer.echo(f"figures and what stands out: {page} ({page.stat().st_size / 1e6:.1f} MB)")


def known_of(geometry: gh.Geometry) -> dict[str, Any]:
    """What a file says of its contexts: labels, and names of their groups."""
    named = [lookup(geometry[site], "group_means.named") for site in geometry.sites]
    groups = next((list(names) for names in named if names is not None), None)
    return {"labels": measuring.labels_in(geometry.notes), "groups": groups}


def _in_the_way(page: Path, option: str = "--report") -> str | None:
    """Why a file that is there is not to be replaced; None where it may be, or there is none."""
    from geomhooks.report.rendering import is_page

    if page.is_file() and not is_page(page):
        return f"{page} is there, and is no page of geomhooks; name another by {option}"
    return None
