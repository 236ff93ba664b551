"""What our docstrings mean, where reStructuredText or napoleon would read something else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

CODE = re.compile(r"(``.*?``|:\w+:`[^`]*`)")
INITIAL = re.compile(r"^\s*[\w*\\]+: (?=[A-Za-z]\.( |$))")


def outside_blocks(lines: list[str]) -> Iterator[int]:
    """Indices of the lines that are prose: not of a formula, nor of an example with its output."""
    deeper: int | None = None
    example = False
    for index, line in enumerate(lines):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if deeper is not None and text and indent <= deeper:
            deeper = None
        if text.startswith(".. math::"):
            deeper = indent
        if not text:
            example = False
        elif text.startswith(">>>"):
            example = True
        if deeper is None and not example:
            yield index


def escape_marks(lines: list[str]) -> None:
    """Bars are those of |x| and stars those of shapes (*n, d); code and formulas stay as they are.

    No docstring has a substitution, or emphasis.
    """
    for index in outside_blocks(lines):
        pieces = CODE.split(lines[index])
        pieces[::2] = [re.sub(r"[|*]", r"\\\g<0>", piece) for piece in pieces[::2]]
        # What is called p, and said to be "p.", is no list that begins with the letter p.
        lines[index] = INITIAL.sub(r"\g<0>\\", "".join(pieces))


def prepare(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads a docstring."""
    escape_marks(lines)
    if what in ("attribute", "data", "property"):
        # Napoleon would take what is before a colon in the first line for a type.
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Listen before napoleon does."""
    app.connect("autodoc-process-docstring", prepare, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
