"""Every form in which a mask comes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import geomhooks as gh
from tests.models import Stack, tiny_gpt2

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 1]])
REAL = int(MASK.sum())
STATES = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


def counted(**arguments: Tensor) -> int:
    """Tokens that a stack counts; it takes masks of any form and ignores them."""

    class Model(Stack):
        def forward(  # type: ignore[override]
            self, inputs_embeds: Tensor, attention_mask: Tensor | None = None
        ) -> Tensor:
            return super().forward(inputs_embeds)

    model = Model(8, depth=1)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()]) as watch:
        model(STATES, **arguments)
    return int(watch.geometry()["blocks.0"].sphere.norm.count)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_two_dimensions_of_any_type(dtype: torch.dtype) -> None:
    assert counted(attention_mask=MASK.to(dtype)) == REAL


@pytest.mark.parametrize("low", [-float("inf"), torch.finfo(torch.float32).min, -1e4])
def test_additive_masks(low: float) -> None:
    additive = torch.where(MASK.bool(), 0.0, low)
    assert counted(attention_mask=additive) == REAL
    assert counted(attention_mask=additive[:, None, None]) == REAL


def test_masks_over_queries_and_keys() -> None:
    keys = MASK.bool()
    causal = torch.ones(4, 4).tril().bool()
    assert counted(attention_mask=keys[:, None, None]) == REAL
    assert counted(attention_mask=(keys[:, None] & causal)[:, None]) == REAL
    assert counted(attention_mask=keys[:, None] & causal) == REAL


def test_nested_statements_add_up() -> None:
    model = Stack(8, depth=1)
    watch = gh.watch(model, statistics=[gh.PosCtx(positions=4)])
    outer, inner = watch.tokens(mask=MASK), watch.tokens(contexts=torch.tensor([7, 8, 7]))
    with torch.no_grad(), watch, outer, inner:
        model(STATES)
    found = watch.geometry()["blocks.0"].pos_ctx
    assert int(found.count) == REAL
    assert found.context_id.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"msk": MASK}, "described by \\['msk'\\]"),
        (MASK, "described by a Tensor"),
        ({"contexts": ["a", "b", "c"]}, "contexts is a list that is no tensor of numbers"),
        ({"contexts": torch.rand(3)}, "contexts has dtype torch.float32"),
        ({"mask": torch.ones(7)}, r"mask .* has shape \(7,\), the hidden states \(3, 4, d\)"),
    ],
)
def test_what_cannot_be_meant(said: object, message: str) -> None:
    model = Stack(8, depth=1)
    watch = gh.watch(model, statistics=[gh.Sphere()], tokens=lambda module, arguments: said)
    with torch.no_grad(), pytest.raises(gh.errors.TokensError, match=message), watch:
        model(STATES)


def test_positions_stated_once_for_all_rows() -> None:
    """A model takes them without a batch, and so does the watch."""
    model = tiny_gpt2()
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad(), gh.watch(model, statistics=[gh.PosCtx(contexts=4)]) as watch:
        model(input_ids=ids, position_ids=torch.arange(6) + 10)
    count = watch.geometry()["h.0"].pos_ctx.position_count
    assert count.tolist() == [0] * 10 + [2] * 6


class Told(torch.nn.Module):
    """Takes whatever it is told, and does nothing with it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))

    def forward(
        self, inputs_embeds: Any, attention_mask: Any = None, position_ids: Any = None
    ) -> Any:
        for block in self.blocks:
            inputs_embeds = block(inputs_embeds)
        return inputs_embeds


@pytest.mark.parametrize(
    ("mask", "real"),
    [
        ([[1, 1, 0], [1, 0, 0]], 3),
        (np.array([[1, 1, 0], [1, 0, 0]]), 3),
        (torch.tensor([[1.0, float("nan"), 0.0], [1.0, 0.0, 0.0]]), 2),
    ],
    ids=["list", "array", "with NaN"],
)
def test_masks_that_are_no_tensors_of_whole_numbers(mask: Any, real: int) -> None:
    model = Told()
    with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()], positions=3) as watch:
        model(torch.randn(2, 3, 4), attention_mask=mask)
    assert watch.geometry().tokens[""]["real"] == real


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"attention_mask": torch.tensor([1, 0])}, r"mask .* has shape \(2,\)"),
        ({"position_ids": torch.arange(3)[None] * 1.5}, "position_ids has dtype torch.float32"),
    ],
    ids=["a mask of rows", "positions between positions"],
)
def test_what_cannot_be_meant_is_refused(said: dict[str, Any], match: str) -> None:
    model = Told()
    wrong = pytest.raises(gh.errors.TokensError, match=match)
    with wrong, torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()], positions=3):
        model(torch.randn(2, 3, 4), **said)
