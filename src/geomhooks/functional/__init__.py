"""Pure functions of finished tensors; they know neither modules nor statistics."""

from geomhooks.functional.clusters import (
    Clusters,
    Similarity,
    find_clusters,
    group_similarity,
    published_group_similarity,
)
from geomhooks.functional.cosines import cosines, unit_rows
from geomhooks.functional.directions import concentration, mean_pairwise_cosine, resultant_length
from geomhooks.functional.group_means import (
    BetweenGroups,
    GroupMoments,
    MeanDifference,
    MeanDistances,
    between_groups,
    group_moments,
    mean_difference,
    mean_distances,
    standard_errors,
)
from geomhooks.functional.incoherence import Incoherence, expected_incoherence, incoherence
from geomhooks.functional.rank import (
    effective_rank,
    explained_ratio,
    rank_above,
    singular_values,
    stable_rank,
)
from geomhooks.functional.relative_norm import RelativeNorm, relative_norm, relative_norm_of_sample
from geomhooks.functional.screenot import ScreeNOT, screenot
from geomhooks.functional.smoothness import (
    cosine_basis,
    dct_spectrum,
    finite_differences,
    low_frequency_share,
)
from geomhooks.functional.spectrum import (
    condition_number,
    leading_share,
    participation_ratio,
    spectrum,
)
from geomhooks.functional.spiral import PrincipalComponents, principal_components, winding_number
from geomhooks.functional.two_way import (
    Components,
    Design,
    connected_positions,
    singular_value_floor,
    variance_components,
)

__all__ = [
    "BetweenGroups",
    "Clusters",
    "Components",
    "Design",
    "GroupMoments",
    "Incoherence",
    "MeanDifference",
    "MeanDistances",
    "PrincipalComponents",
    "RelativeNorm",
    "ScreeNOT",
    "Similarity",
    "between_groups",
    "concentration",
    "condition_number",
    "connected_positions",
    "cosine_basis",
    "cosines",
    "dct_spectrum",
    "effective_rank",
    "expected_incoherence",
    "explained_ratio",
    "find_clusters",
    "finite_differences",
    "group_moments",
    "group_similarity",
    "incoherence",
    "leading_share",
    "low_frequency_share",
    "mean_difference",
    "mean_distances",
    "mean_pairwise_cosine",
    "participation_ratio",
    "principal_components",
    "published_group_similarity",
    "rank_above",
    "relative_norm",
    "relative_norm_of_sample",
    "resultant_length",
    "screenot",
    "singular_value_floor",
    "singular_values",
    "spectrum",
    "stable_rank",
    "standard_errors",
    "unit_rows",
    "variance_components",
    "winding_number",
]
