"""The models that are trained: their data, and that what they print is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
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
            assert all(len(values) == 5 for values in numbers.values())
            assert all(0 <= share <= 1 for share in numbers["pos_share"])
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
