"""The laws: however the contexts are streamed, out come the dense numbers of their states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

import geomhooks as gh
from tests.conformance.cases import CASES, TOGETHER
from tests.conformance.harness import Batch, Case, Subject, Together, dense, plant
from tests.models import Stack
from tests.reference import pos_ctx

LAWS = gh.statistics.LAWS
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN = float("nan")

Way = Callable[[Subject, Path], Any]
WAYS: dict[str, list[Way]] = {}


def law(name: str) -> Callable[[Way], Way]:
    """Note a way to stream a subject's contexts under the law that it belongs to."""

    def note(way: Way) -> Way:
        WAYS.setdefault(name, []).append(way)
        return way

    return note


@law("reference")
def one_batch(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        subject.feed(watch, subject.render(*subject.contexts))
    return watch.geometry()


@law("batching")
def context_by_context(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        for context in subject.contexts:
            subject.feed(watch, subject.render(context))
    return watch.geometry()


@law("batching")
def uneven_batches(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        for part in (subject.contexts[:1], subject.contexts[1:6], subject.contexts[6:]):
            subject.feed(watch, subject.render(*part))
    return watch.geometry()


@law("order")
def backwards(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        for first in range(len(subject.contexts) - 1, -1, -2):
            subject.feed(
                watch, subject.render(*subject.contexts[max(first - 1, 0) : first + 1][::-1])
            )
    return watch.geometry()


def shards(subject: Subject, number: int = 3) -> list[Any]:
    geometries = []
    for part in range(number):
        with subject.watch() as watch:
            for context in subject.contexts[part::number]:
                subject.feed(watch, subject.render(context))
        geometries.append(watch.geometry())
    return geometries


@law("merge")
def merged_shards(subject: Subject, folder: Path) -> Any:
    return gh.merge(shards(subject))


@law("merge")
def merged_the_other_way(subject: Subject, folder: Path) -> Any:
    first, second, third = shards(subject)
    return gh.merge([third, gh.merge([second, first])])


@law("merge")
def merged_files(subject: Subject, folder: Path) -> Any:
    paths = [folder / f"{index}.safetensors" for index in range(3)]
    for path, geometry in zip(paths, shards(subject), strict=True):
        geometry.save(path)
    return gh.merge([gh.load(path, statistics=subject.statistics()) for path in paths])


@law("resume")
def state_saved_and_loaded(subject: Subject, folder: Path) -> Any:
    half = len(subject.contexts) // 2
    with subject.watch() as watch:
        subject.feed(watch, subject.render(*subject.contexts[:half]))
        torch.save(watch.state_dict(), folder / "state.pt")
        subject.feed(watch, subject.render(*subject.contexts[:half]))  # lost, as after a crash
    with subject.watch() as watch:
        watch.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
        subject.feed(watch, subject.render(*subject.contexts[half:]))
    return watch.geometry()


@law("resume")
def saved_and_loaded(subject: Subject, folder: Path) -> Any:
    one_batch(subject, folder).save(folder / "all.safetensors")
    return gh.load(folder / "all.safetensors", statistics=subject.statistics())


@law("resume")
def reset_and_streamed_again(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        subject.feed(watch, subject.render(*subject.contexts[::-1]))
        watch.reset()
        subject.feed(watch, subject.render(*subject.contexts))
    return watch.geometry()


@law("mask")
def padded_with_nan(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        for part in (subject.contexts[:4], subject.contexts[4:]):
            subject.feed(watch, subject.render(*part, filler=NAN))
    return watch.geometry()


@law("mask")
def padded_with_infinity_on_the_left(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        subject.feed(watch, subject.render(*subject.contexts, side="left", filler=float("inf")))
    return watch.geometry()


@law("padding")
def padded_on_the_left(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        for part in (subject.contexts[:4], subject.contexts[4:]):
            subject.feed(watch, subject.render(*part, side="left"))
    return watch.geometry()


@law("packing")
def packed_rows(subject: Subject, folder: Path) -> Any:
    rows = [subject.contexts[0:3], subject.contexts[3:4], subject.contexts[4:]]
    with subject.watch() as watch:
        subject.feed(watch, subject.render(*rows, filler=NAN))
    return watch.geometry()


@law("packing")
def packed_into_one_row_of_tokens(subject: Subject, folder: Path) -> Any:
    """The model sees (tokens, d) and no mask."""
    batch = subject.render(subject.contexts)
    real = batch.mask[0].bool()
    with (
        subject.watch() as watch,
        watch.tokens(
            positions=batch.positions[0, real],
            contexts=batch.contexts[0, real],
            groups=batch.groups[0, real],
        ),
    ):
        subject.model(inputs_embeds=batch.embeddings[0, real], input_ids=batch.ids[0, real])
    return watch.geometry()


@law("generation")
def prompts_and_then_token_by_token(subject: Subject, folder: Path) -> Any:
    """Each context in several forwards with a cache, the mask growing over it."""
    with subject.watch() as watch:
        for context in subject.contexts:
            generate(subject, watch, subject.render(context))
    return watch.geometry()


@law("generation")
def a_batch_of_prompts_padded_on_the_left(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        generate(subject, watch, subject.render(*subject.contexts, side="left", filler=NAN))
    return watch.geometry()


def generate(subject: Subject, watch: Any, batch: Batch) -> None:
    """A prompt of half the length, then one token after the other."""
    length = batch.mask.shape[1]
    cache = DynamicCache()
    prompt = max(length // 2, 1)
    for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, length))]:
        subject.feed(watch, batch.columns(start, end), past_key_values=cache)


@law("grad")
def with_gradients(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch, torch.enable_grad():
        subject.feed(watch, subject.render(*subject.contexts)).sum().backward()
    return watch.geometry()


@law("grad")
def in_inference_mode_and_out_of_it(subject: Subject, folder: Path) -> Any:
    with subject.watch() as watch:
        with torch.inference_mode():
            subject.feed(watch, subject.render(*subject.contexts[:3]))
        subject.feed(watch, subject.render(*subject.contexts[3:6]))
        with torch.enable_grad():
            subject.feed(watch, subject.render(*subject.contexts[6:])).sum().backward()
    return watch.geometry()


@law("grad")
def watched_from_within_inference_mode(subject: Subject, folder: Path) -> Any:
    with torch.inference_mode():
        watch = subject.new_watch().__enter__()
        subject.feed(watch, subject.render(*subject.contexts[:3]))
    subject.feed(watch, subject.render(*subject.contexts[3:]))
    watch.__exit__(None, None, None)
    return watch.geometry()


@law("grad")
def under_autocast(subject: Subject, folder: Path) -> Any:
    """Autocast leaves the blocks' products alone; so must be those of the statistics."""
    with subject.watch() as watch, torch.autocast("cpu", dtype=torch.bfloat16):
        subject.feed(watch, subject.render(*subject.contexts))
    return watch.geometry()


def with_law(case: Case | Together, title: str) -> Together:
    """Those of the cases that keep a law."""
    kept = (c for c in case.cases if title in c.statistic().laws or title not in LAWS)
    return Together(tuple(kept))


def turns(cases: Mapping[str, Case | Together], every: int, dtypes: int) -> Iterator[Any]:
    """Cases in every so many ways and in so many types each.

    They take turns, as do contexts that begin at position 0, which need no position_ids, and those
    that begin anywhere, which have them.
    """
    for first, (name, case) in enumerate(cases.items()):
        ways = [(title, way) for title, ways in WAYS.items() for way in ways]
        for turn, (title, way) in list(enumerate(ways, first))[first % every :: every]:
            kept = with_law(case, title)
            for number in range(turn // every, turn // every + dtypes if kept.cases else 0):
                dtype, anywhere = DTYPES[number % 3], number % 2 == 0
                told = f"{name}-{title}-{way.__name__}-{dtype}"
                yield pytest.param(kept, way, dtype, anywhere, id=told)


# All statistics in each way in each type, and each alone, as it takes a shorter path there.
TURNS = [*turns(TOGETHER, every=1, dtypes=3), *turns(CASES, every=2, dtypes=1)]


@pytest.mark.parametrize(("case", "way", "dtype", "anywhere"), TURNS)
def test_law(case: Together, way: Way, dtype: torch.dtype, anywhere: bool, tmp_path: Path) -> None:
    subject = Subject(case, dtype, plant(seed=1, anywhere=anywhere))
    subject.check(way(subject, tmp_path))


def test_every_law_has_a_way_to_be_tried() -> None:
    assert set(WAYS) >= LAWS


@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        (one_batch, torch.float32),
        (padded_with_nan, torch.bfloat16),
        (packed_rows, torch.float32),
        (merged_shards, torch.float16),
    ],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_masks_with_holes(case: Case, way: Way, dtype: torch.dtype, tmp_path: Path) -> None:
    subject = Subject(case, dtype, plant(seed=2, holes=True))
    subject.check(way(subject, tmp_path))


@pytest.mark.parametrize(
    "way", [one_batch, context_by_context, merged_shards], ids=lambda way: way.__name__
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_balanced_contexts(case: Case, way: Way, tmp_path: Path) -> None:
    subject = Subject(case, torch.float32, plant(seed=3, ragged=False))
    subject.check(way(subject, tmp_path))


@pytest.mark.filterwarnings("ignore:GroupMeans. no token had the label")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@settings(max_examples=10)
@given(data=st.data())
def test_any_stream(case: Case, data: st.DataObject) -> None:
    """Any contexts in any order, batched, padded and packed as it comes, over any shards."""
    draw = data.draw
    contexts = plant(
        seed=draw(st.integers(0, 2**32 - 1)),
        number=draw(st.integers(2, 12)),
        longest=draw(st.integers(2, 12)),
        ragged=draw(st.booleans()),
        anywhere=draw(st.booleans()),
        holes=draw(st.booleans()),
    )
    subject = Subject(case, torch.float32, contexts)
    order = draw(st.permutations(contexts))
    cuts = sorted(draw(st.sets(st.integers(1, len(order) - 1), max_size=3)))
    geometries = []
    for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
        shard = order[start:end]
        per_row, per_batch = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        rows = [shard[first : first + per_row] for first in range(0, len(shard), per_row)]
        with subject.watch() as watch:
            for first in range(0, len(rows), per_batch):
                side, filler = (
                    draw(st.sampled_from(["left", "right"])),
                    draw(st.sampled_from([0.0, NAN])),
                )
                subject.feed(
                    watch,
                    subject.render(*rows[first : first + per_batch], side=side, filler=filler),
                )
        geometries.append(watch.geometry())
    subject.check(gh.merge(geometries) if len(geometries) > 1 else geometries[0])


def test_the_reference_of_many_contexts_is_the_dense_one() -> None:
    """Tests of very many contexts rest on a fit without them; here both can be had."""
    seen = dense(Stack(8), plant(seed=4, holes=True), torch.float32)["blocks.1"]
    one, other = pos_ctx(seen), pos_ctx(seen, many_contexts=True)
    for name, number in one.items():
        np.testing.assert_allclose(
            other[name].value, number.value, rtol=1e-9, atol=1e-9, err_msg=name
        )
