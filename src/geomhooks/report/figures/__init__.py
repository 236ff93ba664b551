"""The figures: functions of a geometry that give a plotly figure.

Needs ``pip install 'geomhooks[report]'``. Each figure says in ``figure.layout.meta`` what it shows,
after whom, and what was left out. Texts of others, such as names of sites, contexts and tokens, are
shown letter by letter. :func:`geomhooks.report.apply_theme` puts a figure on dark ground.
"""

from geomhooks.report.figures.attention import (
    query_key_logits,
    query_key_shares,
    singular_value_coverage,
)
from geomhooks.report.figures.components import component_importance
from geomhooks.report.figures.position import (
    position_context_gram,
    position_fourier,
    position_singular_values,
    position_spiral,
)
from geomhooks.report.figures.runs import runs_compared
from geomhooks.report.figures.shares import variance_shares
from geomhooks.report.figures.sphere import (
    directions_by_layer,
    length_by_layer,
    length_by_position,
    step_angles,
)
from geomhooks.report.figures.training import scalar_over_training, spiral_over_training
from geomhooks.report.figures.words import Words, next_word_pull, word_paths

__all__ = [
    "Words",
    "component_importance",
    "directions_by_layer",
    "length_by_layer",
    "length_by_position",
    "next_word_pull",
    "position_context_gram",
    "position_fourier",
    "position_singular_values",
    "position_spiral",
    "query_key_logits",
    "query_key_shares",
    "runs_compared",
    "scalar_over_training",
    "singular_value_coverage",
    "spiral_over_training",
    "step_angles",
    "variance_shares",
    "word_paths",
]
