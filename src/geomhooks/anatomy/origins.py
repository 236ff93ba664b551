"""Hidden states by where they come from: tokens of the text, another stack, and biases.

B.-D. Oh, W. Schuler, "Token-wise Decomposition of Autoregressive Language Model Hidden States for
Analyzing Model Predictions", ACL 2023, arXiv 2305.10614, with its rows for single tokens added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geomhooks.anatomy.additions import Addition
from geomhooks.anatomy.parts import MLP, Attention, BlockParts
from geomhooks.anatomy.query_key import frozen
from geomhooks.anatomy.rebuilding import attention_logits, normed
from geomhooks.anatomy.terms import output_bias
from geomhooks.functional.attention.query_key import repeat_heads
from geomhooks.functional.shapes import as_float
from geomhooks.norms import NormModule

__all__ = ["ORIGINS", "Origins", "tangent"]

ORIGINS = ("tokens", "source", "correction")
"""The terms of a hidden state by origin, in order."""


@dataclass
class Origins:
    r"""What hidden states (B, T, d) are a sum of, by origin: tokens, source, correction.

    At the first block the state is all of the text's tokens. From there on every step of the model
    acts on each term alone, as the affine map that it is once what depends on the whole state is
    held fixed:

    - attention mixes the terms of values with its own weights;
    - what attention to an encoder makes of values without biases goes to source;
    - a feed-forward layer :math:`W_2 \phi(W_1 x + b_1) + b_2` acts by the tangent of the activation
      at p = W_1 x + b_1, with slope :math:`\phi'(p)`, and its intercept :math:`\phi(p) - \phi'(p)
      p` goes to correction; where it is gated, the gate is the slope;
    - a norm subtracts from each term its own mean and divides by the length of the whole state.

    All biases go to correction, and the terms add up to the state at any depth.

    Attributes:
        rows: (B, T, d) of each term.
        own_means: a norm subtracts from each term its own mean; else that of the whole state from
            correction, as :class:`geomhooks.anatomy.Terms` has it.
    """

    rows: dict[str, Tensor]
    own_means: bool = True

    @classmethod
    def begin(
        cls,
        embedded: Tensor,
        norm: NormModule | None = None,
        *,
        source: bool = False,
        own_means: bool = True,
    ) -> Origins:
        """At the input of the first block.

        Args:
            embedded: (B, T, d) what comes into it; or where a norm of embeddings comes before it,
                what comes into that.
            norm: that norm.
            source: there is a term for attention to an encoder.
            own_means: see the class.
        """
        state = as_float(embedded).clone()  # whose memory may be used again
        nothing = torch.zeros_like(state)
        rows = {name: nothing for name in ORIGINS if source or name != "source"}
        origins = cls(rows | {"tokens": state}, own_means)
        if norm is not None:
            origins.rows = origins._normed(origins.rows, norm, state)
        return origins

    @property
    def total(self) -> Tensor:
        """(B, T, d) the sum of all."""
        return self.summed.sum(0)

    @property
    def summed(self) -> Tensor:
        """(K, B, T, d) each term."""
        return torch.stack(list(self.rows.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the K terms."""
        return tuple(self.rows)

    def copy(self) -> Origins:
        """Terms that change by themselves."""
        return Origins(dict(self.rows), self.own_means)

    def to(self, device: torch.device) -> None:
        """Take the terms to where the next block is."""
        self.rows = {name: row.to(device) for name, row in self.rows.items()}

    def pass_norm(self, norm: NormModule, state: Tensor) -> None:
        """What a norm makes of each term of a state (B, T, d)."""
        self.rows = self._normed(self.rows, norm, state)

    def add_block(
        self,
        block: BlockParts,
        hidden: Tensor,
        additions: Sequence[Addition],
        positions: Tensor,
        allowed: Callable[[Attention], Tensor],
    ) -> None:
        """Take the terms of a block's input to those of its output.

        Args:
            block: its parts.
            hidden: (B, T, d) its input.
            additions: what its sublayers added, of :func:`geomhooks.anatomy.additions_of`.
            positions: (T,) or (B, T) of its tokens.
            allowed: which query looks at which key in an attention: bool, broadcasting to
                (B, H, T, T).
        """
        start, hidden = self.rows, as_float(hidden)
        state, rows = hidden, start
        for addition in additions:
            part, sublayer = addition.sublayer.part, addition.sublayer
            before, read = (start, hidden) if block.parallel else (rows, state)
            entering = before if part.norm is None else self._normed(before, part.norm, read)
            raw = as_float(addition.raw)
            if isinstance(part, MLP):
                added = self._feed(part, entering, normed(read, part.norm))
            elif part.cross:
                added = self._bring(addition, raw)
            else:
                logits = attention_logits(part, read, positions)
                added = self._mix(addition, entering, logits, allowed(part))
            if sublayer.after is not None:
                added = self._normed(added, sublayer.after, raw)
            kept = entering if sublayer.residual_is_normed else rows
            rows = {name: kept[name] + sublayer.scale * added[name] for name in rows}
            if sublayer.closing is not None:
                rows = self._normed(rows, sublayer.closing, as_float(addition.sum))
            state = as_float(addition.left)
        self.rows = {name: row * block.scale for name, row in rows.items()}

    def _normed(
        self, rows: dict[str, Tensor], norm: NormModule, state: Tensor
    ) -> dict[str, Tensor]:
        """What a norm makes of each term of a state."""
        fixed = frozen(norm, state)
        factor = fixed.factor(state)
        if fixed.centred and self.own_means:
            rows = {name: row - row.mean(-1, keepdim=True) for name, row in rows.items()}
        rows = {name: row * factor for name, row in rows.items()}
        if fixed.centred and not self.own_means:
            rows["correction"] = rows["correction"] - state.mean(-1, keepdim=True) * factor
        if fixed.bias is not None:
            rows["correction"] = rows["correction"] + fixed.bias.to(factor)
        return rows

    def _mix(
        self, addition: Addition, rows: dict[str, Tensor], logits: Tensor, allowed: Tensor
    ) -> dict[str, Tensor]:
        """What attention makes of the terms of its values."""
        part = addition.sublayer.part
        assert isinstance(part, Attention)
        stacked = torch.stack(list(rows.values()))
        shares = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1)
        value = torch.einsum("nbsd,hdk->nbhsk", stacked, part.value.weight.to(stacked))
        mixed = shares @ repeat_heads(value, part.heads)
        out = torch.einsum("nbhtk,hkd->nbtd", mixed, part.output.weight.to(stacked))
        found = dict(zip(rows, out.unbind(), strict=True))
        bias = output_bias(addition.sublayer)
        if bias is not None:
            found["correction"] = found["correction"] + bias.to(stacked)
        return found

    def _bring(self, addition: Addition, raw: Tensor) -> dict[str, Tensor]:
        """What attention to another stack brings in."""
        bias = output_bias(addition.sublayer)
        found = {name: torch.zeros_like(raw) for name in self.rows}
        if bias is None:
            return found | {"source": raw}
        bias = bias.to(raw)
        return found | {"source": raw - bias, "correction": bias.expand_as(raw)}

    def _feed(self, part: MLP, rows: dict[str, Tensor], state: Tensor) -> dict[str, Tensor]:
        """What a feed-forward layer makes of the terms of what it reads, (B, T, d) in all."""
        up, down = (layer.weight.to(state) for layer in (part.up, part.down))
        bias = state.new_zeros(up.shape[1]) if part.up.bias is None else part.up.bias.to(state)
        if part.gate is None:
            slope, intercept = tangent(part.activation, part.up(state))
            constant = slope * bias + intercept
        else:
            slope = part.activation(part.gate(state))
            constant = slope * bias
        found = {name: (slope * (row @ up)) @ down for name, row in rows.items()}
        constant = constant @ down
        if part.down.bias is not None:
            constant = constant + part.down.bias.to(state)
        found["correction"] = found["correction"] + constant
        return found


def tangent(activation: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the tangents of an activation, at each entry.

    Example:
        >>> slope, intercept = tangent(torch.square, torch.tensor([3.0]))
        >>> slope, intercept
        (tensor([6.]), tensor([-9.]))
    """
    with torch.inference_mode(False), torch.enable_grad():
        entry = at.detach().clone().requires_grad_()
        value = activation(entry)
        (slope,) = torch.autograd.grad(value.sum(), entry)
    return slope, value.detach() - slope * entry.detach()
