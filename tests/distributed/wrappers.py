"""Checks that torchrun runs: models that are spread over ranks the ways people spread them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleOutput,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import geomhooks as gh
from geomhooks.errors import SiteError
from tests.distributed.states import close, everywhere, fingerprint, same_error, size

WIDTH, LENGTH, WORDS, TEXTS = 16, 12, 50, 16
SITES = [["blocks"], ["norms", "blocks.*"]]


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (2, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(hidden)).chunk(3, -1)
        )
        seen = scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.out(seen.transpose(1, 2).flatten(-2))
        return hidden + self.mlp(self.norm2(hidden))


class Reader(nn.Module):
    """A small causal language model."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.RMSNorm(WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.words(input_ids) + self.places(columns)
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)


def texts() -> Tensor:
    return torch.randint(0, WORDS, (TEXTS, LENGTH), generator=torch.Generator().manual_seed(1))


Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def batches(rank: int, ranks: int, rows: int = 2) -> Batches:
    """Texts with their numbers, a share of them."""

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        numbers = torch.arange(TEXTS)[rank::ranks]
        for first in range(0, len(numbers), rows):
            part = numbers[first : first + rows]
            yield texts()[part], part

    return read


def count(
    model: nn.Module, sites: Any, read: Batches, wrap: Callable[[], object] | None = None
) -> Any:
    """Watch a model read; it may be wrapped after the hooks are on."""
    with torch.no_grad(), gh.watch(model, sites=sites, positions=LENGTH) as watch:
        if wrap is not None:
            wrap()
        for ids, numbers in read():
            with watch.tokens(contexts=numbers):
                model(ids)
    return watch


@cache
def alone(*sites: str) -> gh.Geometry:
    """What one process that reads everything makes of it."""
    return count(Reader(), list(sites), batches(0, 1)).geometry()


def compare(sites: Any, together: gh.Geometry) -> None:
    """All ranks have the numbers of one process, to the last bit the same on each."""
    close(together, alone(*sites))
    assert len(set(everywhere(fingerprint(together)))) == 1


def own() -> Batches:
    return batches(dist.get_rank(), size())


def shard(model: nn.Module) -> None:
    """What training scripts do: each block, then the rest."""
    mesh = init_device_mesh("cpu", (size(),))
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def plain_models() -> None:
    for sites in SITES:
        compare(sites, count(Reader(), sites, own()).geometry(sync=True))


def a_distributed_sampler() -> None:
    """A data loader that deals out a shuffled data set, under DistributedDataParallel."""
    data = TensorDataset(texts(), torch.arange(TEXTS))
    sampler = DistributedSampler(data, shuffle=True, seed=3)
    loader = DataLoader(data, batch_size=2, sampler=sampler)
    for sites in SITES:
        model = DistributedDataParallel(Reader())
        compare(sites, count(model, sites, lambda: iter(loader)).geometry(sync=True))


def sharded_before_the_watch() -> None:
    for sites in SITES:
        model = Reader()
        shard(model)
        compare(sites, count(model, sites, own()).geometry(sync=True))


def sharded_after_the_hooks() -> None:
    for sites in SITES:
        model = Reader()
        watch = count(model, sites, own(), wrap=lambda model=model: shard(model))
        compare(sites, watch.geometry(sync=True))


def norms_that_are_sharded_themselves() -> None:
    """Their weights are put away before a later hook runs: refused; an earlier hook sees them."""

    def shard_norms(model: nn.Module) -> None:
        mesh = init_device_mesh("cpu", (size(),))
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block.norm2, mesh=mesh)
        shard(model)

    model = Reader()
    watch = count(model, SITES[1], own(), wrap=lambda: shard_norms(model))
    compare(SITES[1], watch.geometry(sync=True))
    model = Reader()
    shard_norms(model)
    message = same_error(lambda: count(model, SITES[1], own()), SiteError)
    assert message.startswith("the weight of a norm is a DTensor of shape (16,)")
    assert "watch before fully_shard" in message
    assert not any(module._forward_pre_hooks for module in Reader().modules())


def training() -> None:
    """Steps under DDP and FSDP2 are those of one process on all texts, geometry included."""

    def train(model: nn.Module, trained: nn.Module, read: Batches) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = gh.watch(model, positions=LENGTH)
        with watch:
            for _ in range(3):
                for ids, numbers in read():
                    with watch.tokens(contexts=numbers):
                        loss = trained(ids).square().mean()
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
        return watch

    everything = batches(0, 1, TEXTS)
    share = batches(dist.get_rank(), size(), TEXTS)
    model = Reader().double()
    expected = train(model, model, everything).geometry()
    model = Reader().double()
    replicated = train(model, DistributedDataParallel(model), share).geometry(sync=True)
    model = Reader().double()
    shard(model)
    sharded = train(model, model, share).geometry(sync=True)
    for found in (replicated, sharded):
        assert int(found["blocks.2"].pos_ctx.contexts) == TEXTS
        close(found, expected)


def steps_that_are_uneven() -> None:
    """No hook waits for another rank: with copies of a model each rank takes its own time."""
    count_of = dist.get_rank() + 1
    ids = texts()[:count_of]
    model = Reader()
    with torch.no_grad(), gh.watch(model, positions=LENGTH) as watch:
        for row in ids:
            model(row[None])
    total = size() * (size() + 1) // 2
    assert watch.geometry().tokens[""]["forwards"] == count_of
    assert watch.geometry(sync=True).tokens[""]["forwards"] == total


def tensor_parallelism() -> None:
    """Outputs that are whole on each rank are read; the group is that of the data."""
    mesh = init_device_mesh("cpu", (size() // 2, 2), mesh_dim_names=("data", "tensor"))
    sites = ["blocks", "blocks.*.mlp"]
    model = Reader()
    for block in model.blocks:
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(block.mlp, mesh["tensor"], plan)
    watch = count(model, sites, batches(mesh.get_local_rank("data"), size() // 2))
    geometry = watch.geometry(sync=True, group=mesh["data"].get_group())
    close(geometry, alone(*sites))


def outputs_that_are_spread() -> None:
    """A DTensor is read where it is replicated, and refused where each rank has a piece."""
    mesh = init_device_mesh("cpu", (size(),))
    states = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))

    def run(wanted: Any) -> Any:
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        spread = PrepareModuleOutput(
            output_layouts=Replicate(), desired_output_layouts=wanted, use_local_output=False
        )
        parallelize_module(model, mesh, {"0": spread})
        return seen_at_the_first(model, states)

    for wanted, piece in ((Shard(2), "Shard(dim=2)"), (Shard(1), "Shard(dim=1)")):
        message = same_error(lambda wanted=wanted: run(wanted), SiteError)
        assert message.startswith("what site '0' shows is a DTensor of shape (2, 12, 16)")
        assert piece in message
        assert "output_layouts=Replicate()" in message

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    expected = seen_at_the_first(model, states)
    whole = PrepareModuleOutput(
        output_layouts=Replicate(), desired_output_layouts=Replicate(), use_local_output=False
    )
    parallelize_module(model, mesh, {"0": whole})
    found = seen_at_the_first(model, states)
    assert found == expected


def seen_at_the_first(model: nn.Sequential, states: Tensor) -> dict[str, float]:
    with torch.no_grad(), gh.watch(model, sites="0", positions=LENGTH) as watch:
        model[0](states)
    numbers = watch.geometry()["0"].sphere.scalars()
    assert numbers["norm/count"] == 2 * LENGTH
    return numbers


CHECKS = [
    plain_models,
    a_distributed_sampler,
    sharded_before_the_watch,
    sharded_after_the_hooks,
    norms_that_are_sharded_themselves,
    training,
    steps_that_are_uneven,
    tensor_parallelism,
    outputs_that_are_spread,
]
