"""The states of chosen contexts, token by token: a bounded buffer that merges.

Which contexts are kept, and where each token goes, is decided once for a token stream from its
tokens alone (:class:`KeptTokens`); the states at every site follow (:class:`TokenStates`). States
that come to one place several times, as those of overlapping chunks do, add up, and their mean is
what is kept: so a buffer does not depend on the order in which batches and shards come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field, counts
from geomhooks.accumulators.table import EMPTY, Placement, Table, add_rows, hash_keys

if TYPE_CHECKING:
    from typing_extensions import Self

    from geomhooks.forwards.tokens import Tokens

__all__ = ["KeptTokens", "Places", "TokenStates"]

NO_ID = -1
LARGEST_ID = (1 << 31) - 1  # what rankings can hold of one, and tokenizers take


@dataclass(frozen=True)
class Places:
    """Where the tokens of one forward go.

    Attributes:
        at: (B, T) places, row times length plus position; those of the last row nobody reads.
        fresh: (K + 1,) bool, rows that begin anew.
        any_kept: some token is kept. True where the host would have to wait to find out.
    """

    at: Tensor
    fresh: Tensor
    any_kept: bool

    def again(self) -> Places:
        """For a site that runs once more in the forward: nothing begins anew."""
        return replace(self, fresh=torch.zeros_like(self.fresh))


class KeptTokens(Table):
    """Which contexts are kept, and which token is at each of their positions.

    Args:
        contexts: how many to keep, a uniform sample of all; or the ids of those to keep.
        length: how many positions of each, from position 0 on.

    Example:
        >>> from geomhooks.forwards.tokens import Tokens
        >>> kept = KeptTokens([7], length=2).allocate()
        >>> real, keys = torch.ones(2, 3, dtype=torch.bool), torch.tensor([5, 7])
        >>> positions, ids = torch.arange(3).expand(2, 3), torch.tensor([[1, 2, 3], [4, 5, 6]])
        >>> tokens = Tokens(real, positions, 0, keys, keys, capacity=3)
        >>> tokens.ids = ids
        >>> kept.observe(tokens).at, kept["ids"][:1]
        (tensor([[2, 3, 3],
                [0, 1, 3]]), tensor([[4, 5]]))
    """

    NAME = "kept_tokens"

    def __init__(self, contexts: int | Sequence[int], length: int) -> None:
        self.length = length
        self.chosen = None if isinstance(contexts, int) else tuple(contexts)
        capacity = contexts if isinstance(contexts, int) else len(contexts)
        row = (length,)
        columns = {
            "ids": Field(row, torch.int64, NO_ID, (NO_ID, LARGEST_ID)),
            "times": counts(row, torch.int32),
        }
        super().__init__(capacity, columns)
        self._there: dict[torch.device, Tensor] = {}

    def allocate(self, device: torch.device | str = "cpu") -> Self:
        """Create the tensors on a device and return the accumulator itself."""
        if self.chosen is not None:  # copied there now, where nothing has to wait for it
            self._chosen_at(torch.device(device))
        return super().allocate(device)

    def observe(self, tokens: Tokens) -> Places:
        """Take in one forward's tokens and say where they go."""
        size, length = self.capacity, self.length
        within = tokens.real & (tokens.positions < length)
        valid = tokens.count_by_context(within) > 0
        if self.chosen is not None:
            valid = valid & (tokens.keys[:, None] == self._chosen_at(within.device)).any(1)
        placed = self.place(tokens.keys, hash_keys(tokens.keys), valid)
        fresh = torch.zeros_like(self["key"], dtype=torch.bool)
        fresh.index_copy_(0, placed.slot, placed.fresh)
        if tokens.segments is not None:
            slot = torch.nn.functional.pad(placed.slot, (0, 1), value=size)[tokens.segments]
        else:
            slot = (placed.slot if tokens.rows is None else placed.slot[tokens.rows])[:, None]
        at = torch.where(within, slot, size) * length + tokens.positions.clamp(0, length - 1)
        self._note(at, fresh, within, tokens.ids)
        waits = at.device.type != "cpu"
        return Places(at, fresh, waits or bool((placed.slot < size).any()))

    def _chosen_at(self, device: torch.device) -> Tensor:
        if device not in self._there:
            self._there[device] = torch.tensor(self.chosen, dtype=torch.int64, device=device)
        return self._there[device]

    def _note(self, at: Tensor, fresh: Tensor, within: Tensor, ids: Tensor | None) -> None:
        """Count the tokens at their places, and write down what they are."""
        times, known, places = self["times"], self["ids"], at.reshape(-1)
        times.masked_fill_(fresh[:, None], 0)
        known.masked_fill_(fresh[:, None], NO_ID)
        times.view(-1).index_add_(0, places, within.reshape(-1).to(times.dtype))
        if ids is not None:
            # Of several tokens that are said to be at one place the largest id stays.
            ids = torch.where(within, ids, NO_ID).reshape(-1)
            known.view(-1).scatter_reduce_(0, places, ids, "amax")
        times[-1].zero_()  # of what is not kept

    def rows(self) -> Tensor:
        """(K',) the rows that hold a context, by ascending id."""
        keys = self["key"][:-1]
        return keys.argsort()[int((keys == EMPTY).sum()) :]

    def merge(self, other: Table, plan: Any = None) -> Placement:
        """Take in another shard's contexts; the sites' states follow what is returned."""
        theirs = {n: t.to(self["key"].device) for n, t in other.tensors.items()}
        keys = theirs["key"][:-1]
        placed = self.place(keys, theirs["priority"][:-1], keys != EMPTY)
        add_rows(self["times"], placed, theirs["times"][:-1])
        known = self["ids"]
        before = torch.where(placed.fresh[:, None], NO_ID, known[placed.slot])
        known.index_copy_(0, placed.slot, torch.maximum(before, theirs["ids"][:-1]))
        return placed


class TokenStates(Accumulator):
    """The states at one site of the tokens that are kept.

    Args:
        contexts: K.
        length: T, positions of each.
        width: d.
    """

    follows: ClassVar[str | None] = KeptTokens.NAME

    def __init__(self, contexts: int, length: int, width: int) -> None:
        rows = contexts + 1
        super().__init__(
            {
                # Mostly one state each, and float32 keeps 7 digits of it.
                "total": Field((rows, length, width), torch.float32),
                "times": counts((rows, length), torch.int32),
            }
        )

    def add(self, states: Tensor, places: Places) -> None:
        """Add the states (B, T, d) of a forward."""
        total, times, at = self["total"], self["times"], places.at.reshape(-1)
        total.masked_fill_(places.fresh[:, None, None], 0.0)
        times.masked_fill_(places.fresh[:, None], 0)
        total.view(-1, total.shape[-1]).index_add_(0, at, states.flatten(0, 1).to(total.dtype))
        times.view(-1).index_add_(0, at, torch.ones_like(at, dtype=times.dtype))
        for column in (total, times):
            column[-1].zero_()  # what is not kept, NaN of masked entries with it

    @property
    def mean(self) -> Tensor:
        """(K, T, d), NaN where no state is."""
        mean: Tensor = self["total"][:-1] / self["times"][:-1, :, None]
        return mean

    def merge(self, other: TokenStates, plan: Placement | None = None) -> None:
        """Take in another shard's states as :meth:`KeptTokens.merge` says."""
        if plan is None:
            raise TypeError("TokenStates.merge needs what KeptTokens.merge returned")
        for name, column in self.tensors.items():
            add_rows(column, plan, other[name][:-1].to(column.device))
