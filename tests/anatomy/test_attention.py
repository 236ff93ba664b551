"""Attention put together from what is found, against the model's own, in every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from geomhooks.anatomy import (
    Block,
    BlockParts,
    Family,
    attention_mask,
    capped,
    families,
    find_anatomy,
    query_key_parts,
    register,
)
from geomhooks.anatomy.finding import KNOWN
from geomhooks.anatomy.known.llama import llama
from geomhooks.errors import AnatomyError
from geomhooks.functional import query_key_logits, repeat_heads
from tests.anatomy.models import MODELS, OUTPUTS, bert, gpt2, make, recorded_logits, token_ids
from tests.anatomy.models import llama as make_llama

B, T = 3, 11


def run(
    name: str, model: nn.Module, **inputs: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], list[Tensor]]:
    """Hidden states, attention probabilities, and logits before the mask."""
    with torch.no_grad(), recorded_logits(MODELS[name][0]) as logits:
        found = model(**inputs, output_hidden_states=True, output_attentions=True)
    return found.hidden_states, found.attentions, logits


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-4 of the largest."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str) -> None:
    """The goal: arbitrary parts that add up to the state give logits that add up to the model's."""
    model = make(name)
    hidden, probabilities, logits = run(name, model, input_ids=token_ids(B, T))
    anatomy = find_anatomy(model)
    assert len(anatomy.attention) == len(logits) >= 2
    for attention, states, own, shares in zip(
        anatomy.attention, hidden, logits, probabilities, strict=False
    ):
        some = torch.randn(3, *states.shape, generator=torch.Generator().manual_seed(1))
        parts = torch.cat((some, (states - some.sum(0))[None]))
        query, key = query_key_parts(attention, parts)
        assert query.shape == (5, B, attention.heads, T, query.shape[-1])
        assert key.shape == (5, B, attention.key_heads, T, query.shape[-1])
        split = query_key_logits(query, key, attention.scale)
        assert split.shape == (5, 5, B, attention.heads, T, T)
        total = split.sum((0, 1))
        if attention.distance is not None:
            total = total + attention.distance(torch.arange(T), torch.arange(T))
        assert_close(total, own)
        assert (split[:4, :4].flatten(2).abs().amax(-1) > 0).all()

        masked = capped(total, attention.softcap)
        masked = masked.masked_fill(~attention_mask(attention, T), -torch.inf)
        torch.testing.assert_close(masked.softmax(-1), shares, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_output(name: str) -> None:
    """The probabilities through values and output, against what the module returns."""
    model = make(name)
    anatomy = find_anatomy(model)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, found: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(found if isinstance(found, Tensor) else found[0])

    # The last projection, as a module may add and norm too.
    path = OUTPUTS[MODELS[name][0]]["attention"]
    modules = [block.module.get_submodule(path) for block in anatomy.blocks]
    handles = [module.register_forward_hook(keep) for module in modules]
    hidden, probabilities, _ = run(name, model, input_ids=token_ids(B, T))
    for handle in handles:
        handle.remove()
    for attention, states, shares, own in zip(
        anatomy.attention, hidden, probabilities, outputs, strict=False
    ):
        normed = states
        if attention.norm is not None:
            normed = attention.norm.module(states)
        value = torch.einsum("btd,hdk->bhtk", normed, attention.value.weight)
        if attention.value.bias is not None:
            value = value + attention.value.bias[:, None]
        mixed = shares @ repeat_heads(value, attention.heads)
        found = torch.einsum("bhtk,hkd->btd", mixed, attention.output.weight)
        if attention.output.bias is not None:
            found = found + attention.output.bias
        assert_close(found, own)


def test_positions_of_a_rotary_embedding() -> None:
    model = make("llama")
    positions = torch.arange(T) + torch.tensor([0, 3, 17])[:, None]
    positions[1, 4:] += 2
    hidden, _, logits = run(
        "llama", model, input_ids=token_ids(B, T), position_ids=positions,
        attention_mask=torch.ones(B, T, dtype=torch.long),
    )  # fmt: skip
    for attention, states, own in zip(find_anatomy(model).attention, hidden, logits, strict=False):
        query, key = query_key_parts(attention, states[None], positions)
        assert_close(query_key_logits(query, key, attention.scale).sum((0, 1)), own)
        query, key = query_key_parts(attention, states[None])
        wrong = query_key_logits(query, key, attention.scale).sum((0, 1))
        assert (wrong[1] - own[1]).abs().max() > 0.01 * own.abs().max()


def test_sites_are_those_of_a_watch() -> None:
    import geomhooks as gh

    for name in ("gpt2", "llama", "bert", "opt"):
        model = make(name)
        with (
            gh.watch(model, sites="blocks", statistics=[gh.Covariance()]) as watch,
            torch.no_grad(),
        ):
            hidden = model(input_ids=token_ids(B, T), output_hidden_states=True).hidden_states
        geometry = watch.geometry()
        for attention, states in zip(find_anatomy(model).attention, hidden, strict=False):
            mean = geometry[attention.site].covariance.mean
            torch.testing.assert_close(mean.float(), states.mean((0, 1)), rtol=1e-4, atol=1e-5)


def test_it_sees_the_weights_as_they_become() -> None:
    model = make("gpt2")
    attention = find_anatomy(model).at(0)
    with torch.no_grad():
        model.get_submodule("h.0.attn.c_attn").bias.zero_()
    assert attention.query.bias is not None
    assert not attention.query.bias.any()
    assert not attention.query.weight.requires_grad


def test_names() -> None:
    anatomy = find_anatomy(torch.nn.DataParallel(gpt2()))
    assert anatomy.family.name == "gpt2"
    names = [(a.name, a.block, a.site) for a in anatomy.attention]
    assert names == [
        ("h.0.attn", "h.0", "h.0@in"), ("h.1.attn", "h.1", "h.0"), ("h.2.attn", "h.2", "h.1")
    ]  # fmt: skip
    for layer in (1, -2, "h.1", "h.1.attn"):
        assert anatomy.at(layer) is anatomy.attention[1]
    with pytest.raises(AnatomyError, match=r"no attention 3; there are 0 to 2"):
        anatomy.at(3)
    assert not find_anatomy(bert()).at(0).causal
    assert find_anatomy(bert()).at(0).norm is None


def test_a_family_that_is_not_known() -> None:
    model = make_llama()
    model.config.model_type = "alpaca"
    with pytest.raises(
        AnatomyError,
        match=r"(?s)LlamaForCausalLM is of the family 'alpaca'; known are .*bert, .*register",
    ):
        find_anatomy(model)
    with pytest.raises(AnatomyError, match=r"Linear has no config.model_type; known are"):
        find_anatomy(nn.Linear(2, 2))
    with pytest.raises(AnatomyError, match=r"has no 'attn.c_attn', only self_attn.*otherwise"):
        find_anatomy(model, "gpt2")
    with pytest.raises(AnatomyError, match=r"LlamaForCausalLM cannot be taken as 'lama'; known"):
        find_anatomy(model, "lama")
    with pytest.raises(AnatomyError, match=r"layers.0 by the family 'x' is NoneType; return what"):
        find_anatomy(model, Family("x", lambda block: None))  # type: ignore[arg-type,return-value]
    with pytest.raises(AnatomyError, match=r"a geomhooks.anatomy.Family is needed, found 'x'"):
        register("x")  # type: ignore[arg-type]
    assert find_anatomy(model, "llama").at(0).heads == 6
    assert find_anatomy(model, Family("alpaca", llama)).family.name == "alpaca"
    register(Family("alpaca", llama))
    try:
        assert "alpaca" in families()
        assert find_anatomy(model).at(1).key_heads == 2
    finally:
        del KNOWN["alpaca"]


def test_what_cannot_be_read() -> None:
    model = gpt2()
    model.config.n_head = 5
    with pytest.raises(AnatomyError, match=r"h.0.attn: 5 heads and 5 of keys do not fit"):
        find_anatomy(model)
    model = make_llama()
    layer = model.model.layers[1].self_attn
    layer.q_proj = nn.Sequential(layer.q_proj)
    with pytest.raises(AnatomyError, match=r"layers.1.self_attn.q_proj is a Sequential.*adapters"):
        find_anatomy(model)
    model = make_llama()
    model.model.layers[0].input_layernorm = nn.Identity()
    with pytest.raises(AnatomyError, match=r"input_layernorm is a Identity, which is no LayerNorm"):
        find_anatomy(model)


@pytest.mark.parametrize("said", [False, True])
def test_a_description_that_does_not_say_whether_it_is_causal(said: bool) -> None:
    """The module says it."""
    from transformers import DistilBertConfig, DistilBertModel

    def describe(block: Block) -> BlockParts:
        names = {"query": "q_lin", "key": "k_lin", "value": "v_lin", "output": "out_lin"}
        parts = {part: block.linear(f"attention.{name}") for part, name in names.items()}
        return block.parts(block.attention("attention", heads=2, **parts))

    sizes = {"vocab_size": 10, "dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 8}
    model = DistilBertModel(DistilBertConfig(**sizes))
    model.transformer.layer[0].attention.is_causal = said
    assert find_anatomy(model, Family("mine", describe)).at(0).causal is said
