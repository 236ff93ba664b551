"""Checks that torchrun runs: what ranks hand each other, and ranks that cannot be reached."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import geomhooks as gh
from geomhooks.errors import WatchError
from tests.conformance.cases import CASES
from tests.conformance.harness import WIDTH, Subject, plant
from tests.distributed.states import (
    Named,
    check,
    close,
    error_of,
    everywhere,
    mine,
    rank,
    same_error,
    size,
    subjects,
    watched,
)
from tests.models import Block

COLLECTIVES = ("all_gather", "send", "recv", "broadcast")


@contextmanager
def only_what_every_backend_takes() -> Iterator[list[str]]:
    """Nccl takes no objects, bools or tensors of other devices, and may wait for empty ones."""
    called: list[str] = []
    before = {name: getattr(dist, name) for name in (*COLLECTIVES, "all_gather_object")}

    def watched_call(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
            for tensor in (t for t in tensors if isinstance(t, Tensor)):
                assert tensor.dtype in (torch.int64, torch.uint8)
                assert tensor.is_contiguous()
                assert tensor.numel() > 0
                assert tensor.device.type == "cpu"
            return before[name](*arguments, **options)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, watched_call(name))
    dist.all_gather_object = lambda *_, **__: called.append("all_gather_object")  # type: ignore[assignment]
    try:
        yield called
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


def what_is_handed_on() -> None:
    """Integers and bytes in few collectives, and no objects, which go by the current device."""
    subject = subjects()[0]
    watch = watched(subject, mine(subject.contexts))
    with only_what_every_backend_takes() as called:
        geometry = watch.geometry(sync=True)
    check(subject, geometry)
    assert called.count("all_gather") == 2
    assert set(called) <= set(COLLECTIVES)


class Narrowing(nn.Module):
    """Stages of another width than the config says, as in hierarchical vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(model_type="narrowing", hidden_size=WIDTH)
        self.blocks = nn.ModuleList([Block(2 * WIDTH), Block(WIDTH)])

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        hidden = self.blocks[0](inputs_embeds)
        return self.blocks[1](hidden.unflatten(1, (-1, 2)).mean(2)[..., :WIDTH])


def an_idle_rank_of_a_model_that_its_config_does_not_describe() -> None:
    """Its state was made for other widths, and holds nothing."""
    model = Narrowing()
    states = torch.randn(6, 8, 2 * WIDTH, generator=torch.Generator().manual_seed(1))

    def count(rows: Tensor) -> Any:
        with torch.no_grad(), gh.watch(model, sites="blocks", positions=8) as watch:
            for row in rows:
                model(inputs_embeds=row[None])
        return watch

    expected = count(states).geometry()
    for idle in (0, size() - 1):
        watch = gh.watch(model, sites="blocks", positions=8)
        if rank() != idle:
            busy = [r for r in range(size()) if r != idle]
            watch = count(states[busy.index(rank()) :: len(busy)])
        geometry = watch.geometry(sync=True)
        close(geometry, expected)
        assert geometry.tokens.keys() == expected.tokens.keys()


def statistics_that_only_some_ranks_share_contexts_for() -> None:
    """One rank has PosCtx at a site of its own, of the stream that all ranks have."""
    odd = rank() == size() - 1
    wish: dict[str, Any] = {"blocks.0": [gh.Sphere()]}
    if odd:
        wish["blocks.2"] = [gh.PosCtx()]
    subject = Subject(CASES["sphere"], torch.float32, plant(1))
    with torch.no_grad(), gh.watch(subject.model, statistics=wish, positions=16) as watch:
        for context in mine(subject.contexts):
            subject.feed(watch, subject.render(context))
    geometry = watch.geometry(sync=True)
    assert int(geometry["blocks.0"].sphere.norm.count) == sum(
        len(context.positions) for context in subject.contexts
    )
    alone = watch.geometry()["blocks.2"].scalars() if odd else None
    found = dict(geometry["blocks.2"].scalars())
    expected = next(numbers for numbers in everywhere(alone) if numbers is not None)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(
        torch.tensor(list(found.values())),
        torch.tensor(list(expected.values())),
        rtol=1e-6,
        atol=1e-9,
        equal_nan=True,
    )


def what_is_no_group() -> None:
    """A mesh, or ranks, in the place of a process group."""
    watch = watched(subjects()[0], [])
    for group in (init_device_mesh("cpu", (size(),)), [0, 1], "dp"):
        message = same_error(lambda group=group: watch.geometry(sync=True, group=group), WatchError)
        assert f"group is a {type(group).__name__}, and a process group is needed" in message


def a_rank_that_does_not_call() -> None:
    """The others are told so once the group's time is over, and lose nothing."""
    impatient = dist.new_group(timeout=timedelta(seconds=2))
    subject = subjects()[0]
    watch = watched(subject, mine(subject.contexts))
    if rank() != size() - 1:
        message = error_of(lambda: watch.geometry(sync=True, group=impatient), WatchError)
        assert message.startswith(f"sync=True: rank {rank()} of {size()} could not reach another")
    dist.barrier()
    check(subject, watch.geometry(sync=True))


def a_class_that_other_ranks_do_not_have() -> None:
    """A statistic comes from a module of one rank: an error on all, and none waits."""
    name, odd = "geomhooks_of_one_rank", rank() == size() - 1
    wish: dict[str, Any] = {"blocks.0": [gh.Sphere()]}
    if odd:
        sys.modules[name] = module = ModuleType(name)
        module.Ours = type("Ours", (Named,), {"__module__": name})  # type: ignore[attr-defined]
        wish["blocks.1"] = [module.Ours()]
    subject = Subject(CASES["sphere"], torch.float32, plant(1))
    with torch.no_grad(), gh.watch(subject.model, statistics=wish, positions=16) as watch:
        subject.feed(watch, subject.render(subject.contexts[0]))
    message = same_error(lambda: watch.geometry(sync=True), WatchError)
    assert message == f"rank 0 failed: ModuleNotFoundError: No module named {name!r}"
    sys.modules.pop(name, None)
    assert everywhere(rank()) == list(range(size()))


CHECKS = [
    what_is_handed_on,
    an_idle_rank_of_a_model_that_its_config_does_not_describe,
    statistics_that_only_some_ranks_share_contexts_for,
    what_is_no_group,
    a_rank_that_does_not_call,
    a_class_that_other_ranks_do_not_have,
]
