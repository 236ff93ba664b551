"""What a watch does at each forward, and the state that it does it to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from geomhooks.accumulators import Accumulator
from geomhooks.accumulators.second_moment import SecondMoment
from geomhooks.accumulators.two_way import TwoWay
from geomhooks.errors import SchemaError, SiteError
from geomhooks.forwards.openers import Opener, width_from_config
from geomhooks.forwards.running import Look
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.norms import NormModule
from geomhooks.sharded import refuse_piece_of_width
from geomhooks.sites import Place
from geomhooks.state import Shift, SiteState, State, StreamState
from geomhooks.statistics.base import Site, Statistic
from geomhooks.storage.files import first_key_of
from geomhooks.storage.packing import pack_state, restore_tensors, unpack_state

if TYPE_CHECKING:
    from geomhooks.anatomy.families import Stack
    from geomhooks.anatomy.live import LiveBlock, LiveLens
    from geomhooks.anatomy.parts import Attention

__all__ = ["Parts", "Plan", "SitePlan"]

Parts = list[tuple[Statistic, Mapping[str, Accumulator]]]  # statistics, each with its state


@dataclass
class SitePlan:
    """A site, the statistics taken there, and how its tensor is read.

    Attributes:
        time_axis: of a norm over the entries of each head, once a forward has told.
    """

    place: Place
    statistics: list[Statistic]
    stream: str
    layout: str | None
    norm: NormModule | None
    whole_stack: bool
    block: LiveBlock | None = None
    lens: LiveLens | None = None
    around: Stack | None = None
    time_axis: int | None = None
    looks: list[Look] = field(default_factory=list)
    needs: frozenset[str] = frozenset()
    parts: Parts = field(default_factory=list)
    has_anatomy: bool = False
    shortcut: Any = None
    _sums: TwoWay | None = None
    _chooses: bool = False
    _multiplies: Parts = field(default_factory=list)

    @property
    def wants_input(self) -> bool:
        """Some statistic reads the module's input."""
        return any("in" in (*s.taps, *s.optional_taps) for s in self.statistics)

    @property
    def attention(self) -> Attention | None:
        """The block's attention as it was when the plan was made, where a statistic uses it."""
        return self.block.latest.attention if self.uses("query_key") and self.block else None

    @property
    def sublayers(self) -> int:
        """How many sublayers the block has."""
        return 0 if self.block is None else len(self.block.latest.sublayers)

    @property
    def depth(self) -> int:
        """How many blocks of the stack around it have run."""
        if self.around is None or self.place.is_input:
            return 0
        return [block.name for block in self.around.blocks].index(self.place.name) + 1

    @property
    def reads_source(self) -> bool:
        """Blocks of the stack around it have attention to another stack."""
        blocks = () if self.around is None else self.around.blocks
        return any(sublayer.kind == "cross_attention" for b in blocks for sublayer in b.sublayers)

    @property
    def vocabulary(self) -> int:
        """How many tokens the embeddings of the stack around it have rows for."""
        embeddings = None if self.around is None else self.around.embeddings
        return 0 if embeddings is None or embeddings.tokens is None else len(embeddings.tokens)

    @property
    def embedding_norm(self) -> nn.Module | None:
        """The norm of embeddings whose input is looked at for the first block's."""
        embeddings = None if self.around is None else self.around.embeddings
        if embeddings is None or embeddings.norm is None or not self.place.is_input:
            return None
        return embeddings.norm.module

    def uses(self, what: str) -> bool:
        """Some statistic uses this of the model's anatomy."""
        return any(what in statistic.uses for statistic in self.statistics)

    def bind(self, state: State, site: SiteState) -> None:
        """Say once, when its state is there, what every forward at this site does."""
        held = {
            "site": site.statistics,
            "stream": state.streams[site.stream].statistics,
            "model": state.whole,
        }
        self.parts = [(s, held[s.scope][s.name]) for s in self.statistics]
        self.needs = frozenset(n for s in self.statistics for n in s.needs_at(site.site))
        takers = [part for part in self.parts if "position_sum" in part[0].needs_at(site.site)]
        self._sums = takers[0][0].two_way(takers[0][1]) if len(takers) == 1 else None
        self.shortcut = None
        known = self.norm, self.block, self.lens, self.around
        self.has_anatomy = any(part is not None for part in known)
        self._chooses = any(type(s).takes is not Statistic.takes for s in self.statistics)
        self._multiplies = [part for part in self.parts if part[0].has_products]

    def taking(self, plans: Mapping[str, Any], site: Site) -> tuple[Parts, frozenset[str]]:
        """The statistics that look at a forward with these plans, and what they need."""
        parts = self.which_take(self.parts, plans)
        if parts is self.parts:
            return parts, self.needs
        return parts, frozenset(need for s, _ in parts for need in s.needs_at(site))

    def which_take(self, parts: Parts, plans: Mapping[str, Any]) -> Parts:
        """Those of some statistics of the site that look at a forward with these plans."""
        return [part for part in parts if part[0].takes(plans)] if self._chooses else parts

    def second_moment_targets(self, plans: Mapping[str, Any]) -> list[SecondMoment]:
        """What the products of a forward with these plans are added to."""
        if not self._multiplies:
            return []
        found = [
            s.second_moment_target(state, plans) for s, state in self._multiplies if s.takes(plans)
        ]
        return [target for target in found if target is not None]

    @property
    def position_sum_target(self) -> Tensor | None:
        """Where the sums by position are added to straight, if one statistic alone needs them."""
        return None if self._sums is None else self._sums["position_sum"]


@dataclass
class Plan:
    """What a watch does at each forward, and the state that it does it to."""

    root: nn.Module
    sites: list[SitePlan]
    openers: list[Opener]
    state: State
    positions: dict[str, int]
    open: int
    exclude: tuple[int, ...]
    skip: int
    pending: dict[str, Any] | None = None
    configs: dict[str, Any] = field(default_factory=dict)
    _fired: int = 0

    # Allocation

    def allocate_from_config(self) -> None:
        """Allocate the state of blocks whose model has a config that tells their width."""
        for site in self.sites:
            width = width_from_config(self.configs[site.stream])
            if site.place.kind != "block" or width is None:
                continue
            parameter = next(site.place.module.parameters(), None)
            if parameter is None or parameter.device.type == "meta":
                continue
            self._allocate(
                site,
                width,
                not site.place.is_input and site.wants_input,
                site.stream,
                parameter.device,
            )

    def prepare_site(
        self,
        site: SitePlan,
        hidden: Tensor,
        before: Tensor | None,
        grid: tuple[int, int],
        resolved: Mapping[Any, Any],
    ) -> SiteState:
        """Allocate at the first forward, or check what was allocated before it.

        Args:
            site: where.
            hidden: (B, T, d), at a norm of heads (H B, T, k).
            before: what came in, as ``hidden``.
            grid: (B, T).
            resolved: the tokens that the forward has shown.
        """
        place = site.place
        refuse_piece_of_width(place.name, place.module, hidden.shape[-1], is_input=place.is_input)
        has_input = before is not None and before.shape == hidden.shape
        stream = self._stream_name(site.stream, grid, resolved)
        state = self.state.sites.get(site.place.name)
        wanted = (hidden.shape[-1], has_input, stream, hidden.device)
        if state is not None:
            found = (
                state.site.width,
                state.site.has_input,
                state.stream,
                state.shift["value"].device,
            )
            if found != wanted and int(state.forwards.value) == 0:
                Accumulator.replaced += 1  # nobody may know the old one's memory any more
                state = None
        if state is None:
            missing = [s.name for s in site.statistics if "in" in s.taps and not has_input]
            if missing:
                raise SiteError(
                    f"statistic {missing[0]!r} needs the tap 'in' at site {site.place.name!r}, "
                    "whose input is no hidden state of the output's shape "
                    f"{tuple(hidden.shape)}; watch blocks, or give the statistic its own sites: "
                    "statistics={'blocks': [...]}"
                )
            state = self._allocate(site, hidden.shape[-1], has_input, stream, hidden.device)
        state.order = self._fired
        self._fired += 1
        return state

    def follow(self, site: SiteState, device: torch.device) -> None:
        """Take the state of a site, and what it shares with others, to where the model has gone."""
        left = site.shift["value"].device
        stream = self.state.streams[site.stream]
        whole = [a for named in self.state.whole.values() for a in named.values()]
        shared = [*(a for _, a in stream.accumulators()), *whole]
        own = [a for _, a in site.accumulators()]
        for accumulator in own + [a for a in shared if a.device == left]:
            accumulator.move(device)

    def _stream_name(self, name: str, shape: Sequence[int], resolved: Mapping[Any, Any]) -> str:
        """Sites of one call whose time has another length (pooling stages) are a stream apart."""
        known: dict[str, tuple[int, ...]] = {
            key[0]: tuple(key[1:3])
            for key in resolved
            if key[0] == name or key[0].startswith(f"{name}#")
        }
        for stream, grid in known.items():
            if grid == tuple(shape):
                return stream
        return f"{name}#{len(known)}" if known else name

    def _allocate(
        self, site: SitePlan, width: int, has_input: bool, stream: str, device: torch.device
    ) -> SiteState:
        place = site.place
        positions = self.positions[site.stream]
        norm = site.norm if has_input else None
        if norm is not None and norm.width not in (None, width):
            norm = None  # it norms something else than the entries of this site's states
        attention = site.attention
        sublayers = site.block.latest.heads if site.looks and site.block else {}
        info = Site(
            place.name,
            width,
            positions,
            place.kind,
            has_input,
            place.stack,
            place.first,
            place.last,
            site.whole_stack,
            norm.eps if norm else None,
            norm.centred if norm else False,
            *((0, "") if attention is None else (attention.heads, attention.site)),
            sublayers,
            site.depth,
            site.reads_source,
            site.vocabulary,
        )
        own = {s.name: s.accumulators(info) for s in site.statistics if s.scope == "site"}
        streams = self.state.streams
        made = stream not in streams
        if made:
            streams[stream] = self._make_stream(stream, positions, site, info)
        shared_by_model = {
            s.name: s.accumulators(info)
            for s in site.statistics
            if s.scope == "model" and s.name not in self.state.whole
        }
        with torch.inference_mode(False), torch.no_grad():
            if made:
                streams[stream].stream.allocate(device)
                for name, accumulator in streams[stream].accumulators():
                    if name not in ("census", "next_key"):
                        accumulator.allocate(device)
            for accumulators in (*own.values(), *shared_by_model.values()):
                for accumulator in accumulators.values():
                    accumulator.allocate(device)
            state = SiteState(info, stream, own, Shift(width).allocate(device))
            state.forwards.allocate(device)
        self.state.whole |= shared_by_model
        self.state.sites[place.name] = state
        site.bind(self.state, state)
        if self.pending is not None:
            self._take_pending(place.name, stream if made else None, shared_by_model)
            self._drop_pending()
        return state

    def _take_pending(self, site: str, stream: str | None, whole: Iterable[str]) -> None:
        """Give what was loaded before it was allocated to a site, its stream, and the model."""
        assert self.pending is not None
        description, tensors = self.pending["description"], self.pending["tensors"]
        if site in description["sites"]:
            restore_tensors(self.state.sites[site].accumulators(), tensors, f"site/{site}/")
        if stream is not None and stream in description["streams"]:
            held = self.state.streams[stream]
            restore_tensors(held.accumulators(), tensors, f"stream/{stream}/")
            held.stream.first_key = description["streams"][stream]["first_key"]
        for name in whole:
            if name in description["whole"]:
                paths = ((f"{name}/{n}", a) for n, a in self.state.whole[name].items())
                restore_tensors(paths, tensors, "model/")

    def _drop_pending(self) -> None:
        """Let go of what was loaded once every site has taken its part: it is a second state."""
        if all(site.place.name in self.state.sites for site in self.sites):
            self.pending = None

    def _make_stream(self, name: str, positions: int, site: SitePlan, info: Site) -> StreamState:
        statistics = [
            s for other in self.sites if other.stream == site.stream for s in other.statistics
        ]
        stream = TokenStream(
            name, positions, self.open, first_key_of(self.state.shards[0]), self.exclude, self.skip
        )
        shared = {n: a for s in statistics for n, a in s.shared(stream).items()}
        own = {s.name: s.accumulators(info) for s in statistics if s.scope == "stream"}
        return StreamState(stream, shared, own)

    def require_widths(self) -> None:
        """Raise where the width of a site is not known yet."""
        unknown = [s.place.name for s in self.sites if s.place.name not in self.state.sites]
        if unknown:
            raise SiteError(
                f"the width of {len(unknown)} sites ({', '.join(unknown[:4])}, ...) is not known "
                "before they have run: give one batch, watch(..., example=batch), or run a "
                "forward first"
            )

    # Windows, saving and resuming

    def reset(self, shard: str) -> None:
        """Forget everything that was counted and begin another shard."""
        self.pending = None
        self.state.reset(shard, first_key_of(shard))

    def snapshot(self, device: torch.device | str | None = None) -> State:
        """A copy of the state on its device or another; of sites not run yet, what was loaded."""
        if self.pending is None:
            return self.state.clone(device)
        state = unpack_state(self.state_dict(), self.state.statistics.values())
        return state if device is None else state.clone(device)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain tensors and JSON; of sites that have not run yet, what was loaded."""
        packed = pack_state(self.state.clone())
        if self.pending is not None:
            description, loaded = packed["description"], self.pending["description"]
            for kind in ("sites", "streams"):
                description[kind] = {**loaded[kind], **description[kind]}
            description["whole"] = list(dict.fromkeys([*loaded["whole"], *description["whole"]]))
            packed["tensors"] = {**self.pending["tensors"], **packed["tensors"]}
        return packed

    def load_state_dict(self, packed: Mapping[str, Any]) -> None:
        """Replace the state; sites not allocated yet take theirs when they are."""
        if not isinstance(packed, Mapping) or not {"description", "tensors"} <= set(packed):
            found = sorted(packed) if isinstance(packed, Mapping) else type(packed).__name__
            raise SchemaError(
                f"load_state_dict: found {found}; what state_dict() of a watch or a geometry "
                "returned is needed"
            )
        description, tensors = packed["description"], packed["tensors"]

        def common(kind: str, held: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in held.items() if name in description[kind]}

        known = State(
            self.state.statistics,
            self.state.model,
            self.state.shards,
            common("sites", self.state.sites),
            common("streams", self.state.streams),
            self.state.whole if description["whole"] else {},
            self.state.selection,
        )
        here = {kind: {n: description[kind][n] for n in getattr(known, kind)} for kind in KINDS}
        known.check_fits({**description, **here}, "load_state_dict")
        for path, accumulator in known.accumulators():
            restore_tensors([(path, accumulator)], tensors, "", check_only=True)
        self.reset(description["shards"][0])
        self.state.shards = list(description["shards"])
        self.pending = {"description": dict(description), "tensors": dict(tensors)}
        for path, accumulator in known.accumulators():
            restore_tensors([(path, accumulator)], tensors, "")
        for name, stream in known.streams.items():
            stream.stream.first_key = description["streams"][name]["first_key"]
        self._drop_pending()


KINDS = ("sites", "streams")
