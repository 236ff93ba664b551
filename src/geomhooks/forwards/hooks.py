"""The hooks: before and after a call that opens a token stream, at a site, and inside of a block.

Each has two halves. What ``torch`` calls picks out of a module's arguments and results what
matters; in compiled code it leaves an operator in the graph
(:mod:`geomhooks.forwards.compiled`). The other half runs with the forward, at once or when that
operator is reached, and tells the watch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geomhooks.forwards.caches import cache_of
from geomhooks.forwards.calls import OPENING
from geomhooks.forwards.compiled import close_compiled, make_ticket, open_compiled, read_compiled
from geomhooks.forwards.openers import Opener, parameters_of
from geomhooks.forwards.running import Look
from geomhooks.plan import SitePlan
from geomhooks.sites import describe_type, find_tensor

__all__ = [
    "CODE",
    "BeginBlock",
    "CloseStream",
    "Hook",
    "OpenStream",
    "ReadEmbeddings",
    "ReadInput",
    "ReadOutput",
    "ReadSublayer",
    "put_on",
]

# Looked up once: a hook is called often.
is_compiling: Callable[[], bool] = torch.compiler.is_compiling
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)
tracing_state: Callable[[], Any] = torch._C._get_tracing_state
backward_task: Callable[[], int] = torch._C._current_graph_task_id
TokensFunction = Callable[[nn.Module, Mapping[str, Any]], Mapping[str, Any] | None]


class Router(Protocol):
    """What the hooks tell of a forward, and whom."""

    paused: bool

    def open_stream(
        self, arguments: Mapping[str, Any], told: Mapping[str, Any] | None, opener: Opener
    ) -> None:
        """A call begins that may open a token stream."""

    def close_stream(self, *, completed: bool, cache: Any) -> None:
        """That call is over."""

    def read(
        self, site: SitePlan, out: Tensor | None, into: Tensor | None, found: str, *, borrowed: bool
    ) -> None:
        """A site shows its tensors."""

    def begin(self, site: SitePlan, into: Tensor | None, *, borrowed: bool) -> None:
        """A block begins whose sublayers are looked at."""

    def keep(
        self,
        site: SitePlan,
        look: Look,
        name: str,
        tensor: Tensor | None,
        found: str,
        *,
        borrowed: bool,
    ) -> None:
        """A module inside of a block shows what it adds."""

    def keep_embedded(self, site: SitePlan, into: Tensor | None, *, borrowed: bool) -> None:
        """A norm of embeddings shows what goes into it."""


class Hook:
    """A hook that belongs to one watch on one model.

    A copy of the model (an EMA copy, a pickled checkpoint) takes its hooks along; theirs are inert,
    so that the copy neither counts into this watch nor drags its state into a file. So is a hook
    that was taken off, should compiled code still know it.
    """

    def __init__(self, watch: Router) -> None:
        self.watch = watch
        self.is_on = True
        self.ticket = make_ticket(self)

    def __deepcopy__(self, memo: Any) -> Any:
        return inert

    def __reduce__(self) -> Any:
        return make_inert, ()

    @property
    def counts(self) -> bool:
        """Whether what is shown now is to be counted.

        Activation checkpointing runs a forward again inside backward: it was counted already.
        """
        return self.is_on and not self.watch.paused and backward_task() == -1


def inert(*_: Any, **__: Any) -> None:
    """Stand in for our hooks in copies of a model."""


def make_inert() -> Any:
    """What a pickled hook comes back as."""
    return inert


def is_recorded() -> bool:
    """The forward is recorded for another program, by ``torch.export`` or ``torch.jit.trace``.

    That program is none of ours, and recording it is not running the model.
    """
    return is_exporting() or tracing_state() is not None


def put_on(module: nn.Module, hook: Hook, first: bool = False) -> RemovableHandle:
    """Register a hook, under a number that says nothing of how many came before it.

    Compiled code is guarded by the numbers of those hooks that are always called; with new numbers
    it would be compiled again for each watch.
    """
    before = isinstance(hook, (OpenStream, ReadInput, _Enter))
    taken = module._forward_pre_hooks if before else module._forward_hooks
    number = -1
    while number in taken:
        number -= 1
    following, RemovableHandle.next_id = RemovableHandle.next_id, number
    try:
        if before:
            return module.register_forward_pre_hook(
                cast("Any", hook), with_kwargs=True, prepend=first
            )
        return module.register_forward_hook(
            cast("Any", hook), with_kwargs=True, always_call=isinstance(hook, CloseStream)
        )
    finally:
        RemovableHandle.next_id = following


class OpenStream(Hook):
    """Before a call that may open a token stream."""

    def __init__(self, watch: Router, opener: Opener, tell: TokensFunction | None) -> None:
        super().__init__(watch)
        self.opener = opener
        self.parameters = opener.parameters
        self.tell = tell

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook."""
        if is_recorded():
            return
        arguments = by_name(self.parameters, args, kwargs)
        for value in list(arguments.values()):
            if isinstance(value, Mapping) and any(name in value for name in OPENING):
                arguments = {**arguments, **value}
        if is_compiling():
            told = None if self.tell is None else self.tell(module, arguments)
            open_compiled(self.ticket, arguments, told)
        elif self.counts:
            told = None if self.tell is None else self.tell(module, arguments)
            self.opened(arguments, told)

    def opened(self, arguments: Mapping[str, Any], told: Mapping[str, Any] | None) -> None:
        """The call begins."""
        if self.counts:
            self.watch.open_stream(arguments, told, self.opener)


class CloseStream(Hook):
    """After it, also where it raised."""

    def __init__(self, watch: Router, opener: Opener) -> None:
        super().__init__(watch)
        self.parameters = opener.parameters

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook."""
        if is_recorded():
            return
        cache = cache_of(by_name(self.parameters, args, kwargs))
        if cache is None or isinstance(
            cache, (tuple, list)
        ):  # the first one, or a new one each time
            cache = cache_of(output)
        if is_compiling():
            close_compiled(self.ticket, cache)
        else:
            # Where the call raised there is no output, and the exception is being handled.
            self.closed(completed=output is not None or sys.exc_info()[1] is None, cache=cache)

    def closed(self, *, completed: bool, cache: Any) -> None:
        """The call is over."""
        if self.counts:
            self.watch.close_stream(completed=completed, cache=cache)


class _Read(Hook):
    """At a site."""

    def __init__(self, watch: Router, site: SitePlan) -> None:
        super().__init__(watch)
        self.site = site
        self.wants_input = site.wants_input
        self.parameters = parameters_of(site.place.module)

    @property
    def looks_at_calls(self) -> bool:
        """Whether a call that is made now is one that counts, or will be."""
        return not is_recorded() and (is_compiling() or self.counts)

    def show(self, found: Tensor | None, entered: Tensor | None, out: Any) -> None:
        """Pass the hidden states on that were found in what a module takes and returns."""
        if is_compiling():
            read_compiled(self.ticket, found, entered)
        elif self.counts:
            what = "" if found is not None else describe_type(out)
            self.watch.read(self.site, found, entered, what, borrowed=False)

    def shown(self, out: Tensor | None, into: Tensor | None, *, borrowed: bool) -> None:
        """The hidden states are there."""
        if self.counts:
            self.watch.read(self.site, out, into, "something else", borrowed=borrowed)


class ReadInput(_Read):
    """Before a module whose input is a site."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook."""
        if not is_recorded():
            self.show(first_of(self.parameters, args, kwargs), None, (*args, kwargs))


class ReadOutput(_Read):
    """After a module whose output is a site."""

    def __init__(self, watch: Router, site: SitePlan) -> None:
        super().__init__(watch, site)
        self.check = None if site.attention is None else site.attention.check

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook."""
        if self.check is not None and self.looks_at_calls:
            self.check(by_name(self.parameters, args, kwargs))
        if is_recorded():
            return
        entered = first_of(self.parameters, args, kwargs) if self.wants_input else None
        self.show(find_tensor(output), entered, output)


class _Enter(Hook):
    """Before a module whose input the watch is told of, which is none of a site's numbers."""

    def __init__(self, watch: Router, site: SitePlan) -> None:
        super().__init__(watch)
        self.site = site
        module = site.place.module if site.embedding_norm is None else site.embedding_norm
        self.parameters = parameters_of(module)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook."""
        if is_recorded():
            return
        entered = first_of(self.parameters, args, kwargs)
        if is_compiling():
            read_compiled(self.ticket, None, entered)
        elif self.counts:
            self.tell(entered, borrowed=False)

    def shown(self, out: Tensor | None, into: Tensor | None, *, borrowed: bool) -> None:
        """The tensor is there."""
        if self.counts:
            self.tell(into, borrowed=borrowed)

    def tell(self, into: Tensor | None, *, borrowed: bool) -> None:
        """Tell the watch."""
        raise NotImplementedError


class BeginBlock(_Enter):
    """Before a block whose sublayers are looked at."""

    def tell(self, into: Tensor | None, *, borrowed: bool) -> None:
        """The block begins."""
        self.watch.begin(self.site, into, borrowed=borrowed)


class ReadEmbeddings(_Enter):
    """Before the norm of embeddings that comes before the first block of a stack."""

    def tell(self, into: Tensor | None, *, borrowed: bool) -> None:
        """The norm begins."""
        self.watch.keep_embedded(self.site, into, borrowed=borrowed)


class ReadSublayer(Hook):
    """After a module inside of a block whose output, or input, is part of what the block adds."""

    def __init__(self, watch: Router, site: SitePlan, look: Look) -> None:
        super().__init__(watch)
        self.site, self.look = site, look
        self.parameters = parameters_of(look.module)
        self.wants_output, self.wants_input = look.out is not None, look.into is not None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook."""
        if is_recorded():
            return
        entered = first_of(self.parameters, args, kwargs) if self.wants_input else None
        found = find_tensor(output) if self.wants_output else None
        if is_compiling():
            read_compiled(self.ticket, found, entered)
        elif self.counts:
            self._keep(found, entered, describe_type(output), borrowed=False)

    def shown(self, out: Tensor | None, into: Tensor | None, *, borrowed: bool) -> None:
        """The tensors are there."""
        if self.counts:
            self._keep(out, into, "something else", borrowed=borrowed)

    def _keep(self, out: Tensor | None, into: Tensor | None, what: str, *, borrowed: bool) -> None:
        for name, tensor in ((self.look.out, out), (self.look.into, into)):
            if name is not None:
                self.watch.keep(self.site, self.look, name, tensor, what, borrowed=borrowed)


def first_of(
    parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """The hidden state that a module takes, which mostly is its first argument.

    Of arguments by name it is the first in the order of the module's parameters.
    """
    if args and type(args[0]) is Tensor and args[0].is_floating_point():
        return args[0]
    named = {name: kwargs[name] for name in parameters if name in kwargs}
    return find_tensor((*args, {**named, **kwargs}))


# Around a compiled model torch calls the root's hooks itself: they are no code to be compiled.
CODE = tuple(
    kind.__call__.__code__
    for kind in (OpenStream, CloseStream, ReadInput, ReadOutput, ReadSublayer, _Enter)
)


def by_name(parameters: tuple[str, ...], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    # As torch 2.6 can compile it: no union of dictionaries, and no zip of different lengths.
    number = min(len(parameters), len(args))
    return {**dict(zip(parameters[:number], args[:number], strict=True)), **kwargs}
