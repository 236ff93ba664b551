"""geomhooks beside what people use today: the same job, the same text, the same answer.

What the job is says ``job.py``, who does it ``rivals.py`` and ``collectors.py``. For each model:

- *memory and agreement*: each peer does the job in a fresh process, whose peak of resident memory
  is read after 16, 64 and 256 contexts, less that of a process which runs bare (on Linux, whose
  kernel counts it); and the seconds that the answer takes in the end. What it finds is compared
  with the definitions in float64, over the same hidden states. The run fails where a peer is off by
  more than 1e-3, or geomhooks by 1e-5.
- *time*: forwards of all peers in shuffled order, round after round in one process, each right
  after a bare forward; the median over rounds of the ratio, with quartiles. Below a few per cent
  this drowns in noise, so what a peer takes in hooks and after the forward, where a clock can be
  put around it, is given as a share of the bare forward too.

A peer that is not installed, or fails, has the reason in its row. What other programs do at the
same time changes no peak of memory, but every time: the two can be measured one after the other,
into the same file.

    python benchmarks/peers.py [--models NAME...] [--peers NAME...] [--contexts 16 64 256]
                               [--rounds 5] [--only memory|time] [--quick]
    python benchmarks/peers.py --table

writes ``benchmarks/results/peers-cpu.json`` (or ``--out``); ``--table`` prints it as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from collectors import PEERS
from environment import environment
from job import Numbers, dense, errors
from memory import forget_peak, give_back_freed, peak_bytes, resident_bytes
from peers_table import show_row, table
from rivals import Bare, Peer
from subjects import SUBJECTS, load, save, twin
from timing import quartiles, timed
from torch import Tensor

BATCH = 8
CHECKED = 64  # contexts whose numbers are compared, at most: dense ones hold all their states
ALLOWED = {"geomhooks": 1e-5}
ALLOWED_OTHERWISE = 1e-3
# From this size on glibc gives freed memory back. By default the limit grows as a program runs, and
# what is small and kept between large temporaries then holds hundreds of MiB that nobody uses.
MAPPED = 1 << 20
FOUND = "found.pt"  # in the model's folder, what the last fresh process found
RESULTS = Path(__file__).parent / "results" / "peers-cpu.json"


class Reference(Bare):
    """Keeps every hidden state."""

    def set_up(self) -> None:
        """Hook."""
        self.states: list[list[Tensor]] = [[] for _ in range(self.sites)]
        self.hook_sites(lambda site, h, _: self.states[site].append(h.clone()))

    def numbers(self) -> Numbers:
        """By the definitions."""
        return dense(lambda site: torch.cat(self.states[site]), self.sites)


def main() -> None:
    """Compare all peers on all models."""
    arguments = parse()
    if arguments.table:
        print(table(json.loads(arguments.out.read_text())))
        return
    if arguments.alone:
        print(json.dumps(alone(arguments.alone, arguments.folder, arguments.contexts)))
        return
    rows, wrong = earlier(arguments), []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            save(name, max(arguments.contexts), Path(folder))
            found = compare(Path(folder), arguments)
        for row in found:
            key = name, row["peer"]
            rows[key] = {"model": name, **rows.get(key, {}), **row}
            wrong += complaints(rows[key])
            print(show_row(rows[key]), flush=True)
        write(list(rows.values()), arguments)
    print(f"written to {arguments.out}")
    if wrong:
        raise SystemExit("\n".join(wrong))


def earlier(arguments: argparse.Namespace) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the file, where one of memory and time is measured and the other is there."""
    if arguments.only is None or not arguments.out.exists():
        return {}
    result = json.loads(arguments.out.read_text())
    if result["contexts"] != arguments.contexts:
        raise SystemExit(f"{arguments.out} is of {result['contexts']} contexts: give the same")
    return {(row["model"], row["peer"]): row for row in result["rows"]}


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """What has been measured so far."""
    settings = {"batch": BATCH, "rounds": arguments.rounds, "contexts": arguments.contexts}
    result = {"environment": environment(PACKAGES), **settings, "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


PACKAGES = ("geomhooks", "torch", "numba", "numpy", "transformers", "transformer-lens", "nnsight")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = [name for name in SUBJECTS if name != "tiny"]
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=known)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--contexts", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["memory", "time"], help="and keep the rest of the file")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the last result as Markdown")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.contexts, arguments.rounds = ["tiny"], [16], 1
    arguments.contexts.sort()
    if any(number < BATCH or number % BATCH for number in arguments.contexts):
        parser.error(f"--contexts {arguments.contexts}: multiples of {BATCH} are needed")
    return arguments


@torch.no_grad()
def compare(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each peer."""
    model, ids = load(folder)
    rows = {name: {"peer": name} for name in arguments.peers}
    if arguments.only != "time":
        measure_memory(model, ids, folder, arguments.contexts, rows)
    if arguments.only == "memory":
        return list(rows.values())
    ready: list[tuple[dict[str, Any], Peer]] = []
    for name, row in rows.items():
        if "failed" in row:
            continue
        with noting_failure(row):
            PEERS[name].prepare(model)
            ready.append((row, PEERS[name](twin(model), BATCH * (1 + arguments.rounds), folder)))
    measure_time(model, ids[:BATCH], ready, arguments.rounds)
    return list(rows.values())


def measure_memory(
    model: Any, ids: Tensor, folder: Path, contexts: list[int], rows: dict[str, dict[str, Any]]
) -> None:
    """Fill in what peers hold, and how far their answers are from the definitions."""
    reference = Reference(twin(model), len(ids), folder)
    for batch in ids[: checked(contexts)].split(BATCH):
        reference.forward(batch)
    expected = reference.numbers()
    del reference
    base = in_fresh_process(Bare.name, folder, contexts)
    for name, row in rows.items():
        with noting_failure(row):
            found = in_fresh_process(name, folder, contexts)
            row |= {"errors": errors(Numbers(**torch.load(folder / FOUND)), expected)}
            row |= memory(found, base)


@contextmanager
def noting_failure(row: dict[str, Any]) -> Iterator[None]:
    """Whatever goes wrong in other people's tools is the finding."""
    try:
        yield
    except Exception as error:
        row["failed"] = str(error) or type(error).__name__


def checked(contexts: list[int]) -> int:
    """At which of the numbers of contexts the answers are compared."""
    return max([n for n in contexts if n <= CHECKED], default=min(contexts))


def memory(found: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process held above one that runs bare, at each number of contexts."""
    marks = [
        {
            "contexts": mine["contexts"],
            "forwards_mib": mib(mine["forwards"] - theirs["forwards"]),
            "whole_mib": mib(mine["whole"] - theirs["forwards"]),
            "finish_seconds": round(mine["seconds"], 4),
        }
        for mine, theirs in zip(found["marks"], base["marks"], strict=True)
    ]
    state = {} if found["state"] is None else {"state_mib": mib(found["state"])}
    return {"memory": marks, **state}


def in_fresh_process(peer: str, folder: Path, contexts: list[int]) -> dict[str, Any]:
    """What :func:`alone` says in a process of its own.

    Raises:
        RuntimeError: it failed; the message is the last line that it wrote.
    """
    command = [sys.executable, __file__, "--alone", peer, "--folder", str(folder), "--contexts"]
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MAPPED)}
    done = subprocess.run(
        [*command, *map(str, contexts)], capture_output=True, text=True, env=settings
    )
    if done.returncode:
        raise RuntimeError(
            (done.stderr.strip().splitlines() or [f"ended by {done.returncode}"])[-1]
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@torch.no_grad()
def alone(name: str, folder: Path, contexts: list[int]) -> dict[str, Any]:
    """How much one peer lets memory grow, and how long its answer takes, at some contexts each.

    Counted from when the model has run once and the peer has done the job on a tiny model, so that
    all code is loaded: bytes above that at the peak of the forwards, and with the answer taken as
    well. The answer itself goes to a file, where it is to be compared.
    """
    model, ids = load(folder)
    kind = PEERS.get(name, Bare)
    Bare(twin(model), 0, folder).forward(ids[:BATCH])
    kind.prepare(model)
    rehearse(kind)
    start = resident_bytes()
    forget_peak()
    peer = kind(twin(model), max(contexts), folder)
    forwards = whole = 0
    marks = []
    for done in range(BATCH, max(contexts) + 1, BATCH):
        peer.forward(ids[done - BATCH : done])
        if done not in contexts:
            continue
        forwards, seconds = max(forwards, peak_bytes() - start), 0.0
        forget_peak()
        if name in PEERS:
            before = time.perf_counter()
            answer = peer.numbers()
            seconds = time.perf_counter() - before
            whole = max(forwards, whole, peak_bytes() - start)
            if done == checked(contexts):
                torch.save(vars(answer), folder / FOUND)
            del answer
            give_back_freed()
            forget_peak()
        marks.append({"contexts": done, "forwards": forwards, "whole": whole, "seconds": seconds})
    return {"marks": marks, "state": peer.state_bytes}


def rehearse(kind: type[Peer]) -> None:
    """Do the whole job on a tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        save("tiny", BATCH, Path(folder))
        model, ids = load(Path(folder))
        kind.prepare(model)
        peer = kind(model, BATCH, Path(folder))
        peer.forward(ids)
        if kind is not Bare:
            peer.numbers()


def measure_time(
    model: Any, ids: Tensor, ready: list[tuple[dict[str, Any], Peer]], rounds: int
) -> None:
    """Fill in how long a forward takes beside a bare one, and the whole job."""
    bare = Bare(twin(model), 0, Path())
    order = [peer for _, peer in ready]
    for peer in [bare, *order]:
        peer.forward(ids)  # the first is slower than the others
    seconds: list[float] = []
    ratios: dict[str, list[float]] = {peer.name: [] for peer in order}
    outside: dict[str, list[float]] = {peer.name: [] for peer in order}
    for number in range(rounds):
        random.Random(number).shuffle(order)
        for peer in order:
            base, before = timed(bare.forward, {"ids": ids}), peer.clock.seconds
            ratios[peer.name].append(timed(peer.forward, {"ids": ids}) / base)
            outside[peer.name].append((peer.clock.seconds - before) / base)
            seconds.append(base)
    for row, peer in ready:
        low, median, high = quartiles(ratios[peer.name])
        base = statistics.median(seconds)
        row |= {"bare_seconds": round(base, 4), "ratio": round(median, 4)}
        row["quartiles"] = [round(low, 4), round(high, 4)]
        row["outside"] = round(statistics.median(outside[peer.name]), 4)


def mib(number: float) -> float:
    """Bytes as MiB."""
    return round(number / 2**20, 1)


def complaints(row: dict[str, Any]) -> list[str]:
    """Quantities that are further off than is allowed."""
    allowed = ALLOWED.get(row["peer"], ALLOWED_OTHERWISE)
    return [
        f"{row['model']}, {row['peer']}: {name} is off by {error:.1e}, more than {allowed:.0e}"
        for name, error in row.get("errors", {}).items()
        if not error <= allowed
    ]


if __name__ == "__main__":
    main()
