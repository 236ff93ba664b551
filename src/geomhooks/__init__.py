"""The geometry of hidden states, streamed while the model runs.

>>> import torch, geomhooks as gh
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
>>> with gh.watch(model, sites="blocks", statistics=[gh.Sphere()]) as watch:
...     _ = model(torch.randn(2, 3, 4))
>>> watch.geometry().sites
['0@in', '0', '1']
"""

from geomhooks import errors, functional, models, statistics
from geomhooks.accumulators import Accumulator, Max, Min, Moments, Sum
from geomhooks.accumulators.second_moment import SecondMoment
from geomhooks.accumulators.table import Table
from geomhooks.errors import GeomhooksError
from geomhooks.history import History
from geomhooks.snapshot import Geometry, load, merge
from geomhooks.statistics import (
    Attention,
    Components,
    Covariance,
    FactorLearning,
    Factors,
    FeedForwardFit,
    GroupMeans,
    Leaders,
    NextWord,
    PosCtx,
    Sphere,
    Statistic,
    Trajectories,
    Updates,
)
from geomhooks.storage.dictionaries import FactorDictionary, load_dictionary, save_dictionary
from geomhooks.version import __version__
from geomhooks.watcher import Watch, watch

__all__ = [
    "Accumulator",
    "Attention",
    "Components",
    "Covariance",
    "FactorDictionary",
    "FactorLearning",
    "Factors",
    "FeedForwardFit",
    "Geometry",
    "GeomhooksError",
    "GroupMeans",
    "History",
    "Leaders",
    "Max",
    "Min",
    "Moments",
    "NextWord",
    "PosCtx",
    "SecondMoment",
    "Sphere",
    "Statistic",
    "Sum",
    "Table",
    "Trajectories",
    "Updates",
    "Watch",
    "__version__",
    "errors",
    "functional",
    "load",
    "load_dictionary",
    "merge",
    "models",
    "save_dictionary",
    "statistics",
    "watch",
]
