"""The terms that a hidden state is a sum of, carried from block to block.

T. Mickus, D. Paperno, M. Constant, "How to Dissect a Muppet: The Structure of Transformer Embedding
Spaces", TACL 2022, arXiv 2206.03529.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from geomhooks.anatomy.additions import Addition
from geomhooks.anatomy.parts import Attention, BlockParts, Sublayer
from geomhooks.anatomy.query_key import frozen
from geomhooks.errors import AnatomyError
from geomhooks.functional.attention.query_key import repeat_heads
from geomhooks.functional.shapes import as_float
from geomhooks.norms import NormModule

__all__ = ["TERMS", "Split", "Terms", "output_bias"]

TERMS = ("input", "attention", "source", "feed_forward", "correction")
"""The terms of a hidden state, in order."""

TERM_OF = {"attention": "attention", "cross_attention": "source", "mlp": "feed_forward"}
Split = Literal["layer", "head"]


@dataclass
class Terms:
    r"""What hidden states (B, T, d) are a sum of: input, attention, feed-forward, correction.

    At the first block the state is its input i. Each attention adds what it makes of values without
    biases to the term h, attention to an encoder adds to a term s of its own, each feed-forward
    layer what it makes without its last bias to f; all these biases are added to the correction c.
    A norm with gain g and bias b which finds a state of mean m and length sqrt(d) s multiplies all
    terms by g / s, and

    .. math:: c \leftarrow g (c - m) / s + b,

    so that at any depth e = i + h + s + f + c. Norms before a sublayer shape what it adds and are
    no part of the sum.

    Attributes:
        rows: (R, B, T, d) of each term: one row, or one for each layer or head.
        split: "layer": attention, source, feed-forward and correction have a row for each block
            (correction begins with one of what comes before the blocks); "head": attention and
            source have H rows for each block.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import Written, additions_of, find_anatomy
        >>> model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
        >>> block = find_anatomy(model).stack().blocks[0]
        >>> hidden, attention, fed = torch.randn(3, 1, 4, 8)
        >>> terms = Terms.begin(hidden)
        >>> terms.add_block(block, additions_of(block, hidden, [Written(attention), Written(fed)]))
        >>> torch.allclose(terms.total, hidden + attention + fed)
        True
    """

    rows: dict[str, Tensor]
    split: Split | None = None

    @classmethod
    def begin(
        cls,
        embedded: Tensor,
        norm: NormModule | None = None,
        *,
        source: bool = False,
        split: Split | None = None,
    ) -> Terms:
        """At the input of the first block.

        Args:
            embedded: (B, T, d) what comes into it; or where a norm of embeddings comes before it,
                what comes into that.
            norm: that norm.
            source: there is a term for attention to an encoder.
            split: how finely.
        """
        state = as_float(embedded)
        nothing = state[None] * 0
        names = [name for name in TERMS if source or name != "source"]
        rows = {name: state[None].clone() if name == "input" else nothing.clone() for name in names}
        if split is not None:
            rows |= {n: nothing[:0] for n in ("attention", "source", "feed_forward") if n in rows}
        terms = cls(rows, split)
        if norm is not None:
            terms.pass_norm(norm, state)
        return terms

    @property
    def total(self) -> Tensor:
        """(B, T, d) the sum of all."""
        return self.summed.sum(0)

    @property
    def summed(self) -> Tensor:
        """(K, B, T, d) each term, its rows added up."""
        return torch.stack([rows.sum(0) for rows in self.rows.values()])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the K terms."""
        return tuple(self.rows)

    def copy(self) -> Terms:
        """Terms that change by themselves."""
        return Terms({name: rows.clone() for name, rows in self.rows.items()}, self.split)

    def to(self, device: torch.device) -> None:
        """Take the terms to where the next block is."""
        self.rows = {name: rows.to(device) for name, rows in self.rows.items()}

    def pass_norm(self, norm: NormModule, state: Tensor) -> None:
        """What a norm makes of each term of a state (B, T, d)."""
        factor, shift = affine(norm, state.to(self.rows["input"]))
        self.rows = {name: rows * factor for name, rows in self.rows.items()}
        self.rows["correction"][-1] += shift

    def add_block(self, block: BlockParts, additions: Sequence[Addition]) -> None:
        """Take the terms of a block's input to those of its output.

        Args:
            block: its parts.
            additions: what its sublayers added, of :func:`geomhooks.anatomy.additions_of`.

        Raises:
            AnatomyError: the heads are to be told apart and not to be seen.
        """
        if self.split is not None:
            new = torch.zeros_like(self.rows["correction"][:1])
            self.rows["correction"] = torch.cat([self.rows["correction"], new])
        for addition in additions:
            sublayer = addition.sublayer
            if sublayer.residual_is_normed and sublayer.part.norm is not None:
                self.pass_norm(sublayer.part.norm, self.total)
            self._add(addition)
            if sublayer.closing is not None:
                self.pass_norm(sublayer.closing, addition.sum)
        if block.scale != 1:
            self.rows = {name: rows * block.scale for name, rows in self.rows.items()}

    def _add(self, addition: Addition) -> None:
        """Add what a sublayer made without biases to its term, and the rest to the correction."""
        sublayer, bias = addition.sublayer, output_bias(addition.sublayer)
        raw = addition.raw.to(self.rows["input"])
        bias = raw.new_zeros(raw.shape[-1]) if bias is None else bias.to(raw)
        if self.split == "head" and isinstance(sublayer.part, Attention):
            if addition.mixed is None:
                raise AnatomyError(
                    f"{sublayer.part.name} does not show what goes into its last projection, so "
                    "that its heads cannot be told apart; split by layer"
                )
            values = by_head(sublayer.part, addition.mixed.to(raw))
        else:
            values = (raw - bias)[None]
        factor: Tensor | float = sublayer.scale
        if sublayer.after is not None:
            factor, shift = affine(sublayer.after, raw)
            factor, shift = factor * sublayer.scale, shift * sublayer.scale
            self.rows["correction"][-1] += shift
        self.rows["correction"][-1] += bias * factor
        name, values = TERM_OF[sublayer.kind], values * factor
        rows = self.rows[name]
        self.rows[name] = rows + values if self.split is None else torch.cat([rows, values])


def affine(norm: NormModule, states: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm multiplies states (..., d) by, and what it adds to that, both (..., d)."""
    fixed = frozen(norm, states)
    factor = fixed.factor(states)
    shift = -states.mean(-1, keepdim=True) * factor if fixed.centred else torch.zeros_like(states)
    return factor, shift if fixed.bias is None else shift + fixed.bias.to(factor)


def output_bias(sublayer: Sublayer) -> Tensor | None:
    """(d,) what a sublayer makes whatever comes in, or None where it has no biases.

    The weights of attention sum to one, so the biases of values come out as they are.
    """
    part = sublayer.part
    if not isinstance(part, Attention):
        return part.down.bias
    found = part.output.bias
    if part.value.bias is not None:
        each = repeat_heads(part.value.bias[:, None], part.heads)[:, 0]
        values = torch.einsum("hk,hkd->d", each, part.output.weight)
        found = values if found is None else found + values
    return found


def by_head(attention: Attention, heads: Tensor) -> Tensor:
    """(H, B, T, d) what each head makes of values without biases.

    Args:
        attention: of a block.
        heads: (B, T, H k) what goes into the last projection.
    """
    weight = attention.output.weight.to(heads)
    values = heads.reshape(*heads.shape[:-1], attention.heads, -1)
    if attention.value.bias is not None:
        bias = attention.value.bias[:, None].to(values)
        values = values - repeat_heads(bias, attention.heads)[:, 0]
    return torch.einsum("bthk,hkd->hbtd", values, weight)
