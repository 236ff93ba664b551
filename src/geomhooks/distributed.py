"""The states of all ranks together: a copy is merged, each rank's own state stays as it is.

Every rank describes its state, and all gather the descriptions, so that each finds the same common
schema, or the same error. Then states are merged along a binary tree, the accumulators' own way
(tables, contexts and sums about different shifts are no plain sums), and rank 0 tells the result.
Whatever the number of ranks, a rank holds in the host's memory at most its copy, one message, and
the tables in it: about three times the state. On a device no more than a piece of a message.

Nothing here runs in a hook. An error on one rank becomes an error on all, never a wait without end;
a rank that does not come is waited for as long as the process group was told to.

A collective is given integers and bytes, of which there is at least one, on the group's own device.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from geomhooks import errors
from geomhooks.errors import GeomhooksError, WatchError
from geomhooks.state import State
from geomhooks.storage.messages import pack_message, read_header, unpack_message, write_header
from geomhooks.uniting import Part, Union, unite

__all__ = ["Failure", "Unreachable", "reduce_state"]

PIECE = 1 << 26  # bytes that are sent at once, and copied to a device where the backend needs that


def reduce_state(snapshot: Callable[[], State], group: Any = None) -> tuple[State, Union]:
    """The state of all ranks together, the same on every rank. All ranks of the group have to call.

    Without a process group this process is the only rank.

    Args:
        snapshot: makes the copy of this rank's state, on the CPU, that is merged.
        group: a process group; by default that of all processes.

    Raises:
        SchemaError: ranks have counted the same shard, or differ in what they have in common.
        WatchError: a rank failed or did not come, this process is not in the group, or there should
            be a process group and is none.
    """
    peers = _Peers.of(group)
    if peers is None:
        state = snapshot()
        union = unite([Part.of(state)], "rank")
        return union.arrange(union.fit(state)), union
    work = _Work(snapshot, peers)
    parts = peers.gather(work.attempt(work.describe))
    work.attempt(lambda: work.fit(parts))
    step = 1
    while step < peers.size:
        if peers.rank % (2 * step):
            peers.send(work.message(), peers.rank - step)
            break
        if peers.rank + step < peers.size:
            theirs = peers.receive(peers.rank + step)
            work.attempt(lambda theirs=theirs: work.take_in(theirs))  # type: ignore[misc]
            del theirs
        step *= 2
    whole = peers.tell(work.message() if peers.rank == 0 else None)
    return work.finish(whole)


class Unreachable(WatchError):
    """Another rank has ended, or did not come in time."""


@dataclass(frozen=True)
class Failure:
    """What went wrong on a rank, as it can be told to others."""

    rank: int
    kind: str
    text: str

    def raised(self) -> GeomhooksError:
        """The error to raise on a rank: of the same class, if it is one of this library's."""
        if self.kind in errors.__all__:
            found: GeomhooksError = getattr(errors, self.kind)(self.text)
            return found
        return WatchError(f"rank {self.rank} failed: {self.kind}: {self.text}")


class _Work:
    """One rank's state on its way; once something has failed, the failure travels in its stead."""

    def __init__(self, snapshot: Callable[[], State], peers: _Peers) -> None:
        self.snapshot = snapshot
        self.peers = peers
        self.state: State | None = None
        self.union: Union | None = None
        self.failure: Failure | None = None
        self.cause: Exception | None = None

    def attempt(self, step: Callable[[], Any]) -> Any:
        """Do a step unless one has failed; other ranks wait, so nothing may be raised yet."""
        if self.failure is None:
            try:
                return step()
            except Exception as error:
                text = str(error) or repr(error)
                self.failure = Failure(self.peers.rank, type(error).__name__, text)
                self.cause = error
                self.state = None
        return self.failure

    def describe(self) -> Part:
        self.state = self.snapshot()
        return Part.of(self.state)

    def fit(self, parts: list[Part | Failure]) -> None:
        """Find the common schema; a failure on any rank is the same on all."""
        failed = next((part for part in parts if isinstance(part, Failure)), None)
        if failed is not None:
            raise failed.raised()
        self.union = unite([part for part in parts if isinstance(part, Part)], "rank")
        assert self.state is not None
        self.union.fit(self.state)

    def take_in(self, message: Tensor) -> None:
        self.state, mine = self._unpacked(message), self.state
        assert mine is not None
        mine.take_in(self.state)
        self.state = mine

    def message(self) -> Tensor:
        """The state, or the failure, as bytes; the state itself is let go."""
        packed = self.attempt(self._pack)
        if isinstance(packed, Tensor):
            return packed
        return write_header({"failure": vars(self.failure)})[0]

    def _pack(self) -> Tensor:
        assert self.state is not None
        packed, self.state = pack_message(self.state), None
        return packed

    def _unpacked(self, message: Tensor) -> State:
        header, _ = read_header(message)
        if "failure" in header:
            raise Failure(**header["failure"]).raised()
        assert self.union is not None
        return unpack_message(message, self.union.statistics)

    def finish(self, whole: Tensor) -> tuple[State, Union]:
        """What rank 0 told, or the failure that reached it."""
        header, _ = read_header(whole)
        if "failure" in header:
            raise Failure(**header["failure"]).raised() from self.cause
        if self.failure is not None:
            raise self.failure.raised() from self.cause
        assert self.union is not None
        return self.union.arrange(self._unpacked(whole)), self.union


@dataclass(frozen=True)
class _Peers:
    """The processes of a group, and where tensors have to be for them."""

    group: Any
    rank: int
    size: int
    device: torch.device

    @classmethod
    def of(cls, group: Any) -> _Peers | None:
        """The processes of a group; None for a process that is alone.

        Raises:
            WatchError: torchrun started several processes and no group was made, or this process
                is not in the group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            started = os.environ.get("WORLD_SIZE", "1")
            if group is not None or (started.isdigit() and int(started) > 1):
                raise WatchError(
                    f"sync=True: {started} processes were started (WORLD_SIZE), but there is no "
                    "process group to reach them: call torch.distributed.init_process_group() first"
                )
            return None
        group = dist.group.WORLD if group is None else group
        outside = dist.GroupMember.NON_GROUP_MEMBER  # what stands for a group of others
        if group != outside and not isinstance(group, dist.ProcessGroup):
            raise WatchError(
                f"sync=True: group is a {type(group).__name__}, and a process group is needed, as "
                "torch.distributed.new_group(ranks) or mesh.get_group(name) gives one"
            )
        rank = dist.get_rank(group)
        if rank < 0:
            raise WatchError(
                f"sync=True: process {dist.get_rank()} is not in the group that was given; let "
                "those that are in it call geometry(sync=True, group=...)"
            )
        return cls(group, rank, dist.get_world_size(group), device_of(group))

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Tell it plainly where another rank cannot be reached.

        Raises:
            Unreachable: it cannot.
        """
        try:
            yield
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            raise Unreachable(
                f"sync=True: rank {self.rank} of {self.size} could not reach another, which has "
                "ended, raised an error, or did not call geometry(sync=True) in the time that the "
                "process group gives (timeout= of init_process_group or new_group); call it on all "
                f"ranks of the group. What was counted here is kept. ({said})"
            ) from error

    def gather(self, thing: Any) -> list[Any]:
        """What each rank gave, on every rank; or the failure to read it here."""
        packed = torch.frombuffer(bytearray(pickle.dumps(thing)), dtype=torch.uint8)
        with self.reached():
            lengths = [self._number() for _ in range(self.size)]
            dist.all_gather(lengths, self._number(len(packed)), group=self.group)
            longest = max(int(length) for length in lengths)
            mine = torch.zeros(longest, dtype=torch.uint8, device="cpu")
            mine[: len(packed)] = packed
            found = [torch.empty_like(mine, device=self.device) for _ in range(self.size)]
            dist.all_gather(found, mine.to(self.device), group=self.group)
        return [self._read(one) for one in found]

    def _read(self, packed: Tensor) -> Any:
        """What a rank gave; its statistic may be of a class that this rank cannot import."""
        try:
            return pickle.loads(packed.cpu().numpy().tobytes())
        except Exception as error:
            return Failure(self.rank, type(error).__name__, str(error) or repr(error))

    def send(self, message: Tensor, to: int) -> None:
        to = dist.get_global_rank(self.group, to)
        with self.reached():
            dist.send(self._number(len(message)), to, group=self.group)
            for piece in pieces_of(message):
                dist.send(piece.to(self.device), to, group=self.group)

    def receive(self, source: int) -> Tensor:
        source = dist.get_global_rank(self.group, source)
        return self._filled(lambda there: dist.recv(there, source, group=self.group))

    def tell(self, message: Tensor | None) -> Tensor:
        """What rank 0 says, on every rank."""
        source = dist.get_global_rank(self.group, 0)
        return self._filled(lambda there: dist.broadcast(there, source, group=self.group), message)

    def _number(self, value: int = 0) -> Tensor:
        return torch.tensor([value], dtype=torch.int64, device=self.device)

    def _filled(self, act: Callable[[Tensor], Any], message: Tensor | None = None) -> Tensor:
        """A message that comes, or goes to all, by acting on its length and on its pieces."""
        length = self._number(0 if message is None else len(message))
        with self.reached():
            act(length)
            number = int(length)
        if message is None:
            message = torch.empty(number, dtype=torch.uint8, device="cpu")
        for piece in pieces_of(message):
            there = piece.to(self.device)
            with self.reached():
                act(there)
                if there is not piece:
                    piece.copy_(there)
        return message


def pieces_of(message: Tensor) -> Sequence[Tensor]:
    """Parts of a message that are sent at once."""
    return [message[start : start + PIECE] for start in range(0, len(message), PIECE)]


def device_of(group: Any) -> torch.device:
    """Where a group's backend wants its tensors: on the CPU if it can, else on its own device.

    That is the one that ``init_process_group(device_id=)`` has bound it to, or the current one. A
    configuration reads "cpu:gloo,cuda:nccl", a device to each backend.
    """
    kinds = [pair.partition(":")[0] for pair in str(dist.get_backend_config(group)).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    bound: torch.device | None = getattr(group, "bound_device_id", None)
    if bound is not None and bound.type == kinds[0]:
        return bound
    return torch.device(kinds[0], torch.accelerator.current_device_index())
