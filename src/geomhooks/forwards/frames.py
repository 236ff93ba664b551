"""What lives as long as one forward: the tokens, the carries, the hidden state read last."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from geomhooks.errors import SiteError, WatchError
from geomhooks.forwards.calls import Call, Statement
from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.precision import without_autocast
from geomhooks.reductions import Reduced

if TYPE_CHECKING:
    from geomhooks.forwards.running import Running

__all__ = [
    "Frame",
    "outside_transforms",
    "own_what_is_carried",
    "unwrap_transforms",
    "version_of",
    "without_autocast",
]


@dataclass
class Frame:
    """One forward of one token stream; gone when the call that opened it returns.

    Attributes:
        latest: the hidden state that was read last, how often it had been written, and what is
            known of it.
        running: by site, the block that is in a call now, where its sublayers are looked at.
        embedded: by site, what went into the norm of embeddings before it.
    """

    call: Call
    stated: Statement
    resolved: dict[Any, tuple[Tokens, dict[str, Any]]] = field(default_factory=dict)
    stages: dict[Any, Any] = field(default_factory=dict)
    of_heads: dict[Any, Tokens] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)
    carry: dict[Any, dict[Any, Any]] = field(default_factory=dict)
    latest: Tensor | None = None
    latest_version: int = 0
    latest_reductions: Reduced | None = None
    running: dict[str, Running] = field(default_factory=dict)
    embedded: dict[str, Tensor] = field(default_factory=dict)
    counts: bool = True
    thread: int = field(default_factory=threading.get_ident)

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

    def whole_rows(self, batch: int, length: int) -> int | None:
        """How long the rows of a text are, where shorter ones are shown that nobody has described.

        None where a site before has shown the whole: what follows are the stages of a model that
        pools its tokens.
        """
        grid, said = self.call.grid, self.stated
        if grid is None or not self.call.text or grid[0] != batch or length >= grid[1]:
            return None
        is_masked = self.call.mask is not None or self.call.square_mask is not None
        if said.positions is not None and (said.mask is not None or not is_masked):
            return None
        seen = any(key[1:3] == grid for key in self.resolved)
        return None if seen else grid[1]

    def grid_of(self, stream: str) -> tuple[int, int] | None:
        """(B, T) of its tokens, as something tells or the sites before have shown."""
        if self.grid is not None:
            return self.grid
        shown = [key[1:3] for key in self.resolved if key[0] == stream]
        return shown[-1] if shown else None

    def carry_of(self, statistic: str) -> dict[Any, Any]:
        """What one statistic leaves from site to site."""
        carry = self.carry.get(statistic)
        if carry is None:
            carry = self.carry[statistic] = {}
        return carry

    def tokens_of_heads(self, tokens: Tokens, heads: int) -> Tokens:
        """The tokens of the rows of several heads; the same for all sites."""
        key = id(tokens), heads
        if key not in self.of_heads:
            self.of_heads[key] = tokens.of_heads(heads)
        return self.of_heads[key]

    def known_of(self, entered: Tensor | None, found: Tensor, site: str) -> Reduced | None:
        """The reductions of a block's input, which mostly is the tensor that was read before it.

        Raises:
            SiteError: the block has overwritten its input with its output ``found``.
        """
        if entered is None or self.latest is not entered:
            return None
        if version_of(entered) == self.latest_version:
            return self.latest_reductions
        if entered.data_ptr() != found.data_ptr():
            return None  # written to before the block saw it
        raise SiteError(
            f"site {site!r} overwrites its input in place: what came in is lost to a hook on "
            "its output; watch its parts, or make its residual addition out of place"
        )

    def read(self, tensor: Tensor, reductions: Reduced) -> None:
        """Remember what is known of a hidden state until the next one is read."""
        self.latest, self.latest_reductions = tensor, reductions
        self.latest_version = 0 if tensor.is_inference() else tensor._version


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written in place; inference tensors keep no count."""
    return 0 if tensor.is_inference() else tensor._version


def own_what_is_carried(carry: dict[Any, dict[Any, Any]], borrowed: Iterable[Tensor]) -> None:
    """Copy those tensors of a forward's carries that lie in memory which is only borrowed."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in borrowed}

    def own(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in storages else tensor

    for name, scratch in carry.items():
        carry[name] = {key: tree_map_only(Tensor, own, value) for key, value in scratch.items()}


def outside_transforms() -> AbstractContextManager[Any]:
    """Where tensors are plain ones again, from within ``torch.func.grad`` and its kin."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def unwrap_transforms(tensor: Tensor, site: str) -> Tensor:
    """The values of a tensor inside ``torch.func.grad`` and its kin.

    Raises:
        WatchError: it is inside ``vmap``, where a batch looks like one sample.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise WatchError(
                f"site {site!r} runs inside torch.vmap, where a batch looks like a single sample, "
                "so that rows and contexts cannot be told. Run the model on the whole batch, or "
                "inside watch.pause()."
            )
        tensor = functorch.get_unwrapped(tensor)
    return tensor
