"""What the training loops of others are given: a small language model, and texts to train it on."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

LENGTH = 12
BLOCKS = ["transformer.h.0@in", "transformer.h.0", "transformer.h.1"]


def needs(package: str, extra: str = "test") -> None:
    """Skip where a package is missing, or fail where CI is set."""
    if find_spec(package) is None:
        say = f"needs {package}: pip install 'geomhooks[{extra}]'"
        if os.environ.get("CI"):
            pytest.fail(say)
        pytest.skip(say)


def language_model(seed: int = 0, **changes: Any) -> nn.Module:
    """A GPT-2 of 2 blocks and width 16, with dropout, in training mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    options = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": LENGTH, "vocab_size": 40,
               "bos_token_id": 0, "eos_token_id": 0} | changes  # fmt: skip
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**options)).train()


def examples(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Token ids of sentences all of one length."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, 40, (number, LENGTH), generator=random)
    return [{"input_ids": row, "labels": row} for row in rows]
