r"""The logits of attention split by the parts of the hidden states that meet in them.

A state at the input of attention is a sum of parts, h = mean + pos + ctx + resid. What stands
between it and the logits is linear but for the norm, and that is too once each token's own scale,
1 / sqrt(var + eps), is held fixed. The query then is a sum of five vectors: one for each part, and
one for all that does not depend on the state, the bias of the norm sent through the weights and the
bias of the projection,

.. math::
    q_t = R_t \Bigl[ \sum_a W_Q^\top \bigl(g \odot s_t (h_t^a - \overline{h_t^a})\bigr)
          + (W_Q^\top b + b_Q) \Bigr],

with the rotation R_t of a rotary embedding, or none. So is the key, and a logit is the sum of the
25 products. Nothing is left over or counted twice (the published code norms each part on its own,
and its parts do not add up: :func:`geomhooks.functional.published_query_key_logits`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.shapes import as_float

__all__ = [
    "QUERY_KEY_PARTS",
    "FrozenNorm",
    "PublishedLogits",
    "QueryKey",
    "Rotary",
    "freeze_norm",
    "project_parts",
    "published_query_key_logits",
    "query_key_logits",
    "repeat_heads",
    "split_states",
    "visible",
]

QUERY_KEY_PARTS = ("mean", "pos", "ctx", "resid", "bias")
"""The parts of a query or a key, in order."""


class FrozenNorm(NamedTuple):
    """A norm whose scale at each token is held fixed, which makes it an affine map."""

    scale: Tensor
    """(..., T) one over the length that the token is divided by"""
    gain: Tensor | None = None
    """(d,)"""
    bias: Tensor | None = None
    """(d,)"""
    centred: bool = True
    """the mean of the entries is subtracted (LayerNorm) or not (RMSNorm)"""

    def linear(self, states: Tensor) -> Tensor:
        """The map without its bias, for (..., T, d)."""
        if self.centred:
            states = states - states.mean(-1, keepdim=True)
        states = states * self.scale.to(states)[..., None]
        return states if self.gain is None else states * self.gain.to(states)

    def __call__(self, states: Tensor) -> Tensor:
        """The whole map, for (..., T, d)."""
        states = self.linear(states)
        return states if self.bias is None else states + self.bias.to(states)

    def factor(self, like: Tensor) -> Tensor:
        """What entries are multiplied by, (..., T, d), or (..., T, 1) where all are alike."""
        factor = self.scale.to(like)[..., None]
        return factor if self.gain is None else factor * self.gain.to(like)


class Rotary(NamedTuple):
    """A rotary position embedding at the positions of the tokens.

    ``cos`` and ``sin`` are (..., T, r) over the first r <= k entries of a head, each angle at both
    of the entries that it turns.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False
    """pairs are neighbours (GPT-J), and not r / 2 apart (Llama, GPT-NeoX)"""

    def turn(self, vectors: Tensor) -> Tensor:
        """Turn (..., H, T, k)."""
        width = self.cos.shape[-1]
        turned, rest = vectors[..., :width], vectors[..., width:]
        if self.interleaved:
            crossed = torch.stack((-turned[..., 1::2], turned[..., 0::2]), dim=-1).flatten(-2)
        else:
            crossed = torch.cat((-turned[..., width // 2 :], turned[..., : width // 2]), dim=-1)
        cos, sin = (angle.to(vectors)[..., None, :, :] for angle in (self.cos, self.sin))
        return torch.cat((turned * cos + crossed * sin, rest), dim=-1)


class QueryKey(NamedTuple):
    """What makes the logits of one attention of the hidden states before its norm."""

    query: tuple[Tensor, Tensor | None]
    """weight (H, d, k) and bias (H, k)"""
    key: tuple[Tensor, Tensor | None]
    """weight (G, d, k) and bias (G, k), where G divides H"""
    scale: float
    """what products of query and key are multiplied by"""
    causal: bool
    """a token sees those before it and itself only"""
    freeze: Callable[[Tensor], FrozenNorm | None] | None = None
    """gives the norm as it acts on whole states; None where there is none"""
    rotary: Rotary | None = None
    """the rotary embedding at the tokens' positions; None where there is none"""
    freeze_query: Callable[[Tensor], FrozenNorm | None] | None = None
    """gives the norm over the entries of whole queries (..., H, T, k), or None"""
    freeze_key: Callable[[Tensor], FrozenNorm | None] | None = None
    """the same for keys"""
    distance: Callable[[Tensor, Tensor], Tensor] | None = None
    """gives what is added to the logits (H, T, S) for positions (T,) and (S,), or None"""
    window: int | None = None
    """how many tokens a query sees, itself the last of them; None for all"""
    softcap: float | None = None
    """c where logits l become c tanh(l / c), else None"""

    def project(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of the parts of hidden states, and of the biases.

        Args:
            parts: (P, ..., T, d) that add up to the hidden states.

        Returns:
            (P + 1, ..., H, T, k) and (P + 1, ..., G, T, k); the last is the biases'.
        """
        norm = None if self.freeze is None else self.freeze(parts.sum(0))
        return (
            self._turned(project_parts(parts, *self.query, norm), self.freeze_query),
            self._turned(project_parts(parts, *self.key, norm), self.freeze_key),
        )

    def project_query(self, parts: Tensor) -> Tensor:
        """Queries alone, (P + 1, ..., H, T, k), as where keys are made of other states."""
        norm = None if self.freeze is None else self.freeze(parts.sum(0))
        return self._turned(project_parts(parts, *self.query, norm), self.freeze_query)

    def project_key(self, parts: Tensor) -> Tensor:
        """Keys alone, (P + 1, ..., G, T, k), of states that are not normed before."""
        return self._turned(project_parts(parts, *self.key), self.freeze_key)

    def _turned(
        self, projected: Tensor, freeze: Callable[[Tensor], FrozenNorm | None] | None
    ) -> Tensor:
        """After the norm over their own entries and the rotary embedding, where there are."""
        norm = None if freeze is None else freeze(projected.sum(0))
        if norm is not None:
            projected = norm.linear(projected)
            if norm.bias is not None:  # which depends on no state
                projected = torch.cat((projected[:-1], projected[-1:] + norm.bias.to(projected)))
        return projected if self.rotary is None else self.rotary.turn(projected)


def visible(
    length: int,
    keys: int | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    start: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """Which query looks at which key, where all are there: (T, S) bool.

    Args:
        length: T.
        keys: S, by default T.
        causal: at those before it and itself only.
        window: and of these at the last so many; where not causal at fewer than so many away.
        start: which key is the first query's own.
        device: of the result.

    Example:
        >>> visible(3, window=2).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 1, 1]], dtype=torch.int32)
    """
    seen = torch.ones(length, length if keys is None else keys, dtype=torch.bool, device=device)
    if causal:
        seen = seen.tril(start)
    if window is not None:
        seen = seen.triu(start + 1 - window)
        if not causal:
            seen = seen.tril(start + window - 1)
    return seen


class PublishedLogits(NamedTuple):
    """The split as the published code makes it; its parts do not add up to the total."""

    parts: Tensor
    """(2, 2, H, T, T) by query and key, of which each is pos or else"""
    total: Tensor
    """(H, T, T)"""


def freeze_norm(
    hidden: Tensor,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float,
    centred: bool = True,
) -> FrozenNorm:
    """The norm as it acts on these states.

    Args:
        hidden: (..., T, d) the whole states, not a part of them.
        gain: (d,) what the normed entries are multiplied by, in Gemma the weight plus one.
        bias: (d,) what is added at last.
        eps: epsilon.
        centred: True for LayerNorm, False for RMSNorm.

    Example:
        >>> hidden = torch.tensor([[1.0, 3.0]])
        >>> freeze_norm(hidden, eps=0.0).linear(hidden)
        tensor([[-1.,  1.]])
    """
    hidden = as_float(hidden)
    length = hidden.var(-1, correction=0) if centred else hidden.square().mean(-1)
    return FrozenNorm((length + eps).rsqrt(), gain, bias, centred)


def split_states(
    hidden: Tensor,
    mean: Tensor,
    pos: Tensor,
    ctx: Tensor | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """The four parts of hidden states; they add up to them.

    Args:
        hidden: (..., T, d).
        mean: (d,).
        pos: (T, d), or (..., T, d): of the position of each token.
        ctx: (..., d), a row for each context; by default the contexts' own mean of what mean and
            pos leave, which is their least-squares estimate.
        real: (..., T) which tokens that mean is over; by default all.

    Returns:
        (4, ..., T, d) mean, pos, ctx, resid, in the widest dtype of the arguments. NaN where pos
        is, at positions that were not seen.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> hidden = torch.tensor([[[1.0], [5.0]]])
        >>> parts = split_states(hidden, torch.tensor([2.0]), torch.tensor([[-1.0], [1.0]]))
        >>> parts.flatten(1)
        tensor([[ 2.,  2.],
                [-1.,  1.],
                [ 1.,  1.],
                [-1.,  1.]])
    """
    length, width = hidden.shape[-2:]
    if mean.shape != (width,) or pos.shape[-2:] != (length, width):
        raise ValueError(
            f"hidden states {tuple(hidden.shape)} need a mean of shape ({width},) and pos of shape "
            f"({length}, {width}), found {tuple(mean.shape)} and {tuple(pos.shape)}; take the rows "
            "of pos at the positions of the tokens"
        )
    for other in (mean, pos) if ctx is None else (mean, pos, ctx):
        hidden = hidden.to(torch.promote_types(hidden.dtype, other.dtype))
    hidden = as_float(hidden)
    left = hidden - mean - pos
    if ctx is None:
        if real is None:
            ctx = left.mean(-2)
        else:
            weight = real.to(left)[..., None]
            # Entries that are not real may hold anything, NaN too.
            kept = torch.where(real[..., None], left, torch.zeros_like(left))
            ctx = kept.sum(-2) / weight.sum(-2)
    elif ctx.shape != (*hidden.shape[:-2], width):
        raise ValueError(
            f"ctx: shape {(*hidden.shape[:-2], width)} is needed, a row for each context, found "
            f"{tuple(ctx.shape)}"
        )
    ctx = ctx[..., None, :]
    return torch.stack([part.expand_as(hidden) for part in (mean, pos, ctx, left - ctx)])


def project_parts(
    parts: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: FrozenNorm | None = None,
    rotary: Rotary | None = None,
) -> Tensor:
    """Queries or keys of the parts, and of what does not depend on the states.

    Args:
        parts: (P, ..., T, d), such as those of :func:`split_states`.
        weight: (H, d, k) of each head; of a single one, ``weight[None]``.
        bias: (H, k).
        norm: the norm before attention, or None where there is none.
        rotary: a rotary embedding, or None. It turns every part, also the last.

    Returns:
        (P + 1, ..., H, T, k), the last is the bias of the norm and the projection. Their sum is the
        model's own query or key.

    Raises:
        ValueError: shapes do not fit.
    """
    if weight.ndim != 3 or parts.ndim < 3 or weight.shape[1] != parts.shape[-1]:
        raise ValueError(
            "parts (P, ..., T, d) and weights (H, d, k) of the same d are needed, found "
            f"{tuple(parts.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[0], weight.shape[2]):
        raise ValueError(
            f"bias: shape {(weight.shape[0], weight.shape[2])} is needed, a row for each head, "
            f"found {tuple(bias.shape)}"
        )
    weight = weight.to(parts)
    constant = weight.new_zeros(weight.shape[0], weight.shape[2])
    if norm is not None:
        parts = norm.linear(parts)
        if norm.bias is not None:
            constant = constant + torch.einsum("d,hdk->hk", norm.bias.to(parts), weight)
    if bias is not None:
        constant = constant + bias.to(parts)
    projected = torch.einsum("...td,hdk->...htk", parts, weight)
    constant = constant[:, None, :].expand(projected.shape[1:])
    projected = torch.cat((projected, constant[None]))
    return projected if rotary is None else rotary.turn(projected)


def repeat_heads(key: Tensor, heads: int) -> Tensor:
    """The key head of each query head, where a group of query heads shares one.

    Args:
        key: (..., G, S, k).
        heads: H, of the query.

    Returns:
        (..., H, S, k); query head h has key head h // (H / G).

    Raises:
        ValueError: H is not a multiple of G.

    Example:
        >>> repeat_heads(torch.arange(2.0).view(2, 1, 1), 4).flatten()
        tensor([0., 0., 1., 1.])
    """
    groups = key.shape[-3]
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key heads equally")
    return key if groups == heads else key.repeat_interleave(heads // groups, dim=-3)


def query_key_logits(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Every part of the query with every part of the key: the split of the logits.

    It holds P times Q matrices of T by S: for one prompt. :func:`logit_sums` streams what is to be
    said of many.

    Args:
        query: (P, ..., H, T, k) of :func:`project_parts`.
        key: (Q, ..., G, S, k), where G divides H.
        scale: what the products are multiplied by, 1 / sqrt(k) by default.

    Returns:
        (P, Q, ..., H, T, S); their sum over the first two is the logits of the model, before its
        mask.

    Example:
        >>> parts = torch.randn(4, 6, 8)
        >>> weight, bias = torch.randn(2, 8, 4), torch.randn(2, 4)
        >>> query = project_parts(parts, weight, bias)
        >>> logits = query_key_logits(query, query)
        >>> whole = torch.einsum("td,hdk->htk", parts.sum(0), weight) + bias[:, None]
        >>> torch.allclose(logits.sum((0, 1)), whole @ whole.mT / 2, atol=1e-3)
        True
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    key = repeat_heads(key, query.shape[-3])
    return torch.einsum("p...tk,q...sk->pq...ts", query * scale, key)


def published_query_key_logits(
    hidden: Tensor,
    pos: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    query_bias: Tensor | None = None,
    key_bias: Tensor | None = None,
    *,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    scale: float | None = None,
    normed_twice: bool = False,
) -> PublishedLogits:
    """The split of Song & Zhong's code (arXiv 2310.04861), for comparison with its figures.

    There are two parts, pos and all else, the mean included. Each is sent through the LayerNorm on
    its own, which makes both as long as the whole state, and the biases count in both. So the four
    parts do not add up to the total, and say little about how large pos is in it.

    Args:
        hidden: (T, d) one prompt.
        pos: (T, d) of the same positions; the code leaves out position 0.
        query_weight: (H, d, k).
        key_weight: (H, d, k).
        query_bias: (H, k).
        key_bias: (H, k).
        gain: (d,) of the LayerNorm.
        bias: (d,) of the LayerNorm.
        eps: of the LayerNorm.
        scale: 1 / sqrt(k) by default.
        normed_twice: a slip of the code too: with keys of the second part, queries have gone
            through the LayerNorm twice.
    """
    width = hidden.shape[-1]
    parts = torch.stack((pos.to(hidden), hidden - pos.to(hidden), hidden))

    def norm(states: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(
            states,
            (width,),
            None if gain is None else gain.to(states),
            None if bias is None else bias.to(states),
            eps,
        )

    def project(states: Tensor, weight: Tensor, offset: Tensor | None) -> Tensor:
        projected = torch.einsum("ptd,hdk->phtk", states, weight.to(states))
        return projected if offset is None else projected + offset.to(states)[:, None]

    normed = norm(parts)
    query = project(normed, query_weight, query_bias)
    key = project(normed, key_weight, key_bias)
    logits = query_key_logits(query, key, scale)
    found = logits[:2, :2]
    if normed_twice:
        again = project(norm(normed[:2]), query_weight, query_bias)
        found = torch.stack((found[:, 0], query_key_logits(again, key[1:2], scale)[:, 0]), dim=1)
    return PublishedLogits(found, logits[2, 2])
