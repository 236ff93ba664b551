"""The figures: functions of a geometry that give a plotly figure.

Needs ``pip install 'geomhooks[report]'``. Each figure says in ``figure.layout.meta`` what it shows,
after whom, and what was left out. Texts of others, such as names of sites, contexts and tokens, are
shown letter by letter. :func:`geomhooks.report.apply_theme` puts a figure on dark ground.
"""

from geomhooks.report.figures.agreement import Measure, agreement_by_layer
from geomhooks.report.figures.attention import (
    query_key_logits,
    query_key_shares,
    singular_value_coverage,
)
from geomhooks.report.figures.beside import side_by_side
from geomhooks.report.figures.components import component_importance
from geomhooks.report.figures.covariance import covariance_spectrum
from geomhooks.report.figures.factors import factor_importance
from geomhooks.report.figures.groups import group_distances, group_shares
from geomhooks.report.figures.leaders import leaders_by_layer
from geomhooks.report.figures.learning import learned_factors
from geomhooks.report.figures.position import (
    position_context_gram,
    position_fourier,
    position_singular_values,
    position_spiral,
)
from geomhooks.report.figures.runs import run_differences, runs_compared
from geomhooks.report.figures.shares import variance_shares
from geomhooks.report.figures.sphere import (
    directions_by_layer,
    length_by_layer,
    length_by_position,
    step_angles,
)
from geomhooks.report.figures.sublayers import linearity_by_layer, updates_by_layer
from geomhooks.report.figures.training import (
    runs_over_training,
    scalar_over_training,
    spiral_over_training,
)
from geomhooks.report.figures.words import Words, next_word_pull, word_paths
from geomhooks.report.figures.words_that_lead import leading_words

__all__ = [
    "Measure",
    "Words",
    "agreement_by_layer",
    "component_importance",
    "covariance_spectrum",
    "directions_by_layer",
    "factor_importance",
    "group_distances",
    "group_shares",
    "leaders_by_layer",
    "leading_words",
    "learned_factors",
    "length_by_layer",
    "length_by_position",
    "linearity_by_layer",
    "next_word_pull",
    "position_context_gram",
    "position_fourier",
    "position_singular_values",
    "position_spiral",
    "query_key_logits",
    "query_key_shares",
    "run_differences",
    "runs_compared",
    "runs_over_training",
    "scalar_over_training",
    "side_by_side",
    "singular_value_coverage",
    "spiral_over_training",
    "step_angles",
    "updates_by_layer",
    "variance_shares",
    "word_paths",
]
