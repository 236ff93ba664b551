"""The sums of one site that the two-way fit h = mu + pos + ctx + resid needs.

They follow the decisions of the stream's :class:`~geomhooks.accumulators.contexts.Contexts`. With
W[c, t] the number of tokens of context c at position t, n_c their sum over t, and all h taken about
a fixed shift:

    S_t = sum_c W h       R = sum_c W_c S_c / n_c
    q = sum W |h|^2       q_ctx = sum_c |S_c|^2 / n_c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Field, counts
from geomhooks.accumulators.contexts import Contexts, Fold, MergePlan, Step
from geomhooks.accumulators.table import add_rows
from geomhooks.gpu import load as load_kernels
from geomhooks.gpu import runs_on
from geomhooks.native import load, usable

if TYPE_CHECKING:
    from geomhooks.forwards.tokens import Tokens

__all__ = ["TwoWay"]

FOLLOWING = (
    "open_sum",
    "open_count",
    "edges",
    "context_square",
    "context_mean",
    "kept_sum",
    "kept_count",
)


class TwoWay(Accumulator):
    """Running sums of hidden states by position and by context.

    Args:
        width: d.
        positions: T.
        kept: how many contexts are kept, K.
        unfinished: how many contexts may be open at once, O.
        second_moment: also sum the outer products of the contexts' sums, (d, d).
    """

    follows: ClassVar[str | None] = "contexts"

    def __init__(
        self, width: int, positions: int, kept: int, unfinished: int, second_moment: bool
    ) -> None:
        self.second_moment = second_moment
        f64 = torch.float64
        outer = {"context_outer": Field((width, width), f64)}
        super().__init__(
            {
                "position_count": counts((positions,)),
                "position_sum": Field((positions, width), f64),
                "edges": Field((positions + 1, width), f64),  # R, as differences along positions
                "square": Field((), f64),
                "context_square": Field((), f64),
                "context_mean": Field((width,), f64),  # sum_c S_c / n_c
                "open_sum": Field((unfinished + 1, width), f64),
                "open_count": counts((unfinished + 1,)),
                # A closed context is not added to any more, and float32 keeps 7 digits of it.
                "kept_sum": Field((kept + 1, width), torch.float32),
                "kept_count": counts((kept + 1,)),
                **(outer if second_moment else {}),
            }
        )

    def count(self, tokens: Tokens, keep: Tensor, around: Tensor) -> Tensor:
        """Count one forward's tokens and add up |h|^2; returns how many each context has, (M,).

        Args:
            tokens: of the forward.
            keep: (B, T) bool, those that count at this site.
            around: (B, T) |h|^2 about the shift.
        """
        number, square = self["position_count"], self["square"]
        if usable(keep, around, number):
            counts = np.zeros(tokens.number + 1, np.int64)
            _, _, *where = tokens.arrays
            found = keep.contiguous().numpy(), around.to(square.dtype).numpy()
            held = self.array("position_count"), self.array("square")
            load().count_tokens(*found, *where, *held, counts)
            return torch.from_numpy(counts)[:-1]
        if runs_on(keep, around, number):
            counted: Tensor = load_kernels().count_tokens(self, tokens, keep, around)
            return counted
        if tokens.start is not None:
            number[tokens.at].add_(keep.sum(0))
        else:
            number.index_add_(0, tokens.positions.reshape(-1), keep.reshape(-1).to(torch.int64))
        square.add_(around.sum(dtype=square.dtype))
        return tokens.count_by_context(keep)

    def follow(self, steps: list[Step], sums: Tensor, counts: Tensor) -> None:
        """Add one forward's sums by context (M, d) and their counts (M,)."""
        if not self.second_moment and usable(sums, counts, self["open_sum"]):
            added = sums.to(self["open_sum"].dtype).contiguous().numpy(), counts.numpy()
            held = [self.array(name) for name in FOLLOWING]
            for step in steps:
                load().follow(*added, *step.arrays, *held)
            return
        if not self.second_moment and runs_on(sums, counts, self["open_sum"]):
            load_kernels().follow(self, steps, sums, counts)
            return
        for step in steps:
            if step.fold is not None:
                self.close(step.fold)
            add_rows(self["open_sum"], step.open, sums[step.rows])
            add_rows(self["open_count"], step.open, counts[step.rows])

    def close(self, fold: Fold) -> None:
        """Move complete contexts from the open rows into the sums."""
        closing = fold.weight > 0
        weight = fold.weight[:, None].to(self["edges"].dtype)
        sums = torch.where(closing[:, None], self["open_sum"][fold.slot], 0.0)
        counts = torch.where(closing, self["open_count"][fold.slot], 0)
        means = sums * weight
        if fold.ends is not None:
            self["edges"].index_add_(0, fold.ends[:, 0], means)
            self["edges"].index_add_(0, fold.ends[:, 1], means, alpha=-1)
        else:
            assert fold.edges is not None
            self["edges"][: len(fold.edges)].addmm_(fold.edges.to(means.dtype), means)
        self["context_square"].add_((sums * means).sum())
        self["context_mean"].add_(means.sum(0))
        if self.second_moment:
            self["context_outer"].addmm_(sums.T, means)
        add_rows(self["kept_sum"], fold.kept, sums)
        add_rows(self["kept_count"], fold.kept, counts)

    def rebase(self, delta: Tensor, followed: Contexts) -> None:
        """Express the sums about a shift that is smaller by ``delta`` (d,)."""
        total, number = self["position_sum"].sum(0), self["position_count"].sum()
        open_total = self["open_sum"][:-1].sum(0)
        covered, closed = (followed[name].to(delta.device) for name in ("covered", "closed"))
        closed_number = covered.cumsum(0).sum()
        if self.second_moment:
            cross = torch.outer(total - open_total, delta)
            grown = cross + cross.T + closed_number * torch.outer(delta, delta)
            self["context_outer"].add_(grown)
        self["square"].add_(2 * delta @ total + number * (delta @ delta))
        self["context_square"].add_(
            2 * delta @ (total - open_total) + closed_number * (delta @ delta)
        )
        self["edges"].add_(covered[:, None] * delta)
        self["context_mean"].add_(closed * delta)
        for sums_name, count_name in (
            ("position_sum", "position_count"),
            ("open_sum", "open_count"),
            ("kept_sum", "kept_count"),
        ):
            self[sums_name].add_(self[count_name][:, None] * delta)

    def merge(self, other: TwoWay, plan: MergePlan | None = None) -> None:
        """Take in another shard's sums, about the same shift, as the contexts' plan says."""
        if plan is None:
            raise TypeError("TwoWay.merge needs the plan that Contexts.merge returned")
        other = other.clone(self["square"].device)
        for name in set(self.fields) - {"open_sum", "open_count", "kept_sum", "kept_count"}:
            self.tensors[name] += other.tensors[name]
        add_rows(self["kept_sum"], plan.kept_theirs, other["kept_sum"][:-1])
        add_rows(self["kept_count"], plan.kept_theirs, other["kept_count"][:-1])
        narrow = {}
        for name in ("open_sum", "open_count"):
            narrow[name] = self[name]
            united = self[name].new_zeros((plan.united + 1, *self[name].shape[1:]))
            united.index_add_(0, plan.open_mine, self[name])
            united.index_add_(0, plan.open_theirs, other[name])
            self.tensors[name] = united
        if plan.fold is not None:
            self.close(plan.fold)
        for name, column in narrow.items():
            united = self.tensors[name]
            column.zero_()
            column[: len(plan.stay)] = united[plan.stay]
            self.tensors[name] = column
