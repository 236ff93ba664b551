"""What tells two objects apart in a file: a hash of the numbers, settings and code they hold."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields
from functools import cached_property, partial
from pathlib import PurePath
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geomhooks.functional.factors.sparse_autoencoder import SparseAutoencoder
from geomhooks.functional.factors.sparse_coding import SparseCoder

__all__ = ["OURS", "digest_of", "qualified_name"]

OURS = SparseCoder, SparseAutoencoder
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, PurePath)
SEQUENCE = (list, tuple, deque)
NAMED = (type, ModuleType, logging.Logger)  # known by their name alone
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def digest_of(encoder: Any, decoder: Any = None) -> str:
    """A hash of what an encoder holds, and a decoder where there is one.

    It covers tensors, arrays, plain values and what holds them: containers, the attributes of
    instances, the state of modules, arguments of partials, and of functions their code, defaults
    and closure. It does not cover the values of globals, the methods of classes, which are known by
    their name, nor random state. Where tensors are does not count.
    """
    found = _Walk()
    found.add("", encoder)
    if decoder is not None:
        found.add("decoder", decoder)
    return f"blake2b:{found.hash.hexdigest()}"


class _Walk:
    """Goes through all that an object holds, in an order that its content alone decides."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self._seen: dict[int, tuple[str, Any]] = {}  # held, so that no id is given again

    def add(self, path: str, value: Any) -> None:
        """Hash one value, by where it was found."""
        if isinstance(value, PLAIN):
            self._tell(path, repr(value))
        elif isinstance(value, Tensor):
            dense = value.detach() if value.layout == torch.strided else value.detach().to_dense()
            flat = dense.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            self._tell(path, f"{value.dtype} {tuple(value.shape)}")
            self.hash.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            self._tell(path, f"{value.dtype} {value.shape}")
            self.hash.update(value.tobytes())
        elif isinstance(value, NAMED):
            self._tell(path, qualified_name(value))
        elif not isinstance(value, torch.device):
            self._add_parts(path, value)

    def _add_parts(self, path: str, value: Any) -> None:
        """Hash what a value is made of; what was met before by where that was."""
        if not isinstance(value, tuple | frozenset | CodeType):
            if id(value) in self._seen:
                self._tell(path, f"as {self._seen[id(value)][0]}")
                return
            self._seen[id(value)] = path, value
        if not isinstance(value, OURS):
            self._tell(path, qualified_name(type(value)))
        for name, part in _parts(value):
            self.add(f"{path}.{name}" if path else name, part)

    def _tell(self, path: str, text: str) -> None:
        self.hash.update(f"{path} {text} ".encode(errors="surrogatepass"))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, by name."""
    compiled = _compiled(value)
    if compiled is not None:
        yield "compiled", compiled
    elif isinstance(value, OURS):  # the rest is derived of these, with rounding
        yield from ((f.name, getattr(value, f.name)) for f in fields(value) if f.init)
    elif isinstance(value, np.ndarray | np.generic):
        yield "list", value.tolist()
    elif isinstance(value, nn.Module):
        yield from _parts_of_module(value)
    elif isinstance(value, MethodType):
        yield from (("function", value.__func__), ("self", value.__self__))
    elif isinstance(value, BuiltinFunctionType):
        yield from (("name", value.__qualname__), ("self", value.__self__))
    elif isinstance(value, FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, CodeType):
        yield from (("code", value.co_code), ("names", value.co_names))
        yield "constants", value.co_consts
    elif isinstance(value, partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
        yield from _held(value)
    else:
        yield from _content(value)
        yield from _held(value)


def _compiled(value: Any) -> Any:
    """What torch.compile was given, where it made this."""
    name = {nn.Module: "_orig_mod", FunctionType: "_torchdynamo_orig_callable"}
    return next((getattr(value, name[k], None) for k in name if isinstance(value, k)), None)


def _parts_of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Weights and buffers, and the settings of each module in it."""
    yield from sorted(module.state_dict().items())
    yield from sorted(module.named_buffers())
    for name, inner in sorted(module.named_modules()):
        yield f"{name}.type", type(inner)
        yield from ((f"{name}.{key}", part) for key, part in _held(inner))


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    yield "name", qualified_name(function)
    yield "code", function.__code__
    yield from (("defaults", function.__defaults__), ("keywords", function.__kwdefaults__))
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        yield f"closure.{name}", _in_cell(cell)
    yield from _held(function)


def _in_cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return ...


def _content(value: Any) -> Iterator[tuple[str, Any]]:
    """The members of a container."""
    if isinstance(value, Mapping):
        for key, part in sorted(value.items(), key=lambda item: _order(item[0])):
            yield "key", key
            yield "value", part
    elif isinstance(value, SEQUENCE):
        yield from ((str(place), part) for place, part in enumerate(value))
    elif isinstance(value, Set):
        yield from (("member", part) for part in sorted(value, key=_order))


def _order(value: Any) -> str:
    """By what keys are sorted; what has no text of its own stays as it was put in."""
    if isinstance(value, tuple):
        return f"({' '.join(map(_order, value))})"
    return f"{type(value).__name__} {value!r}" if isinstance(value, PLAIN) else ""


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an instance, but for where it is and what it will compute again."""
    kind = type(value)
    names = set(getattr(value, "__dict__", ()))
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        slots = (slots,) if isinstance(slots, str) else slots
        private = f"_{base.__name__.lstrip('_')}"
        for slot in slots:
            mangled = slot.startswith("__") and not slot.endswith("__")
            names.add(private + slot if mangled else slot)
    names -= {"__dict__", "__weakref__", "device"}
    if isinstance(value, nn.Module):
        names -= OF_EVERY_MODULE
    for name in sorted(names):
        if isinstance(getattr(kind, name, None), cached_property):
            continue
        held = getattr(value, "__dict__", {})
        if name in held or hasattr(value, name):
            yield name, held[name] if name in held else getattr(value, name)


def qualified_name(value: Any) -> str:
    """Module and name of a class or a function, or the class of what has no name."""
    found = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not found:
        found = value.name if isinstance(value, logging.Logger) else None
    module = getattr(value, "__module__", None)
    return ".".join(filter(None, (module, found))) if found else type(value).__name__
