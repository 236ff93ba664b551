"""Digits that float32 would lose: huge means, very many contexts, tiny steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import geomhooks as gh
from tests.conformance.harness import UNCHECKED, compare
from tests.models import Stack
from tests.reference import Observations, pos_ctx, sphere


class Given(nn.Module):
    """A stack whose blocks add what they are given to add, token by token."""

    class Add(nn.Module):
        step: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))  # what has no parameter is taken for no block

        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + self.gain * self.step

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Add() for _ in range(depth))

    def forward(self, inputs_embeds: Tensor, steps: list[Tensor]) -> Tensor:
        hidden = inputs_embeds
        for block, step in zip(self.blocks, steps, strict=True):
            block.step = step
            hidden = block(hidden)
        return hidden


def observe(states: np.ndarray) -> Observations:
    """Tokens of (C, T, d) states."""
    C, T, d = states.shape
    return Observations(
        states.reshape(-1, d).astype(np.float64),
        np.tile(np.arange(T), C),
        np.repeat(np.arange(C), T),
    )


def known_ids(numbers: Any, found: Any) -> Any:
    numbers["context_id"] = numbers["context_id"]._replace(
        value=np.sort(np.asarray(found.context_id))
    )
    return numbers


def test_dimensions_with_a_mean_of_ten_thousand_deviations() -> None:
    check_huge_means(C=200, T=24)


def check_huge_means(C: int, T: int, d: int = 32) -> None:
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(d)
    mean[[3, 17]] = 1e4, -1e4
    states = (
        mean
        + rng.standard_normal((T, d))
        + rng.standard_normal((C, 1, d))
        + rng.standard_normal((C, T, d))
    )
    embeddings = torch.from_numpy(states).float()
    steps = [
        0.1 * torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(i))
        for i in range(2)
    ]
    model = Given(2)
    statistics = [gh.PosCtx(contexts=C, positions=T, second_moment=True), gh.Sphere()]
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=statistics) as watch:
        for first in range(0, C, 8):
            part = slice(first, first + 8)
            model(inputs_embeds=embeddings[part], steps=[step[part] for step in steps])
    outputs = [embeddings, embeddings + steps[0], embeddings + steps[0] + steps[1]]
    stack = [observe(out.numpy()) for out in outputs]
    for site, seen, on_sphere in zip(
        ["blocks.0@in", "blocks.0", "blocks.1"], stack, sphere(stack), strict=True
    ):
        layer = watch.geometry()[site]
        compare(layer.pos_ctx, known_ids(pos_ctx(seen, second_moment=True), layer.pos_ctx), site)
        compare(layer.sphere, on_sphere, site)


def test_a_hundred_thousand_contexts() -> None:
    """Ragged contexts, of which 64 are kept; the shares and effects are of all of them."""
    rng = np.random.default_rng(1)
    C, T, d = 100_000, 6, 4
    states = (
        rng.standard_normal((T, d))
        + rng.standard_normal((C, 1, d))
        + rng.standard_normal((C, T, d))
    )
    length = rng.integers(1, T + 1, C)
    length[0] = T
    mask = np.arange(T) < length[:, None]
    embeddings = torch.from_numpy(states).float()
    model = Stack(d, depth=1)
    with (
        torch.no_grad(),
        gh.watch(model, sites="blocks", statistics=[gh.PosCtx(contexts=64, positions=T)]) as watch,
    ):
        for first in range(0, C, 500):
            part = slice(first, first + 500)
            model(inputs_embeds=embeddings[part], attention_mask=torch.from_numpy(mask[part]))
    found = watch.geometry()["blocks.0@in"].pos_ctx
    at, of = np.nonzero(mask)[1], np.nonzero(mask)[0]
    numbers = pos_ctx(Observations(embeddings.double().numpy()[mask], at, of), many_contexts=True)
    assert len(found.context_id) == 64
    of_the_kept = ("ctx", "context_id", "context_length", "context_group", "incoherence")
    numbers = {name: n for name, n in numbers.items() if not name.startswith(of_the_kept)}
    compare(found, numbers, "blocks.0@in", (*UNCHECKED, *of_the_kept))


def test_steps_of_a_millionth_of_a_radian() -> None:
    """An arc cosine would see nothing of them in float32, and little in float64."""
    rng = np.random.default_rng(2)
    embeddings = torch.from_numpy(rng.integers(-64, 64, (4, 8, 16)).astype(np.float32))
    step = (
        torch.from_numpy(rng.integers(-8, 8, (4, 8, 16)).astype(np.float32)) * 2**-16
    )  # the sum is exact
    model = Given(1)
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=[gh.Sphere()]) as watch:
        model(inputs_embeds=embeddings, steps=[step])
    stack = [observe(embeddings.numpy()), observe((embeddings + step).numpy())]
    expected = sphere(stack)[1]
    assert expected["step_angle.mean"].value < 1e-5
    compare(watch.geometry()["blocks.0"].sphere, expected, "blocks.0")
