"""Geometry files that a run writes: checked before it, whole or not at all after it."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import geomhooks as gh
from geomhooks.measuring.errors import OutputError
from geomhooks.measuring.ranks import Ranks

__all__ = [
    "check_writable",
    "checkpoint_of",
    "checkpoints_beside",
    "remove_checkpoints",
    "remove_unfinished",
    "save",
]


def checkpoint_of(path: Path, ranks: Ranks) -> Path:
    """Where a process keeps the state of an unfinished run.

    Example:
        >>> checkpoint_of(Path("a.safetensors"), Ranks()).name
        'a.safetensors.checkpoint'
        >>> checkpoint_of(Path("a.safetensors"), Ranks(1, 4)).name
        'a.safetensors.checkpoint-1-of-4'
    """
    which = f"-{ranks.rank}-of-{ranks.number}" if ranks.number > 1 else ""
    return path.with_name(f"{path.name}.checkpoint{which}")


def checkpoints_beside(path: Path) -> list[Path]:
    """All checkpoints of unfinished runs to this output, on however many processes."""
    return sorted(path.parent.glob(f"{escape(path.name)}.checkpoint*"))


def remove_checkpoints(path: Path, ranks: Ranks) -> None:
    """Remove the checkpoints of earlier runs: rank 0 all that it sees, another rank its own."""
    for found in checkpoints_beside(path) if ranks.rank == 0 else [checkpoint_of(path, ranks)]:
        found.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before a long run whether its output can be written.

    Raises:
        OutputError: says why it cannot.
    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to {path.parent}: {error.strerror}") from error


def save(geometry: gh.Geometry, path: Path, notes: dict[str, Any]) -> None:
    """Write a geometry file, or say why not.

    Raises:
        OutputError: the disk is full, or the like.
    """
    try:
        geometry.save(path, notes=notes)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def remove_unfinished(path: Path) -> None:
    """Remove what a run to the same output left half-written when it was killed."""
    for part in path.parent.glob(f".{escape(path.name)}*.part"):
        part.unlink(missing_ok=True)
