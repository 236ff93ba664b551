"""Checks that torchrun runs: transformers' Trainer under DDP, the callback on every rank."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainingArguments

import geomhooks as gh
from geomhooks.integrations.huggingface import GeometryCallback
from tests.integrations.ranks_together import (
    STATISTICS,
    Beside,
    assert_all_ranks,
    assert_equal_numbers,
    uneven_examples,
)
from tests.integrations.training import language_model

BLOCK = "transformer.h.1"


class Note(TrainerCallback):
    """Ends the windows of watches beside the callback's where the Trainer logs its own numbers."""

    def __init__(self, train: Beside, evaluation: Beside) -> None:
        self.train, self.evaluation = train, evaluation

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.train.attach()
        self.evaluation.attach()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.train.take(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.evaluation.take(state.global_step)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.train.detach()
        self.evaluation.detach()


def new_trainer(folder: Path, callbacks: Any, model: Any = None, **changes: Any) -> Trainer:
    options = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "max_steps": 6,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    } | changes
    return Trainer(
        model=model or new_model(),
        args=TrainingArguments(**options),
        train_dataset=uneven_examples(40),
        eval_dataset=uneven_examples(6, seed=9),
        callbacks=callbacks,
    )


def new_model() -> Any:
    return language_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def logged(trainer: Trainer, prefix: str) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            if name.startswith(prefix):
                found[entry["step"]][name.removeprefix(prefix)] = value
    return found


def everything(**options: Any) -> GeometryCallback:
    return GeometryCallback(statistics=STATISTICS, scalars="*", **options)


def folder(name: str) -> Path:
    path = Path(name)
    path.mkdir(exist_ok=True)
    return path


def logs_the_numbers_of_all_ranks() -> None:
    """Of training and evaluation, in the logs of each rank and in the history, and once resumed."""
    here, model = folder("whole"), new_model()
    beside = [Beside(model, model, when, here) for when in ("train", "eval")]
    history = here / "history.safetensors"
    trainer = new_trainer(here, [Note(*beside), everything(history=history)], model)
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    found = {"train": logged(trainer, "geometry/"), "eval": logged(trainer, "eval_geometry/")}
    for one, steps, path in zip(
        beside, ([2, 4, 6], [3, 6]), ("history", "history.eval"), strict=True
    ):
        assert sorted(found[one.when]) == steps
        dist.barrier()  # rank 0 has written the histories
        kept = gh.History.load(here / f"{path}.safetensors")
        assert kept.steps == steps
        for step in steps:
            assert_all_ranks(one, found[one.when][step], step, BLOCK)
            assert_equal_numbers(dict(kept.scalars(step)), found[one.when][step], step)
    names = {path.name for path in (here / "run" / "checkpoint-3").glob("geomhooks-*")}
    assert names == {f"geomhooks-train-{rank}.safetensors" for rank in range(2)}

    callback = everything(history=history)
    resumed = new_trainer(here, [callback])
    resumed.train(resume_from_checkpoint=str(here / "run" / "checkpoint-3"))
    assert callback.histories.keys() == ({"train", "eval"} if dist.get_rank() == 0 else set())
    for step in (4, 6):
        assert_equal_numbers(logged(resumed, "geometry/")[step], found["train"][step], step)


class LogsAlone(TrainerCallback):
    """Logs a loss of its own in between, on one rank."""

    trainer: Trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.log({"loss": 1.0, "alone": 1.0})


def a_rank_that_logs_alone_keeps_none_waiting() -> None:
    callbacks: list[TrainerCallback] = [everything()]
    alone = LogsAlone()
    if dist.get_rank() == 0:
        callbacks.append(alone)
    trainer = new_trainer(folder("alone"), callbacks, max_steps=4, save_strategy="no")
    alone.trainer = trainer
    trainer.train()
    assert sorted(logged(trainer, "geometry/")) == [2, 4]
    assert sorted(logged(trainer, "alone")) == ([0, 1, 2, 3] if dist.get_rank() == 0 else [])


def a_history_that_is_there_ends_all_ranks() -> None:
    path = folder("there") / "history.safetensors"
    dist.barrier()
    if dist.get_rank() == 0:
        path.write_bytes(b"another run's")
    trainer = new_trainer(folder("there"), [everything(history=path)])
    with pytest.raises(gh.errors.HistoryError, match="holds the history of another run"):
        trainer.train()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())


CHECKS = [
    logs_the_numbers_of_all_ranks,
    a_rank_that_logs_alone_keeps_none_waiting,
    a_history_that_is_there_ends_all_ranks,
]
