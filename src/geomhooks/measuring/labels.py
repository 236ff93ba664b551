"""What to call contexts: how the text of each one that is kept begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from geomhooks.accumulators.table import hash_keys

__all__ = ["Labels", "labels_in"]

TOKENS = 48  # of the beginning of a context
LONGEST = 60  # letters of a label


class Labels:
    """Beginnings of contexts by id, of as many as a watch keeps, and of the same ones.

    A watch keeps the contexts whose hashed ids are least, and so do these, so that they take no
    more room however long the text is.

    Args:
        capacity: how many to keep; 0 keeps none.

    Example:
        >>> labels = Labels(2)
        >>> labels.note([1, 2, 3], lambda row: "abc"[row])
        >>> len(labels.texts)
        2
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._found: dict[int, str] = {}
        self._highest: int | None = None  # priority above which none is kept any more

    @property
    def texts(self) -> dict[int, str]:
        """The labels by the ids of the contexts."""
        self._cut()
        return dict(self._found)

    def note(self, ids: Sequence[int], text: Callable[[int], str]) -> None:
        """Take the contexts of a batch.

        Args:
            ids: of the contexts.
            text: how the text of a row begins; asked for those that may be kept.
        """
        if not self.capacity:
            return
        priorities = hash_keys(torch.tensor(ids, dtype=torch.int64, device="cpu")).tolist()
        for row, (identity, priority) in enumerate(zip(ids, priorities, strict=True)):
            if self._highest is None or priority <= self._highest:
                self._found[identity] = _short(text(row))
        if len(self._found) > 2 * self.capacity:
            self._cut()

    def take(self, others: Iterable[Mapping[int, str]]) -> None:
        """Take the labels of other processes, or of an earlier part of the run."""
        for other in others:
            self._found |= other

    def _cut(self) -> None:
        if len(self._found) <= self.capacity:
            return
        ids = list(self._found)
        priorities = hash_keys(torch.tensor(ids, dtype=torch.int64, device="cpu"))
        kept = priorities.topk(self.capacity, largest=False)
        self._highest = int(kept.values.max())
        self._found = {ids[row]: self._found[ids[row]] for row in sorted(kept.indices.tolist())}


def _short(text: str) -> str:
    """One line, with each sign once that stands there many times.

    Example:
        >>> _short("- - - - a  b ====")
        '- a b ='
    """
    return re.sub(r"([^\w\s])(\s*\1)+", r"\1", " ".join(text.split()))[:LONGEST]


def labels_in(notes: Mapping[str, Any]) -> dict[int, str]:
    """The labels that the notes of a file have, or those of the files that it was merged of.

    Example:
        >>> labels_in({"merged": [{"notes": {"labels": {"7": "To be"}}}]})
        {7: 'To be'}
    """
    found: dict[int, str] = {}
    labels, merged = notes.get("labels"), notes.get("merged")
    if isinstance(labels, Mapping):
        found |= {int(i): str(text) for i, text in labels.items() if str(i).isdecimal()}
    for part in merged if isinstance(merged, list) else []:
        if isinstance(part, Mapping) and isinstance(part.get("notes"), Mapping):
            found |= labels_in(part["notes"])
    return found
