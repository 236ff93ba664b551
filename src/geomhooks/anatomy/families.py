"""A model's family, its stacks of blocks, and how to make another family known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from geomhooks.anatomy.describing import Around, Block, linear
from geomhooks.anatomy.parts import Attention, BlockParts, Embeddings, Linear
from geomhooks.errors import AnatomyError
from geomhooks.frames import unwrap_transforms
from geomhooks.norms import NormModule
from geomhooks.sites import find_stacks, unwrap

__all__ = [
    "Anatomy",
    "Family",
    "LiveAttention",
    "Stack",
    "families",
    "find_anatomy",
    "find_blocks",
    "register",
]


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
        blocks: classes of blocks by which a model is known that does not say its family itself.

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
    blocks: tuple[type[nn.Module], ...] = ()


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
    """

    family: Family
    stacks: dict[str, Stack]
    unembedding: Linear | None
    tied: bool
    softcap: float | None = None

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
            f"{', '.join(a.name for a in self.attention[:4])}, ..."
        )


_registered: dict[str, Family] = {}


@cache
def _built_in() -> dict[str, Family]:
    from geomhooks.anatomy.known import FAMILIES

    return {family.name: family for family in FAMILIES}


def families() -> list[str]:
    """Names of the families that are known."""
    return sorted(_built_in() | _registered)


def register(family: Family) -> None:
    """Make a family known, or another description of one; :class:`Family` has an example."""
    _registered[family.name] = family


def find_anatomy(model: nn.Module, family: Family | str | None = None) -> Anatomy:
    """Find out where the parts of a model are.

    Args:
        model: of Hugging Face or of torch, wrapped or not, with a head or without.
        family: as what to take it, by default what its ``config.model_type`` says, or else the
            class of its blocks.

    Raises:
        AnatomyError: the family is not known, or the model is made otherwise.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
        >>> anatomy = find_anatomy(model)
        >>> block = anatomy.stack().blocks[1]
        >>> [sublayer.kind for sublayer in block.sublayers], block.mlp.up.weight.shape
        (['attention', 'mlp'], torch.Size([8, 32]))
        >>> anatomy.tied, anatomy.stack().embeddings.positions.shape
        (True, torch.Size([1024, 8]))
    """
    family, blocks = find_blocks(model, family)
    model = unwrap(model)
    stacks = {}
    for name in dict.fromkeys(block.stack for block in blocks):
        around = Around(name, model, getattr(model, "config", None))
        stacks[name] = Stack(
            name,
            tuple(family.block(block) for block in blocks if block.stack == name),
            None if family.embeddings is None else family.embeddings(around),
            find_final_norm(family, around),
        )
    unembedding, tied = find_unembedding(model, family)
    cap = getattr(getattr(model, "config", None), "final_logit_softcapping", None)
    return Anatomy(family, stacks, unembedding, tied, None if unembedding is None else cap)


def find_final_norm(family: Family, around: Around) -> NormModule | None:
    """The norm after the last block of a stack, or None where there is none."""
    told = family.final_norm
    if callable(told):
        return told(around)
    return None if told is None or around.has(told) is None else around.norm(told)


def find_unembedding(model: nn.Module, family: Family) -> tuple[Linear | None, bool]:
    """The projection to logits, and whether it is that of the tokens."""

    def named(what: str) -> nn.Module | None:
        try:
            found: nn.Module | None = getattr(model, what)()
        except (AttributeError, NotImplementedError):
            return None
        return found

    head, tokens = named("get_output_embeddings"), named("get_input_embeddings")
    if head is None:
        return None, False
    found, weight = linear(head, "the head"), getattr(tokens, "weight", None)
    tied = isinstance(weight, Tensor) and weight.data_ptr() == found.weight.data_ptr()
    whole = found if family.head is None else family.head(model, found)
    return whole, tied and whole is not None


def find_blocks(
    model: nn.Module, family: Family | str | None = None
) -> tuple[Family, tuple[Block, ...]]:
    """The family of a model, and the blocks of all its stacks; see :func:`find_anatomy`."""
    model = unwrap(model)
    config = getattr(model, "config", None)
    if not isinstance(family, Family):
        family = known_family(model, config, family)
    stacks = find_stacks(model)
    if not stacks:
        raise AnatomyError(f"{type(model).__name__} has no list of blocks")
    found = []
    for stack, blocks in stacks.items():
        sites = [f"{blocks[0][0]}@in", *(name for name, _ in blocks)]
        found += [
            Block(name, module, sites[index], index, stack, blocks[0][1], model, config)
            for index, (name, module) in enumerate(blocks)
        ]
    return family, tuple(found)


def known_family(model: nn.Module, config: Any, name: str | None) -> Family:
    """The family that was registered by the name given, or by what the model says of itself.

    Raises:
        AnatomyError: there is none.
    """
    kind, said, given = type(model).__name__, getattr(config, "model_type", None), name is not None
    if name is None and isinstance(said, str):
        name = said
    known = _built_in() | _registered
    bases = [base.__name__ for base in type(model).__mro__]
    for one in bases if name is None else [name]:
        if one in known:
            return known[one]
    if not given:
        blocks = [block for stack in find_stacks(model).values() for _, block in stack]
        for family in known.values():
            if blocks and all(isinstance(block, family.blocks) for block in blocks):
                return family
    what = "has no config.model_type" if name is None else f"is of the family {name!r}"
    raise AnatomyError(
        f"{kind} {what}; known are {', '.join(families())}. Describe another in a few lines, as "
        "help(geomhooks.anatomy.Family) shows, and give it to geomhooks.anatomy.register, or as "
        "family="
    )


class LiveAttention:
    """The attention of a block as it is now, also after its parameters were moved or replaced.

    Args:
        family: describes it.
        block: whose attention it is.
    """

    def __init__(self, family: Family, block: Block) -> None:
        self._family, self._block = family, block
        self._seen = self._places()
        self.latest = family.block(block).attention

    def now(self) -> Attention:
        """What it is; described anew where the parameters are elsewhere than when it last was."""
        places = self._places()
        if places != self._seen:
            self.latest, self._seen = self._family.block(self._block).attention, places
        return self.latest

    def _places(self) -> list[tuple[int, torch.device]]:
        own = self._block.module.parameters()
        found = [unwrap_transforms(parameter, self._block.name) for parameter in own]
        return [(parameter.data_ptr(), parameter.device) for parameter in found]
