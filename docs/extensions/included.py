"""Pages of the repository that are shown here too, such as ``benchmarks/README.md``.

Their links are relative to where they are. Files that they link to come along as downloads, so that
a link to a missing one fails the build; links to folders become plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#:]+)\)")


def bring_along(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """Turn the links of an included page into what they are from here."""
    if path.suffix != ".md":
        return
    folder = path.parent

    def here(link: re.Match[str]) -> str:
        if (Path(app.srcdir) / folder / link["target"]).is_dir():
            return link["text"]
        return f"{{download}}`{link['text']} </{folder / link['target']}>`"

    content[0] = LINK.sub(here, content[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Listen where a page is included."""
    app.connect("include-read", bring_along)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
