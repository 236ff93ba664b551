"""What may be wrong with a file: bytes, the header, what it says, and its tensors."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from geomhooks.storage.files import KEY
from tests.report.geometries import SCRIPT
from tests.storage.written import TYPES, Written, joined, valid

HUGE = 10**12
TEXTS = (
    SCRIPT,
    "",
    "\x00",
    "\x1b[2J\x1b]0;taken\x07",
    "a\nb\r\tc",
    "\ud800",
    "\u202e\u200b\ufeff",
    "__proto__",
    "self",
    "gap",
    "constructor",
    "../../etc/passwd",
    "C:\\con",
    "/",
    "site/a@rows",
    "[bold red]not markup[/]",
    "{{ 7 * 7 }}{% raw %}",
    "</script><script>taken=1</script>",
    "\" onerror='taken=1' x=\"",
    "%s %n {0} {}",
    "x" * 5000,
    "9" * 5000,
    "é漢字🙂",
)
NUMBERS = (
    -1, 0, 1, 2, 7, 1 << 31, HUGE, (1 << 63) - 1, -(1 << 63), 1 << 64, 10**400, -HUGE,
    0.5, -0.0, 1e308, 1e400, -1e400, float("nan"), 5e-324,
)  # fmt: skip
VALUES = (*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], [1, "a", None], {"a": 1}, {"": []})
CELLS = (-1, 0, 1, 3, 1 << 20, (1 << 31) - 1, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -1.0, 1.0, 1e-320, 1e30, -1e300, np.inf, -np.inf, np.nan)
KINDS = ["values"] * 6 + ["parts"] * 6 + ["header"] * 3 + ["bytes"] * 2 + ["foreign"]
FOREIGN = ("empty", "text", "pickle", "zip", "weights", "zeros", "json")


class Marker:
    """Says when it is made by a pickle that somebody opens."""

    opened = 0

    def __reduce__(self) -> Any:
        return _open, ()


def _open() -> None:
    Marker.opened += 1


@cache
def foreign(name: str) -> bytes:
    """What is no file of ours."""
    if name == "pickle":
        return pickle.dumps({"state": Marker()})
    if name == "zip":
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as file:  # as torch.save would write it
            file.writestr("archive/data.pkl", pickle.dumps(Marker()))
        return held.getvalue()
    if name == "weights":
        written = Written({}, {"lm_head.weight": np.zeros((3, 4), np.float32)})
        header, body = written.header()
        del header["__metadata__"]
        return joined(json.dumps(header).encode(), body)
    return {
        "empty": b"",
        "text": b"no geometry at all\n" * 100,
        "zeros": bytes(4096),
        "json": b'{"schema": 1}',
    }[name]


def hostile_file() -> bytes:
    """Sites, their stream and the model have names that nobody would give them."""
    written = valid("everything").copy()
    names = [SCRIPT, '"><img src=x onerror=taken=1>', "\x1b[31m[bold]a\x00\n", "__proto__"]
    for old, new in zip([*written.document["description"]["sites"]], names, strict=True):
        written.rename("site/", old, new)
    written.rename("stream/", "transformer", TEXTS[-1])
    written.document["description"]["model"] = "</title><script>taken=1</script>"
    return written.bytes()


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything is in JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from paths(part, (*path, key))


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """A file with one to three things wrong."""
    written = valid(name).copy()
    if draw(st.integers(0, 3)) == 0:
        written.document["checksum"] = written.checksum()
    kind = draw(st.sampled_from(KINDS))
    if kind == "foreign":
        return foreign(draw(st.sampled_from(FOREIGN)))
    parts = {"values": (cell, cell, rename), "parts": PARTS}.get(kind, (cell,))
    for _ in range(draw(st.integers(1, 3))):
        draw(st.sampled_from(parts))(draw, written)
    if kind == "header":
        return draw(st.sampled_from(HEADERS))(draw, written)
    data = written.bytes()
    return draw(st.sampled_from(BYTES))(draw, data) if kind == "bytes" else data


# Of what a file says.


def _somewhere(draw: st.DrawFn, written: Written) -> tuple[Any, Any]:
    path = draw(st.sampled_from(list(paths(written.document))))
    holder = written.document
    for key in path[:-1]:
        holder = holder[key]
    return holder, path[-1]


def replace(draw: st.DrawFn, written: Written) -> None:
    """Another value somewhere."""
    holder, key = _somewhere(draw, written)
    holder[key] = draw(st.sampled_from(VALUES))


def remove(draw: st.DrawFn, written: Written) -> None:
    """Something that is said no more."""
    holder, key = _somewhere(draw, written)
    del holder[key]


def add(draw: st.DrawFn, written: Written) -> None:
    """Something that is said besides."""
    holder, _ = _somewhere(draw, written)
    value = draw(st.sampled_from(VALUES))
    if isinstance(holder, dict):
        holder[draw(st.sampled_from(TEXTS))] = value
    else:
        holder.append(value)


def nest(draw: st.DrawFn, written: Written) -> None:
    """JSON in JSON."""
    holder, key = _somewhere(draw, written)
    value: Any = []
    for _ in range(draw(st.sampled_from((3, 40, 70, 400)))):
        value = [value] if draw(st.booleans()) else {"a": value}
    holder[key] = value


def rename(draw: st.DrawFn, written: Written) -> None:
    """A site, a stream or a whole text that is named otherwise, everywhere."""
    description = written.document.get("description")
    if not isinstance(description, dict):
        return
    known = [
        *(
            (f"{kind}/", name)
            for kind in ("site", "stream")
            for name in description.get(f"{kind}s") or ()
        ),
        ("", str(description.get("model"))),
    ]
    prefix, old = draw(st.sampled_from(known))
    new = draw(st.sampled_from(TEXTS))
    written.rename(prefix, old, new)


# Of its tensors.


def _tensor(draw: st.DrawFn, written: Written) -> str:
    return draw(st.sampled_from(sorted(written.tensors) or ["none"]))


def cell(draw: st.DrawFn, written: Written) -> None:
    """An entry, or all, of another value; of single numbers as often as of all tensors."""
    single = sorted(name for name, tensor in written.tensors.items() if tensor.size == 1)
    name = (
        draw(st.sampled_from(single or ["none"])) if draw(st.booleans()) else _tensor(draw, written)
    )
    tensor = written.tensors.get(name, np.zeros(0)).copy()
    odd = draw(st.sampled_from(FLOATS if tensor.dtype.kind == "f" else CELLS))
    with np.errstate(all="ignore"):
        odd = np.asarray(odd).astype(tensor.dtype)
    if draw(st.booleans()):
        tensor.fill(odd)
    elif tensor.size:
        tensor.reshape(-1)[draw(st.integers(0, tensor.size - 1))] = odd
    written.tensors[name] = tensor


def shape(draw: st.DrawFn, written: Written) -> None:
    """A tensor of another shape."""
    name = _tensor(draw, written)
    tensor = written.tensors.get(name, np.zeros(0))
    written.tensors[name] = draw(
        st.sampled_from(
            (
                lambda: tensor.reshape(-1),
                lambda: np.ascontiguousarray(tensor.T),
                lambda: tensor[None],
                lambda: tensor.reshape(-1)[:0],
                lambda: tensor.reshape(-1)[:1].reshape(()) if tensor.size else tensor,
                lambda: tensor[:-1] if tensor.ndim else tensor,
                lambda: np.concatenate([tensor, tensor]) if tensor.ndim else tensor,
            )
        )
    )()


def retype(draw: st.DrawFn, written: Written) -> None:
    """A tensor of another type."""
    name = _tensor(draw, written)
    kind = TYPES[draw(st.sampled_from(sorted(TYPES)))]
    with np.errstate(all="ignore"):
        written.tensors[name] = written.tensors.get(name, np.zeros(1)).astype(kind)


def swap(draw: st.DrawFn, written: Written) -> None:
    """Two tensors in each other's place."""
    a, b = _tensor(draw, written), _tensor(draw, written)
    held = written.tensors
    held[a], held[b] = held.get(b, np.zeros(1)), held.get(a, np.zeros(1))


def drop(draw: st.DrawFn, written: Written) -> None:
    """A tensor that is not there."""
    written.tensors.pop(_tensor(draw, written), None)


def more(draw: st.DrawFn, written: Written) -> None:
    """A tensor of a name that nothing has."""
    name = draw(st.sampled_from((*TEXTS, "site/a/b/c", _tensor(draw, written) + "@rows")))
    written.tensors[name.replace("\ud800", "")] = np.zeros(draw(st.integers(0, 3)), np.int64)


Part = Callable[[st.DrawFn, Written], None]
PARTS: tuple[Part, ...] = (
    replace, replace, remove, add, nest, rename, rename, cell, cell, cell,
    shape, retype, swap, drop, more,
)  # fmt: skip

# Of the header, as safetensors reads it.


def entry(draw: st.DrawFn, written: Written) -> bytes:
    """Places, types and shapes of tensors that cannot be."""
    header, body = written.header()
    name = draw(st.sampled_from(sorted(header)))
    held = header[name]
    key = draw(st.sampled_from(sorted(held)))
    sizes = st.sampled_from((-1, 0, 1, 8, len(body), len(body) + 1, HUGE, 1 << 62, 1 << 64))
    value = st.one_of(
        st.lists(sizes, max_size=4),
        st.sampled_from(VALUES),
        st.sampled_from((*TYPES, "F8_E4M3", "C64")),
    )
    held[key] = draw(value)
    return joined(json.dumps(header).encode(), body)


def length(draw: st.DrawFn, written: Written) -> bytes:
    """A length of the header that is not its length."""
    header, body = written.header()
    text = json.dumps(header).encode()
    said = st.sampled_from(
        (0, 1, -1, 1 << 62, HUGE, len(text) - 1, len(text) + 1, len(text) + len(body))
    )
    return joined(text, body, draw(said))


def twice(draw: st.DrawFn, written: Written) -> bytes:
    """A name that stands twice."""
    header, body = written.header()
    metadata = header.pop("__metadata__")
    told = metadata[KEY]
    where = draw(st.sampled_from(("told", "header", "metadata")))
    if where == "told":
        told = '{"schema": 1, ' + told[1:]
    first = json.dumps({"__metadata__": {KEY: told}})[:-1]
    if where == "metadata":
        first += ', "__metadata__": ' + json.dumps(metadata)
    rest = json.dumps(header)[1:]
    if where == "header":
        name = draw(st.sampled_from(sorted(header) or ["none"]))
        rest = f"{json.dumps({name: header.get(name)})[1:-1]}, {rest}"
    return joined(f"{first}, {rest}".encode(), body)


def raw(draw: st.DrawFn, written: Written) -> bytes:
    """What is told that is no JSON, or more than anybody reads."""
    header, body = written.header()
    told = st.sampled_from(
        (
            "",
            "null",
            "[]",
            "[" * 100_000,
            "1" * 5000,
            '{"a":' * 50_000,
            '"\\ud800"',
            "{",
            "NaN",
            '{"kind": 1}',
        )
    )
    header["__metadata__"] = {draw(st.sampled_from((KEY, "other"))): draw(told)}
    return joined(json.dumps(header).encode(), body)


Header = Callable[[st.DrawFn, Written], bytes]
HEADERS: tuple[Header, ...] = (entry, entry, length, twice, raw)

# Of its bytes.


def cut(draw: st.DrawFn, data: bytes) -> bytes:
    """The first of them."""
    return data[: draw(st.integers(0, len(data) - 1))]


def flip(draw: st.DrawFn, data: bytes) -> bytes:
    """Some that are others."""
    held = bytearray(data)
    end = draw(st.sampled_from((8, 300, len(held))))
    for _ in range(draw(st.integers(1, 8))):
        held[draw(st.integers(0, end - 1))] = draw(st.integers(0, 255))
    return bytes(held)


def append(draw: st.DrawFn, data: bytes) -> bytes:
    """More of them."""
    return data + draw(st.binary(min_size=1, max_size=9))


Bytes = Callable[[st.DrawFn, bytes], bytes]
BYTES: tuple[Bytes, ...] = (cut, flip, flip, append)
