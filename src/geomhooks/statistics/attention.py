"""The logits of attention, split by the parts of the hidden states that meet in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count, Sum
from geomhooks.accumulators.turns import check_fraction
from geomhooks.checks import check_positive
from geomhooks.errors import SiteError
from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.attention.logit_shares import (
    LogitShares,
    LogitSums,
    key_only_share,
    logit_shares,
    logit_sums,
)
from geomhooks.functional.attention.query_key import QUERY_KEY_PARTS
from geomhooks.functional.shapes import as_float
from geomhooks.reductions.plain import sum_by_context
from geomhooks.results import Lazy, Result, Unavailable
from geomhooks.statistics.base import LAWS, Reading, Site
from geomhooks.statistics.looked_at import continued, looked_at
from geomhooks.statistics.some_forwards import OF_A_SAMPLE, SomeForwards

if TYPE_CHECKING:
    from geomhooks.snapshot import Geometry

__all__ = ["Attention"]

PARTS = len(QUERY_KEY_PARTS)
DERIVED = ("shares", "alone", "cross", "variance", "covariance")


class Attention(SomeForwards):
    r"""Of the variance of attention's logits, the share of each pair of parts, in each head.

    With the norm's scale at each token held fixed, a query is a sum of five vectors, those of the
    mean, of pos, of ctx and of resid of the hidden state, and that of the biases; so is a key, and
    a logit is the sum of 25 products L_ab, biases and rotary embedding included; a bias of the
    distance between tokens counts with the product of the biases, and a cap on logits with none.
    Then

    .. math:: \mathrm{Var}(L) = \sum_{ab} \mathrm{Cov}(L_{ab}, L)

    exactly (:mod:`geomhooks.functional.attention.query_key` has the split, and
    :mod:`geomhooks.functional.attention.logit_shares` the sums). The published split, whose parts
    do not add up, is :func:`geomhooks.functional.published_query_key_logits` (J. Song, Y. Zhong,
    "Uncovering hidden geometry in Transformers via disentangling position and context", arXiv
    2310.04861).

    What pos is has to be known before a logit can be split by it. So this is a second pass: first a
    watch with :class:`geomhooks.PosCtx` over a text, then one with its geometry over the same text
    or another. ctx of a context is the mean of what mean and pos leave of its tokens in a forward.
    Logits are made of the block's input, whatever way the model computes its attention; they are
    those of tokens in one row, one context and one forward. A forward that goes on with a cache has
    keys that are not at hand, so its tokens are left out; contexts cut into several forwards are as
    many contexts.

    Taken at blocks (``sites="blocks"``) of models that :mod:`geomhooks.anatomy` knows, of
    encoder-decoders at those of both, where it is of the self-attention. torch's own layers get
    their masks with each call, and a call whose mask is another than
    :func:`geomhooks.anatomy.torch_family` says is refused. All 25 parts of all logits are made, a
    few million at a time: several times the cost of the forward, which ``fraction`` brings down.

    Args:
        geometry: with ``pos_ctx`` at the blocks of this model. A file knows it by its digest, a
            text, with which a statistic can be read and merged but looks at no forward.
        fraction: of the forwards that are looked at, above 0 and at most 1, evenly chosen by
            number as :class:`geomhooks.Covariance` does.
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

    Results, float64, over H query heads and the 5 parts mean, pos, ctx, resid and bias, of the
    query before those of the key. All are of the variance over the keys that a query looks at,
    which is what softmax sees, averaged over all logits:

    - ``shares`` (H, 5, 5), which sum to one, where a term may be negative; ``alone`` (H, 5, 5), the
      variance of one part over that of the logits; ``cross`` (H,), what ``alone`` leaves.
    - ``variance`` (H,) of the logits, and ``covariance`` (H, 5, 5, 5, 5) of the parts.
    - ``key_only`` (H,), the share of what asks the key alone: the variance of the sum of the four
      parts L_ba of the query's biases b and a = mean, pos, ctx, resid of the key, over that of the
      logits (:func:`geomhooks.functional.key_only_share`). The biases of a query are those of its
      projection and the norm's shift projected, so that this term is the same for every query;
      with a rotary embedding, for every query at the same distance; and where queries are normed
      (Qwen 3), but for the scale of each.
    - ``mean_shares``: ``shares`` averaged over the heads, a number for each pair, as ``pos_ctx``
      for pos of the query and ctx of the key.
    - ``all_logits``: the first five about one mean of all logits instead of each query's own.
    - ``pairs``: how many logits of a head; ``left_out``: real tokens in none, as their pos is not
      known, their state is not finite, or the forward went on with a cache.

    Raises:
        ValueError: an argument is not what it has to be.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=10)
        >>> model, texts = GPT2Model(config).eval(), torch.randint(10, (20, 16))
        >>> with gh.watch(model, statistics=[gh.PosCtx()]) as watch:
        ...     _ = model(texts)
        >>> with gh.watch(model, statistics=[gh.Attention(watch.geometry())]) as second:
        ...     _ = model(texts)
        >>> found = second.geometry()["h.1"].attention
        >>> found.shares.shape, found.shares.sum((1, 2)).round(decimals=6).tolist()
        (torch.Size([2, 5, 5]), [1.0, 1.0])
    """

    taps: ClassVar[tuple[str, ...]] = ("in",)
    uses: tuple[str, ...] = ("query_key",)

    def __init__(
        self, geometry: Geometry | str, fraction: float = 1.0, positions: int | None = None
    ) -> None:
        check_positive("Attention", positions=positions)
        self.fraction = check_fraction(fraction, "Attention(fraction")
        self.positions = positions
        self.laws = (LAWS if fraction == 1 else OF_A_SAMPLE) - {"generation"}
        self._known: dict[str, tuple[Tensor, Tensor]] | None = None
        self.measured_on = getattr(geometry, "measured_on", None)
        if isinstance(geometry, str):
            self.geometry = geometry
        elif hasattr(geometry, "sites"):  # what a geometry is stands above what statistics are
            self._known = mean_and_pos(geometry)
            self.geometry = digest(self._known)
        else:
            raise ValueError(
                f"Attention(geometry={type(geometry).__name__}): a geometry with pos_ctx is "
                "needed, such as that of a watch with gh.PosCtx() over the same model"
            )
        self._there: dict[tuple[str, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Sums over logits of their 25 parts and the products of these.

        Raises:
            SiteError: the geometry lacks pos where the block's hidden states come in.
        """
        if self._known is not None:
            self._check(site)
        number = PARTS * PARTS
        return {
            "pairs": Count(),
            "within": Sum((site.heads, number, number)),
            "total": Sum((site.heads, number)),
            "between": Sum((site.heads, number, number)),
            "left_out": Count(),
        }

    def _check(self, site: Site) -> None:
        assert self._known is not None
        found = self._known.get(site.source)
        if found is None:
            raise SiteError(
                f"Attention at {site.name!r} needs pos_ctx at {site.source!r}, where its hidden "
                f"states come in; the geometry has it at {', '.join(self._known)}. Measure it with "
                'watch(model, sites="blocks", statistics=[gh.PosCtx()])'
            )
        if len(found[0]) != site.width:
            raise SiteError(
                f"Attention at {site.name!r}: hidden states are of width {site.width}, and those "
                f"of the geometry of width {len(found[0])}; it is of another model"
            )

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add the logits of one forward.

        Raises:
            SiteError: the statistic was made of the digest of a geometry alone.
        """
        if self._known is None:
            raise SiteError(
                f"Attention at {reading.site.name!r} knows its geometry by its digest alone; give "
                "the geometry, gh.Attention(geometry), to look at forwards"
            )
        weights = reading.query_key
        assert weights is not None
        tokens, hidden = reading.tokens, as_float(reading.taps["in"])
        mean, pos = self._at(reading.site.source, hidden)
        own = pos[tokens.positions.clamp(max=len(pos) - 1)]
        known = tokens.real & (tokens.positions < len(pos)) & ~continued(tokens)
        known = known & torch.isfinite(own).all(-1) & torch.isfinite(hidden).all(-1)
        parts = split_known(hidden, mean, own, known, tokens)
        allowed = looked_at(tokens, known, weights.causal, weights.window)
        allowed = allowed & known[:, None, :, None]
        columns = torch.arange(tokens.length, device=hidden.device)
        constant = None if weights.distance is None else weights.distance(columns, columns)
        found = logit_sums(*weights.project(parts), allowed, weights.scale, constant=constant).over(
            0
        )
        state["pairs"].value.add_(found.pairs[0].to(torch.int64))
        for name in ("within", "total", "between"):
            state[name].value.add_(getattr(found, name))
        state["left_out"].value.add_((tokens.real & ~known).sum())

    def _at(self, source: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (d,) and pos (T, d) on the device of the hidden states."""
        assert self._known is not None
        key = source, like.device, like.dtype
        if key not in self._there:
            mean, pos = self._known[source]
            self._there[key] = mean.to(like), pos.to(like)
        return self._there[key]

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Shares of variance."""
        pairs, within = state["pairs"].value, state["within"].value
        counted = {"pairs": pairs, "left_out": state["left_out"].value}
        if not int(pairs):
            reason = Unavailable(
                f"no logit has been counted at this site; {int(state['left_out'].value)} real "
                "tokens were left out"
            )
            names = (*DERIVED, "key_only", "mean_shares", "all_logits")
            return dict.fromkeys(names, reason) | counted
        sums = LogitSums(
            pairs.double().expand(len(within)),
            within,
            state["total"].value,
            state["between"].value,
            (PARTS, PARTS),
        )
        shares = cache(lambda: logit_shares(sums))
        mean_shares = cache(lambda: shares().shares.mean(0))

        def of_pair(query: int, key: int) -> Lazy:
            return Lazy(lambda: mean_shares()[query, key])

        pairs_of_parts = {
            f"{query}_{key}": of_pair(q, k)
            for q, query in enumerate(QUERY_KEY_PARTS)
            for k, key in enumerate(QUERY_KEY_PARTS)
        }
        over_all = lazily(cache(lambda: logit_shares(sums, within=False)))
        return (
            lazily(shares)
            | {"key_only": Lazy(lambda: key_only_share(shares()), scalar=False)}
            | {"mean_shares": Result(**pairs_of_parts), "all_logits": Result(**over_all)}
            | counted
        )


def lazily(shares: Any) -> dict[str, Any]:
    """The fields of what is computed when one of them is first read."""

    def field(name: str) -> Lazy:
        return Lazy(lambda: getattr(shares(), name), scalar=False)

    assert set(DERIVED) == set(LogitShares._fields)
    return {name: field(name) for name in DERIVED}


def split_known(hidden: Tensor, mean: Tensor, pos: Tensor, known: Tensor, tokens: Tokens) -> Tensor:
    """The parts (4, B, T, d) mean, pos, ctx and resid of hidden states; zero where not known.

    Args:
        hidden: (B, T, d).
        mean: (d,).
        pos: (B, T, d) of each token's position.
        known: (B, T) bool, the tokens that are split; others may hold anything.
        tokens: whose contexts they are in.
    """
    where = known[..., None]
    left = torch.where(where, hidden - mean - pos, 0.0)
    # Memory for contexts that have no token is divided by one.
    number = tokens.count_by_context(known).clamp(min=1)
    by_context = (sum_by_context(left, tokens) / number[:, None]).to(left)
    if tokens.segments is not None:
        ctx = torch.nn.functional.pad(by_context, (0, 0, 0, 1))[tokens.segments]
    else:
        ctx = (by_context if tokens.rows is None else by_context[tokens.rows])[:, None]
    ctx = torch.where(where, ctx, 0.0)
    return torch.stack(
        [torch.where(where, mean, 0.0), torch.where(where, pos, 0.0), ctx, left - ctx]
    )


def mean_and_pos(geometry: Geometry) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean (d,) and pos (T, d) at the sites that have them.

    Raises:
        ValueError: none has.
    """
    sites = [name for name in geometry.sites if "pos_ctx" in geometry[name]]
    if not sites:
        raise ValueError(
            "Attention(geometry): no site of the geometry has pos_ctx; measure it with "
            'watch(model, sites="blocks", statistics=[gh.PosCtx()])'
        )
    return {name: (geometry[name].pos_ctx.mean, geometry[name].pos_ctx.pos) for name in sites}


def digest(known: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """What tells two geometries apart in a file: a hash of what logits are split by."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensors in sorted(known.items()):
        found.update(name.encode())
        for tensor in tensors:
            found.update(tensor.cpu().contiguous().numpy().tobytes())
    return f"blake2b:{found.hexdigest()}"
