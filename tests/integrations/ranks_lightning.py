"""Checks that torchrun runs: Lightning's Trainer with "ddp", the callback on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

import geomhooks as gh
from geomhooks.integrations.lightning import GeometryCallback
from tests.integrations.ranks_together import (
    STATISTICS,
    Beside,
    assert_all_ranks,
    assert_equal_numbers,
    uneven_examples,
)
from tests.integrations.training import language_model

BLOCK = "model.transformer.h.1"


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = language_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.model(**batch).loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.model(**batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Remember(Logger):
    """Keeps what it is given, on the rank that logs."""

    name, version = "remember", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    def logged(self, prefix: str) -> list[dict[str, float]]:
        """What was logged under a prefix, in the order in which it was."""
        rows = [
            {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
            for row in self.rows
        ]
        return [row for row in rows if row]


class Note(pl.Callback):
    """Ends the windows of watches beside the callback's, every second step and each validation."""

    def __init__(self, train: Beside, evaluation: Beside) -> None:
        self.train, self.evaluation = train, evaluation

    def on_train_start(self, *_: Any) -> None:
        self.train.attach()
        self.evaluation.attach()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step % 2 == 0:
            self.train.take(trainer.global_step)

    def on_validation_epoch_end(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.evaluation.take(trainer.global_step)

    def on_train_end(self, *_: Any) -> None:
        self.train.detach()
        self.evaluation.detach()


def new_trainer(callbacks: Any, **changes: Any) -> pl.Trainer:
    options = {
        "max_steps": 4,
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "accelerator": "cpu",
        "strategy": "ddp",
        "devices": 2,
        "num_sanity_val_steps": 1,
        "val_check_interval": 3,
        "logger": Remember() if dist.get_rank() == 0 else False,
    } | changes
    return pl.Trainer(callbacks=callbacks, **options)


def data() -> tuple[DataLoader, DataLoader]:
    train, evaluation = uneven_examples(40), uneven_examples(6, seed=9)
    return DataLoader(train, batch_size=4), DataLoader(evaluation, batch_size=2)


def everything(**options: Any) -> GeometryCallback:
    return GeometryCallback(statistics=STATISTICS, scalars="*", **options)


def a_fit_logs_the_numbers_of_all_ranks() -> None:
    """Of training and validation: on the logger of rank 0, in its history, and in all metrics."""
    here = Path("fitted")
    here.mkdir(exist_ok=True)
    module = Module()
    beside = [Beside(module, module.model, when, here) for when in ("train", "eval")]
    callbacks = [
        Note(*beside),
        everything(history=here / "history.safetensors"),
        ModelCheckpoint(here, "{step}", every_n_train_steps=3, save_top_k=-1),
    ]
    trainer = new_trainer(callbacks)
    trainer.fit(module, *data())
    dist.barrier()
    for one, steps, path, prefix in (
        (beside[0], [2, 4], "history", "train_geometry/"),
        (beside[1], [3], "history.val", "val_geometry/"),
    ):
        kept = gh.History.load(here / f"{path}.safetensors")
        assert kept.steps == steps
        for step in steps:
            assert_all_ranks(one, dict(kept.scalars(step)), step, BLOCK)
        last = dict(kept.scalars(steps[-1]))
        metrics = trainer.callback_metrics.items()
        found = {k.removeprefix(prefix): float(v) for k, v in metrics if k.startswith(prefix)}
        assert_equal_numbers(found, last, "metrics")
        if dist.get_rank() == 0:
            rows = trainer.logger.logged(prefix)
            assert len(rows) == len(steps)
            for step, row in zip(steps, rows, strict=True):
                assert_equal_numbers(row, dict(kept.scalars(step)), step)


def a_fit_goes_on_from_the_first_ranks_state() -> None:
    """Step 3, of which rank 0 has the checkpoint, and step 4 of both: three times 4 sentences."""
    if dist.get_rank() == 0:
        state = torch.load("fitted/step=3.ckpt", weights_only=False)
        assert state["callbacks"]["GeometryCallback"]["train"] is not None
    callback = everything(when="train")
    trainer = new_trainer([callback])
    trainer.fit(Module(), *data(), ckpt_path="fitted/step=3.ckpt", weights_only=False)
    name = f"train_geometry/{BLOCK}/pos_ctx/contexts"
    found = trainer.callback_metrics.get(name)
    assert found == 12, [n for n in trainer.callback_metrics if BLOCK in n and "pos_ctx" in n]


def a_history_that_is_there_ends_the_fit_of_all_ranks() -> None:
    path = Path("there.safetensors")
    if dist.get_rank() == 0:
        path.write_bytes(b"another run's")
    module = Module()
    with pytest.raises(gh.errors.HistoryError, match="holds the history of another run"):
        new_trainer([everything(history=path)]).fit(module, *data())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


CHECKS = [
    a_fit_logs_the_numbers_of_all_ranks,
    a_fit_goes_on_from_the_first_ranks_state,
    a_history_that_is_there_ends_the_fit_of_all_ranks,
]
