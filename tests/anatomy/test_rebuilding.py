"""Attention and blocks rebuilt from the parts that were found, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geomhooks.anatomy import (
    BlockParts,
    attention_output,
    block_output,
    capped,
    find_anatomy,
    mlp_output,
    normed,
)
from geomhooks.errors import AnatomyError
from geomhooks.sites import find_tensor
from tests.anatomy.models import MODELS, OUTPUTS, bert, gemma, gpt2, gpt_neox, make, token_ids

B, T = 3, 11


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What goes into modules and what comes out, by their names."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            entered, left = find_tensor((args, kwargs)), find_tensor(out)
            assert entered is not None
            assert left is not None
            found[name] = entered.detach(), left.detach()

        return hook

    handles = [m.register_forward_hook(keep(n), with_kwargs=True) for n, m in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def modules_of(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """Blocks, and the last projections of their attention and of their feed-forward layers."""
    modules = {}
    for block in find_anatomy(model).blocks:
        modules[block.name] = block.module
        for kind, path in OUTPUTS[MODELS[name][0]].items():
            modules[f"{block.name} {kind}"] = block.module.get_submodule(path)
    return modules


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-4 of the largest."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_blocks(name: str, masked: bool) -> None:
    model = make(name)
    real = torch.arange(T) < torch.tensor([T, T - 3, T - 6])[:, None] if masked else None
    told = {} if real is None else {"attention_mask": real.long()}
    with torch.no_grad(), recorded(modules_of(model, name)) as found:
        model(input_ids=token_ids(B, T), **told)
    where = torch.ones(B, T, dtype=torch.bool) if real is None else real
    for block in find_anatomy(model).blocks:
        entered, left = found[block.name]
        assert_close(block_output(block, entered, real=real)[where], left[where])
        attention = attention_output(block.attention, entered, real=real)
        assert_close(attention[where], found[f"{block.name} attention"][1][where])
        read = entered if block.parallel else after_attention(block, entered, attention)
        fed = mlp_output(block.mlp, read)
        assert_close(fed[where], found[f"{block.name} mlp"][1].reshape(B, T, -1)[where])


def after_attention(block: BlockParts, entered: Tensor, attention: Tensor) -> Tensor:
    """The state that the second sublayer reads."""
    first = block.sublayers[0]
    kept = normed(entered, block.attention.norm) if first.residual_is_normed else entered
    return normed(kept + first.scale * normed(attention, first.after), first.closing)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_around_the_blocks(name: str) -> None:
    """Embeddings are the first block's input, the final norm is before the logits of the head."""
    model = make(name)
    ids = token_ids(B, T)
    anatomy = find_anatomy(model)
    stack = anatomy.stack()
    with torch.no_grad(), recorded({b.name: b.module for b in stack.blocks}) as found:
        out = model(input_ids=ids)
    around = stack.embeddings
    assert around is not None
    assert around.tokens is not None
    states = around.scale * around.tokens[ids]
    if around.positions is not None:
        states = states + around.positions[around.offset : around.offset + T]
    if around.other is not None:
        states = states + around.other
    assert_close(normed(states, around.norm), found[stack.blocks[0].name][0])
    last = normed(found[stack.blocks[-1].name][1], stack.final_norm)
    if "logits" in out:
        assert anatomy.unembedding is not None
        assert_close(capped(anatomy.unembedding(last), anatomy.softcap), out.logits)
    else:
        assert_close(last, out.last_hidden_state)


def test_scaled_embeddings_are_rounded_as_in_the_model() -> None:
    """The square root of 24 is 4.899; in bfloat16 it is 4.906."""
    model = make("gemma").bfloat16()
    ids, stack = token_ids(B, T), find_anatomy(model).stack()
    around = stack.embeddings
    assert around is not None
    assert around.tokens is not None
    assert around.scale == 4.90625
    with torch.no_grad(), recorded({"0": stack.blocks[0].module}) as found:
        model(input_ids=ids)
    assert torch.equal(around.scale * around.tokens[ids], found["0"][0])


@pytest.mark.parametrize(
    ("name", "tied", "cap"),
    [
        ("gemma2", True, 30.0),
        ("gemma2, not capped", True, None),
        ("gemma, grouped", False, None),
        ("qwen2", False, None),
        ("qwen2, windows, tied", True, None),
    ],
)
def test_head(name: str, tied: bool, cap: float | None) -> None:
    anatomy = find_anatomy(make(name))
    assert (anatomy.tied, anatomy.softcap) == (tied, cap)


def test_a_model_without_a_head() -> None:
    assert find_anatomy(make("gemma2").get_decoder()).softcap is None


def test_errors() -> None:
    anatomy = find_anatomy(gpt2())
    with pytest.raises(AnatomyError, match=r"no stack 'layers'; there are 'h'; say which"):
        anatomy.stack("layers")
    with pytest.raises(AnatomyError, match=r"h.0 has 0 of cross_attention; it was described as"):
        _ = anatomy.blocks[0].cross_attention
    model = bert()
    model.embeddings.LayerNorm = nn.Identity()
    with pytest.raises(AnatomyError, match=r"embeddings.LayerNorm is a Identity, which is no"):
        find_anatomy(model)
    model = gpt_neox()
    model.gpt_neox.rotary_emb = None
    with pytest.raises(AnatomyError, match=r"has 0 modules called rotary_emb; one is needed"):
        find_anatomy(model)
    model = gemma(use_bidirectional_attention=True)
    with pytest.raises(AnatomyError, match=r"has use_bidirectional_attention.*is_causal = False"):
        find_anatomy(model)
