r"""How far apart two runs are, as curves over their checkpoints that may be early or late.

Dynamic time warping goes through two series of length S together, from the first pair of
checkpoints to the last, and at each step moves on in one or in both:

.. math:: D_{ij} = |x_i - y_j| + \min(D_{i-1,j}, D_{i,j-1}, D_{i-1,j-1}), \quad
    \text{distance} = D_{SS}

(Sakoe & Chiba 1978, without weights or a band). Mickus & Vazquez compare training runs so, each
series brought to mean 0 and standard deviation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geomhooks.errors import MissingExtraError

__all__ = ["warping_distance", "warping_distances", "z_normalise"]


def z_normalise(series: Tensor) -> Tensor:
    r"""A series with mean 0 and standard deviation 1, :math:`(x - \bar x) / s`.

    The published code of Mickus & Vazquez has :math:`(\bar x - x) / s`. That turns every series
    around. Distances between two series so treated are the same, but the correlations with quality
    that were stored have the wrong sign, since quality was not turned around with them.

    Args:
        series: (S,) or (S, N), a column a series.

    Returns:
        The same shape; with the population's standard deviation.

    Raises:
        ValueError: another shape, fewer than two checkpoints, numbers that are not finite, or a
            series that does not vary and so has no such form.

    Example:
        >>> z_normalise(torch.tensor([1.0, 3.0]))
        tensor([-1.,  1.])
    """
    if series.ndim not in (1, 2) or len(series) < 2:
        raise ValueError(
            f"series: shape (S,) or (S, N) with S from 2 is needed, found {tuple(series.shape)}"
        )
    series = series.to(torch.promote_types(series.dtype, torch.float32))
    if not bool(torch.isfinite(series).all()):
        raise ValueError("series: some numbers are not finite; leave those checkpoints out")
    centred = series - series.mean(0)
    spread = centred.square().mean(0).sqrt()
    # Below this a constant's deviation from its rounded mean would be blown up.
    smallest = 8 * torch.finfo(series.dtype).eps * series.abs().amax(0)
    if bool((spread <= smallest).any()):
        raise ValueError("series: one does not vary, so it cannot be brought to a deviation of 1")
    return centred / spread


def warping_distance(first: Tensor, second: Tensor, *, normalise: bool = True) -> float:
    """Dynamic time warping between two series, by dtaidistance.

    Args:
        first: (S,) a number for each checkpoint; and
        second: (S',). Both are cut to the shorter, and then normalised.
        normalise: bring each to mean 0 and standard deviation 1 before.

    Returns:
        The sum of the differences along the best path; it grows with the number of checkpoints.

    Raises:
        ValueError: as :func:`z_normalise`.
        MissingExtraError: dtaidistance is not installed.

    Example:
        >>> early, late = torch.tensor([0.0, 1, 1, 1]), torch.tensor([0.0, 0, 0, 1])
        >>> warping_distance(early, late, normalise=False)
        0.0
        >>> warping_distance(early, torch.tensor([0.0, 0, 0, 3]), normalise=False)
        4.0
    """
    return float(warping_distances([first, second], normalise=normalise)[0, 1])


def warping_distances(runs: Sequence[Tensor], *, normalise: bool = True) -> Tensor:
    """Dynamic time warping between all pairs of runs.

    :func:`geomhooks.functional.compare.condition_test` says whether runs of one condition are
    closer than others.

    Args:
        runs: R series, (S,) each; all are cut to the shortest.
        normalise: bring each to mean 0 and standard deviation 1 after that.

    Returns:
        (R, R) float64, symmetric, zero on the diagonal.

    Raises:
        ValueError: as :func:`z_normalise`, or fewer than two runs.
        MissingExtraError: dtaidistance is not installed.
    """
    library = _library()
    if len(runs) < 2:
        raise ValueError(f"runs: two or more are needed, found {len(runs)}")
    for run in runs:
        if run.ndim != 1 or not len(run) or not bool(torch.isfinite(run).all()):
            raise ValueError(
                f"runs: a series (S,) of finite numbers is needed, found {tuple(run.shape)}"
                + (" with others" if run.ndim == 1 and len(run) else "")
            )
    length = min(len(run) for run in runs)
    series = [run.detach().to("cpu", torch.float64)[:length] for run in runs]
    if normalise:
        series = [z_normalise(one) for one in series]
    arrays = [one.contiguous().numpy() for one in series]
    distances = torch.zeros(len(runs), len(runs), dtype=torch.float64, device="cpu")
    for i in range(len(runs)):
        for j in range(i):
            distances[i, j] = distances[j, i] = library.distance(
                arrays[i],
                arrays[j],
                inner_dist="euclidean",
                use_c=library.dtw_cc is not None,
            )
    return distances


def _library() -> Any:
    try:
        from dtaidistance import dtw
    except ImportError as error:
        raise MissingExtraError(
            "dynamic time warping needs dtaidistance: pip install 'geomhooks[compare]'"
        ) from error
    return dtw
