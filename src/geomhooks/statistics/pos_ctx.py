"""The decomposition h = mu + pos + ctx + resid of a site's hidden states."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator
from geomhooks.accumulators.contexts import Contexts
from geomhooks.accumulators.second_moment import SecondMoment
from geomhooks.accumulators.table import EMPTY
from geomhooks.accumulators.turns import Turns, check_fraction
from geomhooks.accumulators.two_way import TwoWay
from geomhooks.checks import check_flags, check_needed, check_positive
from geomhooks.errors import SiteError
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.functional.position.relative_norm import largest_eigenvalue
from geomhooks.functional.position.two_way import (
    singular_value_floor,
    variance_components,
)
from geomhooks.results import Lazy, Result, Unavailable
from geomhooks.statistics.base import LAWS, Reading, Site, Statistic
from geomhooks.statistics.pos_ctx_derived import DERIVED, MOMENTS, NO_GROUPS, derive, has_groups
from geomhooks.statistics.some_forwards import OF_A_SAMPLE

__all__ = ["PosCtx"]


class PosCtx(Statistic):
    r"""Position and context parts of hidden states, exact for any mask.

    The hidden state at position t of context c is fitted by least squares over all tokens,

    .. math:: h_{c,t} = \mu + pos_t + ctx_c + resid_{c,t}, \quad \sum_t pos_t = \sum_c ctx_c = 0,

    sums over the positions and contexts that occur. Where every context covers every position
    these are plain means: mu over all tokens, pos_t over contexts and ctx_c over positions, less
    mu (Song & Zhong, "Uncovering hidden geometry in transformers via disentangling position and
    context", arXiv 2310.04861).

    Args:
        contexts: how many contexts to keep, a uniform sample of all; means, shares and noise are
            over all contexts whatever is kept.
        positions: capacity T; by default the smaller of the model's maximum and 2048. Tokens
            beyond it are left out and counted. All statistics of a watch share one capacity.
        second_moment: also stream the (d, d) second moment, for ``covariance`` and
            ``resid_covariance``. Costs a matrix product, as :class:`geomhooks.Covariance` does,
            and with it no second one.
        open_contexts: how many contexts may be unfinished at once, and how many one forward of
            packed tokens may hold.
        max_bytes: refuse a configuration whose state at one site, or for one stream, would take
            more.
        second_moment_fraction: of the forwards whose second moment is taken, chosen as
            :class:`geomhooks.Covariance` does. All else is still over all tokens; ``covariance`` is
            over those of the forwards chosen, and there is no ``resid_covariance``: what is left of
            it once the parts of all tokens are taken out would be mostly how the sample happens to
            differ from them.

    Results, float64, over positions up to the last that occurs (NaN rows for those that do not):

    - ``mean`` (d,) mu; ``pos`` (T, d); ``ctx`` (C, d) of the contexts kept, with ``context_id``,
      ``context_length`` and ``context_group`` (C,), which is -1 where none was given.
    - ``position_mean`` (T, d), plain means over the tokens at each position; ``position_count``
      (T,); ``count``, ``contexts``, ``split_contexts``: tokens, contexts closed or open, and how
      many of those kept went on after they had been closed.
    - ``shares.pos``, ``.ctx``, ``.resid``: sums of squares of the three parts over all tokens,
      divided by their sum; NaN of a single token. ``cross_share``: twice the product of pos and ctx
      over the same sum; zero where every context covers every position.
    - ``components``: random-effects variance components (traces over d), free of the noise that
      finite samples add to the shares; ``corrected_shares``: the same, clipped at zero, as shares;
      ``noise_shares``: what noise alone is expected to add to the raw shares.
    - ``pos_standard_error`` (T,): root-mean-square length of the noise in pos_t;
      ``singular_value_floor``: the largest singular value of pos expected from noise alone, in the
      directions that it has with ``second_moment``, else as if it were equal in all, which is too
      low for real models.
    - ``covariance``, ``resid_covariance`` (d, d), with ``second_moment``, and ``covariance_count``,
      over how many tokens.
    - What is derived from these when it is read, of the positions that occur: ``singular_values``
      (p,) of pos; ``stable_rank``, how many directions pos uses, 1 for positions on a line, about 2
      on a circle; ``rank``, the estimate of ScreeNOT, with its ``rank_threshold``;
      ``rank_above_noise``, how many singular values are above ``singular_value_floor``;
      ``effective_rank``; ``explained_ratio``, of ``rank`` in the sum of the singular values.
      ``smoothness``: ``gram`` (T', T') of the cosines between the positions that occur, its
      ``spectrum`` (T', T') in the cosine basis, ``low_frequency_share`` of ten frequencies, and
      ``mean_difference`` and ``largest_difference``, squared, of the directions of successive
      positions. ``spiral``: the two leading components of pos, ``scores`` (T, 2), ``axes`` (2, d),
      ``shares`` (2,), their sum ``explained_share``, and how often the path winds around the
      origin, ``winding``. ``incoherence``: ``mean`` and ``max`` of |cos| between pos and the ctx
      kept, and what random directions would show, ``expected_mean`` and ``expected_max``.
      ``similarity``, where contexts came with more than one group label that is not negative, of
      those contexts: the mean cosine of ctx within, ``intra``, and between groups, ``inter``, and
      both in the published form, ``published_intra`` and ``published_inter``. ``clusters``, without
      labels, by k-means on the directions of ctx: ``labels`` (C,), ``centres`` (k, d) and
      ``silhouette``, which need ``pip install 'geomhooks[clusters]'`` when they are read.
      ``relative_norm``, with ``second_moment``: ``centred`` and ``uncentred``.
      :mod:`geomhooks.functional` has the formulas.
    - ``exact``: False where tokens were non-finite at this site, or a forward broke off before it,
      so that the plain means are given instead of the fit; and where contexts were split, which
      the fit takes for contexts of their own. At the sites that a forward reached before it broke
      off, its tokens stay counted.

    Raises:
        UnidentifiedError: on reading a result of the fit, where positions and contexts fall into
            groups that nothing connects; the message lists them.

    Example:
        >>> import torch, geomhooks as gh
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> with gh.watch(model, sites="0", statistics=[gh.PosCtx(positions=4)]) as watch:
        ...     _ = model(torch.randn(10, 4, 3))
        >>> shares = watch.geometry()["0"].pos_ctx.shares
        >>> round(float(shares.pos + shares.ctx + shares.resid), 6)
        1.0
    """

    def __init__(
        self,
        contexts: int = 4096,
        positions: int | None = None,
        second_moment: bool = False,
        open_contexts: int = 256,
        max_bytes: int = 1 << 31,
        second_moment_fraction: float = 1.0,
    ) -> None:
        check_positive(
            "PosCtx", contexts=contexts, positions=positions, open_contexts=open_contexts
        )
        check_needed("PosCtx", max_bytes=max_bytes)
        check_flags("PosCtx", second_moment=second_moment)
        self.contexts = contexts
        self.positions = positions
        self.second_moment = second_moment
        self.open_contexts = open_contexts
        self.max_bytes = max_bytes
        self.second_moment_fraction = check_fraction(
            second_moment_fraction, "PosCtx(second_moment_fraction"
        )
        self.laws = OF_A_SAMPLE if self._samples else LAWS

    needs: ClassVar[tuple[str, ...]] = ("shifted_squared_norm", "position_sum", "context_sum")

    @property
    def _samples(self) -> bool:
        """The second moment is that of some of the forwards."""
        return self.second_moment and self.second_moment_fraction < 1

    def shared(self, stream: TokenStream) -> dict[str, Accumulator]:
        """The contexts of the stream and the design of the fit."""
        contexts = Contexts(self.contexts, stream.positions, self.open_contexts)
        self._refuse_above_limit(
            [contexts], f"the token stream {stream.name!r}", "positions, then contexts"
        )
        turns: dict[str, Accumulator] = {Turns.NAME: Turns()} if self._samples else {}
        return {"contexts": contexts, **turns}

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """The sums of one site."""
        # Products of contexts' sums are for the covariance of residuals, which a sample has not.
        by_context = self.second_moment and not self._samples
        sums = TwoWay(site.width, site.positions, self.contexts, self.open_contexts, by_context)
        made: dict[str, Accumulator] = {"sums": sums}
        if self.second_moment:
            made["moment"] = SecondMoment(site.width)
        lower = (
            "contexts, open_contexts, or second_moment=False"
            if self.second_moment
            else ("contexts or open_contexts")
        )
        self._refuse_above_limit(made.values(), f"site {site.name!r} (d = {site.width})", lower)
        return made

    def _refuse_above_limit(self, state: Iterable[Accumulator], of: str, lower: str) -> None:
        nbytes = sum(accumulator.nbytes for accumulator in state)
        if nbytes > self.max_bytes:
            raise SiteError(
                f"the state of PosCtx for {of} would take {nbytes:,} bytes, more than "
                f"max_bytes={self.max_bytes:,}. Lower {lower}; or raise max_bytes."
            )

    def two_way(self, state: Mapping[str, Any]) -> TwoWay | None:
        """The sums, unless outer products of those of contexts are taken as well."""
        sums: TwoWay = state["sums"]
        return None if sums.second_moment else sums

    @property
    def has_products(self) -> bool:
        """With the second moment."""
        return self.second_moment

    def second_moment_target(
        self, state: Mapping[str, Any], plans: Mapping[str, Any]
    ) -> SecondMoment | None:
        """Have the site add its products to the state, in the forwards that are chosen."""
        if not self.second_moment or not Turns.choose(plans, self.second_moment_fraction):
            return None
        moment: SecondMoment = state["moment"]
        return moment

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add one forward."""
        sums: TwoWay = state["sums"]
        tokens, r = reading.tokens, reading.reductions
        assert r.context_sum is not None
        assert r.shifted_squared_norm is not None
        counts = sums.count(tokens, r.keep, r.shifted_squared_norm)
        if r.position_sum is not None:
            at = tokens.at if tokens.start is not None else slice(None)
            sums["position_sum"][at].add_(r.position_sum)
        sums.follow(reading.plans["contexts"], r.context_sum, counts)

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fit, say how much of it is noise, and what was not asked for."""
        found = self._results(state)
        missing = {"similarity": NO_GROUPS}
        if not self.second_moment:
            told = "it needs the second moment; give gh.PosCtx(second_moment=True)"
            missing |= dict.fromkeys((*MATRICES, *MOMENTS), told)
        return {n: Unavailable(told, by_choice=True) for n, told in missing.items()} | found

    def _results(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the data and the arguments allow."""
        contexts, fold = state["contexts"].closed()
        sums = state["sums"].clone()
        sums.close(fold)
        shift: Tensor = state["shift"]
        if not bool(sums["position_count"].any()):
            nothing = "no finite token has been counted at this site"
            moments = (*MATRICES, *MOMENTS) if self.second_moment else ()
            names = (*FITTED, *DERIVED, "position_mean", *moments)
            none = torch.zeros(0, dtype=torch.int64, device=shift.device)
            return {name: Unavailable(nothing) for name in names} | {
                **dict.fromkeys((*OF_CONTEXTS, "position_count"), none),
                "count": torch.tensor(0, device=shift.device),
                "contexts": contexts["closed"],
                "split_contexts": contexts["split"],
                # Tokens that the stream has had, and were all left out here.
                "exact": ~contexts["position_count"].any(),
            }
        length = int(sums["position_count"].nonzero().max()) + 1
        count = sums["position_count"][:length]
        tokens = count.sum()
        rows = (contexts.kept["key"] != EMPTY) & (sums["kept_count"] > 0)
        kept = contexts.kept["key"].masked_fill(~rows, EMPTY).argsort()[int((~rows).sum()) :]
        total = sums["position_sum"].sum(0)
        # A module that runs several times in one forward shows each of its tokens so many times.
        times = round(int(tokens) / max(1, int(contexts["position_count"].sum())))
        same = bool(torch.equal(sums["position_count"], times * contexts["position_count"]))
        split = int(contexts["split"])
        if split:
            warnings.warn(
                f"at least {split} contexts went on after they had been closed, and count as "
                f"several; raise open_contexts={self.open_contexts} of PosCtx above the number of "
                "contexts that are read in turns",
                stacklevel=2,
            )
        out: dict[str, Any] = {
            "position_mean": sums["position_sum"][:length] / count[:, None] + shift,
            "position_count": count,
            "context_id": contexts.kept["key"][kept],
            "context_length": sums["kept_count"][kept],
            "context_group": contexts.kept["group"][kept],
            "count": tokens,
            "contexts": contexts["closed"],
            "split_contexts": contexts["split"],
            "exact": torch.tensor(same and not split, device=shift.device),
        }
        moment: SecondMoment | None = state.get("moment")
        if same:
            outer = None if moment is None or self._samples else moment.outer
            fit = self._fit(sums, contexts, count, kept, total, times, outer)
        else:
            fit = self._plain_means(sums, contexts, count, kept, total)
        if isinstance(fit, str):
            lost = [*FITTED, *DERIVED, *(MOMENTS if self.second_moment else ())]
            lost += ["similarity"] if has_groups(out["context_group"]) else []
            out.update({name: Unavailable(fit) for name in lost})
        else:
            fit["mean"] = fit["mean"] + shift
            out.update(fit)
        if moment is not None:
            out |= self._second_moments(moment)
        if not isinstance(fit, str):
            out.update(derive(out, total / tokens + shift))
        if moment is not None and isinstance(out["covariance"], Unavailable):
            out |= dict.fromkeys(MOMENTS, out["covariance"])
        return out

    def _second_moments(self, moment: SecondMoment) -> dict[str, Any]:
        """The covariance, and why there is none of the residuals where it is of a sample."""
        out: dict[str, Any] = {"covariance_count": moment["count"]}
        some = f"second_moment_fraction={self.second_moment_fraction}"
        if int(moment["count"]):
            out["covariance"] = moment.covariance
        else:
            out["covariance"] = Unavailable(f"no token has been counted in the {some} of forwards")
        if self._samples:
            out["resid_covariance"] = Unavailable(
                f"it needs the products of all tokens, and only those of the {some} of forwards "
                "were taken; give second_moment_fraction=1",
                by_choice=True,
            )
        return out

    def _fit(
        self,
        sums: TwoWay,
        contexts: Contexts,
        count: Tensor,
        kept: Tensor,
        total: Tensor,
        times: int,
        outer: Tensor | None,
    ) -> dict[str, Any] | str:
        """The two-way fit about the shift; a text where it is not identified."""
        length = len(count)
        seen = count > 0
        design, groups = contexts.fit_design(length)
        if design is None:
            return unidentified(groups, seen.nonzero()[:, 0])
        design = design.repeated(times)
        number = contexts["closed"].to(torch.float64)
        tokens = count.sum()
        n_t = design.count
        r = sums["edges"].cumsum(0)[:length][seen]
        z = sums["position_sum"][:length][seen] - r
        a = design.inverse @ z
        cells = times * contexts.kept["cells"][kept][:, :length][:, seen].to(a.dtype)
        lengths = sums["kept_count"][kept][:, None]
        ctx = (sums["kept_sum"][kept].to(a.dtype) - cells @ a) / lengths
        averaged = contexts["averaged"].cumsum(0)[:length][seen]
        ctx_mean = (sums["context_mean"] / times - averaged @ a) / number
        a_mean = a.mean(0)
        pos = a - a_mean

        q, q_ctx = sums["square"], sums["context_square"] / times
        explained = (z * a).sum()
        ss_resid = (q - q_ctx - explained).clamp(min=0)
        gram_a = design.gram @ a
        ss_pos = (n_t[:, None] * pos.square()).sum()
        ss_ctx = (
            (q_ctx - 2 * (a * r).sum() + (a * gram_a).sum())
            - 2 * ctx_mean @ (total - n_t.to(a.dtype) @ a)
            + tokens * (ctx_mean @ ctx_mean)
        ).clamp(min=0)
        cross = 2 * (pos * (r - gram_a - n_t[:, None] * ctx_mean)).sum()
        plain = (sums["position_sum"][:length][seen].square() / n_t[:, None]).sum()
        components = variance_components(design, explained, q - ss_resid - plain, ss_resid)
        if tokens <= times:  # a single token has no spread, but what rounding makes of it
            ss_resid = ss_resid * float("nan")
        result = describe(ss_pos, ss_ctx, ss_resid, cross)
        noise_pos = components.resid * (n_t * design.inverse.diagonal()).sum()
        noise_ctx = components.resid * (number - 1)
        clipped = [c.clamp(min=0) for c in components]
        whole = ss_pos + ss_ctx + ss_resid
        result |= {
            "mean": a_mean + ctx_mean,
            "pos": scatter_rows(pos, seen),
            "ctx": ctx - ctx_mean,
            "components": Result(**components._asdict()),
            "corrected_shares": Result(
                **{n: c / sum(clipped) for n, c in zip(components._fields, clipped, strict=True)}
            ),
            "noise_shares": Result(pos=noise_pos / whole, ctx=noise_ctx / whole),
            "pos_standard_error": scatter_rows(
                (components.resid * design.inverse.diagonal()).clamp(min=0).sqrt(), seen
            ),
        }
        between = design.inverse_norm, pos.shape[1], design.inverse.diagonal().sum()
        strongest: Callable[[], Tensor | None] = cache(lambda: None)
        if outer is not None:
            left = (outer - sums["context_outer"] / times - a.T @ z) / tokens
            left = result["resid_covariance"] = (left + left.T) / 2
            # Of the noise of a token, whose trace is that of the residuals but for their freedom.
            strongest = cache(lambda: components.resid * largest_eigenvalue(left) / left.trace())
        result["singular_value_floor"] = Lazy(
            lambda: singular_value_floor(components.resid, *between, strongest())
        )
        return result

    def _plain_means(
        self, sums: TwoWay, contexts: Contexts, count: Tensor, kept: Tensor, total: Tensor
    ) -> dict[str, Any]:
        """Means over tokens where the design of the fit is not that of this site."""
        length = len(count)
        seen = count > 0
        n_t = count[seen][:, None]
        means = sums["position_sum"][:length][seen] / n_t
        mean = means.mean(0)
        pos = means - mean
        ctx = sums["kept_sum"][kept].to(mean.dtype) / sums["kept_count"][kept][:, None] - mean
        grand = total.square().sum() / count.sum()
        ss_pos = (n_t * means.square()).sum() - grand
        ss_ctx = (sums["context_square"] - grand).clamp(min=0)
        ss_resid = (sums["square"] - grand - ss_pos - ss_ctx).clamp(min=0)
        reason = (
            "this needs the exact fit, which is not to be had where tokens were non-finite at this "
            "site or a forward broke off before it; plain means are given (exact is False). "
            "Start anew with watch.reset()."
        )
        fitted = {name: Unavailable(reason) for name in FITTED}
        shares = describe(ss_pos, ss_ctx, ss_resid, torch.zeros_like(ss_pos))
        return (
            fitted
            | shares
            | {
                "mean": mean,
                "pos": scatter_rows(pos, seen),
                "ctx": ctx,
            }
        )


OF_CONTEXTS = ("context_id", "context_length", "context_group")
MATRICES = ("covariance", "resid_covariance")
FITTED = [
    "mean",
    "pos",
    "ctx",
    "shares",
    "cross_share",
    "components",
    "corrected_shares",
    "noise_shares",
    "pos_standard_error",
    "singular_value_floor",
]


def describe(pos: Tensor, ctx: Tensor, resid: Tensor, cross: Tensor) -> dict[str, Any]:
    """Shares of three sums of squares."""
    whole = pos + ctx + resid
    return {
        "shares": Result(pos=pos / whole, ctx=ctx / whole, resid=resid / whole),
        "cross_share": cross / whole,
    }


def scatter_rows(values: Tensor, seen: Tensor) -> Tensor:
    """Put rows back to the positions where they belong, NaN elsewhere."""
    out = values.new_full((len(seen), *values.shape[1:]), float("nan"))
    out[seen] = values
    return out


def unidentified(groups: list[list[int]], positions: Tensor) -> str:
    """Say which positions share no context with which."""
    names = []
    for group in groups[:4]:
        at = positions[group].tolist()
        span = at == list(range(at[0], at[-1] + 1))
        names.append(f"{at[0]}..{at[-1]}" if span and len(at) > 1 else ", ".join(map(str, at[:8])))
    more = f" and {len(groups) - 4} more" if len(groups) > 4 else ""
    return (
        f"the two-way fit is not identified: its positions fall into {len(groups)} groups that no "
        f"context connects ({' | '.join(names)}{more}), so a shift of one group's pos can be taken "
        "up by its ctx. position_mean is still given; measure contexts that cover both, or the "
        "groups one by one."
    )
