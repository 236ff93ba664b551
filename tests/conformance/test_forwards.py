"""The laws of the ways to run a forward: out come the dense numbers, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from tests.conformance.cases import CASES, ORDERED, TOGETHER
from tests.conformance.harness import (
    WIDTH,
    Batch,
    Case,
    Context,
    Seen,
    Subject,
    Together,
    compare,
    dense,
    flatten,
    plant,
)
from tests.models import Stack
from tests.reference import Observations

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Way = Callable[[Subject], Any]
WAYS: list[Way] = []


def way(function: Way) -> Way:
    """Note a way to run a subject's forwards."""
    WAYS.append(function)
    return function


@pytest.fixture(autouse=True)
def room_for_graphs() -> Iterator[None]:
    """One code object serves all types, modes and statistics here; torch keeps eight graphs."""
    with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096):
        yield


class Checkpointed(Stack):
    """Recomputes each block, or the stack of them as a whole, in backward."""

    def __init__(self, subject: Subject, reentrant: bool, whole: bool = False) -> None:
        super().__init__(WIDTH, dtype=subject.dtype)
        self.reentrant, self.whole = reentrant, whole

    def again(self, part: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        result: Tensor = checkpoint(part, hidden, use_reentrant=self.reentrant)
        return result

    def all_blocks(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        input_ids: Any = None,
    ) -> Tensor:
        if self.whole:
            return self.again(self.all_blocks, inputs_embeds)
        hidden = inputs_embeds
        for block in self.blocks:
            hidden = self.again(block, hidden)
        return hidden


class CheckpointedAsOne(nn.Module):
    """Recomputes the whole call that opens the token stream."""

    def __init__(self, subject: Subject, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = subject.model, reentrant

    def forward(self, inputs_embeds: Tensor, **told: Any) -> Tensor:
        result: Tensor = checkpoint(
            lambda states: self.inner(states, **told), inputs_embeds, use_reentrant=self.reentrant
        )
        return result


@contextmanager
def watching(subject: Subject, model: nn.Module) -> Iterator[Any]:
    with subject.new_watch(model) as watch:
        yield watch


def feed(watch: Any, run: Any, batch: Batch) -> Tensor:
    """Always with mask and positions, so that all batches look alike to a compiler."""
    with watch.tokens(contexts=batch.contexts, groups=batch.groups):
        out: Tensor = run(
            inputs_embeds=batch.embeddings,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            input_ids=batch.ids,
        )
    return out


def batches(subject: Subject) -> Iterator[Batch]:
    """Two, three and four contexts of different lengths: every size but one can be dynamic."""
    for part in (subject.contexts[:2], subject.contexts[2:5], subject.contexts[5:]):
        yield subject.render(*part)


def stream(subject: Subject, model: nn.Module, run: Any = None) -> Any:
    with torch.no_grad(), watching(subject, model) as watch:
        for batch in batches(subject):
            feed(watch, model if run is None else run, batch)
    return watch.geometry()


def train(subject: Subject, model: nn.Module, run: Any = None) -> Any:
    """Each forward with its backward."""
    with watching(subject, model) as watch:
        for batch in batches(subject):
            batch.embeddings.requires_grad_()
            feed(watch, model if run is None else run, batch).float().square().sum().backward()
    return watch.geometry()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager", fullgraph=True, dynamic=True)


@way
def compiled_as_a_whole(subject: Subject) -> Any:
    return stream(subject, subject.model, compiled(subject.model))


@way
def compiled_with_gradients(subject: Subject) -> Any:
    return train(subject, subject.model, compiled(subject.model))


@way
def compiled_block_by_block(subject: Subject) -> Any:
    model = Stack(WIDTH, dtype=subject.dtype)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=True)
    return stream(subject, model)


@way
def compiled_and_run_before_it_was_watched(subject: Subject) -> Any:
    """And between two entries, which count, and after them, which does not."""
    run = compiled(subject.model)
    watch = subject.new_watch()
    for batch in batches(subject):
        feed(watch, run, batch)
        with torch.no_grad(), watch:
            feed(watch, run, batch)
        feed(watch, run, batch)
    return watch.geometry()


@way
def checkpointed(subject: Subject) -> Any:
    return train(subject, Checkpointed(subject, reentrant=False))


@way
def checkpointed_without_early_stop(subject: Subject) -> Any:
    with set_checkpoint_early_stop(False):
        return train(subject, Checkpointed(subject, reentrant=False))


@way
def checkpointed_reentrant(subject: Subject) -> Any:
    return train(subject, Checkpointed(subject, reentrant=True))


@way
def all_blocks_checkpointed(subject: Subject) -> Any:
    return train(subject, Checkpointed(subject, reentrant=False, whole=True))


@way
def the_whole_call_checkpointed(subject: Subject) -> Any:
    return train(subject, subject.model, CheckpointedAsOne(subject, reentrant=False))


@way
def the_whole_call_checkpointed_reentrant(subject: Subject) -> Any:
    return train(subject, subject.model, CheckpointedAsOne(subject, reentrant=True))


@way
def checkpointed_within_compiled_code(subject: Subject) -> Any:
    model = Checkpointed(subject, reentrant=False)
    return train(subject, model, compiled(model))


@way
def compiled_blocks_checkpointed(subject: Subject) -> Any:
    model = Checkpointed(subject, reentrant=False)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=True)
    return train(subject, model)


@way
def compiled_blocks_checkpointed_reentrant(subject: Subject) -> Any:
    model = Checkpointed(subject, reentrant=True)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=True)
    return train(subject, model)


@way
def gradients_accumulated(subject: Subject) -> Any:
    """All forwards first, then one backward through them all."""
    with watching(subject, subject.model) as watch:
        loss = torch.zeros(())
        for batch in batches(subject):
            loss = loss + feed(watch, subject.model, batch).float().square().sum()
        loss.backward()
    return watch.geometry()


@way
def under_half_precision_autocast(subject: Subject) -> Any:
    with torch.autocast("cpu", dtype=torch.float16):
        return train(subject, subject.model)


@way
def compiled_under_autocast(subject: Subject) -> Any:
    run = compiled(subject.model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return stream(subject, subject.model, run)


@way
def compiled_in_inference_mode_and_out_of_it(subject: Subject) -> Any:
    run = compiled(subject.model)
    with watching(subject, subject.model) as watch:
        for mode, batch in zip(
            (torch.inference_mode, torch.no_grad, torch.enable_grad), batches(subject), strict=True
        ):
            with mode():
                feed(watch, run, batch)
    return watch.geometry()


@way
def a_functional_call(subject: Subject) -> Any:
    parameters = dict(subject.model.named_parameters())

    def run(**arguments: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(subject.model, parameters, (), arguments)
        return result

    return stream(subject, subject.model, run)


@way
def gradients_by_transformation(subject: Subject) -> Any:
    """``torch.func.grad`` wraps every tensor; what counts are their values."""
    parameters = {n: p.detach() for n, p in subject.model.named_parameters()}

    def loss(given: dict[str, Tensor], batch: Batch, watch: Any) -> Tensor:
        def run(**arguments: Tensor) -> Tensor:
            result: Tensor = torch.func.functional_call(subject.model, given, (), arguments)
            return result

        return feed(watch, run, batch).float().square().sum()

    with watching(subject, subject.model) as watch:
        for batch in batches(subject):
            torch.func.grad(loss)(parameters, batch, watch)
    return watch.geometry()


# All statistics in each way, the types taking turns; and each alone, as it takes a shorter path
# there, in ways that take turns too.
TURNS = [
    pytest.param(case, way, DTYPES[turn % 3], id=f"{name}-{way.__name__}-{DTYPES[turn % 3]}")
    for first, (name, case) in enumerate(TOGETHER.items())
    for turn, way in enumerate(WAYS, first)
] + [
    pytest.param(case, way, DTYPES[turn % 3], id=f"{name}-{way.__name__}-{DTYPES[turn % 3]}")
    for turn, (name, case) in enumerate(CASES.items())
    for way in (WAYS[turn % len(WAYS)], WAYS[(turn + len(WAYS) // 2) % len(WAYS)])
]


@pytest.mark.parametrize(("case", "way", "dtype"), TURNS)
def test_way(case: Case | Together, way: Way, dtype: torch.dtype) -> None:
    subject = Subject(case, dtype, plant(seed=1))
    subject.check(way(subject))


@pytest.mark.parametrize("case", ORDERED.values(), ids=ORDERED.keys())
def test_way_of_what_depends_on_order(case: Case) -> None:
    """Out comes what the same forwards give when they are simply run."""
    subject = Subject(case, torch.float32, plant(seed=1, number=24))
    plain = flatten(case.find(stream(subject, subject.model), ""))
    for run in WAYS:
        torch._dynamo.reset()
        found = flatten(case.find(run(subject), ""))
        assert found.keys() == plain.keys(), run.__name__
        for name, value in plain.items():
            close = torch.allclose(found[name], value, rtol=1e-4, atol=1e-5)
            assert close, f"{run.__name__}: {name}"


@pytest.mark.parametrize("case", TOGETHER.values(), ids=TOGETHER.keys())
def test_inductor(case: Together) -> None:
    """The same graph for all statistics: they are no part of it."""
    subject = Subject(case, torch.float32, plant(seed=1))
    run = torch.compile(subject.model, fullgraph=True, dynamic=True)
    subject.check(stream(subject, subject.model, run))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_model_that_changes_its_type_between_runs(case: Case) -> None:
    """As one does that is moved to half precision; the state stays as precise as it was."""
    subject = Subject(case, torch.float32, plant(seed=1))
    parts = [subject.contexts[:4], subject.contexts[4:]]
    seen: list[Seen] = []
    with torch.no_grad(), subject.watch() as watch:
        for part, dtype in zip(parts, (torch.float32, torch.float64), strict=True):
            subject.model.to(dtype)
            half = Subject(case, dtype, part)
            feed(watch, subject.model, half.render(*part))
            seen.append(dense(Stack(WIDTH).to(dtype), part, dtype))
    together = Seen(
        (site, Observations(*map(np.concatenate, zip(*(s[site] for s in seen), strict=True))))
        for site in seen[0]
    )
    together.added = {n: np.concatenate([s.added[n] for s in seen]) for n in seen[0].added}
    for key, numbers in case.reference(together).items():
        compare(case.find(watch.geometry(), key), numbers, key)


GOING_ON = {n: case for n, case in CASES.items() if "generation" in case.statistic().laws}


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("case", GOING_ON.values(), ids=GOING_ON.keys())
def test_chunks_of_long_documents(case: Case, overlap: int) -> None:
    """Under one id and with their positions; where chunks overlap, tokens count for each."""
    documents = plant(seed=5, number=5, longest=14)
    chunks = [
        Context(d.id, d.embeddings[first : first + 5], d.positions[first : first + 5])
        for d in documents
        for first in range(0, len(d.positions), 5 - overlap)
    ]
    subject = Subject(case, torch.float32, chunks)
    with torch.no_grad(), subject.watch() as watch:
        for first in range(0, len(chunks), 3):  # also two chunks of a document in one batch
            feed(watch, subject.model, subject.render(*chunks[first : first + 3]))
    subject.check(watch.geometry())
