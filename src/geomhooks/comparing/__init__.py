"""What runs have in common and what not: geometries site by site, histories step by step."""

from geomhooks.comparing.geometries import compare_geometries, match_sites
from geomhooks.comparing.histories import compare_histories
from geomhooks.comparing.options import Options

__all__ = ["Options", "compare_geometries", "compare_histories", "match_sites"]
