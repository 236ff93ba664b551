"""Running tensors that add, merge, reset and pack: all that outlives a forward."""

from geomhooks.accumulators.basic import Accumulator, Field, Max, Min, Sum
from geomhooks.accumulators.moments import Moments

__all__ = ["Accumulator", "Field", "Max", "Min", "Moments", "Sum"]
