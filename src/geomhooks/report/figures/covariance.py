"""How the variance of hidden states is spread over directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from geomhooks.report.figures.found import find, numbers
from geomhooks.report.figures.layers import add_slider, logarithmic
from geomhooks.report.theme import COLOURS, About, faded, graph_objects, label, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.snapshot import Geometry

__all__ = ["covariance_spectrum"]

SMALLEST = 1e-8  # share of the variance that is still drawn; less is rounding


def covariance_spectrum(geometry: Geometry) -> go.Figure:
    """The eigenvalues of the covariance, as shares of their sum, from the largest.

    A slider goes through the sites; the others stand behind it in grey (spectra of hidden states
    after K. Ethayarajh, arXiv 1909.00512, who has the share of the first alone).

    Args:
        geometry: with ``covariance``.

    Raises:
        FigureError: the geometry has no ``covariance``.
        UnidentifiedError: no token was counted.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.report.figures import covariance_spectrum
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Covariance()]) as watch:
        ...     _ = model(torch.randn(5, 6, 4))
        >>> behind, *traces = covariance_spectrum(watch.geometry()).data
        >>> [(trace.name, trace.y.shape) for trace in traces]
        [('0@in', (4,)), ('0', (4,)), ('1', (4,))]
    """
    scatter = graph_objects().Scatter
    traces: dict[str, list[Any]] = {}
    titles = {}
    behind_x: list[float] = []
    behind_y: list[torch.Tensor] = []
    for site, found in find(geometry, "covariance").items():
        shares = found.eigenvalues.clamp(min=0) / found.trace
        index = list(range(1, len(shares) + 1))
        shown = torch.where(shares > SMALLEST, shares, torch.nan)
        behind_x += [*index, float("nan")]
        behind_y += [shown, torch.full((1,), torch.nan, dtype=shown.dtype, device=shown.device)]
        titles[site] = (
            f"How variance is spread: effective rank {float(found.effective_rank):.4g}, "
            f"leading share {float(found.leading_share):.0%}"
        )
        traces[site] = [
            scatter(
                x=index,
                y=numbers(shown),
                mode="lines",
                name=label(site),
                line={"color": COLOURS["state"], "width": 2.5},
                hovertemplate=f"{label(site)}<br>eigenvalue %{{x}}: %{{y:.3~p}} of the variance"
                "<extra></extra>",
            )
        ]
    about = About(
        "The eigenvalues of the covariance of the states at a site, as shares of the variance, "
        "from the largest; in grey those of all sites. A curve that starts high and falls fast is "
        "a site whose states differ in few directions, and a flat one uses all that it has.",
        "K. Ethayarajh, arXiv 1909.00512; geomhooks.Covariance",
    )
    figure = new_figure("", "eigenvalue, by size", "share of the variance", about)
    behind = torch.cat(behind_y)
    figure.add_trace(
        scatter(
            x=behind_x,
            y=numbers(behind),
            mode="lines",
            name="all sites",
            line={"color": faded(COLOURS["resid"], 0.45), "width": 1},
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(logarithmic(behind_x))
    figure.update_yaxes(logarithmic(behind.tolist()))
    return add_slider(figure, traces, titles)
