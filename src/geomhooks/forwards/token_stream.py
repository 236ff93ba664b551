"""What a call says of its tokens, resolved against the shape of a hidden state.

What a :class:`~geomhooks.forwards.calls.Call` said gives
:class:`~geomhooks.forwards.tokens.Tokens`. Nothing here depends on the values of a tensor: shapes
and arguments decide which branch is taken, so that a forward runs straight.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.accumulators import Count, Sum
from geomhooks.accumulators.table import EMPTY
from geomhooks.errors import TokensError
from geomhooks.forwards.caches import (
    UNTOLD,
    Running,
    marks_of,
    reference_to,
    reference_to_first,
)
from geomhooks.forwards.calls import Call, Statement, real_entries
from geomhooks.forwards.tokens import Tokens

__all__ = ["CENSUS", "TokenStream", "positions_of"]


class Columns(NamedTuple):
    """What is the same in all forwards of one shape whose positions are the columns from one on.

    Attributes:
        ones: (B, T) bool, True.
        positions: (B, T) int64.
        first: (B, T) bool, position 0.
        census: what such a forward without any mask adds to the census, and
        masked: each entry that is masked.
    """

    ones: Tensor
    positions: Tensor
    first: Tensor
    census: Tensor
    masked: Tensor


@lru_cache(maxsize=16)
def columns_from(start: int, batch: int, length: int, device: torch.device) -> Columns:
    """What is known of such forwards; one shape comes again and again."""
    with torch.inference_mode(False):
        column = torch.arange(start, start + length, device=device).expand(batch, length)
        number = batch * length
        # Filled in on the device: a tensor of given numbers would be copied there.
        census, masked = torch.zeros((2, len(CENSUS)), dtype=torch.int64, device=device)
        census[0].fill_(1)
        census[1:3].fill_(number)
        masked[2].fill_(-1)
        masked[3].fill_(1)
        ones = torch.ones((batch, length), dtype=torch.bool, device=device)
        return Columns(ones, column, column == 0, census, masked)


CENSUS = ("forwards", "entries", "real", "masked", "beyond", "crowded")


@dataclass
class TokenStream:
    """One token stream of a model: its capacity, its census, and which contexts its rows continue.

    Attributes:
        name: canonical name of the module whose calls open the stream.
        positions: capacity T.
        open: how many contexts may be unfinished at once, the bound on contexts in one forward of
            packed tokens.
        first_key: where the running numbers of contexts start; differs between shards.
    """

    name: str
    positions: int
    open: int
    first_key: int
    exclude: tuple[int, ...] = ()
    skip: int = 0
    census: Sum = field(init=False)
    next_key: Sum = field(init=False)
    running: list[Running] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.census = Count((len(CENSUS),))
        self.next_key = Count()

    def allocate(self, device: torch.device) -> None:
        """Create the running tensors."""
        self.census.allocate(device)
        self.next_key.allocate(device)

    def forget_rows(self) -> None:
        """The next forward's rows begin new contexts, whatever is in its cache."""
        self.running = []

    def remember(self, tokens: Tokens, cache: Any) -> None:
        """Note which contexts a finished forward's rows were, should a later one go on with them.

        Args:
            tokens: of that forward.
            cache: its cache as it is now, or None where it is not to be had.
        """
        if tokens.last is None:
            return
        marks = marks_of(cache)
        others = [r for r in self.running if r.marks != marks and not _is_of(r, cache)]
        first = reference_to_first(cache)
        noted = Running(tokens.last, tokens.end, marks, reference_to(cache), first)
        self.running = [*(r for r in others if not r.is_over), noted][-self.open :]

    def resolve(self, call: Call, stated: Statement, batch: int, length: int) -> Tokens:
        """Say what a hidden state (batch, length, d) consists of, and count it.

        Raises:
            TokensError: mask, positions, contexts or excluded ids do not fit the hidden state.
        """
        device = self.census.value.device
        before = self._gone_before(call, stated)
        if isinstance(call.past, int) and call.past == UNTOLD:
            call = replace(call, past=before.end if before is not None else 0, cache=None)
        stating, start = positions_of(call, stated, batch, length, device, self.name)
        known = columns_from(start or 0, batch, length, device)
        positions = known.positions if stating is None else stating
        real, masked = self._real(call, stated, known.ones)
        if call.rule == "ids" and start is None and call.pad is not None and call.ids is not None:
            real, masked = real & (call.ids.to(device) != call.pad), True
        excluded = real
        if self.exclude and call.text:
            if call.ids is None or tuple(call.ids.shape) != (batch, length):
                found = "no ids" if call.ids is None else f"ids of shape {tuple(call.ids.shape)}"
                raise TokensError(
                    f"exclude_token_ids needs the ids of a hidden state ({batch}, {length}); the "
                    f"call that opened the stream {self.name!r} had {found}. Give input_ids, or a "
                    "mask by watch.tokens(mask=...)."
                )
            drop = torch.tensor(self.exclude, device=device)
            excluded, masked = excluded & ~torch.isin(call.ids.to(device), drop), True
        if stated.positions is not None:
            self._check_positions(excluded, positions)
        if self.skip:
            excluded = excluded & (positions >= self.skip)
        inside = start is not None and 0 <= start <= self.positions - length
        counted, within = excluded, known.ones
        if not inside:
            within = (positions < self.positions) & (positions >= 0)
            counted = excluded & within

        tokens = self._contexts(call, stated, before, counted, positions, start)
        tokens.end = on_device(call.past, device) + length
        if call.text and call.ids is not None and tuple(call.ids.shape) == (batch, length):
            tokens.ids = call.ids.to(device)
        tokens.present = real
        if call.labels is not None and tuple(call.labels.shape) == (batch, length):
            tokens.labels = call.labels.to(device)
        tokens.interval = (
            start is not None and not masked and tokens.rows is None and tokens.segments is None
        )
        crowded = None
        if tokens.segments is not None:
            room = tokens.segments < tokens.number
            crowded = (tokens.real & ~room).sum()
            tokens.real = tokens.real & room
        tokens.first = known.first
        if not inside:
            # Columns beyond the capacity have no row to go to: their index is clamped, not sliced.
            tokens.start = None
            tokens.positions = positions.clamp(0, self.positions - 1)
            tokens.first = tokens.positions == 0
        census = known.census
        if inside and crowded is None:
            if masked or self.skip:
                census = census + (~excluded).sum() * known.masked
        else:
            none = census.new_zeros(())
            number = [none + 1, none + batch * length, tokens.real.sum(), (~excluded).sum()]
            beyond = (excluded & ~within).sum()
            census = torch.stack([*number, beyond, none if crowded is None else crowded])
        self.census.value.add_(census)
        return tokens

    def _check_positions(self, real: Tensor, positions: Tensor) -> None:
        """Raise where a real token is said to stand before the first position.

        Only where looking at the values waits for no device; elsewhere such tokens are counted as
        beyond the capacity.

        Raises:
            TokensError: one is.
        """
        if torch.compiler.is_compiling() or real.device.type != "cpu":
            return
        negative = real & (positions < 0)
        if negative.any():
            raise TokensError(
                f"watch.tokens(positions=...) of the stream {self.name!r}: {int(negative.sum())} "
                f"tokens that no mask hides have a negative position, the least "
                f"{int(positions[negative].min())}; positions count from 0. Add to them, or mask "
                "those tokens"
            )

    def _real(self, call: Call, stated: Statement, ones: Tensor) -> tuple[Tensor, bool]:
        """Which entries are real, and whether something says that some are not."""
        (batch, length), device = ones.shape, ones.device
        mask = stated.mask if stated.mask is not None else call.mask
        square = call.square_mask
        if mask is None and square is not None and len(square) == batch:
            if square.shape[2] == 1 and length > 1:  # over keys alone
                mask = square[:, 0, 0]
            elif square.shape[2] == length:
                return self._own_keys(square.to(device), call.past), True
        if mask is None:
            return ones, False
        mask = mask.to(device)
        if mask.ndim == 1 and len(mask) == batch * length:
            mask = mask.view(batch, length)
        own = stated.mask is None
        if own and not call.text and mask.shape != (batch, length):
            return ones, False
        if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] < length:
            raise TokensError(
                f"the mask of the stream {self.name!r} has shape {tuple(mask.shape)}, the hidden "
                f"states ({batch}, {length}, d); allowed is ({batch}, {length}), or wider, of "
                "which the last columns count. Give the right one by watch.tokens(mask=...)."
            )
        real = real_entries(mask)
        return (own_columns(real, call, length) if own else last_columns(real, length)), True

    def _own_keys(self, square: Tensor, past: int | Tensor) -> Tensor:
        """A token is real if, of the keys (B, heads, T, keys), it may attend to its own."""
        length, keys = square.shape[2], square.shape[3]
        column = torch.arange(length, device=square.device) + on_device(past, square.device)
        own = column.clamp(max=keys - 1)[:, None].expand(len(square), length, 1)
        found = square[:, 0].gather(2, own)[..., 0]
        # A mask that is added to the scores is 0 where attention is allowed.
        return found == 0 if found.is_floating_point() else found != 0

    def _contexts(
        self,
        call: Call,
        stated: Statement,
        before: Running | None,
        real: Tensor,
        positions: Tensor,
        start: int | None,
    ) -> Tokens:
        batch, length = real.shape
        device = real.device
        none = real.new_zeros(batch, dtype=torch.int64)
        groups, token_groups = none - 1, None
        if stated.groups is not None:
            given = stated.groups.to(device, torch.int64)
            labels = self._fit("groups", given, batch, length)
            token_groups = labels[:, None].expand_as(real) if labels.ndim == 1 else labels
            # Of tokens' labels a context takes the largest.
            groups = labels if labels.ndim == 1 else torch.where(real, labels, EMPTY).amax(1)
        tokens = Tokens(
            real, positions, start, none, groups, token_groups=token_groups, capacity=self.positions
        )
        if stated.contexts is not None:
            ids = self._fit("contexts", stated.contexts.to(device), batch, length)
            if ids.ndim == 1:
                tokens.keys = ids
                # Equal ids are one context: each row goes to the first row of its id.
                tokens.rows = (ids[:, None] == ids[None, :]).to(torch.int8).argmax(1)
                if stated.groups is not None and stated.groups.ndim == 2:
                    tokens.groups = self._per_context(tokens.rows, groups, batch)
            else:
                self._segment_by_id(tokens, ids)
            return tokens
        continued = self._continued(call, before, device)
        if start is not None or length == 1:
            new = self.first_key + self.next_key.value + torch.arange(batch, device=device)
            self.next_key.add(torch.full((), batch, dtype=torch.int64, device=device))
            tokens.keys = new
            if continued is not None:
                old, sure, flag = continued
                tokens.keys = old if sure else torch.where(flag, old, new)
                tokens.continues = sure and batch <= self.open
            tokens.last = tokens.keys
            return tokens
        self._segment_by_restart(tokens, continued)
        return tokens

    def _gone_before(self, call: Call, stated: Statement) -> Running | None:
        """The rows that a forward goes on with: those whose cache it is given.

        Raises:
            TokensError: the cache's rows are not those that they were.
        """
        past = call.past
        if stated.contexts is not None or (isinstance(past, int) and past == 0):
            return None
        batch = call.grid[0] if call.grid is not None else None
        self.running = [running for running in self.running if not running.is_over]
        for running in reversed(self.running):
            same_rows = batch is None or len(running.contexts) == batch
            if running.marks == call.marks and same_rows and _goes_on(past, running.end):
                return running
        for running in reversed(self.running):
            own = _is_of(running, call.cache) or (running.marks and running.marks == call.marks)
            if reference_to(call.cache) is None and running.marks and call.marks:
                own = own or len(running.contexts) == batch  # there is nothing better to go by
            if own and not _is_later(past, running.end):
                raise TokensError(
                    f"the cache that the stream {self.name!r} goes on with was changed after its "
                    "last forward: beam search reorders its rows, assisted decoding cuts it back, "
                    "and what was counted of the rows that went before cannot follow. Generate "
                    "with num_beams=1 and no assistant; or generate under watch.pause() and then "
                    "run one forward over the sequences; or say which context each row is by "
                    "watch.tokens(contexts=...). What was counted so far is kept."
                )
        return None

    @staticmethod
    def _continued(
        call: Call, before: Running | None, device: torch.device
    ) -> tuple[Tensor, bool, Tensor] | None:
        """The contexts that rows go on with, whether that is certain, and the device's word."""
        if before is None:
            return None
        contexts = before.contexts.to(device)
        everywhere = torch.ones((), dtype=torch.bool, device=device)
        if isinstance(call.past, int) and isinstance(before.end, int):
            return contexts, True, everywhere
        # A cache that counts on the device may have been emptied, or cut back, without a trace.
        end = before.end.to(device) if isinstance(before.end, Tensor) else before.end
        past = call.past.to(device) if isinstance(call.past, Tensor) else call.past
        return contexts, False, everywhere & (past == end)

    def _bound(self, real: Tensor) -> int:
        """How many contexts a forward of packed tokens may have."""
        return min(real.numel(), max(len(real), self.open))

    def _segment_by_id(self, tokens: Tokens, ids: Tensor) -> None:
        """One context for each different id among the real tokens."""
        real, number = tokens.real, self._bound(tokens.real)
        flat = torch.where(real, ids, EMPTY).reshape(-1)
        ordered, order = flat.sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        first &= ordered != EMPTY
        rank = first.to(torch.int64).cumsum(0) - 1
        rank = torch.where(ordered == EMPTY, number, rank.clamp(max=number))
        tokens.segments = torch.empty_like(rank).index_copy_(0, order, rank).view_as(real)
        tokens.keys = self._per_context(tokens.segments, ids, number)
        self._label(tokens)

    def _segment_by_restart(
        self, tokens: Tokens, continued: tuple[Tensor, bool, Tensor] | None
    ) -> None:
        """A context ends where the position does not grow, and at the end of a row."""
        real, positions, number = tokens.real, tokens.positions, self._bound(tokens.real)
        batch, length = real.shape
        column = torch.arange(length, device=real.device).expand_as(real)
        latest = torch.where(real, column, -1).cummax(1).values
        before = torch.nn.functional.pad(latest, (1, -1), value=-1)
        previous = positions.gather(1, before.clamp(min=0))
        begins = real & ((before < 0) | (positions <= previous))
        index = begins.reshape(-1).to(torch.int64).cumsum(0).view_as(real) - 1
        tokens.segments = torch.where(real, index.clamp(max=number), number)
        fresh = self.first_key + self.next_key.value
        keys = fresh + torch.arange(number + 1, device=real.device)
        self.next_key.add(begins.sum() + batch)
        begun = real.any(1)
        if continued is not None:
            old, _, flag = continued
            first = real.to(torch.int8).argmax(1, keepdim=True)
            segment = torch.where(begun, tokens.segments.gather(1, first)[:, 0], number)
            keys.index_copy_(0, segment, torch.where(begun & flag, old, keys[segment]))
        last = latest[:, -1:].clamp(min=0)
        ends = keys[tokens.segments.gather(1, last)[:, 0]]
        # A row without a real token has begun nothing; should it go on, it has a key in reserve.
        spare = fresh + begins.sum() + torch.arange(batch, device=real.device)
        kept = continued[0] if continued is not None else spare
        tokens.last = torch.where(begun, ends, kept)
        tokens.keys = keys[:-1]
        self._label(tokens)

    def _label(self, tokens: Tokens) -> None:
        """Give each context the label of its row, or the largest of its tokens."""
        assert tokens.segments is not None
        labels = tokens.token_groups
        if labels is None:
            labels = tokens.groups[:, None].expand_as(tokens.real)
        tokens.groups = self._per_context(tokens.segments, labels, tokens.number)

    @staticmethod
    def _per_context(segments: Tensor, values: Tensor, number: int) -> Tensor:
        """The largest value (B, T) of each context, (M,); EMPTY where it has none."""
        out = values.new_full((number + 1,), EMPTY)
        out.scatter_reduce_(0, segments.reshape(-1), values.reshape(-1), "amax")
        return out[:-1]

    def _fit(self, name: str, value: Tensor, batch: int, length: int) -> Tensor:
        if value.shape in {(batch,), (batch, length)}:
            return value
        if value.shape == (length,) and batch == 1:
            return value[None]
        raise TokensError(
            f"{name} of the stream {self.name!r} has shape {tuple(value.shape)}, the hidden states "
            f"({batch}, {length}, d); allowed is ({batch},) or ({batch}, {length})"
        )


def positions_of(
    call: Call, stated: Statement, batch: int, length: int, device: torch.device, stream: str = ""
) -> tuple[Tensor | None, int | None]:
    """Positions (B, T); or, if they are consecutive columns for certain, where rows start.

    Raises:
        TokensError: positions do not fit the hidden states (batch, length, d).
    """
    positions = stated.positions if stated.positions is not None else call.positions
    if positions is not None:
        positions = positions.to(device)
        if positions.ndim == 1:
            positions = (
                positions[None] if len(positions) != batch or batch == 1 else positions[:, None]
            )
        if positions.shape[0] not in (1, batch) or positions.shape[1] != length:
            raise TokensError(
                f"the positions of the stream {stream!r} have shape "
                f"{tuple(positions.shape)}, the hidden states ({batch}, {length}, d); "
                f"allowed is ({batch}, {length}) or (1, {length})"
            )
        return positions.to(torch.int64).expand(batch, length), None
    if call.rule == "mask" and call.mask is not None and stated.mask is None:
        mask = real_entries(call.mask).to(device)
        if mask.shape[0] == batch and mask.shape[1] >= length:
            return own_columns(mask.to(torch.int64).cumsum(1) - 1, call, length), None
    if call.rule == "ids" and call.ids is not None and tuple(call.ids.shape) == (batch, length):
        counted = call.ids.ne(-1 if call.pad is None else call.pad).to(device, torch.int64)
        return counted.cumsum(1) - 1 + on_device(call.past, device), None
    if isinstance(call.past, int):
        return None, call.past
    column = torch.arange(length, device=device).expand(batch, length)
    return column + on_device(call.past, device), None


def last_columns(wide: Tensor, length: int) -> Tensor:
    """The last columns (B, T) of what is as wide or wider."""
    return wide[:, wide.shape[1] - length :]


def own_columns(wide: Tensor, call: Call, length: int) -> Tensor:
    """The columns (B, T) of a call's tokens in what it says of these and of others.

    With a cache they come after those that are in it, and a static one may have room behind them.
    Without, or where it is told of the new tokens only, they are the last.
    """
    past, last = call.past, wide.shape[1] - length
    if call.cache is None:
        return last_columns(wide, length)
    if isinstance(past, int):
        start = past if past <= last else last
        return wide[:, start : start + length]
    start_at = torch.where(past.to(wide.device) <= last, past.to(wide.device), last)
    return wide.index_select(1, start_at + torch.arange(length, device=wide.device))


def on_device(past: int | Tensor, device: torch.device) -> int | Tensor:
    """How many positions are in the cache, where the tokens are."""
    return past.to(device) if isinstance(past, Tensor) else past


def _is_of(running: Running, cache: Any) -> bool:
    """These rows went on in this very cache, whatever has become of it."""
    return cache is not None and running.cache is not None and running.cache() is cache


def _goes_on(past: int | Tensor, end: int | Tensor) -> bool:
    """Nothing was put into a cache or taken out of it, as far as the host can tell."""
    return not isinstance(past, int) or not isinstance(end, int) or past in (end, UNTOLD)


def _is_later(past: int | Tensor, end: int | Tensor) -> bool:
    """More has been put into a cache than these rows: forwards that were not watched."""
    return isinstance(past, int) and isinstance(end, int) and past > end
