"""The families that are known, and how to make another one known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from geomhooks.anatomy.describing import Attention, Block
from geomhooks.errors import AnatomyError
from geomhooks.frames import unwrap_transforms
from geomhooks.sites import find_stacks, unwrap

__all__ = [
    "Anatomy",
    "Family",
    "LiveAttention",
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
        attention: describes the attention of a :class:`Block`.

    Example:
        Most families are described by the names of their modules:

        >>> from geomhooks.anatomy import Block, Family, register
        >>> def attention(block: Block):
        ...     return block.attention(
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
        >>> register(Family("my_llama", attention))
    """

    name: str
    attention: Callable[[Block], Attention]


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of one model are.

    Attributes:
        family: what it is made as.
        attention: of each block, in the order of the blocks.
    """

    family: Family
    attention: tuple[Attention, ...]

    def at(self, layer: int | str) -> Attention:
        """The attention of a block by its number, its name, or the name of the block.

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


def gpt2(block: Block) -> Attention:
    """Query, key and value in one ``Conv1D``."""
    query, key, value = block.linear("attn.c_attn").split(3)
    config = block.config
    heads = config.num_attention_heads
    scale = (query.weight.shape[1] // heads) ** -0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= block.index + 1
    return block.attention(
        "attn",
        query=query,
        key=key,
        value=value,
        output=block.linear("attn.c_proj"),
        heads=heads,
        scale=scale,
        norm="ln_1",
    )


def llama(block: Block) -> Attention:
    """Rotary embedding, groups of query heads that share a key head."""
    return block.attention(
        "self_attn",
        query=block.linear("self_attn.q_proj"),
        key=block.linear("self_attn.k_proj"),
        value=block.linear("self_attn.v_proj"),
        output=block.linear("self_attn.o_proj"),
        heads=block.config.num_attention_heads,
        key_heads=block.config.num_key_value_heads,
        norm="input_layernorm",
        rotary=block.rotary(),
    )


def bert(block: Block) -> Attention:
    """No norm before attention, and none of its heads looks at the past alone."""
    return block.attention(
        "attention",
        query=block.linear("attention.self.query"),
        key=block.linear("attention.self.key"),
        value=block.linear("attention.self.value"),
        output=block.linear("attention.output.dense"),
        heads=block.config.num_attention_heads,
        causal=bool(block.config.is_decoder),
    )


def opt(block: Block) -> Attention:
    """A norm before attention, but in the model of 350M parameters after it."""
    return block.attention(
        "self_attn",
        query=block.linear("self_attn.q_proj"),
        key=block.linear("self_attn.k_proj"),
        value=block.linear("self_attn.v_proj"),
        output=block.linear("self_attn.out_proj"),
        heads=block.config.num_attention_heads,
        norm="self_attn_layer_norm" if block.config.do_layer_norm_before else None,
    )


KNOWN = {
    family.name: family
    for family in (
        Family("gpt2", gpt2),
        Family("llama", llama),
        Family("bert", bert),
        Family("opt", opt),
    )
}


def families() -> list[str]:
    """Names of the families that are known."""
    return sorted(KNOWN)


def register(family: Family) -> None:
    """Make a family known, or another description of one; :class:`Family` has an example."""
    KNOWN[family.name] = family


def find_anatomy(model: nn.Module, family: Family | str | None = None) -> Anatomy:
    """Find out where the parts of a model are.

    Args:
        model: of Hugging Face, wrapped or not, with a head or without.
        family: as what to take it, by default what its ``config.model_type`` says.

    Raises:
        AnatomyError: the family is not known, or the model is made otherwise.
    """
    family, blocks = find_blocks(model, family)
    return Anatomy(family, tuple(family.attention(block) for block in blocks))


def find_blocks(
    model: nn.Module, family: Family | str | None = None
) -> tuple[Family, tuple[Block, ...]]:
    """The family of a model, and its blocks; see :func:`find_anatomy`."""
    model = unwrap(model)
    config = getattr(model, "config", None)
    if not isinstance(family, Family):
        family = known_family(model, config, family)
    stacks = find_stacks(model)
    if len(stacks) != 1:
        raise AnatomyError(
            f"{type(model).__name__} has {len(stacks)} stacks of blocks ({', '.join(stacks)}); "
            "give the part of it that has one"
        )
    (blocks,) = stacks.values()
    sites = [f"{blocks[0][0]}@in", *(name for name, _ in blocks)]
    return family, tuple(
        Block(name, module, sites[index], index, model, config)
        for index, (name, module) in enumerate(blocks)
    )


def known_family(model: nn.Module, config: Any, name: str | None) -> Family:
    """The family that was registered by the name given, or by what the model says of itself.

    Raises:
        AnatomyError: there is none.
    """
    kind, said = type(model).__name__, getattr(config, "model_type", None)
    if name is None and isinstance(said, str):
        name = said
    bases = [base.__name__ for base in type(model).__mro__]
    for one in bases if name is None else [name]:
        if one in KNOWN:
            return KNOWN[one]
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
        self.latest = family.attention(block)

    def now(self) -> Attention:
        """What it is; described anew where the parameters are elsewhere than when it last was."""
        places = self._places()
        if places != self._seen:
            self.latest, self._seen = self._family.attention(self._block), places
        return self.latest

    def _places(self) -> list[tuple[int, torch.device]]:
        own = self._block.module.parameters()
        found = [unwrap_transforms(parameter, self._block.name) for parameter in own]
        return [(parameter.data_ptr(), parameter.device) for parameter in found]
