"""Every public name is on a page of the API, once."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
DIRECTIVE = re.compile(r"^```\{public\} (\S+) ?(.*)$", re.MULTILINE)


@pytest.mark.parametrize(
    "package",
    [
        "geomhooks",
        "geomhooks.anatomy",
        "geomhooks.comparing",
        "geomhooks.errors",
        "geomhooks.functional",
        "geomhooks.functional.compare",
        "geomhooks.models",
        "geomhooks.report",
        "geomhooks.report.figures",
    ],
)
def test_every_public_name_has_a_page(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    public_names = importlib.import_module("public_names").public_names
    try:
        documented = Counter(
            name
            for page in (DOCS / "api").glob("*.md")
            for found, parts in DIRECTIVE.findall(page.read_text())
            if found == package
            for name in public_names(package, *parts.split())
        )
    finally:
        del sys.modules["public_names"]
    module = importlib.import_module(package)
    names = {name for name in module.__all__ if not inspect.ismodule(getattr(module, name))}
    if package == "geomhooks.errors":
        names.discard("GeomhooksError")  # which is the package's own
    assert names - documented.keys() == set(), "they are on no page"
    assert {name for name, times in documented.items() if times > 1} == set(), "more than once"
