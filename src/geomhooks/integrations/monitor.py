"""What the callbacks of all training libraries do: watch, take windows, log, and keep a history.

Training and evaluation have a watch each, so that neither counts in the other's numbers. Which of
them a forward belongs to, if to any, says the Trainer's own place at the time: who lets a model
write samples between two steps neither trains nor evaluates it.

Where several ranks train, the numbers are those of all together, and every rank takes them: at the
places where a Trainer itself has all its ranks meet, and never in a forward.
"""

from __future__ import annotations

import difflib
import inspect
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import nn

from geomhooks.errors import GeomhooksError, HistoryError, NothingCountedError, WatchError
from geomhooks.forwards.schedule import Schedule, When
from geomhooks.history import History, Snapshots, select_scalars
from geomhooks.integrations.ranks import Ranks
from geomhooks.planning import read_wishes
from geomhooks.results import Unavailable
from geomhooks.snapshot import Geometry
from geomhooks.statistics import PosCtx, Sphere
from geomhooks.statistics.base import Statistic
from geomhooks.watcher import Watch, watch

__all__ = ["DEFAULT_SCALARS", "Monitor"]

DEFAULT_SCALARS = (
    "*/pos_ctx/shares/*",
    "*/pos_ctx/stable_rank",
    "*/sphere/norm/mean",
    "*/sphere/step_angle/mean",
    "*/sphere/anisotropy",
)
DEFAULT_CONTEXTS = 256
SAVE_SECONDS = 60.0
TRAIN = "train"


class Monitor:
    """The geometry of a model in training, step by step.

    Attributes:
        ranks: the processes that are measured together. All have to take the same numbers, in the
            same order; if one does not come the others raise, after ten minutes.
        keeps_history: this process writes the histories; of several one should.

    Args:
        sites: as :func:`geomhooks.watch` takes them.
        statistics: the same; by default ``[PosCtx(contexts=256), Sphere()]``, which keeps fewer
            contexts than a watch by default does, for there are two states, and they are in every
            checkpoint.
        when: what to measure: "train", "eval", or "all", both apart.
        every: count the forwards of every n-th step of training only.
        window: begin anew after each logging, so that a number is of the steps since the last one;
            False gives numbers of all steps so far.
        scalars: globs over the names of scalars to log; ``"*"`` logs all, some hundred a site.
        history: file to keep a :class:`geomhooks.History` of training in, all scalars of every
            logging; evaluation goes to a file beside it, ``history.eval.safetensors``, and one
            outside of training to none.
        snapshots: of how many steps the history keeps the whole geometry.
        options: further arguments of :func:`geomhooks.watch`, such as ``positions``.

    Raises:
        WatchError, HistoryError, SiteError: an argument is none of what is allowed.
    """

    def __init__(
        self,
        *,
        sites: Any = None,
        statistics: Sequence[Statistic] | Mapping[Any, Sequence[Statistic]] | None = None,
        when: When = "all",
        every: int = 1,
        window: bool = True,
        scalars: str | Sequence[str] = DEFAULT_SCALARS,
        history: str | os.PathLike[str] | None = None,
        snapshots: Snapshots = 0,
        **options: Any,
    ) -> None:
        Schedule(when, every)  # raises now rather than when training has begun
        unknown = set(options) - set(inspect.signature(watch).parameters)
        if unknown:
            raise TypeError(f"no such argument: {', '.join(sorted(unknown))}; gh.watch has none")
        if statistics is None:
            statistics = [PosCtx(contexts=DEFAULT_CONTEXTS), Sphere()]
        self.statistics = [s for _, chosen in read_wishes(None, statistics) for s in chosen]
        self._watch = {"sites": sites, "statistics": statistics, **options}
        self._when = when
        self._every = every
        self._window = window
        self._scalars = (scalars,) if isinstance(scalars, str) else tuple(scalars)
        self._unchecked = scalars is not DEFAULT_SCALARS
        self._path = None if history is None else Path(history)
        self._snapshots = snapshots
        self._new_history()
        self._written: set[Path] = set()
        self._start = 0
        self._saved_at = time.monotonic()
        self._a_step_counted = False
        self._went_on = False
        self._taken = -1  # the step of the last window
        self._evaluated = (-1, 0)  # the last step at which there were evaluations, and how many
        self._trains = False
        self._state: Mapping[str, Any] | None = None
        self.keeps_history = True
        self.ranks = Ranks()
        self.train: Watch | None = None
        self.evaluation: Watch | None = None
        self.histories: dict[str, History] = {}

    # Beginning and ending

    def start_train(self, model: nn.Module, step: int) -> None:
        """Watch a model that begins, or goes on, to train.

        Raises:
            HistoryError: training begins, and the file of the history is there already.
        """
        self.stop()
        self._open_histories(step)
        self._a_step_counted, self._went_on, self._taken = False, step > 0, step - 1
        self._trains = True
        if self._when != "eval":
            self.train = watch(model, when="train", every=self._every, **self._watch)
            self.train.mode_of = model  # a part of it that is frozen in evaluation mode trains
            if self._state is not None:
                self.train.load_state_dict(self._state)
            self.train.step(step)
            self.train.pause()
            self.train.attach()
        self._state = None

    def start_evaluation(self, model: nn.Module) -> None:
        """Watch a model that will be evaluated."""
        if self._when != "train" and self.evaluation is None:
            self.evaluation = watch(model, **self._watch).attach()
            self.evaluation.pause()

    def stop(self) -> None:
        """Take the hooks off and write the histories; what was counted may still be read."""
        for watched in (self.train, self.evaluation):
            if watched is not None:
                watched.detach()
        self.evaluation = None
        self.save_histories()
        self._trains = False

    # Steps and windows

    def begin_step(self, step: int) -> None:
        """A step of training begins, or goes on with another batch."""
        if self.train is not None:
            self.train.step(step)
            self.train.resume()
            self._a_step_counted |= not self.train.paused

    def end_step(self) -> None:
        """The forwards of a step, or of one of its batches, are over."""
        if self.train is not None:
            self.train.pause()

    @contextmanager
    def evaluating(self, model: nn.Module, step: int) -> Iterator[None]:
        """What runs is evaluation; outside of training the hooks come off at the end."""
        self.begin_evaluation(model, step)
        try:
            yield
        finally:
            if self.evaluation is not None:
                self.evaluation.pause()
                if not self._trains:
                    self.evaluation.detach()
                    self.evaluation = None

    def begin_evaluation(self, model: nn.Module, step: int) -> None:
        """What runs from now on is evaluation, until its numbers are taken."""
        self.end_step()
        self.start_evaluation(model)
        if self.evaluation is not None:
            before, number = self._evaluated
            self._evaluated = step, number + 1 if step == before else 1
            if self.train is not None:
                name = f"evaluation {self._evaluated}"
                self.evaluation._begin_shard(shard_after(self.train, name))
            else:
                self.evaluation.reset()  # of one that was broken off
            self.evaluation.resume()

    def take_train(self, step: int) -> dict[str, float]:
        """What to log of training since the last time; nothing where no step has counted."""
        if self.train is None or step <= self._taken or not (self._a_step_counted or self._went_on):
            return {}  # the same on all ranks, or some would wait for the others
        try:
            geometry = self._geometry(self.train, f"step {step} of training")
        except NothingCountedError:
            if self._a_step_counted:
                raise
            return {}
        self._taken = step
        if self._window:
            self.train._begin_shard(shard_after(self.train, "the next window"))
            self._a_step_counted = self._went_on = False
        return self._take(step, geometry, TRAIN)

    def take_rest(self, step: int) -> dict[str, float]:
        """What to log at the end of training, of the steps since the last time."""
        try:
            return self.take_train(step)
        except GeomhooksError as error:  # not worth the end of a training, such as its last save
            warnings.warn(f"of the last steps there is no geometry: {error}", stacklevel=2)
            return {}

    def take_evaluation(self, step: int, series: str = "eval") -> dict[str, float]:
        """What to log of the evaluation that has ended; the next one begins anew."""
        if self.evaluation is None:
            return {}
        self.evaluation.pause()
        try:
            geometry = self._geometry(self.evaluation, f"the end of {series} at step {step}")
        except NothingCountedError as error:  # it has no data, or runs in another program
            warnings.warn(f"of this evaluation there is no geometry: {error}", stacklevel=2)
            return {}
        self.evaluation.reset()
        # One on the data of training may be called so too, and is not part of its history.
        return self._take(step, geometry, f"eval_{series}" if series == TRAIN else series)

    def _geometry(self, watched: Watch, place: str) -> Geometry:
        """What all ranks have counted together, the same on each."""
        if not self.ranks.several:
            return watched.geometry()
        self.ranks.meet(place)
        return watched.geometry(sync=True, group=self.ranks.group)

    def _take(self, step: int, geometry: Geometry, series: str) -> dict[str, float]:
        if self._unchecked and not lacks_results(geometry):
            self._check_patterns(geometry.scalars())
        history = self._history(series) if self._trains else None
        if history is not None:
            history.cut(step - 1)  # of two evaluations at one step the later one stays
            history.append(step, geometry)
            if time.monotonic() - self._saved_at > SAVE_SECONDS:
                self.save_histories()
        return geometry.scalars(only=self._scalars)

    def _check_patterns(self, scalars: Mapping[str, float]) -> None:
        """Raise, the first time that anything is logged, if what was asked for does not exist."""
        for pattern in self._scalars:
            if not select_scalars(scalars, [pattern]):
                near = difflib.get_close_matches(pattern, scalars, n=3, cutoff=0.3)
                raise WatchError(
                    f"scalars={pattern!r} matches none of the {len(scalars)} scalars, such as "
                    f"{', '.join(near or list(scalars)[:3])}; geometry.scalars() has them all"
                )
        self._unchecked = False

    # State

    def state_dict(self) -> dict[str, Any] | None:
        """What was counted in training, to go on from; None where training is not watched."""
        return None if self.train is None else self.train.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """What the next :meth:`start_train` goes on from; None for nothing."""
        self._state = state

    # Histories

    def _path_of(self, series: str) -> Path:
        assert self._path is not None
        if series == TRAIN:
            return self._path
        name = quote(series, safe=" ")  # data sets are called org/name
        return self._path.with_name(f"{self._path.stem}.{name}{self._path.suffix}")

    def _open_histories(self, step: int) -> None:
        """Begin histories, or go on with those of the steps up to this one."""
        self.histories = {}
        self._start = step
        if self._path is None or not self.keeps_history:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)  # or the end would find it missing
        others = self._path.parent.glob(f"{escape(self._path.stem)}.*{escape(self._path.suffix)}")
        found = [path for path in (self._path, *others) if path.exists()]
        if step == 0 and not self._written.issuperset(found):
            raise HistoryError(
                f"{found[0]} holds the history of another run; name another file, or remove it"
            )
        self._history(TRAIN)

    def _history(self, series: str) -> History | None:
        """The history of a series; in a run that goes on, with the steps up to where it does."""
        if self._path is None or not self.keeps_history:
            return None
        if series not in self.histories:
            path = self._path_of(series)
            if self._start > 0 and path.exists():
                history = History.load(path, statistics=self.statistics)
                history.cut(self._start)
            else:
                history = self._new_history()
            self.histories[series] = history
        return self.histories[series]

    def _new_history(self) -> History:
        return History(snapshots=self._snapshots)

    def save_histories(self) -> None:
        """Write all histories to their files."""
        for series, history in self.histories.items():
            if len(history):
                history.save(self._path_of(series))
                self._written.add(self._path_of(series))
        self._saved_at = time.monotonic()


def shard_after(watched: Watch, name: str) -> str:
    """An id that follows from that of a watch's window, which is in the checkpoints.

    The id decides which contexts are kept of more than there is room for, and a run that goes on
    from a checkpoint is to keep the same ones.
    """
    return uuid.uuid5(uuid.UUID(watched._plan.state.shards[0]), name).hex


def lacks_results(geometry: Geometry) -> bool:
    """The data of this window do not determine all results, so that scalars are missing."""
    return any(
        isinstance(value, Unavailable) and not value.by_choice
        for site in geometry
        for results in geometry[site].values()
        for value in results._values.values()
    )
