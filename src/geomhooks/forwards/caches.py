"""What a cache of keys and values says of the tokens that went before, and which cache it is."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = [
    "Marks",
    "Running",
    "SeenCache",
    "cache_of",
    "cache_tensors",
    "marks_of",
    "past_length",
    "raw_length",
]

# What models have called their cache: Hugging Face from 5.24 on and before, state space models.
NAMES = ("cache", "past_key_values", "cache_params")
LAYER_TENSORS = ("keys", "values", "_pending_beam_idx")
LAYER_STATES = ("conv_states", "recurrent_states")  # of state space models, by number
UNTOLD = -1  # the length of a cache that has a state and counts no positions

Marks = tuple[tuple[int, tuple[int, ...]], ...]


class SeenCache:
    """A cache as compiled code shows it: its length, and the tensors of its first layer."""

    def __init__(self, length: int | Tensor, tensors: list[Tensor]) -> None:
        self.length = length
        self.tensors = tensors

    def get_seq_length(self) -> int | Tensor:
        """How many positions it holds."""
        return self.length


@dataclass(frozen=True)
class Running:
    """Rows that a later forward may go on with.

    Attributes:
        contexts: (B,) the context that each row ended with.
        end: how many positions their cache held afterwards, on the host or on the device.
        marks: by which the cache is known again.
        cache: the cache itself, where it is to be had, and
        first: one of its tensors.
    """

    contexts: Tensor
    end: int | Tensor
    marks: Marks
    cache: weakref.ref[Any] | None
    first: weakref.ref[Tensor] | None

    @property
    def is_over(self) -> bool:
        """Nobody has the cache any more; another one may lie where it lay."""
        if self.cache is None and self.first is None:
            return False  # nothing is known
        return all(one is None or one() is None for one in (self.cache, self.first))


def cache_of(arguments: Any) -> Any:
    """The cache in a call's arguments, or in what it returned; or None."""
    if isinstance(arguments, Mapping):
        given = dict(arguments.items())  # asking an output for a name of old times would warn
        for name in NAMES:
            value = given.get(name)
            if hasattr(value, "get_seq_length") or isinstance(value, (tuple, list)):
                return value
        arguments = tuple(given.values())
    if isinstance(arguments, (tuple, list)):
        for value in arguments:  # in a loop, which old compilers of torch know
            if hasattr(value, "get_seq_length"):
                return value
    return None


def raw_length(cache: Any) -> Any:
    """How many positions a Hugging Face cache, or a tuple of keys and values, holds, as it says."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        try:
            return cache.get_seq_length()
        except ValueError:  # no layer has attention
            return UNTOLD
    first = cache[0] if cache else None
    if isinstance(first, (tuple, list)) and first and isinstance(first[0], Tensor):
        return first[0].shape[-2] if first[0].ndim > 1 else 0
    return 0


def past_length(cache: Any) -> int | Tensor:
    """The same as a number, or as a tensor of its own where reading it would wait for a device."""
    length = raw_length(cache)
    waits = isinstance(length, Tensor) and length.device.type != "cpu"
    return length.clone() if waits else int(length)


def cache_tensors(cache: Any) -> list[Tensor]:
    """The tensors of a cache's first layer.

    Between two forwards of a generation nobody touches them. Where rows are reordered, as beam
    search does, or repeated, or dropped, others take their place.
    """
    if isinstance(cache, SeenCache):
        return cache.tensors
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, "layers", cache)
    if not isinstance(layers, (list, tuple)) or not layers:
        return []
    first = layers[0]
    if isinstance(first, (list, tuple)):
        return [t for t in first if isinstance(t, Tensor)]
    found = [getattr(first, name, None) for name in LAYER_TENSORS]
    for name in LAYER_STATES:
        states = getattr(first, name, None)
        found += list(states.values()) if isinstance(states, dict) else []
    return [t for t in found if isinstance(t, Tensor)]


def marks_of(cache: Any) -> Marks:
    """Where a cache's tensors lie, by which it is known again; empty where there is nothing."""
    return tuple((t.data_ptr(), tuple(t.shape)) for t in cache_tensors(cache) if t.numel())


def reference_to_first(cache: Any) -> weakref.ref[Tensor] | None:
    """The same to one of its tensors; those that compiled code shows are made for it alone."""
    tensors = [] if isinstance(cache, SeenCache) else cache_tensors(cache)
    return weakref.ref(tensors[0]) if tensors else None


def reference_to(cache: Any) -> weakref.ref[Any] | None:
    """A weak reference, where a cache can have one that means it again."""
    if cache is None or isinstance(cache, (tuple, list, SeenCache)):
        return None
    return weakref.ref(cache)
