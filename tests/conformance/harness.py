"""One harness through which every statistic goes.

A *subject* is a statistic on a small model with a set of contexts. The model works on every token
alone, so the hidden states of the contexts are known whatever the batches look like. A law is a way
to stream the contexts; what comes out must be the dense float64 numbers of their hidden states,
every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import geomhooks as gh
from tests.models import Stack
from tests.reference import Expected, Numbers, Observations, disagreement

WIDTH = 8
POSITIONS = 16

UNCHECKED = (
    "explained_ratio",
    "incoherence.expected",
    "rank",
    "singular_value_floor",
    "spiral",
    "noise_shares",
    "split_contexts",
    "log_radius",
    "condition_number",
    "forwards",
    "conditions",
    "seen.own_form",
)
"""Results, by the beginning of their name, that have tests of their own, not a reference."""


GROUPS = 3


def label_of(contexts: Any) -> Any:
    """The group of contexts, -1 for some; the first that is planted has one."""
    return (contexts % 64 + 1) % (GROUPS + 1) - 1


def label_of_tokens(contexts: Any, positions: Any) -> Any:
    """The group of tokens, that of contexts shifted by position; contexts (B,) or (B, T)."""
    row = contexts if contexts.ndim == positions.ndim else contexts[:, None]
    return (row % 64 + positions + 1) % (GROUPS + 1) - 1


VOCABULARY = 11


def word_of(contexts: Any, positions: Any) -> Any:
    """The id of tokens; contexts (B,) or (B, T)."""
    row = contexts if contexts.ndim == positions.ndim else contexts[:, None]
    return (row % 64 * 7 + positions * (row % 5 + 1)) % VOCABULARY


@dataclass(frozen=True)
class Context:
    """One context: the embedding and the position of each of its tokens."""

    id: int
    embeddings: np.ndarray
    """(n, d) float64"""
    positions: np.ndarray
    """(n,) ascending; a position that is left out is a hole in the mask"""

    @property
    def columns(self) -> np.ndarray:
        """Column of each token, the first one's being 0."""
        return self.positions - self.positions[0]

    @property
    def span(self) -> int:
        return int(self.columns[-1]) + 1

    def split(self, at: int) -> tuple[Context, Context]:
        """Its first `at` tokens, and the rest."""
        return (
            Context(self.id, self.embeddings[:at], self.positions[:at]),
            Context(self.id, self.embeddings[at:], self.positions[at:]),
        )


def plant(
    seed: int,
    number: int = 9,
    longest: int = 12,
    width: int = WIDTH,
    ragged: bool = True,
    anywhere: bool = True,
    holes: bool = False,
) -> list[Context]:
    """Contexts with a planted mean, position effect, context effect and noise.

    The first context covers all positions, so that the two-way fit is determined.

    Args:
        seed: of the random numbers.
        number: of contexts.
        longest: number of positions.
        width: d.
        ragged: the other contexts end earlier, and
        anywhere: begin later, and
        holes: leave positions out.
    """
    rng = np.random.default_rng(seed)
    mean, by_position = 2 * rng.standard_normal(width), rng.standard_normal((longest, width))
    contexts = []
    for index in range(number):
        whole = index == 0 or not ragged
        first = 0 if whole or not anywhere else int(rng.integers(0, longest // 2))
        last = longest if whole else int(rng.integers(first + 1, longest + 1))
        positions = np.arange(first, last)
        if holes and not whole:
            positions = positions[(rng.random(len(positions)) < 0.7) | (positions == first)]
        embeddings = mean + by_position[positions] + rng.standard_normal(width)
        embeddings += 0.5 * rng.standard_normal(embeddings.shape)
        contexts.append(Context(int(rng.integers(0, 2**40)) * 64 + index, embeddings, positions))
    return contexts


@dataclass(frozen=True)
class Batch:
    """What the model and the watch are told in one forward."""

    embeddings: Tensor
    """(B, T, d)"""
    mask: Tensor
    """(B, T) int64"""
    positions: Tensor
    """(B, T) int64"""
    contexts: Tensor
    """(B,) int64, or (B, T) where a row holds several"""
    groups: Tensor | None = None
    """(B,) or (B, T) labels"""
    start: int = 0
    """columns of the same rows that went before, to be found in the cache"""

    @property
    def ids(self) -> Tensor:
        """(B, T) of the tokens; those that are masked have some, too."""
        return word_of(self.contexts, self.positions)

    def columns(self, start: int, end: int) -> Batch:
        """A piece of all rows; the mask of a piece goes back to the beginning."""
        contexts = self.contexts if self.contexts.ndim == 1 else self.contexts[:, start:end]
        groups = self.groups
        if groups is not None and groups.ndim == 2:
            groups = groups[:, start:end]
        pieces = self.embeddings[:, start:end], self.mask[:, :end], self.positions[:, start:end]
        return Batch(*pieces, contexts, groups, start)

    def arguments(self) -> dict[str, Tensor]:
        """What a model has to be told: a mask where one is needed, positions unless columns."""
        told = {"inputs_embeds": self.embeddings, "input_ids": self.ids}
        if not self.mask.all():
            told["attention_mask"] = self.mask
        end = self.start + self.embeddings.shape[1]
        columns = torch.arange(self.start, end, device=self.positions.device)
        if not ((self.positions == columns) | (self.mask[:, self.start :] == 0)).all():
            told["position_ids"] = self.positions
        return told


def render(
    rows: Sequence[Sequence[Context]],
    dtype: torch.dtype,
    side: str = "right",
    filler: float = 7.0,
    width: int = WIDTH,
) -> Batch:
    """Lay contexts out as the rows of a batch; a row of several contexts is packed.

    Args:
        rows: contexts of each row.
        dtype: of the embeddings.
        side: where padding goes.
        filler: what stands in every entry that is masked.
        width: d.
    """
    longest = max(sum(context.span for context in row) for row in rows)
    shape = (len(rows), longest)
    embeddings = np.full((*shape, width), filler)
    mask, positions, ids = (np.zeros(shape, np.int64) for _ in range(3))
    for b, row in enumerate(rows):
        ids[b] = row[0].id
        start = longest - sum(context.span for context in row) if side == "left" else 0
        for context in row:
            columns = start + context.columns
            embeddings[b, columns] = context.embeddings
            mask[b, columns] = 1
            everything = slice(start, start + context.span)
            positions[b, everything] = context.positions[0] + np.arange(context.span)
            ids[b, everything] = context.id
            start += context.span
    packed = any(len(row) > 1 for row in rows)
    return Batch(
        torch.from_numpy(embeddings).to(dtype),
        torch.from_numpy(mask),
        torch.from_numpy(positions),
        torch.from_numpy(ids if packed else ids[:, 0]),
    )


@dataclass(frozen=True)
class Case:
    """A statistic, and the dense numbers that it ought to report.

    Attributes:
        statistic: makes the statistic.
        reference: from the observations of each site, in forward order, to the numbers of each
            result.
        find: the results of a geometry under the same keys as the reference's.
        labels: from contexts and positions to groups.
    """

    name: str
    statistic: Callable[[], gh.Statistic]
    reference: Callable[[dict[str, Observations]], dict[str, Numbers]]
    find: Callable[[Any, str], Any]
    labels: Callable[[Any, Any], Any] = lambda contexts, positions: label_of(contexts)

    @property
    def cases(self) -> tuple[Case, ...]:
        return (self,)


@dataclass(frozen=True)
class Together:
    """Cases of one watch; labels of a batch are those of the first."""

    cases: tuple[Case, ...]

    @property
    def labels(self) -> Callable[[Any, Any], Any]:
        return self.cases[0].labels


@dataclass
class Subject:
    """A case, or several together, on a model, with contexts to stream."""

    case: Case | Together
    dtype: torch.dtype
    contexts: list[Context]
    model: Stack = field(init=False)

    def __post_init__(self) -> None:
        self.model = Stack(WIDTH, dtype=self.dtype)

    @contextmanager
    def watch(self) -> Iterator[Any]:
        with torch.no_grad(), self.new_watch() as watch:
            yield watch

    def new_watch(self, model: Any = None) -> Any:
        model = self.model if model is None else model
        return gh.watch(model, sites="blocks", statistics=self.statistics(), positions=POSITIONS)

    def statistics(self) -> list[gh.Statistic]:
        return [case.statistic() for case in self.case.cases]

    def feed(self, watch: Any, batch: Batch, **arguments: Any) -> Tensor:
        told = batch.arguments()
        with watch.tokens(contexts=batch.contexts, groups=batch.groups):
            return self.run(watch, **told, **arguments)

    def run(self, watch: Any, **arguments: Any) -> Tensor:
        """One forward."""
        return self.model(**arguments)

    def render(
        self, *rows: Context | Sequence[Context], side: str = "right", filler: float = 7.0
    ) -> Batch:
        listed = [[row] if isinstance(row, Context) else row for row in rows]
        batch = render(listed, self.dtype, side, filler)
        return replace(batch, groups=self.case.labels(batch.contexts, batch.positions))

    def check(self, geometry: Any) -> None:
        """Every number of the geometry is the dense one."""
        seen = dense(self.model, self.contexts, self.dtype)
        for case in self.case.cases:
            for key, numbers in case.reference(seen).items():
                compare(case.find(geometry, key), numbers, f"{case.name} {key}")


class Seen(dict[str, Observations]):
    """The observations of each site.

    Attributes:
        added: of each block, and of each of its sublayers, the state that it adds to and what it
            adds, (N, S, 2, d).
    """

    added: dict[str, np.ndarray]


def dense(model: Stack, contexts: Sequence[Context], dtype: torch.dtype) -> Seen:
    """All hidden states at each site: each context run alone, and read by hooks of our own.

    Of a block also what its sublayers are given and what they give.
    """
    sites: dict[str, list[np.ndarray]] = {}

    def keep(name: str, *states: Tensor) -> None:
        found = [one.detach().double().numpy()[0] for one in states]
        sites.setdefault(name, []).append(np.stack(found, 1) if len(found) > 1 else found[0])

    handles = [
        model.blocks[0].register_forward_pre_hook(lambda _, inputs: keep("blocks.0@in", inputs[0]))
    ]
    for index, block in enumerate(model.blocks):
        handles.append(
            block.register_forward_hook(lambda _, __, out, name=f"blocks.{index}": keep(name, out))
        )
        handles += [
            block.get_submodule(part).register_forward_hook(
                lambda _, inputs, out, name=f"blocks.{index}.{part}": keep(name, *inputs, out)
            )
            for part in ("turn", "push")
        ]
    for context in contexts:
        model(inputs_embeds=torch.from_numpy(context.embeddings).to(dtype)[None])
    for handle in handles:
        handle.remove()
    positions = np.concatenate([context.positions for context in contexts])
    ids = np.concatenate([np.full(len(context.positions), context.id) for context in contexts])
    whole = {name: np.concatenate(parts) for name, parts in sites.items()}
    outer = {name: states for name, states in whole.items() if states.ndim == 2}
    found = Seen({name: Observations(s, positions, ids) for name, s in outer.items()})
    found.added = {
        name: np.stack([whole[f"{name}.turn"], whole[f"{name}.push"]], 1)
        for name in outer
        if not name.endswith("@in")
    }
    return found


def flatten(results: Any, prefix: str = "") -> dict[str, Any]:
    """Results that may nest, by dotted name, their tensors on the CPU."""
    flat: dict[str, Any] = {}
    for name in results.keys():  # noqa: SIM118 - keys() and [] are what is promised
        if name == "clusters":
            continue  # k-means, which nobody wants to wait for, has a test of its own
        value = results[name]
        if isinstance(value, Mapping) or hasattr(value, "keys"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value.cpu() if isinstance(value, Tensor) else value
    return flat


def compare(
    results: Any, expected: Numbers, where: str, unchecked: tuple[str, ...] = UNCHECKED
) -> None:
    """Every expected number is there and right, and there is no number beyond them."""
    found = flatten(results)
    wrong = []
    for name, number in expected.items():
        if name not in found:
            wrong.append(f"{name} is missing")
        elif problem := disagreement(found[name], by_context_id(found, name, number)):
            wrong.append(f"{name} {problem}")
    unknown = [name for name in found if name not in expected]
    wrong += [
        f"{name} is reported and nothing is known of it"
        for name in unknown
        if not name.removeprefix("without_first.").startswith(unchecked)
    ]
    assert not wrong, f"{where}:\n" + "\n".join(wrong)


def by_context_id(found: Mapping[str, Any], name: str, expected: Expected) -> Expected:
    """Kept contexts may come in any order: bring what is expected into the order found."""
    if name not in ("ctx", "context_id", "context_length", "context_group"):
        return expected
    order = np.argsort(np.argsort(np.asarray(found["context_id"])))
    return (
        expected._replace(value=expected.value[order])
        if len(order) == len(expected.value)
        else expected
    )
