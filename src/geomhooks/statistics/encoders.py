"""What makes codes of hidden states: a dictionary, a sparse autoencoder, or any function."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from inspect import ismethod
from typing import Any

import torch
from torch import Tensor, nn

from geomhooks.errors import SiteError
from geomhooks.functional.shapes import as_float

__all__ = ["Encoder"]

Map = Callable[[Tensor], Tensor]
PLAIN = (bool, int, float, str, type(None))


class Encoder:
    """Encodes and decodes rows of hidden states, whatever it is made of.

    Args:
        encoder: with ``encode`` and, where it can be decoded, ``decode``; or a callable, which may
            have ``decode``.
        decoder: from codes to hidden states, where the encoder has none.
        factors: F; may be left out where the encoder says it.

    Raises:
        ValueError: the encoder cannot be called, or does not say how many factors it has.
    """

    def __init__(
        self, encoder: Any, decoder: Map | None = None, factors: int | None = None
    ) -> None:
        if not callable(getattr(encoder, "encode", encoder)):
            raise ValueError(
                f"Factors(encoder={type(encoder).__name__}): a callable from hidden states (N, d) "
                "to codes (N, F), or an object with encode() is needed"
            )
        self.encoder = encoder
        self.decoder = decoder
        told, self.width = size_of(encoder)
        if factors is None and told is None:
            raise ValueError(
                f"Factors(encoder={_name(encoder)}): it does not say how many factors it has; give "
                "the number of its codes by factors="
            )
        if factors is not None and told is not None and factors != told:
            raise ValueError(
                f"Factors(factors={factors}): the encoder {_name(encoder)} has {told} factors"
            )
        self.factors: int = told if factors is None else factors  # type: ignore[assignment]
        self.digest = f"{_name(encoder)} {digest_of(encoder)}".strip()
        self._there: dict[torch.device, Any] = {}

    @property
    def decodes(self) -> bool:
        """Codes can be made into hidden states."""
        return self.decoder is not None or callable(getattr(self.encoder, "decode", None))

    def encode(self, rows: Tensor) -> Tensor:
        """Codes (N, F) of hidden states (N, d), in float32 at least, on the device of these.

        Raises:
            SiteError: they have another shape.
        """
        encoder = self._at(rows.device)
        codes = getattr(encoder, "encode", encoder)(self._suited(rows))
        if not isinstance(codes, Tensor) or tuple(codes.shape) != (len(rows), self.factors):
            found = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise SiteError(
                f"the encoder {_name(encoder)} made {found} of hidden states {tuple(rows.shape)}; "
                f"codes ({len(rows)}, {self.factors}) are needed"
            )
        return as_float(codes.detach().to(rows.device))

    def decode(self, codes: Tensor) -> Tensor:
        """The states (N, d) that codes (N, F) stand for."""
        decode = self.decoder or self._at(codes.device).decode
        decoded: Tensor = decode(self._suited(codes))
        return as_float(decoded.detach().to(codes.device))

    def _at(self, device: torch.device) -> Any:
        """The encoder on a device; a module stays where it is."""
        encoder = self.encoder
        if isinstance(encoder, nn.Module) or not callable(getattr(encoder, "to", None)):
            return encoder
        if device not in self._there:
            self._there[device] = encoder.to(device)
        return self._there[device]

    def _suited(self, rows: Tensor) -> Tensor:
        """As a module takes them: where its weights are, in their type."""
        if not isinstance(self.encoder, nn.Module):
            return rows
        weight = next((p for p in self.encoder.parameters() if p.is_floating_point()), None)
        return rows if weight is None else rows.to(weight)


def size_of(encoder: Any) -> tuple[int | None, int | None]:
    """How many factors an encoder has, and of what width its states are, where it says so.

    By ``dictionary`` (F, d), as the coders of this library have it, or ``W_dec`` (F, d), as those
    of SAELens.
    """
    for name in ("dictionary", "W_dec"):
        found = getattr(encoder, name, None)
        if isinstance(found, Tensor) and found.ndim == 2:
            return found.shape[0], found.shape[1]
    return None, None


def digest_of(encoder: Any) -> str:
    """What tells two encoders apart in a file: a hash of their tensors and plain attributes.

    Of a function nothing but its name is known.
    """
    if ismethod(encoder):
        encoder = encoder.__self__
    found, anything = hashlib.blake2b(digest_size=16), False
    for name, value in _parts(encoder):
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, PLAIN):
            found.update(f"{name} {value!r} ".encode())
        else:
            continue
        anything = True
    return f"blake2b:{found.hexdigest()}" if anything else ""


def _parts(encoder: Any) -> Iterator[tuple[str, Any]]:
    """What an encoder is made of, by name; nothing that was derived of it."""
    if isinstance(encoder, nn.Module):
        yield from sorted(encoder.state_dict().items())
        settings = getattr(encoder, "cfg", None)  # as SAELens has it; k, for one, is no weight
        if is_dataclass(settings):
            names = (f.name for f in fields(settings) if f.name != "device")
            yield from ((f"cfg.{name}", getattr(settings, name)) for name in names)
    elif is_dataclass(encoder):
        yield from ((f.name, getattr(encoder, f.name)) for f in fields(encoder) if f.init)
    else:
        held = getattr(encoder, "__dict__", {})
        yield from ((name, held[name]) for name in sorted(held) if not name.startswith("_"))


def _name(encoder: Any) -> str:
    found = getattr(encoder, "__qualname__", None)
    module = getattr(encoder, "__module__", None)
    return ".".join(filter(None, (module, found))) if found else type(encoder).__name__
