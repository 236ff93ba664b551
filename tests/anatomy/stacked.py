"""Small models that have several stacks, read no text, or compute attention in a way of their own.

Each comes with what it is called with, and which tokens of each stack are there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.anatomy.models import VOCABULARY, token_ids, vary

B, S, T = 3, 13, 9
SIZES = {"vocab_size": VOCABULARY, "d_model": 24}


@dataclass(frozen=True)
class Inputs:
    """What a model is called with, and which tokens are there.

    Attributes:
        call: arguments by name.
        source: (B, S) bool of an encoder, or of the only stack.
        target: (B, T) bool of the decoder, where there are two.
        ids: token ids of each stack that has some, in the stacks' order.
    """

    call: dict[str, Tensor]
    source: Tensor
    target: Tensor | None
    ids: tuple[Tensor | None, ...]


def lengths(batch: int, length: int, masked: bool) -> Tensor:
    """(B, T) bool: rows of different lengths, or all of the whole length."""
    shorter = 3 * torch.arange(batch) if masked else torch.zeros(batch, dtype=torch.long)
    return torch.arange(length) < (length - shorter.clamp(max=length - 2))[:, None]


def text(masked: bool, seed: int = 0, batch: int = B) -> Inputs:
    """For one stack."""
    real, ids = lengths(batch, S, masked), token_ids(batch, S, seed)
    return Inputs({"input_ids": ids} | told("attention_mask", real), real, None, (ids,))


def told(name: str, real: Tensor) -> dict[str, Tensor]:
    """A mask, where it says something."""
    return {} if bool(real.all()) else {name: real.long()}


def translation(masked: bool, seed: int = 0, batch: int = B) -> Inputs:
    """For an encoder and a decoder of text."""
    source, target = text(masked, seed, batch), token_ids(batch, T, seed + 100)
    real = lengths(batch, T, masked).flip(0)
    call = source.call | {"decoder_input_ids": target} | told("decoder_attention_mask", real)
    return Inputs(call, source.source, real, (*source.ids, target))


def speech(masked: bool, seed: int = 0, batch: int = B) -> Inputs:
    """For an encoder of sounds and a decoder of text."""
    generator = torch.Generator().manual_seed(seed)
    sounds = torch.randn(batch, 5, 2 * S, generator=generator)
    target, real = token_ids(batch, T, seed + 100), lengths(batch, T, masked)
    call = {"input_features": sounds, "decoder_input_ids": target}
    heard = torch.ones(batch, S, dtype=torch.bool)
    return Inputs(call | told("decoder_attention_mask", real), heard, real, (None, target))


def images(masked: bool, seed: int = 0, batch: int = B) -> Inputs:
    """For an encoder of pixels: twelve patches and the class token."""
    pixels = torch.randn(batch, 3, 8, 6, generator=torch.Generator().manual_seed(seed))
    real = lengths(batch, 13, masked)
    return Inputs({"pixel_values": pixels} | told("attention_mask", real), real, None, (None,))


def t5(kind: str = "T5ForConditionalGeneration", **changes: Any) -> nn.Module:
    import transformers

    options = {
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": 4,
        "d_kv": 5,
        "d_ff": 32,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 7,
    }
    config = getattr(transformers, f"{kind.split('5')[0]}5Config")(
        attn_implementation="eager", **(SIZES | options | changes)
    )
    return getattr(transformers, kind)(config)  # type: ignore[no-any-return]


def bart(kind: str, **changes: Any) -> nn.Module:
    """BART, Marian and Whisper have one naming."""
    import transformers

    family = next(name for name in ("Bart", "Marian", "Whisper") if kind.startswith(name))
    options = {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
               "decoder_attention_heads": 3, "encoder_ffn_dim": 32, "decoder_ffn_dim": 28,
               "pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 2,
               "bos_token_id": 0}  # fmt: skip
    if family == "Whisper":
        options |= {"num_mel_bins": 5, "max_source_positions": S, "max_target_positions": 20}
    else:
        options |= {"max_position_embeddings": 32}
    config = getattr(transformers, f"{family}Config")(
        attn_implementation="eager", **(SIZES | options | changes)
    )
    return getattr(transformers, kind)(config)  # type: ignore[no-any-return]


def encoder(kind: str, **changes: Any) -> nn.Module:
    import transformers

    options = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "hidden_size": 24,
               "num_hidden_layers": 2, "num_attention_heads": 3,
               "intermediate_size": 32}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        attn_implementation="eager", **(options | changes)
    )
    return getattr(transformers, f"{kind}Model")(config)  # type: ignore[no-any-return]


def vit(**changes: Any) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    options = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
               "intermediate_size": 32, "image_size": (8, 6), "patch_size": 2}  # fmt: skip
    return ViTModel(ViTConfig(attn_implementation="eager", **(options | changes)))


Case = tuple[str, Callable[[], nn.Module], Callable[..., Inputs]]
STACKED: dict[str, Case] = {
    "mpnet": ("mpnet", lambda: encoder("MPNet"), text),
    "mpnet, one head": ("mpnet", lambda: encoder("MPNet", num_attention_heads=1), text),
    "xlm-roberta": ("xlm_roberta", lambda: encoder("XLMRoberta"), text),
    "t5": ("t5", t5, translation),
    "t5, gated": ("t5", lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
                  translation),
    "t5, without a head": ("t5", lambda: t5("T5Model", relative_attention_num_buckets=12),
                           translation),
    "t5, encoder": ("t5", lambda: t5("T5EncoderModel"), text),
    "mt5": ("mt5", lambda: t5("MT5ForConditionalGeneration", feed_forward_proj="gated-gelu"),
            translation),
    "bart": ("bart", lambda: bart("BartForConditionalGeneration"), translation),
    "bart, scaled": ("bart", lambda: bart("BartModel", scale_embedding=True), translation),
    "bart, decoder": ("bart", lambda: bart("BartForCausalLM", encoder_layers=3), text),
    "marian": ("marian", lambda: bart("MarianMTModel"), translation),
    "marian, scaled": ("marian", lambda: bart("MarianModel", scale_embedding=True), translation),
    "whisper": ("whisper", lambda: bart("WhisperForConditionalGeneration"), speech),
    "whisper, scaled": (
        "whisper", lambda: bart("WhisperModel", scale_embedding=True, activation_function="relu"),
        speech,
    ),
    "vit": ("vit", vit, images),
    "vit, without biases": ("vit", lambda: vit(qkv_bias=False, num_attention_heads=4), images),
}  # fmt: skip

# The last projections of attention and of the feed-forward layer, from their modules, by family.
OUTPUTS = {
    "mpnet": ("o", "output.dense"),
    "xlm_roberta": ("output.dense", "output.dense"),
    "t5": ("o", "wo"),
    "mt5": ("o", "wo"),
    "bart": ("out_proj", "fc2"),
    "marian": ("out_proj", "fc2"),
    "whisper": ("out_proj", "fc2"),
    "vit": ("o_proj", "fc2"),
}


def make(name: str) -> nn.Module:
    """The model, with weights that a mistake would show in."""
    torch.manual_seed(0)
    model = STACKED[name][1]().eval()
    vary(model)
    bias = getattr(model, "final_logits_bias", None)
    if isinstance(bias, Tensor):
        bias.normal_()
    return model


@contextmanager
def recorded_logits(family: str) -> Iterator[list[Tensor]]:
    """Of every attention that is called, in turn, the logits with what distance adds.

    Those of masked keys may have the mask in them.
    """
    source = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    logits: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        if family == "mpnet":  # it has no function for its attention: look into its softmax
            softmax = nn.functional.softmax

            def look(scores: Tensor, dim: int) -> Tensor:
                logits.append(scores.clone())
                return softmax(scores, dim=dim)

            patch.setattr(nn.functional, "softmax", look)
        else:
            own = source.eager_attention_forward

            def record(
                module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
            ) -> Any:
                found = query @ key.mT * kwargs["scaling"]
                bias = kwargs.get("position_bias")
                logits.append(found if bias is None else found + bias)
                return own(module, query, key, *args, **kwargs)

            patch.setattr(source, "eager_attention_forward", record)
        yield logits
