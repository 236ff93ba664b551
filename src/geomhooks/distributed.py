"""The states of all ranks together: a copy is merged, each rank's own state stays as it is.

Every rank describes its state, and all gather the descriptions, so that each finds the same common
schema, or the same error. Then states are merged along a binary tree, the accumulators' own way
(tables, contexts and sums about different shifts are no plain sums), and rank 0 tells the result.
Whatever the number of ranks, a rank holds in the host's memory at most its copy, one message, and
the tables in it: about three times the state. On a device no more than a piece of a message.

Nothing here runs in a hook. An error on one rank becomes an error on all, never a wait without end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from geomhooks import errors
from geomhooks.errors import GeomhooksError, WatchError
from geomhooks.messages import pack_message, read_header, unpack_message, write_header
from geomhooks.state import State
from geomhooks.uniting import Part, Union, unite

__all__ = ["Failure", "reduce_state"]

PIECE = 1 << 26  # bytes that are sent at once, and copied to a device where the backend needs that


def reduce_state(snapshot: Callable[[], State], group: Any = None) -> tuple[State, Union]:
    """The state of all ranks together, the same on every rank. All ranks of the group have to call.

    Without a process group this process is the only rank.

    Args:
        snapshot: makes the copy of this rank's state, on the CPU, that is merged.
        group: a process group; by default that of all processes.

    Raises:
        SchemaError: ranks have counted the same shard, or differ in what they have in common.
        WatchError: a rank failed, this process is not in the group, or there should be a process
            group and is none.
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
        rank = dist.get_rank(group)
        if rank < 0:
            raise WatchError(
                f"sync=True: process {dist.get_rank()} is not in the group that was given; let "
                "those that are in it call geometry(sync=True, group=...)"
            )
        return cls(group, rank, dist.get_world_size(group), device_of(group))

    def gather(self, thing: Any) -> list[Any]:
        """What each rank gave, on every rank."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing, group=self.group)
        return found

    def send(self, message: Tensor, to: int) -> None:
        to = dist.get_global_rank(self.group, to)
        dist.send(self._number(len(message)), to, group=self.group)
        for piece in pieces_of(message):
            dist.send(piece.to(self.device), to, group=self.group)

    def receive(self, source: int) -> Tensor:
        source = dist.get_global_rank(self.group, source)
        length = self._number()
        dist.recv(length, source, group=self.group)
        message = torch.empty(int(length), dtype=torch.uint8, device="cpu")
        for piece in pieces_of(message):
            self._into(piece, lambda there: dist.recv(there, source, group=self.group))
        return message

    def tell(self, message: Tensor | None) -> Tensor:
        """What rank 0 says, on every rank."""
        source = dist.get_global_rank(self.group, 0)
        length = self._number(0 if message is None else len(message))
        dist.broadcast(length, source, group=self.group)
        if message is None:
            message = torch.empty(int(length), dtype=torch.uint8, device="cpu")
        for piece in pieces_of(message):
            self._into(piece, lambda there: dist.broadcast(there, source, group=self.group))
        return message

    def _number(self, value: int = 0) -> Tensor:
        return torch.tensor([value], dtype=torch.int64, device=self.device)

    def _into(self, piece: Tensor, act: Callable[[Tensor], Any]) -> None:
        """Act on a piece of host memory by way of the backend's device."""
        there = piece.to(self.device)
        act(there)
        if there is not piece:
            piece.copy_(there)


def pieces_of(message: Tensor) -> Sequence[Tensor]:
    """Parts of a message that are sent at once."""
    return [message[start : start + PIECE] for start in range(0, len(message), PIECE)]


def device_of(group: Any) -> torch.device:
    """Where a group's backend wants its tensors: on the CPU if it can, else on the current device.

    A configuration reads "cpu:gloo,cuda:nccl", a device to each backend.
    """
    kinds = [pair.partition(":")[0] for pair in str(dist.get_backend_config(group)).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.accelerator.current_device_index())
