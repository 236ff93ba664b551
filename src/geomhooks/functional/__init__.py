"""Pure functions of finished tensors; they know neither modules nor statistics."""

from geomhooks.functional.alibi import alibi, alibi_slopes
from geomhooks.functional.alignment import (
    PosBasis,
    WeightAlignment,
    pos_basis,
    query_key_weight,
    universal_threshold,
    weight_alignment,
)
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
from geomhooks.functional.logit_shares import LogitShares, LogitSums, logit_shares, logit_sums
from geomhooks.functional.query_key import (
    QUERY_KEY_PARTS,
    FrozenNorm,
    PublishedLogits,
    Rotary,
    freeze_norm,
    project_parts,
    published_query_key_logits,
    query_key_logits,
    repeat_heads,
    split_states,
)
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
from geomhooks.functional.theorems import (
    KernelFactors,
    LowFrequency,
    kernel_factorisation,
    low_frequency_bound,
)
from geomhooks.functional.two_way import (
    Components,
    Design,
    connected_positions,
    singular_value_floor,
    variance_components,
)

__all__ = [
    "QUERY_KEY_PARTS",
    "BetweenGroups",
    "Clusters",
    "Components",
    "Design",
    "FrozenNorm",
    "GroupMoments",
    "Incoherence",
    "KernelFactors",
    "LogitShares",
    "LogitSums",
    "LowFrequency",
    "MeanDifference",
    "MeanDistances",
    "PosBasis",
    "PrincipalComponents",
    "PublishedLogits",
    "RelativeNorm",
    "Rotary",
    "ScreeNOT",
    "Similarity",
    "WeightAlignment",
    "alibi",
    "alibi_slopes",
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
    "freeze_norm",
    "group_moments",
    "group_similarity",
    "incoherence",
    "kernel_factorisation",
    "leading_share",
    "logit_shares",
    "logit_sums",
    "low_frequency_bound",
    "low_frequency_share",
    "mean_difference",
    "mean_distances",
    "mean_pairwise_cosine",
    "participation_ratio",
    "pos_basis",
    "principal_components",
    "project_parts",
    "published_group_similarity",
    "published_query_key_logits",
    "query_key_logits",
    "query_key_weight",
    "rank_above",
    "relative_norm",
    "relative_norm_of_sample",
    "repeat_heads",
    "resultant_length",
    "screenot",
    "singular_value_floor",
    "singular_values",
    "spectrum",
    "split_states",
    "stable_rank",
    "standard_errors",
    "unit_rows",
    "universal_threshold",
    "variance_components",
    "weight_alignment",
    "winding_number",
]
