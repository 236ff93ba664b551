"""The statistics: one file each, and the contract they fulfil."""

from geomhooks.statistics.attention import Attention
from geomhooks.statistics.base import LAWS, Reading, Site, Statistic
from geomhooks.statistics.components import Components
from geomhooks.statistics.covariance import Covariance
from geomhooks.statistics.factor_learning import FactorLearning
from geomhooks.statistics.factors import Factors
from geomhooks.statistics.feed_forward_fit import FeedForwardFit
from geomhooks.statistics.group_means import GroupMeans
from geomhooks.statistics.leaders import Leaders
from geomhooks.statistics.next_word import NextWord
from geomhooks.statistics.pos_ctx import PosCtx
from geomhooks.statistics.sphere import Sphere
from geomhooks.statistics.trajectories import Trajectories
from geomhooks.statistics.updates import Updates

__all__ = [
    "LAWS",
    "REGISTRY",
    "Attention",
    "Components",
    "Covariance",
    "FactorLearning",
    "Factors",
    "FeedForwardFit",
    "GroupMeans",
    "Leaders",
    "NextWord",
    "PosCtx",
    "Reading",
    "Site",
    "Sphere",
    "Statistic",
    "Trajectories",
    "Updates",
]

# By the name that files know them by; files never run code, so no others are.
REGISTRY: dict[str, type[Statistic]] = {
    kind.name: kind
    for kind in (
        PosCtx,
        Covariance,
        GroupMeans,
        Sphere,
        Updates,
        NextWord,
        Trajectories,
        Attention,
        Components,
        FeedForwardFit,
        FactorLearning,
        Factors,
        Leaders,
    )
}
