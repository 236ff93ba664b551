"""Vision transformers of Hugging Face: "blocks" are what they call hidden states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from tests.loops.recording import check, dense, record, submodules, watched

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
MODELS = {
    "vit": (ViTModel, ViTConfig, "layers"),
    "vit with a head": (ViTForImageClassification, ViTConfig, "vit.layers"),
    "deit": (DeiTModel, DeiTConfig, "layers"),
    "dinov2": (Dinov2Model, Dinov2Config, "encoder.layer"),
    "beit": (BeitModel, BeitConfig, "layers"),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_blocks_are_the_hidden_states(name: str) -> None:
    kind, config, stack = MODELS[name]
    torch.manual_seed(0)
    model: Any = kind(config(**SIZES)).eval()
    for parameter in model.parameters():  # some begin as zeros, and a state of zeros has no angle
        torch.nn.init.normal_(parameter, std=0.3)
    batches = [torch.randn(5, 3, 16, 16), torch.randn(2, 3, 16, 16)]
    # A copy, because transformers leaves hooks of its own after output_hidden_states=True.
    told = [copy.deepcopy(model)(x, output_hidden_states=True).hidden_states for x in batches]
    bare = [model(x)[0] for x in batches]
    with record(model, submodules(model, stack)) as forwards, watched(model) as watch:
        out = [model(pixel_values=batches[0])[0], model(batches[1])[0]]
    assert all(map(torch.equal, out, bare))
    for forward, states in zip(forwards, told, strict=True):
        assert len(forward.states) == len(states) == SIZES["num_hidden_layers"] + 1
        for ours, theirs in zip(forward.states, states, strict=True):
            assert torch.equal(torch.from_numpy(ours).float(), theirs)
    check(watch.geometry(), stack, dense(forwards))
