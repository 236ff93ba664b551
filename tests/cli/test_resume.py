"""A run that is interrupted, or killed, and goes on, ends with the numbers of one that was not."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import geomhooks as gh
from geomhooks.cli.commands import run
from tests.cli.conftest import finish, passage, start
from tests.storage.written import Written

LONG = ("--batch-size", 2, "--max-length", 24, "--contexts", 500)


@pytest.fixture(scope="module")
def folder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text that takes a while, and what an uninterrupted run makes of it."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "a.txt").write_text(passage(80, seed=5))
    (folder / "b.txt").write_text(passage(120, seed=6))
    assert run([str(part) for part in command(folder, bert, "whole.safetensors")]) == 0
    return folder


def command(folder: Path, bert: Path, out: str, *more: object) -> tuple[object, ...]:
    texts = ("--text", folder / "a.txt", folder / "b.txt")
    return ("measure", bert, *texts, *LONG, "--out", folder / out, *more)


def launch(folder: Path, bert: Path, out: str, *more: object) -> subprocess.Popen[str]:
    every = ("--checkpoint-every", 0.05)
    return start(*command(folder, bert, out, *every, *more), folder=folder)


def wait_for_checkpoints(process: subprocess.Popen[str], path: Path, number: int) -> None:
    """Until the file has been written so many times."""
    seen = set()
    deadline = time.monotonic() + 60
    while len(seen) < number:
        assert process.poll() is None, f"the run ended too soon: {process.communicate()}"
        assert time.monotonic() < deadline, "no checkpoint was written"
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.002)


def same(folder: Path, out: str) -> None:
    """The same contexts and counts, and the same numbers but for what float32 forwards differ."""
    one, other = gh.load(folder / out), gh.load(folder / "whole.safetensors")
    mine, theirs = one.state_dict()["tensors"], other.state_dict()["tensors"]
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, theirs[name]), name
    assert one.scalars() == pytest.approx(other.scalars(), rel=1e-6, abs=1e-6, nan_ok=True)
    assert one.sites == other.sites
    for site in one.sites:
        for part in ("pos", "ctx", "mean"):
            close = (one[site].pos_ctx[part], other[site].pos_ctx[part])
            torch.testing.assert_close(*close, rtol=1e-5, atol=1e-6, equal_nan=True)
    for key in ("contexts", "tokens", "finished", "cursor"):
        assert one.notes["progress"][key] == other.notes["progress"][key]
    assert one.notes["settings"] == other.notes["settings"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["sigint", "sigterm"]
)
def test_interrupted(cli, folder: Path, bert: Path, number: signal.Signals, code: int):
    out = f"{number.name}.safetensors"
    process = launch(folder, bert, out)
    wait_for_checkpoints(process, folder / f"{out}.checkpoint", 2)
    process.send_signal(number)
    result = finish(process)
    assert result.code == code
    assert result.err.startswith("geomhooks: stopped after ")
    assert "--resume" in result.err
    assert result.err.count("\n") == 1
    assert not (folder / out).exists()
    saved = gh.load(folder / f"{out}.checkpoint").notes["progress"]
    assert 0 < saved["done"] < saved["total"]
    result = cli(*command(folder, bert, out, "--resume"))
    assert result.code == 0, result.err
    assert f"going on after {saved['tokens']:,} tokens" in result.err
    same(folder, out)
    assert not (folder / f"{out}.checkpoint").exists()


def test_killed_again_and_again(cli, folder: Path, bert: Path):
    out = "killed.safetensors"
    for _ in range(2):
        process = launch(folder, bert, out, "--resume")
        wait_for_checkpoints(process, folder / f"{out}.checkpoint", 3)
        process.kill()
        assert finish(process).code == -signal.SIGKILL
    result = cli(*command(folder, bert, out, "--resume"))
    assert result.code == 0, result.err
    same(folder, out)
    assert not list(folder.glob(".killed*"))


def test_interrupted_before_anything_was_read(folder: Path, bert: Path):
    program = """
import signal, sys
from geomhooks import measuring
from geomhooks.cli.commands import run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
measuring.load_model = lambda *_, **__: signal.raise_signal(signal.SIGINT)
sys.exit(run(sys.argv[1:]))
"""
    arguments = ("measure", bert, "--text", "a.txt", "--out", "never.safetensors")
    result = finish(start(*arguments, folder=folder, program=program))
    assert result == (130, "", "geomhooks: interrupted\n")
    assert not list(folder.glob("never*"))


@pytest.fixture
def stopped(cli, bert: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """A run that was interrupted after its first batch; returns its command."""
    command = ("measure", bert, "--text", text, "--batch-size", 4, "--max-length", 20)
    with monkeypatch.context() as patch:
        patch.setattr("geomhooks.cli.reading.Interrupts", Impatient)
        assert cli(*command).code == 130
    assert Path("geometry.safetensors.checkpoint").exists()
    return command


class Impatient:
    """Ctrl-C from the start."""

    signal = signal.SIGINT

    def __enter__(self) -> Impatient:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (["--batch-size", "5"], "batch_size was 4, now 5"),
        (["--max-length", "21"], "max_length was 20, now 21"),
        (["--sites", "encoder.layer.0"], "sites was blocks, now encoder.layer.0"),
        (["--statistics", "sphere"], "statistics was pos_ctx,sphere, now sphere"),
        (["--contexts", "7"], "contexts was 4096, now 7"),
        (["--dtype", "bfloat16"], "dtype was auto, now bfloat16"),
        (["--documents", "lines"], "text text.txt has changed, or is cut into other documents"),
        (["--text", "other.txt"], "text was text.txt, now text.txt, other.txt"),
    ],
)
def test_other_arguments_are_refused(cli, stopped, change: list[str], part: str):
    Path("other.txt").write_text("word1")
    before = Path("geometry.safetensors.checkpoint").read_bytes()
    result = cli(*stopped, "--resume", *change)
    assert result.code == 7
    assert part in result.err
    assert result.err.count("\n") == 1
    assert Path("geometry.safetensors.checkpoint").read_bytes() == before


def test_another_model_and_a_changed_text_are_refused(cli, stopped, gpt2: Path, text: Path):
    result = cli("measure", gpt2, *stopped[2:], "--resume")
    assert result.code == 7
    assert "model was" in result.err
    text.write_text(text.read_text().replace("word1", "word2"))
    result = cli(*stopped, "--resume")
    assert result.code == 7
    assert "text text.txt has changed" in result.err


def test_a_damaged_checkpoint_is_refused(cli, stopped):
    path = Path("geometry.safetensors.checkpoint")
    whole = path.read_bytes()
    odd = {"truncated": whole[:-100]}
    for words, keys, value in (
        ("notes.progress.cursor: a list of 5 is needed, found [0]", ("progress", "cursor"), [0]),
        ("notes.settings.text: a list is needed, found 5", ("settings", "text"), 5),
    ):
        written = Written.of(whole)
        written.document["notes"][keys[0]][keys[1]] = value
        odd[words] = written.bytes()
    for words, data in odd.items():
        path.write_bytes(data)
        result = cli(*stopped, "--resume")
        assert result.code == 7
        assert "geometry.safetensors.checkpoint" in result.err
        assert words in result.err
    assert cli(*stopped, "--overwrite").code == 0
    assert not path.exists()


def test_resume_after_the_last_batch(cli, bert: Path, monkeypatch: pytest.MonkeyPatch):
    Path("short.txt").write_text(passage(3, longest=10))
    command = ("measure", bert, "--text", "short.txt")
    with monkeypatch.context() as patch:
        patch.setattr("geomhooks.cli.reading.Interrupts", Impatient)
        assert cli(*command).code == 130
    result = cli(*command, "--resume")
    assert result.code == 0, result.err
    assert cli(*command, "--out", "whole.safetensors").code == 0
    same(Path(), "geometry.safetensors")


def test_resume_where_nothing_is_to_be_resumed(cli, bert: Path, text: Path):
    command = ("measure", bert, "--text", text, "--resume")
    assert cli(*command).code == 0
    before = Path("geometry.safetensors").read_bytes()
    result = cli(*command)
    assert result.code == 0
    assert "finished already" in result.err
    assert "encoder.layer.1" in result.out
    assert Path("geometry.safetensors").read_bytes() == before
    assert cli(*command, "--batch-size", 3).code == 7
