"""Every failure: its exit code, one line on stderr, and no file left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from geomhooks.anatomy.finding import KNOWN
from tests.cli.conftest import Outcome, finish, passage, start

OOM = """
import resource, sys
import torch, transformers
from transformers import AutoModel, AutoTokenizer
from geomhooks.cli.commands import run
from geomhooks.native import prepare
prepare([torch.zeros(1)])  # compiling has memory enough
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
sys.exit(run(sys.argv[1:]))
"""


def fails(result: Outcome, code: int, *parts: str) -> None:
    assert result.code == code, result
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("geomhooks: ")
    assert result.out == ""
    for part in parts:
        assert part in result.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--batch-size", "0"], ["--batch-size", "'0'"]),
        (["--batch-size", "many"], ["--batch-size", "many"]),
        (["--dtype", "int8"], ["--dtype", "bfloat16"]),
        (["--dtype", "int8", "--out", "x.safetensors"], ["--dtype", "'int8'", "bfloat16"]),
        (["--documents", "pages"], ["--documents", "paragraphs"]),
        (["--statistics", "pos_ctx,spheer"], ["spheer", "pos_ctx", "sphere"]),
        (["--statistics", ","], ["--statistics"]),
        (["--statistics", "sphere,pos_ctx,sphere"], ["--statistics", "sphere is named twice"]),
        (["--statistics", "group_means"], ["group_means", "--text", "watch.tokens(groups=...)"]),
        (["--statistics", "attention"], ["attention", "first pass", "gh.Attention(geometry)"]),
        (["--sites", "encoder.layer.*.atention"], ["atention", "attention"]),
        (["--sites", ""], ["--sites"]),
        (["--colour", "red"], ["--colour"]),
        (["--max-length", "0"], ["--max-length"]),
        (["more"], ["more"]),
    ],
)
def test_wrong_options(cli, bert: Path, text: Path, arguments: list[str], parts: list[str]):
    if arguments == ["more"]:
        result = cli("measure", bert, "more", "--text", text)
    else:
        result = cli("measure", bert, "--text", text, *arguments)
    fails(result, 2, *parts)
    assert "found '--" not in result.err
    assert [path.name for path in Path().iterdir()] == ["text.txt"]


def test_a_family_whose_parts_are_not_known(
    cli, bert: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(KNOWN, "bert")
    result = cli("measure", bert, "--text", text, "--statistics", "updates")
    fails(result, 2, "BertModel is of the family 'bert'; known are")


def test_missing_arguments(cli, bert: Path):
    fails(cli("measure"), 2, "MODEL")
    fails(cli("measure", bert), 2, "--text")
    fails(cli("masure"), 2, "masure")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "nobody/no-such-model",
            ["no such model", "nobody/no-such-model", "or give the folder of"],
        ),
        ("./no-such-folder", ["no such model", "no folder ./no-such-folder"]),
        ("/no/such/folder", ["no such model", "no folder /no/such/folder"]),
        (".", ["cannot load a model from the folder ."]),
    ],
)
def test_no_such_model(cli, text: Path, name: str, parts: list[str]):
    fails(cli("measure", name, "--text", text), 3, *parts)


def test_model_that_cannot_read(cli, bert: Path, gpt2: Path, text: Path, tmp_path: Path):
    from transformers import AutoModel

    AutoModel.from_pretrained(bert).save_pretrained(tmp_path / "silent")
    fails(cli("measure", tmp_path / "silent", "--text", text), 3, "no tokenizer")
    fails(cli("measure", bert, "--text", text, "--max-length", 65), 2, "65", "64 positions")
    fails(cli("measure", bert, "--text", text, "--max-length", 2), 2, "2 special tokens")
    fails(cli("measure", bert, "--text", text, "--device", "cuda:99"), 2, "cuda:99")
    fails(cli("measure", bert, "--text", text, "--device", "toaster"), 2, "toaster")


def test_model_that_fails_on_the_text(cli, bert: Path, text: Path, tmp_path: Path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    small = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(small).save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "small")
    fails(cli("measure", tmp_path / "small", "--text", text), 3, "failed at 8 contexts", "index")
    assert not Path("geometry.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["none.txt", "No such file"]),
        (b"", ["no text in text.txt"]),
        (b" \n\n\t\n", ["no text in text.txt"]),
        (b"fine\n\xff\n", ["text.txt", "0xff", "line 2", "iconv"]),
        (b"\x08\0\0\0{}\xff", ["text.txt is no text, but a binary file"]),
        ("größer".encode("utf-16"), ["text.txt", "iconv -f UTF-16 -t"]),
        ("größer".encode("latin-1"), ["text.txt", "no UTF-8"]),
    ],
)
def test_texts_that_cannot_be_read(cli, bert: Path, content: bytes | None, parts: list[str]):
    if content is None:
        fails(cli("measure", bert, "--text", "none.txt"), 4, *parts)
        return
    Path("text.txt").write_bytes(content)
    fails(cli("measure", bert, "--text", "text.txt"), 4, *parts)
    assert [path.name for path in Path().iterdir()] == ["text.txt"]


def test_json_without_the_field(cli, bert: Path):
    Path("text.jsonl").write_text('{"body": "word1"}\n')
    fails(cli("measure", bert, "--text", "text.jsonl"), 4, "'text'", "body", "--field")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a model is loaded."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("geomhooks.measuring.load_model", load)


@pytest.mark.usefixtures("no_model")
def test_output_is_checked_before_the_model_is_loaded(cli, bert: Path, text: Path):
    measure = ("measure", bert, "--text", text, "--out")
    fails(cli(*measure, "no/folder/out.safetensors"), 5, "no folder no/folder")
    fails(cli(*measure, "."), 5, "it is a folder")
    if sys.platform == "linux":
        fails(cli(*measure, "/proc/out.safetensors"), 5, "cannot write to /proc")
    Path("old.safetensors").write_text("mine")
    fails(cli(*measure, "old.safetensors"), 5, "old.safetensors exists", "--overwrite")
    assert Path("old.safetensors").read_text() == "mine"
    Path("new.safetensors.checkpoint").write_text("mine")
    fails(cli(*measure, "new.safetensors"), 5, "interrupted run", "--resume")
    fails(cli("demo", "--out", "no/folder/out.safetensors"), 5)


@pytest.mark.usefixtures("no_model")
def test_text_is_checked_before_the_model_is_loaded(cli, bert: Path, text: Path):
    fails(cli("measure", bert, "--text", text, "none.txt"), 4, "none.txt")


def test_disk_full(cli, bert: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("geomhooks.Geometry.save", full)
    fails(cli("measure", bert, "--text", text), 5, "No space left on device")


def test_merge(cli, bert: Path, gpt2: Path, text: Path):
    assert cli("measure", bert, "--text", text, "--out", "a.safetensors").code == 0
    assert cli("measure", gpt2, "--text", text, "--out", "b.safetensors").code == 0
    whole = Path("a.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("notes.txt").write_text("not a geometry")
    before = sorted(Path().iterdir())
    for files, parts in {
        ("a.safetensors", "cut.safetensors"): ["cut.safetensors"],
        ("a.safetensors", "notes.txt"): ["notes.txt"],
        ("a.safetensors", "none.safetensors"): ["no such file", "none.safetensors"],
        ("a.safetensors", "b.safetensors"): ["model"],
        ("a.safetensors", "a.safetensors"): ["shard"],
    }.items():
        fails(cli("merge", *files, "-o", "c.safetensors"), 7, *parts)
    fails(cli("merge", "a.safetensors", "-o", "c.safetensors"), 2, "two or more")
    fails(cli("merge", "a.safetensors", "b.safetensors"), 2, "--out")
    fails(cli("merge", "a.safetensors", "b.safetensors", "-o", "no/c.safetensors"), 5)
    fails(cli("merge", "a.safetensors", "b.safetensors", "-o", "b.safetensors"), 5, "--overwrite")
    assert sorted(Path().iterdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory as Linux has it")
def test_out_of_memory(bert: Path, tmp_path: Path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    wide = BertConfig(
        vocab_size=64,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=1 << 17,
        max_position_embeddings=64,
    )
    BertModel(wide).save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "wide")
    (tmp_path / "text.txt").write_text(passage(64, longest=60))
    process = start(
        *("measure", "wide", "--text", "text.txt", "--batch-size", 64, "--contexts", 64),
        folder=tmp_path,
        program=OOM,
    )
    fails(finish(process), 6, "out of memory on cpu", "64 contexts of", "try --batch-size 32")
    assert not (tmp_path / "geometry.safetensors").exists()


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_packages_of_the_command_line(tmp_path: Path, missing: str):
    program = (
        f"import sys; sys.modules[{missing!r}] = None; "
        "from geomhooks.cli import main; sys.exit(main())"
    )
    result = finish(start("demo", folder=tmp_path, program=program))
    fails(result, 1, f"needs {missing}", "pip install 'geomhooks[cli]'")


def test_without_transformers(cli: Callable[..., Outcome], text: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    fails(cli("measure", "any", "--text", text), 1, "pip install 'geomhooks[transformers]'")


def test_demo_without_its_model(cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("geomhooks.cli.demo.find_spec", lambda name: None)
    fails(cli("demo"), 1, "pip install 'geomhooks[demo]'")
