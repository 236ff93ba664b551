"""Tiny models with a tokenizer of whole words, saved as anyone saves them, and texts of words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

WORDS = [f"word{index}" for index in range(60)]
MARKS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
VOCABULARY = [*MARKS, *WORDS]


def sentences(number: int, longest: int = 12, seed: int = 0) -> list[str]:
    """Texts of different lengths, no two alike."""
    pick = random.Random(seed)
    return [" ".join(pick.choices(WORDS, k=2 + index % (longest - 1))) for index in range(number)]


def word_tokenizer(padding_side: str = "right") -> Any:
    """One token for each word; 0 is the padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side=padding_side,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
    )


def causal_lm(family: str = "gpt2") -> Any:
    """A GPT-2 or a Llama of 3 blocks with random weights, large enough to differ by position."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64},
        "llama": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
        },
    }
    config = AutoConfig.for_model(
        family,
        vocab_size=len(VOCABULARY),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
        **sizes[family],
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.suppress_tokens = [0]  # padding is never generated within a text
    return model


STACKS = {"gpt2": "transformer.h", "llama": "model.layers"}


def save_causal_lm(folder: Path, family: str = "gpt2") -> Path:
    """A folder that from_pretrained takes."""
    causal_lm(family).save_pretrained(folder)
    word_tokenizer("left").save_pretrained(folder)
    return folder
