"""Which forwards have their turn, where a statistic looks at a fraction of them only."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, counts

if TYPE_CHECKING:
    from typing_extensions import Self

    from geomhooks.forwards.tokens import Tokens

__all__ = ["Turns", "check_fraction", "is_chosen"]

# The golden ratio's fractional part in units of 2^-64.
STEP = 0x9E3779B97F4A7C15
WHOLE = 1 << 64


def is_chosen(number: int, fraction: float) -> bool:
    """Forward ``number`` (0, 1, 2, ...) belongs to the given fraction of all forwards.

    It does where the fractional part of number times the golden ratio is below the fraction. The
    first forward always belongs; of any stretch of n forwards fraction * n do, to within a few; and
    so it is for every second forward, for every tenth, and so on. To take each tenth instead would
    see nothing but prompts, or none, where a prompt and nine tokens come in turns. Nothing is drawn
    at random: a run that is repeated, or resumed, chooses the same forwards.

    Example:
        >>> [number for number in range(40) if is_chosen(number, 0.1)]
        [0, 5, 13, 26, 34]
    """
    return fraction >= 1 or number * STEP % WHOLE < fraction * WHOLE


def check_fraction(fraction: Any, argument: str) -> float:
    """Raise unless it is a fraction that leaves something.

    Raises:
        ValueError: naming the ``argument``.
    """
    number = isinstance(fraction, Real) and not isinstance(fraction, bool)
    if not number or not 0 < float(fraction) <= 1:
        raise ValueError(
            f"{argument}={fraction!r}): a number above 0 and at most 1 is needed, the share of "
            "forwards that are looked at"
        )
    return float(fraction)


class Turns(Accumulator):
    """How many forwards a token stream has had; on the host, where it can be looked at in passing.

    Example:
        >>> turns = Turns().allocate("meta")
        >>> [turns.observe(None) for _ in range(3)], turns.device.type
        ([0, 1, 2], 'cpu')
    """

    NAME = "turns"

    def __init__(self) -> None:
        super().__init__({"forwards": counts(())})

    def observe(self, tokens: Tokens | None) -> int:
        """The number of this forward, counted from 0."""
        number = int(self["forwards"])
        self["forwards"].add_(1)
        return number

    @classmethod
    def choose(cls, plans: Mapping[str, Any], fraction: float) -> bool:
        """The forward that has these plans is one of the fraction that is chosen."""
        return fraction >= 1 or is_chosen(plans[cls.NAME], fraction)

    def allocate(self, device: torch.device | str = "cpu") -> Self:
        """Create the count on the host, wherever the rest of the state is."""
        return super().allocate("cpu")

    def move(self, device: torch.device) -> None:
        """Stay on the host."""

    def clone(self, device: torch.device | str | None = None) -> Self:
        """Return an independent copy, on the host."""
        return super().clone("cpu")

    def adopt(self, tensors: Mapping[str, Tensor], where: str = "turns") -> None:
        """Take a count as this accumulator's own."""
        super().adopt({name: tensor.cpu() for name, tensor in tensors.items()}, where)

    def merge(self, other: Turns, plan: Any = None) -> None:
        """Go on after the forwards of both."""
        self["forwards"].add_(other["forwards"])
