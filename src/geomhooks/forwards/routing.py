"""One forward, routed: which call opened the token stream, which tensors each site has.

What the statistics make of them is their own affair.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geomhooks.accumulators import Accumulator
from geomhooks.accumulators.contexts import again, to_device
from geomhooks.errors import SiteError, WatchError
from geomhooks.forwards.calls import Call, Statement, add_statement, read_call, read_plain_call
from geomhooks.forwards.frames import (
    Frame,
    outside_transforms,
    own_what_is_carried,
    unwrap_transforms,
    without_autocast,
)
from geomhooks.forwards.heads import find_time_axis, heads_to_rows
from geomhooks.forwards.openers import Opener
from geomhooks.forwards.running import Look, Running, look_back
from geomhooks.forwards.schedule import Schedule
from geomhooks.forwards.shortcut import Shortcut, Stage
from geomhooks.forwards.tokens import Tokens
from geomhooks.plan import Parts, Plan, SitePlan
from geomhooks.reductions import reduce
from geomhooks.reductions.products import add_products
from geomhooks.sharded import REPLICATED, local_tensor
from geomhooks.sites import rearranged, to_batch_time_width
from geomhooks.state import SiteState
from geomhooks.statistics.base import Reading

__all__ = ["Routing"]

# Looked up once: they are called at every site.
peek_transforms = torch._C._functorch.peek_interpreter_stack
this_thread = threading.get_ident


class Routing:
    """What hooks tell of a forward, brought to the statistics.

    Args:
        plan: what is read, and the state that it goes to.
        schedule: which forwards count.
    """

    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        self._plan = plan
        self._schedule = schedule
        self._frames: list[Frame] = []
        self._lone: Frame | None = None  # of a block in a call that no stream was opened for
        self._stated = Statement()
        self._bypassed = False
        # All that a hook looks at, and it is set outside of forwards.
        self.paused = False
        # The module whose mode decides which forwards count, where the one that is called does not.
        self.mode_of: nn.Module | None = None

    def open_stream(
        self, arguments: Mapping[str, Any], told: Mapping[str, Any] | None, opener: Opener
    ) -> None:
        """Push a frame for every call of an opener; it may be its parent's."""
        self._refuse_another_thread()
        if opener.is_root:
            self._frames.clear()
            self._lone = None
        parent = self._frames[-1].call if self._frames else None
        call = read_call(arguments, opener.config, parent)
        own = isinstance(opener.module, (nn.TransformerEncoder, nn.TransformerDecoder))
        if call is None and self._frames and not own:
            self._frames.append(self._frames[-1])
            return
        counts = self._counts_mode_of(opener.module)
        if call is None:
            call = read_plain_call(arguments)
        stated = self._stated if told is None else add_statement(self._stated, told)
        self._frames.append(Frame(call, stated, counts=counts))

    def close_stream(self, *, completed: bool, cache: Any) -> None:
        """Drop the frame of a call that has returned, or raised and so returned nothing."""
        if self._frames and self._frames[-1].thread == this_thread():
            frame = self._frames.pop()
            if completed and not any(frame is other for other in self._frames):
                self._finish(frame)
                self._remember_rows(frame, cache)

    def _refuse_another_thread(self) -> None:
        """Raise if a forward of this model is under way in another thread.

        Raises:
            WatchError: it is.
        """
        me = this_thread()
        others = {frame.thread for frame in self._frames} - {me}
        if others and others & {thread.ident for thread in threading.enumerate()}:
            raise WatchError(
                "two threads run forwards of one watched model at once, as torch.nn.DataParallel "
                "does; their tokens cannot be told apart. Use a process for each device "
                "(DistributedDataParallel) with a watch in each; or a copy of the model and a "
                "watch for each thread; or let one thread run at a time. Merge the geometries."
            )

    def _remember_rows(self, frame: Frame, cache: Any) -> None:
        """Which contexts a forward's rows were, should a later one go on with its cache."""
        if cache is None:
            return
        for key, (tokens, _) in frame.resolved.items():
            if len(key) == 3:  # on the stream's own device
                self._plan.state.streams[key[0]].stream.remember(tokens, cache)

    def _finish(self, frame: Frame) -> None:
        """Let the statistics take up what they have left for the end of a forward."""
        for name, carry in frame.carry.items():
            with outside_transforms(), torch.no_grad():
                self._plan.state.statistics[name].finish(carry)

    def begin(self, site: SitePlan, into: Tensor | None, *, borrowed: bool) -> None:
        """Make room for what the sublayers of a block add in the call that begins.

        Args:
            site: that block.
            into: its input.
            borrowed: the tensor's memory is good for the time of this call only.
        """
        self._refuse_another_thread()
        if self._frames:
            frame = self._frames[-1]
        else:
            frame = self._lone = self._make_lone_frame(site)
        if frame.counts:
            name = site.place.name
            known = None if into is None or borrowed else unwrap_transforms(into, name)
            frame.running[name] = Running(known)

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
        """Keep what a module inside of a block shows, until the block is read.

        A module that is called outside of a call of the block, which may share it with others, is
        not looked at.

        Args:
            site: the block.
            look: at that module.
            name: as what the tensor is kept.
            tensor: its output or input, or None where it has none, and then
            found: is what was found instead.
            borrowed: the tensor's memory is good for the time of this call only.
        """
        frame = self._frames[-1] if self._frames else self._lone
        running = None if frame is None else frame.running.get(site.place.name)
        if running is not None:
            running.keep(look, name, tensor, found, borrowed)

    def keep_embedded(self, site: SitePlan, into: Tensor | None, *, borrowed: bool) -> None:
        """Keep what goes into a norm of embeddings, until the first block's input is read.

        Args:
            site: that input.
            into: what the norm shows.
            borrowed: its memory is good for the time of this call only.
        """
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.counts and into is not None:
            name = site.place.name
            tensor = unwrap_transforms(into, name).detach()
            frame.embedded[name] = tensor.clone() if borrowed else tensor

    def _counts_mode_of(self, called: nn.Module) -> bool:
        """A call of this module is in the mode that counts."""
        return self._schedule.counts_mode((self.mode_of or called).training)

    def _make_lone_frame(self, site: SitePlan) -> Frame:
        """For a site that is called by itself, outside of any call that opens a stream."""
        counts = self._counts_mode_of(site.place.module)
        return Frame(Call(), self._stated, counts=counts)

    def read(
        self, site: SitePlan, out: Tensor | None, into: Tensor | None, found: str, *, borrowed: bool
    ) -> None:
        """Add what one site shows in this forward.

        Args:
            site: where.
            out: its tensor, or None where it has none, and then
            found: is what was found instead.
            into: the module's input.
            borrowed: the tensors' memory is good for the time of this call only.
        """
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.thread == this_thread():
            if not frame.counts:
                return
            way = site.shortcut
            if way and self._went_short(site, way, frame, out, into, borrowed):
                return
        name = site.place.name
        self._refuse_another_thread()
        alone = frame is None  # called by itself, outside of any call that opens a stream
        if frame is None:
            frame = (self._lone if site.looks else None) or self._make_lone_frame(site)
            self._lone = None if site.looks else self._lone
        if not frame.counts:
            return
        running = frame.running.pop(name, None)
        if alone and self._stated.contexts is None:
            self._bypassed = True
        if out is None:
            side = "input" if site.place.is_input else "output"
            raise SiteError(
                f"site {name!r} has no floating tensor: its {side} "
                f"is {found}. Watch a module that returns hidden states."
            )
        out, entered = unwrap_transforms(out, name), into
        out = local_tensor(out, f"what site {name!r} shows", REPLICATED)
        if entered is not None:
            entered = unwrap_transforms(entered, name)
        with (
            outside_transforms(),
            torch.no_grad(),
            without_autocast(out.device),
        ):
            hidden, heads = shown_at(site, out.detach(), frame)
            before = None
            if entered is not None:
                entered = local_tensor(entered, f"the input of site {name!r}", REPLICATED)
                before, _ = shown_at(site, entered.detach(), frame)
            if not hidden.numel():
                return  # an empty batch
            seen = look_back(site, running, out, frame.grid) if site.looks else None
            grid = hidden.shape[0] // heads, hidden.shape[1]
            state = self._plan.state.sites.get(name)
            if state is None or state.order < 0:
                state = self._plan.prepare_site(site, hidden, before, grid, frame.resolved)
            elif state.site.width != hidden.shape[-1]:
                raise SiteError(
                    f"site {name!r} had hidden states of width {state.site.width} and now has "
                    f"{hidden.shape[-1]}"
                )
            elif state.shift["value"].device != hidden.device:
                self._plan.follow(state, hidden.device)  # the model was moved
            if not state.site.has_input:
                entered = before = None
            tokens, plans = self._tokens_of(frame, state, grid, hidden.device)
            if heads > 1:
                tokens = frame.tokens_of_heads(tokens, heads)
            if name in frame.fired:  # the same module once more: its contexts go on, none is closed
                plans = {key: again(plan) for key, plan in plans.items()}
            frame.fired.add(name)
            shift = state.shift.settle(hidden, tokens)
            parts, needs = site.taking(plans, state.site)
            if not parts:  # nobody looks at this forward
                state.forwards.value.add_(1)
                return
            reductions = reduce(
                needs,
                hidden,
                before,
                tokens,
                shift,
                None if borrowed else frame.known_of(entered, out, name),
                site.position_sum_target if "position_sum" in needs else None,
            )
            if not borrowed:
                frame.read(out, reductions)
            targets = site.second_moment_targets(plans)
            if targets:
                add_products(targets, hidden, reductions.keep, shift)
            taps = {"out": hidden}
            if before is not None:
                taps["in"] = before
            reading = Reading(state.site, taps, tokens, reductions, shift, plans, {})
            if seen is not None and before is not None and site.block is not None:
                reading.block = site.block.now()
                reading.additions = site.block.additions(before, seen)
            update(site, parts, frame, reading)
            state.forwards.value.add_(1)
            if site.shortcut is None and not alone:
                site.shortcut = Shortcut.of(site, state, hidden) or False
        if alone:
            self._finish(frame)
        elif borrowed:
            own_what_is_carried(frame.carry, [hidden, *taps.values()])

    def _went_short(
        self, site: SitePlan, way: Shortcut, frame: Frame, out: Any, into: Any, borrowed: bool
    ) -> bool:
        """Go the short way, where it is open."""
        if way.replaced != Accumulator.replaced:
            site.shortcut = None  # to be opened again
            return False
        if not way.fits(out) or way.name in frame.fired:
            return False
        if peek_transforms() is not None:
            return False  # within torch.func.grad and its kin
        shape = out.shape
        stage = frame.stages.get((way.stream, shape))
        if stage is None:
            if not way.fits_shape(shape):
                return False
            with torch.no_grad(), without_autocast(out.device):
                stage = self._make_stage(way, frame, out)
        elif shape[2] != way.width:
            return False
        entered = into if way.has_input else None
        found = way.read(frame, stage, out, entered, borrowed)
        if found is None:
            return False
        frame.fired.add(way.name)
        for statistic, states in way.noting:
            carry = frame.carry_of(statistic.name)
            statistic.note(states, way.site, stage.tokens, found, way.shift, carry)
        if way.is_all:
            return True
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                self._hand_on(site, way, frame, way.reading(stage, out, entered, found), borrowed)
        else:
            self._hand_on(site, way, frame, way.reading(stage, out, entered, found), borrowed)
        return True

    def _make_stage(self, way: Shortcut, frame: Frame, out: Tensor) -> Stage:
        """What the sites of this forward have in common that show tensors of this shape."""
        state, shape = self._plan.state.sites[way.name], out.shape
        resolved = self._tokens_of(frame, state, (shape[0], shape[1]), out.device)
        stage = frame.stages[way.stream, shape] = Stage(*resolved, out, len(self._plan.sites))
        return stage

    def _hand_on(
        self, site: SitePlan, way: Shortcut, frame: Frame, reading: Reading, borrowed: bool
    ) -> None:
        """Leave to the statistics what the short way does not do for them."""
        targets = site.second_moment_targets(reading.plans) if way.multiplies else None
        if targets:
            add_products(targets, reading.taps["out"], reading.reductions.keep, way.shift)
        if way.others:
            update(site, site.which_take(way.others, reading.plans), frame, reading)
            if borrowed:
                own_what_is_carried(frame.carry, reading.taps.values())

    def _tokens_of(
        self, frame: Frame, state: SiteState, grid: tuple[int, int], device: torch.device
    ) -> tuple[Tokens, dict[str, Any]]:
        """Resolve the stream's tokens once per forward, and copy them once per device."""
        batch, length = grid
        key = (state.stream, batch, length)
        if key not in frame.resolved:
            stream = self._plan.state.streams[state.stream]
            tokens = stream.stream.resolve(frame.call, frame.stated, batch, length)
            plans = {name: a.observe(tokens) for name, a in stream.shared.items()}  # type: ignore[attr-defined]
            frame.resolved[key] = tokens, plans
        tokens, plans = frame.resolved[key]
        if tokens.real.device == device:
            return tokens, plans
        there = (*key, device)
        if there not in frame.resolved:
            moved = {name: to_device(plan, device) for name, plan in plans.items()}
            frame.resolved[there] = tokens.to(device), moved
        return frame.resolved[there]


def shown_at(site: SitePlan, tensor: Tensor, frame: Frame) -> tuple[Tensor, int]:
    """A site's tensor as (B, T, d) and 1; at a norm of each head as (H B, T, k) and H."""
    name, layout, heads = site.place.name, site.layout, 1
    if site.place.kind != "norm" or tensor.is_nested:
        return to_batch_time_width(tensor, name, layout, frame.grid), heads
    axis, grid = 1, frame.grid_of(site.stream)
    if layout is not None and tensor.ndim == 4:
        # It says (batch, time, heads, k), or what it says of other sites.
        tensor, layout = rearranged(tensor, name, layout), None
    elif layout is None and tensor.ndim == 4:
        axis = find_time_axis(tensor.shape, grid, site.time_axis, name)
        if tensor.shape[1] != tensor.shape[2]:
            site.time_axis = axis
    elif layout is None and tensor.ndim == 3 and grid is not None:
        packed = tensor.shape[:2] != grid and len(tensor) == grid[0] * grid[1]
        tensor = (
            tensor.reshape(*grid, *tensor.shape[1:]) if packed else tensor
        )  # (tokens, heads, k)
    if tensor.ndim == 4:
        heads = tensor.shape[3 - axis]
        tensor = heads_to_rows(tensor, axis)
    return to_batch_time_width(tensor, name, layout, frame.grid), heads


def update(site: SitePlan, parts: Parts, frame: Frame, reading: Reading) -> None:
    """Hand one reading to statistics of a site."""
    if site.has_anatomy:
        describe(site, parts, frame, reading)
    for statistic, states in parts:
        reading.carry = frame.carry_of(statistic.name)
        statistic.update(states, reading)


def describe(site: SitePlan, parts: Parts, frame: Frame, reading: Reading) -> None:
    """Put into a reading what statistics of its site use of the model's anatomy."""
    if site.norm is not None and reading.site.norm_eps is not None:
        reading.taps["gain"], reading.taps["bias"] = site.norm.affine(reading.taps["out"])
    if site.block is not None and any("query_key" in s.uses for s, _ in parts):
        reading.query_key = site.block.query_key(reading.tokens.positions)
        reading.block = site.block.latest
    if site.lens is not None and any("logit_lens" in s.uses for s, _ in parts):
        reading.lens = site.lens.now()
    if site.lens is not None and any("head" in s.uses for s, _ in parts):
        reading.head = site.lens.head()
    if site.around is not None:
        reading.stack = site.around
        embedded = frame.embedded.pop(site.place.name, None)
        if embedded is not None:
            grid = reading.taps["out"].shape[:2]
            reading.taps["embedded"] = to_batch_time_width(
                embedded, site.place.name, site.layout, (grid[0], grid[1])
            )
