"""The short way from a hook to the state: one compiled call for all that a site does in a forward.

It is open where a site has been read before and nothing about it is unusual: plain contiguous
tensors on a CPU, of the type and width that they had, and contexts that one step can hold.
Elsewhere :meth:`geomhooks.forwards.routing.Routing.read` goes the long way, to the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator
from geomhooks.forwards.frames import Frame
from geomhooks.forwards.tokens import Tokens
from geomhooks.native import load, usable
from geomhooks.plan import SitePlan
from geomhooks.reductions import DTYPES, OnePass, sites_that_wait, workers_for
from geomhooks.state import SiteState
from geomhooks.statistics.base import Reading, Statistic

__all__ = ["Shortcut", "Stage"]

# What the call hands out beside what it adds up in the state.
GIVEN = frozenset(
    {"squared_norm", "ones", "norm", "radius", "shifted_squared_norm", "directions", "step"}
)


class Stage:
    """What the sites of one forward have in common.

    Args:
        tokens: of the forward.
        plans: what the shared accumulators of the stream said of it.
        states: the hidden states (B, T, d) of one of the sites.
        sites: how many sites there may be.
    """

    def __init__(self, tokens: Tokens, plans: dict[str, Any], states: Tensor, sites: int) -> None:
        self.tokens, self.plans, self.shape = tokens, plans, states.shape
        steps = plans.get("contexts", [None])
        self.is_open = len(steps) == 1
        if not self.is_open:
            return
        native = load("site")
        step = None if steps[0] is None else steps[0].arrays
        self.record = native.TokensRecord(tokens.arrays, tokens.number, step)
        self.record_address = self.record.address
        self.workers = workers_for(states) if tokens.start is not None else 1
        batch, length = tokens.real.shape
        width = states.shape[2]
        rows = tokens.number if tokens.segments is not None else batch
        room = min(sites, sites_that_wait(batch * length, width))
        self._shape = room, native.scratch(batch, length, width, self.workers)
        self.numbers, self.row, self._left = np.empty((0, self._shape[1])), -1, 0
        self._address, self._step = 0, 8 * self._shape[1]
        self.groups = np.empty(self.workers * (rows + 1) * width)
        self.groups_address = native.address_of(self.groups)

    def next_address(self) -> int:
        """Where the next site puts its numbers down: at ``row`` of ``numbers``."""
        if self._left == 0:  # what is there is kept by those who still need it
            self.numbers, self.row, self._left = np.empty(self._shape), -1, self._shape[0]
            self._address = load("site").address_of(self.numbers) - self._step
        self.row += 1
        self._left -= 1
        self._address += self._step
        return self._address


class Shortcut:
    """One site's record for the compiled call.

    Args:
        site: its plan.
        state: its state.
        dtype: of its hidden states.

    Attributes:
        replaced: :attr:`geomhooks.accumulators.Accumulator.replaced` when this way was opened;
            where it has changed, the state may be elsewhere than it was.
        multiplies: sums of products are taken at the site.
        noting: statistics that only put down the reductions, and
        others: those that read.
        is_all: there are none of those.
    """

    def __init__(self, site: SitePlan, state: SiteState, dtype: torch.dtype) -> None:
        native = load("site")
        taken = [sums for s, held in site.parts if (sums := s.two_way(held)) is not None]
        left = [part for part in site.parts if part[0].two_way(part[1]) is None]
        self.noting = [
            (statistic, held)
            for statistic, held in left
            if statistic.only_notes(state.site) and type(statistic).takes is Statistic.takes
        ]
        self.others = [part for part in left if part not in self.noting]
        self.site, self.stream, self.dtype = state.site, state.stream, dtype
        self.name, self.width = state.site.name, state.site.width
        self.has_input = state.site.has_input
        self.multiplies = any(s.has_products for s, _ in site.parts)
        self.is_all = not self.others and not self.multiplies
        self.moves = "step" in site.needs and state.site.has_input
        self.shift: Tensor = state.shift["value"]
        # Views that Python reads and writes faster than it does arrays.
        self._known = memoryview(state.shift.array("known"))
        self.replaced = Accumulator.replaced
        over_tokens = bool(taken) or "directions" in site.needs
        counter = state.forwards.array("value")
        self._told = native.describe_site(dtype, state.shift.array("value"), over_tokens, counter)
        for sums in taken:
            native.describe_sums(self._told, {name: sums.array(name) for name in sums.fields})
        self._write, self._written = native.CALLED.pack_into, memoryview(self._told)
        self._call_at = 8 * native.CALL
        self._address, self._run = native.address_of(self._told), native.run()

    @classmethod
    def of(cls, site: SitePlan, state: SiteState, hidden: Tensor) -> Shortcut | None:
        """The short way at a site whose state is there; None where there is none."""
        if (
            hidden.dtype not in DTYPES
            or site.layout is not None
            or site.looks
            or not usable(hidden, state.shift["value"])
        ):
            return None
        taken = [s for s, held in site.parts if s.two_way(held) is not None]
        needed = {n for s, _ in site.parts if s not in taken for n in s.needs_at(state.site)}
        always = all(type(s).takes is Statistic.takes for s in taken)
        fits = len(taken) < 2 and always and needed <= GIVEN
        return cls(site, state, hidden.dtype) if fits else None

    def fits(self, tensor: Any) -> bool:
        """A tensor is of the kind that this way was opened for, but for its shape."""
        return (
            type(tensor) is Tensor
            and not tensor.is_nested
            and tensor.dtype is self.dtype
            and tensor.is_cpu
            and tensor.is_contiguous()
        )

    def fits_shape(self, shape: torch.Size) -> bool:
        """Hidden states of this shape are what this way was opened for."""
        return len(shape) == 3 and shape[2] == self.width and 0 not in shape

    def read(
        self, frame: Frame, stage: Stage, out: Tensor, into: Tensor | None, borrowed: bool
    ) -> OnePass | None:
        """Add one forward, and return what there is to know of it; None if this way is closed.

        Args:
            frame: the forward.
            stage: what its sites have in common.
            out: the site's tensor, which fits, and has the stage's shape.
            into: the module's input, or None where the site has none.
            borrowed: see :meth:`geomhooks.forwards.routing.Routing.read`.
        """
        if not stage.is_open or not self._known[0]:
            return None
        entered = known_at = 0
        if into is not None:
            known = None if borrowed else frame.known_of(into, out, self.name)
            # What another site has shown on this stage is as it has to be, but for its type.
            shown = type(known) is OnePass and known.block is stage.numbers
            if not shown and (not self.fits(into) or into.shape != stage.shape):
                return None
            if into.dtype is not self.dtype:
                return None
            if self.moves:
                entered = into.data_ptr()
                known_at = known.address if type(known) is OnePass else 0
        address = stage.next_address()
        self._write(
            self._written,
            self._call_at,
            stage.record_address,
            stage.workers,
            out.data_ptr(),
            entered,
            known_at,
            address,
            stage.groups_address,
        )
        self._run(self._address)
        moves, workers = entered != 0, stage.workers
        found = OnePass(stage.numbers, stage.row, address, stage.shape, workers, self.shift, moves)
        if not borrowed:
            frame.read(out, found)
        return found

    def reading(self, stage: Stage, out: Tensor, into: Tensor | None, found: OnePass) -> Reading:
        """What is left to the statistics."""
        taps = {"out": out.detach() if out.requires_grad else out}
        if into is not None:
            taps["in"] = into.detach() if into.requires_grad else into
        return Reading(self.site, taps, stage.tokens, found, self.shift, stage.plans, {})
