"""Words on their way through a model that runs: the path of a sentence, and means over a text.

The published picture is that of one word of one sentence, which starts at itself and is said to end
near the next word. Beside it are angles that no projection has touched, how far every layer is for
the next word over a whole text, and what attention and feed-forward layers add to the states.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from word_lists import fenced, listed, shown
from word_probes import each, number

import geomhooks as gh
from geomhooks.anatomy import Anatomy, Words, word_rows
from geomhooks.errors import MissingExtraError
from geomhooks.functional import (
    nearest_rows,
    path_deviation,
    principal_geodesics,
    sphere_path,
    umap_projection,
)

__all__ = ["SENTENCE", "Drawing", "Journey", "drawings", "follow", "measure_text", "section"]

SENTENCE = "To kill two birds with one stone"
BATCH = 8
WORDS = 10_000  # that UMAP is fitted to, as many as published
NEXT_WORD = "pull", "next_cosine", "own_cosine"
UPDATES = "norm", "radial", "tangential", "radial_share", "step_angle"


class Journey(NamedTuple):
    """A sentence on its way, as the final norm sees the states of every layer."""

    states: Tensor
    """(L + 1, T, d) at the input of the first block and the output of every block"""
    ids: Tensor
    """(T,)"""
    words: list[str]
    """of the tokens"""
    sites: list[str]
    rows: Tensor
    """(V, d) what states are compared with for the next word"""
    nearest: list[list[str]]
    """of each layer, the words that the followed token is nearest to"""

    @property
    def followed(self) -> int:
        """The token whose path is looked at: the last but one, whose next word is known."""
        return len(self.words) - 2


class Drawing(NamedTuple):
    """A journey in three dimensions."""

    name: str
    """of the projection"""
    title: str
    axes: list[str]
    states: Tensor
    """(L + 1, T, 3)"""
    words: Tensor
    """(T, 3) the rows of the words themselves"""
    cloud: Tensor | None
    """(n, 3) of other words, or None"""
    tokens: list[str]
    followed: int


@torch.no_grad()
def follow(model: Any, tokenizer: Any, anatomy: Anatomy, k: int) -> tuple[dict[str, Any], Journey]:
    """Run the published sentence, without special tokens, and measure the ways of its words.

    Args:
        model: with its head.
        tokenizer: of the model.
        anatomy: of the model.
        k: words of a list.
    """
    ids = torch.tensor([tokenizer(SENTENCE, add_special_tokens=False).input_ids])
    length = ids.shape[1]
    statistics = [gh.Trajectories(contexts=1, tokens=length), gh.NextWord()]
    with gh.watch(model, statistics=statistics, positions=length) as watch:
        model(input_ids=ids.to(model.device), **without_cache(model))
    geometry = watch.geometry()
    states, rows = geometry.stack("trajectories.states")[:, 0], word_rows(anatomy, 0).unembedding
    texts, at = Words.of(tokenizer).texts, length - 2
    near = texts(nearest_rows(states[:, at], rows, k).indices)
    journey = Journey(states, ids[0], texts(ids[0]), geometry.sites, rows, near)
    logits = states[:, at] @ rows.T.to(states)
    ahead = (logits > logits[:, ids[0, at + 1], None]).sum(1)
    path, off = (found(states, centred=False) for found in (sphere_path, path_deviation))
    by_layer = {
        name: each(geometry.stack(f"next_word.{name}.at_position.mean")[:, at])
        for name in NEXT_WORD
    }
    found = {
        "text": SENTENCE,
        "tokens": journey.words,
        "length": each(path.length),
        "chord": each(path.chord),
        "tortuosity": each(path.tortuosity),
        "followed": journey.words[at],
        "next": journey.words[at + 1],
        "steps": each(path.steps[:, at]),
        "off_the_geodesic": each(off.angle[:, at]),
        **by_layer,
        "words_before_the_next": ahead.tolist(),
    }
    return found, journey


def section(journey: Journey, found: dict[str, Any]) -> str:
    """What the followed token is nearest to at each layer, as a section of a page."""
    at = journey.followed
    own, following = (shown(journey.words[place]) for place in (at, at + 1))
    lines = [
        f'## The path of "{own}" in "{SENTENCE}"',
        "",
        "Words nearest to the state of each layer, after the final norm, by dot product; before "
        f'them the cosine with "{own}" and with "{following}", and how many words are nearer than '
        f'"{following}".',
        "",
    ]
    return "\n".join([*lines, *fenced(by_layer(journey, found))])


def by_layer(journey: Journey, found: dict[str, Any]) -> Iterator[str]:
    """A line for each layer."""
    width = max(map(len, journey.sites))
    columns = (found[n] for n in ("own_cosine", "next_cosine", "words_before_the_next"))
    for site, own, following, ahead, near in zip(
        journey.sites, *columns, journey.nearest, strict=True
    ):
        yield f"{site:{width}s}{own:8.3f}{following:8.3f}{ahead:8d}  {listed(near)}"


def drawings(journey: Journey, umap: bool = True) -> list[Drawing]:
    """A journey by principal geodesics of its states and words, and by UMAP where it is there.

    Args:
        journey: the sentence's.
        umap: False to leave it out, as it takes minutes.
    """
    found = [by_principal_geodesics(journey)]
    if not umap:
        return found
    try:
        found.append(by_umap(journey))
    except MissingExtraError as error:
        print(f"no picture by UMAP: {error}")
    return found


def by_principal_geodesics(journey: Journey) -> Drawing:
    """In the directions along which the states and the rows of the words vary most."""
    words = journey.rows[journey.ids].to(journey.states)
    points = torch.cat((journey.states.flatten(0, 1), words))
    found = principal_geodesics(points, 3)
    axes = [f"component {n}, {float(s):.0%}" for n, s in enumerate(found.shares, 1)]
    placed = found.transform(journey.states), found.transform(words)
    title = "principal geodesics of the states of all layers and the rows of the words"
    return Drawing("pca", title, axes, *placed, None, journey.words, journey.followed)


def by_umap(journey: Journey) -> Drawing:
    """Among the directions of rows of the head.

    Published are rows as long as they are, the first ten thousand: of some tokenizers these are
    signs of no language, so that here they are taken at equal distances from all.
    """
    every = max(1, len(journey.rows) // WORDS)
    some = journey.rows[::every][:WORDS]
    found = umap_projection(some, 3)
    placed = found.transform(journey.states), found.transform(journey.rows[journey.ids])
    title = f"UMAP of the directions of {len(some)} rows, states placed among them"
    axes = [f"UMAP {n}" for n in (1, 2, 3)]
    return Drawing("umap", title, axes, *placed, found.embedding, journey.words, journey.followed)


@torch.no_grad()
def measure_text(model: Any, ids: Tensor) -> dict[str, Any]:
    """Over a text (C, T): the pull of the next word at each layer, and what sublayers add.

    All but the pull by position is without position 0, whose token often is an outlier.
    """
    length, told = ids.shape[1], without_cache(model)
    statistics = [gh.NextWord(), gh.Updates()]
    with gh.watch(model, sites="blocks", statistics=statistics, positions=length) as watch:
        for batch in ids.split(BATCH):
            model(input_ids=batch.to(model.device), **told)
    geometry = watch.geometry()
    layers, added = [], []
    for site in geometry.sites:
        found = geometry[site].next_word
        row: dict[str, Any] = {"site": site}
        for name in NEXT_WORD:
            row[name], row[f"{name}_deviation"] = of(found.without_first[name])
        by_position = [round(float(v), 2) for v in found.pull.at_position.mean]
        layers.append(row | {"pull_by_position": by_position})
        if "updates" not in geometry[site]:
            continue
        parts = geometry[site].updates.without_first
        for name in ("attention", "mlp"):
            if name in parts and "norm" in parts[name]:
                moments = {feature: of(parts[name][feature])[0] for feature in UPDATES}
                added.append({"site": site, "sublayer": name, **moments})
    return {"contexts": len(ids), "length": length, "next_word": layers, "updates": added}


def of(moments: Any) -> tuple[Any, Any]:
    """Mean and standard deviation, as a file has them."""
    return number(moments.mean), number(moments.variance.sqrt())


def without_cache(model: nn.Module) -> dict[str, bool]:
    """Causal models would keep what the next token needs."""
    return {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
