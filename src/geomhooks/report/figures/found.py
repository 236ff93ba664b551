"""What figures take out of a geometry, and the error where it is not in there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomhooks.errors import FigureError
from geomhooks.results import Result
from geomhooks.snapshot import Geometry

__all__ = ["find", "lookup", "numbers", "short_names", "thinned"]

WATCH: Mapping[str, str] = {
    "pos_ctx": "gh.PosCtx()",
    "sphere": "gh.Sphere()",
    "updates": "gh.Updates()",
    "next_word": "gh.NextWord()",
    "trajectories": "gh.Trajectories()",
    "components": "gh.Components()",
    "attention": "gh.Attention(geometry_with_pos_ctx)",
    "covariance": "gh.Covariance()",
    "group_means": "gh.GroupMeans()",
    "feed_forward_fit": "gh.FeedForwardFit()",
    "leaders": "gh.Leaders()",
    "factors": "gh.Factors(dictionary)",
}
SINGLE = 256  # numbers; arrays of more are kept in single precision


def find(geometry: Geometry, path: str) -> dict[str, Any]:
    """A result at all sites that have it, in forward order.

    Args:
        geometry: to be searched.
        path: statistic and result, such as ``"sphere.norm"``.

    Raises:
        FigureError: no site has it; the message says what to watch.
        UnidentifiedError: a site has it, and the data do not determine it.
    """
    if not isinstance(geometry, Geometry):
        raise FigureError(
            f"a geometry is needed, such as watch.geometry() or gh.load(file), found a "
            f"{type(geometry).__name__}"
        )
    found = {}
    for site in geometry.sites:
        value = lookup(geometry[site], path)
        if value is not None:
            found[site] = value
    if not found:
        statistic = path.partition(".")[0]
        there = sorted({name for site in geometry.sites for name in geometry[site]})
        raise FigureError(
            f"the figure shows {path}, which no site of the geometry has; there are "
            f"{', '.join(there)}. Measure it with gh.watch(model, statistics="
            f"[{WATCH[statistic]}])"
        )
    return found


def lookup(result: Any, path: str) -> Any:
    """What is at the end of a path of names, or None."""
    for part in path.split("."):
        if not isinstance(result, Result) or part not in result:
            return None
        result = result[part]
    return result


def numbers(values: Tensor | Sequence[Any]) -> np.ndarray:
    """Values as figures hold them: float64, or float32 where there are many."""
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
    else:
        tensor = torch.tensor([float(value) for value in values], dtype=torch.float64, device="cpu")
    wide = tensor.dtype is torch.float64 and tensor.numel() <= SINGLE
    return np.ascontiguousarray(tensor.to(torch.float64 if wide else torch.float32).numpy())


def thinned(number: int, most: int) -> list[int]:
    """Indices of at most so many of a number of things, evenly spaced, both ends among them.

    Example:
        >>> thinned(10, 4), thinned(3, 4)
        ([0, 3, 6, 9], [0, 1, 2])
    """
    if number <= most:
        return list(range(number))
    if most == 1:
        return [0]
    return [round(index * (number - 1) / (most - 1)) for index in range(most)]


def short_names(sites: Sequence[str]) -> list[str]:
    """Names without what all begin with, up to a dot.

    Example:
        >>> short_names(["encoder.layer.0@in", "encoder.layer.0", "encoder.layer.1"])
        ['0@in', '0', '1']
        >>> short_names(["0"])
        ['0']
    """
    parts = [site.split(".") for site in sites]
    common = 0
    while len(sites) > 1 and all(
        len(p) > common + 1 and p[common] == parts[0][common] for p in parts
    ):
        common += 1
    return [".".join(names[common:]) for names in parts]
