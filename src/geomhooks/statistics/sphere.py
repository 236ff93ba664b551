"""Norms, radii, directions and steps of hidden states on the hyper-sphere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count, Moments
from geomhooks.accumulators.norm_weights import NormWeights
from geomhooks.accumulators.unit_vectors import UnitVectors
from geomhooks.checks import check_positive
from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.sphere.directions import (
    concentration,
    mean_pairwise_cosine,
    resultant_length,
)
from geomhooks.functional.sphere.norm_geometry import norm_constants
from geomhooks.reductions import Reduced, reduce_move, sites_that_wait
from geomhooks.results import Result, Unavailable
from geomhooks.statistics.base import Reading, Site, Statistic
from geomhooks.statistics.by_position import by_position
from geomhooks.statistics.sphere_notes import (
    BINS,
    HIGH,
    LOW,
    Note,
    add_notes,
    features,
    has_path,
    norm_gaps,
    step_angle,
)

__all__ = ["Sphere"]


class Sphere(Statistic):
    r"""How far out hidden states lie, where they point, and how far a block moves them.

    A LayerNorm projects a state h on the plane orthogonal to the ones direction and scales it to
    the sphere of radius sqrt(d), so a state is described by its mean entry m, its centred radius
    :math:`r = |h - m 1|` and its direction on that sphere (R. Molina, "Traveling Words: A Geometric
    Interpretation of Transformers", arXiv 2309.07315).

    Args:
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

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
    - at norm modules: ``sphere_gap``, how far the output before its gain and bias,
      :math:`\hat x_i = (y_i - \beta_i) / \gamma_i`, is from the sphere,
      :math:`| |\hat x| / \sqrt d - \sqrt{s^2 / (s^2 + \epsilon)} |`, and for LayerNorm
      ``plane_gap``, how far from the plane, :math:`|\sum_i \hat x_i| / \sqrt d`. These are the
      residuals of the output y itself, of its ellipsoid, :math:`\sum_i \hat x_i^2 = d`, and of its
      plane, :math:`\sum_i \hat x_i = 0`, of :func:`geomhooks.functional.norm_residuals`: ``plane``
      is ``plane_gap``, and with r for the root above ``ellipsoid`` is
      :math:`(|\hat x| / \sqrt d)^2 - r^2`. Entries with a gain of about zero, which y does not
      show, are taken from the input; both are missing where all are.

    Norms over the k entries of a head, of queries or keys, are norm modules too, of the width k;
    there each head of a token counts.

    And numbers over all tokens: ``resultant_length`` R, ``mean_cosine`` (mean cosine between two
    different tokens, exact for all pairs) and ``concentration`` (von Mises-Fisher, in d - 1
    dimensions, in the approximation of :func:`geomhooks.functional.concentration`) of the centred
    directions; ``anisotropy``, the mean cosine of states as they are;
    ``log_radius_histogram`` over ``log_radius_edges`` (natural logarithm, the two end bins are
    open); ``non_finite``, tokens left out because an entry is not finite.

    ``without_first`` holds all of them without position 0, whose token often is an outlier.

    At norm modules ``ellipsoid`` says where the outputs lie, from the weights as they were in the
    last forward, ``gain`` and ``bias`` (d,): ``shift_length`` of the bias, the ellipsoid's centre;
    ``largest_axis`` and ``smallest_axis``, its semi-axes :math:`\sqrt d |\gamma_i|`, and
    ``anisotropy``, their ratio; for LayerNorm ``plane_normal`` (d,) and ``plane_distance``, signed,
    of the plane from the origin, as :func:`geomhooks.functional.norm_constants` has them.

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
        check_positive("Sphere", positions=positions)
        self.positions = positions

    def needs_at(self, site: Site) -> tuple[str, ...]:
        """Sums over entries and directions; those of the block's update where it has an input."""
        return (
            "ones",
            "norm",
            "radius",
            "directions",
            *(("step",) if site.has_input else ()),
        )

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Moments by position, sums of unit vectors, a histogram, and the weights of a norm."""
        made: dict[str, Accumulator] = {
            "moments": Moments((site.positions, len(features(site)))),
            # Kinds: centred, and as they are. Groups: away from position 0, and at it.
            "directions": UnitVectors(2, 2, site.width),
            "log_radius": Count((2, BINS)),
            "non_finite": Count((2,)),
        }
        return made if site.norm_eps is None else made | {"weights": NormWeights(site.width)}

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Put down what one forward shows at one site; :meth:`finish` adds some of them up."""
        site = reading.site
        extra = self._chord(reading) if site.first or site.last else {}
        if site.norm_eps is not None:
            extra |= norm_gaps(reading)
            state["weights"].add(reading.taps["gain"], reading.taps["bias"])
        self.note(
            state, site, reading.tokens, reading.reductions, reading.shift, reading.carry, extra
        )

    def only_notes(self, site: Site) -> bool:
        """Between the ends of a stack, and but for norms, the reductions are all that is needed."""
        return not (site.first or site.last or site.norm_eps is not None)

    def note(
        self,
        state: Mapping[str, Any],
        site: Site,
        tokens: Tokens,
        reductions: Reduced,
        shift: Tensor,
        carry: dict[Any, Any],
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Put down reductions, and what else there is of each token by name; finish a full room."""
        if "notes" not in carry:
            carry |= {"notes": [], "paths": {}, "room": {}}
        notes, room = carry["notes"], carry["room"].get(id(tokens))
        notes.append(Note(state, site, tokens, shift, reductions, extra))
        if room is None:  # norms of heads have tokens of their own, which are many more
            room = carry["room"][id(tokens)] = sites_that_wait(tokens.real.numel(), site.width)
        if len(notes) >= room:
            self.finish(carry)

    def _chord(self, reading: Reading) -> dict[str, Tensor]:
        """At the last block, the angle to what came into the first, which is kept until then."""
        site, carry = reading.site, reading.carry
        if not has_path(site):
            return {}
        if site.first:
            carry["start", site.stack] = reading.taps["in"]
        if not site.last:
            return {}
        start = carry.pop(("start", site.stack), None)
        if start is None:  # the first block was skipped in this forward
            keep, wide = reading.reductions.keep, reading.shift.dtype
            return {"chord": torch.full_like(keep, float("nan"), dtype=wide)}
        out = reading.taps["out"]
        return {"chord": step_angle(reduce_move(out, start.to(out.device)))}

    def finish(self, carry: dict[Any, Any]) -> None:
        """Add what has been put down."""
        if carry.get("notes"):
            add_notes(carry["notes"], carry["paths"])
            carry["notes"].clear()

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Everything, with and without position 0."""
        out = self._describe(state, 0) | {"without_first": Result(**self._describe(state, 1))}
        if "weights" in state:
            out["ellipsoid"] = ellipsoid(state["site"], state["weights"])
        return out

    def _describe(self, state: Mapping[str, Any], first: int) -> dict[str, Any]:
        """Results over positions from ``first`` on."""
        site: Site = state["site"]
        out: dict[str, Any] = dict(by_position(state["moments"], features(site), first))
        radius, factor = dict(out["radius"]), site.width**-0.5
        at_position = Result(**scaled(radius.pop("at_position"), factor))
        out["radius_ratio"] = Result(**scaled(radius, factor), at_position=at_position)
        groups = slice(0, 1) if first else slice(0, 2)
        count, total, variance = state["directions"].pooled(0, groups)
        raw_count, raw_total, _ = state["directions"].pooled(1, groups)
        resultant = resultant_length(total, count)
        histogram, lost = state["log_radius"].value, state["non_finite"].value
        return out | {
            "resultant_length": resultant,
            "mean_cosine": mean_pairwise_cosine(total, count),
            "concentration": concentration(resultant, site.width - 1, variance),
            "anisotropy": mean_pairwise_cosine(raw_total, raw_count),
            "log_radius_histogram": histogram[0] if first else histogram.sum(0),
            "log_radius_edges": torch.linspace(
                LOW, HIGH, BINS - 1, dtype=torch.float64, device=histogram.device
            ),
            "non_finite": lost[0] if first else lost.sum(),
        }


def ellipsoid(site: Site, weights: NormWeights) -> Result | Unavailable:
    """Where the outputs of a norm lie."""
    if not weights["known"]:
        return Unavailable("no forward has been counted at this site")
    gain, bias = weights["gain"], weights["bias"]
    found = norm_constants(gain, bias, centred=site.norm_centred)._asdict()
    known = {name: value for name, value in found.items() if value is not None}
    return Result(gain=gain, bias=bias, **known)


def scaled(moments: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Moments of a multiple of what they are of."""
    power = {"mean": 1, "min": 1, "max": 1, "variance": 2, "count": 0}
    return {
        name: value * factor ** power[name] if power[name] else value
        for name, value in moments.items()
    }
