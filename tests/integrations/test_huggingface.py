"""The callback in a real Trainer: what is counted, logged, saved, resumed, and left behind."""

# ruff: noqa: E402 - whether the packages are there is asked before they are imported

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import geomhooks as gh
from tests.integrations.training import (
    BLOCKS,
    LENGTH,
    examples,
    language_model,
    needs,
    offline_rows,
)

needs("transformers", "trainer")
needs("accelerate", "trainer")

from transformers import Trainer, TrainerCallback, TrainingArguments

from geomhooks.integrations.huggingface import GeometryCallback

BATCH = 4
SHARE = "geometry/transformer.h.1/pos_ctx/shares/pos"
COUNT = "geometry/transformer.h.1/pos_ctx/count"
OF_A_STEP = BATCH * LENGTH


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    options = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "max_steps": 6,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    } | changes
    return TrainingArguments(**options)


def new_trainer(
    folder: Path, callback: Any, model: nn.Module | None = None, more: Any = (), **changes: Any
) -> Trainer:
    return Trainer(
        model=model or language_model(),
        args=arguments(folder, **changes),
        train_dataset=examples(40),
        eval_dataset=examples(8, seed=9),
        callbacks=[callback, *more],
    )


def logged(trainer: Trainer, name: str) -> dict[int, float]:
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def everything(**options: Any) -> GeometryCallback:
    return GeometryCallback(scalars="*", **options)


def test_windows_between_the_trainers_own_logs(tmp_path: Path) -> None:
    callback = everything()
    trainer = new_trainer(tmp_path, callback)
    trainer.train()
    assert logged(trainer, COUNT) == {2: 2 * OF_A_STEP, 4: 2 * OF_A_STEP, 6: 2 * OF_A_STEP}
    assert list(logged(trainer, "loss")) == [2, 4, 6]
    assert len(set(logged(trainer, SHARE).values())) == 3
    assert hooks(trainer.model) == 0


def test_one_growing_window(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, everything(window=False))
    trainer.train()
    assert logged(trainer, COUNT) == {2: 2 * OF_A_STEP, 4: 4 * OF_A_STEP, 6: 6 * OF_A_STEP}


def test_the_numbers_are_those_of_the_forwards(tmp_path: Path) -> None:
    """Against hooks of our own around the same Trainer, dense in float64."""
    seen: list[torch.Tensor] = []
    model = language_model()
    model.transformer.h[1].register_forward_hook(
        lambda _, __, out: seen.append((out if torch.is_tensor(out) else out[0]).detach().double())
    )
    trainer = new_trainer(tmp_path, everything(), model)
    trainer.train()
    norms = logged(trainer, "geometry/transformer.h.1/sphere/norm/mean")
    for number, step in enumerate((2, 4, 6)):
        window = torch.cat(seen[2 * number : 2 * number + 2])
        assert norms[step] == pytest.approx(float(window.norm(dim=-1).mean()), rel=1e-6)
        total = (window - window.mean((0, 1))).square().sum()
        pos = len(window) * (window.mean(0) - window.mean((0, 1))).square().sum()
        assert logged(trainer, SHARE)[step] == pytest.approx(float(pos / total), rel=1e-5)


def test_training_does_not_notice(tmp_path: Path) -> None:
    models = []
    for callbacks in ([], [GeometryCallback()]):
        trainer = new_trainer(tmp_path, TrainerCallback(), more=callbacks, eval_strategy="epoch")
        trainer.train()
        models.append((trainer.model, logged(trainer, "loss"), logged(trainer, "eval_loss")))
    (bare, *losses), (watched, *watched_losses) = models
    assert losses == watched_losses
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_every_other_step_with_accumulated_gradients(tmp_path: Path) -> None:
    """Steps 0, 2 and 4 count, each of them three forwards."""
    callback = everything(every=2)
    trainer = new_trainer(tmp_path, callback, gradient_accumulation_steps=3, logging_steps=3)
    trainer.train()
    assert logged(trainer, COUNT) == {3: 6 * OF_A_STEP, 6: 3 * OF_A_STEP}


def test_a_window_in_which_no_step_counts_is_left_open(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, everything(every=4), logging_steps=1)
    trainer.train()
    assert logged(trainer, COUNT) == {1: OF_A_STEP, 5: OF_A_STEP}


def test_evaluation_is_apart(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, everything(), eval_strategy="steps", eval_steps=3)
    trainer.train()
    assert logged(trainer, COUNT) == {2: 2 * OF_A_STEP, 4: 2 * OF_A_STEP, 6: 2 * OF_A_STEP}
    assert logged(trainer, f"eval_{COUNT}") == {3: 8 * LENGTH, 6: 8 * LENGTH}
    assert hooks(trainer.model) == 0


def test_several_evaluations_have_names_of_their_own(tmp_path: Path) -> None:
    trainer = Trainer(
        model=language_model(),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=6),
        train_dataset=examples(40),
        eval_dataset={"few": examples(4), "org/many": examples(16)},
        callbacks=[everything(history=tmp_path / "h.safetensors")],
    )
    trainer.train()
    assert logged(trainer, f"eval_few_{COUNT}") == {6: 4 * LENGTH}
    assert logged(trainer, f"eval_org/many_{COUNT}") == {6: 16 * LENGTH}
    names = {path.name for path in tmp_path.glob("h.*")}
    assert names == {"h.safetensors", "h.eval_few.safetensors", "h.eval_org%2Fmany.safetensors"}


def test_an_evaluation_on_the_data_of_training_is_not_training(tmp_path: Path) -> None:
    """Under the prefix by which many log the accuracy on what they train on."""

    class OnTraining(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                trainer.evaluate(trainer.train_dataset, metric_key_prefix="train")

    path = tmp_path / "h.safetensors"
    trainer = new_trainer(tmp_path, everything(history=path), more=[OnTraining()])
    trainer.train()
    assert logged(trainer, COUNT) == dict.fromkeys((2, 4, 6), 2 * OF_A_STEP)
    assert logged(trainer, f"train_{COUNT}") == {3: 40 * LENGTH}
    name = COUNT.removeprefix("geometry/")
    assert gh.History.load(path).curve(name)[1].tolist() == [2 * OF_A_STEP] * 3
    apart = gh.History.load(tmp_path / "h.eval_train.safetensors")
    assert apart.curve(name)[1].tolist() == [40 * LENGTH]


@pytest.mark.parametrize("when", ["train", "eval"])
def test_only_one_of_the_two(tmp_path: Path, when: Any) -> None:
    trainer = new_trainer(tmp_path, everything(when=when), eval_strategy="epoch")
    trainer.train()
    assert bool(logged(trainer, COUNT)) == (when == "train")
    assert bool(logged(trainer, f"eval_{COUNT}")) == (when == "eval")


def test_predictions_do_not_count(tmp_path: Path) -> None:
    class Predicts(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.predict(examples(4))

    trainer = new_trainer(
        tmp_path, everything(), more=[Predicts()], eval_strategy="steps", eval_steps=6
    )
    trainer.train()
    assert set(logged(trainer, COUNT).values()) == {2 * OF_A_STEP}
    assert logged(trainer, f"eval_{COUNT}") == {6: 8 * LENGTH}


class Writes(TrainerCallback):
    """Lets the model write samples after each step, as many do."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        ids = torch.ones(2, 3, dtype=torch.long)
        for mode in (False, True):
            model.train(mode)
            model.generate(
                ids, attention_mask=ids, max_new_tokens=4, do_sample=False, pad_token_id=0
            )


def test_samples_between_steps_do_not_count(tmp_path: Path) -> None:
    trainer = Trainer(
        model=language_model(),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=3),
        train_dataset=examples(40),
        eval_dataset=examples(8, seed=9),
        callbacks=[Writes(), callback := everything(), Writes()],
    )
    trainer.train()
    assert logged(trainer, COUNT) == dict.fromkeys((2, 4, 6), 2 * OF_A_STEP)
    assert logged(trainer, f"eval_{COUNT}") == dict.fromkeys((3, 6), 8 * LENGTH)
    assert callback.monitor.evaluation is None


def test_a_part_that_is_frozen_in_evaluation_mode_trains(tmp_path: Path) -> None:
    """Its own mode is that of evaluation all the time."""
    model = language_model()
    train = model.transformer.train
    model.transformer.train = lambda mode=True: train(False)
    trainer = new_trainer(tmp_path, everything(), model, eval_strategy="steps", eval_steps=3)
    trainer.train()
    assert not model.transformer.training
    assert logged(trainer, COUNT) == dict.fromkeys((2, 4, 6), 2 * OF_A_STEP)
    assert logged(trainer, f"eval_{COUNT}") == dict.fromkeys((3, 6), 8 * LENGTH)


def test_evaluations_that_no_strategy_tells_of(tmp_path: Path) -> None:
    """Called by themselves before and after training, and asked for by another callback."""

    class Asks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_evaluate = state.global_step == 3

    path = tmp_path / "history.safetensors"
    trainer = new_trainer(tmp_path, everything(history=path), more=[Asks()])
    trainer.evaluate()
    assert logged(trainer, f"eval_{COUNT}") == {0: 8 * LENGTH}
    assert hooks(trainer.model) == 0
    trainer.train()
    assert logged(trainer, f"eval_{COUNT}") == {3: 8 * LENGTH}
    assert logged(trainer, COUNT) == dict.fromkeys((2, 4, 6), 2 * OF_A_STEP)
    trainer.evaluate({"few": examples(4), "many": examples(16)})
    assert logged(trainer, f"eval_few_{COUNT}") == {6: 4 * LENGTH}
    assert logged(trainer, f"eval_many_{COUNT}") == {6: 16 * LENGTH}
    assert hooks(trainer.model) == 0
    assert {path.name for path in tmp_path.glob("history*")} == {
        "history.safetensors", "history.eval.safetensors"
    }  # fmt: skip
    assert gh.History.load(tmp_path / "history.eval.safetensors").steps == [3]


def test_an_evaluation_of_which_nothing_is_seen(tmp_path: Path) -> None:
    """It runs elsewhere, and training goes on."""

    class Elsewhere(Trainer):
        def prediction_step(self, *_: Any, **__: Any) -> Any:
            return torch.tensor(1.0), None, None

    trainer = Elsewhere(
        model=language_model(),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=3),
        train_dataset=examples(40),
        eval_dataset=examples(8),
        callbacks=[everything()],
    )
    with pytest.warns(UserWarning, match="of this evaluation there is no geometry: no token"):
        trainer.train()
    assert list(logged(trainer, COUNT)) == [2, 4, 6]
    assert list(logged(trainer, "eval_loss")) == [3, 6]


def test_a_metric_may_be_called_a_runtime(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, everything(), eval_strategy="steps", eval_steps=6)
    trainer.compute_metrics = lambda _: {"model_runtime": 1.0}
    trainer.train()
    assert logged(trainer, f"eval_{COUNT}") == {6: 8 * LENGTH}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 5}, {2: 2, 4: 2, 5: 1}),
        ({"logging_steps": 500}, {6: 6}),
        ({"logging_strategy": "no"}, {6: 6}),
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [True, False])
def test_what_is_left_is_logged_at_the_end(
    tmp_path: Path, options: dict[str, Any], expected: dict[int, int], window: bool
) -> None:
    path = tmp_path / "history.safetensors"
    trainer = new_trainer(tmp_path, everything(history=path, window=window), **options)
    trainer.train()
    steps = {step: number if window else step for step, number in expected.items()}
    assert logged(trainer, COUNT) == {step: n * OF_A_STEP for step, n in steps.items()}
    assert gh.History.load(path).steps == list(expected)


def test_an_end_of_which_nothing_was_seen_is_told_of(tmp_path: Path) -> None:
    """What trains is not the model that was given, and is seen only when training is over."""
    other = language_model()

    class Elsewhere(Trainer):
        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Any:
            return other(**inputs).loss + 0 * sum(p.sum() for p in model.parameters())

    trainer = Elsewhere(
        model=language_model(),
        args=arguments(tmp_path, logging_steps=500),
        train_dataset=examples(40),
        callbacks=[everything()],
    )
    with pytest.warns(UserWarning, match="of the last steps there is no geometry: no token"):
        assert trainer.train().global_step == 6


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"bf16": True},
        {"gradient_checkpointing": True, "bf16": True, "gradient_accumulation_steps": 2},
    ],
    ids=["checkpointing", "reentrant checkpointing", "bf16", "all"],
)
def test_counts_under_other_ways_to_train(tmp_path: Path, options: dict[str, Any]) -> None:
    trainer = new_trainer(tmp_path, everything(), **options)
    trainer.train()
    forwards = 2 * options.get("gradient_accumulation_steps", 1)
    assert set(logged(trainer, COUNT).values()) == {forwards * OF_A_STEP}
    non_finite = "geometry/transformer.h.0/sphere/non_finite"
    assert set(logged(trainer, non_finite).values()) == {0.0}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model(tmp_path: Path) -> None:
    """Steps 0 and 2 count, of those that the loss of step 4 is of."""
    torch._dynamo.reset()
    trainer = new_trainer(
        tmp_path,
        GeometryCallback(every=2, statistics=[gh.PosCtx(contexts=8)], scalars="*", when="train"),
        language_model(n_layer=1),
        torch_compile=True,
        torch_compile_backend="eager",
        max_steps=4,
        logging_steps=4,
    )
    trainer.train()
    torch._dynamo.reset()
    assert logged(trainer, COUNT.replace("h.1", "h.0")) == {4: 2 * OF_A_STEP}


def test_a_window_that_determines_nothing_ends_no_training(tmp_path: Path) -> None:
    """Positions that no context connects have no fit; the numbers that remain are logged."""
    model = language_model()
    data = examples(40)
    for index, row in enumerate(data):
        half = torch.arange(LENGTH) < LENGTH // 2
        row["attention_mask"] = (half if index % 2 else ~half).long()
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=data,
        callbacks=[GeometryCallback(scalars=["*/pos_ctx/shares/*", "*/sphere/norm/mean"])],
    )
    trainer.train()
    assert logged(trainer, SHARE) == {}
    assert len(logged(trainer, "geometry/transformer.h.1/sphere/norm/mean")) == 3


def test_the_default_selection_is_small(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, GeometryCallback())
    trainer.train()
    names = {n for entry in trainer.state.log_history for n in entry if n.startswith("geometry/")}
    results = {name.removeprefix("geometry/").split("/", 1)[1] for name in names}
    assert results == {
        "pos_ctx/shares/pos",
        "pos_ctx/shares/ctx",
        "pos_ctx/shares/resid",
        "pos_ctx/stable_rank",
        "sphere/norm/mean",
        "sphere/step_angle/mean",
        "sphere/anisotropy",
    }
    assert len(names) == 3 * 7 - 1, "the input of the first block has no step angle"


def test_scalars_by_name(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, GeometryCallback(scalars=["*.h.1/pos_ctx/shares/*"]))
    trainer.train()
    names = {n for entry in trainer.state.log_history for n in entry if n.startswith("geometry/")}
    assert names == {
        f"geometry/transformer.h.1/pos_ctx/shares/{part}" for part in ("pos", "ctx", "resid")
    }
    with pytest.raises(gh.errors.WatchError, match=r"'\*/pos_ctx/rang'.*matches none"):
        new_trainer(tmp_path, GeometryCallback(scalars=["*/pos_ctx/rang"])).train()


def test_nothing_of_it_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for disable in (True, False):
        trainer = new_trainer(tmp_path, GeometryCallback(), disable_tqdm=disable)
        trainer.train()
        shown = "".join(capsys.readouterr())
        assert "loss" in shown
        assert "geometry/" not in shown
        assert logged(trainer, SHARE)


# What is reported to


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = new_trainer(tmp_path, GeometryCallback(), report_to=["tensorboard"],
                          eval_strategy="steps", eval_steps=3)  # fmt: skip
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert "train/loss" in tags
    for tag, name in ((f"train/{SHARE}", SHARE), (f"eval/{SHARE}", f"eval_{SHARE}")):
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == pytest.approx(logged(trainer, name), rel=1e-6)
    assert {tag.split("/")[0] for tag in tags} == {"train", "eval"}
    assert sum(tag.startswith("train/geometry/") for tag in tags) == 20


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    import wandb

    trainer = new_trainer(tmp_path, GeometryCallback(), report_to=["wandb"],
                          eval_strategy="steps", eval_steps=3)  # fmt: skip
    trainer.train()
    wandb.finish()
    wandb.teardown()  # waits until the file is written
    rows = list(offline_rows(tmp_path))
    for tag, name in ((f"train/{SHARE}", SHARE), (f"eval/{SHARE}", f"eval_{SHARE}")):
        found = {row["train/global_step"]: row[tag] for row in rows if tag in row}
        assert found == pytest.approx(logged(trainer, name))


# Resuming


RESUMABLE = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def resumable(folder: Path, **options: Any) -> GeometryCallback:
    return everything(history=folder / "history.safetensors", snapshots="all", **options)


@pytest.mark.parametrize("options", [{}, {"window": False}, {"every": 2}], ids=str)
def test_resumed_like_uninterrupted(tmp_path: Path, options: dict[str, Any]) -> None:
    """The checkpoint of step 3 lies in the middle of the window of steps 2 to 4."""
    settings = {**RESUMABLE, "eval_strategy": "steps", "eval_steps": 4}
    whole_folder, part_folder = tmp_path / "whole", tmp_path / "part"
    for folder in (whole_folder, part_folder):
        folder.mkdir()
    whole = new_trainer(whole_folder, resumable(whole_folder, **options), **settings)
    whole.train()
    killed = new_trainer(part_folder, resumable(part_folder, **options), more=[Kill(5)], **settings)
    with pytest.raises(Killed):
        killed.train()
    resumed = new_trainer(part_folder, resumable(part_folder, **options), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in (part_folder / "run").iterdir()) == [
        "checkpoint-3", "checkpoint-6", "checkpoint-8",
    ]  # fmt: skip
    for series in ("history", "history.eval"):
        expected = gh.History.load(whole_folder / f"{series}.safetensors")
        found = gh.History.load(part_folder / f"{series}.safetensors")
        assert found.steps == expected.steps
        assert found.names == expected.names
        for name in expected.names:
            torch.testing.assert_close(
                found.curve(name), expected.curve(name), rtol=1e-6, atol=1e-9, equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip
    for name in (SHARE, COUNT, f"eval_{SHARE}"):
        assert logged(resumed, name) == pytest.approx(logged(whole, name), rel=1e-6)


@pytest.mark.parametrize("step", [3, 6])
def test_resumed_with_the_same_sample_of_contexts(tmp_path: Path, step: int) -> None:
    """A window has more contexts than are kept; another run would keep others."""
    settings = {**RESUMABLE, "eval_strategy": "steps", "eval_steps": 4}
    statistics = [gh.PosCtx(contexts=3)]
    whole, part = tmp_path / "whole", tmp_path / "part"
    new_trainer(whole, resumable(whole, statistics=statistics), **settings).train()
    shutil.copytree(whole, part)
    resumed = new_trainer(part, resumable(part, statistics=statistics), **settings)
    resumed.train(resume_from_checkpoint=str(part / "run" / f"checkpoint-{step}"))
    for series, count in (("history", 4), ("history.eval", 2)):
        expected = gh.History.load(whole / f"{series}.safetensors")
        found = gh.History.load(part / f"{series}.safetensors")
        assert len(expected) == count
        ids = [kept_contexts(history) for history in (expected, found)]
        assert ids[0] == ids[1]
        assert len({*itertools.chain(*ids[0])}) == 3 * count, "windows do not share contexts"
        incoherence = "transformer.h.1/pos_ctx/incoherence/mean"
        torch.testing.assert_close(found.curve(incoherence), expected.curve(incoherence))


def kept_contexts(history: gh.History) -> list[list[int]]:
    return [history[step]["transformer.h.1"].pos_ctx.context_id.tolist() for step in history]


def test_each_of_two_callbacks_resumes_from_its_own_state(tmp_path: Path) -> None:
    """The checkpoint is in the middle of the window of both."""

    def callbacks() -> tuple[GeometryCallback, GeometryCallback]:
        return everything(every=2), everything(sites="mlp")

    settings = {**RESUMABLE, "logging_steps": 4}
    first, second = callbacks()
    new_trainer(tmp_path, first, more=[second], **{**settings, "max_steps": 3}).train()
    first, second = callbacks()
    resumed = new_trainer(tmp_path, first, more=[second], **{**settings, "max_steps": 4})
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed, COUNT) == {4: 2 * OF_A_STEP}
    assert logged(resumed, COUNT.replace("h.1/", "h.1.mlp/")) == {4: 4 * OF_A_STEP}


def test_resumed_from_another_folder(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, everything(), **{**RESUMABLE, "max_steps": 3})
    trainer.train()
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "run" / "checkpoint-3").rename(elsewhere)
    resumed = new_trainer(tmp_path, everything(), **{**RESUMABLE, "max_steps": 4})
    resumed.train(resume_from_checkpoint=str(elsewhere))
    assert logged(resumed, COUNT)[4] == 2 * OF_A_STEP
    state = gh.load(elsewhere / "geomhooks-train-0.safetensors")
    assert state.tokens["transformer"]["real"] == OF_A_STEP, "the open window"
    assert state.notes == {"step": 2}


def test_resumed_from_a_checkpoint_without_state(tmp_path: Path) -> None:
    new_trainer(tmp_path, TrainerCallback(), **RESUMABLE).train()
    resumed = new_trainer(tmp_path, everything(), **{**RESUMABLE, "max_steps": 10})
    with pytest.warns(UserWarning, match=r"found no state at .*checkpoint-8.*count at step 8"):
        resumed.train(resume_from_checkpoint=True)
    assert logged(resumed, COUNT) == {10: 2 * OF_A_STEP}


# Histories


def test_a_history_of_whole_geometries(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "of its own" / "history.safetensors"
    trainer = new_trainer(tmp_path, everything(history=path, snapshots="all"))
    trainer.train()
    history = gh.History.load(path)
    assert history.steps == history.kept == [2, 4, 6]
    for step in history.steps:
        assert history[step].sites == BLOCKS
        shares = history[step]["transformer.h.1"].pos_ctx.shares
        assert float(shares.pos) == logged(trainer, SHARE)[step]


def test_the_history_of_another_run_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "history.safetensors"
    callback = GeometryCallback(history=path)
    trainer = new_trainer(tmp_path, callback)
    trainer.train()
    before = path.read_bytes()
    with pytest.raises(gh.errors.HistoryError, match="holds the history of another run"):
        new_trainer(tmp_path, GeometryCallback(history=path)).train()
    assert path.read_bytes() == before
    trainer.train()  # its own may be begun anew
    assert gh.History.load(path).steps == [2, 4, 6]


# Leaving


class Breaks(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise ZeroDivisionError


def test_an_exception_takes_the_hooks_off_and_keeps_the_history(tmp_path: Path) -> None:
    path = tmp_path / "history.safetensors"
    trainer = new_trainer(tmp_path, GeometryCallback(history=path), more=[Breaks()])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert hooks(trainer.model) == 0
    assert gh.History.load(path).steps == [2]


def test_a_callback_added_later_is_a_with_block(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, TrainerCallback(), more=[Breaks()])
    callback = everything()
    trainer.add_callback(callback)
    with pytest.raises(ZeroDivisionError), callback:
        trainer.train()
    assert hooks(trainer.model) == 0
    assert logged(trainer, COUNT) == {2: 2 * OF_A_STEP}
    trainer.remove_callback(Breaks)
    trainer.train()  # and may be used again
    assert logged(trainer, COUNT) == dict.fromkeys((2, 4, 6), 2 * OF_A_STEP)
    assert hooks(trainer.model) == 0


def test_a_forward_that_raises(tmp_path: Path) -> None:
    model = language_model()

    def break_down(module: nn.Module, *_: Any) -> None:
        if trainer.state.global_step == 3:
            raise ZeroDivisionError

    model.transformer.h[1].mlp.register_forward_hook(break_down)
    trainer = new_trainer(tmp_path, GeometryCallback(), model)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert hooks(trainer.model) == 1, "the one that is not ours"


def test_called_by_no_trainer(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    with pytest.raises(gh.errors.WatchError, match=r"callbacks=\[GeometryCallback\(\)\]"):
        GeometryCallback().on_train_begin(args, None, None, model=language_model())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"when": "always"}, gh.errors.WatchError, "'train', 'eval', 'all'"),
        ({"every": 0}, gh.errors.WatchError, "at least 1"),
        ({"snapshots": 1}, gh.errors.HistoryError, "at least 2"),
        ({"position": 8}, TypeError, "position"),
    ],
    ids=str,
)
def test_bad_arguments_are_found_before_training(options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        GeometryCallback(**options)
