r"""The matrices that a head of attention is, whole: query-key forms and value-output maps.

A head never uses its projections apart. With normed states :math:`X = \hat x \Gamma + \beta`, where
:math:`\hat x` is what the norm makes before its gain :math:`\Gamma` and shift :math:`\beta`, its
logit is a bilinear form of two points of the sphere, a preference of each, and a constant,

.. math::
    \ell_{ij} = \underbrace{\hat x_i\, L R^\top \hat x_j^\top}_{\text{content}}
        + \underbrace{\hat x_i \cdot u}_{\text{query only}}
        + \underbrace{v \cdot \hat x_j}_{\text{key only}} + c,
    \qquad L R^\top = s\, \Gamma W_Q W_K^\top \Gamma,

and what it adds to the residual stream for a token that is looked at is
:math:`\hat x_j\, \Gamma W_V W_O + (\beta W_V + b_V) W_O`. What depends on the query alone cancels
in the softmax, and the constant too. These are the virtual matrices of R. Molina, "Traveling Words"
(arXiv 2309.07315), with the affine part of the norm in them; the d by d matrices are never made,
only their factors (d, k).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.attention.query_key import Rotary, repeat_heads
from geomhooks.functional.shapes import as_float

__all__ = [
    "FoldedHeads",
    "LogitTerms",
    "QueryKeyForm",
    "ValueOutputMap",
    "fold_norm",
    "query_key_form",
    "value_output_map",
]


class FoldedHeads(NamedTuple):
    """A projection to heads that acts on what the norm makes before its gain and shift."""

    weight: Tensor
    """(H, d, k)"""
    bias: Tensor
    """(H, k), zero where nothing gave one"""


class LogitTerms(NamedTuple):
    """The four terms of logits, as wide as each depends on query and key."""

    content: Tensor
    """(..., H, T, S)"""
    query_only: Tensor
    """(..., H, T, 1) the same for every key: without effect on the softmax"""
    key_only: Tensor
    """(..., H, 1, S) how much each key is looked at whatever the query"""
    constant: Tensor
    """(H, 1, 1) without effect on the softmax"""

    @property
    def total(self) -> Tensor:
        """(..., H, T, S) their sum, the logits."""
        return self.content + self.query_only + self.key_only + self.constant


class QueryKeyForm(NamedTuple):
    """The logits of heads as a form of a query's and a key's state."""

    left: Tensor
    """(H, d, k) L, with the scale; the matrix of the form is L R^T"""
    right: Tensor
    """(H, d, k) R"""
    query_only: Tensor
    """(H, d) u"""
    key_only: Tensor
    """(H, d) v"""
    constant: Tensor
    """(H,) c"""

    def terms(self, states: Tensor, others: Tensor | None = None) -> LogitTerms:
        """The logits of all pairs, by term.

        Args:
            states: (..., T, d) of queries, normed before the gain and shift.
            others: (..., S, d) of keys, by default the same.
        """
        others = states if others is None else others
        query = torch.einsum("...td,hdk->...htk", states, self.left.to(states))
        key = torch.einsum("...sd,hdk->...hsk", others, self.right.to(others))
        return LogitTerms(
            query @ key.mT,
            torch.einsum("...td,hd->...ht", states, self.query_only.to(states))[..., None],
            torch.einsum("...sd,hd->...hs", others, self.key_only.to(others))[..., None, :],
            self.constant.to(states)[:, None, None],
        )


class ValueOutputMap(NamedTuple):
    """What heads add to the residual stream for a state that is looked at with weight 1."""

    left: Tensor
    """(H, d, k); the matrix of the map is L R^T"""
    right: Tensor
    """(H, d, k)"""
    constant: Tensor
    """(H, d) from the biases of norm and values; the bias of the output is no head's"""

    def updates(self, states: Tensor) -> Tensor:
        """(..., H, T, d) for states (..., T, d), normed before the gain and shift."""
        values = torch.einsum("...td,hdk->...htk", states, self.left.to(states))
        return values @ self.right.mT.to(states) + self.constant.to(states)[:, None, :]


def fold_norm(
    weight: Tensor,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    centred: bool = False,
) -> FoldedHeads:
    r"""Take the gain and shift of the norm before a projection into the projection.

    .. math:: (\hat x \Gamma + \beta) W + b = \hat x\, (\Gamma W) + (\beta W + b)

    Args:
        weight: (H, d, k).
        bias: (H, k).
        gain: (d,) of the norm, None for ones.
        shift: (d,) of the norm, its bias; None for zero.
        centred: take the direction of ones out of the inputs of the weight. Centred states, such as
            a LayerNorm makes, have nothing there, so that nothing changes for them; singular
            vectors then lie in the hyperplane where the states are.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> folded = fold_norm(torch.ones(1, 2, 1), None, torch.tensor([2.0, 3.0]), torch.ones(2))
        >>> folded.weight.flatten(), folded.bias.flatten()
        (tensor([2., 3.]), tensor([2.]))
    """
    if weight.ndim != 3:
        raise ValueError(f"weight: shape (H, d, k) is needed, found {tuple(weight.shape)}")
    heads, width, inner = weight.shape
    needed = {"bias": (bias, (heads, inner)), "gain": (gain, (width,)), "shift": (shift, (width,))}
    for name, (tensor, shape) in needed.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name}: shape {shape} is needed for a weight {tuple(weight.shape)}, found "
                f"{tuple(tensor.shape)}"
            )
    weight = as_float(weight)
    constant = weight.new_zeros(heads, inner) if bias is None else bias.to(weight)
    if shift is not None:
        constant = constant + torch.einsum("d,hdk->hk", shift.to(weight), weight)
    if gain is not None:
        weight = gain.to(weight)[:, None] * weight
    if centred:
        weight = weight - weight.mean(1, keepdim=True)
    return FoldedHeads(weight, constant)


def query_key_form(
    query: FoldedHeads, key: FoldedHeads, scale: float | None = None, rotary: Rotary | None = None
) -> QueryKeyForm:
    """The form of each head's logits.

    Args:
        query: (H, d, k), of :func:`fold_norm`.
        key: (G, d, k), where G divides H.
        scale: what products of query and key are multiplied by, 1 / sqrt(k) by default.
        rotary: the rotary embedding at two positions, the query's and the key's: cosines and sines
            (2, r). Only how far apart they are matters; the form belongs to that distance.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)
        >>> query, key, gain, shift = draw(2, 8, 3), draw(2, 8, 3), draw(8), draw(8)
        >>> form = query_key_form(
        ...     fold_norm(query, draw(2, 3), gain, shift), fold_norm(key, None, gain, shift)
        ... )
        >>> states = draw(5, 8)
        >>> terms = form.terms(states)
        >>> terms.content.shape, terms.key_only.shape, terms.total.shape
        (torch.Size([2, 5, 5]), torch.Size([2, 1, 5]), torch.Size([2, 5, 5]))
    """
    inner = query.weight.shape[2]
    if key.weight.shape[2] != inner:
        raise ValueError(
            f"queries of width {inner} and keys of width {key.weight.shape[2]} have no product"
        )
    if rotary is not None and (rotary.cos.ndim != 2 or len(rotary.cos) != 2):
        raise ValueError(
            "rotary: cosines and sines (2, r) are needed, at the query's position and the key's, "
            f"found {tuple(rotary.cos.shape)}"
        )
    scale = inner**-0.5 if scale is None else scale
    # One row more, the constant, so that all is turned alike.
    left = torch.cat((query.weight, query.bias[:, None]), 1)
    right = torch.cat((key.weight, key.bias[:, None]), 1).to(left)
    if rotary is not None:
        left, right = (
            Rotary(rotary.cos[at : at + 1], rotary.sin[at : at + 1], rotary.interleaved).turn(side)
            for at, side in ((0, left), (1, right))
        )
    left, right = scale * left, repeat_heads(right, len(left))
    (left, query_bias), (right, key_bias) = ((side[:, :-1], side[:, -1]) for side in (left, right))
    return QueryKeyForm(
        left,
        right,
        torch.einsum("hdk,hk->hd", left, key_bias),
        torch.einsum("hdk,hk->hd", right, query_bias),
        (query_bias * key_bias).sum(-1),
    )


def value_output_map(value: FoldedHeads, output: Tensor) -> ValueOutputMap:
    """The map of each head from a state that is looked at to what is added.

    Args:
        value: (G, d, k), of :func:`fold_norm`.
        output: (H, k, e) from each head to the residual stream, where G divides H.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> value = fold_norm(torch.ones(1, 2, 1), torch.ones(1, 1))
        >>> value_output_map(value, torch.tensor([[[1.0, -1.0]]])).updates(torch.ones(1, 2))
        tensor([[[ 3., -3.]]])
    """
    if output.ndim != 3 or output.shape[1] != value.weight.shape[2]:
        raise ValueError(
            f"output: shape (H, {value.weight.shape[2]}, d) is needed for values "
            f"{tuple(value.weight.shape)}, found {tuple(output.shape)}"
        )
    heads = len(output)
    left = repeat_heads(value.weight, heads)
    right = output.to(left)
    constant = repeat_heads(value.bias[:, None], heads) @ right
    return ValueOutputMap(left, right.mT, constant[:, 0])
