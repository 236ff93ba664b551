"""Pure functions of finished tensors; they know neither modules nor statistics."""

from geomhooks.functional.directions import concentration, mean_pairwise_cosine, resultant_length
from geomhooks.functional.rank import stable_rank
from geomhooks.functional.two_way import (
    Components,
    Design,
    connected_positions,
    singular_value_floor,
    variance_components,
)

__all__ = [
    "Components",
    "Design",
    "concentration",
    "connected_positions",
    "mean_pairwise_cosine",
    "resultant_length",
    "singular_value_floor",
    "stable_rank",
    "variance_components",
]
