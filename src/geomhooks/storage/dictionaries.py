"""A dictionary of factors in a file of its own, with the penalty that its codes are made with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from geomhooks.errors import FileFormatError
from geomhooks.functional.factors.dictionary_learning import problem_of_rows
from geomhooks.functional.factors.sparse_coding import SparseCoder
from geomhooks.functional.shapes import as_matrix
from geomhooks.storage.files import notes_of, read_document, write_document

__all__ = ["FactorDictionary", "load_dictionary", "save_dictionary"]

SCHEMA = 1
NAME = "dictionary"


@dataclass(frozen=True, eq=False)
class FactorDictionary:
    """A dictionary, and how its codes are made.

    Attributes:
        dictionary: (F, d) rows of length 1.
        penalty: of :class:`geomhooks.functional.SparseCoder`.
        relative: the penalty is in units of the length of each hidden state.
        notes: anything that JSON can hold.
    """

    dictionary: Tensor
    penalty: float
    relative: bool
    notes: dict[str, Any] = field(default_factory=dict)

    def coder(self, *, iterations: int = 500, tolerance: float | None = None) -> SparseCoder:
        """What makes codes of hidden states."""
        return SparseCoder(self.dictionary, self.penalty, self.relative, iterations, tolerance)


def save_dictionary(
    path: str | os.PathLike[str],
    dictionary: Tensor,
    *,
    penalty: float,
    relative: bool,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a dictionary to one safetensors file, all or nothing.

    The file has one tensor, ``dictionary``, and the rest as JSON in its metadata.

    Args:
        path: where to; an existing file is replaced.
        dictionary: (F, d) rows of length 1, such as ``geometry.model.factor_learning.dictionary``.
        penalty: with which it was learned.
        relative: the penalty is in units of the length of each hidden state.
        notes: anything that JSON can hold, such as what it was learned from.

    Raises:
        ValueError: it is no such dictionary or penalty.

    Example:
        >>> import tempfile, pathlib, torch, geomhooks as gh
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "factors.safetensors"
        >>> gh.save_dictionary(path, torch.eye(3), penalty=0.1, relative=True)
        >>> found = gh.load_dictionary(path)
        >>> found.coder()(torch.tensor([[3.0, 4.0, 0.0]]))
        tensor([[2.5000, 3.5000, 0.0000]])
    """
    stored = as_matrix(dictionary, NAME, "(F, d)").detach().cpu().contiguous()
    for problem in (problem_of_rows(stored), problem_of_penalty(penalty, relative)):
        if problem:
            raise ValueError(problem)
    if not isinstance(notes, Mapping | None):
        raise ValueError(f"notes: a mapping is needed, found {notes!r:.80}")
    document = {
        "schema": SCHEMA,
        "kind": NAME,
        "penalty": float(penalty),
        "relative": relative,
        "notes": dict(notes or {}),
    }
    write_document(path, document, {NAME: stored})


def load_dictionary(path: str | os.PathLike[str]) -> FactorDictionary:
    """Read a dictionary that :func:`save_dictionary` wrote; files never run code.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is truncated, foreign, of another kind, newer than this library, or
            what it holds is no dictionary.
    """
    document, tensors = read_document(path, NAME, SCHEMA)
    name, found = os.fspath(path), tensors.get(NAME)
    penalty, relative = document.get("penalty"), document.get("relative")
    if found is None or len(tensors) > 1:
        raise FileFormatError(
            f"{name}: one tensor {NAME!r} is needed, found {sorted(tensors) or 'none'!s:.200}"
        )
    if found.ndim != 2 or not found.numel() or not found.is_floating_point():
        raise FileFormatError(
            f"{name}: {NAME}: floating numbers (F, d) are needed, found {found.dtype} "
            f"{tuple(found.shape)}"
        )
    found = as_matrix(found, NAME, "(F, d)")
    for problem in (problem_of_rows(found), problem_of_penalty(penalty, relative)):
        if problem:
            raise FileFormatError(f"{name}: {problem}")
    notes = notes_of(document, name)
    return FactorDictionary(found, float(penalty), bool(relative), notes)  # type: ignore[arg-type]


def problem_of_penalty(penalty: Any, relative: Any) -> str | None:
    """What is wrong with a penalty and its unit."""
    number = isinstance(penalty, int | float) and not isinstance(penalty, bool)
    if not number or not 0 <= penalty < math.inf:
        return f"penalty: a number of at least 0 is needed, found {penalty!r:.80}"
    if not isinstance(relative, bool):
        return f"relative: true or false is needed, found {relative!r:.80}"
    return None
