"""Run by torchrun on four ranks: what the callbacks share, where ranks differ or do not come."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import geomhooks as gh
from geomhooks.integrations import ranks
from geomhooks.integrations.monitor import Monitor
from geomhooks.integrations.ranks import Ranks
from tests.distributed.program import main
from tests.integrations.ranks_together import STATISTICS, assert_equal_numbers
from tests.models import Stack

WIDTH = 8


def rank() -> int:
    return dist.get_rank()


def new_monitor(**options: Any) -> Monitor:
    return Monitor(statistics=STATISTICS, scalars="*", positions=6, **options)


def texts(seed: int) -> torch.Tensor:
    """With parts by position, the same in all texts, and by context."""
    position = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(1000))
    random = torch.Generator().manual_seed(seed)
    context = torch.randn(3, 1, WIDTH, generator=random)
    return position + context + torch.randn(3, 6, WIDTH, generator=random)


def run(model: nn.Module, seed: int) -> None:
    with torch.no_grad():
        model(texts(seed))


def expected(model: nn.Module, seeds: list[int]) -> dict[str, float]:
    """The numbers of one process that has seen all."""
    with gh.watch(model, statistics=STATISTICS, positions=6) as watch:
        for seed in seeds:
            run(model, seed)
    return dict(watch.geometry().scalars())


def model_of(monitor: Monitor, step: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = Stack(WIDTH, 2)
    monitor.start_train(model, step)
    return model


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """For this long; thereafter all ranks are at the same place again."""
    before, ranks.SECONDS = ranks.SECONDS, seconds
    dist.barrier()
    try:
        yield
    finally:
        ranks.SECONDS = before
        dist.barrier()
        ranks._meetings = itertools.count(max(everywhere(next(ranks._meetings))) + 1)


def everywhere(thing: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, thing)
    return found


def windows_of_all_ranks() -> None:
    monitor = new_monitor()
    model = model_of(monitor)
    for step in range(3):
        monitor.begin_step(step)
        run(model, 10 * step + rank())
        found = monitor.take_train(step + 1)
        assert_equal_numbers(found, expected_apart(model, [10 * step + r for r in range(4)]), step)
    monitor.stop()


def expected_apart(model: nn.Module, seeds: list[int]) -> dict[str, float]:
    """As another model, so that the watch of this one does not see it."""
    other = Stack(WIDTH, 2)
    other.load_state_dict(model.state_dict())
    return expected(other, seeds)


def ranks_that_have_seen_nothing() -> None:
    """Of an evaluation of two batches, on four ranks; and of a run that goes on without a state."""
    monitor = new_monitor()
    model = model_of(monitor, step=7)
    assert monitor.take_train(7) == {}, "no rank has counted, and none raises"
    monitor.begin_evaluation(model, 7)
    model.eval()
    if rank() in (1, 2):
        run(model, rank())
    found = monitor.take_evaluation(7)
    assert_equal_numbers(found, expected_apart(model, [1, 2]), "evaluation")
    with pytest.warns(UserWarning, match="of this evaluation there is no geometry: no token"):
        assert monitor.take_evaluation(7) == {}
    monitor.stop()


def windows_in_which_no_step_counts_need_no_meeting() -> None:
    monitor = new_monitor(every=4)
    model = model_of(monitor)
    before = repr(ranks._meetings)
    monitor.begin_step(1)
    run(model, rank())
    assert monitor.take_train(2) == {}
    assert repr(ranks._meetings) == before
    monitor.stop()


def ranks_that_read_the_same_text_count_once() -> None:
    """Two replicas of two tensor parallel ranks each, under the names of both libraries."""
    for names in (("dp_replicate", "tp"), ("dp_shard", "cp"), ("data_parallel", "tensor_parallel")):
        monitor = new_monitor()
        monitor.ranks = Ranks.of_mesh(init_device_mesh("cpu", (2, 2), mesh_dim_names=names))
        assert monitor.ranks.several
        assert dist.get_process_group_ranks(monitor.ranks.group) == [rank() % 2, rank() % 2 + 2]
        model = model_of(monitor)
        monitor.begin_step(0)
        run(model, rank() // 2)
        assert_equal_numbers(monitor.take_train(1), expected_apart(model, [0, 1]), names)
        monitor.stop()
    assert not Ranks.of_mesh(init_device_mesh("cpu", (1, 4), mesh_dim_names=names)).several
    three = init_device_mesh("cpu", (2, 2, 1), mesh_dim_names=("dp_replicate", "dp_shard", "tp"))
    for mesh in (three, init_device_mesh("cpu", (4,)), None):
        assert Ranks.of_mesh(mesh).several
        assert Ranks.of_mesh(mesh).group is None


def a_rank_that_does_not_come_is_an_error() -> None:
    """As of a callback that was given to the Trainer on some ranks only."""
    monitor = new_monitor()
    model = model_of(monitor)
    monitor.begin_step(0)
    run(model, rank())
    with waiting(3.0):
        if rank():
            said = r"waited 3 s at step 1 of training, where 3 of 4 ranks came.*on every rank"
            with pytest.raises(gh.errors.WatchError, match=said):
                monitor.take_train(1)
    with waiting(3.0), pytest.raises(gh.errors.WatchError, match=r"where [13] of 4 ranks came"):
        monitor.take_train(1 if rank() else 2)
    found = monitor.take_train(1)  # nothing was lost
    assert_equal_numbers(found, expected_apart(model, [0, 1, 2, 3]), "thereafter")
    monitor.stop()


def what_fails_on_one_rank_fails_on_all() -> None:
    monitor = new_monitor()
    for kind, raised in ((gh.errors.HistoryError,) * 2, (OSError, gh.errors.WatchError)):

        def begin(error: Exception = kind("no room")) -> None:
            with monitor.ranks.together("the beginning"):
                if rank() == 2:
                    raise error

        with pytest.raises(kind if rank() == 2 else raised, match="no room"):
            begin()
    with monitor.ranks.together("the beginning"):
        pass


CHECKS = [
    windows_of_all_ranks,
    ranks_that_have_seen_nothing,
    windows_in_which_no_step_counts_need_no_meeting,
    ranks_that_read_the_same_text_count_once,
    a_rank_that_does_not_come_is_an_error,
    what_fails_on_one_rank_fails_on_all,
]

if __name__ == "__main__":
    main(CHECKS)
