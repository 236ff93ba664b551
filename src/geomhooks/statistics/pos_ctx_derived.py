"""What follows from pos and ctx alone, computed when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError
from geomhooks.functional.cosines import cosines
from geomhooks.functional.position.clusters import (
    Clusters,
    find_clusters,
    group_similarity,
    published_group_similarity,
)
from geomhooks.functional.position.incoherence import Incoherence, expected_incoherence, incoherence
from geomhooks.functional.position.relative_norm import relative_norm
from geomhooks.functional.position.smoothness import (
    dct_spectrum,
    finite_differences,
    low_frequency_share,
)
from geomhooks.functional.position.spiral import (
    PrincipalComponents,
    principal_components,
    winding_number,
)
from geomhooks.functional.rank import effective_rank, explained_ratio, rank_above, stable_rank
from geomhooks.functional.screenot import screenot
from geomhooks.results import Lazy, Result, Unavailable

__all__ = ["DERIVED", "MOMENTS", "NO_GROUPS", "derive", "has_groups"]

DERIVED = (
    "singular_values",
    "stable_rank",
    "rank",
    "rank_threshold",
    "rank_above_noise",
    "effective_rank",
    "explained_ratio",
    "smoothness",
    "spiral",
    "incoherence",
    "clusters",
)
MOMENTS = ("relative_norm",)
NO_GROUPS = (
    "it needs contexts with two different labels or more that are not negative; give them, "
    "watch.tokens(groups=labels) with an integer for each row"
)


def derive(fitted: Mapping[str, Any], token_mean: Tensor) -> dict[str, Any]:
    """Ranks, smoothness, spiral, incoherence; similarity and relative norm where there is cause.

    Args:
        fitted: ``pos`` (T, d), whose rows of positions that do not occur are left out here, ``ctx``
            (C, d), ``position_count`` (T,), ``context_group`` (C,), ``singular_value_floor``, a
            Lazy, and perhaps ``covariance``.
        token_mean: (d,) mean of all tokens.
    """
    seen = fitted["position_count"] > 0
    pos, ctx, group = fitted["pos"][seen], fitted["ctx"], fitted["context_group"]
    derived = ranks(pos, fitted["singular_value_floor"])
    gram = Lazy(partial(cosines, pos), scalar=False)
    derived["smoothness"] = Result(
        gram=gram,
        spectrum=Lazy(lambda: dct_spectrum(gram.value), scalar=False),
        low_frequency_share=Lazy(partial(low_frequency_share, pos)),
        mean_difference=Lazy(lambda: steps(pos).mean()),
        largest_difference=Lazy(lambda: steps(pos).max()),
    )
    derived["spiral"] = spiral(pos, seen)
    derived["incoherence"] = against_chance(pos, ctx)
    labelled = group >= 0
    some, labels = ctx[labelled], group[labelled]
    if has_groups(group):
        similar = Lazy(partial(group_similarity, some, labels))
        published = Lazy(partial(published_group_similarity, some, labels))
        derived["similarity"] = Result(
            inter=part(similar, "inter"),
            intra=part(similar, "intra"),
            published_inter=part(published, "inter"),
            published_intra=part(published, "intra"),
        )
    derived["clusters"] = clusters(ctx)
    if isinstance(fitted.get("covariance"), Tensor):
        count = fitted["position_count"][seen]
        norm = Lazy(partial(relative_norm, pos, fitted["covariance"], token_mean, count))
        derived["relative_norm"] = Result(
            centred=part(norm, "centred"), uncentred=part(norm, "uncentred")
        )
    return derived


def has_groups(group: Tensor) -> bool:
    """Two different labels or more, of those (C,) that are not negative."""
    labels = group[group >= 0]
    return bool((labels != labels[:1]).any())


def clusters(ctx: Tensor) -> Result:
    """Groups of contexts without labels; neither scalars nor a pickle wait for k-means."""

    @cache
    def find() -> Clusters | Unavailable:
        try:
            return find_clusters(ctx)
        except (MissingExtraError, ValueError) as error:  # as for a context or two
            return Unavailable(str(error))

    def one(name: str) -> Lazy:
        def get() -> Any:
            found = find()
            return found if isinstance(found, Unavailable) else getattr(found, name)

        return Lazy(get, scalar=False, pickled=False)

    return Result(**{name: one(name) for name in ("labels", "centres", "silhouette")})


def part(whole: Lazy, name: str) -> Lazy:
    """One of several numbers that are computed together."""
    return Lazy(lambda: getattr(whole.value, name))


def ranks(pos: Tensor, floor: Lazy | Unavailable) -> dict[str, Any]:
    """How many directions pos uses, in several senses."""
    values = Lazy(partial(fast_singular_values, pos))
    estimate = Lazy(lambda: screenot(values.value, shape=(pos.shape[0], pos.shape[1])))
    return {
        "singular_values": values,
        "stable_rank": Lazy(lambda: stable_rank(values.value)),
        "rank": part(estimate, "rank"),
        "rank_threshold": part(estimate, "threshold"),
        "rank_above_noise": floor
        if isinstance(floor, Unavailable)
        else Lazy(lambda: rank_above(values.value, floor.value)),
        "effective_rank": Lazy(lambda: effective_rank(values.value)),
        "explained_ratio": Lazy(lambda: explained_ratio(values.value, estimate.value.rank)),
    }


def fast_singular_values(vectors: Tensor) -> Tensor:
    """By way of the Gram matrix: right to 1e-8 of the largest, several times as fast."""
    rows, columns = vectors.shape
    gram = vectors @ vectors.T if rows <= columns else vectors.T @ vectors
    if not bool(torch.isfinite(gram).all()):
        return gram.new_full((len(gram),), float("nan"))
    values: Tensor = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)
    return values


def steps(pos: Tensor) -> Tensor:
    """Squared steps of the directions; NaN where there is no step."""
    return finite_differences(pos) if len(pos) > 1 else pos.new_full((1,), float("nan"))


def spiral(pos: Tensor, seen: Tensor) -> Result:
    """The path of pos in the plane of its leading components."""
    components = Lazy(lambda: principal_components(pos, min(2, *pos.shape)))

    def scores() -> Tensor:
        found: PrincipalComponents = components.value
        table = pos.new_full((len(seen), found.scores.shape[1]), float("nan"))
        table[seen] = found.scores
        return table

    def winding() -> Tensor:
        path: Tensor = components.value.scores
        return winding_number(path).abs() if path.shape[1] == 2 else path.new_full((), float("nan"))

    return Result(
        scores=Lazy(scores),
        axes=part(components, "axes"),
        shares=part(components, "shares"),
        explained_share=Lazy(lambda: components.value.shares.sum()),
        winding=Lazy(winding),
    )


def against_chance(pos: Tensor, ctx: Tensor) -> Result:
    """Incoherence of pos and ctx; a single position or context has no direction but rounding's."""

    def measure() -> Incoherence:
        if len(pos) > 1 and len(ctx) > 1:
            return incoherence(pos, ctx)
        nan = pos.new_full((), float("nan"))
        return Incoherence(nan, nan)

    def chance() -> Incoherence:
        return expected_incoherence(pos.shape[1], max(1, len(pos) * len(ctx)))

    found, expected = Lazy(measure), Lazy(chance)
    return Result(
        mean=part(found, "mean"),
        max=part(found, "max"),
        expected_mean=part(expected, "mean"),
        expected_max=part(expected, "max"),
    )
