"""What a block is made of: projections, attention, feed-forward layers, and their adding up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from geomhooks.errors import AnatomyError
from geomhooks.functional.attention.query_key import Rotary
from geomhooks.norms import NormModule

__all__ = [
    "MLP",
    "Attention",
    "BlockParts",
    "Embeddings",
    "Heads",
    "Linear",
    "Output",
    "Sublayer",
]

Kind = Literal["attention", "cross_attention", "mlp"]
Part = TypeVar("Part", bound="Attention | MLP")


class Linear(NamedTuple):
    """y = x W + b."""

    weight: Tensor
    """(inputs, outputs)"""
    bias: Tensor | None
    """(outputs,)"""
    module: nn.Module | None = None
    """the module that is called with x and returns y, where there is one"""

    def split(self, *sizes: int) -> list[Linear]:
        """Of a fused projection, such as query, key and value side by side, each.

        Args:
            sizes: the widths of the pieces; a single one says how many of equal width.
        """
        width = self.weight.shape[1]
        if len(sizes) == 1:
            sizes = (width // sizes[0],) * sizes[0]
        weights = torch.split(self.weight, list(sizes), 1)
        biases = [None] * len(sizes) if self.bias is None else torch.split(self.bias, list(sizes))
        return [Linear(*pair) for pair in zip(weights, biases, strict=True)]

    def deal(self, heads: int, number: int) -> list[Linear]:
        """Of a fused projection in which each head has its query, key and value, each.

        Args:
            heads: H.
            number: how many pieces of equal width a head has.
        """
        inputs = len(self.weight)
        weight = self.weight.reshape(inputs, heads, number, -1)
        bias = None if self.bias is None else self.bias.reshape(heads, number, -1)
        return [
            Linear(
                weight[:, :, piece].reshape(inputs, -1),
                None if bias is None else bias[:, piece].reshape(-1),
            )
            for piece in range(number)
        ]

    def __call__(self, states: Tensor) -> Tensor:
        """Of (..., inputs)."""
        out = states @ self.weight.to(states)
        return out if self.bias is None else out + self.bias.to(states)


class Heads(NamedTuple):
    """A projection to the heads: x W_h + b_h."""

    weight: Tensor
    """(H, d, k)"""
    bias: Tensor | None
    """(H, k)"""


class Output(NamedTuple):
    """The projection from the heads: the sum over heads of x_h W_h, and b."""

    weight: Tensor
    """(H, k, d)"""
    bias: Tensor | None
    """(d,)"""
    module: nn.Module | None = None
    """the module that is called with the x_h side by side, where there is one"""


@dataclass(frozen=True)
class Attention:
    """The attention of one block. Tensors are views of the model's parameters, detached.

    Attributes:
        name: of its module.
        block: name of the block that it is in.
        module: that module.
        site: the site at which the hidden states that it reads are watched, before the norm: the
            output of the block before, or the input of the first; "" where a sublayer of the same
            block comes before it.
        heads: H query heads, of the width k of ``query.weight``.
        key_heads: G of keys and values; query head h reads key head h // (H / G).
        scale: what products of query and key are multiplied by.
        causal: a token sees those before it and itself only.
        norm: the norm between the hidden states and attention, or None where there is none.
        rotary: gives the rotary embedding of (..., T) positions, or None where there is none.
        query: (H, d, k) and (H, k).
        key: (G, d, k) and (G, k).
        value: (G, d, k) and (G, k).
        output: (H, k, d) and (d,).
        query_norm: a norm over the k entries of each query, before the rotary embedding, or None.
        key_norm: the same for keys.
        distance: gives what is added to the logits (H, T, S) for (T,) positions of queries and
            (S,) of keys, as relative positions and ALiBi have it; None where nothing is.
        window: how many tokens a query sees, itself the last of them; None where it sees all.
        softcap: c where logits l become c tanh(l / c), else None.
        cross: keys and values are made of another stack's output.
        check: raises where a call of the block, by its arguments' names, shows queries other keys
            than ``causal`` says; None where the block itself decides which.
        adds: the module whose output it adds, where it is not that of ``output``, as in
            torch.nn.MultiheadAttention, which does not call its last projection.
    """

    name: str
    block: str
    module: nn.Module
    site: str
    heads: int
    key_heads: int
    scale: float
    causal: bool
    norm: NormModule | None
    rotary: Callable[[Tensor], Rotary] | None
    query: Heads
    key: Heads
    value: Heads
    output: Output
    query_norm: NormModule | None = None
    key_norm: NormModule | None = None
    distance: Callable[[Tensor, Tensor], Tensor] | None = None
    window: int | None = None
    softcap: float | None = None
    cross: bool = False
    check: Callable[[Mapping[str, Any]], None] | None = None
    adds: nn.Module | None = None


@dataclass(frozen=True)
class MLP:
    """The feed-forward layer of one block: activation(x W + b), times x V + c if gated, down again.

    Attributes:
        name: of its module, or of the block where it has none of its own.
        module: that module.
        norm: the norm between the hidden states and it, or None where there is none.
        up: (d, m) what the activation, or the gate, is multiplied with, or the activation acts on.
        gate: (d, m) what the activation acts on where it is gated, else None.
        activation: of (..., m).
        down: (m, d).
    """

    name: str
    module: nn.Module
    norm: NormModule | None
    up: Linear
    gate: Linear | None
    activation: Callable[[Tensor], Tensor]
    down: Linear


@dataclass(frozen=True)
class Sublayer:
    """One addition to the residual stream: h + scale * after(part(norm(h))), then closing.

    Attributes:
        part: what is added.
        after: a norm of it before it is added (sandwich norm), or None.
        closing: a norm of the sum (post-norm), or None.
        scale: what it is multiplied by.
        residual_is_normed: what it is added to is the normed state, not the state (some BLOOM).
    """

    part: Attention | MLP
    after: NormModule | None = None
    closing: NormModule | None = None
    scale: float = 1.0
    residual_is_normed: bool = False

    @property
    def kind(self) -> Kind:
        """What it is."""
        if isinstance(self.part, MLP):
            return "mlp"
        return "cross_attention" if self.part.cross else "attention"

    @property
    def module(self) -> nn.Module | None:
        """The module whose output is added, times ``scale``, to the state; None where none is.

        In training what is added may have gone through dropout after it.
        """
        if self.after is not None:
            return self.after.module
        if isinstance(self.part, MLP):
            return self.part.down.module
        return self.part.output.module if self.part.adds is None else self.part.adds


@dataclass(frozen=True)
class BlockParts:
    """A block: its sublayers, one after the other or all of the block's input.

    Attributes:
        name: of its module.
        module: that module.
        site: where its input is watched.
        sublayers: in the order in which they are added.
        parallel: all read the block's input.
        scale: what the block's output is multiplied by.
    """

    name: str
    module: nn.Module
    site: str
    sublayers: tuple[Sublayer, ...]
    parallel: bool = False
    scale: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each sublayer: its kind, and where there are several a number, as mlp_2."""
        kinds = [sublayer.kind for sublayer in self.sublayers]
        before = (kinds[:index].count(kind) for index, kind in enumerate(kinds))
        return tuple(f"{k}_{n + 1}" if n else k for k, n in zip(kinds, before, strict=True))

    @property
    def heads(self) -> dict[str, int]:
        """The number of heads of each sublayer by its name, 0 for those without."""
        parts = (sublayer.part for sublayer in self.sublayers)
        numbers = (part.heads if isinstance(part, Attention) else 0 for part in parts)
        return dict(zip(self.names, numbers, strict=True))

    @property
    def attention(self) -> Attention:
        """Its self-attention.

        Raises:
            AnatomyError: it has none.
        """
        return self._only("attention", Attention)

    @property
    def cross_attention(self) -> Attention:
        """Its attention to another stack's output.

        Raises:
            AnatomyError: it has none.
        """
        return self._only("cross_attention", Attention)

    @property
    def mlp(self) -> MLP:
        """Its feed-forward layer.

        Raises:
            AnatomyError: it has none, or none that was described.
        """
        return self._only("mlp", MLP)

    def _only(self, kind: Kind, sort: type[Part]) -> Part:
        parts = (sublayer.part for sublayer in self.sublayers if sublayer.kind == kind)
        found = [part for part in parts if isinstance(part, sort)]
        if len(found) != 1:
            kinds = ", ".join(sublayer.kind for sublayer in self.sublayers) or "nothing"
            raise AnatomyError(
                f"{self.name} has {len(found)} of {kind}; it was described as {kinds}"
            )
        return found[0]


@dataclass(frozen=True)
class Embeddings:
    """What comes into the first block: tokens times scale, and positions, perhaps normed.

    Attributes:
        tokens: (V, d), or None where a stack reads no tokens.
        positions: (P, d) of learned or fixed absolute positions, or None.
        offset: the row of position 0.
        scale: what rows of ``tokens`` are multiplied by.
        norm: of the sum, or None.
        other: (d,) what is added at every token besides, such as the type of the first sentence.
    """

    tokens: Tensor | None
    positions: Tensor | None = None
    offset: int = 0
    scale: float = 1.0
    norm: NormModule | None = None
    other: Tensor | None = None
