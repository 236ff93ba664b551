"""A dictionary that is being learned, and the tokens that wait for their turn in it.

Neither merges: what they hold depends on the order in which tokens came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field, counts
from geomhooks.accumulators.table import LAST, hash_keys
from geomhooks.errors import SchemaError
from geomhooks.functional.factors.dictionary_learning import DictionaryStep, initial_dictionary

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LearnedDictionary", "WaitingTokens"]

NO_ID = -1


class Unmergeable(Accumulator):
    """What depends on the order in which tokens came."""

    def merge(self, other: Accumulator, plan: Any = None) -> Any:
        """Refuse.

        Raises:
            SchemaError: always.
        """
        raise SchemaError(f"{type(self).__name__} depends on the order of tokens and cannot merge")


class WaitingTokens(Unmergeable):
    """A bounded number of hidden states, from which mini-batches are drawn, each state once.

    Args:
        capacity: how many.
        width: d.

    Example:
        >>> waiting = WaitingTokens(4, width=2).allocate()
        >>> waiting.put(
        ...     torch.tensor([[1.0, 0.0], [2.0, 0.0]]),
        ...     torch.tensor([7, 8]),
        ...     torch.tensor([True, False]),
        ... )
        >>> waiting["held"].sum()
        tensor(1)
        >>> states, ids = waiting.take(torch.tensor(True), waiting.choose(1))
        >>> states, ids, waiting["held"].sum()
        (tensor([[1., 0.]]), tensor([7]), tensor(0))
    """

    def __init__(self, capacity: int, width: int) -> None:
        super().__init__(
            {
                "states": Field((capacity, width), torch.float32),
                "ids": Field((capacity,), torch.int64, NO_ID),
                "held": Field((capacity,), torch.bool, False),
                "draws": counts(()),
            }
        )

    def put(self, states: Tensor, ids: Tensor, valid: Tensor) -> None:
        """Add states (n, d) in free places, as far as there are some, n at most the capacity."""
        held = self["held"]
        place = held.to(torch.int8).argsort(stable=True)[: len(valid)]
        # The valid ones first, so that none of them faces a place that is taken for no reason.
        order = (~valid).to(torch.int8).argsort(stable=True)
        fits = valid[order] & ~held[place]
        for name, new in (("states", states), ("ids", ids)):
            mine = self[name]
            where = fits.view(-1, *[1] * (mine.ndim - 1))
            mine.index_copy_(0, place, torch.where(where, new[order].to(mine), mine[place]))
        held.index_copy_(0, place, held[place] | fits)

    def choose(self, number: int) -> Tensor:
        """Places of some states that wait, at random by a hash of place and draw."""
        held = self["held"]
        places = torch.arange(len(held), device=held.device)
        priority = hash_keys(hash_keys(self["draws"]) + places)
        return torch.where(held, priority, LAST).topk(number, largest=False).indices

    def take(self, ready: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The states and ids at some places, which are free from now on if it is ``ready``."""
        found = self["states"][places], self["ids"][places]
        held = self["held"]
        held.index_copy_(0, places, held[places] & ~ready)
        self["draws"].add_(ready.to(torch.int64))
        return found


class LearnedDictionary(Unmergeable):
    """A dictionary (F, d), and running means over mini-batches of what its codes are like.

    Args:
        factors: F.
        width: d.
        seed: of the directions that it begins with.
        length: of running means, in mini-batches.
        start: (F, d) what it begins with instead.
    """

    def __init__(
        self, factors: int, width: int, seed: int, length: int, start: Tensor | None = None
    ) -> None:
        self.seed, self.length, self.start = seed, length, start
        each, one = (factors,), ()
        super().__init__(
            {
                "dictionary": Field((factors, width), torch.float32),
                "hessian": Field(each, torch.float32),
                "activation": Field(each, torch.float32),
                "idle": counts(each),  # mini-batches since a factor was in use
                # Running means, from zero: what they are divided by is the running mean of one.
                "weight": Field(one, torch.float64),
                "signal": Field(one, torch.float64),
                "noise": Field(one, torch.float64),
                "active": Field(one, torch.float64),
                "objective": Field(one, torch.float64),
                "given": Field(one, torch.bool, False),  # what it began with, by a caller
                "forwards": counts(one),
                "tokens": counts(one),
                "updates": counts(one),
                "revived": counts(one),
            }
        )

    def allocate(self, device: torch.device | str = "cpu") -> Self:
        """Create the tensors on a device and return the accumulator itself."""
        super().allocate(device)
        self._begin()
        return self

    def reset(self) -> None:
        """Begin anew, in place."""
        super().reset()
        self._begin()

    def _begin(self) -> None:
        dictionary = self["dictionary"]
        if dictionary.device.type == "meta":
            return
        start = self.start
        if start is None:
            start = initial_dictionary(*dictionary.shape, seed=self.seed)
        with torch.inference_mode(False), torch.no_grad():
            dictionary.copy_(start)
            self["given"].fill_(self.start is not None)

    @property
    def maturity(self) -> Tensor:
        """What the next mean of squares is to be divided by: 1, or what it lacks while it is young.

        It begins with zero. Long first steps lead from random directions to better factors sooner,
        but from a dictionary that was given they would lead away.
        """
        weight = self["weight"]
        young = torch.lerp(weight, torch.ones_like(weight), 1 / self.length)
        return torch.where(self["given"], young, 1.0).to(torch.float32)

    def note(
        self,
        ready: Tensor,
        made: DictionaryStep,
        codes: Tensor,
        energies: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Take what a mini-batch makes of the dictionary, if it is ``ready``.

        Args:
            ready: () bool.
            made: the dictionary, and the mean squares of activations.
            codes: (n, F).
            energies: () of the states, of what is left of them, and the objective: their means.
        """
        self._replace("dictionary", made.dictionary, ready)
        self._replace("hessian", made.hessian, ready)
        signal, noise, objective = energies
        used = codes > 0
        means = {
            "activation": codes.mean(0),
            "weight": torch.ones_like(self["weight"]),
            "signal": signal,
            "noise": noise,
            "objective": objective,
            "active": used.sum(1).to(self["active"].dtype).mean(),
        }
        for name, value in means.items():
            mine = self[name]
            self._replace(name, torch.lerp(mine, value.to(mine.dtype), 1 / self.length), ready)
        self._replace("idle", torch.where(used.any(0), 0, self["idle"] + 1), ready)
        self["updates"].add_(ready.to(torch.int64))

    @property
    def dead(self) -> Tensor:
        """(F,) bool, factors that the mini-batches of a running mean's length had no use for."""
        return self["idle"] >= self.length

    def revive(self, ready: Tensor, residual: Tensor) -> None:
        """Point dead factors, at most as many as there are residuals (n, d), along these.

        They are given the mean of the others' h, and their activations begin anew.
        """
        dead = self.dead & ready
        rank = dead.to(torch.int64).cumsum(0) - 1
        chosen = dead & (rank < len(residual))
        length = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        chosen = chosen & (length[rank.clamp(0, len(residual) - 1), 0] > 0)
        new = (residual / length)[rank.clamp(0, len(residual) - 1)]
        self._replace("dictionary", new, chosen[:, None])
        self._replace("hessian", self["hessian"].mean().expand_as(self["hessian"]), chosen)
        self._replace("idle", torch.zeros_like(self["idle"]), chosen)
        self._replace("activation", torch.zeros_like(self["activation"]), chosen)
        self["revived"].add_(chosen.sum())

    def _replace(self, name: str, new: Tensor, where: Tensor) -> None:
        mine = self[name]
        mine.copy_(torch.where(where, new, mine))
