"""What learned factors stand for: by layer, by the tokens they are at, and by senses of words."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from corpora import occurrences
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.functional import (
    LEVELS,
    FactorContext,
    SparseCoder,
    factor_contexts,
    importance_levels,
    sense_scores,
    sense_separation,
    token_counts,
    token_entropy,
)
from geomhooks.measuring import FactorActivations

__all__ = ["candidates", "contexts_of", "count", "layer_of", "markdown", "senses", "summary"]

BOUNDS = 0.5, 0.7  # of depth, which sort the published curves as they are
SHOWN = 8  # contexts of a factor that a person looks at
AROUND = 4  # tokens on each side of the one that a factor is at
TRIED = 10  # factors that a word's senses are tried by, chosen on the half for training
MOST = 300  # occurrences of a word


def count(
    model: nn.Module, sites: list[str], read: Tensor, coder: SparseCoder, rows: int
) -> tuple[gh.Geometry, float]:
    """Factors at every site, and the seconds that a million states took."""
    statistic = gh.Factors(encoder=coder, top=50, window=AROUND, one_per_text=True)
    start = time.process_time()
    with torch.no_grad(), gh.watch(model, sites=sites, statistics=[statistic]) as watch:
        for batch in read.split(rows):
            model(input_ids=batch)
    seconds = time.process_time() - start
    return watch.geometry(), seconds / (read.numel() * len(sites)) * 1e6


def summary(geometry: gh.Geometry) -> dict[str, Any]:
    """Numbers of each layer, and how factors are spread over depth."""
    importance = geometry.stack("factors.importance").T.float()
    found = importance_levels(importance, bounds=BOUNDS)
    layers = {}
    for site in geometry.sites:
        one = geometry[site].factors
        entropy = token_entropy(one.top.token_id)
        used = one.firing_rate > 0
        layers[site] = {
            "snr": digits(one.snr),
            "l0": digits(one.l0),
            "inactive": int(one.inactive),
            "entropy": {
                name: digits(entropy[used & (found.level == level)].nanmean())
                for level, name in enumerate(LEVELS)
            },
        }
    names = found.names()
    return {
        "bounds": BOUNDS,
        "levels": {name: names.count(name) for name in (*LEVELS, "none")},
        "layers": layers,
    }


def candidates(geometry: gh.Geometry, tokenizer: Any, number: int) -> list[str]:
    """Factors of each level with their contexts, the most important first, for a person to read."""
    importance = geometry.stack("factors.importance").T
    names = importance_levels(importance.float(), bounds=BOUNDS).names()
    order = importance.max(1).values.argsort(descending=True).tolist()
    lines = []
    for level in LEVELS:
        for factor in [factor for factor in order if names[factor] == level][:number]:
            site = geometry.sites[int(importance[factor].argmax())]
            curve = " ".join(f"{value:.2f}" for value in importance[factor].tolist())
            lines.append(f"factor {factor}, {level}, importance {curve}; at {site}:")
            lines += [f"    {text}" for text in contexts_of(geometry, tokenizer, factor, SHOWN)]
    return lines


def contexts_of(geometry: gh.Geometry, tokenizer: Any, factor: int, number: int) -> list[str]:
    """Where a factor is most active, at the layer where it is most important."""
    importance = geometry.stack("factors.importance").T
    top = geometry[geometry.sites[int(importance[factor].argmax())]].factors.top
    return [shown(each, tokenizer) for each in factor_contexts(top, factor)[:number]]


def shown(context: FactorContext, tokenizer: Any) -> str:
    """A few words with the token between marks."""
    before, token, after = (
        tokenizer.decode(ids).strip() for ids in (context.before, [context.token], context.after)
    )
    return " ".join(f"{before} «{token}» {after}".split())


def markdown(
    title: str, geometry: gh.Geometry, tokenizer: Any, names: Mapping[str, str]
) -> list[str]:
    """Factors that a person has named, with their curves and some contexts."""
    importance = geometry.stack("factors.importance").T
    levels = importance_levels(importance.float(), bounds=BOUNDS)
    lines = [f"# Factors of {title}", "", f"Layers: {', '.join(geometry.sites)}.", ""]
    for number, name in names.items():
        factor = int(number)
        top = geometry[geometry.sites[int(importance[factor].argmax())]].factors.top
        words = token_counts(top.token_id[factor])[:5]
        often = ", ".join(f"{tokenizer.decode([i]).strip()} {times}" for i, times in words)
        curve = ", ".join(f"{value:.2f}" for value in importance[factor].tolist())
        lines += [
            f"## {factor}: {name}",
            "",
            f"{levels.names()[factor]}, depth {float(levels.depth[factor]):.2f}; importance "
            f"{curve}; tokens of its best {len(top.token_id[factor])}: {often}",
            "",
            *(f"- {text}" for text in contexts_of(geometry, tokenizer, factor, 5)),
            "",
        ]
    return lines


def layer_of(site: str) -> int:
    """Which of the model's hidden states a site's are."""
    return 0 if site.endswith("@in") else int(site.rpartition(".")[2]) + 1


def senses(
    model: nn.Module,
    tokenizer: Any,
    sites: list[str],
    coder: SparseCoder,
    folder: Path,
    words: Sequence[str],
) -> list[dict[str, Any]]:
    """How well one factor tells the verb from other words of the same letters, at every layer.

    Half of the occurrences choose the factor and its threshold, the other half are scored.
    """
    rows = []
    for word in words:
        some = occurrences(folder, word)
        generator = torch.Generator().manual_seed(0)
        some = [some[i] for i in torch.randperm(len(some), generator=generator)[:MOST]]
        verb = torch.tensor([one.tag.startswith("vb") for one in some])
        train = torch.arange(len(some)) % 2 == 0
        always = float(2 * verb[~train].sum() / (verb[~train].sum() + (~train).sum()))
        states = states_of(model, tokenizer, sites, coder, some)
        for site, hidden in states.items():
            codes = coder(hidden)
            fitted = {}
            for factor in likely(codes[train], verb[train]):
                one = sense_separation(codes[:, factor], verb, train=train)
                said = codes[train, factor] >= one.threshold
                fitted[sense_scores(said, verb[train]).f1, factor] = one
            (_, factor), best = max(fitted.items(), key=lambda item: item[0])
            scores = best.by_threshold
            rows.append(
                {
                    "word": word,
                    "site": site,
                    "occurrences": len(some),
                    "verbs": digits(verb.double().mean()),
                    "factor": factor,
                    "precision": digits(scores.precision),
                    "recall": digits(scores.recall),
                    "f1": digits(scores.f1),
                    "f1_logistic": digits(best.by_logistic.f1),
                    "f1_of_always": digits(always),
                }
            )
    return rows


def states_of(
    model: nn.Module, tokenizer: Any, sites: list[str], coder: SparseCoder, some: Sequence[Any]
) -> dict[str, Tensor]:
    """The state (N, d) of the marked word of each sentence, at every site."""
    marker = FactorActivations(model, coder, sites[0], tokenizer)
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    limit = model.config.max_position_embeddings
    for one in some:
        marked = marker.mark(one.words, one.place)
        first = max(0, marked.position + 1 - limit)
        with torch.no_grad():
            ids = marked.ids[first : first + limit]
            out = model(input_ids=ids[None], output_hidden_states=True).hidden_states
        for site in sites:
            found[site].append(out[layer_of(site)][0, marked.position - first])
    return {site: torch.stack(rows) for site, rows in found.items()}


def likely(codes: Tensor, verb: Tensor) -> list[int]:
    """Factors whose activations differ most between the senses, in units of their spread."""
    apart = codes[verb].mean(0) - codes[~verb].mean(0)
    return (apart / (codes.std(0) + 1e-6)).topk(TRIED).indices.tolist()


def digits(value: Tensor | float) -> float:
    """Four digits."""
    return float(f"{float(value):.4g}")
