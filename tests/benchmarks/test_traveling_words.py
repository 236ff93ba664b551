"""The tables of "Traveling Words": what is counted of lists, how they are written, the script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from geomhooks.anatomy import HeadWords, find_anatomy
from tests.anatomy.models import make
from tests.benchmarks.test_scripts import run

PNG = b"\x89PNG"


class Spelling:
    """A tokenizer that has some words as single tokens, and every other letter by letter."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def encode(self, text: str) -> list[int]:
        return [self.words.index(text)] if text in self.words else [ord(c) for c in text]

    def decode(self, ids: list[int]) -> str:
        return self.words[ids[0]]


def test_nouns_are_in_the_form_that_the_tokenizer_has_more_of(benchmarks: Path) -> None:
    from word_probes import NOUNS, noun_tokens

    nouns = NOUNS.read_text().split()
    assert len(nouns) == len(set(nouns)) == 100
    spaced = Spelling("time", " time", " way")
    assert noun_tokens(["time", "way"], spaced) == [" time", " way"]
    assert noun_tokens(["time", "way"], spaced, "plain") == ["time"]
    assert noun_tokens(["time", "way"], Spelling("time", " way")) == ["time"]
    with pytest.raises(
        SystemExit, match=r"none of 1 nouns is one token of this tokenizer \(most\)"
    ):
        noun_tokens(["people"], spaced)


def test_blocks_are_the_published_ones(benchmarks: Path) -> None:
    from word_probes import chosen_blocks

    assert chosen_blocks(12) == [0, 5, 11]
    assert chosen_blocks(30) == [0, 14, 29]
    assert chosen_blocks(2) == [0, 1]
    assert chosen_blocks(1) == [0]


def found_words() -> HeadWords:
    nearest = [[["Time", "a"], ["b", "a"]], [["a", "b"], ["a", "##DAY"]]]
    indices = torch.zeros(2, 2, 2, dtype=torch.int64)
    lengths = torch.tensor([[1.0, 2.0], [3.0, 4.5]])
    return HeadWords("attention", [" time", "day"], indices, indices.float(), nearest, lengths)


def test_what_is_counted_of_lists(benchmarks: Path) -> None:
    from word_probes import agreement

    assert agreement(found_words()) == {"same": [0.5, 0.5], "distinct": [0.75, 0.75]}


def test_how_lists_are_written(benchmarks: Path) -> None:
    from word_lists import fenced, of_heads, shown

    assert [shown(word) for word in (" a", "a b", "```", "é", "\n", "\u200b", "")] == [
        "␣a", "a␣b", "```", "é", "\\n", "\\u200b", "''"
    ]  # fmt: skip
    assert fenced(of_heads(found_words(), nouns=1)) == [
        "```text",
        "head 0",
        "  ␣time           1.000  Time  a",
        "all heads",
        "  ␣time           3.000  a  b",
        "```",
        "",
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gemma2"])
def test_attention_of_virtual_matrices_is_that_of_the_projections(
    benchmarks: Path, name: str
) -> None:
    from word_probes import attention_error

    anatomy = find_anatomy(make(name).double())
    hidden = torch.randn(1, 7, 24, dtype=torch.float64, generator=torch.manual_seed(0))
    error = attention_error(anatomy, 1, hidden)
    assert error is not None
    assert error < 1e-5


def test_a_model_whose_heads_have_no_forms(benchmarks: Path) -> None:
    """What it has is there, and for the rest the reason."""
    from word_lists import page
    from word_probes import Settings, attention_error, probes, spectra

    from geomhooks.anatomy import ranked_words

    anatomy = find_anatomy(make("qwen3"))
    pair = (lambda text: [int(word[1:]) for word in text.split()], lambda ids: f"w{ids[0]}")
    found, lists = probes(anatomy, pair, ["w3", "w4"], 0, Settings(nearest=2))
    assert set(found) == {"block", "values", "updates", "value_output", "missing"}
    assert set(found["missing"]) == {"keys", "query_key", "biases"}
    assert attention_error(anatomy, 0, torch.randn(1, 3, 24)) is None
    rows = spectra(anatomy)
    assert [("missing" in row) for row in rows[:2]] == [True, False]
    text = page("Words", "About.", ranked_words(anatomy, pair, k=2), [lists], 1)
    assert "None: model.layers.0.self_attn norms its queries or keys" in text
    assert text.count("all heads") == 2


@torch.no_grad()
def test_the_path_of_a_word(benchmarks: Path) -> None:
    """Against all hidden states of the model, and its own head."""
    from subjects import tiny
    from word_paths import SENTENCE, drawings, follow, section

    model, tokenizer = tiny()
    found, journey = follow(model.eval(), tokenizer, find_anatomy(model), 3)
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    hidden = model(ids, output_hidden_states=True).hidden_states
    # The last of them is behind the final norm.
    norm, rows = model.transformer.ln_f, model.lm_head.weight.double()
    states = torch.cat([*(norm(h) for h in hidden[:-1]), hidden[-1]]).double()
    assert journey.sites[0] == "transformer.h.0@in"
    torch.testing.assert_close(journey.states.double(), states, rtol=1e-4, atol=1e-5)
    at = ids.shape[1] - 2
    assert (found["followed"], found["next"]) == ("n", "e")
    own, following = rows[ids[0, at]], rows[ids[0, at + 1]]
    cosine = torch.nn.functional.cosine_similarity
    logits = states[:, at] @ rows.T
    close = {"abs": 1e-4}
    assert found["own_cosine"] == pytest.approx(cosine(states[:, at], own).tolist(), **close)
    assert found["next_cosine"] == pytest.approx(cosine(states[:, at], following).tolist(), **close)
    assert found["pull"] == pytest.approx((states[:, at] @ (following - own)).tolist(), **close)
    later = logits > logits[:, ids[0, at + 1], None]
    assert found["words_before_the_next"] == later.sum(1).tolist()
    texts = [[tokenizer.decode([int(i)]) for i in row] for row in logits.topk(3).indices]
    assert journey.nearest == texts
    steps = cosine(states[:-1], states[1:], dim=-1).acos()
    assert found["steps"] == pytest.approx(steps[:, at].tolist(), **close)
    assert found["length"] == pytest.approx(steps.sum(0).tolist(), **close)
    assert section(journey, found).count("transformer.h.") == 4
    (drawn,) = drawings(journey, umap=False)
    assert drawn.states.shape == (4, ids.shape[1], 3)
    assert drawn.words.shape == (ids.shape[1], 3)


@torch.no_grad()
def test_means_over_a_text(benchmarks: Path) -> None:
    """Pulls against the logits of the model itself, updates against outputs of its modules."""
    from subjects import tiny
    from word_paths import measure_text

    model, _ = tiny()
    ids = torch.randint(256, (10, 12), generator=torch.Generator().manual_seed(0))
    seen = []
    handle = model.transformer.h[1].mlp.register_forward_hook(lambda m, i, o: seen.append(o))
    before = model.transformer.h[1].ln_2.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    found = measure_text(model.eval(), ids)
    handle.remove()
    before.remove()
    logits = model(ids).logits.double()[:, :-1]
    of = logits.gather(2, ids[:, 1:, None]) - logits.gather(2, ids[:, :-1, None])
    last = found["next_word"][-1]
    assert last["pull"] == pytest.approx(float(of[:, 1:].mean()), abs=1e-4)
    assert last["pull_by_position"] == pytest.approx(of.mean((0, 2)).tolist(), abs=6e-3)
    state, added = (torch.cat(part).double()[:, 1:] for part in (seen[::2], seen[1::2]))
    state, added = (part - part.mean(-1, keepdim=True) for part in (state, added))
    radius = state.norm(dim=-1)
    radial = (added * state).sum(-1) / radius.square()
    (row,) = (
        row
        for row in found["updates"]
        if (row["site"], row["sublayer"]) == ("transformer.h.1", "mlp")
    )
    assert row["radial"] == pytest.approx(float(radial.mean()), abs=1e-4)
    assert len(found["updates"]) == 6


class Plane:
    """Stands for what UMAP has made of the rows, which takes long to be compiled: three axes."""

    def __init__(self, rows: torch.Tensor, number: int) -> None:
        self.number = number
        self.embedding = self.transform(rows)

    def transform(self, points: torch.Tensor) -> torch.Tensor:
        return points[..., : self.number]


def test_pictures_by_umap(
    benchmarks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import word_paths
    from word_figures import path_figure, save
    from word_paths import Journey, by_umap

    monkeypatch.setattr(word_paths, "umap_projection", Plane)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 8, generator=generator)
    states = torch.randn(3, 4, 8, generator=generator)
    drawn = by_umap(Journey(states, torch.arange(4), list("abcd"), ["x", "y", "z"], rows, []))
    assert torch.equal(drawn.states, states[..., :3])
    assert drawn.cloud is not None
    assert torch.equal(drawn.cloud, rows[:, :3])
    save(path_figure(drawn), tmp_path / "path.png")
    assert (tmp_path / "path.png").read_bytes().startswith(PNG)


def test_the_script(tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    options = ("--quick", "--out", str(tmp_path), "--figures", str(folder), "--no-umap")
    printed = run("traveling_words.py", *options)
    found = json.loads((tmp_path / "tiny.json").read_text())
    assert found["nouns"] == {"asked": 5, "known": list("aeiou")}
    assert [row["block"] for row in found["probes"]] == [f"transformer.h.{at}" for at in range(3)]
    for row in found["probes"]:
        assert row["attention_error"] < 1e-4
        assert set(row["missing"]) == {"biases"}
        assert len(row["keys"]["same"]) == 4
        assert len(row["values"]["lengths"]) == 5
        assert {len(head) for head in row["values"]["lengths"]} == {5}
        assert all(0 < share <= 1 for share in row["values"]["without_update"])
        for of in ("query_key", "value_output"):
            assert [len(head) for head in row[of]["values"]] == [16] * 4
            assert all(head[-1] == pytest.approx(1) for head in row[of]["coverage"])
    assert found["distances"]["words"] == 256
    assert [row["norm"] for row in found["norms"]][-1] == "final"
    assert len(found["norms"]) == 7
    assert len(found["spectra"]) == 6
    assert "tiny: 3 blocks, 256 words of mean length" in printed
    assert "'n' in 'To kill two birds with one stone' on its way to 'e'" in printed
    assert found["text"]["next_word"][0]["site"] == "transformer.h.0@in"
    assert len(found["text"]["next_word"]) == len(found["sentence"]["pull"]) == 4
    for name in ("coverage", "path-pca", "pull", "updates"):
        assert (folder / f"tiny-{name}.png").read_bytes().startswith(PNG), name
    text = (tmp_path / "tiny.md").read_text()
    assert text.count("## Block transformer.h.") == 3
    assert text.count("all heads") == 6
    assert text.count("None: transformer.h.0.attn has no biases") == 1
