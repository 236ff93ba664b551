"""``watch``: attach hooks, detach, verify that they fired, and hand out what was counted."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from geomhooks.distributed import reduce_state
from geomhooks.errors import HookError, NothingCountedError, SchemaError, WatchError
from geomhooks.forwards.calls import add_statement
from geomhooks.forwards.compiled import notice_hooks
from geomhooks.forwards.hooks import (
    CODE,
    BeginBlock,
    CloseStream,
    Hook,
    OpenStream,
    ReadEmbeddings,
    ReadInput,
    ReadOutput,
    ReadSublayer,
    TokensFunction,
    put_on,
)
from geomhooks.forwards.routing import Routing
from geomhooks.forwards.schedule import Schedule, When
from geomhooks.native import prepare
from geomhooks.plan import Plan
from geomhooks.planning import make_plan
from geomhooks.sites import Selector, is_compiled
from geomhooks.snapshot import Geometry
from geomhooks.statistics.base import Statistic

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Self

__all__ = ["Watch", "watch"]


class Watch(Routing):
    """Running geometry of a model's hidden states; made by :func:`watch`."""

    def __init__(
        self,
        plan: Plan,
        tokens: TokensFunction | None,
        schedule: Schedule | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__(plan, schedule or Schedule())
        self._compiled = compiled
        self._tokens_function = tokens
        self._hooks: list[tuple[Hook, Any]] = []
        self._forwards_at_entry = self._forwards()
        self._has_fired = False  # since it was entered, in a window that was closed by reset()
        self._was_entered = False

    # Attaching

    def attach(self) -> Self:
        """Put the hooks on, as entering the ``with`` block does.

        Raises:
            WatchError: the hooks are on already.
        """
        if self._hooks:
            raise WatchError(
                "this watch is attached already; detach() it first, or make another watch: "
                "several may look at one model at once"
            )
        notice_hooks(CODE)
        plan = self._plan
        hooks: list[tuple[nn.Module, Hook]] = [
            (opener.module, OpenStream(self, opener, self._tokens_function))
            for opener in plan.openers
        ]
        for site in plan.sites:
            if site.looks:
                hooks.append((site.place.module, BeginBlock(self, site)))
            hooks += [(look.module, ReadSublayer(self, site, look)) for look in site.looks]
            if site.embedding_norm is not None:
                hooks.append((site.embedding_norm, ReadEmbeddings(self, site)))
            kind = ReadInput if site.place.is_input else ReadOutput
            hooks.append((site.place.module, kind(self, site)))
        # Last, so that a site which is itself such a module is read before its forward is closed.
        hooks += [(opener.module, CloseStream(self, opener)) for opener in plan.openers]
        for module, hook in hooks:
            self._hooks.append((hook, put_on(module, hook, first=isinstance(hook, OpenStream))))
        self._forwards_at_entry, self._has_fired = self._forwards(), False
        self._was_entered = True
        return self

    def detach(self) -> None:
        """Take exactly our hooks off; what was counted stays."""
        for hook, handle in self._hooks:
            hook.is_on = False
            handle.remove()
        if self._hooks:
            notice_hooks(CODE)
        self._hooks.clear()
        self._frames.clear()
        self._lone = None

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        self.detach()
        if kind is not None:
            return
        if self._fired():
            self._verify_fired()
            self._warn_of_steps()
        elif not self._has_fired:
            self._report_nothing_fired()

    def pause(self) -> AbstractContextManager[None]:
        """Count nothing from now on, until :meth:`resume` or the end of ``with watch.pause():``.

        The hooks stay on. For forwards, not for the middle of one.
        """
        before, self._schedule.held = self._schedule.held, True
        self.paused = True

        @contextmanager
        def until_the_end() -> Iterator[None]:
            try:
                yield
            finally:
                self._schedule.held = before
                self.paused = not self._schedule.counts

        return until_the_end()

    def resume(self) -> None:
        """Count again after :meth:`pause`; with ``every=n`` at the steps that count."""
        self._schedule.held = False
        self.paused = not self._schedule.counts

    def step(self, number: int | None = None) -> None:
        """Say, between two forwards, that the next training step begins.

        A step may be several forwards, such as those whose gradients are accumulated. With
        ``every=n`` the forwards of steps 0, n, 2n, ... count; before the first call it is step 0.

        Args:
            number: of the step that begins; by default one more than the last.

        Raises:
            WatchError: no step has such a number.
        """
        self._schedule.step_to(number)
        self.paused = not self._schedule.counts

    @contextmanager
    def tokens(
        self, mask: Any = None, positions: Any = None, contexts: Any = None, groups: Any = None
    ) -> Iterator[None]:
        """Say what the model's arguments do not, for the forwards inside this block.

        Of nested blocks the inner one says what it says, and the outer ones the rest.

        Args:
            mask: (B, T), nonzero where an entry is real; of a wider one the last columns count.
            positions: (B, T), (1, T) or (T,) absolute positions, from 0. Negative ones of tokens
                that no mask hides are an error of the forward on the CPU; on an accelerator, where
                looking would wait for it, they count as beyond the capacity.
            contexts: (B,) or (B, T) integer ids; tokens of equal id are one context, in later
                forwards too.
            groups: (B,) or (B, T) integer labels, kept with the contexts; a context takes the label
                of its row, or the largest of its tokens, as they are when it begins.

        Raises:
            TokensError: a shape or type that cannot be meant.
        """
        said = {"mask": mask, "positions": positions, "contexts": contexts, "groups": groups}
        before, self._stated = self._stated, add_statement(self._stated, said)
        try:
            yield
        finally:
            self._stated = before

    # Results

    def geometry(
        self, *, strict: bool = True, sync: bool = False, group: ProcessGroup | None = None
    ) -> Geometry:
        """A snapshot of everything counted so far; the watch goes on untouched.

        With ``sync`` it is that of all ranks together, the same on each and on the CPU, as if one
        process had seen every rank's tokens; every rank has to call. A copy is reduced and the
        state of this rank stays its own, so that going on, or saving on every rank and merging
        later, never counts twice. Ranks may have seen different numbers of batches, or none, or
        have different sites, as stages of a pipeline do. Without a process group this process is
        the only rank.

        Args:
            strict: raise if a site has not fired although others have. With False such sites are
                left out.
            sync: take all ranks of ``torch.distributed`` together.
            group: the process group of ``sync``, by default all processes. Of ranks that see the
                same text, as under tensor parallelism, only one may be in it.

        Raises:
            HookError: a hook never fired.
            NothingCountedError: no token has been counted yet.
            WatchError: with ``sync``, a rank failed, or torchrun started several processes and
                there is no process group.
            SchemaError: with ``sync``, what ranks have in common differs, or a shard is on two.
        """
        if sync:
            state, union = reduce_state(lambda: self._plan.snapshot("cpu"), group)
            if strict and union.silent and len(union.silent) < len(union.selection["sites"]):
                raise silence(union.silent, len(union.selection["sites"]))
            return Geometry(state, strict=strict)
        if group is not None:
            raise WatchError("geometry(group=...) is for sync=True")
        if strict and self._fired():
            self._verify_fired()
        if self._bypassed:
            warnings.warn(
                "sites were reached past the model's own hooks: model.forward(...) was called "
                "instead of model(...), or a block by itself. Nothing told which tokens are real, "
                "where they stand, or that a cache goes on: each row counted as a new context, at "
                "every site apart. Call the model, or state them: watch.tokens(mask=, positions=, "
                "contexts=).",
                stacklevel=2,
            )
        try:
            return Geometry(self._plan.snapshot(), strict=strict)
        except NothingCountedError as error:
            if not self._was_entered:
                raise NothingCountedError(
                    "no token has been counted yet: the hooks were never put on; run the model in "
                    "`with watch:`, or after watch.attach()"
                ) from None
            raise NothingCountedError(f"{error}{self._schedule.hint}") from None

    def state_dict(self) -> dict[str, Any]:
        """Everything counted so far, to go on from with :meth:`load_state_dict`."""
        packed = self._plan.state_dict()
        return packed | {"step": self._schedule.step, "tensor_count": len(packed["tensors"])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: of this watch, of another on the same model, or of a file.

        Raises:
            SchemaError: the state is of another model, other sites or parameters, or tensors are
                missing; nothing is changed then.
        """
        if isinstance(state, Mapping):
            refuse_partial(state)
        self._has_fired |= self._fired()
        self._plan.load_state_dict(state)
        self.step(state.get("step", self._schedule.step))
        self._forwards_at_entry = self._forwards()

    def reset(self) -> None:
        """Forget everything and begin a new window, a shard of its own."""
        self._begin_shard(new_shard())

    def _begin_shard(self, shard: str) -> None:
        """As :meth:`reset`, with an id that no other window has; it decides which contexts stay."""
        self._has_fired |= self._fired()
        self._plan.reset(shard)
        self._bypassed = False
        self._forwards_at_entry = self._forwards()

    @property
    def nbytes(self) -> int:
        """What the state takes, in bytes.

        Raises:
            SiteError: the width of a site is not known before it has run; the message says how to
                give an example.
        """
        self._plan.require_widths()
        return self._plan.state.nbytes

    @property
    def sites(self) -> list[str]:
        """Names of the watched sites."""
        return [site.place.name for site in self._plan.sites]

    def _forwards(self) -> dict[str, int]:
        sites = self._plan.state.sites
        return {n: int(sites[n].forwards.value) if n in sites else 0 for n in self.sites}

    def _fired(self) -> bool:
        """Some hook has fired since the watch was entered, or its window began."""
        return self._forwards() != self._forwards_at_entry

    def _verify_fired(self) -> None:
        """Raise if others have fired since then, and some have not, whatever they counted before.

        Raises:
            HookError: naming them.
        """
        before = self._forwards_at_entry
        silent = [
            name for name, number in self._forwards().items() if number == before.get(name, 0)
        ]
        if silent:
            raise silence(silent, len(self.sites))

    def _warn_of_steps(self) -> None:
        """Warn if only some steps were to count, and nobody has said where one begins."""
        schedule, before = self._schedule, self._forwards_at_entry
        number = max(n - before.get(name, 0) for name, n in self._forwards().items())
        if schedule.every > 1 and not schedule.told and number > 1:
            warnings.warn(
                f"watch(every={schedule.every}) counted all of {number} forwards: watch.step() was "
                "never called, and they were all of step 0. Call it where a step begins",
                stacklevel=3,
            )

    def _report_nothing_fired(self) -> None:
        """Warn, or raise where the reason may be compiled code.

        Raises:
            HookError: the model is compiled.
        """
        if self._compiled or is_compiled(self._plan.root):
            raise HookError(
                "no hook of this watch fired while it was entered, and the model is compiled: it "
                "was not run, or runs code without hooks. Call torch._dynamo.reset() before "
                "entering, so that it is compiled again, and leave "
                "torch._dynamo.config.skip_nnmodule_hook_guards as it is; a model loaded from "
                "torch.export, AOTInductor or TorchScript has no modules to watch: watch the "
                "model that it was made from." + self._schedule.hint
            )
        warnings.warn(
            "no hook of this watch fired while it was entered: the model was not run, or what was "
            "run is another program made from it (torch.export, TorchScript, a copy)"
            + self._schedule.hint,
            stacklevel=3,
        )


def watch(
    model: nn.Module,
    sites: Selector | None = None,
    statistics: Sequence[Statistic] | Mapping[Any, Sequence[Statistic]] | None = None,
    *,
    positions: int | None = None,
    exclude_token_ids: Iterable[int] = (),
    skip_positions: int = 0,
    layout: str | Mapping[str, str] | None = None,
    tokens: TokensFunction | None = None,
    example: Any = None,
    when: When = "all",
    every: int = 1,
) -> Watch:
    """Measure the geometry of a model's hidden states while it runs.

    Which entries are real, their positions and contexts are read off the nearest call around a
    site that is given ``input_ids``, ``inputs_embeds``, their ``decoder_`` kin, pixels or audio
    features: off its ``attention_mask`` (nonzero, or zero where it is additive, in 2-D; over keys
    or over queries and keys in 3-D and 4-D; of a dictionary with one for each kind of layer, one of
    them), ``position_ids`` (of those in time, height and width the ones in the text, where they are
    given in front of them, else the count of the mask), ``cu_seq_lens_q`` where there are none, and
    ``past_key_values``. torch's own transformers are read by ``src_key_padding_mask`` and
    ``tgt_key_padding_mask``. Where nothing is stated every entry is real, positions are columns,
    and a row is a new context; a position that does not grow within a row of stated positions
    begins another (packed sequences). Of pixels and audio a mask counts only if it has the shape of
    the hidden states. For all else there are ``tokens=`` and :meth:`Watch.tokens`.

    What is wrong in a measurement (a mask that does not fit, a site without hidden states) raises
    in the forward that shows it; leaving the ``with`` block takes the hooks off, and what was
    counted is kept.

    Args:
        model: any module.
        sites: where to look: ``"blocks"`` (the default: the input of the first block, named
            ``"<first block>@in"``, and the output of every block), ``"attention"``, ``"mlp"``,
            ``"norms"``, ``"embeddings"``; a module name or glob, or a list of them (``*`` stands
            for anything but a dot, ``**`` for anything), ``"name@in"`` for an input; or a predicate
            ``(name, module) -> bool``.
        statistics: what to measure, by default ``[PosCtx(), Sphere()]``; or a dictionary from
            sites to lists of statistics.
        positions: capacity T of everything that is kept by position, where a statistic states none
            of its own; by default the smaller of the model's maximum and 2048. Tokens beyond it
            are left out and counted.
        exclude_token_ids: ids whose tokens are left out, such as BOS.
        skip_positions: leave out positions below this.
        layout: an einops pattern that brings the sites' tensors to (batch, time, d), or a
            dictionary from globs over site names to patterns; at norms of each head, which mostly
            find theirs, to (batch, time, heads, k).
        tokens: a function of (module, arguments by name), called for every call that opens a token
            stream, that returns a dictionary with any of ``mask``, ``positions``, ``contexts``,
            ``groups``, or None.
        example: a batch to run once (a dictionary, a tuple of arguments, or one tensor), so that
            the state can be allocated before the first forward where the model has no config.
        when: which forwards count: those of the model in training (``"train"``, after
            ``model.train()``), in evaluation (``"eval"``), or ``"all"``. What decides is the
            ``training`` flag of the module whose call opens the token stream.
        every: count the forwards of every n-th step only, those of steps 0, n, 2n, ...;
            :meth:`Watch.step` says where a step ends.

    Returns:
        A :class:`Watch`, to be entered with ``with`` or attached.

    Raises:
        SiteError: no module matches, or a statistic cannot be taken at a site.
        WatchError: ``when`` or ``every`` is none of what is allowed.

    Example:
        >>> import torch, geomhooks as gh
        >>> model = torch.nn.TransformerEncoder(
        ...     torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 2
        ... )
        >>> with gh.watch(model) as watch:
        ...     _ = model(torch.randn(4, 5, 8))
        >>> geometry = watch.geometry()
        >>> geometry.sites
        ['layers.0@in', 'layers.0', 'layers.1']
        >>> geometry["layers.1"].pos_ctx.pos.shape
        torch.Size([5, 8])
    """
    schedule = Schedule(when, every)
    plan = make_plan(
        model,
        sites,
        statistics,
        positions=positions,
        exclude=exclude_token_ids,
        skip=skip_positions,
        layout=layout,
        shard=new_shard(),
    )
    prepare(plan.root.parameters())
    if example is not None:  # whatever mode the model is in
        run_example(Watch(plan, tokens), plan.root, example)
    else:
        plan.allocate_from_config()
    return Watch(plan, tokens, schedule, compiled=is_compiled(model))


def silence(silent: Sequence[str], number: int) -> HookError:
    """The error that some of a number of hooks never fired."""
    shown = ", ".join(silent[:6]) + (f" and {len(silent) - 6} more" if len(silent) > 6 else "")
    return HookError(
        f"{len(silent)} of {number} hooks never fired: {shown}. The model ran without calling "
        "these modules, or runs compiled code that has no hooks. What the others counted is kept: "
        "watch.geometry(strict=False)."
    )


def refuse_partial(state: Mapping[str, Any]) -> None:
    """Raise where a state has not all of its tensors any more.

    Raises:
        SchemaError: saying how they may have been lost.
    """
    told, tensors = state.get("tensor_count"), state.get("tensors")
    if isinstance(told, int) and isinstance(tensors, Mapping) and len(tensors) != told:
        raise SchemaError(
            f"load_state_dict: {told} tensors were saved, and {len(tensors)} are here. "
            "torch.distributed.checkpoint loads only into tensors that are there already: give the "
            "new watch example=, a batch, or run a forward, and load then; nothing was changed"
        )


def new_shard() -> str:
    """An id that no other process or window has; not drawn from torch's or Python's generators."""
    return uuid.uuid4().hex


def run_example(watch: Watch, root: nn.Module, example: Any) -> None:
    """Run one batch to see every width, and leave no trace: generators, buffers and counts."""
    devices = sorted({p.device.index or 0 for p in root.parameters() if p.device.type == "cuda"})
    buffers = {name: buffer.clone() for name, buffer in root.named_buffers()}
    watch.attach()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            if isinstance(example, Mapping):
                root(**example)
            elif isinstance(example, (tuple, list)):
                root(*example)
            else:
                root(example)
    finally:
        watch.detach()
        with torch.no_grad():
            for name, buffer in root.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
    watch.reset()
