"""What is found of a block's attention, and the means to describe it by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomhooks.errors import AnatomyError
from geomhooks.frames import unwrap_transforms
from geomhooks.functional.query_key import Rotary
from geomhooks.norms import NormModule, inspect_norm
from geomhooks.sharded import is_spread

__all__ = ["Attention", "Block", "Heads", "Linear", "Output", "linear"]


class Linear(NamedTuple):
    """y = x W + b."""

    weight: Tensor
    """(inputs, outputs)"""
    bias: Tensor | None
    """(outputs,)"""

    def split(self, number: int) -> list[Linear]:
        """Of a fused projection, such as query, key and value side by side, each."""
        biases = [None] * number if self.bias is None else self.bias.chunk(number)
        return [Linear(*pair) for pair in zip(self.weight.chunk(number, 1), biases, strict=True)]


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


@dataclass(frozen=True)
class Attention:
    """The attention of one block. Tensors are views of the model's parameters, detached.

    Attributes:
        name: of its module.
        block: name of the block that it is in.
        module: that module.
        site: the site at which the hidden states that it reads are watched, before the norm: the
            output of the block before, or the input of the first.
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


def linear(module: nn.Module, name: str = "") -> Linear:
    """The weight and bias of a linear layer, also of GPT-2's ``Conv1D``.

    Args:
        module: the layer.
        name: of it, for messages.

    Raises:
        AnatomyError: it is something else: quantised, sharded, or with an adapter.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    kind = type(module).__name__
    plain = isinstance(module, nn.Linear) or kind == "Conv1D"
    if not plain or not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise AnatomyError(
            f"{name or 'the module'} is a {kind} whose weight cannot be read as a matrix of "
            "floating numbers; merge adapters and undo quantisation first"
        )
    if weight.ndim != 2 or is_spread(weight):
        raise AnatomyError(
            f"the weight of {name or kind} is no whole matrix on this rank (its shape is "
            f"{tuple(weight.shape)}); gather a sharded model first"
        )
    weight = unwrap_transforms(weight, name).detach()
    if bias is not None:
        bias = unwrap_transforms(bias, name).detach()
    return Linear(weight if kind == "Conv1D" else weight.T, bias)


@dataclass(frozen=True)
class Block:
    """A block of a model of some family, of which :attr:`Family.attention` describes a part.

    Attributes:
        name: of its module.
        module: that module.
        site: where its input is watched.
        index: its number among the blocks.
        model: the whole model, without wrappers.
        config: its ``config``.
    """

    name: str
    module: nn.Module
    site: str
    index: int
    model: nn.Module
    config: Any

    def find(self, path: str) -> nn.Module:
        """The module at a path from the block.

        Raises:
            AnatomyError: there is none.
        """
        try:
            return self.module.get_submodule(path)
        except AttributeError as error:
            names = ", ".join(name for name, _ in self.module.named_children())
            raise AnatomyError(
                f"{self.name} ({type(self.module).__name__}) has no {path!r}, only {names}; its "
                "family is described otherwise. Describe the model with geomhooks.anatomy.register"
            ) from error

    def linear(self, path: str) -> Linear:
        """The linear layer at a path from the block."""
        return linear(self.find(path), f"{self.name}.{path}")

    def rotary(self, interleaved: bool = False) -> Callable[[Tensor], Rotary]:
        """The rotary embedding of the model, from the module that gives cosines and sines.

        Raises:
            AnatomyError: the model has none, or several.
        """
        found = [m for n, m in self.model.named_modules() if n.rpartition(".")[2] == "rotary_emb"]
        if len(found) != 1:
            raise AnatomyError(
                f"{type(self.model).__name__} has {len(found)} modules called rotary_emb; one is "
                "needed"
            )
        module = found[0]
        like = unwrap_transforms(next(self.module.parameters()), self.name).detach()

        def angles(positions: Tensor) -> Rotary:
            rows = positions if positions.ndim > 1 else positions[None]
            # forward() itself, not the module's call: nobody's hooks are to notice.
            with torch.no_grad():
                cos, sin = module.forward(like, rows.to(like.device))
            shape = (*positions.shape, cos.shape[-1])
            return Rotary(cos.expand(*rows.shape, -1).reshape(shape),
                          sin.expand(*rows.shape, -1).reshape(shape), interleaved)  # fmt: skip

        return angles

    def attention(
        self,
        path: str,
        *,
        query: Linear,
        key: Linear,
        value: Linear,
        output: Linear,
        heads: int,
        key_heads: int | None = None,
        scale: float | None = None,
        norm: str | None = None,
        rotary: Callable[[Tensor], Rotary] | None = None,
        causal: bool = True,
    ) -> Attention:
        """Put together what was found, heads apart.

        Args:
            path: from the block to the attention module.
            query: projection whose outputs are the heads side by side, each k wide.
            key: the same for keys.
            value: the same for values.
            output: projection whose inputs are the heads side by side.
            heads: H.
            key_heads: G, where it is not H.
            scale: what products of query and key are multiplied by, 1 / sqrt(k) by default.
            norm: path from the block to the norm before attention, or None where there is none.
            rotary: of :meth:`rotary`, or None.
            causal: a token sees those before it and itself only.

        Raises:
            AnatomyError: the numbers of heads do not divide the widths, or they do not agree.
        """
        name = f"{self.name}.{path}"
        key_heads = heads if key_heads is None else key_heads
        widths = {
            "query": (query.weight.shape[1], heads),
            "key": (key.weight.shape[1], key_heads),
            "value": (value.weight.shape[1], key_heads),
            "output": (output.weight.shape[0], heads),
        }
        each = {n / number for n, number in widths.values()}
        odd = len(each) > 1 or not each.pop().is_integer()
        if odd or heads % key_heads:
            raise AnatomyError(
                f"{name}: {heads} heads and {key_heads} of keys do not fit the widths of its "
                f"projections { ({w: n for w, (n, _) in widths.items()}) }"
            )
        module = None if norm is None else self.find(norm)
        inspected = None if module is None else inspect_norm(module)
        if module is not None and inspected is None:
            raise AnatomyError(
                f"{self.name}.{norm} is a {type(module).__name__}, which is no LayerNorm or "
                "RMSNorm over the hidden state"
            )
        weight = output.weight.reshape(heads, -1, output.weight.shape[1])
        return Attention(
            name,
            self.name,
            self.find(path),
            self.site,
            heads,
            key_heads,
            (query.weight.shape[1] // heads) ** -0.5 if scale is None else float(scale),
            causal,
            inspected,
            rotary,
            apart(query, heads),
            apart(key, key_heads),
            apart(value, key_heads),
            Output(weight, output.bias),
        )


def apart(projection: Linear, heads: int) -> Heads:
    """The heads of a projection in which they stand side by side."""
    width = projection.weight.shape[1] // heads
    weight = projection.weight.reshape(-1, heads, width).permute(1, 0, 2)
    return Heads(weight, None if projection.bias is None else projection.bias.reshape(heads, width))
