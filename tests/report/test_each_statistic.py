"""Whatever is measured alone has figures and a table on its page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest
import torch

import geomhooks as gh
from geomhooks import statistics
from geomhooks.cli.table import table
from geomhooks.report import figures, report_page
from geomhooks.report.columns import columns_of
from geomhooks.statistics.base import Statistic
from tests.report.geometries import CONTEXTS, WIDTH, everything, model_and_texts

Alone = tuple[Callable[[], gh.Statistic], set[str], str]
ALONE: Mapping[str, Alone] = {
    "PosCtx": (gh.PosCtx, {"variance_shares", "position_spiral"}, "pos"),
    "Covariance": (gh.Covariance, {"covariance_spectrum"}, "effective rank"),
    "GroupMeans": (
        lambda: gh.GroupMeans(names=("even", "odd")),
        {"group_shares", "group_distances"},
        "between groups",
    ),
    "Sphere": (gh.Sphere, {"length_by_layer", "step_angles"}, "norm without position 0"),
    "Updates": (
        gh.Updates,
        {"updates_by_layer", "radial_share_by_layer", "step_angles"},
        "attention&#39;s radial share",
    ),
    "NextWord": (gh.NextWord, {"next_word_pull"}, "pull"),
    "Trajectories": (gh.Trajectories, {"word_paths"}, "count"),
    "Components": (gh.Components, {"component_importance"}, "importance of attention"),
    "Factors": (
        lambda: gh.Factors(torch.eye(WIDTH), penalty=0.05, top=3, window=2),
        {"factor_importance"},
        "active factors",
    ),
    "FactorLearning": (
        lambda: gh.FactorLearning(size=6, penalty=0.05, batch=20, iterations=50),
        {"learned_factors"},
        "factor_learning/l0",
    ),
    "FeedForwardFit": (gh.FeedForwardFit, {"linearity_by_layer"}, "R² of feed-forward"),
    "Attention": (
        lambda: gh.Attention(everything()),
        {"query_key_shares"},
        "mean shares pos pos",
    ),
    "Leaders": (gh.Leaders, {"leaders_by_layer", "leading_words"}, "leaders a head"),
}


def alone(name: str) -> gh.Geometry:
    model, texts = model_and_texts()
    ids = torch.arange(CONTEXTS)
    with (
        torch.no_grad(),
        gh.watch(model, statistics=[ALONE[name][0]()]) as watch,
        watch.tokens(groups=ids % 2, contexts=ids),
    ):
        for _ in range(14 if name == "FactorLearning" else 1):  # which waits until it has enough
            model(texts)
    return watch.geometry()


def test_none_is_forgotten() -> None:
    kinds = {name: getattr(statistics, name) for name in statistics.__all__}
    every = {n for n, k in kinds.items() if isinstance(k, type) and issubclass(k, Statistic)}
    assert every - {"Statistic"} == set(ALONE)


@pytest.mark.parametrize("name", ALONE)
def test_one_statistic_alone_has_figures_and_a_table(name: str) -> None:
    geometry = alone(name)
    _, expected, column = ALONE[name]
    page = report_page(geometry, words=lambda token: f"w{token}")
    assert expected <= set(re.findall(r'class="figure" data-name="([^"]*)"', page))
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page)
    assert column in cells
    assert len(re.findall(r'<td data-value="(?!nan)', page)) >= (1 if name == "Trajectories" else 3)
    # The terminal shows the same numbers.
    shown = {name for c in columns_of(geometry) if c.brief for name in [c.brief]}
    assert shown == {str(c.header) for c in table(geometry).columns} - {"site"}


def test_figures_hold_the_numbers() -> None:
    spectrum = alone("Covariance")
    for site, trace in zip(
        spectrum.sites, figures.covariance_spectrum(spectrum).data[1:], strict=True
    ):
        values = torch.linalg.eigvalsh(spectrum[site].covariance.covariance).flip(0)
        expected = (values / values.sum())[: WIDTH - 1]
        torch.testing.assert_close(torch.tensor(trace.y)[: WIDTH - 1], expected)

    groups = alone("GroupMeans")
    even, odd = (groups["transformer.h.1"].group_means.mean[g] for g in (0, 1))
    noise = float(groups["transformer.h.1"].group_means.distance_noise[0, 1])
    heat = figures.group_distances(groups).data[groups.sites.index("transformer.h.1")]
    assert heat.x == ("even", "odd")
    assert heat.z[0][1] ** 2 == pytest.approx(
        max(0.0, float((even - odd).square().sum()) - noise), rel=1e-6
    )
    between, chance = figures.group_shares(groups).data
    assert list(between.y) == groups.stack("group_means.between_share").tolist()
    assert list(chance.y) == groups.stack("group_means.between_noise_share").tolist()

    updates = alone("Updates")
    for of in ("norm", "radial", "tangential", "radial_share"):
        attention, mlp = figures.updates_by_layer(updates, of).data
        for name, trace in {"attention": attention, "mlp": mlp}.items():
            means = updates.stack(f"updates.without_first.{name}.{of}.mean")
            torch.testing.assert_close(torch.tensor(trace.y), means.double())
    assert [t.name for t in figures.step_angles(updates).data] == ["attention", "feed-forward"]

    fit = alone("FeedForwardFit")
    assert list(figures.linearity_by_layer(fit).data[0].y) == pytest.approx(
        fit.stack("feed_forward_fit.r_squared").tolist()
    )
    leaders = alone("Leaders")
    first = figures.leading_words(leaders, lambda token: f"w{token}", most=3).data[0]
    words = leaders[str(first.name)].leaders.without_first.words
    assert list(first.y) == [f"w{token}" for token in words.ids[:3].tolist()]
    assert list(first.x) == words.counts[:3].tolist()
