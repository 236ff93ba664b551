"""Norms, radii, directions and steps of hidden states on the hyper-sphere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Moments, Sum
from geomhooks.functional.directions import concentration, mean_pairwise_cosine, resultant_length
from geomhooks.functional.steps import Step, centred_square, step
from geomhooks.reductions import Reduced, reduce_update
from geomhooks.results import Result
from geomhooks.statistics.base import Reading, Site, Statistic
from geomhooks.unit_vectors import UnitVectors, offsets

__all__ = ["Sphere"]

STATE = ("norm", "ones", "ones_share", "radius")
STEP = ("step_angle", "radial", "tangential")
# Natural logarithm of the radius: steps of 1/8 from exp(-10) to exp(15), and open ends.
LOW, HIGH, PER_UNIT = -10, 15, 8
BINS = (HIGH - LOW) * PER_UNIT + 2


class Sphere(Statistic):
    r"""How far out hidden states lie, where they point, and how far a block moves them.

    A LayerNorm projects a state h on the plane orthogonal to the ones direction and scales it to
    the sphere of radius sqrt(d), so a state is described by its mean entry m, its centred radius
    :math:`r = |h - m 1|` and its direction on that sphere (R. Molina, "Traveling Words: A Geometric
    Interpretation of Transformers", arXiv 2309.07315).

    Args:
        positions: capacity T; by default the smaller of the model's maximum and 2048.

    Each of the following results has ``mean``, ``variance`` (population), ``min``, ``max`` and
    ``count`` over all tokens, and ``at_position`` the same at each position, shape (T,):

    - ``norm`` :math:`|h|`; ``ones`` :math:`\sum_i h_i / \sqrt d`, the component along the ones
      direction; ``ones_share``, the share of the squared norm along it; ``radius`` r;
      ``radius_ratio`` :math:`r / \sqrt d`.
    - where a block has an input: ``step_angle`` in radians between its centred input and output;
      ``radial`` and ``tangential``, the parts of its centred update along and across its centred
      input.
    - where a whole stack of blocks is watched: ``path_length``, the step angles added up from the
      first block to this one; at the last block ``chord``, the angle between the first block's
      input and the last block's output, and ``tortuosity``, path length over chord.
    - at norm modules: ``sphere_gap``, how far the output before its gain and bias is from the
      sphere, :math:`| |\hat x| / \sqrt d - \sqrt{s^2 / (s^2 + \epsilon)} |`, and for LayerNorm
      ``plane_gap``, how far from the plane, :math:`|\sum_i \hat x_i| / \sqrt d`.

    And numbers over all tokens: ``resultant_length`` R, ``mean_cosine`` (mean cosine between two
    different tokens, exact for all pairs) and ``concentration`` (von Mises-Fisher, in d - 1
    dimensions) of the centred directions; ``anisotropy``, the mean cosine of states as they are;
    ``log_radius_histogram`` over ``log_radius_edges`` (natural logarithm, the two end bins are
    open); ``non_finite``, tokens left out because an entry is not finite.

    ``without_first`` holds all of them without position 0, whose token often is an outlier.

    Example:
        >>> import torch, geomhooks as gh
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        >>> with gh.watch(model, statistics=[gh.Sphere()]) as watch:
        ...     _ = model(torch.randn(2, 3, 4))
        >>> geometry = watch.geometry()
        >>> geometry["1"].sphere.step_angle.count
        tensor(6)
    """

    optional_taps: ClassVar[tuple[str, ...]] = ("in",)

    def __init__(self, positions: int | None = None) -> None:
        if positions is not None and (not isinstance(positions, int) or positions < 1):
            raise ValueError(f"Sphere(positions={positions!r}): a positive integer is needed")
        self.positions = positions

    def needs_at(self, site: Site) -> tuple[str, ...]:
        """Sums over entries and directions; those of the block's update where it has an input."""
        return (
            "squared_norm",
            "ones",
            "shifted_squared_norm",
            "unit_sum",
            *(("step",) if site.has_input else ()),
        )

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Moments by position, sums of unit vectors, a histogram."""
        return {
            "moments": Moments((site.positions, len(features(site)))),
            # Groups: away from position 0, and at it.
            "centred": UnitVectors(2, site.width),
            "raw": UnitVectors(2, site.width),
            "log_radius": Sum((2, BINS), torch.int64),
            "non_finite": Sum((2,), torch.int64),
        }

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add one forward."""
        site, tokens, r = reading.site, reading.tokens, reading.reductions
        assert r.squared_norm is not None
        assert r.ones is not None
        width, keep = site.width, r.keep
        wide = reading.shift.dtype  # float64, where the device has it
        square, ones = r.squared_norm.to(wide), r.ones.to(wide)
        radius = centred_square(square, ones, width).sqrt()
        share = ones.square() / (width * square)
        values = [square.sqrt(), ones / width**0.5, share.nan_to_num(0.0), radius]
        if site.has_input:
            moved = step_of(r, width, wide)
            values += moved
            if has_path(site):
                values += self._path(reading, moved.angle)
        if site.norm_eps is not None:
            values += self._norm_module(reading)
        found = torch.stack(values, -1)
        state["moments"].add(found, tokens.at, keep[..., None] & torch.isfinite(found))

        first = tokens.positions == 0
        self._add_directions(state, reading, square.sqrt(), radius, first)
        bins = ((radius.log() - LOW) * PER_UNIT + 1).clamp(0, BINS - 1).to(torch.int64)
        cells = state["log_radius"].value.view(-1)
        cells.index_add_(0, (bins + BINS * first).reshape(-1), keep.reshape(-1).to(torch.int64))
        lost = tokens.real & ~keep
        state["non_finite"].add(torch.stack([lost & ~first, lost & first]).sum((1, 2)))

    def _add_directions(
        self,
        state: Mapping[str, Any],
        reading: Reading,
        norm: Tensor,
        radius: Tensor,
        first: Tensor,
    ) -> None:
        """Add the unit vectors of the states, centred and as they are."""
        r, width, shift = reading.reductions, reading.site.width, reading.shift
        assert r.unit_sum is not None
        assert r.ones is not None
        assert r.shift_dot is not None
        assert r.shifted_squared_norm is not None
        wide = shift.dtype
        square, dot = r.shifted_squared_norm.to(wide), r.shift_dot.to(wide)
        # Centred: less the parts along the ones direction, of x as of the shift.
        ones, shift_ones = r.ones.to(wide) - shift.sum(), shift.sum()
        centred = shift - shift.mean()
        parts = (
            (
                "centred",
                radius,
                square - ones.square() / width,
                dot - ones * shift_ones / width,
                centred,
            ),
            ("raw", norm, square, dot, shift),
        )
        for row, (name, length, around, along, vector) in enumerate(parts):
            shift_length = torch.linalg.vector_norm(vector)
            directed = r.keep & (length > 0)
            groups = torch.stack([directed & ~first, directed & first])
            each = offsets(length, around, along, shift_length)
            multiple = torch.where(groups, each.along, 0.0).sum((1, 2))
            sums = r.unit_sum[row::2]
            if name == "centred":
                sums = sums - sums.mean(1, keepdim=True)
            state[name].add(
                vector / shift_length.clamp(min=torch.finfo(wide).tiny),
                groups.sum((1, 2)),
                sums + multiple[:, None] * vector,
                torch.where(groups, each.square, 0.0).sum((1, 2)),
            )

    def _path(self, reading: Reading, angle: Tensor) -> list[Tensor]:
        """Carry the path from block to block; the first block's input is kept for the chord."""
        site, carry = reading.site, reading.carry
        if site.first:
            carry[site.stack] = reading.taps["in"], torch.zeros_like(angle)
        if site.stack not in carry:  # the first block was skipped in this forward
            return [torch.full_like(angle, float("nan"))] * (3 if site.last else 1)
        start, path = carry.pop(site.stack)
        path = path.to(angle.device) + angle  # blocks may be on several devices
        if not site.last:
            carry[site.stack] = start, path
            return [path]
        moved = reduce_update(reading.taps["out"], start.to(angle.device))
        chord = step_of(moved, site.width, angle.dtype).angle
        return [path, chord, path / chord]

    def _norm_module(self, reading: Reading) -> list[Tensor]:
        """How far the output before gain and bias is from the sphere, and from the plane."""
        site, r, taps = reading.site, reading.reductions, reading.taps
        assert r.in_squared_norm is not None
        assert r.in_ones is not None
        assert site.norm_eps is not None
        width, eps = site.width, site.norm_eps
        wide = reading.shift.dtype
        square, ones = r.in_squared_norm.to(wide), r.in_ones.to(wide)
        scatter = (centred_square(square, ones, width) if site.norm_centred else square) / width
        gain, bias = taps["gain"].to(wide), taps["bias"].to(wide)
        # Where a gain is about zero the output tells nothing; there the input stands in for it.
        mean = (ones / width)[..., None] if site.norm_centred else 0.0
        expected = (taps["in"].to(wide) - mean) / (scatter + eps).sqrt()[..., None]
        usable = gain.abs() > 1e-6 * gain.abs().amax()
        before = torch.where(usable, (taps["out"].to(wide) - bias) / gain, expected)
        length = torch.linalg.vector_norm(before, dim=-1) / width**0.5
        gap = (length - (scatter / (scatter + eps)).sqrt()).abs()
        return [gap, before.sum(-1).abs() / width**0.5] if site.norm_centred else [gap]

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Everything, with and without position 0."""
        return self._describe(state, 0) | {"without_first": Result(**self._describe(state, 1))}

    def _describe(self, state: Mapping[str, Any], first: int) -> dict[str, Any]:
        """Results over positions from ``first`` on."""
        site: Site = state["site"]
        moments: Moments = state["moments"]
        seen = moments["count"][:, 0].nonzero()
        rows = slice(first, int(seen.max()) + 1 if len(seen) else 0)
        pooled, single = moments.summary(rows), moments.summary(rows, pooled=False)
        out: dict[str, Any] = {}
        for column, name in enumerate(features(site)):
            over_all = {key: value[..., column] for key, value in pooled.items()}
            at_position = {key: value[..., column] for key, value in single.items()}
            out[name] = Result(**over_all, at_position=Result(**at_position))
            if name == "radius":
                out["radius_ratio"] = Result(
                    **scaled(over_all, site.width**-0.5),
                    at_position=Result(**scaled(at_position, site.width**-0.5)),
                )
        groups = slice(0, 1) if first else slice(0, 2)
        count, total, variance = state["centred"].pooled(groups)
        raw_count, raw_total, _ = state["raw"].pooled(groups)
        resultant = resultant_length(total, count)
        histogram, lost = state["log_radius"].value, state["non_finite"].value
        return out | {
            "resultant_length": resultant,
            "mean_cosine": mean_pairwise_cosine(total, count),
            "concentration": concentration(resultant, site.width - 1, variance),
            "anisotropy": mean_pairwise_cosine(raw_total, raw_count),
            "log_radius_histogram": histogram[0] if first else histogram.sum(0),
            "log_radius_edges": torch.linspace(LOW, HIGH, BINS - 1, dtype=torch.float64),
            "non_finite": lost[0] if first else lost.sum(),
        }


def has_path(site: Site) -> bool:
    """The site is a block of a stack whose blocks are all watched."""
    return site.kind == "block" and site.has_input and site.whole_stack


def features(site: Site) -> tuple[str, ...]:
    """What is measured of each token of a site."""
    names: tuple[str, ...] = STATE
    if site.has_input:
        names += STEP
    if has_path(site):
        names += ("path_length", "chord", "tortuosity") if site.last else ("path_length",)
    if site.norm_eps is not None:  # RMSNorm has the sphere without the plane
        names += ("sphere_gap", "plane_gap") if site.norm_centred else ("sphere_gap",)
    return names


def scaled(moments: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Moments of a multiple of what they are of."""
    power = {"mean": 1, "min": 1, "max": 1, "variance": 2, "count": 0}
    return {
        name: value * factor ** power[name] if power[name] else value
        for name, value in moments.items()
    }


def step_of(r: Reduced, width: int, wide: torch.dtype) -> Step:
    """Angle, radial and tangential part of a block's update, (B, T) each."""
    assert r.in_squared_norm is not None
    assert r.in_ones is not None
    assert r.update_ones is not None
    assert r.update_dot is not None
    assert r.slope is not None
    assert r.across_squared_norm is not None
    return step(
        r.in_squared_norm.to(wide),
        r.in_ones.to(wide),
        r.update_ones.to(wide),
        r.update_dot.to(wide),
        r.slope.to(wide),
        r.across_squared_norm.to(wide),
        width,
    )
