"""What runs agree on, each number with a confidence interval or a p-value.

Single numbers are floats here, not tensors. Some functions need SciPy, dtaidistance or
statsmodels: ``pip install 'geomhooks[compare]'``.
"""

from geomhooks.functional.compare.causality import GrangerTest, granger_test, holm
from geomhooks.functional.compare.changes import (
    ChangeAgreement,
    change_agreement,
    curve_agreement,
)
from geomhooks.functional.compare.conditions import ConditionTest, condition_test
from geomhooks.functional.compare.overlap import SentenceOverlap, sentence_overlap
from geomhooks.functional.compare.rank_agreement import RankAgreement, rank_agreement
from geomhooks.functional.compare.representations import (
    Alikeness,
    MatchedRows,
    cka,
    match_rows,
    procrustes_distance,
)
from geomhooks.functional.compare.resampling import Interval
from geomhooks.functional.compare.stationarity import (
    Settled,
    Stationarity,
    settled,
    stationarity,
)
from geomhooks.functional.compare.subspaces import (
    SubspaceAngles,
    pos_subspace_angles,
    principal_angles,
    subspace_angles,
)
from geomhooks.functional.compare.warping import (
    warping_distance,
    warping_distances,
    z_normalise,
)

__all__ = [
    "Alikeness",
    "ChangeAgreement",
    "ConditionTest",
    "GrangerTest",
    "Interval",
    "MatchedRows",
    "RankAgreement",
    "SentenceOverlap",
    "Settled",
    "Stationarity",
    "SubspaceAngles",
    "change_agreement",
    "cka",
    "condition_test",
    "curve_agreement",
    "granger_test",
    "holm",
    "match_rows",
    "pos_subspace_angles",
    "principal_angles",
    "procrustes_distance",
    "rank_agreement",
    "sentence_overlap",
    "settled",
    "stationarity",
    "subspace_angles",
    "warping_distance",
    "warping_distances",
    "z_normalise",
]
