"""What lives as long as one forward: the tokens, the carries, the hidden state read last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from geomhooks.calls import Call, Statement
from geomhooks.errors import SiteError
from geomhooks.reductions import Reduced
from geomhooks.tokens import Tokens

__all__ = ["Frame", "Latest"]


@dataclass(frozen=True)
class Latest:
    """The hidden state that was read last in a forward, and what is known of it."""

    tensor: Tensor
    version: int
    reductions: Reduced


@dataclass
class Frame:
    """One forward of one token stream; gone when the call that opened it returns."""

    call: Call
    stated: Statement
    resolved: dict[Any, tuple[Tokens, dict[str, Any]]] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)
    carry: dict[Any, dict[Any, Any]] = field(default_factory=dict)
    latest: Latest | None = None
    counts: bool = True

    @property
    def grid(self) -> tuple[int, int] | None:
        """(B, T) of a forward's tokens, where something tells."""
        if self.call.grid is not None:
            return self.call.grid
        for said in (self.stated.mask, self.stated.positions, self.stated.contexts):
            if said is not None and said.ndim == 2:
                return said.shape[0], said.shape[1]
            if said is not None and said is not self.stated.contexts:
                return 1, len(said)
        return None

    def known_of(self, entered: Tensor | None, found: Tensor, site: str) -> Reduced | None:
        """The reductions of a block's input, which mostly is the tensor that was read before it.

        Raises:
            SiteError: the block has overwritten its input with its output ``found``.
        """
        if entered is None or self.latest is None or self.latest.tensor is not entered:
            return None
        if version_of(entered) == self.latest.version:
            return self.latest.reductions
        if entered.data_ptr() != found.data_ptr():
            return None  # written to before the block saw it
        raise SiteError(
            f"site {site!r} overwrites its input in place: what came in is lost to a hook on "
            "its output; watch its parts, or make its residual addition out of place"
        )

    def read(self, tensor: Tensor, reductions: Reduced) -> None:
        """Remember what is known of a hidden state until the next one is read."""
        self.latest = Latest(tensor, version_of(tensor), reductions)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written in place; inference tensors keep no count."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return tensor._version
