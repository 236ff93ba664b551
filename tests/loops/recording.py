"""What a loop shows to plain hooks, and what the statistics of it have to be."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from tests.conformance.harness import compare
from tests.reference import Observations, pos_ctx, sphere

STATISTICS = (gh.PosCtx(contexts=256, positions=128, second_moment=True), gh.Sphere())


def needed(module: str) -> Any:
    """Import a package; where it is missing skip, or fail where CI is set."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        say = f"needs {error.name}: pip install '.[loops]'"
        if os.environ.get("CI"):
            pytest.fail(say)
        pytest.skip(say, allow_module_level=True)


@dataclass
class Forward:
    """One call of a model: its arguments by name, and the states (B, T, d) at every site."""

    arguments: dict[str, Any]
    states: list[np.ndarray] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        batch, length = self.states[0].shape[:2]
        return batch, length

    def given(self, *names: str) -> Any:
        """The first argument of these names that was given."""
        return next((v for n in names if (v := self.arguments.get(n)) is not None), None)


@dataclass
class Rows:
    """Which entries of a forward are real, at what position, of which context; all (B, T)."""

    real: np.ndarray
    positions: np.ndarray
    contexts: np.ndarray


Describe = Callable[[Sequence[Forward]], Iterator[Rows]]


@contextmanager
def record(caller: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[list[Forward]]:
    """Keep every call of `caller`: the input of the first block and the output of each."""
    names = list(inspect.signature(caller.forward).parameters)
    forwards: list[Forward] = []

    def begin(_: Any, args: Any, kwargs: Any) -> None:
        copies = dict(zip(names, args, strict=False)) | kwargs
        for value in list(copies.values()):
            copies |= value if isinstance(value, Mapping) else {}
        cache = next((v for v in copies.values() if hasattr(v, "get_seq_length")), None)
        copies["past"] = 0 if cache is None else int(cache.get_seq_length())
        forwards.append(Forward(copies))

    def keep(states: Tensor | tuple[Tensor, ...]) -> None:
        tensor = states if isinstance(states, Tensor) else states[0]
        forwards[-1].states.append(tensor.detach().double().cpu().numpy())

    first = lambda _, args, kwargs: keep(args[0] if args else kwargs["hidden_states"])  # noqa: E731
    handles = [
        caller.register_forward_pre_hook(begin, with_kwargs=True),
        blocks[0].register_forward_pre_hook(first, with_kwargs=True),
        *(block.register_forward_hook(lambda _, __, out: keep(out)) for block in blocks),
    ]
    try:
        yield forwards
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watched(model: nn.Module, **options: Any) -> Iterator[Any]:
    """A watch on the blocks, which has to leave no hook behind."""
    before = all_hooks(model)
    with gh.watch(model, sites="blocks", statistics=list(STATISTICS), **options) as watch:
        assert all_hooks(model) != before
        yield watch
    assert all_hooks(model) == before


def all_hooks(model: nn.Module) -> dict[str, int]:
    """How many hooks of every kind each module has."""
    return {
        f"{name}{kind}": len(hooks)
        for name, module in model.named_modules()
        for kind, hooks in vars(module).items()
        if kind.endswith("_hooks") and isinstance(hooks, dict)
    }


def one_pass(forwards: Sequence[Forward]) -> Iterator[Rows]:
    """Every row is a context, its columns are the positions, and the mask says what is real."""
    seen = 0
    for forward in forwards:
        mask = forward.given("attention_mask")
        shape = batch, length = forward.shape
        real = np.ones(shape, bool) if mask is None else np.asarray(mask.bool())
        yield Rows(real, *grid(np.arange(length), seen + np.arange(batch)))
        seen += batch


def generation(forwards: Sequence[Forward], padding: int | None = 0) -> Iterator[Rows]:
    """Rows go on while there is something in the cache; a position counts the real tokens before.

    What is real is told by the ids, whose `padding` is never generated, not by the mask.
    """
    seen = 0
    before = np.zeros(0, int)
    for forward in forwards:
        ids = np.asarray(forward.given("input_ids"))
        batch, length = forward.shape
        if forward.arguments["past"] == 0:
            seen += len(before)
            before = np.zeros(batch, int)
        real = ids != padding if padding is not None else np.ones_like(ids, bool)
        positions = before[:, None] + real.cumsum(1) - 1
        before = before + real.sum(1)
        yield Rows(real, positions, grid(np.arange(length), seen + np.arange(batch))[1])


def grid(columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows, each (B, T)."""
    shape = len(rows), len(columns)
    return np.broadcast_to(columns, shape), np.broadcast_to(rows[:, None], shape)


def dense(forwards: Sequence[Forward], describe: Describe = one_pass) -> list[Observations]:
    """All real tokens at each site."""
    rows = list(describe(forwards))
    assert len(rows) == len(forwards) > 0
    real = [row.real for row in rows]
    positions = np.concatenate([row.positions[row.real] for row in rows])
    contexts = np.concatenate([row.contexts[row.real] for row in rows])
    return [
        Observations(
            np.concatenate([f.states[site][r] for f, r in zip(forwards, real, strict=True)]),
            positions,
            contexts,
        )
        for site in range(len(forwards[0].states))
    ]


def check(geometry: Any, stack: str, expected: Sequence[Observations]) -> None:
    """The sites are those of the stack in forward order, and every number is the dense one."""
    names = [f"{stack}.0@in", *(f"{stack}.{index}" for index in range(len(expected) - 1))]
    assert [site for site in geometry.sites if site.startswith(f"{stack}.")] == names
    for name, seen, numbers in zip(names, expected, sphere(list(expected)), strict=True):
        found = geometry[name]
        fitted = pos_ctx(seen, second_moment=True)
        # The library numbers contexts in a way of its own, in the order of their appearance.
        ids = np.sort(np.asarray(found.pos_ctx.context_id))
        fitted["context_id"] = fitted["context_id"]._replace(value=ids)
        compare(found.pos_ctx, fitted, name)
        compare(found.sphere, numbers, name)


def submodules(model: nn.Module, stack: str) -> list[nn.Module]:
    """The blocks of a stack."""
    blocks = model.get_submodule(stack)
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def seeded() -> None:
    """Before a head with random weights is made, or anything is sampled."""
    torch.manual_seed(0)
