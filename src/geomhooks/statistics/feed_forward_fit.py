"""How linear the feed-forward layers of a model are on the states that they see."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator
from geomhooks.accumulators.second_moment import SecondMoment
from geomhooks.accumulators.turns import check_fraction
from geomhooks.checks import check_needed, check_positive
from geomhooks.errors import SiteError
from geomhooks.functional.components.linear_fit import LinearFit, linear_fit
from geomhooks.functional.shapes import as_float
from geomhooks.reductions.products import add_products
from geomhooks.results import Lazy, Unavailable
from geomhooks.statistics.base import LAWS, Reading, Site
from geomhooks.statistics.some_forwards import OF_A_SAMPLE, SomeForwards

__all__ = ["FeedForwardFit"]


class AboutZero(SecondMoment):
    """Sums of products of vectors that are none of the site's states, about no shift."""

    def rebase(self, delta: Tensor, followed: Any) -> None:
        """Nothing: the site's shift is not theirs."""


class FeedForwardFit(SomeForwards):
    r"""How much of what a feed-forward layer makes a linear map of what it reads would make.

    With x what goes into the layer, after the norm before it, and y what comes out, its last bias
    included, this is the R^2 of the least-squares fit y = A x + b over all tokens, as T. Mickus, D.
    Paperno, M. Constant, "How to Dissect a Muppet" (TACL 2022) measure it, but streamed
    (:func:`geomhooks.functional.linear_fit`): from the sums of x, y and all their products, which
    are taken and kept in float64.

    Taken at blocks of models that :mod:`geomhooks.anatomy` knows, with one feed-forward layer each.
    It costs a matrix product of 2 d columns, in float64.

    Args:
        fraction: of the forwards that are looked at, above 0 and at most 1, evenly chosen by
            number as :class:`geomhooks.Covariance` does.
        max_bytes: refuse a configuration whose state at one site would take more; it takes 32 d^2.
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

    Results, float64:

    - ``r_squared``, the mean over the entries of y of the share of their variance that the fit has;
      ``of_entries`` (d,) these shares; ``of_variance``, that of the variance of all together.
    - ``weight`` (d, d) A; ``rank`` of the covariance of x.
    - ``count`` n of tokens: with few more than d of them every fit is good, and says nothing.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.FeedForwardFit()]) as watch:
        ...     _ = model(torch.randint(10, (40, 6)))
        >>> bool(watch.geometry()["h.1"].feed_forward_fit.r_squared > 0.9)  # weights are small
        True
    """

    taps: ClassVar[tuple[str, ...]] = ("out", "in")
    uses: tuple[str, ...] = ("additions",)

    def __init__(
        self, fraction: float = 1.0, max_bytes: int = 1 << 31, positions: int | None = None
    ) -> None:
        self.fraction = check_fraction(fraction, "FeedForwardFit(fraction")
        check_needed("FeedForwardFit", max_bytes=max_bytes)
        check_positive("FeedForwardFit", positions=positions)
        self.max_bytes = max_bytes
        self.positions = positions
        self.laws = LAWS if fraction == 1 else OF_A_SAMPLE

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Sums of x and y side by side, and of their products.

        Raises:
            SiteError: the state would be too large, or the block has not one feed-forward layer.
        """
        if "mlp" not in site.sublayers or "mlp_2" in site.sublayers:
            raise SiteError(
                f"FeedForwardFit is of a block's feed-forward layer, and {site.name!r} has "
                f"{', '.join(site.sublayers) or 'nothing that is known'}; watch other blocks"
            )
        moment = AboutZero(2 * site.width)
        if moment.nbytes > self.max_bytes:
            raise SiteError(
                f"the state of FeedForwardFit for site {site.name!r} (d = {site.width}) would take "
                f"{moment.nbytes:,} bytes, more than max_bytes={self.max_bytes:,}. Watch fewer "
                "sites, or raise max_bytes."
            )
        return {"moment": moment}

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add one forward."""
        from geomhooks.anatomy.rebuilding import normed

        for addition in reading.additions:
            if addition.name == "mlp":
                read = normed(as_float(addition.read), addition.sublayer.part.norm)
                both = torch.cat([read, as_float(addition.raw)], -1)
                both = both.to(state["moment"]["outer"].dtype)
                keep = reading.reductions.keep & torch.isfinite(both.sum(-1))
                add_products([state["moment"]], both, keep, torch.zeros_like(both[0, 0]))

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fit."""
        moment: SecondMoment = state["moment"]
        count = moment["count"]
        if int(count) < 2:
            reason = Unavailable(f"a fit needs more tokens than the {int(count)} counted here")
            return dict.fromkeys(LinearFit._fields, reason) | {"count": count}
        fit = cache(lambda: linear_fit(moment.covariance, state["site"].width))

        def field(name: str, scalar: bool) -> Lazy:
            return Lazy(lambda: getattr(fit(), name), scalar=scalar)

        scalars = ("r_squared", "of_variance", "rank")
        return {n: field(n, n in scalars) for n in LinearFit._fields} | {"count": count}
