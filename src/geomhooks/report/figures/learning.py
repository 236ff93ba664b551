"""A dictionary that is learned: how much each of its factors is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geomhooks.errors import FigureError
from geomhooks.report.figures.found import numbers
from geomhooks.report.figures.layers import logarithmic
from geomhooks.report.theme import COLOURS, About, graph_objects, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["learned_factors"]


def learned_factors(geometry: Geometry) -> go.Figure:
    """The mean activation of the factors of a dictionary that is being learned, from the largest.

    Args:
        geometry: with ``factor_learning``, which is the whole model's.

    Raises:
        FigureError: the geometry has no ``factor_learning``.
        UnidentifiedError: nothing has been learned yet.

    Returns:
        A figure (dictionary after Z. Yun, Y. Chen, B. Olshausen, Y. LeCun, arXiv 2103.15949).

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import learned_factors
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> learning = gh.FactorLearning(size=6, penalty=0.05, batch=20, iterations=50)
        >>> with torch.no_grad(), gh.watch(model, "0", statistics=[learning]) as watch:
        ...     for _ in range(12):
        ...         _ = model(torch.randn(4, 6, 4))
        >>> learned_factors(watch.geometry()).data[0].y.shape
        (6,)
    """
    if "factor_learning" not in geometry.model:
        raise FigureError(
            "the figure shows factor_learning, which the geometry has not. Measure it with "
            "gh.watch(model, statistics=[gh.FactorLearning(size=F)])"
        )
    found = geometry.model.factor_learning
    activation = found.mean_activation
    order = activation.argsort(descending=True, stable=True)
    about = About(
        "How active each factor of the dictionary is on average, from the most active; factors "
        "that were in use in none of the last mini-batches are dead. A curve that falls off a "
        "cliff has more factors than the states need.",
        "Z. Yun, Y. Chen, B. Olshausen, Y. LeCun, arXiv 2103.15949; geomhooks.FactorLearning",
    )
    title = f"Factors that are learned: {float(found.l0):.3g} active at a state"
    title += f", {int(found.dead)} of {len(activation)} dead"
    figure = new_figure(title, "factor, from the most active", "mean activation", about)
    figure.add_trace(
        graph_objects().Scatter(
            x=list(range(1, len(order) + 1)),
            y=numbers(activation[order].clamp(min=0)),
            mode="lines+markers",
            marker={"size": 4},
            line={"color": COLOURS["state"]},
            name="mean activation",
            hovertext=[f"factor {factor}" for factor in order.tolist()],
            hovertemplate="%{hovertext}: %{y:.4g}<extra></extra>",
        )
    )
    positive = activation[activation > 0].tolist()
    if positive and max(positive) > 30 * min(positive):
        figure.update_yaxes(logarithmic(positive))
    return figure
