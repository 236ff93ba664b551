"""The four hooks: before and after a call that opens a token stream, and at a site."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from geomhooks.calls import OPENING
from geomhooks.openers import Opener
from geomhooks.plan import SitePlan

__all__ = ["CloseStream", "OpenStream", "ReadInput", "ReadOutput"]


class Router(Protocol):
    """What the hooks tell of a forward, and whom."""

    paused: bool

    def open_stream(self, module: nn.Module, arguments: Mapping[str, Any], opener: Opener) -> None:
        """A call begins that may open a token stream."""

    def close_stream(self, *, completed: bool) -> None:
        """That call is over."""

    def read(self, site: SitePlan, out: Any, into: Any) -> None:
        """A site shows its tensors."""


class _Hook:
    """A hook that belongs to one watch on one model.

    A copy of the model (an EMA copy, a pickled checkpoint) takes its hooks along; theirs are inert,
    so that the copy neither counts into this watch nor drags its state into a file.
    """

    def __init__(self, watch: Router) -> None:
        self.watch = watch

    def __deepcopy__(self, memo: Any) -> Any:
        return inert

    def __reduce__(self) -> Any:
        return make_inert, ()


def inert(*_: Any, **__: Any) -> None:
    """Stand in for our hooks in copies of a model."""


def make_inert() -> Any:
    """What a pickled hook comes back as."""
    return inert


class OpenStream(_Hook):
    """Before a call that may open a token stream."""

    def __init__(self, watch: Router, opener: Opener) -> None:
        super().__init__(watch)
        self.opener = opener

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook."""
        if self.watch.paused:
            return
        arguments = dict(zip(self.opener.parameters, args, strict=False)) | kwargs
        for value in list(arguments.values()):
            if isinstance(value, Mapping) and any(name in value for name in OPENING):
                arguments = {**arguments, **value}
        self.watch.open_stream(module, arguments, self.opener)


class CloseStream(_Hook):
    """After it, also where it raised."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook."""
        if not self.watch.paused:
            # Where the call raised there is no output, and the exception is being handled.
            self.watch.close_stream(completed=output is not None or sys.exc_info()[1] is None)


class _Read(_Hook):
    """At a site."""

    def __init__(self, watch: Router, site: SitePlan) -> None:
        super().__init__(watch)
        self.site = site

    def read(self, out: Any, into: Any) -> None:
        """Add what the site shows, unless it has been added before."""
        if not self.watch.paused and not is_recomputation():
            self.watch.read(self.site, out, into)


class ReadInput(_Read):
    """Before a module whose input is a site."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook."""
        self.read((*args, kwargs), None)


class ReadOutput(_Read):
    """After a module whose output is a site."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook."""
        into = (*args, kwargs) if self.site.wants_input else None
        self.read(output, into)


def is_recomputation() -> bool:
    """Activation checkpointing runs a forward again inside backward: it was counted already."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
