"""torch's own transformers: their padding masks, time before batch, encoder and decoder apart."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh

B, S, T, D = 5, 12, 7, 16
PADDED = torch.arange(S) >= torch.tensor([6, 6, 12, 9, 12])[:, None]
TARGET = torch.arange(T) >= torch.tensor([7, 4, 7, 7, 2])[:, None]
REAL, TARGET_REAL = int((~PADDED).sum()), int((~TARGET).sum())


def transformer(batch_first: bool) -> nn.Transformer:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on its own nested tensors
        return nn.Transformer(
            D, 4, 2, 2, 32, dropout=0.0, norm_first=True, batch_first=batch_first
        ).eval()


def arranged(hidden: Tensor, batch_first: bool) -> Tensor:
    return hidden if batch_first else hidden.transpose(0, 1)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_encoder_and_decoder_have_their_own_masks(batch_first: bool) -> None:
    model = transformer(batch_first)
    arguments: dict[str, Any] = {
        "src": arranged(random(B, S, D), batch_first),
        "tgt": arranged(random(B, T, D), batch_first),
        "src_key_padding_mask": PADDED,
        "memory_key_padding_mask": PADDED,
        "tgt_key_padding_mask": TARGET,
    }
    with gh.watch(model) as watch:
        model(**arguments)
    geometry = watch.geometry()
    assert set(geometry.tokens) == {"encoder", "decoder"}
    assert int(geometry["encoder.layers.1"].pos_ctx.count) == REAL
    assert int(geometry["decoder.layers.1"].pos_ctx.count) == TARGET_REAL
    assert geometry["encoder.layers.1"].pos_ctx.pos.shape == (S, D)
    assert geometry["decoder.layers.1"].pos_ctx.pos.shape == (T, D)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sites", ["blocks", "norms", "encoder.layers.*.linear1", "attention"])
@torch.no_grad()
def test_an_encoder_within_a_model_of_ones_own(batch_first: bool, sites: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = transformer(batch_first).encoder

        def forward(self, states: Tensor, pad: Tensor) -> Tensor:
            return self.encoder(states, src_key_padding_mask=pad)

    model = Model().train()  # the eager path, so that inner modules are called
    seen: list[Tensor] = []
    hook = model.encoder.layers[1].register_forward_hook(lambda m, i, out: seen.append(out))
    with gh.watch(model, sites=sites) as watch:
        model(arranged(random(B, S, D), batch_first), PADDED)
    hook.remove()
    geometry = watch.geometry()
    for site in geometry.sites:
        found = geometry[site].pos_ctx
        assert (int(found.contexts), int(found.count)) == (B, REAL), site
        assert len(found.pos) == S, site
    if sites == "blocks":
        states = arranged(seen[0], batch_first).double()
        norms = states.norm(dim=-1)[~PADDED]
        assert float(geometry["encoder.layers.1"].sphere.norm.mean) == pytest.approx(
            float(norms.mean()), rel=1e-6
        )


@torch.no_grad()
def test_a_layer_by_itself_and_unbatched_states() -> None:
    layer = nn.TransformerEncoderLayer(D, 4, 32, batch_first=True).eval()
    with gh.watch(layer, sites="") as watch:
        layer(random(B, S, D), src_key_padding_mask=PADDED)
    assert int(watch.geometry()[""].pos_ctx.count) == REAL
    encoder = transformer(True).encoder
    with gh.watch(encoder) as watch:
        encoder(random(S, D))
    found = watch.geometry()["layers.1"].pos_ctx
    assert (int(found.contexts), len(found.pos)) == (1, S)


@torch.no_grad()
def test_a_recurrent_network_with_time_first() -> None:
    model = nn.Sequential(nn.LSTM(D, 8), nn.Identity())
    with gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        model(random(T, B, D))
    found = watch.geometry()["0"].pos_ctx
    assert (int(found.contexts), len(found.pos)) == (B, T)
