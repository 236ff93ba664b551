"""Encoder-decoders, and other models that are called otherwise, rebuilt from what is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.anatomy import (
    Anatomy,
    Attention,
    BlockParts,
    attention_logits,
    attention_mask,
    attention_output,
    attention_parts,
    block_output,
    find_anatomy,
    mlp_output,
    normed,
)
from geomhooks.errors import AnatomyError, TokensError
from tests.anatomy.models import bert
from tests.anatomy.stacked import (
    OUTPUTS,
    STACKED,
    B,
    Inputs,
    bart,
    make,
    recorded_logits,
    speech,
    translation,
)
from tests.anatomy.test_rebuilding import assert_close, recorded

BOTH = [name for name, case in STACKED.items() if case[2] in (translation, speech)]


def around(block: BlockParts, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Which tokens of a block's stack are there, and which of the other's."""
    decodes = len(block.sublayers) == 3 and inputs.target is not None
    target = inputs.target if decodes else inputs.source
    assert target is not None
    return target, inputs.source


def modules_of(anatomy: Anatomy, family: str) -> dict[str, nn.Module]:
    """Blocks, and the last projections of their sublayers."""
    attention, mlp = OUTPUTS[family]
    found = {}
    for block in anatomy.blocks:
        found[block.name] = block.module
        for sublayer in block.sublayers:
            path = mlp if sublayer.kind == "mlp" else attention
            place = sublayer.part.module.get_submodule(path)
            found[f"{block.name} {sublayer.kind}"] = place
    return found


def source_of(out: object) -> Tensor | None:
    """What the encoder of two stacks gives to the decoder."""
    found = getattr(out, "encoder_last_hidden_state", None)
    assert found is None or isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", STACKED)
def test_blocks(name: str, masked: bool) -> None:
    """Each block's output, and what each of its sublayers adds."""
    model, inputs = make(name), STACKED[name][2](masked)
    anatomy = find_anatomy(model)
    with torch.no_grad(), recorded(modules_of(anatomy, STACKED[name][0])) as found:
        source = source_of(model(**inputs.call))
    assert len(anatomy.stacks) == len(inputs.ids)
    for block in anatomy.blocks:
        entered, left = found[block.name]
        where, others = around(block, inputs)
        given = {"real": where, "source": source, "source_real": others}
        assert_close(block_output(block, entered, **given)[where], left[where])
        for index, sublayer in enumerate(block.sublayers):
            part = sublayer.part
            if f"{block.name} {sublayer.kind}" not in found:
                continue  # cross-attention of a decoder without an encoder
            before = replace(block, sublayers=block.sublayers[:index])
            read = block_output(before, entered, **given)
            if not isinstance(part, Attention):
                added = mlp_output(part, read)
            elif part.cross:
                added = attention_output(part, read, real=others, source=source)
            else:
                added = attention_output(part, read, real=where)
            own = found[f"{block.name} {sublayer.kind}"][1].reshape(added.shape)
            assert_close(added[where], own[where])


@pytest.mark.parametrize("name", BOTH)
def test_a_source_that_is_masked_matters(name: str) -> None:
    """The tests of blocks could not miss a mask of the source that was ignored."""
    model = make(name)
    decoder = list(find_anatomy(model).stacks.values())[1].blocks[0]
    states = torch.randn(B, 4, 24, generator=torch.Generator().manual_seed(0))
    source = torch.randn(B, 13, 24, generator=torch.Generator().manual_seed(1))
    masked = torch.arange(13) < torch.tensor([13, 10, 7])[:, None]
    whole = attention_output(decoder.cross_attention, states, source=source)
    some = attention_output(decoder.cross_attention, states, source=source, real=masked)
    assert_close(some[0], whole[0])
    assert (some[1:] - whole[1:]).abs().max() > 0.01 * whole.abs().max()
    cut = attention_output(decoder.cross_attention, states[2:], source=source[2:, :7])
    assert_close(some[2:], cut)


@pytest.mark.parametrize("name", STACKED)
def test_what_is_around_the_blocks(name: str) -> None:
    """Embeddings are the first blocks' input, the final norm is before the head."""
    model, inputs = make(name), STACKED[name][2](False)
    anatomy = find_anatomy(model)
    embedded: list[Tensor] = []
    source = model.get_submodule("embeddings.patch_embeddings") if "vit" in name else None
    if source is not None:
        source.register_forward_hook(lambda _m, _i, out: embedded.append(out))
    with torch.no_grad(), recorded({b.name: b.module for b in anatomy.blocks}) as found:
        out = model(**inputs.call)
    for stack, ids in zip(anatomy.stacks.values(), inputs.ids, strict=True):
        parts = stack.embeddings
        assert parts is not None
        entered = found[stack.blocks[0].name][0]
        length = entered.shape[1]
        assert (parts.tokens is None) == (ids is None)
        states = torch.zeros(()) if ids is None else parts.scale * parts.tokens[ids]  # type: ignore[index]
        if parts.positions is not None:
            states = states + parts.positions[parts.offset : parts.offset + length]
        if parts.other is not None:
            states = states + parts.other
        if ids is not None:
            assert_close(normed(states, parts.norm), entered)
        elif "vit" in name:
            assert_close((entered - states)[:, 1:], embedded[0])
        else:  # whisper: what the convolutions make of the sounds is left
            heard = inputs.call["input_features"]
            for layer in ("conv1", "conv2"):
                found_at = stack.name.replace("layers", layer)
                heard = nn.functional.gelu(model.get_submodule(found_at)(heard))
            assert_close(entered - states, heard.mT.detach())
    lasts = [normed(found[s.blocks[-1].name][1], s.final_norm) for s in anatomy.stacks.values()]
    if len(lasts) == 2:
        assert_close(lasts[0], out.encoder_last_hidden_state)
    if "logits" in out:
        assert anatomy.unembedding is not None
        assert_close(anatomy.unembedding(lasts[-1]), out.logits)
        assert anatomy.tied
    else:
        assert anatomy.unembedding is None
        assert_close(lasts[-1], out.last_hidden_state)


@pytest.mark.parametrize("name", STACKED)
def test_logits(name: str) -> None:
    """Of self-attention and of cross-attention, to the model's own, the biases included."""
    model, inputs = make(name), STACKED[name][2](True)
    anatomy = find_anatomy(model)
    with (
        torch.no_grad(),
        recorded({b.name: b.module for b in anatomy.blocks}) as found,
        recorded_logits(STACKED[name][0]) as logits,
    ):
        source = source_of(model(**inputs.call))
    remaining = iter(logits)
    for block in anatomy.blocks:
        where, others = around(block, inputs)
        entered = found[block.name][0]
        for index, sublayer in enumerate(block.sublayers):
            part = sublayer.part
            if not isinstance(part, Attention) or (part.cross and source is None):
                continue
            before = replace(block, sublayers=block.sublayers[:index])
            read = block_output(before, entered, real=where)
            made = attention_logits(part, read, source=source if part.cross else None)
            seen = attention_mask(part, read.shape[1], others if part.cross else where)
            kept = (seen & where[:, None, :, None]).expand_as(made)
            assert_close(made[kept], next(remaining)[kept])
    assert next(remaining, None) is None


def batch_of(name: str, seed: int) -> Inputs:
    """Eight rows of different lengths."""
    return STACKED[name][2](True, seed, 8)  # type: ignore[no-any-return]


def measure(model: nn.Module, batches: list[Inputs], *statistics: gh.Statistic) -> gh.Geometry:
    chosen = list(statistics) or [gh.PosCtx()]
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=chosen) as watch:
        for inputs in batches:
            model(**inputs.call)
    return watch.geometry()


@pytest.mark.parametrize("name", STACKED)
def test_the_parts_add_up_to_the_models_own_logits(name: str) -> None:
    """Mean, pos, ctx, resid and biases of each stack's self-attention."""
    model = make(name)
    geometry = measure(model, [batch_of(name, seed) for seed in range(3)])
    inputs = batch_of(name, 7)
    with torch.no_grad(), recorded_logits(STACKED[name][0]) as logits:
        out = model(**inputs.call)
    remaining = iter(logits)
    for layer, block in enumerate(find_anatomy(model).blocks):
        split = attention_parts(model, geometry, inputs.call, layer)
        where, _ = around(block, inputs)
        own = next(remaining)
        both = where[:, None, :, None] & where[:, None, None, :]
        assert torch.equal(split.allowed, both.tril() if block.attention.causal else both)
        kept = split.allowed.expand_as(own)
        assert_close(split.logits.sum((0, 1))[kept], own[kept])
        sizes = split.logits.masked_fill(~kept, 0).flatten(2).abs().amax(-1)
        assert (sizes[:4, :4] > 1e-5 * sizes.max()).all()
        if len(block.sublayers) == 3 and source_of(out) is not None:
            next(remaining)  # cross-attention
    assert next(remaining, None) is None


@pytest.mark.parametrize("name", ["mpnet", "t5", "bart", "marian", "whisper", "vit"])
def test_streamed_shares(name: str) -> None:
    """Of each stack, against whole matrices of its own tokens."""
    model, batches = make(name), [batch_of(name, seed) for seed in range(2)]
    geometry = measure(model, batches)
    streamed = measure(model, batches, gh.Attention(geometry))
    for attention in find_anatomy(model).attention:
        gathered: list[list[np.ndarray]] = [[] for _ in range(attention.heads)]
        for inputs in batches:
            split = attention_parts(model, geometry, inputs.call, attention.block)
            whole = split.logits.double().flatten(0, 1)
            for row, _, query in split.allowed.any(-1).nonzero().tolist():
                some = whole[:, row, :, query][..., split.allowed[row, 0, query]]
                for head in range(attention.heads):
                    gathered[head].append((some - some.mean(-1, keepdim=True))[:, head].numpy())
        expected = np.stack([np.cov(np.concatenate(h, axis=1), bias=True) for h in gathered])
        found = streamed[attention.block].attention
        covariance = found.covariance.reshape(expected.shape).numpy()
        np.testing.assert_allclose(covariance, expected, atol=1e-5 * np.abs(expected).max())
        assert int(found.left_out) == 0


def test_names() -> None:
    anatomy = find_anatomy(make("t5"))
    assert list(anatomy.stacks) == ["encoder.block", "decoder.block"]
    assert [a.block for a in anatomy.attention[1:3]] == ["encoder.block.1", "decoder.block.0"]
    assert [a.causal for a in anatomy.attention] == [False, False, True, True, True]
    assert [a.site for a in anatomy.attention[:3]] == [
        "encoder.block.0@in", "encoder.block.0", "decoder.block.0@in"
    ]  # fmt: skip
    assert anatomy.at("decoder.block.1").name == "decoder.block.1.layer.0.SelfAttention"
    cross = anatomy.blocks[-1].cross_attention
    assert (cross.name, cross.site) == ("decoder.block.2.layer.1.EncDecAttention", "")
    assert not cross.causal
    assert cross.distance is None
    with pytest.raises(AnatomyError, match=r"there are 'encoder.block', 'decoder.block'; say"):
        anatomy.stack()


def test_a_decoder_of_bert_with_an_encoder() -> None:
    """Cross-attention between the two sublayers; without a source it is left out, as in BERT."""
    torch.manual_seed(0)
    model = bert(is_decoder=True, add_cross_attention=True).eval()
    source, ids = torch.randn(2, 5, 24), torch.arange(12).view(2, 6) + 3
    real = torch.arange(5) < torch.tensor([5, 3])[:, None]
    (block, _) = find_anatomy(model).blocks
    for told in ({}, {"encoder_hidden_states": source, "encoder_attention_mask": real.long()}):
        with torch.no_grad(), recorded({"block": block.module}) as found:
            model(ids, **told)
        entered, left = found["block"]
        given = {"source": source, "source_real": real} if told else {}
        assert_close(block_output(block, entered, **given), left)
    with pytest.raises(AnatomyError, match=r"layer.0.crossattention makes keys.*give it as source"):
        attention_output(block.cross_attention, torch.randn(2, 6, 24))


def test_heads_for_masked_words_are_more_than_a_projection() -> None:
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    config = DistilBertConfig(n_layers=1, n_heads=1, dim=8, hidden_dim=8, vocab_size=20)
    anatomy = find_anatomy(DistilBertForMaskedLM(config))
    assert anatomy.unembedding is None
    assert not anatomy.tied


def test_errors() -> None:
    model = bart("WhisperModel").eval()
    inputs = speech(True)
    geometry = measure(model, [inputs])
    with pytest.raises(
        TokensError, match=r"attention_mask: \(3, 13\), as the.*found \(3, 26\); leave"
    ):
        attention_parts(model, geometry, inputs.call | {"attention_mask": torch.ones(B, 26)}, 0)
    del inputs.call["decoder_input_ids"]
    message = r"decoder_input_ids \(B, T\) or decoder_inputs_embeds \(B, T, d\) are needed, found"
    with pytest.raises(TokensError, match=message):
        attention_parts(model, geometry, inputs.call, "decoder.layers.1")
    model = make("t5")
    del model.get_submodule("decoder.block.0.layer.0.SelfAttention").relative_attention_bias
    with pytest.raises(AnatomyError, match=r"first block of 'decoder.block' has no layer.0.*other"):
        find_anatomy(model)
    model = make("vit")
    del model.get_submodule("embeddings").position_embeddings
    with pytest.raises(AnatomyError, match=r"around 'layers' have no position_embeddings"):
        find_anatomy(model)
