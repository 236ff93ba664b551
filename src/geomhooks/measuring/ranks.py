"""The processes that torchrun started for one run: who they are, and what they agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from geomhooks.distributed import Unreachable
from geomhooks.errors import GeomhooksError
from geomhooks.measuring.errors import PeerError

__all__ = ["Elsewhere", "Ranks"]

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=30)  # one rank's share of a text may take much longer than another's


class Elsewhere(Exception):
    """Another process failed, and tells so."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run.

    Attributes:
        rank: its number.
        number: of processes.
        local: its number on this machine.
    """

    rank: int = 0
    number: int = 1
    local: int = 0

    @classmethod
    def started(cls) -> Ranks:
        """What torchrun has put into the environment; a process that is alone without it."""
        if not all(name in os.environ for name in VARIABLES):
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        try:
            return cls(*(int(os.environ.get(name, "0")) for name in names))
        except ValueError:
            return cls()

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Reach the other processes inside this block, on the CPU, whatever the model is on."""
        if self.number == 1:
            yield
            return
        dist.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def device(self, name: str) -> str:
        """The device of this process, where several processes share out those of a machine."""
        if self.number == 1 or name == "cpu" or ":" in name:
            return name
        found = torch.accelerator.current_accelerator() if name == "auto" else torch.device(name)
        if found is None or found.type == "cpu":
            return "cpu"
        return f"{found.type}:{self.local % max(1, torch.accelerator.device_count())}"

    def gather(self, thing: T) -> list[T]:
        """What each process gives, on all of them.

        Raises:
            PeerError: one has ended.
        """
        if self.number == 1:
            return [thing]
        found: list[Any] = [None] * self.number
        with self.reaching():
            dist.all_gather_object(found, thing)
        return found

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Tell it plainly where a process that is to be reached has ended."""
        try:
            yield
        except RuntimeError as error:
            ours = isinstance(error, GeomhooksError) and not isinstance(error, Unreachable)
            if self.number == 1 or ours:
                raise
            raise PeerError(
                "another process of this run has ended, and the same command with --resume goes on "
                f"({' '.join(str(error).split())[:200]})"
            ) from error

    def together(self, step: Callable[[], T]) -> T:
        """Do a step that every process does, and go on only if it went well on all.

        Raises:
            Elsewhere: it failed on another process of a lower number, or on another alone.
            Exception: what it raised here, if no process of a lower number failed.
        """
        result: T | None = None
        failure: Exception | None = None
        try:
            result = step()
        except Exception as error:
            if self.number == 1:
                raise
            failure = error
        failed = self.gather(failure is not None)
        if not any(failed):
            return result  # type: ignore[return-value]
        if failure is not None and failed.index(True) == self.rank:
            raise failure
        raise Elsewhere
