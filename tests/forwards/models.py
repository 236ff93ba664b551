"""Small models with random weights for the ways of running a model, and how to compare two runs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.models import tiny_gpt2, tiny_gpt2_lm

__all__ = ["bert", "encoder", "ids", "llama", "same_numbers", "tiny_gpt2", "tiny_gpt2_lm"]

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def llama(**changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    options = {**SIZES, "num_hidden_layers": 3, "pad_token_id": 49, "eos_token_id": 48} | changes
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, **options)).eval()


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=3, max_position_embeddings=64, **SIZES)
    return BertModel(config).eval()


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids, of which 48 and 49 have a meaning of their own."""
    return torch.randint(0, 48, (batch, length), generator=torch.Generator().manual_seed(seed))


DIRECTED = re.compile(r"pos_ctx/(rank|rank_\w+|explained_ratio|incoherence/.*|spiral/.*)$")


def same_numbers(one: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Two geometries have the same sites, counts and scalars."""
    assert list(one.sites) == list(other.sites)
    # Where pos is zero but for rounding, so are what its directions are and how many it has.
    expected, found = (
        {n: v for n, v in g.scalars().items() if not DIRECTED.search(n)} for g in (one, other)
    )
    assert expected.keys() == found.keys()
    names = list(expected)
    # Of states that are all the same the concentration is infinite, but for rounding.
    pair = [np.clip([numbers[n] for n in names], -1e12, 1e12) for numbers in (found, expected)]
    wrong = ~np.isclose(*pair, rtol=rtol, atol=atol, equal_nan=True)
    assert not wrong.any(), [(n, *x) for n, *x in zip(names, *pair, wrong, strict=True) if x[-1]]
    assert {n: t["real"] for n, t in one.tokens.items()} == {
        n: t["real"] for n, t in other.tokens.items()
    }
