"""Streamed parts of updates, against dense ones made of what hooks of our own have seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
import tests.conformance.cases  # noqa: F401 - describes the parts of a Stack
from geomhooks.errors import UnidentifiedError
from tests.anatomy import stacked
from tests.anatomy.models import make, token_ids
from tests.conformance.harness import compare
from tests.models import Stack, tiny_gpt2_lm
from tests.reference import updates

B, T, WIDTH = 5, 11, 24
Record = dict[str, tuple[Tensor, Tensor]]


def record(model: nn.Module, block: nn.Module, call: dict[str, Any]) -> Record:
    """What goes into each module of a block, and into itself, and what comes out."""
    found: Record = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            left = out[0] if isinstance(out, tuple) else out
            found[name] = tuple(v.detach().double() for v in (entered, left))  # type: ignore[assignment]

        return hook

    modules = {"": block} | {
        n: m for n, m in block.named_modules() if n and not list(m.children()) and "act" not in n
    }
    handles = [m.register_forward_hook(keep(n), with_kwargs=True) for n, m in modules.items()]
    with torch.no_grad():
        model(**call)
    for handle in handles:
        handle.remove()
    return found


def pre_norm(attention: str, mlp: str, second: str) -> Callable[[Record], list[Any]]:
    """States are the block's input, and what goes into the second norm."""
    return lambda r: [
        ("attention", r[""][0], r[attention][1]),
        ("mlp", r[second][0], r[mlp][1]),
    ]


# How each kind of block adds, by what its modules show: name, state, what is added.
KINDS: dict[str, tuple[str, Callable[[Record], list[Any]], str]] = {
    "gpt2": ("h.1", pre_norm("attn.c_proj", "mlp.c_proj", "ln_2"), "attn.c_proj"),
    "llama": (
        "model.layers.1",
        pre_norm("self_attn.o_proj", "mlp.down_proj", "post_attention_layernorm"),
        "self_attn.o_proj",
    ),
    "gemma2": (
        "model.layers.1",
        pre_norm(
            "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm"
        ),
        "self_attn.o_proj",
    ),
    "opt": (
        "decoder.layers.1",
        lambda r: [
            ("attention", r[""][0], r["self_attn.out_proj"][1]),
            ("mlp", r["final_layer_norm"][0].view(B, T, -1), r["fc2"][1].view(B, T, -1)),
        ],
        "self_attn.out_proj",
    ),
    "bert": (
        "encoder.layer.1",
        lambda r: [
            ("attention", r[""][0], r["attention.output.dense"][1]),
            ("mlp", r["attention.output.LayerNorm"][1], r["output.dense"][1]),
        ],
        "attention.output.dense",
    ),
    "gpt_neox": (
        "gpt_neox.layers.1",
        lambda r: [
            ("attention", r[""][0], r["attention.dense"][1]),
            ("mlp", r[""][0] + r["attention.dense"][1], r["mlp.dense_4h_to_h"][1]),
        ],
        "attention.dense",
    ),
    "bloom, adding to normed states": (
        "transformer.h.1",
        lambda r: [
            ("attention", r["input_layernorm"][1], r["self_attention.dense"][1]),
            ("mlp", r["post_attention_layernorm"][1], r["mlp.dense_4h_to_h"][1]),
        ],
        "self_attention.dense",
    ),
}


def real() -> Tensor:
    return torch.arange(T) < torch.tensor([T, T - 1, T - 4, T - 7, 2])[:, None]


def observe(found: list[Any], where: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of the real tokens what is added, and to what, and their positions."""
    added = torch.stack([torch.stack([state, u], 2) for _, state, u in found], 2)
    return added[where].numpy(), torch.arange(T).expand(B, T)[where].numpy()


def dense_heads(name: str, model: nn.Module, block: nn.Module, r: Record, projection: str,
                where: Tensor) -> list[np.ndarray]:  # fmt: skip
    """What each head adds, written out."""
    module = block.get_submodule(projection)
    weight = module.weight.detach().double()  # type: ignore[union-attr, operator]
    weight = weight if name == "gpt2" else weight.T  # (H k, d)
    config = model.config
    number = int(config.num_attention_heads)  # type: ignore[union-attr, arg-type]
    mixed, raw = r[projection]
    apart, rows = mixed.unflatten(-1, (number, -1)), weight.unflatten(0, (number, -1))
    heads = torch.einsum("bthk,hkd->hbtd", apart, rows)
    if name == "gemma2":
        norm = block.get_submodule("post_attention_layernorm")
        length = (raw.square().mean(-1, keepdim=True) + norm.eps).sqrt()  # type: ignore[operator]
        heads = heads / length * (1 + norm.weight.detach().double())  # type: ignore[operator]
    return [head[where].numpy() for head in heads]


@pytest.mark.parametrize("name", KINDS)
def test_streamed_updates(name: str) -> None:
    site, parts, projection = KINDS[name]
    model, where = make(name), real()
    call = {"input_ids": token_ids(B, T), "attention_mask": where.long()}
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates(heads=True), gh.Sphere()]) as w:
        model(**call)
    block = model.get_submodule(site)
    r = record(model, block, call)
    found = parts(r)
    heads = dense_heads(name, model, block, r, projection, where)
    expected = updates(*observe(found, where), ("attention", "mlp"), {"attention": heads})
    close = {n: number._replace(rtol=2e-4) for n, number in expected.items()}
    compare(w.geometry()[site].updates, close, name, unchecked=())


def test_three_sublayers() -> None:
    """Those of a decoder with an encoder, each by itself."""
    model = stacked.make("t5")
    inputs = stacked.translation(masked=False)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates()]) as watch:
        model(**inputs.call)
    geometry = watch.geometry()
    r = record(model, model.get_submodule("decoder.block.1"), inputs.call)
    updated = geometry["decoder.block.1"].updates
    for index, name in enumerate(("attention", "cross_attention", "mlp")):
        state = r[f"layer.{index}.layer_norm"][0]
        path = ("SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo")[index]
        added = r[f"layer.{index}.{path}"][1]
        y, u = (v - v.mean(-1, keepdim=True) for v in (state, added))
        radial = (y * u).sum(-1) / y.square().sum(-1)
        assert float(updated[name].radial.mean) == pytest.approx(float(radial.mean()), rel=1e-4)
        assert float(updated[name].norm.max) == pytest.approx(
            float(added.norm(dim=-1).max()), rel=1e-5
        )
    assert "cross_attention" not in geometry["encoder.block.1"].updates
    assert float(updated.gap.max) < 1e-5


def test_cross_attention_without_a_source() -> None:
    """It is not there, and says so."""
    model = stacked.make("bart, decoder")
    call = stacked.text(masked=False).call
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates(heads=True)]) as watch:
        model(**call)
    geometry = watch.geometry()
    site = geometry.sites[0]
    assert int(geometry[site].updates.mlp.norm.count) == call["input_ids"].numel()
    with pytest.raises(UnidentifiedError, match=r"no token went through the cross_attention of"):
        _ = geometry[site].updates.cross_attention
    assert not any("cross_attention" in name for name in geometry.scalars())


def test_sphere_s_step_is_that_of_both_updates() -> None:
    """The state after all sublayers has gone the whole way of the block."""
    model = make("gpt2")
    call = {"input_ids": token_ids(B, T)}
    both = [gh.Updates(), gh.Sphere()]
    with torch.no_grad(), gh.watch(model, sites="h.2", statistics=both) as watch:
        model(**call)
    found = watch.geometry()["h.2"]
    block = record(model, model.get_submodule("h.2"), call)
    y, u = (v - v.mean(-1, keepdim=True) for v in block[""])
    assert float(found.sphere.radial.mean) == pytest.approx(
        float(((u - y) * y).sum(-1).div(y.norm(dim=-1)).mean()), rel=1e-4
    )
    assert float(found.updates.gap.max) < 1e-6


def test_planted_updates() -> None:
    """A sublayer that scales its state moves it outwards; one that goes across it turns it."""
    model = Stack(8, depth=2)
    turn, push = model.blocks[0].turn, model.blocks[0].push
    turn.forward = lambda hidden: 0.5 * hidden  # type: ignore[method-assign, union-attr]
    push.forward = across  # type: ignore[method-assign, union-attr]
    hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates()]) as watch:
        model(hidden)
    found = watch.geometry()["blocks.0"].updates
    centred = hidden - hidden.mean(-1, keepdim=True)
    slope = across(hidden).norm(dim=-1) / centred.norm(dim=-1)
    for value, expected in (
        (found.attention.radial, torch.tensor(0.5)),
        (found.attention.tangential, torch.tensor(0.0)),
        (found.attention.radial_share, torch.tensor(1.0)),
        (found.attention.step_angle, torch.tensor(0.0)),
        (found.mlp.radial, torch.tensor(0.0)),
        (found.mlp.tangential, slope),
        (found.mlp.radial_share, torch.tensor(0.0)),
        (found.mlp.step_angle, slope.atan()),
    ):
        assert float(value.min) == pytest.approx(float(expected.min()), abs=1e-6)
        assert float(value.mean) == pytest.approx(float(expected.mean()), abs=1e-6)
        assert float(value.max) == pytest.approx(float(expected.max()), abs=1e-6)


def across(hidden: Tensor) -> Tensor:
    """An antisymmetric map, which is orthogonal to what it is of and to the ones direction."""
    return hidden.roll(1, -1) - hidden.roll(-1, -1)


def test_tokens_that_are_not_finite_are_left_out_and_counted() -> None:
    model, hidden = Stack(8, depth=2), torch.randn(3, 4, 8)
    statistic = [gh.Updates(heads=True)]

    def measure(states: Tensor) -> Any:
        with torch.no_grad(), gh.watch(model, statistics=statistic) as watch:
            model(states)
        return watch.geometry()["blocks.1"].updates

    bad = hidden.clone()
    bad[0, 0, 2], bad[1, 2, 3] = float("nan"), float("inf")
    found, clean = measure(bad), measure(hidden)
    for name in ("attention", "mlp"):
        assert int(found[name].non_finite) == 2
        assert int(found.without_first[name].non_finite) == 1
        assert int(found[name].norm.count) == 10
        assert found[name].norm.at_position.count.tolist() == [2, 3, 2, 3]
        assert torch.isfinite(found[name].radial.mean)
        torch.testing.assert_close(
            found[name].radial.at_position.mean[[1, 3]], clean[name].radial.at_position.mean[[1, 3]]
        )
    assert found.attention.heads.size.count.tolist() == [10] * 4
    assert int(clean.attention.non_finite) == 0
    nothing = measure(torch.full((2, 2, 8), float("nan")))
    assert int(nothing.mlp.non_finite) == 4
    assert torch.isnan(nothing.mlp.radial.mean)


def test_dropout_shows_in_the_gap() -> None:
    """What is added in training has gone through dropout after it was seen."""
    model = make("gpt2").train()
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates()]) as watch:
        model(input_ids=token_ids(B, T))
    assert float(watch.geometry()["h.1"].updates.gap.mean) > 0.01


def test_generated_tokens() -> None:
    """Each goes by its own state, with a cache or without."""
    model = tiny_gpt2_lm()
    prompts = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates(heads=True)]) as watch:
        out = model.generate(
            prompts, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    found = watch.geometry()["transformer.h.1"].updates
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates(heads=True)]) as watch:
        model(out[:, :-1])
    whole = watch.geometry()["transformer.h.1"].updates
    for name in ("attention", "mlp"):
        torch.testing.assert_close(
            found[name].radial.at_position.mean,
            whole[name].radial.at_position.mean,
            rtol=1e-4,
            atol=1e-5,
        )
    torch.testing.assert_close(
        found.attention.heads.size.mean, whole.attention.heads.size.mean, rtol=1e-4, atol=1e-5
    )


def test_weights_are_those_of_the_forward() -> None:
    """Trained in place, and replaced by others elsewhere."""
    model, call = make("llama"), {"input_ids": token_ids(B, T)}
    for change in ("in place", "replaced"):
        with torch.no_grad(), gh.watch(model, statistics=[gh.Updates(heads=True)]) as watch:
            model(**call)
            watch.reset()
            projection = model.get_submodule("model.layers.1.self_attn.o_proj")
            if change == "in place":
                projection.weight.mul_(2)  # type: ignore[operator, union-attr]
            else:
                projection.weight.data = projection.weight.data * 3  # type: ignore[operator, union-attr]
            model(**call)
        with torch.no_grad(), gh.watch(model, statistics=[gh.Updates(heads=True)]) as fresh:
            model(**call)
        one, other = (w.geometry()["model.layers.1"].updates.attention for w in (watch, fresh))
        assert torch.equal(one.heads.size.mean, other.heads.size.mean)


def test_files(tmp_path: Path) -> None:
    model = make("bert")
    for number in range(2):
        with torch.no_grad(), gh.watch(model, statistics=[gh.Updates(heads=True)]) as watch:
            model(input_ids=token_ids(B, T, number))
        watch.geometry().save(tmp_path / f"{number}.safetensors")
    merged = gh.merge([gh.load(tmp_path / f"{number}.safetensors") for number in range(2)])
    found = merged["encoder.layer.1"].updates
    assert int(found.attention.radial.count) == 2 * B * T
    assert found.attention.heads.radial.count.tolist() == [2 * B * T] * 3
    assert "encoder.layer.1/updates/attention/radial/mean" in merged.scalars()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"Updates\(positions=0\): a positive integer"):
        gh.Updates(positions=0)
    with pytest.raises(ValueError, match=r"Updates\(heads=2\): True or False is needed"):
        gh.Updates(heads=2)  # type: ignore[arg-type]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    message = r"each head of the attention of 'layers.0' writes cannot be seen.*MultiheadAttention"
    with pytest.raises(gh.errors.SiteError, match=message):
        gh.watch(encoder, statistics=[gh.Updates(heads=True)])
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(gh.errors.AnatomyError, match=r"Sequential has no config.model_type; kn"):
        gh.watch(plain, statistics=[gh.Updates()])
