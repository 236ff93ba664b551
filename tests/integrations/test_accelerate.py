"""The documented lines for a loop with Accelerate, run with the real package."""

# ruff: noqa: E402 - whether the packages are there is asked before they are imported

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import geomhooks as gh
from tests.integrations.training import LENGTH, examples, language_model, needs

needs("accelerate", "trainer")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration

BATCH = 4
OF_A_STEP = BATCH * LENGTH


@pytest.fixture(autouse=True)
def state_of_its_own() -> Iterator[None]:
    """Accelerate keeps one for the process, with one precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Loop:
    """A loop as one writes it with Accelerate, and the lines of geomhooks in it."""

    def __init__(self, folder: Path, every: int = 1, accumulate: int = 1, **options: Any) -> None:
        self.accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=accumulate,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
            **options,
        )
        # Without dropout: a loader that begins anew draws a random number.
        model = language_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        loader = DataLoader(examples(10 * BATCH), batch_size=BATCH)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.watch = gh.watch(self.model, when="train", every=every)
        self.accelerator.register_for_checkpointing(self.watch)
        self.history = gh.History()

    def run(self, begin: int = 0, end: int = 10, log_every: int = 4) -> None:
        self.watch.attach()
        for step, batch in enumerate(self.loader):
            if not begin <= step < end:
                continue
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.model(**batch).loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.watch.step()
            if step % log_every == log_every - 1:
                geometry = self.watch.geometry()
                scalars = geometry.scalars()
                self.accelerator.log({f"geometry/{name}": scalars[name] for name in scalars}, step)
                self.history.append(step, geometry)
                self.watch.reset()
        self.watch.detach()


def count(history: gh.History) -> dict[int, float]:
    steps, values = history.curve("transformer.h.1/pos_ctx/count")
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def test_windows(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.run()
    assert count(loop.history) == {3: 4 * OF_A_STEP, 7: 4 * OF_A_STEP}


def test_every_other_step_with_accumulated_gradients(tmp_path: Path) -> None:
    """Batches 0 and 1 are step 0, 4 and 5 step 2; those of steps 1 and 3 do not count."""
    loop = Loop(tmp_path, every=2, accumulate=2)
    loop.run(end=8, log_every=8)
    assert count(loop.history) == {7: 4 * OF_A_STEP}


def test_bf16(tmp_path: Path) -> None:
    loop = Loop(tmp_path, mixed_precision="bf16")
    loop.run(end=4)
    assert count(loop.history) == {3: 4 * OF_A_STEP}


def test_saved_and_loaded_with_the_checkpoints_of_a_run(tmp_path: Path) -> None:
    whole = Loop(tmp_path)
    whole.run()
    first = Loop(tmp_path)
    first.run(end=6)
    first.accelerator.save_state(str(tmp_path / "checkpoint"))
    second = Loop(tmp_path)
    second.accelerator.load_state(str(tmp_path / "checkpoint"))
    second.run(begin=6)
    assert second.history.steps == [7]
    expected, found = whole.history.scalars(7), second.history.scalars(7)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), name


def test_tensorboard(tmp_path: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = Loop(tmp_path, log_with="tensorboard")
    loop.accelerator.init_trackers("run")
    loop.run()
    loop.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    name = "transformer.h.1/pos_ctx/shares/pos"
    found = {event.step: event.value for event in events.Scalars(f"geometry/{name}")}
    steps, values = loop.history.curve(name)
    assert found == pytest.approx(dict(zip(steps.tolist(), values.tolist(), strict=True)), rel=1e-6)
