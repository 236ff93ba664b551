"""Running tensors that add, merge, reset and pack: all that outlives a forward."""

from geomhooks.accumulators.basic import Accumulator, Count, Field, Max, Min, Sum, counts
from geomhooks.accumulators.moments import Moments

__all__ = ["Accumulator", "Count", "Field", "Max", "Min", "Moments", "Sum", "counts"]
