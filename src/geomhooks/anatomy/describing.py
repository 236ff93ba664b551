"""The means to describe a block by: what a family's description is written with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomhooks.anatomy.parts import (
    MLP,
    Attention,
    BlockParts,
    Heads,
    Linear,
    Output,
    Sublayer,
)
from geomhooks.errors import AnatomyError
from geomhooks.forwards.frames import unwrap_transforms
from geomhooks.functional.attention.query_key import Rotary
from geomhooks.norms import NormModule, inspect_norm
from geomhooks.sharded import is_put_away, is_spread

__all__ = ["Around", "Block", "linear"]


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
    spread = weight.ndim != 2 or is_spread(weight)
    if not spread:
        weight = unwrap_transforms(weight, name).detach()
    if spread or is_put_away(weight):
        raise AnatomyError(
            f"the weight of {name or kind} is no whole matrix on this rank (its shape is "
            f"{tuple(weight.shape)}); gather a sharded model first"
        )
    if bias is not None:
        bias = unwrap_transforms(bias, name).detach()
    return Linear(weight if kind == "Conv1D" else weight.T, bias, module)


@dataclass(frozen=True)
class Block:
    """A block of a model of some family, for ``Family.block`` to describe.

    Attributes:
        name: of its module.
        module: that module.
        site: where its input is watched.
        index: its number among the blocks of its stack.
        stack: name of the list of blocks that it is in.
        first: the first block of that list.
        model: the whole model, without wrappers.
        config: its ``config``, or None.
    """

    name: str
    module: nn.Module
    site: str
    index: int
    stack: str
    first: nn.Module
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

    def function(self, path: str) -> Callable[[Tensor], Tensor]:
        """What can be called at a path of attributes from the block, such as an activation.

        Raises:
            AnatomyError: there is nothing of the kind.
        """
        holder, _, name = path.rpartition(".")
        found = getattr(self.find(holder) if holder else self.module, name, None)
        if not callable(found):
            raise AnatomyError(
                f"{self.name} ({type(self.module).__name__}) has no function {path!r}; its family "
                "is described otherwise. Describe the model with geomhooks.anatomy.register"
            )
        # forward() itself of a module, not its call: nobody's hooks are to notice.
        return found.forward if isinstance(found, nn.Module) else found

    def norm(self, path: str) -> NormModule:
        """The norm at a path from the block.

        Raises:
            AnatomyError: there is none, or it is no LayerNorm or RMSNorm over the hidden state.
        """
        return read_norm(self.find(path), f"{self.name}.{path}")

    @property
    def causal(self) -> bool:
        """Tokens see the past alone, as in a decoder whose ``config.is_causal`` is not False."""
        return bool(getattr(self.config, "is_causal", True))

    def rotary(
        self, interleaved: bool = False, layer_type: str | None = None, name: str = "rotary_emb"
    ) -> Callable[[Tensor], Rotary]:
        """The rotary embedding of the model, from the module that gives cosines and sines.

        Args:
            interleaved: it turns pairs of neighbours, and not of entries half its width apart.
            layer_type: what a module that has several bases chooses one by.
            name: of the module, wherever in the model it is.

        Raises:
            AnatomyError: the model has none, or several.
        """
        found = [m for n, m in self.model.named_modules() if n.rpartition(".")[2] == name]
        if len(found) != 1:
            raise AnatomyError(
                f"{type(self.model).__name__} has {len(found)} modules called {name}; one is needed"
            )
        module = found[0]
        told = {} if layer_type is None else {"layer_type": layer_type}
        like = unwrap_transforms(next(self.module.parameters()), self.name).detach()

        def angles(positions: Tensor) -> Rotary:
            rows = positions if positions.ndim > 1 else positions[None]
            # forward() itself, not the module's call: nobody's hooks are to notice.
            with torch.no_grad():
                cos, sin = module.forward(like, rows.to(like.device), **told)
            shape = (*positions.shape, cos.shape[-1])
            return Rotary(cos.expand(*rows.shape, -1).reshape(shape),
                          sin.expand(*rows.shape, -1).reshape(shape), interleaved)  # fmt: skip

        return angles

    def _is_causal(self, path: str) -> bool:
        said = (getattr(module, "is_causal", None) for module in self.find(path).modules())
        return self.causal and all(word for word in said if isinstance(word, bool))

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
        causal: bool | None = None,
        **further: Any,
    ) -> Attention:
        """Put together what was found, heads apart.

        Args:
            path: from the block to the attention module.
            query: projection whose outputs are the heads side by side, each k wide.
            key: the same for keys.
            value: the same for values.
            output: projection whose inputs are the heads side by side; of :meth:`linear`, so that
                what it adds to the hidden states is seen while the model runs.
            heads: H.
            key_heads: G, where it is not H.
            scale: what products of query and key are multiplied by, 1 / sqrt(k) by default.
            norm: path from the block to the norm before attention, or None where there is none.
            rotary: of :meth:`rotary`, or None.
            causal: a token sees those before it and itself only. By default what :attr:`causal`
                and the ``is_causal`` of the module say, and where neither says anything, yes; in
                cross-attention it sees all.
            further: what else :class:`Attention` has, by name.

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
        weight = output.weight.reshape(heads, -1, output.weight.shape[1])
        return Attention(
            name,
            self.name,
            self.find(path),
            further.pop("site", self.site),
            heads,
            key_heads,
            (query.weight.shape[1] // heads) ** -0.5 if scale is None else float(scale),
            (self._is_causal(path) if causal is None else causal)
            and not further.get("cross", False),
            None if norm is None else self.norm(norm),
            rotary,
            apart(query, heads),
            apart(key, key_heads),
            apart(value, key_heads),
            Output(weight, output.bias, output.module),
            **further,
        )

    def mlp(
        self,
        path: str,
        *,
        up: Linear,
        down: Linear,
        activation: Callable[[Tensor], Tensor],
        gate: Linear | None = None,
        norm: str | None = None,
    ) -> MLP:
        """Put together what was found of the feed-forward layer.

        Args:
            path: from the block to its module; "" where it has none of its own.
            up: the projection to its inner width.
            down: the projection back; of :meth:`linear`, as above.
            activation: of the inner entries, or of those of the gate.
            gate: the projection that the activation acts on where there is one.
            norm: path from the block to the norm before it, or None where there is none.
        """
        module = self.find(path) if path else self.module
        name = f"{self.name}.{path}" if path else self.name
        before = None if norm is None else self.norm(norm)
        return MLP(name, module, before, up, gate, activation, down)

    def parts(
        self, *sublayers: Attention | MLP | Sublayer, parallel: bool = False, scale: float = 1.0
    ) -> BlockParts:
        """The block's parts, in the order in which they are added.

        Args:
            sublayers: parts alone, where they are added as they are, or with what is done to them.
            parallel: all read the block's input, instead of each the sum so far.
            scale: what the block's output is multiplied by.
        """
        told = (s if isinstance(s, Sublayer) else Sublayer(s) for s in sublayers)
        return BlockParts(self.name, self.module, self.site, tuple(told), parallel, scale)


@dataclass(frozen=True)
class Around:
    """A stack of blocks in its model, for ``Family.embeddings`` to describe what is around it.

    Attributes:
        stack: name of the list of blocks.
        model: the whole model, without wrappers.
        config: its ``config``, or None.
    """

    stack: str
    model: nn.Module
    config: Any

    def find(self, path: str) -> nn.Module:
        """The module at a path from the innermost module around the blocks that has one there.

        Raises:
            AnatomyError: there is none.
        """
        found = self.has(path)
        if found is None:
            raise AnatomyError(
                f"{type(self.model).__name__} has no {path!r} around its blocks {self.stack!r}; "
                "its family is described otherwise. Describe the model with "
                "geomhooks.anatomy.register"
            )
        return found

    def has(self, path: str) -> nn.Module | None:
        """The same, or None."""
        outer = self.stack
        while True:
            outer = outer.rpartition(".")[0]
            try:
                return self.model.get_submodule(f"{outer}.{path}" if outer else path)
            except AttributeError:
                if not outer:
                    return None

    def table(self, path: str) -> Tensor:
        """The rows of an embedding.

        Raises:
            AnatomyError: there is none.
        """
        weight = getattr(self.find(path), "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise AnatomyError(f"{path!r} around {self.stack!r} is no embedding with a weight")
        return weight.detach()

    def norm(self, path: str) -> NormModule:
        """The norm at a path.

        Raises:
            AnatomyError: there is none, or it is no LayerNorm or RMSNorm over the hidden state.
        """
        return read_norm(self.find(path), path)


def read_norm(module: nn.Module, name: str) -> NormModule:
    """What a norm module does.

    Raises:
        AnatomyError: it is no LayerNorm or RMSNorm over the hidden state.
    """
    found = inspect_norm(module)
    if found is None:
        raise AnatomyError(
            f"{name} is a {type(module).__name__}, which is no LayerNorm or RMSNorm over the "
            "hidden state"
        )
    return found


def apart(projection: Linear, heads: int) -> Heads:
    """The heads of a projection in which they stand side by side."""
    width = projection.weight.shape[1] // heads
    weight = projection.weight.reshape(-1, heads, width).permute(1, 0, 2)
    return Heads(weight, None if projection.bias is None else projection.bias.reshape(heads, width))
