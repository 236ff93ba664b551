"""Pure functions of finished tensors; they know neither modules nor statistics."""

from geomhooks.functional.directions import concentration, mean_pairwise_cosine, resultant_length
from geomhooks.functional.rank import stable_rank
from geomhooks.functional.spectrum import (
    condition_number,
    effective_rank,
    leading_share,
    participation_ratio,
    spectrum,
)
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
    "condition_number",
    "connected_positions",
    "effective_rank",
    "leading_share",
    "mean_pairwise_cosine",
    "participation_ratio",
    "resultant_length",
    "singular_value_floor",
    "spectrum",
    "stable_rank",
    "variance_components",
]
