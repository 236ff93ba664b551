"""Text files as a stream of documents, read in pieces of bounded size, from any place on."""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol

from geomhooks.measuring.errors import TextError

__all__ = ["DOCUMENTS", "Document", "Passages", "Place", "Source", "TextFile"]

Boundary = Literal["paragraphs", "lines", "files"]
DOCUMENTS: tuple[Boundary, ...] = ("paragraphs", "lines", "files")
JSON_LINES = (".jsonl", ".ndjson")
PIECE = 1 << 20  # bytes; a longer document is read as several, so that any file fits in memory


class Place(NamedTuple):
    """Where a document begins: bytes and documents before it."""

    offset: int = 0
    document: int = 0


class Document(NamedTuple):
    """One text, and the places where it begins and where the next one may begin."""

    text: str
    start: Place
    end: Place


class Source(Protocol):
    """Something to read documents from."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def size(self) -> int:
        """Its length, in the unit of :attr:`Place.offset`."""

    @property
    def digest(self) -> str:
        """A hash of its content and of how it is cut into documents."""

    def documents(self, place: Place = ...) -> Iterator[Document]:
        """The documents from `place` on."""


@dataclass(frozen=True)
class Passages:
    """Texts in memory, each a document."""

    name: str
    texts: tuple[str, ...]

    @property
    def size(self) -> int:
        """Characters in all."""
        return sum(map(len, self.texts))

    @property
    def digest(self) -> str:
        """A hash of all texts."""
        return _hash(json.dumps(self.texts).encode()).hexdigest()

    def documents(self, place: Place = Place()) -> Iterator[Document]:
        """The texts from `place` on."""
        for text in self.texts[place.document :]:
            end = Place(place.offset + len(text), place.document + 1)
            yield Document(text, place, end)
            place = end


@dataclass(frozen=True)
class TextFile:
    """A file of UTF-8 text, or of JSON records where its name ends in .jsonl or .ndjson.

    Args:
        path: where it is.
        size: its length in bytes.
        digest: a hash of its content and of how it is cut into documents.
        boundary: what ends a document of plain text: a blank line ("paragraphs"), the end of a
            line ("lines"), or the end of the file ("files"). A document of more than 1 MiB is read
            as several.
        field: the field of a JSON record that holds its text; every record is a document.
    """

    path: Path
    size: int
    digest: str
    boundary: Boundary = "paragraphs"
    field: str = "text"

    @classmethod
    def open(cls, path: Path, boundary: Boundary = "paragraphs", field: str = "text") -> TextFile:
        """Read the whole file once, so that what is wrong with it is known before a model runs.

        Raises:
            TextError: there is no such file, it cannot be read, or it is no UTF-8.
        """
        if path.is_dir():
            raise TextError(f"{path} is a folder; give the text files in it")
        how = field if path.suffix.lower() in JSON_LINES else boundary
        digest, size, pending = _hash(how.encode()), 0, b""
        try:
            with path.open("rb") as file:
                while block := file.read(PIECE):
                    digest.update(block)
                    pending = _undecoded(path, pending + block, size - len(pending))
                    size += len(block)
        except OSError as error:
            raise TextError(f"cannot read the text {path}: {error.strerror or error}") from error
        if pending:
            raise _not_utf8(path, size - len(pending), pending[0])
        return cls(path, size, digest.hexdigest(), boundary, field)

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.name

    def documents(self, place: Place = Place()) -> Iterator[Document]:
        """The documents that begin at `place` or later; white space alone is none."""
        try:
            with self.path.open("rb") as file:
                file.seek(place.offset)
                if self.path.suffix.lower() in JSON_LINES:
                    yield from self._records(file, place)
                else:
                    yield from self._passages(_lines(file, place.offset), place)
        except OSError as error:
            raise TextError(f"cannot read the text {self.path}: {error.strerror}") from error

    def _passages(self, lines: Iterable[tuple[int, str]], place: Place) -> Iterator[Document]:
        parts: list[str] = []
        offset, size = place.offset, 0
        for offset, line in lines:
            blank = not line.strip()
            if not blank or (parts and self.boundary == "files"):
                parts.append(line)
                size += len(line)
            elif not parts:
                place = Place(offset, place.document)
            if parts and (
                self.boundary == "lines"
                or (self.boundary == "paragraphs" and blank)
                or size >= PIECE
            ):
                end = Place(offset, place.document + 1)
                yield Document("".join(parts).rstrip(), place, end)
                parts, size, place = [], 0, end
        if parts:
            end = Place(offset, place.document + 1)
            yield Document("".join(parts).rstrip(), place, end)

    def _records(self, file: BinaryIO, place: Place) -> Iterator[Document]:
        for line in file:
            end = Place(place.offset + len(line), place.document + 1)
            text = self._record(line, place) if line.strip() else ""
            if text.strip():
                yield Document(text, place, end)
                place = end
            else:
                place = Place(end.offset, place.document)

    def _record(self, line: bytes, place: Place) -> str:
        try:
            record = json.loads(line.removeprefix(BOM_UTF8))
        except json.JSONDecodeError as error:
            where = _line_number(self.path, place.offset)
            raise TextError(f"{self.path}, line {where}: no JSON ({error.msg})") from error
        text = record.get(self.field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            found = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise TextError(
                f"{self.path}, line {_line_number(self.path, place.offset)}: no text in field "
                f"{self.field!r}; found: {found}. Name the field with --field"
            )
        # JSON can spell halves of a surrogate pair, which no tokenizer takes.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _lines(file: BinaryIO, offset: int) -> Iterator[tuple[int, str]]:
    """Each line, or piece of a line, and the offset of its end."""
    while raw := file.readline(PIECE):
        if len(raw) == PIECE and not raw.endswith(b"\n"):
            whole = len(raw) - len(_unfinished(raw))
            file.seek(whole - len(raw), 1)
            raw = raw[:whole]
        text = (raw.removeprefix(BOM_UTF8) if offset == 0 else raw).decode()
        offset += len(raw)
        yield offset, text


def _unfinished(raw: bytes) -> bytes:
    """The first bytes of a character at the end of `raw` whose last bytes are not in it."""
    for length in (1, 2, 3):
        lead = raw[-length:][:1]
        if lead >= b"\xc0":  # the byte that opens a character, and says how long it is
            needed = 2 if lead < b"\xe0" else 3 if lead < b"\xf0" else 4
            return raw[-length:] if needed > length else b""
    return b""


def _undecoded(path: Path, raw: bytes, offset: int) -> bytes:
    """Check that `raw`, which stands at `offset`, is UTF-8; return the unfinished end of it."""
    rest = _unfinished(raw)
    try:
        raw[: len(raw) - len(rest)].decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(path, offset + error.start, raw[error.start]) from error
    return rest


def _not_utf8(path: Path, offset: int, byte: int) -> TextError:
    with path.open("rb") as file:
        start = file.read(PIECE)
    wide = start.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    if b"\0" in start and not wide:
        return TextError(f"{path} is no text, but a binary file: it has NUL bytes. Give text files")
    return TextError(
        f"{path} is no UTF-8 text: byte 0x{byte:02x} in line {_line_number(path, offset)} "
        f"(offset {offset:,}). Convert it: iconv -f {'UTF-16' if wide else 'ENCODING'} -t UTF-8 "
        f"{path}"
    )


def _line_number(path: Path, offset: int) -> int:
    lines = 1
    with path.open("rb") as file:
        while offset > 0 and (block := file.read(min(PIECE, offset))):
            lines += block.count(b"\n")
            offset -= len(block)
    return lines


def _hash(start: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(start, digest_size=16)
