"""What the head of a model would make of a hidden state at any depth: the logit lens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.attention.query_key import FrozenNorm

__all__ = ["LogitLens"]


class LogitLens(NamedTuple):
    r"""The final norm and the rows that states are compared with for the next token.

    A hidden state x of any layer is taken to the space of the last one by the final norm, y =
    norm(x), and compared with the row u_w of each word w there: its logit is

    .. math:: l_w = u_w \cdot y + b_w,

    or :math:`c \tanh(l_w / c)` where the head caps logits. Differences of logits are logarithms of
    ratios of probabilities (nostalgebraist, "interpreting GPT: the logit lens", 2020).

    Example:
        >>> lens = LogitLens(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        >>> states, words = torch.tensor([[3.0, 4.0]]), lens.words(torch.tensor([1]))
        >>> lens.logits(lens.states(states), words)
        tensor([8.])
    """

    rows: Tensor
    """(V, d)"""
    offsets: Tensor | None = None
    """(V,) the biases b, or None"""
    freeze: Callable[[Tensor], FrozenNorm] | None = None
    """gives the final norm as it acts on states; None where there is none"""
    softcap: float | None = None
    """c, or None"""

    def states(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., d) as the final norm makes them."""
        return hidden if self.freeze is None else self.freeze(hidden)(hidden)

    def words(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows (..., d) and biases (...) of words (...), which must all be there."""
        return self.rows[ids], None if self.offsets is None else self.offsets[ids]

    def logits(self, states: Tensor, words: tuple[Tensor, Tensor | None]) -> Tensor:
        """Logits (...) of one word for each state.

        Args:
            states: (..., d) of :meth:`states`.
            words: of :meth:`words`.
        """
        rows, offsets = words
        found = torch.einsum("...d,...d->...", states, rows.to(states))
        if offsets is not None:
            found = found + offsets.to(found)
        return found if self.softcap is None else self.softcap * (found / self.softcap).tanh()
