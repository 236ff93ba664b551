"""``GeometryCallback`` for the Trainer of Lightning, imported as ``lightning`` or the older name.

It is given to the Trainer::

    trainer = Trainer(callbacks=[GeometryCallback()])
    trainer.fit(module, data)

Wherever the Trainer logs, every ``log_every_n_steps`` steps, it logs the geometry of the steps
since the last time as ``train_geometry/<site>/<statistic>/...``, and after each validation
``val_geometry/...``; what is left when training ends is logged then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from geomhooks.errors import MissingExtraError
from geomhooks.forwards.schedule import When
from geomhooks.history import History, Snapshots
from geomhooks.integrations.monitor import DEFAULT_SCALARS, Monitor
from geomhooks.integrations.ranks import Ranks
from geomhooks.statistics.base import Statistic

__all__ = ["GeometryCallback"]


def find_lightning() -> Any:
    """The module of the two that this process uses already, else the one that is installed."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    for name in sorted(names, key=lambda name: name not in sys.modules):
        with suppress(ImportError):
            return import_module(name)
    raise MissingExtraError("GeometryCallback needs Lightning: pip install 'geomhooks[lightning]'")


if TYPE_CHECKING:
    Callback = object
else:
    Callback = find_lightning().Callback


class GeometryCallback(Callback):
    """Logs the geometry of a module while Lightning trains and validates it.

    The state is in Lightning's checkpoints, and a run that goes on from one ends with the same
    numbers as one that was not interrupted. The hooks come off when the Trainer is done, also by an
    exception.

    Training is what runs in its training batches, whatever mode parts of the module are in, and
    evaluation what runs in its validation, also where ``validate`` is called by itself. What else
    the module is used for does not count: the sanity check before training, tests, predictions, or
    samples that another callback lets it write.

    Where several processes train, the numbers are those of all together, as if one had seen all the
    data (under ``ModelParallelStrategy``: of all that read other data than the first one), and are
    logged on each. The first one writes the history. If a process does not come to where numbers
    are taken, the others raise after ten minutes. Lightning's checkpoints are of the first process
    alone: in a run that goes on from one, the first window lacks what the others had counted.

    Args:
        sites: as :func:`geomhooks.watch` takes them; their names are those of the LightningModule.
        statistics: the same; by default ``[PosCtx(contexts=256), Sphere()]``, which keeps fewer
            contexts than a watch by default does, for there are two states, and they are in every
            checkpoint.
        when: what to measure: "train", "eval" (validation), or "all", each apart from the other.
        every: count the forwards of every n-th step of training only; a step is one of the
            optimizer's, ``trainer.global_step``.
        window: begin anew after each logging, so that a number is of the steps since the last one;
            False gives numbers of all steps so far.
        scalars: globs over the names of scalars to log; ``"*"`` logs all, some hundred a site.
        history: file to keep a :class:`geomhooks.History` of training in, with all scalars of every
            logging; validation goes to a file beside it, such as ``history.val.safetensors``, and
            one outside of training to none.
        snapshots: of how many steps the history keeps the whole geometry.
        options: further arguments of :func:`geomhooks.watch`, such as ``positions``.

    Raises:
        WatchError, HistoryError: an argument is none of what is allowed; or training begins, and
            the file of the history is there already, on all processes if it is on one.
    """

    def __init__(
        self,
        sites: Any = None,
        statistics: Sequence[Statistic] | Mapping[Any, Sequence[Statistic]] | None = None,
        *,
        when: When = "all",
        every: int = 1,
        window: bool = True,
        scalars: str | Sequence[str] = DEFAULT_SCALARS,
        history: str | os.PathLike[str] | None = None,
        snapshots: Snapshots = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.monitor = Monitor(
            sites=sites,
            statistics=statistics,
            when=when,
            every=every,
            window=window,
            scalars=scalars,
            history=history,
            snapshots=snapshots,
            **options,
        )
        self._stepped = 0  # batches that ended with a step of the optimizer, as Lightning counts
        self._last_step = 0

    @property
    def histories(self) -> dict[str, History]:
        """The histories of this run: "train" and "val"."""
        return self.monitor.histories

    # Training

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the hooks on, after the sanity check."""
        self._last_step = trainer.global_step
        if not trainer.global_step:
            self._stepped = 0
        monitor = self.monitor
        monitor.keeps_history = trainer.is_global_zero
        monitor.ranks = ranks_of(trainer)
        if monitor.ranks.several and not trainer.is_global_zero:
            monitor.load_state_dict(None)  # it is the first process's, and would count twice
        with monitor.ranks.together("the beginning of training"):
            monitor.start_train(pl_module, trainer.global_step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """A batch begins, perhaps one of several whose gradients are accumulated."""
        self.monitor.begin_step(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Log at those steps at which Lightning logs."""
        self.monitor.end_step()
        stepped = trainer.global_step != self._last_step
        self._last_step = trainer.global_step
        if not stepped and pl_module.automatic_optimization:
            return  # gradients are accumulated
        self._stepped += 1
        every = trainer.log_every_n_steps
        if every and self._stepped % every == 0:
            self._log_train(trainer, self.monitor.take_train(trainer.global_step))

    def _log_train(self, trainer: Any, scalars: Mapping[str, float]) -> None:
        """As Lightning's own monitors do; ``log_dict`` would repeat a value until the next one."""
        named = {f"train_geometry/{name}": value for name, value in scalars.items()}
        if named:
            tensors = {name: torch.tensor(value, device="cpu") for name, value in named.items()}
            trainer.callback_metrics.update(tensors)
            trainer.logged_metrics.update(tensors)
            for logger in trainer.loggers:
                logger.log_metrics(named, step=self._stepped - 1)

    # Validation

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """What runs from now on is validation."""
        if not trainer.sanity_checking:
            self.monitor.ranks = ranks_of(trainer)
            self.monitor.begin_evaluation(pl_module, trainer.global_step)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what validation has shown."""
        if not trainer.sanity_checking:
            scalars = self.monitor.take_evaluation(trainer.global_step, "val")
            named = {f"val_geometry/{name}": value for name, value in scalars.items()}
            # The ranks' numbers are equal; Lightning warns if they are not made so.
            several = self.monitor.ranks.several
            pl_module.log_dict(named, on_step=False, on_epoch=True, batch_size=1, sync_dist=several)

    # Ending

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the geometry of the steps since the last logging, and write the histories."""
        self._log_train(trainer, self.monitor.take_rest(trainer.global_step))
        self.monitor.save_histories()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take the hooks off."""
        self.monitor.stop()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the hooks off."""
        self.monitor.stop()

    # State

    def state_dict(self) -> dict[str, Any]:
        """What was counted in training, for Lightning's checkpoints."""
        return {"train": self.monitor.state_dict(), "stepped": self._stepped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._stepped = state_dict["stepped"]
        if state_dict["train"] is not None:
            self.monitor.load_state_dict(state_dict["train"])


def ranks_of(trainer: Any) -> Ranks:
    """The processes that read other data than this one."""
    return Ranks.of_mesh(getattr(trainer.strategy, "device_mesh", None))
