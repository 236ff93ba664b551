"""What makes codes of hidden states: a dictionary, a sparse autoencoder, or any function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from geomhooks.errors import SiteError
from geomhooks.functional.shapes import as_float
from geomhooks.statistics.digests import OURS, digest_of, qualified_name

__all__ = ["Encoder"]

Map = Callable[[Tensor], Tensor]


class Encoder:
    """Encodes and decodes rows of hidden states, whatever it is made of.

    Args:
        encoder: with ``encode`` and, where it can be decoded, ``decode``; or a callable, which may
            have ``decode``.
        decoder: from codes to hidden states, where the encoder has none.
        factors: F; may be left out where the encoder says it.

    Raises:
        ValueError: the encoder or the decoder cannot be called, or the encoder does not say how
            many factors it has.
    """

    def __init__(
        self, encoder: Any, decoder: Map | None = None, factors: int | None = None
    ) -> None:
        if not callable(getattr(encoder, "encode", encoder)):
            raise ValueError(
                f"Factors(encoder={type(encoder).__name__}): a callable from hidden states (N, d) "
                "to codes (N, F), or an object with encode() is needed"
            )
        if decoder is not None and not callable(decoder):
            raise ValueError(
                f"Factors(decoder={decoder!r:.80}): None or a callable from codes (N, F) to hidden "
                "states (N, d) is needed"
            )
        self.encoder = encoder
        self.decoder = decoder
        told, self.width = size_of(encoder)
        if factors is None and told is None:
            raise ValueError(
                f"Factors(encoder={qualified_name(encoder)}): it does not say how many factors it "
                "has; give the number of its codes by factors="
            )
        if factors is not None and told is not None and factors != told:
            raise ValueError(
                f"Factors(factors={factors}): the encoder {qualified_name(encoder)} has {told} "
                "factors"
            )
        self.factors: int = told if factors is None else factors  # type: ignore[assignment]
        self.digest = f"{qualified_name(encoder)} {digest_of(encoder, decoder)}"
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
        suited = self._suited(rows, isinstance(encoder, OURS))
        codes = getattr(encoder, "encode", encoder)(suited)
        if not _is_shaped(codes, len(rows), self.factors):
            raise SiteError(
                f"the encoder {qualified_name(encoder)} made {_found(codes)} of hidden states "
                f"{tuple(rows.shape)}; codes ({len(rows)}, {self.factors}) are needed"
            )
        return as_float(codes.detach().to(rows.device))

    def decode(self, codes: Tensor, width: int) -> Tensor:
        """The states (N, d) that codes (N, F) stand for, d being their width.

        Raises:
            SiteError: they have another shape.
        """
        encoder = self._at(codes.device)
        own = self.decoder is None and isinstance(encoder, OURS)
        decode = self.decoder or encoder.decode
        decoded = decode(self._suited(codes, own))
        if not _is_shaped(decoded, len(codes), width):
            raise SiteError(
                f"the decoder of {qualified_name(encoder)} made {_found(decoded)} of codes "
                f"{tuple(codes.shape)}; hidden states ({len(codes)}, {width}) are needed"
            )
        return as_float(decoded.detach().to(codes.device))

    def _at(self, device: torch.device) -> Any:
        """The encoder on a device; a module stays where it is."""
        encoder = self.encoder
        if isinstance(encoder, nn.Module) or not callable(getattr(encoder, "to", None)):
            return encoder
        if device not in self._there:
            self._there[device] = encoder.to(device)
        return self._there[device]

    def _suited(self, rows: Tensor, own: bool) -> Tensor:
        """As a module takes them: where its weights are, in their type.

        A copy for what is not of this library, which may work in place.
        """
        if own:
            return rows
        weight = None
        if isinstance(self.encoder, nn.Module):
            weight = next((p for p in self.encoder.parameters() if p.is_floating_point()), None)
        return rows.clone() if weight is None else rows.to(weight, copy=True)


def _is_shaped(found: Any, rows: int, width: int) -> bool:
    return isinstance(found, Tensor) and tuple(found.shape) == (rows, width)


def _found(made: Any) -> Any:
    return tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__


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
