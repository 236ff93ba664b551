"""TransformerLens's bridge, run as it is inside a watch."""

from __future__ import annotations

import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import geomhooks as gh
from tests.loops.models import STACKS, VOCABULARY, save_causal_lm, sentences
from tests.loops.recording import all_hooks, check, dense, generation, needed, record, watched

needed("transformer_lens")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def native() -> Any:
    """A model of TransformerLens's own, without one of Hugging Face."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_native(
        {"n_layers": 3, "d_model": 16, "n_ctx": 32, "d_head": 8, "n_heads": 2, "d_mlp": 32,
         "d_vocab": len(VOCABULARY), "act_fn": "gelu", "normalization_type": "LN", "seed": 0}
    )  # fmt: skip


@cache
def folder(family: str) -> Path:
    """A model of Hugging Face with random weights, as it would lie on a disk."""
    return save_causal_lm(Path(tempfile.mkdtemp()), family)


def bridge(family: str) -> Any:
    """A bridge around that model; its tokenizer pads on the left."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder(family)), device="cpu").eval()


MODELS = {"native": native} | {name: partial(bridge, name) for name in STACKS}
IDS = torch.arange(36).view(4, 9) * 7 % 60 + 4
RIGHT = (torch.arange(9) < torch.tensor([9, 5, 3, 8])[:, None]).long()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_blocks_are_the_cached_residual_stream(name: str, masked: bool) -> None:
    """run_with_cache calls the bridge's forward past its hooks; the numbers are those cached."""
    model = MODELS[name]()
    options = {"attention_mask": RIGHT} if masked else {}
    bare, _ = model.run_with_cache(IDS, **options)
    caller, blocks = model.original_model, list(model.blocks)
    with record(caller, blocks) as forwards, watched(model) as watch:
        logits, cache = model.run_with_cache(IDS, **options)
    assert torch.equal(logits, bare)
    states = [cache["blocks.0.hook_in"], *(cache[f"blocks.{i}.hook_out"] for i in range(3))]
    for ours, theirs in zip(forwards[0].states, states, strict=True):
        assert np.array_equal(ours, theirs.double().numpy())
    check(watch.geometry(), "blocks", dense(forwards))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_call_and_hooks_of_the_users(name: str) -> None:
    """The output of a block is what goes on, after what the user's hook has made of it."""
    model = MODELS[name]()
    bare = model(IDS)

    def halve(states: Tensor, hook: Any) -> Tensor:
        return states / 2

    changed = model.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_out", halve)])
    with record(model.original_model, list(model.blocks)) as forwards, watched(model) as watch:
        assert torch.equal(model(IDS), bare)
        found = model.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_out", halve)])
        assert torch.equal(found, changed)
    plain, halved = (forward.states[2] for forward in forwards)
    assert np.array_equal(halved, plain / 2)
    check(watch.geometry(), "blocks", dense(forwards))


@pytest.mark.parametrize("family", STACKS)
@torch.no_grad()
def test_texts_of_different_length(family: str) -> None:
    """Texts are padded on the left, with a mask and positions of the bridge's own."""
    model = bridge(family)
    lines = sentences(5, longest=6)
    bare = model(lines)
    with record(model.original_model, list(model.blocks)) as forwards, watched(model) as watch:
        assert torch.equal(model(lines), bare)
    expected = dense(forwards, generation)
    lengths = [len(line.split()) + 1 for line in lines]  # each begins with [BOS]
    assert len(expected[0].states) == sum(lengths)
    check(watch.geometry(), "blocks", expected)


@pytest.mark.parametrize("family", STACKS)
@torch.no_grad()
def test_generation_that_reads_every_prefix_again(family: str) -> None:
    """Without a cache the rows of every step are contexts of their own."""
    model = bridge(family)
    options = {"max_new_tokens": 4, "do_sample": False, "stop_at_eos": False, "verbose": False,
               "use_past_kv_cache": False, "return_type": "tokens"}  # fmt: skip
    lines = sentences(5, longest=6)
    bare = model.generate(lines, **options)
    with record(model.original_model, list(model.blocks)) as forwards, watched(model) as watch:
        assert torch.equal(model.generate(lines, **options), bare)
    expected = dense(forwards, generation)
    assert len(set(expected[0].contexts.tolist())) == 4 * 5
    check(watch.geometry(), "blocks", expected)


@pytest.mark.parametrize(
    ("sites", "found"),
    [
        ("attention", [f"blocks.{i}.attn" for i in range(3)]),
        ("mlp", [f"blocks.{i}.mlp" for i in range(3)]),
        ("embeddings", ["embed"]),
        ("blocks.*.hook_out", [f"blocks.{i}.hook_out" for i in range(3)]),
        ("blocks.*.ln2", [f"blocks.{i}.ln2" for i in range(3)]),
    ],
)
@torch.no_grad()
def test_components_have_the_names_of_the_bridge(sites: str, found: list[str]) -> None:
    model = bridge("gpt2")
    model(IDS)  # at its first call the bridge puts on hooks of its own
    before = all_hooks(model)
    with gh.watch(model, sites=sites, statistics=[gh.PosCtx(positions=16)]) as watch:
        model(IDS, attention_mask=RIGHT)
    geometry = watch.geometry()
    assert geometry.sites == found
    assert [int(geometry[site].pos_ctx.count) for site in found] == [int(RIGHT.sum())] * len(found)
    assert all_hooks(model) == before
