"""The callback in a real Lightning Trainer: what is counted, logged, saved, and left behind."""

# ruff: noqa: E402 - whether the packages are there is asked before they are imported

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import geomhooks as gh
from tests.integrations.training import LENGTH, examples, language_model, needs, offline_rows

needs("lightning", "lightning")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from geomhooks.integrations.lightning import GeometryCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*litlogger"),
]
BATCH = 4
OF_A_STEP = BATCH * LENGTH
SHARE = "geometry/model.transformer.h.1/pos_ctx/shares/pos"
COUNT = "geometry/model.transformer.h.1/pos_ctx/count"


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = language_model()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.model(**batch).loss)

    def test_step(self, batch: Any, index: int) -> None:
        self.log("test_loss", self.model(**batch).loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Remember(Logger):
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    name, version = "remember", 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({**metrics, "step": step})

    def logged(self, name: str) -> dict[int, float]:
        return {row["step"]: row[name] for row in self.rows if name in row}


def train_data(steps: int = 10) -> DataLoader:
    return DataLoader(examples(steps * BATCH), batch_size=BATCH)


def val_data() -> DataLoader:
    return DataLoader(examples(8, seed=9), batch_size=BATCH)


def new_trainer(folder: Path, callbacks: Any, logger: Any = None, **changes: Any) -> pl.Trainer:
    options = {
        "max_steps": 6,
        "log_every_n_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": str(folder),
        "limit_val_batches": 0,
    } | changes
    return pl.Trainer(callbacks=callbacks, logger=logger or Remember(), **options)


def hooks(model: torch.nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def everything(**options: Any) -> GeometryCallback:
    return GeometryCallback(scalars="*", **options)


def test_windows_between_logs(tmp_path: Path) -> None:
    trainer, module = new_trainer(tmp_path, [everything()]), Module()
    trainer.fit(module, train_data())
    found = trainer.logger.logged(f"train_{COUNT}")
    assert list(found.values()) == [2 * OF_A_STEP] * 3
    assert list(found) == list(trainer.logger.logged("train_loss")), "at the steps of the loss"
    assert trainer.callback_metrics[f"train_{COUNT}"] == 2 * OF_A_STEP
    assert hooks(module) == 0


def test_accumulated_gradients_and_every(tmp_path: Path) -> None:
    """Steps 0, 2, 4 count, each of them three forwards."""
    trainer = new_trainer(
        tmp_path, [everything(every=2)], accumulate_grad_batches=3, log_every_n_steps=3
    )
    trainer.fit(Module(), train_data(18))
    found = trainer.logger.logged(f"train_{COUNT}")
    assert list(found.values()) == [6 * OF_A_STEP, 3 * OF_A_STEP]


def test_validation_is_apart_and_the_sanity_check_does_not_count(tmp_path: Path) -> None:
    trainer, module = (
        new_trainer(
            tmp_path,
            [everything()],
            limit_val_batches=1.0,
            num_sanity_val_steps=2,
            val_check_interval=3,
        ),
        Module(),
    )
    trainer.fit(module, train_data(), val_data())
    log = trainer.logger
    assert list(log.logged(f"train_{COUNT}").values()) == [2 * OF_A_STEP] * 3
    assert list(log.logged(f"val_{COUNT}").values()) == [8 * LENGTH] * 2
    assert hooks(module) == 0
    trainer.validate(module, val_data(), verbose=False)
    assert list(log.logged(f"val_{COUNT}").values())[-1] == 8 * LENGTH
    trainer.test(module, val_data(), verbose=False)
    assert hooks(module) == 0


class Writes(pl.Callback):
    """Lets the model write samples after each batch, as many do."""

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        ids = torch.ones(2, 3, dtype=torch.long)
        module.eval()
        module.model.generate(
            ids, attention_mask=ids, max_new_tokens=4, do_sample=False, pad_token_id=0
        )
        module.train()


def test_samples_between_batches_do_not_count(tmp_path: Path) -> None:
    trainer = new_trainer(
        tmp_path, [Writes(), everything(), Writes()], limit_val_batches=1.0, val_check_interval=3
    )
    trainer.fit(Module(), train_data(), val_data())
    assert list(trainer.logger.logged(f"train_{COUNT}").values()) == [2 * OF_A_STEP] * 3
    assert list(trainer.logger.logged(f"val_{COUNT}").values()) == [8 * LENGTH] * 2


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
def test_a_model_that_was_loaded_in_evaluation_mode_trains(tmp_path: Path) -> None:
    """As from_pretrained leaves it, and Lightning as it was."""
    module = Module()
    module.model.eval()
    trainer = new_trainer(tmp_path, [everything()], limit_val_batches=1.0, val_check_interval=3)
    trainer.fit(module, train_data(), val_data())
    assert module.training
    assert not module.model.training
    assert list(trainer.logger.logged(f"train_{COUNT}").values()) == [2 * OF_A_STEP] * 3
    assert list(trainer.logger.logged(f"val_{COUNT}").values()) == [8 * LENGTH] * 2


def test_a_window_is_logged_once(tmp_path: Path) -> None:
    """Not again in the rows of steps that end none."""
    trainer = new_trainer(tmp_path, [everything(every=4)], log_every_n_steps=1)
    trainer.fit(Module(), train_data())
    assert trainer.logger.logged(f"train_{COUNT}") == {0: OF_A_STEP, 4: OF_A_STEP}
    assert list(trainer.logger.logged("train_loss")) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("accumulate", "optimizers", "expected"),
    [(1, 1, [3, 3, 3, 3]), (1, 2, [3, 3, 3, 3]), (2, 1, [3, 3, 3, 3]), (6, 1, [3, 3, 6])],
)
def test_manual_optimization(
    tmp_path: Path, accumulate: int, optimizers: int, expected: list[int]
) -> None:
    """Lightning logs every three batches; a window ends there if a step was made in it."""

    class Manual(Module):
        automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            self.manual_backward(self.model(**batch).loss)
            if index % accumulate == accumulate - 1:
                found = self.optimizers()
                for optimizer in found if isinstance(found, list) else [found]:
                    optimizer.step()
                    optimizer.zero_grad()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(optimizers)]

    trainer = new_trainer(tmp_path, [everything()], max_steps=-1, max_epochs=1, log_every_n_steps=3)
    trainer.fit(Manual(), train_data(12))
    found = list(trainer.logger.logged(f"train_{COUNT}").values())
    assert found == [number * OF_A_STEP for number in expected]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"max_steps": 5}, {1: 2, 3: 2, 4: 1}), ({"log_every_n_steps": 50}, {5: 6})],
    ids=str,
)
def test_what_is_left_is_logged_at_the_end(
    tmp_path: Path, options: dict[str, Any], expected: dict[int, int]
) -> None:
    path = tmp_path / "history.safetensors"
    trainer = new_trainer(tmp_path, [everything(history=path)], **options)
    trainer.fit(Module(), train_data())
    assert trainer.logger.logged(f"train_{COUNT}") == {
        step: number * OF_A_STEP for step, number in expected.items()
    }
    assert gh.History.load(path).steps == [step + 1 for step in expected]


def test_a_validation_by_itself_leaves_the_histories_as_they_are(tmp_path: Path) -> None:
    options = {"limit_val_batches": 1.0, "val_check_interval": 3}
    path, module = tmp_path / "history.safetensors", Module()
    new_trainer(tmp_path, [everything(history=path)], **options).fit(
        module, train_data(), val_data()
    )
    before = {file.name: file.read_bytes() for file in tmp_path.glob("history*")}
    assert len(before) == 2
    trainer = new_trainer(tmp_path, [everything(history=path)], **options)
    trainer.validate(module, val_data(), verbose=False)
    assert trainer.logger.logged(f"val_{COUNT}") == {0: 8 * LENGTH}
    assert {file.name: file.read_bytes() for file in tmp_path.glob("history*")} == before


@pytest.mark.parametrize("when", ["train", "eval"])
def test_only_one_of_the_two(tmp_path: Path, when: Any) -> None:
    trainer = new_trainer(
        tmp_path, [everything(when=when)], limit_val_batches=1.0, val_check_interval=3
    )
    trainer.fit(Module(), train_data(), val_data())
    assert bool(trainer.logger.logged(f"train_{COUNT}")) == (when == "train")
    assert bool(trainer.logger.logged(f"val_{COUNT}")) == (when == "eval")


def test_training_does_not_notice(tmp_path: Path) -> None:
    runs = []
    for callbacks in ([], [GeometryCallback()]):
        pl.seed_everything(3, verbose=False)
        trainer, module = (
            new_trainer(tmp_path, callbacks, limit_val_batches=1.0, val_check_interval=3),
            Module(),
        )
        trainer.fit(module, train_data(), val_data())
        runs.append((module.state_dict(), trainer.logger.logged("val_loss")))
    (bare, losses), (watched, watched_losses) = runs
    assert losses == watched_losses
    assert all(torch.equal(value, watched[name]) for name, value in bare.items())


def test_bf16(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, [everything()], precision="bf16-mixed")
    trainer.fit(Module(), train_data())
    assert set(trainer.logger.logged(f"train_{COUNT}").values()) == {2 * OF_A_STEP}


class Killed(Exception):
    pass


class Kill(pl.Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            raise Killed


class Plain(Module):
    """Without dropout, whose random numbers Lightning does not restore."""

    def __init__(self) -> None:
        super().__init__()
        self.model = language_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


@pytest.mark.parametrize("options", [{"every": 2}, {"window": False}], ids=str)
def test_resumed_like_uninterrupted(tmp_path: Path, options: dict[str, Any]) -> None:
    """The checkpoint of step 3, the end of an epoch, is inside of the window of steps 2 to 4."""

    def run(folder: Path, *more: Any, resume: Path | None = None) -> Path:
        history = folder / "history.safetensors"
        checkpoints = ModelCheckpoint(
            folder, "{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True
        )
        callback = everything(history=history, snapshots="all", **options)
        trainer = new_trainer(
            folder,
            [callback, checkpoints, *more],
            max_steps=8,
            limit_val_batches=1.0,
            num_sanity_val_steps=1,
        )
        trainer.fit(Plain(), train_data(3), val_data(), ckpt_path=resume)
        return history

    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    run(whole)
    with pytest.raises(Killed):
        run(part, Kill())
    run(part, resume=part / "step=3.ckpt")
    for name in ("history.safetensors", "history.val.safetensors"):
        expected, found = gh.History.load(whole / name), gh.History.load(part / name)
        assert found.steps == expected.steps
        for scalar in expected.names:
            torch.testing.assert_close(
                found.curve(scalar), expected.curve(scalar), rtol=1e-6, atol=1e-9, equal_nan=True
            )


def test_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("tensorboard")
    needs("wandb")
    import wandb
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_SILENT", "true")
    csv = CSVLogger(tmp_path, "csv")
    board = TensorBoardLogger(tmp_path, "events")
    remote = WandbLogger(save_dir=tmp_path, offline=True)
    trainer = new_trainer(
        tmp_path,
        [GeometryCallback()],
        [csv, board, remote, remembered := Remember()],
        limit_val_batches=1.0,
        val_check_interval=3,
    )
    trainer.fit(Module(), train_data(), val_data())
    wandb.finish()
    wandb.teardown()  # waits until the file is written
    rows = list(offline_rows(tmp_path))
    events = EventAccumulator(board.log_dir)
    events.Reload()
    for name in (f"train_{SHARE}", f"val_{SHARE}"):
        expected = remembered.logged(name)
        assert len(expected) >= 2
        assert {e.step: e.value for e in events.Scalars(name)} == pytest.approx(expected, rel=1e-6)
        assert [row[name] for row in rows if name in row] == pytest.approx([*expected.values()])
    groups = {tag.split("/")[0] for tag in events.Tags()["scalars"] if "geometry" in tag}
    assert groups == {"train_geometry", "val_geometry"}


def test_an_exception_takes_the_hooks_off(tmp_path: Path) -> None:
    path = tmp_path / "history.safetensors"
    trainer, module = new_trainer(tmp_path, [GeometryCallback(history=path), Kill()]), Module()
    with pytest.raises(Killed):
        trainer.fit(module, train_data())
    assert hooks(module) == 0
    assert gh.History.load(path).steps == [2, 4]


def test_the_older_name(tmp_path: Path) -> None:
    """A process that uses pytorch_lightning gets a callback of that."""
    needs("pytorch_lightning")
    program = """
import pytorch_lightning as pl
from geomhooks.integrations.lightning import GeometryCallback
assert issubclass(GeometryCallback, pl.Callback)
trainer = pl.Trainer(callbacks=[GeometryCallback()], logger=False, accelerator="cpu")
assert any(isinstance(c, GeometryCallback) for c in trainer.callbacks)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)
