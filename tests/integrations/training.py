"""What the training loops of others are given: a small language model, and texts to train it on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
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


def offline_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """What Weights & Biases has logged offline, and would upload, row by row."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.rglob("*.wandb")
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            yield {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }


def log_records(file: bytes, block: int = 1 << 15, header: int = 7) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, that begins with a header of as many bytes.

    A block is a series of pieces: checksum, length, and whether the piece is a whole record (1),
    or the first (2), a middle (3) or the last (4) part of one.
    """
    at, parts = header, []
    while at + header <= len(file):
        if block - at % block < header:
            at += block - at % block  # too little room for a piece's header
            continue
        length, kind = int.from_bytes(file[at + 4 : at + 6], "little"), file[at + 6]
        parts.append(file[at + header : at + header + length])
        at += header + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []
