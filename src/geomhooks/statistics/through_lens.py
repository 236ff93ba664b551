"""Hidden states as the final norm of the model makes them."""

from __future__ import annotations

from torch import Tensor

from geomhooks.errors import SiteError
from geomhooks.functional.shapes import as_float
from geomhooks.statistics.base import Reading

__all__ = ["through_lens"]


def through_lens(reading: Reading) -> Tensor:
    """States (B, T, d) of the tap "out" in the space that the head reads, in float32 at least.

    Raises:
        SiteError: they are not as wide as what the head reads.
    """
    lens, hidden = reading.lens, reading.taps["out"]
    assert lens is not None
    width = lens.rows.shape[1]
    if hidden.shape[-1] != width:
        raise SiteError(
            f"site {reading.site.name!r} has states of width {hidden.shape[-1]}, and the model's "
            f"head reads {width}: there is no logit lens. Give sites of the residual stream, such "
            'as "blocks"'
        )
    return lens.states(as_float(hidden))
