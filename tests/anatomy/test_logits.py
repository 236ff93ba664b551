"""Parts by a finished geometry: they add up to the model's logits, and their streamed shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.anatomy import LogitStream, attention_parts, find_anatomy
from geomhooks.errors import AnatomyError, HookError, SiteError, TokensError
from tests.anatomy.models import MODELS, make, recorded_logits, token_ids
from tests.models import minilm, smollm, texts

B, T = 8, 13


def batch(seed: int, shortest: int = 5) -> dict[str, Tensor]:
    """Rows of different lengths, padded on the right."""
    lengths = torch.linspace(shortest, T, B).long()
    mask = (torch.arange(T) < lengths[:, None]).long()
    return {"input_ids": token_ids(B, T, seed), "attention_mask": mask}


def measure(model: nn.Module, batches: list[dict[str, Tensor]]) -> gh.Geometry:
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=[gh.PosCtx()]) as watch:
        for inputs in batches:
            model(**inputs)
    return watch.geometry()


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_add_up_to_the_models_own_logits(name: str) -> None:
    """The goal of all this: mean, pos, ctx, resid and biases, in every family."""
    model = make(name)
    geometry = measure(model, [batch(seed) for seed in range(3)])
    inputs = batch(7)
    with torch.no_grad(), recorded_logits(MODELS[name][0]) as recorded:
        model(**inputs)
    anatomy = find_anatomy(model)
    real = inputs["attention_mask"].bool()
    for layer, own in enumerate(recorded):
        split = attention_parts(model, geometry, inputs, layer)
        both = real[:, None, :, None] & real[:, None, None, :]
        assert torch.equal(split.allowed, both.tril() if anatomy.attention[layer].causal else both)
        where = both.expand_as(own)
        total = split.logits.sum((0, 1))
        assert (total - own)[where].abs().max() < 1e-4 * own[where].abs().max()
        assert torch.isnan(total[~where]).all()
        # No part is idle: the split is not one part that has everything.
        sizes = split.logits.masked_fill(~where, 0).flatten(2).abs().amax(-1)
        assert (sizes[:4, :4] > 1e-3 * sizes.max()).all()


def dense(model: nn.Module, geometry: gh.Geometry, batches: list[dict[str, Tensor]], layer: int,
          within: bool) -> np.ndarray:  # fmt: skip
    """(H, 25, 25) covariance of the parts over all allowed pairs, from whole matrices."""
    columns: list[list[np.ndarray]] = []
    for inputs in batches:
        split = attention_parts(model, geometry, inputs, layer)
        logits = split.logits.double().flatten(0, 1).numpy()
        for row in range(logits.shape[1]):
            for t in range(logits.shape[3]):
                keys = split.allowed[row, 0, t].numpy()
                if keys.any():
                    some = logits[:, row, :, t][..., keys]
                    columns.append(
                        list(
                            (some - some.mean(-1, keepdims=True) if within else some).swapaxes(0, 1)
                        )
                    )
    heads = [np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True)]
    return np.stack([np.cov(head, bias=True) for head in heads])


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "opt"])
def test_streamed_shares(name: str, within: bool) -> None:
    model = make(name)
    batches = [batch(seed) for seed in range(3)]
    geometry = measure(model, batches)
    stream = LogitStream(model, geometry)
    for inputs in batches:
        stream.add(inputs)
    for layer, attention in enumerate(find_anatomy(model).attention):
        expected = dense(model, geometry, batches, layer, within)
        found = stream.shares(attention.block, within)
        heads = attention.heads
        covariance = found.covariance.reshape(heads, 25, 25).numpy()
        np.testing.assert_allclose(covariance, expected, atol=1e-5 * np.abs(expected).max())
        variance = expected.sum((1, 2))
        np.testing.assert_allclose(found.variance, variance, rtol=1e-4)
        np.testing.assert_allclose(
            found.shares.reshape(heads, 25), expected.sum(2) / variance[:, None], atol=1e-3
        )
        torch.testing.assert_close(found.shares.sum((1, 2)), torch.ones(heads).double())
    assert set(stream.left_out.values()) == {0}


def test_batches_do_not_matter() -> None:
    model = make("llama")
    whole = batch(0)
    geometry = measure(model, [whole])
    one, many = LogitStream(model, geometry), LogitStream(model, geometry, layers=[1])
    one.add(whole)
    for rows in torch.arange(B).split(3):
        many.add({name: tensor[rows] for name, tensor in whole.items()})
    assert list(many.sums) == ["model.layers.1"]
    torch.testing.assert_close(
        many.shares(0).covariance, one.shares(1).covariance, rtol=1e-4, atol=1e-4
    )


def test_a_model_that_knows_positions_only() -> None:
    """Planted: without token embeddings a state is mean and pos, and the logits theirs."""
    model = make("gpt2")
    with torch.no_grad():
        model.get_submodule("wte").weight.zero_()
    ids = {"input_ids": token_ids(B, T)}
    stream = LogitStream(model, measure(model, [ids]))
    stream.add(ids)
    for layer in range(3):
        shares = stream.shares(layer).shares
        assert shares[:, 2:4].abs().max() < 1e-5
        assert shares[:, :, 2:4].abs().max() < 1e-5
        # What all keys share acts on no query; the mean does, for the norm scales every key anew.
        assert shares[:, :, 4].abs().max() < 1e-12
        assert torch.allclose(shares[:, :, :2].sum((1, 2)), torch.ones(4).double(), atol=1e-5)


def test_left_padding_with_position_ids() -> None:
    model = make("llama")
    right = batch(0)
    lengths = right["attention_mask"].sum(1)
    order = (torch.arange(T) - (T - lengths)[:, None]) % T
    left = {name: tensor.gather(1, order) for name, tensor in right.items()}
    with pytest.raises(TokensError, match=r"give position_ids, or pad on the right"):
        LogitStream(model, measure(model, [right])).add(left)
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    geometry = measure(model, [right])
    one, other = LogitStream(model, geometry), LogitStream(model, geometry)
    one.add(right)
    other.add(left)
    assert torch.equal(one.sums["model.layers.1"].pairs, other.sums["model.layers.1"].pairs)
    torch.testing.assert_close(
        other.shares(1).covariance, one.shares(1).covariance, rtol=1e-3, atol=1e-3
    )


def test_tokens_whose_pos_is_not_known_are_counted() -> None:
    model = make("bert")
    short = {name: tensor[:, : T - 3] for name, tensor in batch(0, T - 3).items()}
    stream = LogitStream(model, measure(model, [short]))
    stream.add({"input_ids": token_ids(B, T)})
    assert stream.left_out == {"encoder.layer.0": 3 * B, "encoder.layer.1": 3 * B}
    assert stream.sums["encoder.layer.0"].pairs.tolist() == [B * (T - 3) ** 2] * 3
    assert torch.isfinite(stream.shares(0).covariance).all()


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_pretrained_models(name: str) -> None:
    model, tokenizer = {"bert": minilm, "llama": smollm}[name]()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = dict(
        tokenizer(
            texts(6, 300), truncation=True, max_length=24, padding=True, padding_side="right",
            return_tensors="pt",
        )
    )  # fmt: skip
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        geometry = measure(model, [inputs])
        with torch.no_grad(), recorded_logits(name) as recorded:
            model(**inputs)
        for layer in (0, 2, len(recorded) - 1):
            split = attention_parts(model, geometry, inputs, layer)
            where = split.allowed.expand_as(recorded[layer])
            own = recorded[layer][where]
            error = split.logits.sum((0, 1))[where] - own
            assert error.abs().max() < 1e-4 * own.abs().max()
    finally:
        model.set_attn_implementation(before)


def test_nothing_is_left_behind_or_lost() -> None:
    model = make("gpt2")
    inputs = batch(0)
    geometry = measure(model, [inputs])
    bare = model(**inputs).last_hidden_state
    stream = LogitStream(model, geometry)
    stream.add(inputs)
    before = stream.sums["h.1"]

    def fail(*_: object) -> None:
        raise RuntimeError("half way")

    handle = model.get_submodule("h.2").register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="half way"):
        stream.add(inputs)
    handle.remove()
    assert stream.sums["h.1"] is before
    assert not any(block._forward_pre_hooks for block in model.modules())
    assert torch.equal(model(**inputs).last_hidden_state, bare)


def test_errors() -> None:
    model = make("gpt2")
    inputs = batch(0)
    geometry = measure(model, [inputs])
    with torch.no_grad(), gh.watch(model, sites="h.2", statistics=[gh.PosCtx()]) as watch:
        model(**inputs)
    with pytest.raises(SiteError, match=r"no site 'h.0'"):
        LogitStream(model, watch.geometry(), layers=[1])
    with torch.no_grad(), gh.watch(model, statistics=[gh.Covariance()]) as watch:
        model(**inputs)
    with pytest.raises(SiteError, match=r"no pos_ctx at 'h.0@in'; measure it with"):
        LogitStream(model, watch.geometry())
    stream = LogitStream(model, geometry, ["h.1"])
    with pytest.raises(AnatomyError, match=r"no logits of block 'h.1' have been added.*call add"):
        stream.shares("h.1")
    for wrong, message in (
        ({"pixels": inputs["input_ids"]}, r"input_ids \(B, T\) or inputs_embeds"),
        (inputs | {"cache": object()}, r"cache: keys of an earlier call"),
        (inputs | {"attention_mask": torch.ones(B, 1, T, T)}, r"attention_mask: \(B, T\)"),
        (inputs | {"attention_mask": torch.ones(B, T + 1)}, r"attention_mask: \(8, 13\) is needed"),
        (
            {"input_ids": inputs["input_ids"], "position_ids": (torch.arange(T) % 7)[None]},
            r"position_ids go back within a row",
        ),
    ):
        with pytest.raises(TokensError, match=message):
            stream.add(wrong)
    with pytest.raises(AnatomyError, match=r"no attention 'h.9'"):
        attention_parts(model, geometry, inputs, "h.9")
    model.forward = lambda **_: None  # type: ignore[method-assign]
    with pytest.raises(HookError, match=r"these blocks did not run: h.1"):
        stream.add(inputs)
    assert stream.sums == {}
