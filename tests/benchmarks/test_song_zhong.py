"""The table of Song & Zhong: its windows, its numbers against the states, the published rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmarks.test_scripts import run
from tests.models import tiny_gpt2


class Letters:
    """A tokenizer of single characters."""

    def __call__(self, text: str, **options: Any) -> Any:
        ids = [ord(letter) for letter in text]
        return type("Found", (), {"input_ids": ids})


def test_windows_are_pieces_of_their_labels_text(benchmarks: Path, tmp_path: Path) -> None:
    from corpora import draw

    text = {"b": "0123456789" * 9, "a": "abcdefghij" * 9, "short": "xyz"}
    records = [json.dumps({"text": t, "group": g}) for g, t in text.items()]
    (tmp_path / "texts.jsonl").write_text("\n".join(records))
    arguments = str(tmp_path / "texts.jsonl"), Letters(), 21, 12
    windows = draw(*arguments, seed=3)
    assert windows.names == ["a", "b"]
    assert windows.labels is not None
    assert torch.bincount(windows.labels).tolist() == [10, 10]
    for ids, label in zip(windows.ids, windows.labels, strict=True):
        assert "".join(map(chr, ids)) in text[windows.names[label]]
    assert torch.equal(draw(*arguments, seed=3).ids, windows.ids)
    assert not torch.equal(draw(*arguments, seed=4).ids, windows.ids)


def test_the_brown_corpus_is_read_without_its_tags(benchmarks: Path, tmp_path: Path) -> None:
    from corpora import labelled, occurrences

    (tmp_path / "ca01").write_text("\n\n\tThe/at ``/`` and\\/or/cc jury/nn ''/'' ./.\n")
    (tmp_path / "cn07").write_text("He/pps ran/vbd\n")
    (tmp_path / "README").write_text("not/jj this/dt")
    assert labelled(str(tmp_path)) == [("a", 'The " and\\/or jury " .'), ("n", "He ran")]
    (tmp_path / "cn08").write_text("``/`` Left/vbn-hl of/in left/jj ''/'' ./.\n\nleft/vbd\n")
    sentence = ['"', "Left", "of", "left", '"', "."]
    assert occurrences(tmp_path, "left") == [
        (sentence, 1, "vbn"),
        (sentence, 3, "jj"),
        (["left"], 0, "vbd"),
    ]
    with pytest.raises(SystemExit, match="no text of the Brown corpus"):
        labelled(str(tmp_path.parent / tmp_path.name / ".."))


@torch.no_grad()
def test_numbers_are_those_of_the_states(benchmarks: Path) -> None:
    """In plain NumPy, from all hidden states, the first position left out."""
    from corpora import Windows
    from song_zhong import measure

    model = tiny_gpt2(n_embd=48)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (20, 40), generator=generator)
    labels = torch.arange(20) % 4
    found = measure(model, Windows(ids, labels, list("abcd")))
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    same = labels[:, None] == labels
    # The last of them is behind the final norm, which is no part of the stream.
    for layer, states in enumerate(hidden[:-1]):
        h = states[:, 1:].double().numpy()
        mean = h.mean((0, 1))
        pos, ctx = h.mean(0) - mean, h.mean(1) - mean
        singular = np.linalg.svd(pos, compute_uv=False)
        flat = h.reshape(-1, h.shape[-1])
        pos_norm = np.sqrt(len(ids)) * singular[0]
        unit, directions = (x / np.linalg.norm(x, axis=1)[:, None] for x in (ctx, pos))
        cosine = np.abs(unit @ unit.T)
        expected = {
            "stable_rank": (singular**2).sum() / singular[0] ** 2,
            "relative_norm": pos_norm / np.linalg.norm(flat - flat.mean(0), 2),
            "relative_norm_uncentred": pos_norm / np.linalg.norm(flat, 2),
            "incoherence": np.abs(directions @ unit.T).mean(),
            "intra": cosine[same].mean(),
            "inter": cosine[~same].mean(),
        }
        for name, value in expected.items():
            assert found[name][layer] == pytest.approx(value, abs=1e-4), (name, layer)


def test_published_rows_stand_beside_the_papers_models(benchmarks: Path) -> None:
    from song_zhong import QUANTITIES, columns_of, name_in_paper, table
    from transformers import BertConfig, BloomConfig, GPT2Config

    assert name_in_paper(GPT2Config()) == "gpt2"
    assert name_in_paper(GPT2Config(n_layer=24)) is None
    assert name_in_paper(BertConfig(vocab_size=28996)) == "bert-base-cased"
    bloom = BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
    assert name_in_paper(bloom) == "bigscience/bloom-560m"
    assert columns_of(33) == [0, 2, 5, 8, 10, 13, 16, 18, 21, 24, 26, 29, 32]
    assert columns_of(4) == [0, 1, 2, 3]
    measured = {name: [0.5] * 13 for name in QUANTITIES}
    told = {"model": "gpt2", "text": "text", "labels": [], "contexts": 6400, "length": 512}
    lines = table({**told, "sites": list(range(13)), "seconds": 1, **measured}, "gpt2")
    at = next(i for i, line in enumerate(lines) if line.startswith("stable_rank"))
    rows = [line.split() for line in lines[at + 1 : at + 4]]
    corpora = "github", "openwebtext", "wikitext"
    assert [row[:2] for row in rows] == [["published,", corpus] for corpus in corpora]
    assert [float(x) for x in rows[1][2:15]][:3] == [2.05, 1.92, 1.91]
    assert "  published, wikitext      " in "\n".join(lines)


def test_the_published_tables_are_whole(benchmarks: Path) -> None:
    """Means and deviations over the columns, as worked out from the same tables elsewhere."""
    published = json.loads((benchmarks / "published" / "song_zhong.json").read_text())
    rows = {(row["model"], row["corpus"]): row for row in published["rows"]}
    assert len(rows) == 12
    assert {model for model, _ in rows} == set(published["models"])
    for row in rows.values():
        for name in ("rank", "stable_rank", "relative_norm", "relative_norm_uncentred"):
            assert len(row[name]) == 13
    row = rows["gpt2", "openwebtext"]
    assert np.mean(row["rank"]) == pytest.approx(11.38, abs=0.005)
    assert np.std(row["rank"]) == pytest.approx(1.86, abs=0.005)
    assert np.mean(row["relative_norm"]) == pytest.approx(0.839, abs=0.0005)


def test_the_script(tmp_path: Path) -> None:
    out = tmp_path / "song_zhong.json"
    shown = run("song_zhong.py", "--quick", "--out", str(out))
    runs = json.loads(out.read_text())["runs"]
    assert [one["text"] for one in runs] == ["documentation", "random"]
    documentation, random = runs
    assert len(documentation["labels"]) == 4
    assert len(documentation["sites"]) == 4
    assert all(0 < value < 1 for value in documentation["relative_norm"])
    assert random["inter"] == [None] * 4
    assert "tiny, documentation: 24 contexts of 32 tokens, 4 labels" in shown
    run("song_zhong.py", "--quick", "--out", str(out), "--texts", "random")
    again = json.loads(out.read_text())["runs"]
    assert again[1]["stable_rank"] == random["stable_rank"]
