"""Geometries to be drawn: of a small GPT-2 with all statistics, and of sites with hostile names."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import geomhooks as gh

SCRIPT = "<script>taken=1</script><img src=x onerror=taken=1>"
LAYERS, HEADS, WIDTH, LENGTH, CONTEXTS, VOCABULARY = 3, 2, 16, 12, 10, 20


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_positions=LENGTH, vocab_size=VOCABULARY
    )
    return GPT2LMHeadModel(config).eval()


@cache
def model_and_texts() -> tuple[GPT2LMHeadModel, torch.Tensor]:
    model = gpt2()
    return model, torch.randint(VOCABULARY, (CONTEXTS, LENGTH))


@cache
def everything() -> gh.Geometry:
    """All statistics of one pass."""
    model, texts = model_and_texts()
    statistics = [
        gh.PosCtx(),
        gh.Sphere(),
        gh.Updates(),
        gh.NextWord(),
        gh.Trajectories(contexts=2),
        gh.Components(),
    ]
    ids = torch.arange(CONTEXTS)
    with (
        torch.no_grad(),
        gh.watch(model, statistics=statistics) as watch,
        watch.tokens(groups=ids % 2, contexts=ids),
    ):
        model(texts)
    return watch.geometry()


@cache
def attention() -> gh.Geometry:
    """The second pass."""
    model, texts = model_and_texts()
    with torch.no_grad(), gh.watch(model, statistics=[gh.Attention(everything())]) as watch:
        model(texts)
    return watch.geometry()


@cache
def history() -> gh.History:
    """Three steps of a model whose states grow."""
    model = nn.Sequential(nn.Identity())
    kept = gh.History(snapshots="all")
    torch.manual_seed(0)
    with gh.watch(model, sites="0", statistics=[gh.PosCtx(), gh.Sphere()]) as watch:
        for step in (0, 10, 20):
            model(torch.randn(6, 5, 4) * (1 + step))
            kept.append(step, watch.geometry())
            watch.reset()
    return kept


@cache
def hostile() -> gh.Geometry:
    """Sites whose names are markup that would run."""
    model = nn.Sequential()
    for number in range(2):
        model.add_module(f"{number}{SCRIPT}", nn.Linear(6, 6))
    torch.manual_seed(0)
    with (
        torch.no_grad(),
        gh.watch(model, sites="*", statistics=[gh.PosCtx(), gh.Sphere()]) as watch,
    ):
        model(torch.randn(8, 7, 6))
    return watch.geometry()
