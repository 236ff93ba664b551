"""Two pretrained models on real text, against the dense reference."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from tests.conformance.harness import compare
from tests.models import minilm, smollm, texts
from tests.published import published_screenot
from tests.reference import Observations, histogram_fits, log_radius, pos_ctx, sphere

BATCH = 8


@dataclass(frozen=True)
class Run:
    """A model's geometry and, of the same forwards, all its hidden states."""

    geometry: Any
    dense: dict[str, Observations]
    outputs: list[tuple[Tensor, Tensor]]
    """the model's output without and with the watch"""
    compared: tuple[str, ...]
    """sites for which the slower dense numbers are taken"""


@dataclass(frozen=True)
class Pretrained:
    load: Any
    blocks: str
    """name of the list of blocks"""
    texts: int
    longest: int
    """characters of the longest text"""
    every: int
    """of how many sites one is compared with the dense numbers, beside the last"""


MODELS = {
    "minilm": Pretrained(minilm, "encoder.layer", 64, 500, 2),
    "smollm2": Pretrained(smollm, "model.layers", 32, 360, 5),
}


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest) -> Run:
    return measure(request.param)


def batches(tokenizer: Any, number: int, longest: int) -> Iterator[dict[str, Tensor]]:
    """Texts of different length, padded on the right."""
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    pages = texts(number, longest)
    for first in range(0, len(pages), BATCH):
        chosen = pages[first : first + BATCH]
        yield tokenizer(chosen, return_tensors="pt", padding=True, truncation=True, max_length=256)


@cache
def measure(name: str) -> Run:
    """Stream the texts, collecting the hidden states of the same forwards.

    They are the model's own `output_hidden_states` but for the last, which Llama gives after its
    final norm: that one is read by a hook of ours.
    """
    pretrained = MODELS[name]
    model, tokenizer = pretrained.load()
    blocks = model.get_submodule(pretrained.blocks)
    last: list[Tensor] = []
    rows: list[list[np.ndarray]] = [[] for _ in range(len(blocks) + 1)]
    positions, contexts, outputs, seen = [], [], [], 0
    fed = list(batches(tokenizer, pretrained.texts, pretrained.longest))
    with torch.no_grad():
        bare = [model(**batch)[0] for batch in fed]
    statistics = [gh.PosCtx(contexts=64, positions=256, second_moment=True), gh.Sphere()]
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=statistics) as watch:
        for index, batch in enumerate(fed):
            handle = blocks[-1].register_forward_hook(
                lambda _, __, out: last.append(first_tensor(out))
            )
            out = model(**batch, output_hidden_states=True)
            handle.remove()
            real = batch["attention_mask"].bool()
            for site, states in enumerate((*out.hidden_states[:-1], last.pop())):
                rows[site].append(states[real].numpy())
            row, column = real.nonzero(as_tuple=True)
            positions.append(column.numpy())
            contexts.append(row.numpy() + seen)
            seen += len(real)
            outputs.append((bare[index], out[0]))
    names = [
        f"{pretrained.blocks}.0@in",
        *(f"{pretrained.blocks}.{index}" for index in range(len(blocks))),
    ]
    at, of = np.concatenate(positions), np.concatenate(contexts)
    dense = {
        site: Observations(np.concatenate(states).astype(np.float64), at, of)
        for site, states in zip(names, rows, strict=True)
    }
    compared = *names[: -1 : pretrained.every], names[-1]
    return Run(watch.geometry(), dense, outputs, compared)


def first_tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def test_sites_are_the_hidden_states(run: Run) -> None:
    assert list(run.geometry.sites) == list(run.dense)


def test_outputs_are_the_same_to_the_last_bit(run: Run) -> None:
    assert all(torch.equal(bare, watched) for bare, watched in run.outputs)


def test_position_and_context(run: Run) -> None:
    for site in run.compared:
        numbers = pos_ctx(run.dense[site], second_moment=True)
        # The contexts have numbers of the library's own, which grow in the order of the texts.
        found = run.geometry[site].pos_ctx
        ids = np.sort(np.asarray(found.context_id))
        numbers["context_id"] = numbers["context_id"]._replace(value=ids)
        compare(found, numbers, site)


def test_rank_of_pos(run: Run) -> None:
    """The rank that the published procedure finds, small, and a path smoother than chance has it.

    The texts are few: of a model with rotary embeddings the input's pos is all noise.
    """
    for site in run.dense:
        found = run.geometry[site].pos_ctx
        pos = found.pos[found.position_count > 0]
        rank, threshold = published_screenot(pos.numpy())
        assert float(found.rank) == rank, site
        assert float(found.rank_threshold) == pytest.approx(threshold, abs=2e-5), site
        assert 1 <= rank < 20, site
        assert float(found.smoothness.low_frequency_share) > 1.3 * 10 / len(pos), site


def test_sphere(run: Run) -> None:
    for (site, seen), numbers in zip(
        run.dense.items(), sphere(list(run.dense.values())), strict=True
    ):
        found = run.geometry[site].sphere
        compare(found, numbers, site)
        counts, edges = np.asarray(found.log_radius_histogram), np.asarray(found.log_radius_edges)
        assert histogram_fits(counts, edges, log_radius(seen.states)), site


def test_stack_and_scalars(run: Run) -> None:
    """The views of the whole geometry show the numbers of its sites."""
    stacked = run.geometry.stack("pos_ctx.mean")
    scalars = run.geometry.scalars()
    for row, site in enumerate(run.geometry.sites):
        layer = run.geometry[site]
        assert torch.equal(stacked[row], layer.pos_ctx.mean)
        assert scalars[f"{site}/pos_ctx/shares/pos"] == float(layer.pos_ctx.shares.pos)
        assert scalars[f"{site}/sphere/norm/mean"] == float(layer.sphere.norm.mean)


@pytest.fixture
def encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    """A MiniLM that a test may do things to, and one batch.

    A fresh one: after output_hidden_states=True transformers leaves hooks of its own on a model,
    which cannot be pickled.
    """
    model, tokenizer = minilm.__wrapped__()
    return model, next(batches(tokenizer, BATCH, 400))


def counted(watch: Any) -> int:
    return int(watch.geometry()["encoder.layer.0"].pos_ctx.count)


@torch.no_grad()
def test_state_dict_of_a_watched_model(encoder: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, batch = encoder
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with gh.watch(model, sites="blocks", statistics=[gh.PosCtx(), gh.Sphere()]):
        model(**batch)
        after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@torch.no_grad()
def test_deepcopy_of_a_watched_model(encoder: tuple[nn.Module, dict[str, Tensor]]) -> None:
    """What the copy runs, inside the watch or after it, does not count into the original."""
    model, batch = encoder
    bare = model(**batch)[0]
    with gh.watch(model, sites="blocks", statistics=[gh.PosCtx(), gh.Sphere()]) as watch:
        model(**batch)
        once = counted(watch)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(**batch)[0], bare)
        assert counted(watch) == once
        model(**batch)
        assert counted(watch) == 2 * once
    twin(**batch)
    assert counted(watch) == 2 * once
    assert list(twin.state_dict()) == list(model.state_dict())


@torch.no_grad()
def test_pickling_of_a_watched_model(encoder: tuple[nn.Module, dict[str, Tensor]]) -> None:
    model, batch = encoder
    bare = model(**batch)[0]
    file = io.BytesIO()
    with gh.watch(model, sites="blocks", statistics=[gh.PosCtx(), gh.Sphere()]) as watch:
        model(**batch)
        once = counted(watch)
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert torch.equal(loaded(**batch)[0], bare)
        assert counted(watch) == once
        model(**batch)
        assert counted(watch) == 2 * once
