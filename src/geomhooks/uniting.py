"""What it takes for several states to become one: a common schema, found before any tensor moves.

The parts may be ranks of one job or files. They need not have the same sites: a rank that has seen
no data may have none, and each stage of a pipeline has its own. Sites of equal name are one place.
"""

from __future__ import annotations

import json
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from geomhooks.errors import SchemaError
from geomhooks.state import State, refuse_merge
from geomhooks.statistics import REGISTRY
from geomhooks.statistics.base import Site, Statistic

__all__ = ["Part", "Union", "forward_order", "stages_of", "unite"]


@dataclass(frozen=True)
class Part:
    """What has to be known of a state to unite it with others: everything but its tensors.

    Attributes:
        description: :meth:`State.describe`, as it comes back from JSON.
        order: sites that have run, in forward order.
        statistics: the statistics by name; what cannot travel to another process is left out.
    """

    description: dict[str, Any]
    order: list[str]
    statistics: dict[str, Statistic]

    @classmethod
    def of(cls, state: State) -> Part:
        """Describe a state.

        Raises:
            SchemaError: a parameter of a statistic is not JSON.
        """
        try:
            description = json.loads(json.dumps(state.describe()))
        except (TypeError, ValueError) as error:
            raise SchemaError(f"statistics' parameters have to be JSON: {error}") from error
        run = [name for name, site in state.sites.items() if int(site.forwards.value) > 0]
        return cls(
            description,
            sorted(run, key=lambda name: state.sites[name].order),
            {name: s for name, s in state.statistics.items() if can_travel(s)},
        )


def can_travel(statistic: Statistic) -> bool:
    """A statistic of a class that was made inside a function cannot be sent to other processes."""
    try:
        pickle.dumps(statistic)
    except Exception:  # whatever its own attributes raise
        return False
    return True


@dataclass(frozen=True)
class Union:
    """The common schema of several parts.

    Attributes:
        model: description of the model, or of all stages.
        selection: what was watched.
        statistics: by name.
        order: all sites in forward order, those that have run first.
        run: sites that have run on some part.
        silent: sites that were to be watched and have run on no part.
        streams: name of the token stream of each site.
    """

    model: str
    selection: dict[str, Any]
    statistics: dict[str, Statistic]
    order: list[str]
    run: frozenset[str]
    silent: list[str]
    streams: dict[str, str]

    def fit(self, state: State) -> State:
        """Give one part's state, in place, the names that all parts agree on."""
        state.sites = {
            name: site
            for name, site in state.sites.items()
            if name not in self.run or int(site.forwards.value) > 0
        }
        streams = {}
        for name, held in state.streams.items():
            sites = [site for site, s in state.sites.items() if s.stream == name]
            wanted = list(dict.fromkeys(self.streams[site] for site in sites)) or [name]
            statistics, held.statistics = held.statistics, {}
            for new in wanted:
                streams[new] = held.clone() if len(wanted) > 1 else held
                streams[new].stream.name = new
            if statistics:
                # A stream's own statistics are over the sites of all parts, and never set apart.
                if name not in streams:
                    streams[name] = held.clone()
                    streams[name].stream.name = name
                    for _, accumulator in streams[name].accumulators():
                        accumulator.reset()
                streams[name].statistics = statistics
        for site, held_site in state.sites.items():
            held_site.stream = self.streams[site]
        state.streams = streams
        state.model, state.selection = self.model, dict(self.selection)
        state.statistics = self.statistics
        return state

    def arrange(self, state: State) -> State:
        """Put the sites of a united state, in place, in forward order."""
        state.sites = {name: state.sites[name] for name in self.order}
        for index, site in enumerate(state.sites.values()):
            site.order = index
        return state


def unite(parts: Sequence[Part], word: str) -> Union:
    """Find the common schema of several parts.

    Args:
        parts: at least one.
        word: what to call a part in messages and names, such as "rank".

    Raises:
        SchemaError: a shard is in two parts, or what they have in common differs; or a statistic
            does not merge.
    """
    if len(parts) > 1:
        for part in parts:
            refuse_merge(part.statistics)
    run = forward_order([part.order for part in parts])
    descriptions = [described(part, frozenset(run)) for part in parts]
    compare = _Comparison(parts, descriptions, word)
    compare.shards()
    compare.statistics()
    compare.selections()
    compare.sites()
    allocated = dict.fromkeys(site for d in descriptions for site in d["sites"])
    known = compare.known_statistics()
    refuse_stages(descriptions, known)
    order = [*run, *(site for site in allocated if site not in run)]
    chosen = dict.fromkeys(site for d in descriptions for site in d["selection"]["sites"])
    same = all(d["selection"]["sites"] == list(chosen) for d in descriptions)
    sites = list(chosen) if same else sorted(chosen, key=(*order, *chosen).index)
    return Union(
        " + ".join(dict.fromkeys(d["model"] for d in descriptions)),
        descriptions[0]["selection"] | {"sites": sites},
        known,
        order,
        frozenset(run),
        [site for site in sites if site not in run],
        name_streams(descriptions, order),
    )


def described(part: Part, run: frozenset[str]) -> dict[str, Any]:
    """What a part says, without sites that have run elsewhere and not here.

    What a site is like (its width, its stream, whether its input counts) is certain once it has
    run. A state made before, from the model's config, may be of another kind, and is empty.
    """
    sites = part.description["sites"]
    known = {name: said for name, said in sites.items() if name in part.order or name not in run}
    return part.description | {"sites": known}


def stages_of(sites: Iterable[Site]) -> Counter[str]:
    """How many stages each stack of blocks has run in, by its name; 1 where one process had it all.

    A stage begins with a block that is the first of the stack that its rank has.
    """
    begins = {(s.stack, s.name.removesuffix("@in")) for s in sites if s.first}
    return Counter(stack for stack, _ in begins)


def refuse_stages(
    descriptions: Sequence[Mapping[str, Any]], known: Mapping[str, Statistic]
) -> None:
    """Raise where a statistic follows states through a whole stack, of which parts have stages.

    Raises:
        SchemaError: naming it.
    """
    entries = [entry for d in descriptions for entry in d["sites"].values()]
    stages = stages_of(Site(**entry["site"]) for entry in entries)
    for entry in entries:
        for name in entry["statistics"]:
            if known[name].follows_blocks and stages[entry["site"]["stack"]] > 1:
                raise SchemaError(
                    f"{name} follows states from the first block of {entry['site']['stack']!r} to "
                    "the last, and each rank has a stage of them: take its numbers of the model as "
                    "a whole, on one rank, and other statistics of the stages"
                )


def name_streams(descriptions: Sequence[Mapping[str, Any]], order: Sequence[str]) -> dict[str, str]:
    """The token stream of each site, by site.

    A site's sums go with the contexts of those parts that have the site. So sites of one stream
    that different parts have, as the stages of a pipeline do, are streams apart: ``stream@site``,
    after the first of them.
    """
    names: dict[Any, str] = {}
    streams = {}
    for site in order:
        having = [(i, d["sites"][site]) for i, d in enumerate(descriptions) if site in d["sites"]]
        stream = plain_stream(having[0][1]["stream"])
        key = tuple((index, entry["stream"]) for index, entry in having)
        names.setdefault(key, f"{stream}@{site}" if stream in names.values() else stream)
        streams[site] = names[key]
    return streams


def plain_stream(name: str) -> str:
    """The name of a stream before it was set apart."""
    return name.partition("@")[0]


class _Comparison:
    """Raises where two parts differ in what they have in common, naming both."""

    def __init__(
        self, parts: Sequence[Part], descriptions: Sequence[dict[str, Any]], word: str
    ) -> None:
        self.parts = parts
        self.descriptions = descriptions
        self.word = word
        self._seen: dict[Any, tuple[int, Any]] = {}

    def _same(self, what: str, key: Any, index: int, value: Any) -> None:
        first, known = self._seen.setdefault((what, key), (index, value))
        if known != value:
            raise SchemaError(
                f"{what} differs: {known!r} on {self.word} {first}, {value!r} on {self.word} "
                f"{index}; nothing was changed"
            )

    def shards(self) -> None:
        where: dict[str, int] = {}
        for index, description in enumerate(self.descriptions):
            for shard in description["shards"]:
                if where.setdefault(shard, index) != index:
                    raise SchemaError(
                        f"shard {shard} is on {self.word} {where[shard]} and on {self.word} "
                        f"{index}; merging them would count its tokens twice. Each {self.word} "
                        "goes on from its own state; a state of all of them together is for one"
                    )

    def statistics(self) -> None:
        for index, description in enumerate(self.descriptions):
            for name, entry in description["statistics"].items():
                self._same(f"{name}: class", None, index, entry["class"])
                for key, value in entry["parameters"].items():
                    self._same(f"{name}.{key}", None, index, value)

    def selections(self) -> None:
        for index, description in enumerate(self.descriptions):
            selection = description["selection"]
            for key in sorted(set(selection) - {"sites"}):
                self._same(key, None, index, selection[key])
            # Stages of a pipeline are different modules and have no site in common.
            for site in selection["sites"]:
                self._same("model", site, index, description["model"])

    def sites(self) -> None:
        """What is said of each site, and of the stream that it belongs to."""
        for index, description in enumerate(self.descriptions):
            for site, entry in description["sites"].items():
                stream = description["streams"][entry["stream"]]
                for key in sorted(set(stream) - {"first_key"}):
                    name = entry["stream"] or "the model"
                    self._same(f"{name}: {key}", site, index, stream[key])
                entry = entry["site"] | entry | {"stream": plain_stream(entry["stream"])}
                for key in sorted(set(entry) - {"site"}):
                    self._same(f"{site}: {key}", site, index, entry[key])

    def known_statistics(self) -> dict[str, Statistic]:
        """An instance of every statistic, whichever part it comes from."""
        found: dict[str, Statistic] = {}
        for index, part in enumerate(self.parts):
            for name, entry in part.description["statistics"].items():
                if name in found:
                    continue
                if name in part.statistics:
                    found[name] = part.statistics[name]
                elif name in REGISTRY:
                    found[name] = REGISTRY[name](**entry["parameters"])
                elif not all(name in d["statistics"] for d in self.descriptions):
                    raise SchemaError(
                        f"statistic {name!r} of {self.word} {index} is needed on every "
                        f"{self.word}, and an instance of {entry['class']} cannot be sent: define "
                        "the class at the top of a module"
                    )
        return found


def forward_order(chains: Sequence[Sequence[str]]) -> list[str]:
    """One order of sites that keeps the order of each part.

    Blocks of one stack that no part has together, as in a pipeline whose stages alternate, are
    ordered by their numbers; all else by part.

    Example:
        >>> forward_order([["wte", "h.0", "h.2"], ["h.1", "h.3", "ln_f"]])
        ['wte', 'h.0', 'h.1', 'h.2', 'h.3', 'ln_f']
    """
    places = [{name: index for index, name in enumerate(chain)} for chain in chains]
    before: dict[str, set[str]] = {name: set() for chain in chains for name in chain}
    for chain in chains:
        for earlier, later in pairwise(chain):
            before[later].add(earlier)
    stacks: dict[str, list[str]] = {}
    for name in before:
        stacks.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    for names in stacks.values():
        for earlier, later in pairwise(sorted(names, key=_numbers)):
            if not any(earlier in place and later in place for place in places):
                before[later].add(earlier)
    ordered: list[str] = []
    while before:
        # Where parts contradict each other none is free, and the first goes on.
        free = next((name for name, waits in before.items() if not waits), next(iter(before)))
        ordered.append(free)
        del before[free]
        for waits in before.values():
            waits.discard(free)
    return ordered


def _numbers(name: str) -> list[tuple[int, str]]:
    """The numbers in a name, of any length, as they are ordered."""
    found = (number.lstrip("0") for number in re.findall(r"\d+", name))
    return [(len(number), number) for number in found]
