r"""Where the embeddings of words lie, and which words are near a vector.

After R. Molina, "Traveling Words" (arXiv 2309.07315): embeddings against the sphere to which a
LayerNorm takes them, words by the length that the final norm's gain gives them and by the score
that its bias gives them, and the words that a direction of the residual stream is about. Rows are
taken in blocks: no matrix of all words by all words, or copy of all embeddings, is made.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geomhooks.functional.cosines import unit_rows
from geomhooks.functional.norm_geometry import standardise
from geomhooks.functional.shapes import as_float, as_matrix

__all__ = [
    "DistanceSummary",
    "Metric",
    "Nearest",
    "SphereDistances",
    "WordScores",
    "align_signs",
    "nearest_rows",
    "sphere_distances",
    "word_scores",
]

Metric = Literal["dot", "cosine"]

BLOCK = 8192
"""rows of embeddings at a time"""
VECTORS = 1024
"""vectors that are compared with them at a time"""


class DistanceSummary(NamedTuple):
    """Distances of embeddings to their own points on the sphere."""

    l2_mean: Tensor
    """() mean over the words"""
    l2_std: Tensor
    """() unbiased, over the words"""
    cosine_mean: Tensor
    """() of 1 - cosine"""
    cosine_std: Tensor
    """()"""


class SphereDistances(NamedTuple):
    """The rows of the published table, and what they were made with."""

    original: DistanceSummary
    """of e"""
    centred: DistanceSummary
    """of e less the mean over all words, which is not the mean of its own entries that a norm
    subtracts"""
    scaled: DistanceSummary
    """of e times ``scale``"""
    centred_and_scaled: DistanceSummary
    """of e less the mean over all words, times ``scale``"""
    mean_norm: Tensor
    """() mean of |e|"""
    scale: Tensor
    """() sqrt(d) / mean_norm"""
    words: int
    """rows that are counted: those that are not zero"""


class WordScores(NamedTuple):
    """Scores by which words are ranked; the first, second, fourth and fifth are the published."""

    norm: Tensor
    """(V,) |e|"""
    scaled_norm: Tensor
    """(V,) |gain * e|"""
    bias: Tensor
    """(V,) shift . e: the part of the word's logit that no state changes"""
    norm_and_bias: Tensor
    """(V,) |e| + shift . e"""
    scaled_norm_and_bias: Tensor
    """(V,) |gain * e| + shift . e"""
    largest_logit: Tensor
    """(V,) the largest logit that any state can give the word"""


class Nearest(NamedTuple):
    """Rows nearest to vectors, the nearest first."""

    indices: Tensor
    """(n, k) int64"""
    scores: Tensor
    """(n, k) dot products or cosines"""


def sphere_distances(
    embeddings: Tensor, *, eps: float = 1e-5, centred: bool = True, block: int = BLOCK
) -> SphereDistances:
    r"""Distances of embeddings to the points of the sphere where a norm without affine puts them.

    The target of a row e is :math:`\sqrt d\, e_c / |e_c|`, e_c being e less the mean of its entries
    (but for epsilon). Four variants of the row are compared with it, as in Molina's table: as it
    is, centred, scaled so that the mean length is sqrt(d), and both.

    Args:
        embeddings: (V, d), at least two rows that are not zero; rows of zeros, as for padding, have
            no point on the sphere and are left out.
        eps: of the norm; the published code's is 1e-5.
        centred: LayerNorm, or RMSNorm if False.
        block: rows that are looked at together.

    Raises:
        ValueError: no matrix, or too few rows.

    Example:
        >>> found = sphere_distances(torch.tensor([[2.0, -2.0], [-3.0, 3.0]]), eps=0.0)
        >>> found.original.l2_mean, found.original.l2_std
        (tensor(2.1213), tensor(1.))
        >>> found.scaled.l2_mean, found.original.cosine_mean.abs() < 1e-6
        (tensor(0.2828), tensor(True))
    """
    width = as_matrix(embeddings[:1], "embeddings", "(V, d)").shape[1]
    lengths = torch.cat(
        [torch.linalg.vector_norm(as_float(b), dim=1) for b in embeddings.split(block)]
    )
    real = lengths > 0
    words = int(real.sum())
    if words < 2:
        raise ValueError(f"embeddings: two rows that are not zero are needed, found {words}")
    wide = lengths.double() if lengths.device.type != "mps" else lengths
    mean_norm = wide[real].mean()
    scale = math.sqrt(width) / mean_norm
    sums = [as_float(b).to(wide.dtype).sum(0) for b in embeddings.split(block)]
    mean = torch.stack(sums).sum(0) / words
    distances = []
    for rows, kept in zip(embeddings.split(block), real.split(block), strict=True):
        if not bool(kept.any()):
            continue
        original = as_float(rows[kept])
        target = standardise(original, eps, centred=centred)
        about, factor = original - mean.to(original), scale.to(original)
        variants = torch.stack((original, about, factor * original, factor * about))
        # |u - v|^2 / 2 is 1 - cosine, with all its digits where that is small.
        apart = unit_rows(variants.flatten(0, 1)).view_as(variants) - unit_rows(target)
        l2 = torch.linalg.vector_norm(variants - target, dim=-1)
        distances.append(torch.stack((l2, apart.square().sum(-1) / 2), 1))
    every = torch.cat(distances, -1).to(wide.dtype)
    moments = torch.stack((every.mean(-1), every.std(-1)), -1).flatten(1).to(lengths.dtype)
    summaries = [DistanceSummary(*variant) for variant in moments]
    return SphereDistances(
        summaries[0],
        summaries[1],
        summaries[2],
        summaries[3],
        mean_norm.to(lengths.dtype),
        scale.to(lengths.dtype),
        words,
    )


def word_scores(
    embeddings: Tensor,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    centred: bool = True,
    block: int = BLOCK,
) -> WordScores:
    r"""How the final norm favours words: by length under its gain, and by its bias.

    Logits are :math:`\hat x \cdot (\gamma \circ e) + \beta \cdot e` with :math:`\hat x` on the
    sphere of radius sqrt(d), so that the largest is
    :math:`\sqrt d\, |(\gamma \circ e)_c| + \beta \cdot e`, c for centring (LayerNorm only). The
    published sums add the bias to the length without the sqrt(d), which gives the bias sqrt(d)
    times the weight that it has in logits; they are here to compare with.

    Args:
        embeddings: (V, d) rows e of the unembedding.
        gain: (d,) gamma of the final norm, None for ones.
        shift: (d,) beta, None for zero.
        centred: LayerNorm, or RMSNorm if False.
        block: rows that are looked at together.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> words = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> scores = word_scores(words, torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0]))
        >>> scores.norm, scores.scaled_norm, scores.norm_and_bias
        (tensor([5., 1.]), tensor([3., 0.]), tensor([1., 0.]))
    """
    width = as_matrix(embeddings[:1], "embeddings", "(V, d)").shape[1]
    for name, given in (("gain", gain), ("shift", shift)):
        if given is not None and given.shape != (width,):
            raise ValueError(f"{name}: shape ({width},) is needed, found {tuple(given.shape)}")
    parts = []
    for rows in embeddings.split(block):
        own = as_float(rows)
        scaled = own if gain is None else own * gain.to(own)
        bias = own.new_zeros(len(own)) if shift is None else own @ shift.to(own)
        reach = scaled - scaled.mean(1, keepdim=True) if centred else scaled
        parts.append((*(torch.linalg.vector_norm(m, dim=1) for m in (own, scaled, reach)), bias))
    norm, scaled_norm, reached, bias = (torch.cat(p) for p in zip(*parts, strict=True))
    return WordScores(
        norm,
        scaled_norm,
        bias,
        norm + bias,
        scaled_norm + bias,
        math.sqrt(width) * reached + bias,
    )


def nearest_rows(
    vectors: Tensor, rows: Tensor, k: int = 5, *, metric: Metric = "dot", block: int = BLOCK
) -> Nearest:
    """The k rows with the largest dot products with vectors, or the largest cosines.

    Among rows with the same score any may come first. Rows with an entry that is not a number, and
    by cosine rows of zeros, come last with a score of minus infinity.

    Args:
        vectors: (n, d).
        rows: (V, d), such as embeddings.
        k: at most V.
        metric: "dot" or "cosine".
        block: rows that are looked at together.

    Raises:
        ValueError: shapes do not fit, or k, metric or block is out of range.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]])
        >>> nearest_rows(torch.tensor([[2.0, 1.0]]), rows, 2).indices
        tensor([[2, 1]])
        >>> nearest_rows(torch.tensor([[2.0, 1.0]]), rows, 2, metric="cosine").indices
        tensor([[2, 0]])
    """
    vectors, rows = check_neighbours(vectors, rows)
    if not 1 <= k <= len(rows) or block < 1:
        raise ValueError(
            f"k={k} and block={block}: from 1 to the {len(rows)} rows there are, and at least 1"
        )
    if metric not in get_args(Metric):
        raise ValueError(f"metric {metric!r}: 'dot' or 'cosine' is needed")
    found = []
    for some in vectors.split(VECTORS):
        if metric == "cosine":
            some = some / torch.linalg.vector_norm(some, dim=1, keepdim=True)
        best = some.new_empty(len(some), 0)
        places = torch.empty(len(some), 0, dtype=torch.int64, device=some.device)
        for number, part in enumerate(rows.split(block)):
            part = part.to(some)
            if metric == "cosine":
                part = part / torch.linalg.vector_norm(part, dim=1, keepdim=True)
            # NaN would come before every number.
            scores = (some @ part.T).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
            top = scores.topk(min(k, len(part)))
            best = torch.cat((best, top.values), 1)
            places = torch.cat((places, top.indices + number * block), 1)
            keep = best.topk(min(k, best.shape[1]))
            best, places = keep.values, places.gather(1, keep.indices)
        found.append((places, best))
    indices, scores = (torch.cat(p) for p in zip(*found, strict=True))
    return Nearest(indices, scores)


def align_signs(vectors: Tensor, rows: Tensor, *, block: int = BLOCK) -> Tensor:
    """Signs (n,) of 1 or -1 with which the largest dot product of each vector with rows is largest.

    The sign of a pair of singular vectors is arbitrary; Molina's code takes for both the one with
    which the right vector comes nearest to a word. Of equal ones it is 1.

    Args:
        vectors: (n, d).
        rows: (V, d).
        block: rows that are looked at together.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> align_signs(torch.eye(2), torch.tensor([[1.0, -3.0], [2.0, 1.0]]))
        tensor([ 1., -1.])
    """
    vectors, rows = check_neighbours(vectors, rows)
    signs = []
    for some in vectors.split(VECTORS):
        above, below = some.new_full((2, len(some)), -math.inf)
        for part in rows.split(block):
            products = some @ part.to(some).T
            above = torch.maximum(above, products.amax(1))
            below = torch.maximum(below, -products.amin(1))
        signs.append(torch.where(above >= below, 1.0, -1.0).to(some))
    return torch.cat(signs)


def check_neighbours(vectors: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors in float32 at least, and the rows as they are.

    Raises:
        ValueError: they are no matrices of the same width.
    """
    vectors = as_matrix(vectors, "vectors", "(n, d)")
    if rows.ndim != 2 or not rows.numel() or rows.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"rows: shape (V, {vectors.shape[1]}) is needed for vectors {tuple(vectors.shape)}, "
            f"found {tuple(rows.shape)}"
        )
    return vectors.to(torch.promote_types(vectors.dtype, rows.dtype)), rows
