"""Parts by a finished geometry: they add up to the model's logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.anatomy import attention_parts
from geomhooks.errors import AnatomyError, HookError, SiteError, TokensError
from tests.anatomy.models import MODELS, gpt2, make, recorded_logits, token_ids
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
        shares = model(**inputs, output_attentions=True).attentions
    real = inputs["attention_mask"].bool()
    for layer, own in enumerate(recorded):
        split = attention_parts(model, geometry, inputs, layer)
        both = real[:, None, :, None] & real[:, None, None, :]
        # A query looks at a key where the model's own softmax leaves something.
        assert torch.equal(split.allowed, both & (shares[layer] > 0).any(1, keepdim=True))
        where = both.expand_as(own)
        total = split.logits.sum((0, 1))
        assert (total - own)[where].abs().max() < 1e-4 * own[where].abs().max()
        assert torch.isnan(total[~where]).all()
        # No part is idle: the split is not one part that has everything.
        sizes = split.logits.masked_fill(~where, 0).flatten(2).abs().amax(-1)
        assert (sizes[:4, :4] > 1e-3 * sizes.max()).all()


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gpt_neox", "bloom", "opt", "roberta", "bert", "gemma3", "qwen3"]
)
def test_padding_on_the_left(name: str) -> None:
    """Positions are those that the family itself gives, by its mask, its ids or its columns."""
    model = make(name)
    right = batch(7)
    lengths = right["attention_mask"].sum(1).tolist()
    left = {
        kind: torch.stack([row.roll(T - n) for row, n in zip(rows, lengths, strict=True)])
        for kind, rows in right.items()
    }
    pad = getattr(model.config, "pad_token_id", None) or 0
    left["input_ids"] = left["input_ids"].masked_fill(left["attention_mask"] == 0, pad)
    geometry = measure(model, [batch(seed, shortest=T) for seed in range(3)])
    with torch.no_grad(), recorded_logits(MODELS[name][0]) as recorded:
        model(**left)
    for layer, own in enumerate(recorded):
        split = attention_parts(model, geometry, left, layer)
        where = split.allowed.expand_as(own)
        assert int(split.allowed.any(-1).sum()) == sum(lengths)
        error = (split.logits.sum((0, 1)) - own)[where]
        assert error.abs().max() < 1e-4 * own[where].abs().max()
        if name in ("bloom", "opt", "roberta"):  # they count tokens, wherever these stand
            moved = attention_parts(model, geometry, right, layer)
            for row, n in enumerate(lengths):
                torch.testing.assert_close(
                    split.logits[:, :, row, :, T - n :, T - n :],
                    moved.logits[:, :, row, :, :n, :n],
                    rtol=1e-3, atol=1e-3,
                )  # fmt: skip


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


def test_nothing_is_left_behind() -> None:
    model = make("gpt2")
    inputs = batch(0)
    geometry = measure(model, [inputs])
    bare = model(**inputs).last_hidden_state

    def fail(*_: object) -> None:
        raise RuntimeError("half way")

    handle = model.get_submodule("h.2").register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="half way"):
        attention_parts(model, geometry, inputs, 1)
    handle.remove()
    assert not any(block._forward_pre_hooks for block in model.modules())
    assert torch.equal(model(**inputs).last_hidden_state, bare)


def test_errors() -> None:
    model = make("gpt2")
    inputs = batch(0)
    geometry = measure(model, [inputs])
    with torch.no_grad(), gh.watch(model, sites="h.2", statistics=[gh.PosCtx()]) as watch:
        model(**inputs)
    with pytest.raises(SiteError, match=r"no site 'h.0'"):
        attention_parts(model, watch.geometry(), inputs, 1)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Covariance()]) as watch:
        model(**inputs)
    with pytest.raises(SiteError, match=r"no pos_ctx at 'h.0@in'; measure it with"):
        attention_parts(model, watch.geometry(), inputs, 0)
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
            attention_parts(model, geometry, wrong, 1)
    with pytest.raises(TokensError, match=r"by name is needed, such as .*; found Tensor"):
        attention_parts(model, geometry, inputs["input_ids"], 1)  # type: ignore[arg-type]
    wide = gpt2(n_embd=32).eval()
    with pytest.raises(SiteError, match=r"h.1 is of width 24.*of width 32; it is of another"):
        attention_parts(model, measure(wide, [inputs]), inputs, 1)
    with pytest.raises(AnatomyError, match=r"no attention 'h.9'.*by name h.0, h.1"):
        attention_parts(model, geometry, inputs, "h.9")
    model.forward = lambda **_: None  # type: ignore[method-assign]
    with pytest.raises(HookError, match=r"the block h.1 did not run"):
        attention_parts(model, geometry, inputs, "h.1")
