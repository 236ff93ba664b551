"""Every block of code of the documentation runs, in order, a page at a time."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from geomhooks.cli.commands import run
from geomhooks.cli.demo import minilm
from tests.models import MINILM, package_folder

DOCS = Path(__file__).parents[2] / "docs"
# A reason stands right before the block, and only commands may have one.
NOT_RUN = re.compile(r"<!-- not run: \S.{10,} -->\n\s*$")
KNOWN = {"bash", "python", "text"}


def run_command(example: Example) -> None:
    """A command of a page, in the folder in which its Python runs."""
    if NOT_RUN.search(example.document.text[: example.region.start]):
        return
    for line in example.parsed.strip().splitlines():
        program, *arguments = shlex.split(os.path.expandvars(line), comments=True)
        if program == "geomhooks":  # here, which spares a process that loads torch again
            assert run(arguments) == 0, line
        else:
            subprocess.run(["bash", "-c", line], check=True, timeout=60)


READER = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", run_command)], patterns=["*.md"]
)
PAGES = sorted(
    page for page in DOCS.rglob("*.md") if re.search("^```(python|bash)$", page.read_text(), re.M)
)


def languages(document: Document) -> set[str]:
    """Of the blocks that are no directives."""
    return set(re.findall(r"^ *```(\w+)$", document.text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = READER.parse(page)
    assert languages(document) <= KNOWN, "a block of another kind would not be run"
    if "minilm" in document.text:
        package_folder(*MINILM)  # skips, or fails, without it
        monkeypatch.setenv("MINILM", str(minilm()))
    monkeypatch.chdir(tmp_path)
    for example in document.examples():
        example.evaluate()
