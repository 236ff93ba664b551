"""torch's own layers, in torch's own stacks and in a model of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.anatomy import (
    Attention,
    attention_logits,
    attention_mask,
    attention_output,
    attention_parts,
    block_output,
    find_anatomy,
    mlp_output,
    normed,
    register,
    torch_family,
)
from geomhooks.anatomy.finding import KNOWN
from geomhooks.errors import AnatomyError
from tests.anatomy.models import token_ids, vary
from tests.anatomy.test_rebuilding import assert_close, recorded

# torch's own remarks on encoders that pack padding away, and on those that do not.
pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]

WIDTH, S, T = 12, 11, 7
Call = dict[str, Any]


def padding(batch: int, length: int, masked: bool) -> Tensor:
    """(B, T), True where a token is there."""
    shorter = torch.arange(batch) % 4 if masked else torch.zeros(batch, dtype=torch.long)
    return torch.arange(length) < (length - shorter)[:, None]


def states(batch: int, length: int, seed: int) -> Tensor:
    """Random, with something of each row and of each position in them."""
    generator = torch.Generator().manual_seed(seed)
    of_position = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(99))
    of_row = torch.randn(batch, 1, WIDTH, generator=generator)
    return torch.randn(batch, length, WIDTH, generator=generator) + of_position + of_row


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, 3, 16, **options)
    last = nn.LayerNorm(WIDTH) if options.get("norm_first") else None
    return nn.TransformerEncoder(layer, 2, norm=last, enable_nested_tensor=False)


def decoder(**options: Any) -> nn.TransformerDecoder:
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, **options)
    return nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(WIDTH))


def transformer(**options: Any) -> nn.Transformer:
    return nn.Transformer(WIDTH, 4, 2, 3, 16, **options)


class LanguageModel(nn.Module):
    """Of one's own: token embeddings, positions, causal encoder layers in a list."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, WIDTH)
        self.positions = nn.Parameter(torch.randn(S, 1, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 3, 16, norm_first=True, **options) for _ in range(3)
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        hidden = self.embed(input_ids.mT) + self.positions[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for block in self.blocks:
            hidden = block(hidden, mask, is_causal=True)
        return hidden


@contextmanager
def known(model: nn.Module) -> Iterator[None]:
    """The model of one's own, described as it is called."""
    if not isinstance(model, LanguageModel):
        yield
        return
    register(torch_family("LanguageModel", encoder_is_causal=True))
    try:
        yield
    finally:
        del KNOWN["LanguageModel"]


def first(model: nn.Module) -> bool:
    """Batch first."""
    return all(m.batch_first for m in model.modules() if isinstance(m, nn.MultiheadAttention))


def call_of(model: nn.Module, masked: bool, seed: int = 0, batch: int = 8) -> Call:
    """What a model is called with."""
    if isinstance(model, LanguageModel):
        return {"input_ids": token_ids(batch, S, seed)}

    def laid(name: str, length: int, seed: int) -> Tensor:
        found = states(batch, length, seed)
        return found if first(model) else found.transpose(0, 1)

    source = ~padding(batch, S, masked)
    if isinstance(model, nn.TransformerEncoder):
        return {"src": laid("src", S, seed), "src_key_padding_mask": source}
    call = {
        "tgt": laid("tgt", T, seed + 100),
        "tgt_mask": torch.ones(T, T, dtype=torch.bool).triu(1),
        "tgt_key_padding_mask": ~padding(batch, T, masked).flip(0),
        "memory_key_padding_mask": source,
    }
    if isinstance(model, nn.TransformerDecoder):
        return call | {"memory": laid("memory", S, seed)}
    return call | {"src": laid("src", S, seed), "src_key_padding_mask": source}


def real_of(call: Call, decodes: bool, batch: int) -> Tensor:
    """Which tokens of a stack are there."""
    name = "tgt_key_padding_mask" if decodes else "src_key_padding_mask"
    mask = call.get(name, call.get("memory_key_padding_mask"))
    return torch.ones(batch, S, dtype=torch.bool) if mask is None else ~mask


MODELS: dict[str, Callable[[], nn.Module]] = {
    "encoder": encoder,
    "encoder, batch first": lambda: encoder(batch_first=True, activation="gelu"),
    "encoder, norm first": lambda: encoder(norm_first=True, activation=nn.SiLU()),
    "encoder, without biases": lambda: encoder(bias=False, batch_first=True, norm_first=True),
    "decoder": lambda: decoder(batch_first=True),
    "decoder, norm first": lambda: decoder(norm_first=True, bias=False),
    "transformer": transformer,
    "transformer, batch first": lambda: transformer(batch_first=True, activation="gelu"),
    "transformer, norm first": lambda: transformer(batch_first=True, norm_first=True),
    "model of one's own": LanguageModel,
    "model of one's own, batch first": lambda: BatchFirst(batch_first=True),
}


class BatchFirst(LanguageModel):
    """The same with batch before time."""

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        hidden = self.embed(input_ids) + self.positions[:length, 0]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return hidden


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    vary(model)
    return model


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Of every attention that is called, in turn, the logits before the mask."""
    found: list[Tensor] = []
    own = nn.functional.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found.append(query.detach() @ key.detach().mT / query.shape[-1] ** 0.5)
        return own(query, key, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", record)
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_blocks(name: str, masked: bool, logits: list[Tensor]) -> None:
    """Each block, what each of its sublayers adds, and the logits of its attention."""
    model = make(name)
    with known(model):
        anatomy = find_anatomy(model)
    modules = {}
    for block in anatomy.blocks:
        modules[block.name] = block.module
        modules[f"{block.name} mlp"] = block.module.get_submodule("linear2")
        modules[f"{block.name} attention"] = block.attention.module
        if len(block.sublayers) == 3:
            modules[f"{block.name} cross_attention"] = block.cross_attention.module
    call = call_of(model, masked)
    with recorded(modules) as found:  # with gradients, so that no padding is packed away
        out = model(**call)
    if not first(model):
        found = {n: (i.transpose(0, 1), o.transpose(0, 1)) for n, (i, o) in found.items()}
        out = out.transpose(0, 1)
    source, source_real = call.get("memory"), real_of(call, False, 8)
    if source is not None and not first(model):
        source = source.transpose(0, 1)
    if isinstance(model, nn.Transformer):
        last = anatomy.stacks["encoder.layers"]
        source = normed(found[last.blocks[-1].name][1], last.final_norm)
    remaining = iter(logits)
    for block in anatomy.blocks:
        where = real_of(call, len(block.sublayers) == 3, 8)
        entered, left = found[block.name]
        given = {"real": where, "source": source, "source_real": source_real}
        assert_close(block_output(block, entered, **given)[where], left[where])
        for index, sublayer in enumerate(block.sublayers):
            part = sublayer.part
            before = replace(block, sublayers=block.sublayers[:index])
            read = block_output(before, entered, **given)
            own = found[f"{block.name} {sublayer.kind}"][1]
            if not isinstance(part, Attention):
                assert_close(mlp_output(part, read)[where], own[where])
                continue
            others, context = (source_real, source) if part.cross else (where, None)
            made = attention_output(part, read, real=others, source=context)
            assert_close(made[where], own[where])
            made = attention_logits(part, read, source=context)
            seen = attention_mask(part, read.shape[1], others) & where[:, None, :, None]
            assert_close(made[seen.expand_as(made)], next(remaining)[seen.expand_as(made)])
    assert next(remaining, None) is None
    stack = list(anatomy.stacks.values())[-1]
    assert stack.embeddings is None
    assert anatomy.unembedding is None
    last_norm = normed(found[stack.blocks[-1].name][1], stack.final_norm)
    where = real_of(call, len(stack.blocks[0].sublayers) == 3, 8)
    assert_close(last_norm[where], out.detach()[where])


def measure(model: nn.Module, calls: list[Call], *statistics: gh.Statistic) -> gh.Geometry:
    chosen = list(statistics) or [gh.PosCtx()]
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=chosen) as watch:
        for call in calls:
            model(**call)
    return watch.geometry()


@pytest.mark.parametrize("name", MODELS)
def test_parts_and_shares(name: str, logits: list[Tensor]) -> None:
    """Parts add up to the model's own logits, and shares are those of all of them."""
    model = make(name)
    calls = [call_of(model, True, seed) for seed in range(2)]
    with known(model):
        geometry = measure(model, calls)
        streamed = measure(model, calls, gh.Attention(geometry))
        anatomy = find_anatomy(model)
        splits = [
            [attention_parts(model, geometry, call, a.block) for call in calls]
            for a in anatomy.attention
        ]
    logits.clear()
    for index, call in enumerate(calls):
        model(**call)
        own = iter(logits)
        for block, split in zip(anatomy.blocks, splits, strict=True):
            found, decodes = next(own), len(block.sublayers) == 3
            where = real_of(call, decodes, 8)
            both = where[:, None, :, None] & where[:, None, None, :]
            both = both.tril() if decodes or isinstance(model, LanguageModel) else both
            allowed = split[index].allowed
            short = allowed.shape[-1]  # of the longest row, where torch has packed the padding away
            assert torch.equal(allowed, both[..., :short, :short])
            kept = allowed.expand(*found.shape[:2], short, short)
            assert_close(split[index].logits.sum((0, 1))[kept], found[..., :short, :short][kept])
            if decodes:
                next(own)  # cross-attention
        logits.clear()
    for attention, split in zip(anatomy.attention, splits, strict=True):
        gathered: list[list[np.ndarray]] = [[] for _ in range(attention.heads)]
        for one in split:
            whole = one.logits.double().flatten(0, 1)
            for row, _, query in one.allowed.any(-1).nonzero().tolist():
                some = whole[:, row, :, query][..., one.allowed[row, 0, query]]
                for head in range(attention.heads):
                    gathered[head].append((some - some.mean(-1, keepdim=True))[:, head].numpy())
        expected = np.stack([np.cov(np.concatenate(h, axis=1), bias=True) for h in gathered])
        result = streamed[attention.block].attention
        covariance = result.covariance.reshape(expected.shape).numpy()
        np.testing.assert_allclose(covariance, expected, atol=1e-5 * np.abs(expected).max())
        assert int(result.left_out) == 0


def test_calls_that_say_otherwise() -> None:
    """What a layer sees comes with the call, so a call must agree with the description."""
    model = make("encoder, batch first")
    call = call_of(model, False)
    geometry = measure(model, [call])
    causal = torch.ones(S, S, dtype=torch.bool).triu(1)
    other = torch.zeros(S, S, dtype=torch.bool).index_fill(1, torch.tensor([2]), value=True)
    told = (
        (causal, r"layers.0 was called with is_causal=True, but is described with causal=False; "
         r"say.*torch_family\('TransformerEncoder', encoder_is_causal=True\)"),
        (other, r"layers.0 was called with a src_mask and is_causal=False, so that which tokens"),
    )  # fmt: skip
    for mask, message in told:
        with pytest.raises(AnatomyError, match=message):
            attention_parts(model, geometry, call | {"mask": mask}, 0)
        with pytest.raises(AnatomyError, match=message):
            measure(model, [call | {"mask": mask}], gh.Attention(geometry))
    model = make("decoder")
    call = call_of(model, False)
    geometry = measure(model, [call])
    del call["tgt_mask"]
    with pytest.raises(AnatomyError, match=r"with tgt_is_causal=False, but.*decoder_is_causal=Fal"):
        attention_parts(model, geometry, call, 0)
    register(torch_family("TransformerDecoder", decoder_is_causal=False))
    try:
        assert attention_parts(model, geometry, call, 0).allowed.all()
    finally:
        del KNOWN["TransformerDecoder"]


def test_rows_that_torch_packs() -> None:
    """Without padding, in a nested tensor; then the blocks' call has no mask."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    real = torch.arange(S) < torch.tensor([4, 8, 9, 9])[:, None]
    call = {"src": states(4, S, 0), "src_key_padding_mask": ~real}
    geometry = measure(model, [call])
    packed = attention_parts(model, geometry, call, 1)
    model.use_nested_tensor = False
    whole = attention_parts(model, geometry, call, 1)
    both = real[:, None, :, None] & real[:, None, None, :]
    assert torch.equal(whole.allowed, both)
    assert torch.equal(packed.allowed, both[..., :9, :9])
    kept = packed.allowed.expand(packed.logits.shape)
    torch.testing.assert_close(
        packed.logits[kept], whole.logits[..., :9, :9][kept], rtol=1e-3, atol=1e-4
    )


def test_models_that_are_made_otherwise() -> None:
    class Changed(nn.TransformerEncoderLayer):
        def _ff_block(self, x: Tensor) -> Tensor:
            return x

    model = nn.ModuleDict({"layers": nn.ModuleList([Changed(4, 2), Changed(4, 2)])})
    with pytest.raises(AnatomyError, match=r"layers.0 is a Changed that.*has its own _ff_block;"):
        find_anatomy(model)
    model = encoder()
    model.layers[1].self_attn = nn.MultiheadAttention(WIDTH, 3, kdim=5)
    with pytest.raises(AnatomyError, match=r"layers.1.self_attn is a MultiheadAttention whose que"):
        find_anatomy(model)
    model.layers[1] = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    with pytest.raises(AnatomyError, match=r"TransformerEncoder has no config.model_type; known"):
        find_anatomy(model)
    with pytest.raises(AnatomyError, match=r"layers.0 .* has no 'attn.c_attn'"):
        find_anatomy(encoder(), "gpt2")
    with pytest.raises(AnatomyError, match=r"is a Linear that is no layer of torch"):
        find_anatomy(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "torch")


def test_a_config_of_one_s_own_does_not_hide_torchs_layers() -> None:
    class Config:
        model_type = "mine"

    model = encoder()
    model.config = Config()  # type: ignore[assignment]
    assert find_anatomy(model).family.name == "torch"
