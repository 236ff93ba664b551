"""The parts of a model as they are in each forward, also after its parameters were replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from geomhooks.anatomy.additions import Addition, Written, additions_of
from geomhooks.anatomy.describing import Block
from geomhooks.anatomy.families import Anatomy, Family
from geomhooks.anatomy.finding import described, find_anatomy
from geomhooks.anatomy.parts import BlockParts
from geomhooks.anatomy.query_key import frozen, query_key_of
from geomhooks.anatomy.words import unembedding
from geomhooks.forwards.frames import unwrap_transforms
from geomhooks.functional.attention.query_key import QueryKey
from geomhooks.functional.sphere.logit_lens import LogitLens
from geomhooks.sites import named_modules, unwrap

__all__ = ["LiveBlock", "LiveLens"]


class LiveBlock:
    """A block as it is now.

    Args:
        family: describes it.
        block: that block.
    """

    def __init__(self, family: Family, block: Block) -> None:
        self._family, self._block = family, block
        self._seen = self._places()
        self.latest = described(family, block)

    def now(self) -> BlockParts:
        """Its parts; described anew where its parameters are elsewhere than when it last was.

        Where the family reads values, also where they have changed.
        """
        places = self._places()
        if places != self._seen:
            self.latest, self._seen = described(self._family, self._block), places
        return self.latest

    def query_key(self, positions: Tensor) -> QueryKey:
        """What makes the logits of its attention, of tokens at positions (T,) or (..., T)."""
        return query_key_of(self.now().attention, positions)

    def additions(
        self, hidden: Tensor, seen: Sequence[Mapping[str, Tensor] | None]
    ) -> tuple[Addition, ...]:
        """What its sublayers add to (B, T, d), from what was seen of each, by names of Written."""
        written = [None if one is None else Written(**one) for one in seen]
        return additions_of(self.now(), hidden, written)

    def _places(self) -> list[tuple[int, torch.device, int]]:
        parameters = list(self._block.module.parameters())
        reads = self._family.reads_values
        changes = [p._version if reads and not p.is_inference() else 0 for p in parameters]
        return [(*at, n) for at, n in zip(places_of(parameters), changes, strict=True)]


class LiveLens:
    """What a model's head would make of the states of a stack, as it is now.

    Args:
        model: a model.
        anatomy: of it.
        stack: name of the list of blocks.

    Raises:
        AnatomyError: there is no head and no table of tokens as wide as the states.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, stack: str) -> None:
        self._model, self._family, self._stack = model, anatomy.family, stack
        # What is in no block, where the head and the embeddings are.
        self._outer = [
            module
            for name, module in named_modules(unwrap(model)).items()
            if not any(name.startswith(f"{blocks}.") for blocks in anatomy.stacks)
        ]
        self._seen = self._places()
        self._lens, self._head = lens_of(anatomy, stack), anatomy.head

    def now(self) -> LogitLens:
        """The lens; made anew where the rows are elsewhere than when it last was."""
        places = self._places()
        if places != self._seen:
            anatomy = find_anatomy(self._model, self._family)
            self._lens, self._seen = lens_of(anatomy, self._stack), places
            self._head = anatomy.head
        return self._lens

    def head(self) -> Callable[[Tensor], Tensor] | None:
        """What makes logits of the last states, after the final norm; None where there is none."""
        self.now()
        return self._head

    def _places(self) -> list[tuple[int, torch.device]]:
        return places_of(p for module in self._outer for p in module.parameters(recurse=False))


def lens_of(anatomy: Anatomy, stack: str) -> LogitLens:
    """What a head would make of the states of a stack."""
    one = anatomy.stack(stack)
    head, norm = unembedding(anatomy, one), one.final_norm
    freeze = None if norm is None else partial(frozen, norm)
    return LogitLens(head.weight.T, head.bias, freeze, anatomy.softcap)


def places_of(parameters: Iterable[Tensor]) -> list[tuple[int, torch.device]]:
    """Where the values of parameters are."""
    found = [unwrap_transforms(parameter, "a parameter") for parameter in parameters]
    return [(parameter.data_ptr(), parameter.device) for parameter in found]
