r"""Where the embeddings of words lie, and which of them a norm favours.

After R. Molina, "Traveling Words" (arXiv 2309.07315): embeddings against the sphere to which a
LayerNorm takes them, words by the length that the final norm's gain gives them and by the score
that its bias gives them. Rows are taken in blocks: no copy of all embeddings is made.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from geomhooks.functional.cosines import unit_rows
from geomhooks.functional.shapes import as_float, as_matrix
from geomhooks.functional.sphere.norm_geometry import standardise

__all__ = [
    "DistanceSummary",
    "SphereDistances",
    "WordScores",
    "sphere_distances",
    "word_scores",
]

BLOCK = 1024
"""rows of embeddings at a time"""


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
        [torch.linalg.vector_norm(as_float(b), dim=1) for b in torch.split(embeddings, block)]
    )
    real = lengths > 0
    words = int(real.sum())
    if words < 2:
        raise ValueError(f"embeddings: two rows that are not zero are needed, found {words}")
    wide = lengths.double() if lengths.device.type != "mps" else lengths
    mean_norm = wide[real].mean()
    scale = math.sqrt(width) / mean_norm
    sums = [as_float(b).to(wide.dtype).sum(0) for b in torch.split(embeddings, block)]
    mean = torch.stack(sums).sum(0) / words
    distances = []
    for rows, kept in zip(torch.split(embeddings, block), torch.split(real, block), strict=True):
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
    for rows in torch.split(embeddings, block):
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
