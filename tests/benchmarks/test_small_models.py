"""The models that are trained: their data, and that what they print is what was measured."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.benchmarks.test_scripts import run


@pytest.mark.parametrize("carry", [False, True])
def test_problems_of_addition(benchmarks: Path, carry: bool) -> None:
    """Sums are right, their digits in reverse order, and nothing carries over unless it may."""
    from addition import LENGTH, NOTHING, SYMBOLS, TRAINED, labels_of, problems, real

    ids = problems(500, TRAINED, carry, torch.Generator().manual_seed(0))
    assert ids.shape == (500, LENGTH)
    labels, known, carries = labels_of(ids), real(ids), 0
    for row, asked, own in zip(ids, labels, known, strict=True):
        text = "".join(SYMBOLS[i] for i in row)
        body = text.rstrip("\n")
        sides, answer = body.split("=")
        a, b = sides.split("+")
        assert int(a) + int(b) == int(answer[::-1])
        assert max(len(a), len(b)) <= TRAINED[1]
        places = zip(a[::-1].ljust(7, "0"), b[::-1].ljust(7, "0"), strict=True)
        carries += any(int(x) + int(y) > 9 for x, y in places)
        assert "".join(SYMBOLS[i] for i in asked[asked != NOTHING]) == answer + "\n"
        assert own.sum() == len(body) + 1
    assert (carries > 400) if carry else (carries == 0)


def test_accuracy_counts_whole_answers(benchmarks: Path) -> None:
    """A model that knows the answers is right; one that errs in one digit of a row is not."""
    from addition import EQUALS, TRAINED, accuracy, labels_of, problems

    ids = problems(20, TRAINED, True, torch.Generator().manual_seed(1))

    def knowing(wrong: Tensor) -> Any:
        def model(input_ids: Tensor, **_: Any) -> Any:
            column = input_ids.shape[1]
            answer = torch.where(wrong & (labels_of(ids)[:, column] >= 0), EQUALS, ids[:, column])
            logits = torch.nn.functional.one_hot(answer, 13).float()[:, None]
            return type("Found", (), {"logits": logits})

        return model

    assert accuracy(knowing(torch.zeros(20, dtype=torch.bool)), ids) == 1
    assert accuracy(knowing(torch.arange(20) < 5), ids) == 0.75


def test_what_is_made_random(benchmarks: Path) -> None:
    from token_randomisation import LENGTH, spoil

    windows = torch.full((6, LENGTH), 7)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(spoil(windows, "text", generator), windows)
    half = spoil(windows, "second half random", generator)
    assert torch.equal(half[:, : LENGTH // 2], windows[:, : LENGTH // 2])
    assert (half[:, LENGTH // 2 :] == 7).float().mean() < 0.02
    assert (spoil(windows, "random", generator) == 7).float().mean() < 0.02


def test_what_is_held_out(benchmarks: Path, tmp_path: Path) -> None:
    """Windows of the two halves and of training are from different parts of the text."""
    from token_randomisation import LENGTH, read_text, windows_of

    numbers = " ".join(str(number) for number in range(10_000))
    (tmp_path / "text.jsonl").write_text(json.dumps({"group": "", "text": numbers}))
    held_out, stretches = read_text(str(tmp_path / "text.jsonl"), 0, 200)
    assert held_out.shape == (200, LENGTH)
    assert len(stretches) == 90

    def runs(windows: Tensor) -> set[tuple[int, ...]]:
        return {tuple(run.tolist()) for run in windows.unfold(1, 20, 1).flatten(0, 1)}

    first, second, trained = runs(held_out[:100]), runs(held_out[100:]), runs(stretches)
    assert first.isdisjoint(second)
    assert trained.isdisjoint(first | second)
    drawn = windows_of(stretches, 50, torch.Generator().manual_seed(0))
    assert runs(drawn) <= trained


def test_smoothness_beside_chance(benchmarks: Path) -> None:
    """On a circle it is known; by chance it is the mean over all orders."""
    from small_models import smoothness_of

    angles = 2 * math.pi * torch.arange(40, dtype=torch.float64) / 40
    circle = torch.stack([angles.cos(), angles.sin()], 1) * (1 + angles[:, None])
    found = smoothness_of(circle @ circle.T)
    assert found["neighbours"] == pytest.approx(math.cos(2 * math.pi / 40))
    assert found["any_two"] == pytest.approx(-1 / 39)
    assert found["low_tenth"] > 0.95
    assert found["low_tenth_unordered"] == pytest.approx(3 / 39)

    few = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    orders = [
        smoothness_of(few[list(order)] @ few[list(order)].T) for order in permutations(range(6))
    ]
    for name, chance in (("neighbours", "any_two"), ("low_tenth", "low_tenth_unordered")):
        mean = sum(order[name] for order in orders) / len(orders)
        assert orders[0][chance] == pytest.approx(mean)
    assert all(math.isnan(value) for value in smoothness_of(-torch.eye(3)).values())


def test_noise_is_taken_out_of_smoothness(benchmarks: Path) -> None:
    """Also noise that neighbours have in common, which looks like smoothness."""
    from small_models import gram_without_noise, smoothness_of

    generator = torch.Generator().manual_seed(0)

    def noisy(pos: Tensor) -> Any:
        white = torch.randn(pos.shape[0] + 1, pos.shape[1], generator=generator)
        pos = pos + 0.05 * (white[1:] + white[:-1])
        return SimpleNamespace(pos=pos, position_count=torch.ones(len(pos)))

    rough = torch.randn(30, 400, generator=generator)  # lengths are about 20, and 1.4 of noise
    angles = 2 * math.pi * torch.arange(30) / 30
    smooth = torch.zeros(30, 400)
    smooth[:, 0], smooth[:, 1] = 2 * angles.cos(), 2 * angles.sin()
    for true in (rough, smooth):
        expected = smoothness_of(true @ true.T)
        found = smoothness_of(gram_without_noise(noisy(true), noisy(true)))
        assert found == pytest.approx(expected, abs=0.05)
    raw = noisy(smooth).pos
    raw = smoothness_of(raw @ raw.T)
    assert raw["neighbours"] < smoothness_of(smooth @ smooth.T)["neighbours"] - 0.1


def test_runs_of_other_kinds_stay(benchmarks: Path, tmp_path: Path) -> None:
    """Unless they had other settings."""
    from small_models import write

    out = tmp_path / "out.json"

    def kinds() -> dict[str, Any]:
        return {run["kind"]: run["loss"] for run in json.loads(out.read_text())["runs"]}

    write(out, {"steps": 4}, {"kind": "text", "loss": 1})
    write(out, {"steps": 4}, {"kind": "random", "loss": 2})
    write(out, {"steps": 4}, {"kind": "text", "loss": 3})
    assert kinds() == {"random": 2, "text": 3}
    write(out, {"steps": 5}, {"kind": "text", "loss": 4})
    assert kinds() == {"text": 4}


@pytest.mark.parametrize("script", ["addition", "token_randomisation"])
def test_training_runs(script: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    printed = run(f"{script}.py", "--quick", "--out", str(out))
    found = json.loads(out.read_text())
    for training in found["runs"]:
        assert [entry["step"] for entry in training["steps"]] == [0, 2, 4]
        for entry in training["steps"]:
            numbers = entry["geometry"] if script == "addition" else entry["on_text"]
            assert set(numbers) == set(training["quantities"])
            assert all(len(values) == 4 for values in numbers.values())
            assert all(0 <= share <= 1 for share in numbers["pos_share"])
            # They begin at zero, of which there is no direction.
            assert (entry["position_embeddings"]["neighbours"] is None) == (entry["step"] == 0)
    assert printed.count("step 4:") == len(found["runs"])


def test_heads(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run("heads.py", "--quick", "--out", str(out))
    (found,) = json.loads(out.read_text())["runs"]
    assert [layer["block"] for layer in found["layers"]] == ["h.0", "h.1", "h.2"]
    for layer in found["layers"]:
        assert sum(map(sum, layer["shares"])) == pytest.approx(1, abs=1e-3)
        assert len(layer["pos_pos"]) == len(layer["leading_share"]) == 4
        assert 0 <= layer["low_frequency_error"] <= layer["low_frequency_bound"]
