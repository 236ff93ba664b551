"""``geomhooks demo train``: a model is trained, and its geometry moves."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch

import geomhooks as gh
from geomhooks.cli import training
from tests.cli.conftest import Outcome

OUT = "geomhooks-demo-train.safetensors"


def rows_of(out: str, title: str) -> dict[int, list[float]]:
    """Numbers of the rows below a table's title, by step."""
    rows = {}
    for line in out.split(title)[1].splitlines()[3:]:
        cells = line.replace("°", "").split()
        if not cells:
            break
        rows[int(cells[0])] = [float(cell) for cell in cells[1:]]
    return rows


def test_demo_train(cli) -> None:
    result: Outcome = cli("demo", "train", "--steps", 6)
    assert result.code == 0, result.err
    assert result.err == ""
    page = Path(OUT).with_suffix(".html")
    assert {path.name for path in Path().iterdir()} == {OUT, page.name}
    assert 'data-name="training_pos_ctx_shares_pos"' in page.read_text()
    history = gh.History.load(OUT)
    assert history.steps == history.kept == training.measured_steps(6)
    sites = ["transformer.h.0@in", *(f"transformer.h.{i}" for i in range(4))]
    assert history[6].sites == sites
    for title, name, digits, scale in (
        ("share of pos", "pos_ctx/shares/pos", 3, 1),
        ("stable rank of pos", "pos_ctx/stable_rank", 2, 1),
        ("share of ctx", "pos_ctx/shares/ctx", 3, 1),
        ("step angle", "sphere/step_angle/mean", 1, 180 / math.pi),
    ):
        shown = rows_of(result.out, f" {title} ")
        assert list(shown) == history.steps
        for step, numbers in shown.items():
            scalars = history.scalars(step)
            expected = [scale * scalars[f"{s}/{name}"] for s in sites if f"{s}/{name}" in scalars]
            assert numbers[1:] == pytest.approx(expected, abs=0.6 * 10**-digits)
            assert scalars["transformer.h.3/pos_ctx/count"] == training.HELD_OUT * training.LENGTH
    losses = [numbers[0] for numbers in rows_of(result.out, " share of pos ").values()]
    assert losses[0] == pytest.approx(math.log(256), abs=0.3)
    assert losses[-1] < losses[0] - 0.5, "it learns"
    assert f'gh.History.load("{OUT}")' in result.out


def test_the_same_each_time_whatever_was_drawn_before() -> None:
    histories = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        histories.append(training.train(1))
    name = "transformer.h.3/sphere/norm/mean"
    one, other = (history.curve(name)[1][0] for history in histories)
    torch.testing.assert_close(one, other)


def test_stopped_early_it_saves_what_there_is(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "loss_of", interrupting(training.loss_of, after=9))
    result: Outcome = cli("demo", "train", "--steps", 50)
    assert result.code == 130
    assert f"stopped early; wrote {OUT}" in result.err
    assert gh.History.load(OUT).steps == [0, 1]


def interrupting(function, after: int):
    """The function, and Ctrl-C at one of its calls."""
    calls = 0

    def called(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == after:
            signal.raise_signal(signal.SIGINT)
        return function(*args)

    return called


def test_where_nothing_can_be_written(cli) -> None:
    result: Outcome = cli("demo", "train", "--out", "no-such-folder/a.safetensors")
    assert result.code == 5
    assert "no-such-folder" in result.err
