"""The directive ``command-line``: what ``geomhooks COMMAND --help`` says, for every command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.testing import CliRunner

from geomhooks.cli.commands import app as geomhooks_app


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names that lead to each command, the program itself first."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


def help_of(path: tuple[str, ...]) -> str:
    """What a command says of itself."""
    done = CliRunner().invoke(
        geomhooks_app, [*path, "--help"], prog_name="geomhooks", env={"COLUMNS": "88"}
    )
    if done.exit_code:
        raise RuntimeError(f"geomhooks {' '.join(path)} --help: {done.output}")
    return "\n".join(line.rstrip() for line in done.output.strip().splitlines())


class CommandLine(SphinxDirective):
    """Documents all commands."""

    def run(self) -> list[nodes.Node]:
        """A section for each."""
        sections: list[nodes.Node] = []
        for path in commands(typer.main.get_command(geomhooks_app)):
            name = " ".join(["geomhooks", *path])
            section = nodes.section(ids=[nodes.make_id(name)], names=[name])
            section += nodes.title("", "", nodes.literal(name, name))
            section += nodes.literal_block("", help_of(path), language="text")
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("command-line", CommandLine)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
