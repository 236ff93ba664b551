"""All running tensors of one watch: by site, by token stream, and for the whole model.

The same object is the live state of a watch, the copy in a snapshot, and what a file holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count, Field, Sum
from geomhooks.errors import SchemaError
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.forwards.tokens import Tokens
from geomhooks.native import load, usable
from geomhooks.statistics.base import Site, Statistic

__all__ = ["Shift", "SiteState", "State", "StreamState", "plain_value", "refuse_merge"]


class Shift(Accumulator):
    """The fixed vector that a site's sums are taken about: about the mean of the first tokens."""

    def __init__(self, width: int) -> None:
        super().__init__(
            {"value": Field((width,), torch.float64), "known": Field((), torch.bool, False)}
        )

    def settle(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Set the shift from the first real tokens, once, and return it (d,).

        A sample of them does: a shift has to be near the mean, not equal to it. Whether it is set
        already is looked up, not branched on, and no forwards are counted in Python.
        """
        value, known = self["value"], self["known"]
        if hidden.dtype in (torch.float32, torch.float64) and usable(hidden, value):
            if self.array("known")[0]:  # in the host's own memory
                return value
            settle, states = load("sums").settle(hidden.dtype), hidden.contiguous().numpy()
            chosen = tokens.sample.numpy(), tokens.any_real.view(1).numpy()
            settle(states, *chosen, self.array("value"), self.array("known"))
            return value
        sample = hidden.flatten(0, 1).index_select(0, tokens.sample)
        sample.nan_to_num_(0.0, 0.0, 0.0)
        # The middle one of three means, so that a single outlier does not carry it away; in the
        # type of the hidden states, so that subtracting it rounds nothing away.
        a, b, c = sample.view(-1, 3, sample.shape[1]).mean(0).unbind(0)
        middle = torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
        value.copy_(torch.where(known | ~tokens.any_real, value, middle.to(value.dtype)))
        known.logical_or_(tokens.any_real)
        return value

    def merge(self, other: Shift, plan: Any = None) -> None:
        """Take the other's shift where this has none."""
        device = self["value"].device
        self["value"].copy_(torch.where(self["known"], self["value"], other["value"].to(device)))
        self["known"].logical_or_(other["known"].to(device))


Accumulators = dict[str, dict[str, Accumulator]]  # by statistic, by name


@dataclass
class SiteState:
    """The state at one site."""

    site: Site
    stream: str
    statistics: Accumulators
    shift: Shift
    forwards: Sum = field(default_factory=Count)
    order: int = -1

    def accumulators(self) -> Iterator[tuple[str, Accumulator]]:
        """All accumulators by path."""
        yield "shift", self.shift
        yield "forwards", self.forwards
        yield from _walk(self.statistics)


@dataclass
class StreamState:
    """The state of one token stream: its census, and what its sites share."""

    stream: TokenStream
    shared: dict[str, Accumulator]
    statistics: Accumulators

    def accumulators(self) -> Iterator[tuple[str, Accumulator]]:
        """All accumulators by path."""
        yield "census", self.stream.census
        yield "next_key", self.stream.next_key
        yield from self.shared.items()
        yield from _walk(self.statistics)

    def clone(self, device: torch.device | str | None = None) -> StreamState:
        """An independent copy, optionally on another device; no row of it goes on."""
        stream = object.__new__(TokenStream)
        stream.__dict__.update(self.stream.__dict__)
        stream.census = self.stream.census.clone(device)
        stream.next_key = self.stream.next_key.clone(device)
        stream.running = []
        shared = {name: a.clone(device) for name, a in self.shared.items()}
        return StreamState(stream, shared, _clone(self.statistics, device))


@dataclass
class State:
    """Everything that was counted, and by what it is known to fit another state."""

    statistics: dict[str, Statistic]
    model: str
    shards: list[str]
    sites: dict[str, SiteState] = field(default_factory=dict)
    streams: dict[str, StreamState] = field(default_factory=dict)
    whole: Accumulators = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)

    def accumulators(self) -> Iterator[tuple[str, Accumulator]]:
        """All accumulators by a path that is unique: what a file calls its tensors."""
        for name, stream in self.streams.items():
            yield from ((f"stream/{name}/{path}", a) for path, a in stream.accumulators())
        for name, site in self.sites.items():
            yield from ((f"site/{name}/{path}", a) for path, a in site.accumulators())
        yield from ((f"model/{path}", a) for path, a in _walk(self.whole))

    @property
    def nbytes(self) -> int:
        """What all accumulators take."""
        return sum(a.nbytes for _, a in self.accumulators())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by path, not copied."""
        return {
            f"{path}/{name}": t for path, a in self.accumulators() for name, t in a.pack().items()
        }

    def reset(self, shard: str, first_key: int) -> None:
        """Forget everything that was counted, in place, and begin another shard."""
        self.shards = [shard]
        for _, accumulator in self.accumulators():
            accumulator.reset()
        for stream in self.streams.values():
            stream.stream.first_key = first_key
            stream.stream.forget_rows()

    def clone(self, device: torch.device | str | None = None) -> State:
        """An independent copy, optionally on another device; counts by then are complete."""
        streams = {name: stream.clone(device) for name, stream in self.streams.items()}
        sites = {
            name: SiteState(
                s.site,
                s.stream,
                _clone(s.statistics, device),
                s.shift.clone(device),
                s.forwards.clone(device),
                s.order,
            )
            for name, s in self.sites.items()
        }
        return State(
            self.statistics,
            self.model,
            list(self.shards),
            sites,
            streams,
            _clone(self.whole, device),
            dict(self.selection),
        )

    def describe(self) -> dict[str, Any]:
        """All that is not a tensor, as JSON can hold it."""
        return {
            "model": self.model,
            "shards": self.shards,
            "selection": self.selection,
            "statistics": {
                name: {
                    "class": f"{type(s).__module__}.{type(s).__qualname__}",
                    "parameters": s.parameters,
                }
                for name, s in self.statistics.items()
            },
            "streams": {
                name: {
                    "positions": s.stream.positions,
                    "open": s.stream.open,
                    "first_key": s.stream.first_key,
                    "exclude": list(s.stream.exclude),
                    "skip": s.stream.skip,
                    "statistics": list(s.statistics),
                }
                for name, s in self.streams.items()
            },
            "sites": {
                name: {"site": asdict(s.site), "stream": s.stream, "statistics": list(s.statistics)}
                for name, s in self.sites.items()
            },
            "whole": list(self.whole),
        }

    def check_fits(self, other: Mapping[str, Any], what: str) -> None:
        """Raise unless another state's description is of the same model, sites and parameters.

        Raises:
            SchemaError: naming the first field that differs, and both values.
        """
        mine = self.describe()
        _same("model", mine["model"], other["model"], what)
        _same("statistics", sorted(mine["statistics"]), sorted(other["statistics"]), what)
        for name, statistic in mine["statistics"].items():
            theirs = other["statistics"][name]["parameters"]
            for key in sorted({*statistic["parameters"], *theirs}):
                _same(f"{name}.{key}", statistic["parameters"].get(key), theirs.get(key), what)
        for key in sorted({*mine["selection"], *other["selection"]}):
            _same(key, mine["selection"].get(key), other["selection"].get(key), what)
        missing = set(mine["sites"]) ^ set(other["sites"])
        if missing:
            _same("sites", sorted(mine["sites"]), sorted(other["sites"]), what)
        for kind in ("streams", "sites"):
            for name in mine[kind]:
                theirs = other[kind].get(name)
                if theirs is None:
                    _same(kind, sorted(mine[kind]), sorted(other[kind]), what)
                for key, value in mine[kind][name].items():
                    if key != "first_key":
                        _same(f"{name or 'the model'}: {key}", value, theirs[key], what)

    def merge(self, other: State) -> None:
        """Take in another shard, in place.

        Raises:
            SchemaError: a shard is in both, or the states do not fit, or a statistic does not
                merge.
        """
        refuse_merge(self.statistics)
        twice = sorted(set(self.shards) & set(other.shards))
        if twice:
            raise SchemaError(
                f"shard {twice[0]} is in both; merging it would count its tokens twice. Of several "
                "snapshots of one run merge only the last."
            )
        self.check_fits(other.describe(), "merge")
        self.take_in(other)

    def take_in(self, other: State) -> None:
        """Merge what both states have, and take over what only the other has; no check is made."""
        plans: dict[str, dict[str, Any]] = {}
        with_sites, with_their_sites = (
            {site.stream for site in state.sites.values()} for state in (self, other)
        )
        for name, theirs in other.streams.items():
            stream = self.streams.setdefault(name, theirs)
            if stream is theirs:
                continue
            # Shared accumulators decide for sites. Without sites a stream has its statistics alone.
            if name in with_sites & with_their_sites:
                both = stream.shared.keys() & theirs.shared.keys()
                plans[name] = {n: stream.shared[n].merge(theirs.shared[n]) for n in both}
                stream.shared |= {n: a for n, a in theirs.shared.items() if n not in both}
                stream.stream.census.merge(theirs.stream.census)
            elif name in with_their_sites:
                stream.stream, stream.shared = theirs.stream, theirs.shared
            _merge(stream.statistics, theirs.statistics)
        for name, site in other.sites.items():
            mine = self.sites.setdefault(name, site)
            if mine is not site:
                shared = other.streams[site.stream].shared
                self._merge_site(mine, site, plans[site.stream], shared)
        _merge(self.whole, other.whole)
        self.shards += other.shards

    @staticmethod
    def _merge_site(
        mine: SiteState, other: SiteState, plans: dict[str, Any], shared: dict[str, Accumulator]
    ) -> None:
        delta = other.shift["value"].to(mine.shift["value"].device) - mine.shift["value"]
        both = bool(mine.shift["known"]) and bool(other.shift["known"])
        mine.shift.merge(other.shift)
        mine.forwards.merge(other.forwards)
        for statistic, accumulators in mine.statistics.items():
            for name, accumulator in accumulators.items():
                theirs, follows = other.statistics[statistic][name], accumulator.follows
                if both:
                    theirs = theirs.clone(delta.device)
                    theirs.rebase(delta, shared.get(follows or ""))
                accumulator.merge(theirs, plans.get(follows or ""))


def refuse_merge(statistics: Mapping[str, Statistic]) -> None:
    """Raise if one of these does not obey the law of merging.

    Raises:
        SchemaError: naming it.
    """
    for name, statistic in statistics.items():
        if "merge" not in statistic.laws:
            raise SchemaError(
                f"{name} does not merge: what it holds depends on the order in which its tokens "
                "came, so that two of them are not one. Let one process see all of its text, or "
                "give it a watch of its own, whose geometry is not merged"
            )


def _same(name: str, mine: Any, theirs: Any, what: str) -> None:
    mine, theirs = plain_value(mine), plain_value(theirs)
    if mine != theirs:
        raise SchemaError(f"{what}: {name} differs: {mine!r} here, {theirs!r} there")


def plain_value(value: Any) -> Any:
    """As it would come back from JSON."""
    if isinstance(value, (tuple, list)):
        return [plain_value(item) for item in value]
    return {k: plain_value(v) for k, v in value.items()} if isinstance(value, dict) else value


def _walk(table: Accumulators) -> Iterator[tuple[str, Accumulator]]:
    for statistic, accumulators in table.items():
        for name, accumulator in accumulators.items():
            yield f"{statistic}/{name}", accumulator


def _clone(table: Accumulators, device: torch.device | str | None) -> Accumulators:
    return {s: {n: a.clone(device) for n, a in named.items()} for s, named in table.items()}


def _merge(mine: Accumulators, theirs: Accumulators) -> None:
    for statistic, accumulators in theirs.items():
        if mine.setdefault(statistic, accumulators) is not accumulators:
            for name, accumulator in accumulators.items():
                mine[statistic][name].merge(accumulator)
