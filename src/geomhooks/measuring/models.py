"""A Hugging Face model with its tokenizer, ready to read text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geomhooks.errors import MissingExtraError
from geomhooks.measuring.errors import ModelError, OptionError
from geomhooks.measuring.words import spell, text_of

__all__ = ["DTYPES", "Reader", "load_model", "load_tokenizer", "pick_device"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEFAULT_LENGTH = 512


@dataclass(frozen=True)
class Reader:
    """A model that reads text.

    Attributes:
        name: as it was asked for.
        model: the backbone, without a head; of an encoder-decoder the encoder.
        cut: cuts a text into contexts of token ids, each with the special tokens of the model.
        length: the most tokens of a context.
        pad: the token id that fills up a batch; it is masked.
        missing: weights that the checkpoint lacks, so that they are random.
        spell: gives the tokens of ids.
        text: gives the text of ids, without the marks that the model adds.
        word: gives the text of one id; of a mark, its name.
    """

    name: str
    model: nn.Module
    cut: Callable[[str], list[list[int]]]
    length: int
    pad: int
    missing: tuple[str, ...]
    spell: Callable[[list[int]], list[str]]
    text: Callable[[list[int]], str]
    word: Callable[[int], str]


def load_model(
    name: str,
    *,
    gguf_file: str | None = None,
    length: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Reader:
    """Load a model by hub name or local folder.

    Args:
        name: hub name, or folder that ``save_pretrained`` wrote.
        gguf_file: read weights and tokenizer from this GGUF file of it.
        length: the most tokens of a context; by default the smaller of the model's maximum and 512.
        device: such as "cpu" or "cuda:1"; "auto" takes the accelerator if there is one.
        dtype: one of :data:`DTYPES`; "auto" keeps that of the checkpoint.

    Raises:
        ModelError: there is no such model, or it takes no text.
        OptionError: `length` does not suit it, or there is no such device.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise MissingExtraError(
            f"loading a model needs transformers ({error}): pip install 'geomhooks[transformers]'"
        ) from error

    where = pick_device(device)
    options: dict[str, Any] = {"local_files_only": True} if Path(name).is_dir() else {}
    if gguf_file:
        options["gguf_file"] = gguf_file
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(_not_loaded(name, error)) from error
    tokenizer = load_tokenizer(name, gguf_file)
    length = _length(name, length, config, tokenizer)
    try:
        model, info = AutoModel.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(_not_loaded(name, error)) from error
    if config.is_encoder_decoder:
        model = model.get_encoder()
    if "input_ids" not in signature(model.forward).parameters:
        raise ModelError(f"the model {name!r} ({type(model).__name__}) reads no text")
    model.config.use_cache = False
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return Reader(
        name=name,
        model=model.to(where).eval(),
        cut=_cutter(tokenizer, length),
        length=length,
        pad=next(token for token in pads if token is not None),
        missing=tuple(sorted(key for key in info["missing_keys"] if "pooler" not in key)),
        spell=partial(spell, tokenizer),
        text=partial(text_of, tokenizer, marks=False),
        word=lambda token: text_of(tokenizer, [token]),
    )


def load_tokenizer(name: str, gguf_file: str | None = None, *, offline: bool = False) -> Any:
    """Load the tokenizer of a model by hub name or local folder.

    Args:
        name: hub name, or folder that ``save_pretrained`` wrote.
        gguf_file: read it from this GGUF file of it.
        offline: only where it is on this machine.

    Raises:
        ModelError: there is none.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"loading a tokenizer needs transformers ({error}): "
            "pip install 'geomhooks[transformers]'"
        ) from error
    options: dict[str, Any] = {}
    if offline or Path(name).is_dir():
        options["local_files_only"] = True
    if gguf_file:
        options["gguf_file"] = gguf_file
    missing = f"the model {name!r} has no tokenizer that can be loaded, so it reads no text"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ModelError(f"{missing}: {_first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made up for want of its files
        raise ModelError(f"{missing}: its files are missing")
    return tokenizer


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" takes the accelerator if there is one.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"--device: no device {name!r}: {_first_line(error)}. Name one such as cpu, cuda:0 "
            "or mps"
        ) from error
    return device


def _length(name: str, asked: int | None, config: Any, tokenizer: Any) -> int:
    maximum = getattr(config.get_text_config(), "max_position_embeddings", None)
    special = tokenizer.num_special_tokens_to_add()
    if asked is None:
        known = (maximum, tokenizer.model_max_length, DEFAULT_LENGTH)
        return int(min(n for n in known if n is not None))
    if maximum is not None and asked > maximum:
        raise OptionError(
            f"--max-length {asked} is more than the {maximum} positions that {name!r} has"
        )
    if asked <= special:
        raise OptionError(
            f"--max-length {asked} leaves no room for text: {name!r} adds {special} special tokens"
        )
    return asked


def _cutter(tokenizer: Any, length: int) -> Callable[[str], list[list[int]]]:
    """What cuts a text into contexts; fast and slow tokenizers offer different means."""

    def cut_fast(text: str) -> list[list[int]]:
        chunks: Sequence[list[int]] = tokenizer(
            text, truncation=True, max_length=length, return_overflowing_tokens=True
        )["input_ids"]
        return [chunk for chunk in chunks if chunk]

    def cut_slow(text: str) -> list[list[int]]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        room = length - tokenizer.num_special_tokens_to_add()
        parts = (ids[first : first + room] for first in range(0, len(ids), room))
        return [tokenizer.build_inputs_with_special_tokens(part) for part in parts]

    return cut_fast if tokenizer.is_fast else cut_slow


def _not_loaded(name: str, error: Exception) -> str:
    if Path(name).is_dir():
        return f"cannot load a model from the folder {name}: {_first_line(error)}"
    if Path(name).is_absolute() or name.startswith("."):
        return f"no such model: there is no folder {name}"
    return (
        f"no such model: there is no folder {name!r}, and from the hub it cannot be had "
        f"({_first_line(error)}). Look whether the name is right and the hub can be reached, or "
        "give the folder of a model that save_pretrained wrote"
    )


def _first_line(error: BaseException) -> str:
    """The first line of a message, and those that go on with its sentence."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    for line in others:
        if first.rstrip().endswith((".", ":", "!")) or not line.strip()[:1].islower():
            break
        first = f"{first.strip()} {line.strip()}"
    return first.strip().rstrip(".:")
