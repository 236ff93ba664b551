"""What sublayers add, seen in one forward: a block's input and it all are the block's output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.anatomy import (
    Addition,
    Attention,
    Block,
    BlockParts,
    Embeddings,
    Family,
    Written,
    add_up,
    additions_of,
    find_anatomy,
    mlp_output,
    register,
)
from geomhooks.anatomy.finding import KNOWN
from geomhooks.anatomy.query_key import frozen
from geomhooks.errors import SiteError
from tests.anatomy import stacked, test_torch_layers
from tests.anatomy.collecting import Collect, Shown
from tests.anatomy.models import MODELS, gpt2, make, token_ids
from tests.anatomy.stacked import STACKED
from tests.anatomy.test_rebuilding import assert_close
from tests.anatomy.test_torch_layers import call_of, known

B, T = 3, 11


def show(model: nn.Module, call: dict[str, Any], heads: bool = False) -> dict[str, Shown]:
    """What is shown at each block in one forward."""
    statistic = Collect(heads)
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=[statistic]) as watch:
        model(**call)
    assert watch.geometry().sites == list(statistic.found)
    return {name: shown for name, (shown,) in statistic.found.items()}


def check(block: BlockParts, shown: Shown, heads: bool = True) -> None:
    """The sum is the block's output, of what its own weights say."""
    real, before = shown.real, shown.entered
    last = before
    assert_close(add_up(block, before, shown.additions)[real], shown.left[real])
    names = [addition.name for addition in shown.additions]
    assert names == [n for n in block.names if n in names]
    assert {*block.names} - {*names} <= {"cross_attention"}
    for addition in shown.additions:
        part = addition.sublayer.part
        if not isinstance(part, Attention):
            read = before if block.parallel else last
            assert_close(mlp_output(part, read)[real], addition.raw[real])
        elif heads:
            assert_close(of_all_heads(addition)[real], without_bias(addition)[real])
        last = addition.left


def of_all_heads(addition: Addition) -> Tensor:
    """What the heads add, each by itself, and then all together."""
    mixed, weight = addition.of_heads()
    return torch.einsum("bthk,hkd->bthd", mixed, weight).sum(2)


def without_bias(addition: Addition) -> Tensor:
    """What attention adds less what no head does."""
    part = addition.sublayer.part
    assert isinstance(part, Attention)
    raw = addition.raw if part.output.bias is None else addition.raw - part.output.bias
    if addition.sublayer.after is None:
        return addition.sublayer.scale * raw
    return addition.sublayer.scale * frozen(addition.sublayer.after, addition.raw).linear(raw)


@pytest.mark.parametrize("name", MODELS)
def test_families(name: str) -> None:
    model = make(name)
    mask = (torch.arange(T) < torch.tensor([T, T - 3, T - 6])[:, None]).long()
    shown = show(model, {"input_ids": token_ids(B, T), "attention_mask": mask}, heads=True)
    for block in find_anatomy(model).blocks:
        assert int(shown[block.name].real.sum()) == int(mask.sum())
        check(block, shown[block.name])


@pytest.mark.parametrize("name", STACKED)
def test_stacks(name: str) -> None:
    model = stacked.make(name)
    inputs = STACKED[name][2](masked=True)
    shown = show(model, inputs.call, heads=True)
    for block in find_anatomy(model).blocks:
        check(block, shown[block.name])
        crosses = "cross_attention" in block.names and inputs.target is not None
        assert len(shown[block.name].additions) == 2 + crosses


@pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested"
)
@pytest.mark.parametrize("name", test_torch_layers.MODELS)
def test_layers_of_torch(name: str) -> None:
    """With time before batch, too."""
    model = test_torch_layers.make(name)
    with known(model):
        shown = show(model, call_of(model, masked=True))
        for block in find_anatomy(model).blocks:
            check(block, shown[block.name], heads=False)
            assert len(shown[block.name].additions) == len(block.sublayers)


@pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested"
)
def test_rows_that_torch_packs() -> None:
    """Without padding, in nested tensors."""
    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    real = torch.arange(9) < torch.tensor([4, 8, 9, 9])[:, None]
    shown = show(model, {"src": torch.randn(4, 9, 12), "src_key_padding_mask": ~real})
    for block in find_anatomy(model).blocks:
        assert torch.equal(shown[block.name].real, real)
        check(block, shown[block.name], heads=False)


def test_a_family_described_by_its_user() -> None:
    """As help(Family) shows it, which says nothing of what is added."""

    def block(block: Block) -> BlockParts:
        query, key, value = block.linear("attn.c_attn").split(3)
        attention = block.attention(
            "attn",
            query=query,
            key=key,
            value=value,
            output=block.linear("attn.c_proj"),
            heads=4,
            norm="ln_1",
        )
        mlp = block.mlp(
            "mlp",
            up=block.linear("mlp.c_fc"),
            down=block.linear("mlp.c_proj"),
            activation=block.function("mlp.act"),
            norm="ln_2",
        )
        return block.parts(attention, mlp)

    register(Family("mine", block, lambda around: Embeddings(around.table("wte"))))
    model = make("gpt2")
    model.config.model_type = "mine"  # type: ignore[union-attr]
    try:
        shown = show(model, {"input_ids": token_ids(B, T)}, heads=True)
        for one in find_anatomy(model).blocks:
            check(one, shown[one.name])
    finally:
        del KNOWN["mine"]


def test_sublayers_of_one_kind_have_names_of_their_own() -> None:
    block = find_anatomy(gpt2()).blocks[0]
    first, second = block.sublayers
    twice = BlockParts("b", block.module, "", (second, first, second), scale=0.5)
    assert twice.names == ("mlp", "attention", "mlp_2")
    one = torch.ones(1, 2, 24)
    found = additions_of(twice, one, [Written(one), None, Written(2 * one)])
    assert [addition.name for addition in found] == ["mlp", "mlp_2"]
    assert torch.equal(add_up(twice, one, found), 2 * one)
    assert torch.equal(add_up(twice, one, ()), 0.5 * one)


def test_errors() -> None:
    block = find_anatomy(gpt2()).blocks[0]
    one = torch.ones(1, 2, 24)
    with pytest.raises(ValueError, match=r"h.0 has 2 sublayers, and 1 outputs were given"):
        additions_of(block, one, [Written(one)])
    (first, second) = additions_of(block, one, [Written(one), Written(one)])
    for addition in (first, second):
        with pytest.raises(ValueError, match=rf"heads mix in the {addition.name} was not looked"):
            addition.of_heads()
    with pytest.raises(SiteError, match=r"each head of the attention of 'layers.0' writes cannot"):
        gh.watch(test_torch_layers.make("encoder"), statistics=[Collect(heads=True)])
    with pytest.raises(SiteError, match=r"collect reads what the sublayers of blocks add, and 'h."):
        gh.watch(gpt2(), sites="h.0.mlp", statistics=[Collect()])
