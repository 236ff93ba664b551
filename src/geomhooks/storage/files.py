"""One safetensors file for a geometry: its tensors, and all the rest as JSON in the metadata.

Tensors are named ``site/<name>/<statistic>/<accumulator>/<tensor>``, ``stream/...`` and
``model/...``. The metadata has one entry, ``geomhooks``: JSON with ``schema`` (a number that grows
when older versions cannot read a file), ``description`` (model, shards, statistics with their
parameters, streams, sites), ``counts``, ``versions``, ``notes`` and ``checksum``, the CRC-32 of the
bytes of all tensors in the order of their names; in files of another kind than a geometry also
``kind``. Tensors are stored as :mod:`geomhooks.storage.packing` packs them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from geomhooks.errors import FileFormatError, SchemaError
from geomhooks.forwards.token_stream import CENSUS
from geomhooks.state import State
from geomhooks.statistics.base import Statistic
from geomhooks.storage.descriptions import parse
from geomhooks.storage.packing import thin_tensors, unpack_state
from geomhooks.version import __version__

__all__ = [
    "SCHEMA",
    "checksum_of",
    "first_key_of",
    "kind_of",
    "notes_of",
    "read_document",
    "read_file",
    "write_document",
    "write_file",
]

SCHEMA = 1
KEY = "geomhooks"
MAX_BYTES = 1 << 34  # of rows that hold nothing, unless a caller says otherwise
LOADERS = {
    "geometry": "gh.load",
    "history": "gh.History.load",
    "dictionary": "gh.load_dictionary",
}
DAMAGED = "copy it again from where it was written, or write it again"
UPGRADE = "Upgrade geomhooks: pip install -U geomhooks"


def first_key_of(shard: str) -> int:
    """Where a shard's running context numbers start: apart from all others."""
    digest = hashlib.blake2b(shard.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2 | 1 << 61


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """The CRC-32 of the bytes of all tensors in the order of their names, as 8 hexadecimal digits.

    It tells damage, not forgery.

    Example:
        >>> checksum_of({"b": torch.ones(1), "a": torch.zeros(1)})
        'e8c76a1f'
    """
    found = 0
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        found = zlib.crc32(flat.view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def write_file(path: str | os.PathLike[str], state: State, notes: Mapping[str, Any] | None) -> None:
    """Write a state, all or nothing: a reader never sees half a file."""
    counts = {
        name: dict(zip(CENSUS, s.stream.census.value.tolist(), strict=True))
        for name, s in state.streams.items()
    }
    document = {
        "schema": SCHEMA,
        "description": state.describe(),
        "counts": counts,
        "notes": dict(notes or {}),
    }
    write_document(path, document, thin_tensors(state))


def read_file(
    path: str | os.PathLike[str],
    statistics: Iterable[Statistic] = (),
    max_bytes: int | None = MAX_BYTES,
) -> tuple[State, dict[str, Any]]:
    """Read a file; returns the state and the notes.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is truncated, damaged, not geomhooks', or of a newer schema.
        SchemaError: what it says and what it holds do not fit together.
    """
    document, tensors = read_document(path, "geometry", SCHEMA)
    name = os.fspath(path)
    try:
        packed = {"description": document.get("description"), "tensors": tensors}
        state = unpack_state(packed, statistics, max_bytes)
    except SchemaError as error:
        raise SchemaError(f"{name}: {error}") from error
    return state, notes_of(document, name)


def notes_of(document: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The notes in a file.

    Raises:
        FileFormatError: they are no object.
    """
    notes = document.get("notes", {})
    if not isinstance(notes, dict):
        raise FileFormatError(f"{path}: notes: a JSON object is needed, found {notes!r:.80}")
    return notes


def write_document(
    path: str | os.PathLike[str], document: Mapping[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write JSON and tensors to one file, all or nothing.

    Raises:
        SchemaError: the document is not JSON.
        FileNotFoundError: there is no such folder.
        OSError: the file cannot be written there.
    """
    versions = {"geomhooks": __version__, "torch": str(torch.__version__)}
    try:
        told = {**document, "versions": versions, "checksum": checksum_of(tensors)}
        text = json.dumps(told)
        parse(text)  # what is written can be read
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"notes and statistics' parameters have to be JSON that can be read: {error}"
        ) from error
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder to save into: {path.parent}")
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part"
        )
    except OSError as error:
        raise _of_path(error, path) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(to_bytes(tensors, metadata={KEY: text}))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise (_of_path(error, path) if isinstance(error, OSError) else error) from None


def _of_path(error: OSError, path: Path) -> OSError:
    """The same error of the file that was asked for, not of the one written beside it."""
    if error.errno is None:
        return error
    return OSError(error.errno, error.strerror, os.fspath(path))


def read_document(
    path: str | os.PathLike[str], kind: str, schema: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read JSON and tensors from a file that holds what it should.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is truncated, damaged, not geomhooks', of another kind, or of a newer
            schema.
    """
    with _opened(path, kind) as (file, document):
        found = _kind(document)
        name = os.fspath(path)
        if found != kind:
            remedy = f"read it with {LOADERS[found]}(path)" if found in LOADERS else UPGRADE
            raise FileFormatError(f"{name} holds a {found:.40}, not a {kind}: {remedy}")
        if document.get("schema") != schema:
            raise FileFormatError(
                f"{name} has schema {document.get('schema')!r:.40}; this version reads {schema}. "
                f"{UPGRADE}"
            )
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        written, there = document.pop("checksum", None), checksum_of(tensors)
        if written is not None and written != there:  # older versions wrote none
            raise FileFormatError(
                f"{name} is damaged: its numbers are not those that were written (checksum "
                f"{there}, not {written!r:.40}); {DAMAGED}"
            )
    return document, tensors


def kind_of(path: str | os.PathLike[str]) -> str:
    """What a file holds, "geometry" or "history"; its tensors are not read.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is truncated, or not geomhooks'.
    """
    with _opened(path, "geometry or history") as (_, document):
        return _kind(document)


def _kind(document: Mapping[str, Any]) -> str:
    return str(document.get("kind", "geometry"))


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], what: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """An open file of geomhooks' and its JSON."""
    name = os.fspath(path)
    if not Path(path).exists():
        raise FileNotFoundError(f"no such file: {name}")
    if not Path(path).is_file():  # a pipe might never give anything
        raise FileFormatError(f"{name} is no {what} file, but a folder or a device")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise FileFormatError(f"{name} is a safetensors file, but not geomhooks'")
            try:
                document = parse(metadata[KEY])
            except ValueError as error:
                raise FileFormatError(f"{name}: {error}; {DAMAGED}") from error
            yield file, document
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{name} is truncated, damaged, or no {what} file ({error!s:.200}); {DAMAGED}"
        ) from error
