"""What the programs on several ranks share: texts, a watch beside the callback's, comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import geomhooks as gh
from tests.integrations.training import LENGTH, examples

STATISTICS = [gh.PosCtx(contexts=256), gh.Sphere()]


def uneven_examples(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences of several lengths, so that ranks count different numbers of tokens."""
    rows = examples(number, seed)
    for index, row in enumerate(rows):
        mask = torch.arange(LENGTH) < LENGTH - index * 7 % 5
        row |= {"attention_mask": mask.long(), "labels": row["labels"].masked_fill(~mask, -100)}
    return rows


class Beside:
    """A watch of this rank alone in the mode of the model, and the states of a block as they are.

    It knows nothing of the callback: what ranks have counted is merged from files.

    Args:
        root: what is watched.
        model: the GPT-2 in it.
        when: "train" or "eval".
        folder: where the files go.
    """

    def __init__(self, root: nn.Module, model: nn.Module, when: Any, folder: Path) -> None:
        self.when, self.folder, self.model = when, folder, model
        self.watch = gh.watch(root, statistics=STATISTICS, when=when)
        self.seen: list[torch.Tensor] = []
        self.mask = torch.empty(0)
        self.windows: dict[int, list[torch.Tensor]] = {}
        self.handles: list[Any] = []

    def attach(self) -> None:
        self.watch.attach()
        self.handles = [
            self.model.register_forward_pre_hook(self.note_mask, with_kwargs=True),
            self.model.get_submodule("transformer.h.1").register_forward_hook(self.note_states),
        ]

    def detach(self) -> None:
        self.watch.detach()
        for handle in self.handles:
            handle.remove()

    def note_mask(self, _: Any, __: Any, named: Any) -> None:
        if "attention_mask" in named:
            self.mask = named["attention_mask"].bool()

    def note_states(self, block: nn.Module, _: Any, out: Any) -> None:
        if block.training == (self.when == "train"):
            states = out if torch.is_tensor(out) else out[0]
            self.seen.append(states.detach().double()[self.mask])

    def path(self, step: int, rank: int) -> Path:
        return self.folder / f"{self.when}-{step}-{rank}.safetensors"

    def take(self, step: int) -> None:
        """End a window."""
        self.watch.geometry().save(self.path(step, dist.get_rank()))
        self.windows[step], self.seen = self.seen, []
        self.watch.reset()

    def expected(self, step: int) -> dict[str, float]:
        """All scalars of a window, of the files of all ranks."""
        dist.barrier()
        ranks = range(dist.get_world_size())
        return dict(gh.merge([gh.load(self.path(step, rank)) for rank in ranks]).scalars())

    def dense(self, step: int) -> tuple[int, float]:
        """Number of tokens and their mean norm over all ranks, in float64."""
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, self.windows[step])
        states = torch.cat([one for windows in found for one in windows])
        return len(states), float(states.norm(dim=-1).mean())


def assert_equal_numbers(found: dict[str, float], expected: dict[str, float], at: Any) -> None:
    """All of them, to 1e-6."""
    assert found.keys() == expected.keys(), at
    for name, value in expected.items():
        close = pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True)
        assert found[name] == close, f"{at}: {name}"


def assert_all_ranks(beside: Beside, found: dict[str, float], step: int, block: str) -> None:
    """The numbers of a window are those of all ranks, and not those of this one."""
    assert_equal_numbers(found, beside.expected(step), (beside.when, step))
    count, norm = beside.dense(step)
    assert found[f"{block}/pos_ctx/count"] == count
    assert found[f"{block}/sphere/norm/mean"] == pytest.approx(norm, rel=1e-6)
    own = gh.load(beside.path(step, dist.get_rank())).scalars()
    name = f"{block}/sphere/norm/mean"
    assert own[name] != pytest.approx(found[name], rel=1e-6), "this rank's alone"
