"""Checks that torchrun runs: stages of torch's own pipelines, whose batches come in pieces."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)

import geomhooks as gh
from geomhooks.errors import SchemaError
from tests.distributed.dense import seen_densely
from tests.distributed.states import rank, same_error, size
from tests.distributed.wrappers import LENGTH, TEXTS, WIDTH, Reader, texts
from tests.reference import Observations, pos_ctx, sphere

PIECES = 4  # of a batch


class Stage(nn.Module):
    """Some blocks of a reader; the first stage has the embeddings, too."""

    def __init__(self, whole: Reader, blocks: list[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({str(i): whole.blocks[i] for i in blocks})
        self.words, self.places = (whole.words, whole.places) if 0 in blocks else (None, None)

    def forward(self, entered: Tensor) -> Tensor:
        if self.words is not None and self.places is not None:
            entered = self.words(entered) + self.places(torch.arange(entered.shape[1]))
        for block in self.blocks.values():
            entered = block(entered)
        return entered


def reader() -> Reader:
    """With a block for each rank, or for each of two stages of a rank."""
    return Reader(depth=2 * size())


def check_densely(geometry: gh.Geometry, site: str, seen: Observations) -> None:
    """Each text once, and no state of a forward that was for shapes alone."""
    expected, found = pos_ctx(seen), geometry[site].pos_ctx
    assert int(found.contexts) == TEXTS
    for name in ("mean", "pos"):
        np.testing.assert_allclose(found[name], expected[name].value, rtol=1e-6, atol=2e-6)
    own, wanted = (np.sort(np.asarray(ctx), 0) for ctx in (found.ctx, expected["ctx"].value))
    np.testing.assert_allclose(own, wanted, rtol=1e-6, atol=2e-6)
    norm = sphere([seen])[0]["norm.mean"].value
    np.testing.assert_allclose(geometry[site].sphere.norm.mean, norm, rtol=1e-6)


class Follows(gh.Sphere):
    """A statistic that needs the whole stack."""

    follows_blocks: ClassVar[bool] = True


def over_depth(geometry: gh.Geometry) -> dict[str, float]:
    """What Sphere tells of the way through the whole stack."""
    names = ("path_length", "chord", "tortuosity")
    return {k: v for k, v in geometry.scalars().items() if any(name in k for name in names)}


def run(schedule: Any, *, first: bool, last: bool) -> None:
    """All texts, half of them in a step; only ends of the pipeline are given something."""
    for half in texts().chunk(2):
        given = (half,) if first else ()
        schedule.step(*given, **({"target": torch.zeros(len(half))} if last else {}))
    dist.barrier()  # so that all that was sent has been received


def loss(out: Tensor, target: Tensor) -> Tensor:
    return (out.square().mean((1, 2)) - target).mean()


def pieces_of_batches() -> None:
    """A stage on each rank: forwards that learn shapes before the first step do not count."""
    seen = seen_densely(reader(), texts())
    for kind in (ScheduleGPipe, Schedule1F1B):
        mine = [2 * rank(), 2 * rank() + 1]
        stage = Stage(reader(), mine)
        piped = PipelineStage(stage, rank(), size(), torch.device("cpu"))
        with gh.watch(stage, sites="blocks", positions=LENGTH) as watch:
            run(kind(piped, PIECES, loss_fn=loss), first=rank() == 0, last=rank() == size() - 1)
        assert watch.geometry().tokens[""]["forwards"] == 2 * PIECES
        geometry = watch.geometry(sync=True)
        ends = [f"blocks.{2 * first}@in" for first in range(size())]
        assert [name for name in geometry.sites if name not in ends] == list(seen)
        assert set(ends) <= set(geometry.sites)
        assert over_depth(watch.geometry())
        assert not over_depth(geometry), "each rank has the way through its own stage alone"
        for site, observations in seen.items():
            check_densely(geometry, site, observations)


def what_needs_the_whole_stack() -> None:
    stage = Stage(reader(), [2 * rank(), 2 * rank() + 1])
    stage.words = stage.places = None
    with torch.no_grad(), gh.watch(stage, statistics=[Follows()], positions=LENGTH) as watch:
        stage(torch.randn(2, LENGTH, WIDTH))
    message = same_error(lambda: watch.geometry(sync=True), SchemaError)
    assert message.startswith("follows follows states from the first block of 'blocks' to the last")


def several_stages_of_a_rank() -> None:
    """A watch to each stage; all of them together are the whole model."""
    seen = seen_densely(reader(), texts())
    own = [rank(), rank() + size()]
    stages = [Stage(reader(), [index]) for index in own]
    piped = [
        PipelineStage(stage, index, 2 * size(), torch.device("cpu"))
        for stage, index in zip(stages, own, strict=True)
    ]
    watches = [gh.watch(stage, sites="blocks.*", positions=LENGTH).attach() for stage in stages]
    schedule = ScheduleInterleaved1F1B(piped, PIECES, loss_fn=loss)  # type: ignore[arg-type]
    run(schedule, first=rank() == 0, last=rank() == size() - 1)
    found = {}
    for watch in watches:
        watch.detach()
        geometry = watch.geometry(sync=True)
        found |= dict.fromkeys(geometry.sites, geometry)
    assert list(found) == list(seen)
    for site, geometry in found.items():
        check_densely(geometry, site, seen[site])


CHECKS = [pieces_of_batches, what_needs_the_whole_stack, several_stages_of_a_rank]
