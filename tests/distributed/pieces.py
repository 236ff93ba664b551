"""Checks that torchrun runs: ranks that each have a piece of every row, or of the features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import geomhooks as gh
from geomhooks.errors import AnatomyError, SiteError, TokensError
from tests.distributed.dense import seen_densely
from tests.distributed.states import everywhere, fingerprint, rank, same_error, size
from tests.distributed.wrappers import LENGTH, TEXTS, WIDTH, WORDS, texts
from tests.reference import pos_ctx


class Mixer(nn.Module):
    """A feed-forward layer behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(nn.functional.gelu(self.up(self.norm(hidden))))


class Model(nn.Module):
    """Embeddings and such layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Mixer() for _ in range(2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.words(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def in_pieces() -> Model:
    """With its residual stream dealt out by rows' columns, as torch's own plans do."""
    model, mesh = Model(), init_device_mesh("cpu", (size(),))
    rows = Shard(1)
    plan: dict[str, Any] = {
        "words": RowwiseParallel(input_layouts=Replicate(), output_layouts=rows),
        "blocks.*.norm": SequenceParallel(),
        "blocks.*.up": ColwiseParallel(input_layouts=rows),
        "blocks.*.down": RowwiseParallel(output_layouts=rows),
    }
    parallelize_module(model, mesh, plan)
    return model


def pieces_of_rows() -> None:
    """Nothing tells a rank which columns are its own: refused until that is stated."""
    model, mask = in_pieces(), torch.ones((TEXTS, LENGTH), dtype=torch.int64)
    watch = gh.watch(model, positions=LENGTH)

    def run(told: dict[str, Any], *more: Tensor) -> None:
        with torch.no_grad(), watch, watch.tokens(**told):
            model(texts(), *more)

    numbers = torch.arange(TEXTS)
    piece = LENGTH // size()
    mine = torch.arange(LENGTH)[rank() * piece :][:piece]
    wanting: list[tuple[dict[str, Any], tuple[Tensor, ...]]] = [
        ({}, ()), ({}, (mask,)), ({"contexts": numbers}, ()), ({"positions": mine}, (mask,))
    ]  # fmt: skip
    for told, more in wanting:
        message = same_error(lambda told=told, more=more: run(told, *more), TokensError)
        assert message.startswith(f"site 'blocks.0@in' shows {piece} of the 12 tokens of each row")
    run({"positions": mine, "contexts": numbers, "mask": mask[:, mine]}, mask)
    geometry = watch.geometry(sync=True)
    assert len(set(everywhere(fingerprint(geometry)))) == 1
    for site, seen in seen_densely(Model(), texts()).items():
        expected, found = pos_ctx(seen), geometry[site].pos_ctx
        assert int(found.contexts) == TEXTS
        for name in ("mean", "pos", "ctx"):
            order = found.context_id.argsort() if name == "ctx" else slice(None)
            wanted = expected[name].value
            np.testing.assert_allclose(found[name][order], wanted, rtol=1e-6, atol=2e-6)


def rows_that_a_model_pools() -> None:
    """Stages that pool tokens are read, on any number of ranks: the first showed all of them."""

    class Pooling(Model):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            hidden = self.blocks[0](self.words(input_ids))
            return self.blocks[1](hidden.unflatten(1, (-1, size())).mean(2))

    model = Pooling()
    with torch.no_grad(), gh.watch(model, positions=LENGTH) as watch:
        model(texts()[rank() :: size()])
    sizes = {"blocks.0": TEXTS * LENGTH, "blocks.1": TEXTS * LENGTH // size()}
    geometry = watch.geometry(sync=True)
    assert {name: int(geometry[name].sphere.norm.count) for name in sizes} == sizes


def pieces_of_features() -> None:
    """What a layer of a plan shows is a part of its features, and no tensor tells so."""
    model, mesh = Model(), init_device_mesh("cpu", (size(),))
    parallelize_module(
        model, mesh, {"blocks.*.up": ColwiseParallel(), "blocks.*.down": RowwiseParallel()}
    )
    part = f"site 'blocks.0.up' shows {2 * WIDTH // size()} of the 32 features"
    spread = "what site 'blocks.0.down@in' shows is a DTensor of shape (16, 12, 32)"
    for site, expected in {"blocks.0.up": part, "blocks.0.down@in": spread}.items():

        def run(site: str = site) -> None:
            with torch.no_grad(), gh.watch(model, site, positions=LENGTH):
                model(texts())

        assert same_error(run, SiteError).startswith(expected)
    with torch.no_grad(), gh.watch(model, "blocks.0", positions=LENGTH) as watch:
        model(texts())
    assert int(watch.geometry()["blocks.0"].sphere.norm.count) == TEXTS * LENGTH


def weights_that_are_put_away() -> None:
    """What reads the model's own weights refuses those of a FullyShardedDataParallel."""
    for own_parameters in (True, False):
        options: dict[str, Any] = {"device_id": torch.device("cpu")}
        policy = ModuleWrapPolicy({nn.TransformerEncoderLayer})
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True)
        model = FullyShardedDataParallel(
            nn.TransformerEncoder(layer, 2),
            auto_wrap_policy=policy,
            use_orig_params=own_parameters,
            **options,
        )
        message = same_error(
            lambda model=model: gh.watch(model, statistics=[gh.Updates()]), AnatomyError
        )
        assert "on this rank" in message
        assert "gather a sharded model" in message


CHECKS = [pieces_of_rows, rows_that_a_model_pools, pieces_of_features, weights_that_are_put_away]
