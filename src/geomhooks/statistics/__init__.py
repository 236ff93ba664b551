"""The statistics: one file each, and the contract they fulfil."""

from geomhooks.statistics.base import LAWS, REGISTRY, Reading, Site, Statistic
from geomhooks.statistics.pos_ctx import PosCtx
from geomhooks.statistics.sphere import Sphere

__all__ = ["LAWS", "REGISTRY", "PosCtx", "Reading", "Site", "Sphere", "Statistic"]
