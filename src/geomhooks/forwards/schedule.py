"""Which forwards count: in training or evaluation, and at every how many-th step.

All of it is decided outside of forwards, or from a flag that a compiled graph holds fixed: a
counter inside a forward would compile it anew each time.
"""

from __future__ import annotations

from typing import Literal, get_args

from geomhooks.errors import WatchError

__all__ = ["Schedule", "When"]

When = Literal["train", "eval", "all"]


class Schedule:
    """What a watch counts, of all the forwards that it sees.

    Args:
        when: "train", "eval" or "all".
        every: n, of which steps 0, n, 2n, ... count.

    Attributes:
        step: number of the step that is on.
        told: somebody has said that a step begins.
        held: nothing counts until further notice.

    Raises:
        WatchError: an argument is none of what is allowed.

    Example:
        >>> schedule = Schedule("train", every=3)
        >>> counted = []
        >>> for step in range(7):
        ...     counted.append(schedule.counts)
        ...     schedule.step_to()
        >>> counted
        [True, False, False, True, False, False, True]
        >>> schedule.counts_mode(training=False)
        False
    """

    def __init__(self, when: When = "all", every: int = 1) -> None:
        if when not in get_args(When):
            allowed = ", ".join(map(repr, get_args(When)))
            raise WatchError(f"watch(when={when!r}): one of {allowed} is needed")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise WatchError(
                f"watch(every={every!r}): an integer of at least 1 is needed, to count the "
                "forwards of every so many-th step"
            )
        self.when = when
        self.every = every
        self.step = 0
        self.told = False
        self.held = False

    @property
    def counts(self) -> bool:
        """The forwards of this step count, in the mode that does."""
        return not self.held and self.step % self.every == 0

    def counts_mode(self, training: bool) -> bool:
        """A forward counts in this mode of the model."""
        return self.when == "all" or (self.when == "train") == training

    def step_to(self, number: int | None = None) -> None:
        """Begin the next step, or the one of this number."""
        if number is None:
            number = self.step + 1
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise WatchError(
                f"step({number!r}): steps are numbered 0, 1, 2, ...; give none to go on to the next"
            )
        self.step, self.told = number, True

    @property
    def hint(self) -> str:
        """What else may be the reason that nothing was counted."""
        hints = []
        if self.when != "all":
            hints.append(f"no forward ran in the mode that counts (when={self.when!r})")
        if self.every > 1:
            hints.append(f"no step that counts came (every={self.every}; see Watch.step)")
        return "".join(f"; or {hint}" for hint in hints)
