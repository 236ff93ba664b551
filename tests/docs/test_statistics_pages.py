"""Every number that a statistic hands out is on the page that says how to read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import geomhooks as gh
from geomhooks.results import Result
from geomhooks.statistics import REGISTRY
from tests.models import tiny_gpt2_lm

PAGES = Path(__file__).parents[2] / "docs" / "statistics"
# What the first page explains for all statistics, and the parts of a state.
COMMON = {"mean", "variance", "min", "max", "count", "at_position", "without_first"}
COMMON |= {"pos", "ctx", "resid", "bias", "even", "odd"}


def measured(name: str) -> set[str]:
    """Names of what one statistic, with all that it can be asked for, says of a small model."""
    model, ids = tiny_gpt2_lm(), torch.randint(50, (6, 12))
    first: dict[str, gh.Statistic] = {
        "pos_ctx": gh.PosCtx(second_moment=True),
        "covariance": gh.Covariance(),
        "group_means": gh.GroupMeans(names=("even", "odd")),
        "sphere": gh.Sphere(),
        "updates": gh.Updates(heads=True),
        "next_word": gh.NextWord(),
        "trajectories": gh.Trajectories(contexts=2),
        "components": gh.Components(split="head", subsets=True),
        "feed_forward_fit": gh.FeedForwardFit(),
        "factor_learning": gh.FactorLearning(size=8, penalty=0.05, waiting=16, batch=8),
        "factors": gh.Factors(torch.eye(16), penalty=0.05, top=3, coactivation="counts"),
        "leaders": gh.Leaders(),
    }
    sites = ["transformer.h.*", "transformer.ln_f"] if name == "sphere" else "blocks"

    def run(statistic: gh.Statistic) -> gh.Geometry:
        with torch.no_grad(), gh.watch(model, sites=sites, statistics=[statistic]) as watch:
            for _ in range(4):
                with watch.tokens(groups=torch.arange(6) % 2):
                    model(ids)
        return watch.geometry()

    chosen = first[name] if name in first else gh.Attention(run(first["pos_ctx"]))
    geometry = run(chosen)
    found = [geometry[site][name] for site in geometry.sites if name in geometry[site]]
    return {result for site in found or [geometry.model[name]] for result in names_in(site)}


def names_in(result: Result) -> Iterator[str]:
    for name, value in result._values.items():
        yield name
        if isinstance(value, Result):
            yield from names_in(value)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_result_is_explained(name: str) -> None:
    pages = [page.read_text() for page in PAGES.glob("*.md")]
    (page,) = [page for page in pages if f"`{REGISTRY[name].__name__}`\n" in page]
    explained = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", page)))) | COMMON
    # Pairs and sums are named by their parts: pos_ctx, input_attention.
    known = "|".join(sorted(explained, key=len, reverse=True))
    unknown = {n for n in measured(name) if not re.fullmatch(rf"(?:{known})(?:_(?:{known}))*", n)}
    assert unknown == set(), "they are on no page"
