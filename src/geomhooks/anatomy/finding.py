"""Find out what family a model is of and where its parts are; make another family known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from geomhooks.anatomy.describing import Around, Block, linear
from geomhooks.anatomy.families import Anatomy, Family, Stack
from geomhooks.anatomy.known import FAMILIES
from geomhooks.anatomy.parts import BlockParts, Linear
from geomhooks.anatomy.rebuilding import capped
from geomhooks.errors import AnatomyError
from geomhooks.norms import NormModule
from geomhooks.sites import find_stacks, unwrap

__all__ = ["described", "families", "find_anatomy", "find_blocks", "register"]

# By name; what a user registers is added.
KNOWN: dict[str, Family] = {family.name: family for family in FAMILIES}


def families() -> list[str]:
    """Names of the families that are known."""
    return sorted(KNOWN)


def register(family: Family) -> None:
    """Make a family known, or another description of one; :class:`Family` has an example.

    Raises:
        AnatomyError: it is no Family.
    """
    if not isinstance(family, Family):
        raise AnatomyError(f"register: a geomhooks.anatomy.Family is needed, found {family!r}")
    KNOWN[family.name] = family


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
            tuple(described(family, block) for block in blocks if block.stack == name),
            None if family.embeddings is None else family.embeddings(around),
            find_final_norm(family, around),
        )
    projection, unembedding, tied = find_unembedding(model, family)
    cap = getattr(getattr(model, "config", None), "final_logit_softcapping", None)
    cap = None if unembedding is None else cap
    head = find_head(model, family, projection, unembedding, cap)
    return Anatomy(family, stacks, unembedding, tied, cap, head)


def find_final_norm(family: Family, around: Around) -> NormModule | None:
    """The norm after the last block of a stack, or None where there is none."""
    told = family.final_norm
    if callable(told):
        return told(around)
    return None if told is None or around.has(told) is None else around.norm(told)


def find_unembedding(model: nn.Module, family: Family) -> tuple[Linear | None, Linear | None, bool]:
    """The last projection, that to logits if it is all, and whether it is that of the tokens."""

    def named(what: str) -> nn.Module | None:
        try:
            found: nn.Module | None = getattr(model, what)()
        except (AttributeError, NotImplementedError):
            return None
        return found

    head, tokens = named("get_output_embeddings"), named("get_input_embeddings")
    if head is None:
        return None, None, False
    found, weight = linear(head, "the head"), getattr(tokens, "weight", None)
    tied = isinstance(weight, Tensor) and weight.data_ptr() == found.weight.data_ptr()
    whole = found if family.head is None else family.head(model, found)
    return found, whole, tied and whole is not None


def find_head(
    model: nn.Module,
    family: Family,
    projection: Linear | None,
    unembedding: Linear | None,
    cap: float | None,
) -> Callable[[Tensor], Tensor] | None:
    """What makes logits of the last hidden states, or None where there is nothing known."""
    if unembedding is not None:
        return lambda states: capped(unembedding(states), cap)
    if projection is None or family.transform is None:
        return None
    transform = family.transform(model)
    return lambda states: projection(transform(states))


def described(family: Family, block: Block) -> BlockParts:
    """What a family says of a block.

    Raises:
        AnatomyError: it returns something else than the parts of a block.
    """
    found = family.block(block)
    if not isinstance(found, BlockParts):
        raise AnatomyError(
            f"the description of {block.name} by the family {family.name!r} is "
            f"{type(found).__name__}; return what block.parts(attention, mlp) gives"
        )
    return found


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
    bases = [base.__name__ for base in type(model).__mro__]
    for one in bases if name is None else [name]:
        if one in KNOWN:
            return KNOWN[one]
    if not given:
        blocks = [block for stack in find_stacks(model).values() for _, block in stack]
        for family in KNOWN.values():
            if blocks and all(isinstance(block, family.blocks) for block in blocks):
                return family
    what = "has no config.model_type" if name is None else f"is of the family {name!r}"
    what = f"cannot be taken as {name!r}" if given else what
    raise AnatomyError(
        f"{kind} {what}; known are {', '.join(families())}. Describe another in a few lines, as "
        "help(geomhooks.anatomy.Family) shows, and give it to geomhooks.anatomy.register, or to "
        "find_anatomy as family="
    )
