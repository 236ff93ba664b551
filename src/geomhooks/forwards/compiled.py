"""How a hook reaches its watch from within compiled code.

A hook that ``torch.compile`` traces leaves one operator in the graph. To the compiler it is opaque;
when the graph runs it calls back into the very code that runs in eager mode. So nothing of a watch
is traced or guarded: no graph breaks, no recompilation when the state, the tokens or a pause
change, one graph for all blocks of a model, whatever the number of batches. And what can be known
at run time only (is this the recomputation of a checkpoint?) is asked at run time.

An operator finds its hook by a *ticket*, a tensor on the hook that holds a number: a tensor is an
input of the graph, where a number would be baked into it. All operators claim to write to one
tensor, which keeps the compiler from dropping them or changing their order. What they are given may
be memory that the compiled code uses again, so it holds only while the operator runs.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Iterable, Mapping
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor

from geomhooks.forwards.caches import SeenCache, cache_of, cache_tensors, raw_length
from geomhooks.forwards.calls import FEATURES, OPENING, PLAIN, STATED, copy_of, one_mask

__all__ = ["close_compiled", "make_ticket", "notice_hooks", "open_compiled", "read_compiled"]


class Hook(Protocol):
    """What is to be called when the operator runs."""

    def opened(self, arguments: Mapping[str, Any], told: Mapping[str, Any] | None) -> None:
        """A call begins that may open a token stream."""

    def closed(self, *, completed: bool, cache: Any) -> None:
        """That call is over."""

    def shown(self, out: Any, into: Any, *, borrowed: bool) -> None:
        """A site shows its tensors."""


ORDER = torch.zeros((), dtype=torch.int64, device="cpu")
HOOKS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
TOLD = "tokens."  # prefix of what the watch's tokens function says
_tickets = itertools.count()
# CUDA graphs are cut here: what runs inside is Python, and would not run again with a replay.
_TAGS = tuple(t for t in (getattr(torch.Tag, "cudagraph_unsafe", None),) if t is not None)
_LIBRARY: Any = torch.library.Library("geomhooks", "DEF")  # type: ignore[no-untyped-call]


def make_ticket(hook: Any) -> Tensor:
    """The tensor by which operators know a hook."""
    number = next(_tickets)
    HOOKS[number] = hook
    with torch.inference_mode(False):
        return torch.tensor(number, device="cpu")


def notice_hooks(code: Iterable[CodeType]) -> None:
    """Make compiled code notice hooks that come and go, from now on.

    torch leaves guards on hooks out unless told otherwise, so that a model which was compiled and
    run before a watch was entered would run on without its hooks. Code compiled without those
    guards has to go; this happens once in a process, since the setting stays.

    Args:
        code: of functions that may be traced within others, and are never compiled by themselves.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return  # nothing has been compiled so far
    dynamo.mark_static_address(ORDER)  # which CUDA graphs need of what is written to
    if dynamo.config.skip_nnmodule_hook_guards:
        dynamo.config.skip_nnmodule_hook_guards = False
        dynamo.reset()
    skip = getattr(sys.modules.get("torch._dynamo.eval_frame"), "set_code_exec_strategy", None)
    if skip is not None:  # else they are compiled by themselves, which takes time and is right too
        kinds = sys.modules["torch._dynamo.types"]
        action = kinds.FrameAction.SKIP
        for each in code:
            skip(each, kinds.FrameExecStrategy(action, action))


def _define(schema: str, run: Any) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=_TAGS)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"geomhooks::{name}", lambda *_: None, lib=_LIBRARY)


def _open(
    order: Tensor,
    ticket: Tensor,
    names: str,
    tensors: list[Tensor],
    is_cached: bool,
    past: int,
    past_tensor: Tensor | None,
    cache: list[Tensor],
) -> None:
    hook = HOOKS.get(int(ticket))
    if hook is None:
        return
    # Copies, since the tokens are read off them while later operators run.
    given: dict[str, Any] = dict(
        zip(names.split(",") if names else (), map(copy_of, tensors), strict=True)
    )
    told = {n.removeprefix(TOLD): t for n, t in given.items() if n.startswith(TOLD)}
    length = past if past_tensor is None else past_tensor.clone()
    if is_cached:
        given["cache"] = SeenCache(length, cache)
    hook.opened(given, told)


def _close(order: Tensor, ticket: Tensor, cache: list[Tensor]) -> None:
    hook = HOOKS.get(int(ticket))
    if hook is not None:
        hook.closed(completed=True, cache=SeenCache(0, cache) if cache else None)


def _read(order: Tensor, ticket: Tensor, out: Tensor | None, into: Tensor | None) -> None:
    hook = HOOKS.get(int(ticket))
    if hook is not None:
        hook.shown(out, into, borrowed=True)


_define(
    "open_stream(Tensor(a!) order, Tensor ticket, str names, Tensor[] tensors, bool is_cached, "
    "SymInt past, Tensor? past_tensor, Tensor[] cache) -> ()",
    _open,
)
_define("close_stream(Tensor(a!) order, Tensor ticket, Tensor[] cache) -> ()", _close)
_define("read(Tensor(a!) order, Tensor ticket, Tensor? out, Tensor? into) -> ()", _read)


# What is traced


def open_compiled(
    ticket: Tensor, arguments: Mapping[str, Any], told: Mapping[str, Any] | None
) -> None:
    """Leave the operator that opens a stream in the graph."""
    names, tensors = [], []
    for name in (*OPENING, *PLAIN, *STATED):
        value = one_mask(arguments.get(name))
        if isinstance(value, Tensor):
            names.append(name)
            if name in FEATURES:
                tensors.append(value.new_empty(0))  # that it was given is all that counts
            elif value.is_floating_point() and name not in STATED:
                tensors.append(value.detach()[..., :1])  # its shape is
            else:
                tensors.append(value.detach())
        elif name in FEATURES and value is not None:
            names.append(name)
            tensors.append(torch.empty(0, device="cpu"))
    for name, value in (told or {}).items():
        if value is not None:
            names.append(TOLD + name)
            tensors.append(torch.as_tensor(value).detach())
    cache = cache_of(arguments)
    length = raw_length(cache)
    is_tensor = isinstance(length, Tensor)
    torch.ops.geomhooks.open_stream(
        ORDER,
        ticket,
        ",".join(names),
        tensors,
        cache is not None,
        0 if is_tensor else length,
        length.detach() if is_tensor else None,
        cache_tensors(cache),
    )


def close_compiled(ticket: Tensor, cache: Any) -> None:
    """Leave the operator that closes a stream in the graph."""
    torch.ops.geomhooks.close_stream(ORDER, ticket, cache_tensors(cache))


def read_compiled(ticket: Tensor, out: Tensor | None, into: Tensor | None) -> None:
    """Leave the operator that reads a site in the graph."""
    torch.ops.geomhooks.read(
        ORDER,
        ticket,
        None if out is None else out.detach(),
        None if into is None else into.detach(),
    )
