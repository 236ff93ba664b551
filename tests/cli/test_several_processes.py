"""Several processes share out a text, write one file, and go on when one of them was killed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import typer

import geomhooks as gh
from geomhooks.cli import failures
from geomhooks.distributed import Unreachable
from geomhooks.measuring import Ranks
from geomhooks.measuring.batches import batches
from geomhooks.measuring.errors import PeerError, TextError
from geomhooks.measuring.ranks import Elsewhere
from tests.cli.conftest import Outcome, passage
from tests.distributed.launch import finish, torchrun
from tests.measuring.test_batches import SOURCES, cut

LONG = ("--batch-size", 2, "--max-length", 24, "--contexts", 500)
OUT = "geometry.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts that take a while."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "a.txt").write_text(passage(50, seed=5))
    (folder / "b.txt").write_text(passage(70, seed=6))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine threads wait for each other longer than such small tensors take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measure(folder: Path, model: Path, *more: object, out: str = OUT) -> tuple[object, ...]:
    texts = ("--text", folder / "a.txt", folder / "b.txt")
    return ("measure", model, *texts, *LONG, "--out", folder / out, *more)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The processes that torchrun has started, by rank."""
    children = psutil.Process(process.pid).children()
    return {int(child.environ()["RANK"]): child for child in children}


def wait_for_checkpoints(process: subprocess.Popen[str], paths: list[Path], number: int) -> None:
    """Until each file has been written so many times."""
    seen: dict[Path, set[int]] = {path: set() for path in paths}
    deadline = time.monotonic() + 120
    while any(len(times) < number for times in seen.values()):
        assert process.poll() is None, f"the run ended too soon: {process.communicate()}"
        assert time.monotonic() < deadline, "no checkpoint was written"
        for path, times in seen.items():
            if path.exists():
                times.add(path.stat().st_mtime_ns)
        time.sleep(0.002)


def same(one: gh.Geometry, other: gh.Geometry) -> None:
    """The same contexts, and the same numbers but for what float32 forwards differ."""
    assert one.scalars() == pytest.approx(other.scalars(), rel=1e-6, abs=1e-6, nan_ok=True)
    assert one.sites == other.sites
    for site in one.sites:
        assert torch.equal(one[site].pos_ctx.context_id, other[site].pos_ctx.context_id)
        for part in ("pos", "ctx", "mean"):
            close = (one[site].pos_ctx[part], other[site].pos_ctx[part])
            torch.testing.assert_close(*close, rtol=1e-5, atol=1e-6, equal_nan=True)
    for key in ("contexts", "tokens", "total", "finished"):
        assert one.notes["progress"][key] == other.notes["progress"][key]
    assert one.notes["settings"] == other.notes["settings"]


@pytest.mark.usefixtures("one_thread")
def test_killed_and_started_again(folder: Path, bert: Path, cli: Callable[..., Outcome]) -> None:
    every = ("--checkpoint-every", 0.02)
    process = torchrun(2, "-m", "geomhooks", *measure(folder, bert, *every))
    checkpoints = [folder / f"{OUT}.checkpoint-{rank}-of-2" for rank in (0, 1)]
    wait_for_checkpoints(process, checkpoints, 3)
    ranks_of(process)[1].kill()
    code, out, err = finish(process)
    assert code == 1
    assert out == ""
    assert "SIGKILL" in err
    assert not (folder / OUT).exists()
    read = [gh.load(path).notes["progress"] for path in checkpoints]
    assert all(progress["contexts"] > 0 for progress in read)
    assert not read[1]["finished"]

    # Neither one process nor a run from the beginning takes it over by accident.
    alone = cli(*measure(folder, bert, "--resume"))
    assert alone.code == 7
    assert "is of a run on another number of processes than 1" in alone.err
    alone = cli(*measure(folder, bert))
    assert alone.code == 5
    assert "checkpoint-0-of-2 holds an interrupted run" in alone.err

    code, out, err = finish(torchrun(2, "-m", "geomhooks", *measure(folder, bert, "--resume")))
    assert code == 0, err
    assert out.count("wrote") == out.count("radius") == 1
    assert out.count(f"figures and what stands out: {folder / 'geometry.html'} (") == 1
    assert gh.load(folder / OUT).notes["labels"].keys() == {
        str(i) for i in gh.load(folder / OUT)["encoder.layer.0"].pos_ctx.context_id.tolist()
    }, "those that were read by either process, and before the crash"
    assert err.count("going on after") == 1
    assert f"going on after {sum(p['tokens'] for p in read):,} tokens" in err
    assert not list(folder.glob("*.checkpoint*"))
    assert not list(folder.glob(".*.part"))

    whole = cli(*measure(folder, bert, out="whole.safetensors"))
    assert whole.code == 0
    same(gh.load(folder / OUT), gh.load(folder / "whole.safetensors"))
    again = cli(*measure(folder, bert, "--resume"))
    assert again.code == 0
    assert "finished already" in " ".join(again.err.split())  # a long path breaks the line


def test_an_error_of_all_processes_is_told_once(folder: Path, bert: Path) -> None:
    process = torchrun(2, "-m", "geomhooks", "measure", bert, "--text", folder / "none.txt")
    code, out, err = finish(process)
    assert code == 1
    assert out == ""
    assert err.count("geomhooks: cannot read the text") == 1


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_every_document_is_read_by_one_process(number: int) -> None:
    def read(rank: int, of: int) -> list[int]:
        stream = batches(SOURCES, cut, 4, share=(rank, of))
        return [int(context) for batch in stream for context in batch.contexts]

    shares = [read(rank, number) for rank in range(number)]
    assert sorted(context for share in shares for context in share) == sorted(read(0, 1))
    assert min(map(len, shares)) > 0


@pytest.mark.parametrize("number", [2, 3])
def test_a_share_is_read_on_from_any_batch(number: int) -> None:
    read = list(batches(SOURCES, cut, 4, share=(1, number)))
    for index, batch in enumerate(read):
        rest = list(batches(SOURCES, cut, 4, cursor=batch.after, share=(1, number)))
        expected = [other.contexts.tolist() for other in read[index + 1 :]]
        assert [other.contexts.tolist() for other in rest] == expected


def test_who_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.started() == Ranks(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a scheduler, say, and of no torchrun
    assert Ranks.started() == Ranks(0, 1, 0)
    more = {"RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    assert Ranks.started() == Ranks(3, 4, 1)


def test_devices_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: cuda)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    ranks = [Ranks(rank, 4, rank) for rank in range(4)]
    assert [r.device("auto") for r in ranks] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [r.device("cuda") for r in ranks] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [r.device("cuda:1") for r in ranks] == ["cuda:1"] * 4
    assert {r.device("cpu") for r in ranks} == {"cpu"}
    assert Ranks().device("auto") == "auto"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert ranks[1].device("auto") == "cpu"


def test_the_process_that_tells_of_a_failure_ends_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or torchrun, which ends all processes once one has, might end it before it has told."""

    def fail(error: Exception) -> None:
        raise error

    waited: list[float] = []
    monkeypatch.setattr(failures.time, "sleep", waited.append)
    wrong, ended = typer.BadParameter("wrong"), PeerError("ended")
    for rank, error, code, silent in (
        ("1", Elsewhere(), 1, True), ("0", Elsewhere(), 1, True), ("1", wrong, 2, True),
        ("0", wrong, 2, False), ("1", ended, 1, True), ("1", TextError("none"), 4, False),
        ("1", KeyboardInterrupt(), 130, True),
    ):  # fmt: skip
        who = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
        for name, value in who.items():
            monkeypatch.setenv(name, value)
        waited.clear()
        assert failures.guarded(lambda error=error: fail(error)) == code  # type: ignore[misc]
        assert (capsys.readouterr().err == "") == silent
        assert waited == ([failures.TELLING] if silent and code != 130 else [])


def test_a_failure_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that fail the first tells; who is well stops as well."""
    ranks = Ranks(1, 3)

    def fail() -> None:
        raise ValueError("mine")

    monkeypatch.setattr(Ranks, "gather", lambda self, thing: [False, thing, True])
    with pytest.raises(ValueError, match="mine"):
        ranks.together(fail)
    with pytest.raises(Elsewhere):
        ranks.together(lambda: 3)
    monkeypatch.setattr(Ranks, "gather", lambda self, thing: [True, thing, False])
    with pytest.raises(Elsewhere):
        ranks.together(fail)
    monkeypatch.setattr(Ranks, "gather", lambda self, thing: [False, thing, False])
    assert ranks.together(lambda: 3) == 3
    with pytest.raises(PeerError, match="--resume goes on"), ranks.reaching():
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(PeerError, match="--resume goes on"), ranks.reaching():
        raise Unreachable("rank 1 of 3 could not reach another")
    with pytest.raises(gh.errors.WatchError, match="ours"), ranks.reaching():
        raise gh.errors.WatchError("ours")
