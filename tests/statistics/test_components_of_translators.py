"""Both decompositions of a Marian's decoder, written out from its weights and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MarianConfig, MarianMTModel

import geomhooks as gh
from tests.anatomy.models import vary

B, S, T, WIDTH = 3, 11, 8, 24
BY_PART = ("input", "attention", "source", "feed_forward", "correction")
BY_ORIGIN = ("tokens", "source", "correction")


def translator(double: bool) -> tuple[Any, dict[str, Tensor]]:
    """A model with weights that a mistake would show in, and what it is called with."""
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=40, d_model=WIDTH, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=40,
        decoder_ffn_dim=36, encoder_attention_heads=4, decoder_attention_heads=3,
        activation_function="swish", scale_embedding=True, max_position_embeddings=32,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = MarianMTModel(config).eval()
    vary(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(0.5)  # so that little is left of no term
    ids = torch.randint(2, 40, (B, S + T), generator=torch.Generator().manual_seed(1))
    shorter = 2 * torch.arange(B)[:, None]
    return model.double() if double else model, {
        "input_ids": ids[:, :S],
        "attention_mask": (torch.arange(S) < S - shorter).long(),
        "decoder_input_ids": ids[:, S:],
        "decoder_attention_mask": (torch.arange(T) < T - shorter).long(),
    }


class Written:
    """The terms of a decoder's states from layer to layer, as the published code has them."""

    def __init__(self, embedded: Tensor, encoded: Tensor, source: Tensor, target: Tensor) -> None:
        self.state, self.encoded = embedded, encoded
        causal = torch.ones(T, T).tril().bool()
        self.allowed = {
            "self_attn": causal & target.bool()[:, None, None],
            "encoder_attn": source.bool()[:, None, None].expand(B, 1, T, S),
        }
        nothing = torch.zeros_like(embedded)
        self.part = dict.fromkeys(BY_PART, nothing) | {"input": embedded}
        self.origin = dict.fromkeys(BY_ORIGIN, nothing) | {"tokens": embedded}

    def go_on(self, layer: Any) -> None:
        """Through one layer: attention, attention to the source, feed-forward."""
        with torch.no_grad():
            self._attend(layer.self_attn, "self_attn", layer.self_attn_layer_norm)
            self._attend(layer.encoder_attn, "encoder_attn", layer.encoder_attn_layer_norm)
            self._feed(layer)

    def _attend(self, attention: Any, name: str, norm: Any) -> None:
        cross = name == "encoder_attn"
        read = self.encoded if cross else self.state
        query, key = attention.q_proj(self.state), attention.k_proj(read)

        def by_head(x: Tensor) -> Tensor:
            return x.view(B, x.shape[1], 3, WIDTH // 3).transpose(1, 2)

        scores = by_head(query) @ by_head(key).mT / (WIDTH // 3) ** 0.5
        weights = scores.masked_fill(~self.allowed[name], -torch.inf).softmax(-1)

        def mixed(x: Tensor) -> Tensor:
            values = weights @ by_head(x @ attention.v_proj.weight.T)
            return values.transpose(1, 2).reshape(B, T, WIDTH) @ attention.out_proj.weight.T

        bias = attention.out_proj.weight @ attention.v_proj.bias + attention.out_proj.bias
        term = "source" if cross else "attention"
        self.part[term] = self.part[term] + mixed(read)
        if cross:
            self.origin["source"] = self.origin["source"] + mixed(read)
        else:
            self.origin = {name: row + mixed(row) for name, row in self.origin.items()}
        for terms in (self.part, self.origin):
            terms["correction"] = terms["correction"] + bias
        self._norm(norm, self.state + mixed(read) + bias)

    def _feed(self, layer: Any) -> None:
        into, out = layer.fc1, layer.fc2
        p = into(self.state)
        gate = p.sigmoid()
        slope = gate * (1 + p * (1 - gate))  # of x / (1 + exp(-x))
        made = (p * gate) @ out.weight.T
        self.part["feed_forward"] = self.part["feed_forward"] + made
        self.part["correction"] = self.part["correction"] + out.bias
        self.origin = {
            name: row + (slope * (row @ into.weight.T)) @ out.weight.T
            for name, row in self.origin.items()
        }
        rest = slope * into.bias + p * gate - slope * p
        self.origin["correction"] = self.origin["correction"] + rest @ out.weight.T + out.bias
        self._norm(layer.final_layer_norm, self.state + made + out.bias)

    def _norm(self, norm: Any, state: Tensor) -> None:
        mean = state.mean(-1, keepdim=True)
        factor = norm.weight / (state.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        self.part["correction"] = self.part["correction"] - mean
        self.part = {name: row * factor for name, row in self.part.items()}
        self.origin = {
            name: (row - row.mean(-1, keepdim=True)) * factor for name, row in self.origin.items()
        }
        for terms in (self.part, self.origin):
            terms["correction"] = terms["correction"] + norm.bias
        self.state = norm(state)


def followed(model: Any, call: dict[str, Tensor]) -> Iterator[tuple[Written, Tensor]]:
    """The terms after each layer, and the model's own state there."""
    with torch.no_grad():
        out = model(**call, output_hidden_states=True)
    masks = call["attention_mask"], call["decoder_attention_mask"]
    written = Written(out.decoder_hidden_states[0], out.encoder_last_hidden_state, *masks)
    yield written, out.decoder_hidden_states[0]
    for layer, own in zip(model.model.decoder.layers, out.decoder_hidden_states[1:], strict=True):
        written.go_on(layer)
        yield written, own


@pytest.mark.parametrize(("double", "to"), [(True, 1e-10), (False, 1e-4)])
def test_both_add_up_to_the_models_own_states(double: bool, to: float) -> None:
    model, call = translator(double)
    real = call["decoder_attention_mask"].bool()
    statistics = gh.Components(), gh.Components(method="oh_schuler")
    # Two watches look at one forward.
    with (
        torch.no_grad(),
        gh.watch(model, statistics=statistics[:1]) as parts,
        gh.watch(model, statistics=statistics[1:]) as origins,
    ):
        model(**call)
    names = ("model.decoder.layers.0@in", *(f"model.decoder.layers.{n}" for n in range(3)))
    for name, (written, own) in zip(names, followed(model, call), strict=True):
        size = own[real].norm(dim=-1)
        for terms, watch in ((written.part, parts), (written.origin, origins)):
            rows = torch.stack(list(terms.values()))[:, real]
            gap = (rows.sum(0) - own[real]).norm(dim=-1) / size
            assert float(gap.max()) < to
            found = watch.geometry()[name].components
            assert float(found.gap.max) < to
            importance = (rows * own[real]).sum(-1) / size.square()
            lengths = rows.norm(dim=-1)
            for at, term in enumerate(terms):
                for what, expected in (
                    ("importance", importance[at]),
                    ("norm_ratio", lengths[at] / size),
                    ("l2", (rows[at] - own[real]).norm(dim=-1)),
                ):
                    mean = float(expected.mean())
                    streamed = float(found[what][term].mean)
                    scale = max(1.0, float(expected.abs().max()))
                    assert streamed == pytest.approx(mean, abs=10 * to * scale), (name, term, what)
        parts_sum, origins_sum = (
            sum(terms.values())[real] for terms in (written.part, written.origin)
        )
        assert float((parts_sum - origins_sum).norm(dim=-1).max()) < 2 * to * float(size.max())


def test_terms_are_large_enough_to_be_wrong() -> None:
    """No term of the test above is nothing, so that a missing one would be seen."""
    model, call = translator(True)
    *_, (written, own) = followed(model, call)
    for terms in (written.part, written.origin):
        for row in terms.values():
            assert float((row.norm(dim=-1) / own.norm(dim=-1)).mean()) > 0.01
