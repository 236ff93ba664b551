"""The tables of Song & Zhong as their code makes them, from a dump in NumPy, and from the stream.

Theirs (arXiv 2310.04861) keeps all hidden states of a model; the definitions are written out here.
Where it does something one would not do, a switch says so, and is set to what it does.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import geomhooks as gh
from geomhooks import functional
from tests.models import minilm, texts
from tests.published import published_screenot

TOLERANCE = 1e-4
CORPUS, LENGTH = 28, 48  # windows that give the mean and pos
TOPICS, EACH, SHORT = 4, 6, 24  # and those whose ctx are compared
FRESH = 8  # windows that the relative norm is taken of
LAYERS = range(7)


class Dump(NamedTuple):
    """Hidden states of all layers but for the first position, (layers, C, T, d)."""

    corpus: np.ndarray
    topics: np.ndarray
    fresh: np.ndarray


@cache
def windows() -> tuple[Tensor, Tensor, Tensor]:
    """Of the corpus, of each topic one after the other, and fresh ones; no special tokens."""
    tokenizer = minilm()[1]
    pages = sorted(texts(60, 40_000), key=lambda page: -len(page))
    ids = [tokenizer(p, add_special_tokens=False, verbose=False).input_ids for p in pages]
    stream = torch.tensor([i for page in ids[TOPICS:] for i in page])
    generator = torch.Generator().manual_seed(1234)
    starts = torch.randint(len(stream) - LENGTH, (CORPUS + FRESH, 1), generator=generator)
    drawn = stream[starts + torch.arange(LENGTH)]
    topics = []
    for page in ids[:TOPICS]:
        offsets = np.linspace(0, len(page) - SHORT, EACH).astype(int)
        topics += [page[at : at + SHORT] for at in offsets]
    return drawn[:CORPUS], torch.tensor(topics), drawn[CORPUS:]


@cache
@torch.no_grad()
def dump() -> Dump:
    model = minilm()[0]

    def states(ids: Tensor) -> np.ndarray:
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        return np.stack([h[:, 1:].double().numpy() for h in hidden])

    return Dump(*map(states, windows()))


def stream(ids: Tensor, labels: Tensor | None = None) -> Any:
    """The same windows, in batches, none kept."""
    model = minilm()[0]
    statistic = gh.PosCtx(positions=LENGTH, second_moment=True)
    with (
        torch.no_grad(),
        gh.watch(model, sites="blocks", statistics=[statistic], skip_positions=1) as watch,
    ):
        for first in range(0, len(ids), 10):
            part = slice(first, first + 10)
            with watch.tokens(groups=None if labels is None else labels[part]):
                model(input_ids=ids[part])
    return watch.geometry()


@pytest.fixture(scope="module")
def corpus() -> list[Any]:
    geometry = stream(windows()[0])
    return [geometry[site].pos_ctx for site in geometry.sites]


@pytest.fixture(scope="module")
def topics() -> list[Any]:
    labels = torch.arange(TOPICS).repeat_interleave(EACH)
    geometry = stream(windows()[1], labels)
    return [geometry[site].pos_ctx for site in geometry.sites]


def decompose(states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (d,), pos (T, d), ctx (C, d) of hidden states (C, T, d)."""
    means = states.mean(0)
    mean = means.mean(0)
    return mean, means - mean, states.mean(1) - mean


def published_relative_norm(
    fresh: np.ndarray, mean: np.ndarray, pos: np.ndarray, *, second_version: bool
) -> float:
    """pos, repeated for each of a few fresh windows, against their states put together of parts."""
    number = len(fresh)
    repeated = np.tile(pos, (number, 1))
    rest = (fresh - pos - mean).reshape(repeated.shape)
    whole = repeated + rest + mean
    if second_version:  # the first one leaves the mean in
        whole = whole - whole.mean(0)
    return float(np.linalg.norm(repeated, 2) / np.linalg.norm(whole, 2))


def published_similarity(
    ctx: np.ndarray, *, with_itself: bool = True, absolute: bool = True
) -> tuple[float, float]:
    """Mean cosine of ctx of two topics, and of one, by blocks of equal size."""
    unit = ctx / np.linalg.norm(ctx, axis=1, keepdims=True)
    cosine = unit @ unit.T
    blocks = (np.abs(cosine) if absolute else cosine).reshape(TOPICS, EACH, TOPICS, EACH)
    own = np.eye(TOPICS, dtype=bool)
    blocks = blocks.transpose(0, 2, 1, 3)
    counts = np.ones((EACH, EACH), bool) if with_itself else ~np.eye(EACH, dtype=bool)
    return float(blocks[~own].mean()), float(blocks[own][:, counts].mean())


def published_spectrum(pos: np.ndarray) -> np.ndarray:
    """Fourier transform (T, T) of the cosines of pos."""
    length = len(pos)
    unit = pos / np.linalg.norm(pos, axis=1, keepdims=True)
    t, k = np.arange(length)[:, None], np.arange(length)
    scale = np.where(k == 0, np.sqrt(1 / length), np.sqrt(2 / length))
    basis = scale * np.cos(np.pi * (2 * t + 1) * k / (2 * length))
    return basis.T @ (unit @ unit.T) @ basis


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_decomposition_and_its_ranks(corpus: list[Any], layer: int) -> None:
    found = corpus[layer]
    mean, pos, ctx = decompose(dump().corpus[layer])
    close(found.mean, mean)
    close(found.pos[1:], pos)
    close(found.ctx[found.context_id.argsort()], ctx)
    singular = np.linalg.svd(pos, compute_uv=False)
    close(found.stable_rank, (singular**2).sum() / singular[0] ** 2)
    rank, threshold = published_screenot(pos)
    assert int(found.rank) == rank == int((singular > threshold).sum())
    close(found.rank_threshold, threshold)
    close(found.explained_ratio, singular[:rank].sum() / singular.sum())


@pytest.mark.parametrize("layer", LAYERS)
def test_relative_norms(corpus: list[Any], layer: int) -> None:
    """Of a few fresh windows with pos of the corpus, and of the corpus itself from the stream."""
    found, whole = corpus[layer], dump()
    mean, pos, _ = decompose(whole.corpus[layer])
    fresh = torch.from_numpy(whole.fresh[layer])
    sample = functional.relative_norm_of_sample(fresh, found.pos[1:])
    for name, second in (("centred", True), ("uncentred", False)):
        published = published_relative_norm(whole.fresh[layer], mean, pos, second_version=second)
        close(getattr(sample, name), published)
        over_all = published_relative_norm(whole.corpus[layer], mean, pos, second_version=second)
        close(found.relative_norm[name], over_all)


@pytest.mark.parametrize("layer", LAYERS)
def test_similarity_of_topics(corpus: list[Any], topics: list[Any], layer: int) -> None:
    """Their ctx are about the mean of the corpus, over the positions that topics have."""
    found, whole = topics[layer], dump()
    means = whole.corpus[layer].mean(0)[: SHORT - 1]
    ctx = whole.topics[layer].mean(1) - means.mean(0)
    about = corpus[layer].position_mean[1:SHORT].mean(0)
    streamed = found.ctx + (found.mean - about)
    similar = functional.published_group_similarity(streamed, found.context_group)
    close(torch.stack(similar), published_similarity(ctx))
    similar = functional.group_similarity(streamed, found.context_group)
    close(torch.stack(similar), published_similarity(ctx, with_itself=False, absolute=False))
    own = decompose(whole.topics[layer])[2]
    fair = published_similarity(own, with_itself=False, absolute=False)
    close([found.similarity.inter, found.similarity.intra], fair)


@pytest.mark.parametrize("layer", LAYERS)
def test_spectrum_and_incoherence(corpus: list[Any], layer: int) -> None:
    found = corpus[layer]
    _, pos, ctx = decompose(dump().corpus[layer])
    spectrum = published_spectrum(pos)
    close(functional.dct_spectrum(functional.cosines(found.pos[1:])), spectrum)
    close(found.smoothness.low_frequency_share, np.trace(spectrum[:10, :10]) / len(pos))
    units = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (pos, ctx))
    left, right = units
    close(found.incoherence.mean, np.abs(left @ right.T).mean())
    close(found.incoherence.max, np.abs(left @ right.T).max())
