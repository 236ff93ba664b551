"""One of each sort of bad file, and what is said of it."""

from __future__ import annotations

import json
import resource
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import geomhooks as gh
from geomhooks.errors import FileFormatError, SchemaError
from geomhooks.report import report_page
from geomhooks.statistics.base import Site
from geomhooks.storage.descriptions import NEEDED, OF_TYPES
from geomhooks.storage.files import checksum_of
from tests.report.geometries import SCRIPT
from tests.storage.damage import FOREIGN, Marker, foreign, hostile_file
from tests.storage.laws import Page, check_command, check_page
from tests.storage.written import Written, joined, valid

READERS = {"history": gh.History.load, "dictionary": gh.load_dictionary}
SITE = "transformer.h.1"
SUMS = f"site/{SITE}/pos_ctx/sums/"
DEEP: Any = "end"
for _ in range(80):
    DEEP = [DEEP]


def refused(path: Path, data: bytes, kind: type[Exception]) -> str:
    """What is said of a file, after its name."""
    path.write_bytes(data)
    with pytest.raises(kind) as caught:
        gh.load(path)
    told = str(caught.value)
    assert told.startswith(str(path))
    return told.removeprefix(str(path)).removeprefix(": ")


def description(*keys: str, **changed: Any) -> Callable[[Written], None]:
    """Change what is said somewhere in the description."""

    def change(written: Written) -> None:
        holder = written.document["description"]
        for key in keys:
            holder = holder[key]
        holder.update(changed)

    return change


def tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Written], None]:
    """Change a tensor."""

    def changed(written: Written) -> None:
        written.tensors[name] = change(written.tensors[name])

    return changed


def at(index: int, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Another value at one place."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.reshape(-1)[index] = value
        return array

    return change


SETTINGS = ("statistics", "pos_ctx", "parameters")
OF_SITE = ("sites", SITE, "site")
SAID: list[tuple[Callable[[Written], None], str]] = [
    (lambda w: w.document.pop("description"), "description: an object is needed, found None"),
    (
        lambda w: w.document["description"].pop("shards"),
        "description: model, shards, selection, statistics, streams, sites, whole are needed; "
        "'shards' is missing",
    ),
    (description(extra=1), "streams, sites, whole are needed; found 'extra'"),
    (description(model=["a"]), "description.model: a text is needed, found ['a']"),
    (
        description(*OF_SITE, width=-4),
        f"description.sites.{SITE}.site.width: a whole number from 0 is needed, found -4",
    ),
    (
        description(*OF_SITE, width=0),
        f"description.sites.{SITE}.site.width: a whole number from 1 is needed, found 0",
    ),
    (
        description(*OF_SITE, positions=13),
        f"{SITE}.site.positions: the capacity 12 of its stream is needed, found 13",
    ),
    (description(*OF_SITE, name="b"), f"site.name: '{SITE}' is needed, found 'b'"),
    (description("sites", SITE, stream="b"), f"description.sites.{SITE}: there is no stream 'b'"),
    (
        description("sites", SITE, statistics=["sphere", "spheer"]),
        f"description.sites.{SITE}: there is no statistic 'spheer'",
    ),
    (description(whole=["sphere"]), "the whole model: sphere is of the scope 'site'"),
    (
        description("streams", "transformer", first_key=1 << 70),
        "first_key: a whole number from -4611686018427387903 is needed, found 11805916207174113034",
    ),
    (
        description(*SETTINGS, contexts=2.5),
        "the parameters of pos_ctx: PosCtx(contexts=2.5): a positive integer is needed",
    ),
    (
        description(*SETTINGS, second_moment="yes"),
        "the parameters of pos_ctx: PosCtx(second_moment='yes'): True or False is needed",
    ),
    (
        description(*SETTINGS, colour="red"),
        "the parameters of pos_ctx: got an unexpected keyword argument 'colour'",
    ),
    (
        lambda w: w.document["description"]["statistics"].update(
            mine={"class": "a.Mine", "parameters": {}}
        ),
        "the file has the statistic 'mine' (a.Mine), which is not geomhooks' own; give it: "
        "gh.load(path, statistics=[Mine(...)])",
    ),
    # What is said is far more than what is there.
    (
        description(*SETTINGS, contexts=10**11),
        "the state of PosCtx for the token stream 'transformer' would take",
    ),
    (
        lambda w: w.document["description"]["statistics"]["pos_ctx"]["parameters"].update(
            contexts=10**11, max_bytes=10**18
        ),
        "bytes for rows that hold nothing, more than max_bytes=17,179,869,184; raise max_bytes",
    ),
    (
        description(*OF_SITE, width=10**12),
        f"the state of PosCtx for site '{SITE}' (d = 1000000000000) would take",
    ),
    # Tensors.
    (lambda w: w.tensors.pop(SUMS + "square"), f"there is no tensor '{SUMS}square'"),
    (
        lambda w: w.tensors.update({"site/none/a": np.zeros(3)}),
        "the tensor 'site/none/a' belongs to nothing that is described",
    ),
    (description(*OF_SITE, width=17), "/shift/value' has shape (16,), not (17,)"),
    (
        tensor(SUMS + "position_sum", lambda a: a[:-1]),
        f"tensor '{SUMS}position_sum' has shape (11, 16), not (12, 16)",
    ),
    (
        tensor(SUMS + "kept_sum", lambda a: a[:, :-1].copy()),
        f"tensor '{SUMS}kept_sum' has shape (0, 15), not (4097, 16) or rows of it",
    ),
    (
        tensor(SUMS + "position_count", lambda a: a.astype(np.float64)),
        f"tensor '{SUMS}position_count' has dtype torch.float64, not torch.int64",
    ),
    (
        tensor(SUMS + "position_sum", lambda a: a.astype(np.float16)),
        f"tensor '{SUMS}position_sum' has dtype torch.float16, not torch.float64",
    ),
    (
        tensor(SUMS + "position_count", at(3, -1)),
        f"tensor '{SUMS}position_count' has -1; it can be from 0 to 281474976710656",
    ),
    (
        tensor(SUMS + "position_count", at(3, 1 << 60)),
        "has 1152921504606846976; it can be from 0 to 281474976710656",
    ),
    (
        tensor(SUMS + "open_count@rows", at(-1, 257)),
        f"tensor '{SUMS}open_count@rows': indices from 0 to 256 are needed, ascending",
    ),
    (
        tensor(SUMS + "open_count@rows", at(1, 0)),
        f"tensor '{SUMS}open_count@rows': indices from 0 to 256 are needed, ascending",
    ),
    (
        tensor(SUMS + "open_count@rows", lambda a: a[1:]),
        f"tensor '{SUMS}open_count@rows': 10 indices are needed, one for each row of "
        f"'{SUMS}open_count'; found torch.int64 (9,)",
    ),
]


def test_what_is_said_and_what_is_there(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for change, words in SAID:
        written = valid("everything").copy()
        change(written)
        told = refused(tmp_path / "a.safetensors", written.bytes(), SchemaError)
        assert words in told, told
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 256 << 20


def test_what_is_no_file_of_a_geometry(tmp_path: Path) -> None:
    """Whatever else it is; and a pickle is never opened."""
    path = tmp_path / "a.safetensors"
    written = valid("everything")
    header, body = written.header()
    text = json.dumps(header).encode()
    moved = {name: dict(entry) for name, entry in header.items()}
    moved[SUMS + "square"]["data_offsets"] = moved[SUMS + "position_sum"]["data_offsets"]
    odd = {
        **{name: foreign(name) for name in FOREIGN if name != "weights"},
        "length": joined(text, body, 1 << 62),
        "no length": joined(text, body, 0),
        "overlap": joined(json.dumps(moved).encode(), body),
        "gap": joined(text, body + bytes(8)),
    }
    for name, data in odd.items():
        told = refused(path, data, FileFormatError)
        assert told.startswith(" is truncated, damaged, or no geometry file ("), (name, told)
    assert Marker.opened == 0
    told = refused(path, foreign("weights"), FileFormatError)
    assert told == " is a safetensors file, but not geomhooks'"
    with pytest.raises(FileFormatError, match="is no geometry file, but a folder or a device"):
        gh.load(tmp_path)


def test_what_is_told_that_is_not_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for changed, words in (
        ({"schema": 2}, "has schema 2; this version reads 1. Upgrade geomhooks"),
        (
            {"kind": "history"},
            "holds a history, not a geometry: read it with gh.History.load(path)",
        ),
        ({"notes": []}, "notes: a JSON object is needed, found []"),
        ({"notes": {"a": DEEP}}, "its JSON is nested deeper than 64 times"),
        ({"notes": {"a": "\ud800"}}, "surrogates not allowed"),
        ({"notes": {"a": 10**400}}, "a whole number in its JSON has 401 digits, over 300"),
    ):
        written = valid("attention").copy()
        written.document |= changed
        assert words in refused(path, written.bytes(), FileFormatError)
    header, body = valid("attention").header()
    told = header["__metadata__"]["geomhooks"]
    for text, words in (
        (told.replace('"sites": {', '"sites": {}, "sites": {', 1), "'sites' stands twice in an"),
        ("[1]", "its metadata are no JSON object, but a list"),
        ("[" * 100_000, "its JSON is nested deeper than 64 times"),
        ("{", "Expecting property name"),
    ):
        header["__metadata__"] = {"geomhooks": text}
        data = joined(json.dumps(header).encode(), body)
        assert words in refused(path, data, FileFormatError)


@pytest.mark.parametrize("name", ["others", "history", "dictionary"])
def test_numbers_that_are_not_those_that_were_written(tmp_path: Path, name: str) -> None:
    path, written = tmp_path / "a.safetensors", valid(name).copy()
    load = READERS.get(name, gh.load)
    path.write_bytes(written.bytes())
    load(path)  # of a version that wrote no checksum
    written.document["checksum"] = written.checksum()
    path.write_bytes(written.bytes())
    load(path)
    data = bytearray(written.bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"a\.safetensors is damaged: its numbers are not "):
        load(path)


def test_every_kind_of_tensor_has_a_checksum(tmp_path: Path) -> None:
    tensors = {
        "b": torch.zeros(2, 0),
        "a": torch.tensor(True),
        "c": torch.arange(6).view(2, 3).T,
        "\u00e9": torch.ones(3, dtype=torch.bfloat16),
    }
    held = b"\x01" + np.array([0, 3, 1, 4, 2, 5]).tobytes() + b"\x80\x3f" * 3
    assert checksum_of(tensors) == f"{zlib.crc32(held):08x}"


def test_nothing_was_counted(tmp_path: Path) -> None:
    path, written = tmp_path / "a.safetensors", valid("attention").copy()
    tensor("stream/transformer/census/value", np.zeros_like)(written)
    assert refused(path, written.bytes(), FileFormatError) == "no token has been counted in it"
    written = valid("attention").copy()
    for name in list(written.tensors):
        if name.endswith("/forwards/value"):
            tensor(name, np.zeros_like)(written)
    path.write_bytes(written.bytes())
    geometry = gh.load(path)
    assert geometry.sites == []
    assert geometry.scalars() == {}
    with pytest.raises(gh.errors.SiteError, match="none has counted anything"):
        geometry.stack("attention.pairs")


def test_what_cannot_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(valid("attention").bytes())
    geometry = gh.load(path)
    for notes in ({"a": "\ud800"}, {"a": 10**400}, {1: 0, "1": 0}, {"a": DEEP}):
        with pytest.raises(SchemaError, match="have to be JSON that can be read"):
            geometry.save(path, notes)
    assert gh.load(path).scalars() == geometry.scalars()


def test_names_are_texts_wherever_they_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(hostile_file())
    geometry = gh.load(path)
    assert geometry.sites[0] == SCRIPT
    usual = tmp_path / "b.safetensors"
    usual.write_bytes(valid("everything").bytes())
    check_page(report_page(geometry), Page(report_page(gh.load(usual))))
    assert check_command(["merge", str(path), str(path), "-o", str(usual)], capsys) == 5
    assert check_command(["compare", str(path), str(path), "--no-page"], capsys) == 0
    assert check_command(["factors", str(path)], capsys) == 7


def test_all_that_is_said_of_a_site_is_looked_at() -> None:
    assert {str(field.type) for field in fields(Site)} == set(OF_TYPES)
    assert NEEDED == ["name", "width", "positions"]
