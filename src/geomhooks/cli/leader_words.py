"""The table of the words that lead."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.table import Table

import geomhooks as gh
from geomhooks.cli.table import printable

__all__ = ["leader_words"]

SHOWN = 10


def leader_words(geometry: gh.Geometry, spell: Callable[[list[int]], list[str]]) -> Table | None:
    """The words that lead most often at each block, with how often; None where none was counted.

    Args:
        geometry: of a model.
        spell: gives the tokens of ids.
    """
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="words that lead, in any head")
    shown.add_column("site", no_wrap=True)
    shown.add_column("word and how often")
    for site in geometry.sites:
        found = geometry[site]
        if "leaders" not in found or "words" not in found.leaders:
            continue
        words = found.leaders.words
        ids, counts = words.ids[:SHOWN].tolist(), words.counts[:SHOWN].tolist()
        pairs = zip(spell(ids), counts, strict=True)
        told = "  ".join(f"{printable(token)} {count}" for token, count in pairs)
        shown.add_row(printable(site), told)
    return shown if shown.row_count else None
