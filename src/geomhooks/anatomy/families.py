"""What a family of models is described by, and what is found of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from geomhooks.anatomy.describing import Around, Block
from geomhooks.anatomy.parts import Attention, BlockParts, Embeddings, Linear
from geomhooks.errors import AnatomyError
from geomhooks.norms import NormModule

__all__ = ["Anatomy", "Family", "Stack"]


@dataclass(frozen=True)
class Family:
    """How the models of a family are made.

    Attributes:
        name: by which Hugging Face's ``config.model_type`` calls them; of models without one, the
            name of their class, or of one of its bases.
        block: describes the parts of a :class:`Block`.
        embeddings: describes what comes into the first block of a stack, from what is
            :class:`Around` it; None where that was not described.
        final_norm: path of the norm after the last block, as :meth:`Around.find` takes it; or a
            function that finds it in what is around a stack; or None.
        head: makes of the model and the projection that it names as its head what gives the logits,
            or None where that is more than a projection. By default it is that projection.
        transform: of such a head, finds in the model what comes before the projection, a function
            of the last hidden states.
        blocks: classes of blocks by which a model is known that does not say its family itself.
        reads_values: the description has numbers made of parameters, such as a learned scale, so
            that a block whose parameters have changed is described anew.

    Example:
        Most families are described by the names of their modules:

        >>> from geomhooks.anatomy import Block, Embeddings, Family, register
        >>> def block(block: Block):
        ...     attention = block.attention(
        ...         "self_attn",
        ...         query=block.linear("self_attn.q_proj"),
        ...         key=block.linear("self_attn.k_proj"),
        ...         value=block.linear("self_attn.v_proj"),
        ...         output=block.linear("self_attn.o_proj"),
        ...         heads=block.config.num_attention_heads,
        ...         key_heads=block.config.num_key_value_heads,
        ...         norm="input_layernorm",
        ...         rotary=block.rotary(),
        ...     )
        ...     mlp = block.mlp(
        ...         "mlp",
        ...         up=block.linear("mlp.up_proj"),
        ...         gate=block.linear("mlp.gate_proj"),
        ...         down=block.linear("mlp.down_proj"),
        ...         activation=torch.nn.functional.silu,
        ...         norm="post_attention_layernorm",
        ...     )
        ...     return block.parts(attention, mlp)
        >>> register(Family("my_llama", block, lambda around: Embeddings(around.table("embed"))))
    """

    name: str
    block: Callable[[Block], BlockParts]
    embeddings: Callable[[Around], Embeddings] | None = None
    final_norm: str | Callable[[Around], NormModule | None] | None = None
    head: Callable[[nn.Module, Linear], Linear | None] | None = None
    transform: Callable[[nn.Module], Callable[[Tensor], Tensor]] | None = None
    blocks: tuple[type[nn.Module], ...] = ()
    reads_values: bool = False


@dataclass(frozen=True)
class Stack:
    """A list of blocks, and what comes before and after.

    Attributes:
        name: of the list.
        blocks: in their order.
        embeddings: what comes into the first; None where the family does not say.
        final_norm: the norm after the last, or None.
    """

    name: str
    blocks: tuple[BlockParts, ...]
    embeddings: Embeddings | None
    final_norm: NormModule | None


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of one model are.

    Attributes:
        family: what it is made as.
        stacks: of blocks: one, or those of an encoder and of a decoder, by name.
        unembedding: from the last hidden state to logits of the next token, or None where the model
            has no such head, or one that is more than a projection.
        tied: the unembedding is the embedding of the tokens.
        softcap: c where the head's logits l become c tanh(l / c), else None.
        head: from the last hidden states (..., d), after the final norm where there is one, to the
            model's logits (..., V); None where the model has no head that is known.
    """

    family: Family
    stacks: dict[str, Stack]
    unembedding: Linear | None
    tied: bool
    softcap: float | None = None
    head: Callable[[Tensor], Tensor] | None = None

    def stack(self, name: str | None = None) -> Stack:
        """A stack by its name, or the only one.

        Raises:
            AnatomyError: there is none, or there are several.
        """
        if name is None and len(self.stacks) == 1:
            (only,) = self.stacks.values()
            return only
        if name not in self.stacks:
            found = "there are" if name is None else f"no stack {name!r}; there are"
            raise AnatomyError(f"{found} {', '.join(map(repr, self.stacks))}; say which")
        return self.stacks[name]

    @property
    def blocks(self) -> tuple[BlockParts, ...]:
        """Of all stacks, in their order."""
        return tuple(block for stack in self.stacks.values() for block in stack.blocks)

    @property
    def attention(self) -> tuple[Attention, ...]:
        """The self-attention of each block."""
        return tuple(block.attention for block in self.blocks)

    def at(self, layer: int | str) -> Attention:
        """The self-attention of a block by its number, its name, or the name of the block.

        Raises:
            AnatomyError: there is none.
        """
        if isinstance(layer, int) and -len(self.attention) <= layer < len(self.attention):
            return self.attention[layer]
        for attention in self.attention:
            if layer in (attention.name, attention.block):
                return attention
        raise AnatomyError(
            f"no attention {layer!r}; there are 0 to {len(self.attention) - 1}, or by name "
            f"{', '.join(a.block for a in self.attention[:4])}, ..."
        )
