"""What the sublayers of a block add to its hidden states, from what their modules gave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from geomhooks.anatomy.parts import MLP, BlockParts, Sublayer
from geomhooks.anatomy.query_key import frozen
from geomhooks.anatomy.rebuilding import normed
from geomhooks.functional.shapes import as_float
from geomhooks.norms import NormModule

__all__ = ["Addition", "Written", "add_up", "additions_of"]


class Written(NamedTuple):
    """What was seen of one sublayer while the model ran."""

    out: Tensor
    """(..., T, d) the output of :attr:`Sublayer.module`"""
    raw: Tensor | None = None
    """(..., T, d) the part's own output where ``after`` norms it: what went into that norm"""
    mixed: Tensor | None = None
    """(..., T, H k) what went into the projection from the heads, where that was looked at"""


class Addition(NamedTuple):
    """What one sublayer adds, and to what: the state after it is closing(state + added)."""

    name: str
    """of the sublayer in its block: its kind, and where there are several a number, as mlp_2"""
    sublayer: Sublayer
    state: Tensor
    """(..., T, d) that it is added to"""
    added: Tensor
    """(..., T, d) scale * after(raw)"""
    raw: Tensor
    """(..., T, d) the part's own output, its bias in it"""
    read: Tensor
    """(..., T, d) what the part reads, before the norm that comes before it"""
    mixed: Tensor | None = None
    """(..., T, H k) the heads side by side, before the projection from them; None if not seen"""

    def of_heads(self) -> tuple[Tensor, Tensor]:
        """(..., T, H, k) and (H, k, d) whose products are what each head adds, up to biases.

        A norm after the sublayer is in them as it acts on the sum of all.

        Raises:
            ValueError: the sublayer has no heads, or what they mix was not looked at.
        """
        part = self.sublayer.part
        if isinstance(part, MLP) or self.mixed is None:
            raise ValueError(f"what heads mix in the {self.name} was not looked at")
        weight = self.sublayer.scale * as_float(part.output.weight)
        mixed = as_float(self.mixed).reshape(*self.mixed.shape[:-1], *weight.shape[:2])
        if self.sublayer.after is None:
            return mixed, weight
        norm = frozen(self.sublayer.after, as_float(self.raw))
        if norm.centred:
            weight = weight - weight.mean(-1, keepdim=True)
        weight = weight if norm.gain is None else weight * norm.gain.to(weight)
        return mixed * norm.scale[..., None, None].to(mixed), weight

    @property
    def sum(self) -> Tensor:
        """The state after it, before ``closing``."""
        return self.state + self.added

    @property
    def left(self) -> Tensor:
        """The state after it."""
        return normed_alike(self.sum, self.sublayer.closing)


def additions_of(
    block: BlockParts, hidden: Tensor, written: Sequence[Written | None]
) -> tuple[Addition, ...]:
    """What each sublayer of a block adds, in order.

    Args:
        block: its parts.
        hidden: (..., T, d) its input.
        written: of each of its sublayers; None of those that did not run, such as cross-attention
            without a source, which are left out.

    Raises:
        ValueError: there are more or fewer than the block has sublayers.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import find_anatomy
        >>> model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
        >>> block = find_anatomy(model).stack().blocks[0]
        >>> one, two = torch.ones(1, 3, 8), torch.full((1, 3, 8), 2.0)
        >>> found = additions_of(block, 5 * one, [Written(one), Written(two)])
        >>> [(a.name, float(a.state[0, 0, 0]), float(a.added[0, 0, 0])) for a in found]
        [('attention', 5.0, 1.0), ('mlp', 6.0, 2.0)]
        >>> bool((add_up(block, 5 * one, found) == 8).all())
        True
    """
    if len(written) != len(block.sublayers):
        raise ValueError(
            f"{block.name} has {len(block.sublayers)} sublayers, and {len(written)} outputs were "
            "given; give None for one that did not run"
        )
    found: list[Addition] = []
    for name, sublayer, seen in zip(block.names, block.sublayers, written, strict=True):
        if seen is None:
            continue
        state = found[-1].left if found else hidden
        read = hidden if block.parallel else state
        if sublayer.residual_is_normed:
            state = normed_alike(read, sublayer.part.norm)
        added = seen.out if sublayer.scale == 1 else sublayer.scale * seen.out
        raw = seen.out if seen.raw is None else seen.raw
        found.append(Addition(name, sublayer, state, added, raw, read, seen.mixed))
    return tuple(found)


def add_up(block: BlockParts, hidden: Tensor, additions: Sequence[Addition]) -> Tensor:
    """The block's output (..., T, d).

    Args:
        block: its parts.
        hidden: (..., T, d) its input, which is the output where nothing was added.
        additions: of :func:`additions_of`.
    """
    left = additions[-1].left if additions else hidden
    return left if block.scale == 1 else block.scale * left


def normed_alike(states: Tensor, norm: NormModule | None) -> Tensor:
    """States after a norm, rounded to their own type as the model does."""
    return states if norm is None else normed(as_float(states), norm).to(states.dtype)
