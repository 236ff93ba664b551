"""What statistics have in common that look at a fraction of the forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geomhooks.accumulators import Accumulator
from geomhooks.accumulators.turns import Turns
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.statistics.base import LAWS, Statistic

__all__ = ["OF_A_SAMPLE", "SomeForwards"]

# What is left of the laws where forwards are chosen by their number: other batches are other
# forwards, and each shard chooses among its own. What was chosen is added up exactly.
OF_A_SAMPLE = LAWS - {"batching", "order", "packing", "generation"}


class SomeForwards(Statistic):
    """A statistic that looks at a ``fraction`` of the forwards, evenly chosen by their number."""

    fraction: float = 1.0

    def shared(self, stream: TokenStream) -> dict[str, Accumulator]:
        """The number of the forward, where it decides."""
        return {} if self.fraction == 1 else {Turns.NAME: Turns()}

    def takes(self, plans: Mapping[str, Any]) -> bool:
        """Look at the forwards that are chosen."""
        return Turns.choose(plans, self.fraction)
