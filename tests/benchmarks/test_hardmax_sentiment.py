"""The sentiment benchmark: how reviews are prepared, the quick training, leaders, the script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geomhooks.models import HardmaxClassifier, HardmaxConfig
from tests.benchmarks.test_scripts import run

WORDS = 40


def texts(number: int = 12, length: int = 20) -> Tensor:
    """Ids with repeated words, and padding of different lengths."""
    generator = torch.Generator().manual_seed(0)
    ids = (torch.rand(number, length, generator=generator) ** 2 * (WORDS - 1)).long() + 1
    ends = torch.randint(2, length + 1, (number, 1), generator=generator)
    return ids.masked_fill(torch.arange(length) >= ends, 0)


def classifier(width: int) -> HardmaxClassifier:
    torch.manual_seed(0)
    return HardmaxClassifier(HardmaxConfig.published(WORDS, width)).train()


def test_how_reviews_are_cleaned(benchmarks: Path) -> None:
    from hardmax_reviews import cleaned, encoded

    told = "See https://a.bc/d?e now!<br /><br />It's sooooo-good, 10/10... café \U0001f600 The End"
    assert cleaned(told).split() == ["See", "now", "It", "s", "soo", "good", "caf", "The", "End"]
    found = encoded(["b a a", "a c <i>c</i> c", "d", "a"], [1, 0, 1, 0], str.split, length=3)
    assert found.words[:2] == ["<PAD>", "a"]
    assert set(found.words[2:]) == {"b", "c", "d"}
    assert not found.shuffled
    assert found.trained == 3
    spelt = [[found.words[word] for word in row] for row in found.ids.tolist()]
    assert spelt[0] == ["b", "a", "a"]
    assert spelt[1] == ["a", "c", "c"]
    assert spelt[2] == ["d", "<PAD>", "<PAD>"]
    assert found.train[1].tolist() == [1, 0, 1]
    assert len(found.test[0]) == 1


def test_a_file_that_is_sorted_is_shuffled(benchmarks: Path, tmp_path: Path) -> None:
    from hardmax_reviews import encoded, read

    lines = [f"review{n},{n // 50},imdb" for n in range(100)] + ["other,1,rotten_tomatoes"]
    (tmp_path / "a.csv").write_text("\n".join(["text,label,source", *lines]))
    told, labels = read(tmp_path / "a.csv")
    assert (len(told), sum(labels)) == (100, 50)
    found = encoded(told, labels, lambda text: [text], length=2)
    assert found.shuffled
    words = [found.words[row[0]] for row in found.ids.tolist()]
    assert words != told
    # "review71" without its digits is a word that says nothing: labels go along with their text.
    assert int(found.positive.sum()) == 50
    (tmp_path / "b.csv").write_text("review,sentiment\na b,positive\nc,negative\n")
    assert read(tmp_path / "b.csv") == (["a b", "c"], [1, 0])


@pytest.mark.parametrize("width", [2, 5])
def test_the_quick_loops_are_the_model(benchmarks: Path, width: int) -> None:
    """Logits and gradients against the model's own in float64, and hardmax against evaluation."""
    from hardmax_training import COLD, different_words, quick_logits

    model, ids = classifier(width), texts()
    words = different_words(ids)
    for row, found in enumerate(ids.tolist()):
        size = int(words.sizes[row])
        pairs = zip(words.ids[row, :size].tolist(), words.copies[row, :size].tolist(), strict=True)
        assert dict(pairs) == {word: found.count(word) for word in found}
        assert words.copies[row, size:].sum() == 0
    part = words.of(torch.tensor([3, 5]))
    assert part.ids.shape[1] == int(words.sizes[[3, 5]].max())
    dense = classifier(width).double()
    for temperature in (1e-3, 0.1):
        dense.config = model.config
        for module in dense.body.blocks:
            module.attention.temperature = temperature
        weights = torch.linspace(-1, 1, len(ids))
        model.zero_grad()
        dense.zero_grad()
        found, expected = quick_logits(model, words, temperature), dense(ids)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
        (found @ weights).backward()
        (expected @ weights.double()).backward()
        for one, other in zip(model.parameters(), dense.parameters(), strict=True):
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-2, atol=1e-3)
    hard = quick_logits(model, words, COLD)
    torch.testing.assert_close(hard, model.eval()(ids), rtol=1e-5, atol=1e-6)


def test_training_goes_on_where_it_was(benchmarks: Path) -> None:
    """Two epochs, and one with another after it, end with the same numbers."""
    from hardmax_sentiment import made_up
    from hardmax_training import Data, Training, different_words

    reviews = made_up(number=200)
    data = [Data(different_words(ids), labels) for ids, labels in (reviews.train, reviews.test)]

    def make() -> Training:
        torch.manual_seed(0)
        config = HardmaxConfig.published(len(reviews.words), 2)
        return Training(HardmaxClassifier(config), *data)

    whole, first, second = make(), make(), make()
    rows = [whole.epoch(), whole.epoch()]
    first.epoch()
    second.load(first.state())
    again = second.epoch()
    assert {**again, "seconds": 0} == {**rows[1], "seconds": 0}
    assert second.history["train_loss"] == whole.history["train_loss"]
    assert whole.history["hardmax"][0]["epoch"] == 0
    seen = whole.history["hardmax"][0]
    assert seen["softmax_train"]["loss"] == pytest.approx(seen["hardmax_train"]["loss"], abs=1e-2)
    torch.testing.assert_close(whole.model.state_dict(), second.model.state_dict())


@torch.no_grad()
def test_leaders_of_reviews_that_are_known(benchmarks: Path, tmp_path: Path) -> None:
    """Two words far out lead, each in half of the reviews; the decoder reads the first axis."""
    from hardmax_figures import draw_examples
    from hardmax_leaders import examples, leader_numbers, leader_words

    model = classifier(2)
    table = torch.randn(WORDS, 2, generator=torch.Generator().manual_seed(0)) * 0.1
    table[1], table[2] = torch.tensor([9.0, 0.5]), torch.tensor([-9.0, 0.3])
    model.body.embedding.weight.copy_(table)
    model.body.blocks[0].step.fill_(1.0)
    model.decoder.weight.copy_(torch.tensor([[10.0, 0.0]]))
    model.decoder.bias.zero_()
    ids = torch.arange(3, 11).repeat(20, 1)
    ids[:10, 2], ids[10:, 5] = 1, 2
    names = [f"w{n}" for n in range(WORDS)]
    data = ids, (torch.arange(20) < 10).float()
    found = leader_words(model, data, names)
    assert (found["reviews"], found["leaders"]) == (20, 20)
    assert found["most"] == [
        {"word": "w1", "count": 10, "score": 90.0},
        {"word": "w2", "count": 10, "score": -90.0},
    ]
    assert found["positive"] == 10
    for numbers in leader_numbers(model, ids).values():
        assert 1 <= numbers["least"] <= numbers["mean"] <= numbers["most"]
        assert 0 < numbers["fraction_initial"] <= 1
    shown = examples(model, data, names)
    for name, word, told in (("positive", "w1", (2, 90.0)), ("negative", "w2", (5, -90.0))):
        assert shown[name].leaders[word] == told
        assert shown[name].path.shape == (9, 8, 2)
        torch.testing.assert_close(
            shown[name].means[0], table[ids[0 if told[0] == 2 else 10]].mean(0)
        )
    draw_examples(model, data, names, tmp_path)
    for name in shown:
        assert (tmp_path / f"review-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_script(tmp_path: Path) -> None:
    options = ("--quick", "--figures", "--out", str(tmp_path), "--kept", str(tmp_path / "kept"))
    printed = run("hardmax_sentiment.py", *options)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["reviews"]["trained"] == 280
    (only,) = found["runs"]
    assert only["hidden_size"] == 2
    assert only["parameters"] == 2 * found["reviews"]["words"] + 4
    assert len(only["history"]["train_loss"]) == 12
    assert only["history"]["train_loss"][-1] < only["history"]["train_loss"][0]
    assert [row["epoch"] for row in only["history"]["hardmax"]] == [0, 10]
    assert set(only["leaders"]) == {"as published", "by the definition"}
    assert "280 reviews trained on and 120 tested, as in the file; 21 words" in printed
    assert printed.count("| published | 101 | 0.9412 | 0.7914 | 0.7914 (100) | 0.1604 |") == 1
    for name in ("training", "leaders", "dynamics"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
