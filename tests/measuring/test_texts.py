"""Text files: documents, places, and what can be wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomhooks.measuring import texts
from geomhooks.measuring.errors import TextError
from geomhooks.measuring.texts import DOCUMENTS, Passages, Place, TextFile


@pytest.fixture
def write(tmp_path: Path):
    def write(content: str | bytes, name: str = "text.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def read(file: TextFile) -> list[str]:
    return [document.text for document in file.documents()]


def test_paragraphs_lines_and_files(write):
    path = write("\n\none\ntwo\n\n \t\n  three\n\nfour")
    assert read(TextFile.open(path)) == ["one\ntwo", "  three", "four"]
    assert read(TextFile.open(path, "lines")) == ["one", "two", "  three", "four"]
    assert read(TextFile.open(path, "files")) == ["one\ntwo\n\n \t\n  three\n\nfour"]


def test_windows_line_ends_and_byte_order_mark(write):
    path = write(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert [text.splitlines() for text in read(TextFile.open(path))] == [["one", "two"], ["three"]]


def test_json_lines(write):
    rows = [{"text": "one\n\ntwo"}, {"text": " "}, {"text": "three", "more": 1}]
    path = write("\n".join(map(json.dumps, rows)) + "\n\n", "text.jsonl")
    assert read(TextFile.open(path)) == ["one\n\ntwo", "three"]
    path = write('{"body": "a \\ud800 b"}', "other.ndjson")
    assert read(TextFile.open(path, field="body")) == ["a � b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n\n{"text": 3}', r"line 3: no text in field 'text'; found: text"),
        ('{"body": "a"}', r"line 1: no text in field 'text'; found: body"),
        ("[1]", r"line 1: no text in field 'text'; found: list"),
        ('{"text": "a"}\n{"text": ', r"line 2: no JSON"),
    ],
)
def test_json_lines_that_hold_no_text(write, content: str, message: str):
    file = TextFile.open(write(content, "text.jsonl"))
    with pytest.raises(TextError, match=message):
        read(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntw\xff", r"byte 0xff in line 2 \(offset 6\)"),
        (b"one\n\xc3", r"byte 0xc3 in line 2 \(offset 4\)"),
        (b"\xff\xfeo\x00n\x00e\x00", r"byte 0xff in line 1 \(offset 0\)"),
        (b"\xe2\x28\xa1", r"byte 0xe2 in line 1"),
    ],
)
def test_no_utf8(write, content: bytes, message: str):
    with pytest.raises(TextError, match=message):
        TextFile.open(write(content))


@pytest.mark.parametrize("cut", range(1, 8))
def test_utf8_is_checked_across_blocks(write, monkeypatch: pytest.MonkeyPatch, cut: int):
    content = "aé€😀\n" * 5
    path = write(content)
    monkeypatch.setattr(texts, "PIECE", cut)
    assert TextFile.open(path).size == len(content.encode())
    path.write_bytes(content.encode() + b"\x80")
    with pytest.raises(TextError, match=r"byte 0x80 in line 6 \(offset 55\)"):
        TextFile.open(path)


@pytest.mark.parametrize("boundary", DOCUMENTS)
def test_a_long_document_is_read_in_pieces(write, monkeypatch: pytest.MonkeyPatch, boundary):
    content = "é€😀 " * 50 + "\n" + "x y\n" * 30
    path = write(content)
    monkeypatch.setattr(texts, "PIECE", 64)
    documents = read(TextFile.open(path, boundary))
    assert "".join("".join(documents).split()) == "".join(content.split())
    assert len(documents) >= 5
    assert all(len(text) <= 128 for text in documents)


@given(
    content=st.text(st.sampled_from("ab é😀\n\r\t"), max_size=60),
    boundary=st.sampled_from(DOCUMENTS),
    piece=st.integers(4, 40),
)
def test_reading_goes_on_from_any_document(tmp_path_factory, content, boundary, piece):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "PIECE", piece)
        file = TextFile.open(path, boundary)
        documents = list(file.documents())
        assert [d.start.document for d in documents] == list(range(len(documents)))
        assert all(d.text.strip() for d in documents)
        assert "".join("".join(d.text for d in documents).split()) == "".join(content.split())
        for number, document in enumerate(documents):
            assert list(file.documents(document.start)) == documents[number:]
            after = [d.text for d in file.documents(document.end)]
            assert after == [d.text for d in documents[number + 1 :]]


def test_digest_is_of_content_and_boundaries(write):
    first = TextFile.open(write("one\n\ntwo"))
    assert TextFile.open(write("one\n\ntwo", "copy.txt")).digest == first.digest
    assert TextFile.open(first.path, "lines").digest != first.digest
    assert TextFile.open(write("one\n\ntwo!")).digest != first.digest


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(TextError, match="No such file"):
        TextFile.open(tmp_path / "none.txt")
    with pytest.raises(TextError, match="is a folder"):
        TextFile.open(tmp_path)


def test_passages():
    passages = Passages("p", ("one", "three"))
    documents = list(passages.documents())
    assert passages.size == 8
    assert [d.text for d in documents] == ["one", "three"]
    assert list(passages.documents(documents[0].end)) == documents[1:]
    assert documents[1].start == Place(3, 1)
