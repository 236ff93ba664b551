"""``GeometryCallback`` for the Trainer of Hugging Face transformers.

It is given to the Trainer::

    trainer = Trainer(model, args, train_dataset=data, callbacks=[GeometryCallback()])
    trainer.train()

Wherever the Trainer logs its loss, it logs the geometry of the steps since the last time, under
``geometry/<site>/<statistic>/...``, which reach TensorBoard and Weights & Biases as ``train/...``,
and after each evaluation ``eval_geometry/...``, which reach them as ``eval/geometry/...``.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomhooks.errors import MissingExtraError, WatchError
from geomhooks.forwards.schedule import When
from geomhooks.history import History, Snapshots
from geomhooks.integrations.monitor import DEFAULT_SCALARS, TRAIN, Monitor
from geomhooks.integrations.ranks import Ranks
from geomhooks.statistics.base import Statistic
from geomhooks.storage.files import read_file, write_file
from geomhooks.storage.packing import pack_state, unpack_state

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise MissingExtraError(
        "GeometryCallback needs transformers and accelerate: pip install 'geomhooks[trainer]'"
    ) from error

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GeometryCallback"]


class GeometryCallback(TrainerCallback):  # type: ignore[misc]
    """Logs the geometry of a model while a Trainer trains and evaluates it.

    The state is saved with the Trainer's checkpoints, one file a process, and a run that is resumed
    from one, on as many processes, ends with the same numbers as one that was not interrupted.

    Training is what runs in the steps of the Trainer, and evaluation what runs in its ``evaluate``,
    also where that is called by itself. What else the model is used for, such as ``predict`` or
    samples that another callback lets it write, does not count. Steps after the last logging of the
    loss are logged when training ends. An evaluation that generates by beam search cannot be
    counted, and raises: ``when="train"`` leaves it out.

    Where several processes train, the numbers are those of all together, as if one had seen all the
    data (under tensor, context or sequence parallelism: of all that read other data than the first
    one), and are in ``trainer.state.log_history`` on each. The first one writes the history. Give
    the callback to the Trainer on every process; if one does not come to where numbers are taken,
    the others raise after ten minutes. They are taken where the Trainer itself has all processes
    meet, and not where ``trainer.log`` is called by others, perhaps on some processes only.

    The hooks come off when training ends, also by an exception: of a callback that was given to
    ``Trainer(callbacks=[...])``, because it wraps the ``train`` of that one trainer; of a callback
    that was added later, where the training stands in ``with callback:``; its evaluations count
    from that training on.

    Args:
        sites: as :func:`geomhooks.watch` takes them.
        statistics: the same; by default ``[PosCtx(contexts=256), Sphere()]``, which keeps fewer
            contexts than a watch by default does, for there are two states, and they are in every
            checkpoint.
        when: what to measure: "train", "eval", or "all", each apart from the other.
        every: count the forwards of every n-th step of training only.
        window: begin anew after each logging, so that a number is of the steps since the last one;
            False gives numbers of all steps so far.
        scalars: globs over the names of scalars to log; ``"*"`` logs all, some hundred a site.
        history: file to keep a :class:`geomhooks.History` of training in, with all scalars of every
            logging; an evaluation goes to a file beside it, such as ``history.eval.safetensors``,
            and one outside of training to none.
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
        self._trainer: Trainer | None = None
        self._told_of: weakref.WeakSet[Trainer] = weakref.WeakSet()
        self._logging = False

    @property
    def histories(self) -> dict[str, History]:
        """The histories of this run: "train", and "eval" or the prefixes of several data sets.

        That of an evaluation whose own prefix is "train" is called "eval_train".
        """
        return self.monitor.histories

    def close(self) -> None:
        """Take the hooks off and write the histories, as the end of training does."""
        self.monitor.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Events of the Trainer

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See to it that the end of training is noticed, however it comes, and evaluations."""
        trainer, _frame = calling_trainer()
        if trainer is not None:
            trainer.train = closing(trainer.train, self)
            self._tell_of_evaluations(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Put the hooks on, and go on from a checkpoint's state."""
        self._trainer, arguments = calling_trainer()
        if self._trainer is None:
            raise WatchError(
                "GeometryCallback was called by no transformers.Trainer, through which it logs; "
                "give it to one: Trainer(..., callbacks=[GeometryCallback()])"
            )
        self._tell_of_evaluations(self._trainer)
        monitor = self.monitor
        monitor.keeps_history = state.is_world_process_zero
        monitor.ranks = ranks_of(self._trainer)
        with monitor.ranks.together("the beginning of training"):
            if state.global_step:
                folder = arguments.get("resume_from_checkpoint")
                if not isinstance(folder, (str, os.PathLike)):
                    folder = checkpoint_folder(args, state)
                self._load(Path(folder) / self._state_file(args), state.global_step)
            monitor.start_train(given["model"], state.global_step)
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no":
            monitor.start_evaluation(given["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step of the optimizer begins; its forwards may be several."""
        self.monitor.begin_step(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The forwards of a step are over."""
        self.monitor.end_step()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """Where the loss of training is logged, log the geometry."""
        if not self._logging and "loss" in (logs or {}):
            if self.monitor.ranks.several and not all_ranks_log():
                return
            scalars = self.monitor.take_train(state.global_step)
            self._log({f"geometry/{name}": value for name, value in scalars.items()})

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Log the geometry of the evaluation, under the prefix of its metrics."""
        _trainer, arguments = calling_trainer()
        prefix = arguments.get("metric_key_prefix") or prefix_of(metrics or {})
        scalars = self.monitor.take_evaluation(state.global_step, prefix)
        self._log({f"{prefix}_geometry/{name}": value for name, value in scalars.items()})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the state beside the checkpoint's."""
        packed = self.monitor.state_dict()
        self.monitor.save_histories()
        if packed is None:
            return
        folder = checkpoint_folder(args, state)
        if not folder.is_dir():
            warnings.warn(
                f"there is no {folder} to save the state of GeometryCallback in; what is resumed "
                "from this checkpoint begins to count anew",
                stacklevel=2,
            )
            return
        statistics = self.monitor.statistics
        notes = {"step": packed["step"]}
        write_file(folder / self._state_file(args), unpack_state(packed, statistics), notes)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the geometry of the steps since the last logging, and take the hooks off."""
        scalars = self.monitor.take_rest(state.global_step)
        self._log({f"geometry/{name}": value for name, value in scalars.items()})
        self.close()

    # Of its own

    def _tell_of_evaluations(self, trainer: Trainer) -> None:
        """See to it that evaluations are noticed before they begin, for which there is no event."""
        if trainer not in self._told_of:
            trainer.evaluate = evaluating(trainer.evaluate, trainer, self)
            self._told_of.add(trainer)

    def _state_file(self, args: Any) -> str:
        """Name of the file for the state of one process; of several callbacks each has its own."""
        assert self._trainer is not None
        callbacks = self._trainer.callback_handler.callbacks
        number = [c for c in callbacks if isinstance(c, GeometryCallback)].index(self) + 1
        which = f"-{number}" if number > 1 else ""
        return f"geomhooks-{TRAIN}-{args.process_index}{which}.safetensors"

    def _load(self, path: Path, step: int) -> None:
        if not path.exists():
            warnings.warn(
                f"GeometryCallback found no state at {path}: it begins to count at step {step}",
                stacklevel=2,
            )
            return
        state, _ = read_file(path, self.monitor.statistics)
        self.monitor.load_state_dict(pack_state(state))

    def _log(self, scalars: dict[str, float]) -> None:
        """Through the Trainer's own logging, but not on the screen: they are too many."""
        if not scalars or self._trainer is None:
            return
        handler, control = self._trainer.callback_handler, self._trainer.control
        callbacks, should_log = handler.callbacks, control.should_log
        screens = (PrinterCallback, ProgressCallback)
        self._logging = True
        handler.callbacks = [c for c in callbacks if not isinstance(c, screens)]
        try:
            self._trainer.log(dict(scalars))
        finally:
            handler.callbacks, control.should_log = callbacks, should_log
            self._logging = False


def calling_trainer() -> tuple[Trainer | None, dict[str, Any]]:
    """The Trainer whose event this is, and the local names of its method that raised it.

    A Trainer tells its callbacks everything but itself and the folder that it resumes from.
    """
    frame = inspect.currentframe()
    while frame is not None:
        names = frame.f_locals
        if isinstance(names.get("self"), Trainer):
            return names["self"], dict(names)
        frame = frame.f_back
    return None, {}


def all_ranks_log() -> bool:
    """This event comes of the Trainer's own logging, for which it has gathered all ranks' loss."""
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_name
        if name != "log" and isinstance(frame.f_locals.get("self"), Trainer):
            return name == "_maybe_log_save_evaluate"
        frame = frame.f_back
    return False


def closing(train: Any, callback: GeometryCallback) -> Any:
    """A function that trains, after which the callback is closed, however it ends."""

    @functools.wraps(train)
    def train_and_close(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        finally:
            callback.close()

    return train_and_close


def evaluating(evaluate: Any, trainer: Trainer, callback: GeometryCallback) -> Any:
    """A function that evaluates, while the callback counts; as long as the trainer has it."""

    @functools.wraps(evaluate)
    def count_and_evaluate(*args: Any, **kwargs: Any) -> Any:
        if callback not in trainer.callback_handler.callbacks:
            return evaluate(*args, **kwargs)
        callback._trainer = trainer
        callback.monitor.ranks = ranks_of(trainer)
        with callback.monitor.evaluating(trainer.model, trainer.state.global_step):
            return evaluate(*args, **kwargs)

    return count_and_evaluate


def ranks_of(trainer: Trainer) -> Ranks:
    """The processes that read other data than this one."""
    return Ranks.of_mesh(getattr(trainer.accelerator, "torch_device_mesh", None))


def checkpoint_folder(args: Any, state: Any) -> Path:
    """Where the Trainer saves a checkpoint of this step."""
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def prefix_of(metrics: Mapping[str, Any]) -> str:
    """The prefix of an evaluation's metrics: "eval", or that and the name of its data set."""
    for name in metrics:
        if name.endswith("_runtime"):
            return name.removesuffix("_runtime")
    return "eval"
