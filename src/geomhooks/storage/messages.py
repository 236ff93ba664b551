"""A state as one flat tensor of bytes, which is how it travels between processes.

The bytes are, in order: the length of a piece of JSON (8 bytes), the JSON, and the tensors as they
would be in a file, each at a multiple of 16. The JSON has the state's description, and for each
tensor its path, type, shape and place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geomhooks.state import State
from geomhooks.statistics.base import Statistic
from geomhooks.storage.packing import thin_tensors, unpack_state

__all__ = ["pack_message", "read_header", "unpack_message", "write_header"]

PREFIX = 8
ALIGNMENT = 16


def write_header(header: Mapping[str, Any], room: int = 0) -> tuple[Tensor, int]:
    """A message that begins with a header; the second value says where ``room`` bytes begin."""
    text = json.dumps(header).encode()
    start = aligned(PREFIX + len(text))
    message = torch.zeros(start + room, dtype=torch.uint8, device="cpu")
    message[:PREFIX] = torch.tensor([len(text)], device="cpu").view(torch.uint8)
    message[PREFIX : PREFIX + len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return message, start


def read_header(message: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The header of a message, and the bytes that follow it."""
    length = int(message[:PREFIX].clone().view(torch.int64))
    text = message[PREFIX : PREFIX + length].numpy().tobytes()
    header: dict[str, Any] = json.loads(text)
    return header, message[aligned(PREFIX + length) :]


def pack_message(state: State) -> Tensor:
    """Copy a state into one tensor (n,) of bytes.

    Example:
        >>> import geomhooks as gh
        >>> with gh.watch(torch.nn.Sequential(torch.nn.Identity()), sites="0") as watch:
        ...     _ = watch._plan.root(torch.randn(2, 3, 4))
        >>> state = watch._plan.snapshot()
        >>> restored = unpack_message(pack_message(state), state.statistics)
        >>> tensors = restored.tensors()
        >>> all(torch.equal(tensors[path], tensor) for path, tensor in state.tensors().items())
        True
    """
    tensors = thin_tensors(state)
    places: list[tuple[str, str, list[int], int]] = []
    size = 0
    for path, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        places.append((path, dtype, list(tensor.shape), size))
        size = aligned(size + tensor.nbytes)
    message, start = write_header({"description": state.describe(), "tensors": places}, size)
    for (_, _, _, at), tensor in zip(places, tensors.values(), strict=True):
        bytes_of = tensor.reshape(-1).view(torch.uint8)
        message[start + at : start + at + len(bytes_of)] = bytes_of
    return message


def unpack_message(message: Tensor, statistics: Mapping[str, Statistic]) -> State:
    """The state in a message; it keeps the message's memory, and takes more for tables alone."""
    header, body = read_header(message)
    tensors = {}
    for path, dtype, shape, at in header["tensors"]:
        kind: torch.dtype = getattr(torch, dtype)
        number = torch.Size(shape).numel() * kind.itemsize
        tensors[path] = body[at : at + number].view(kind).view(shape)
    packed = {"description": header["description"], "tensors": tensors}
    return unpack_state(packed, statistics.values())


def aligned(size: int) -> int:
    """The next multiple of what every type can begin at."""
    return -(-size // ALIGNMENT) * ALIGNMENT
