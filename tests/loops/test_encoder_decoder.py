"""Models of two stacks: an encoder with a decoder that generates, and text beside images."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    CLIPConfig,
    CLIPModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from tests.loops.models import VOCABULARY
from tests.loops.recording import check, dense, generation, one_pass, record, submodules, watched

IDS = torch.arange(45).view(5, 9) % 50 + 4
MASK = (torch.arange(9) < torch.tensor([9, 5, 3, 9, 7])[:, None]).long()
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
HALF = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
TEXT = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "bart": HALF | {"max_position_embeddings": 40, "init_std": 0.3},
}


@pytest.mark.parametrize("family", TEXT)
@torch.no_grad()
def test_a_decoder_generates(family: str) -> None:
    """The encoder runs once, under its mask; the decoder goes on step by step, without one."""
    config = AutoConfig.for_model(family, vocab_size=len(VOCABULARY), **SPECIAL, **TEXT[family])
    torch.manual_seed(0)
    model: Any = AutoModelForSeq2SeqLM.from_config(config).eval()
    model.generation_config.forced_bos_token_id = None
    root, blocks = ("", "block") if family == "t5" else ("model.", "layers")
    encoder, decoder = (model.get_submodule(f"{root}{side}") for side in ("encoder", "decoder"))

    def generate() -> Tensor:
        torch.manual_seed(1)
        return model.generate(
            IDS, attention_mask=MASK, max_new_tokens=6, min_new_tokens=6, do_sample=True
        )

    bare = generate()
    with (
        record(encoder, submodules(encoder, blocks)) as read,
        record(decoder, submodules(decoder, blocks)) as written,
        watched(model) as watch,
    ):
        assert torch.equal(generate(), bare)
    assert (len(read), len(written)) == (1, 6)
    geometry = watch.geometry()
    check(geometry, f"{root}encoder.{blocks}", dense(read))
    check(
        geometry, f"{root}decoder.{blocks}", dense(written, lambda f: generation(f, padding=None))
    )


@torch.no_grad()
def test_whisper() -> None:
    """Audio features have no mask of the encoder's resolution; half as many states as frames."""
    config = WhisperConfig(
        vocab_size=len(VOCABULARY), num_mel_bins=8, max_source_positions=50,
        max_target_positions=30, suppress_tokens=None, begin_suppress_tokens=None, init_std=0.3,
        **HALF, **SPECIAL,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = WhisperForConditionalGeneration(config).eval()
    features = torch.randn(3, 8, 100)
    encoder, decoder = model.model.encoder, model.model.decoder

    def generate() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers, on its own arguments
            return model.generate(features, max_new_tokens=5, min_new_tokens=5)

    bare = generate()
    with (
        record(encoder, submodules(encoder, "layers")) as read,
        record(decoder, submodules(decoder, "layers")) as written,
        watched(model) as watch,
    ):
        assert torch.equal(generate(), bare)
    assert read[0].shape == (3, 50)
    geometry = watch.geometry()
    check(geometry, "model.encoder.layers", dense(read))
    check(geometry, "model.decoder.layers", dense(written, lambda f: generation(f, padding=None)))


def clip() -> Any:
    """A CLIP of two blocks of text and two of images."""
    small = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "initializer_range": 0.3,
    }
    text = small | {
        "hidden_size": 16, "vocab_size": len(VOCABULARY), "max_position_embeddings": 20,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = small | {"hidden_size": 24, "image_size": 16, "patch_size": 4}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).eval()


@pytest.mark.parametrize("together", [True, False])
@torch.no_grad()
def test_text_beside_images(together: bool) -> None:
    """CLIP's text has a mask and its images have none, in one call or in two."""
    model = clip()
    images = torch.randn(5, 3, 16, 16)

    def run() -> list[Tensor]:
        if together:
            out = model(input_ids=IDS, attention_mask=MASK, pixel_values=images)
            return [out.text_embeds, out.image_embeds]
        words = model.get_text_features(input_ids=IDS, attention_mask=MASK)
        return [words.pooler_output, model.get_image_features(images).pooler_output]

    bare = run()
    texts, pictures = model.text_model, model.vision_model
    with (
        record(texts, submodules(texts, "encoder.layers")) as words,
        record(pictures, submodules(pictures, "encoder.layers")) as patches,
        watched(model) as watch,
    ):
        assert all(map(torch.equal, run(), bare))
    geometry = watch.geometry()
    check(geometry, "text_model.encoder.layers", dense(words, one_pass))
    check(geometry, "vision_model.encoder.layers", dense(patches, one_pass))


@torch.no_grad()
def test_ids_are_left_out_of_text_and_images_have_none() -> None:
    """The stack inside of CLIP's text model is given embeddings alone."""
    model, excluded = clip(), [int(IDS[0, 0]), int(IDS[2, 3])]
    texts, pictures = model.text_model, model.vision_model
    with (
        record(texts, submodules(texts, "encoder.layers")) as words,
        record(pictures, submodules(pictures, "encoder.layers")) as patches,
        watched(model, exclude_token_ids=excluded) as watch,
    ):
        model(input_ids=IDS, pixel_values=torch.randn(5, 3, 16, 16))
    words[0].arguments["attention_mask"] = ~torch.isin(IDS, torch.tensor(excluded))
    geometry = watch.geometry()
    assert 0 < geometry.tokens["text_model.encoder"]["masked"] < 10
    check(geometry, "text_model.encoder.layers", dense(words))
    check(geometry, "vision_model.encoder.layers", dense(patches))


@pytest.mark.parametrize("family", TEXT)
@torch.no_grad()
def test_a_decoder_of_embeddings_does_not_take_the_encoders_tokens(family: str) -> None:
    """Of as many columns as the encoder's, and nothing said of them."""
    config = AutoConfig.for_model(family, vocab_size=len(VOCABULARY), **SPECIAL, **TEXT[family])
    torch.manual_seed(0)
    model: Any = AutoModelForSeq2SeqLM.from_config(config).eval()
    root, blocks = ("", "block") if family == "t5" else ("model.", "layers")
    decoder = model.get_submodule(f"{root}decoder")
    with (
        record(decoder, submodules(decoder, blocks)) as written,
        watched(model) as watch,
    ):
        model(input_ids=IDS, attention_mask=MASK, decoder_inputs_embeds=torch.randn(5, 9, 16))
    expected = dense(written)
    assert len(expected[0].states) == IDS.numel()
    check(watch.geometry(), f"{root}decoder.{blocks}", expected)
