"""What is known of a block's weights where leaders are counted, and what the theorem says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.results import Result, Unavailable

if TYPE_CHECKING:
    from geomhooks.anatomy.parts import BlockParts

__all__ = ["Facts", "conditions", "facts_of", "is_own_form"]


class Facts(NamedTuple):
    """What is known of a block's weights, and whose they are."""

    module: int
    """its id"""
    facts: Tensor
    """(H, F)"""
    own_form: Tensor
    """(H,) bool, the head's form is a norm; on the host"""

    @classmethod
    def of(cls, block: BlockParts) -> Facts:
        """Of the weights as they are."""
        from geomhooks.anatomy.hardmax_conditions import hardmax_facts

        facts = hardmax_facts(block)
        return cls(id(block.module), facts, is_own_form(facts_of(facts)).cpu())


def facts_of(values: Tensor) -> Any:
    """(H, F) by name."""
    from geomhooks.anatomy.hardmax_conditions import HardmaxFacts

    return HardmaxFacts.of(values)


def is_own_form(facts: Mapping[str, Tensor]) -> Tensor:
    """(H,) bool, the symmetric part of the form has positive eigenvalues and no negative ones."""
    return (facts["positive"] > 0) & (facts["negative"] == 0)


def conditions(facts: Any, width: int, known: Tensor) -> Any:
    """What the theorem asks for, and why it says nothing."""
    from geomhooks.anatomy.hardmax_conditions import FACTS, reasons_against

    if not bool(known):
        return Unavailable("no forward has been looked at")
    reasons = reasons_against(facts, width)
    hold = torch.tensor(not reasons, device="cpu")
    return Result(**{name: facts[name] for name in FACTS[:5]}, hold=hold, reasons=reasons)
