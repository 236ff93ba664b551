"""Figures of a geometry, and the page that is made of them.

Needs ``pip install 'geomhooks[report]'``; ``geomhooks report FILE`` writes the page.
"""

from geomhooks.report import figures
from geomhooks.report.comparison import comparison_page, write_comparison
from geomhooks.report.page import report_page, write_report
from geomhooks.report.theme import apply_theme

__all__ = [
    "apply_theme",
    "comparison_page",
    "figures",
    "report_page",
    "write_comparison",
    "write_report",
]
