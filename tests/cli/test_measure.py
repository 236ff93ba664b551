"""``geomhooks measure`` and ``merge``: what they measure is what a plain loop measures."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

import geomhooks as gh
from geomhooks.measuring import load_model
from tests.cli.conftest import WORDS, finish, passage, start


def scalars_equal(one: gh.Geometry, other: gh.Geometry, tolerance: float) -> None:
    mine, theirs = one.scalars(), other.scalars()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value == pytest.approx(theirs[name], rel=tolerance, abs=tolerance, nan_ok=True), name


def by_hand(folder: Path, documents: list[str], length: int) -> gh.Geometry:
    """One context after the other, cut without the tokenizer's help."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.config.use_cache = False
    ends = tokenizer.num_special_tokens_to_add()
    statistics = [gh.PosCtx(positions=length), gh.Sphere()]
    with torch.inference_mode(), gh.watch(model, statistics=statistics) as watch:
        for document in documents:
            words = document.split()
            for first in range(0, len(words), length - ends):
                part = " ".join(words[first : first + length - ends])
                model(input_ids=tokenizer(part, return_tensors="pt")["input_ids"])
    return watch.geometry()


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_measure_equals_a_plain_loop(cli, request: pytest.FixtureRequest, text: Path, name: str):
    folder = request.getfixturevalue(name)
    result = cli("measure", folder, "--text", text, "--max-length", 32, "--out", "g.safetensors")
    assert result.code == 0, result.err
    assert result.err == ""
    geometry = gh.load("g.safetensors")
    expected = by_hand(folder, text.read_text().split("\n\n"), 32)
    scalars_equal(geometry, expected, 1e-5)
    for site in geometry.sites:
        assert site in result.out
    progress = geometry.notes["progress"]
    assert progress["finished"]
    assert progress["contexts"] == int(expected[expected.sites[0]].pos_ctx.contexts)
    assert progress["tokens"] == int(expected[expected.sites[0]].pos_ctx.count)
    assert [path.name for path in Path().iterdir()].count("g.safetensors.checkpoint") == 0


def test_of_an_encoder_decoder_the_encoder(cli, t5: Path, text: Path):
    result = cli("measure", t5, "--text", text, "--max-length", 16)
    assert result.code == 0, result.err
    assert gh.load("geometry.safetensors").sites == ["block.0@in", "block.0", "block.1"]


def test_options(cli, bert: Path, text: Path):
    result = cli(
        *("measure", bert, "--text", text, "--sites", "blocks,encoder.layer.*.attention"),
        *("--statistics", "sphere", "--batch-size", 3, "--dtype", "bfloat16", "--device", "cpu"),
    )
    assert result.code == 0, result.err
    geometry = gh.load("geometry.safetensors")
    assert "encoder.layer.1.attention" in geometry.sites
    assert list(geometry[geometry.sites[0]]) == ["sphere"]
    assert "norm" in result.out
    assert "resid" not in result.out


def test_updates(cli, gpt2: Path, text: Path):
    """What attention and the feed-forward layers add, each in a column of the table."""
    result = cli("measure", gpt2, "--text", text, "--statistics", "updates", "--max-length", 16)
    assert result.code == 0, result.err
    found = gh.load("geometry.safetensors")["h.1"].updates
    assert int(found.mlp.norm.count) == int(found.attention.norm.count) > 100
    for name in ("attention", "mlp"):
        assert name in result.out
        assert f"{math.degrees(float(found[name].step_angle.mean)):.1f}°" in result.out


def test_components(cli, bert: Path, text: Path):
    """How important each term is, in the table; files of nothing else are compared."""
    start = ("measure", bert, "--text", text, "--statistics", "components")
    for length, out in ((16, "a.safetensors"), (24, "b.safetensors")):
        result = cli(*start, "--max-length", length, "--out", out, "--no-report")
        assert result.code == 0, result.err
    importance = gh.load("b.safetensors")["encoder.layer.1"].components.importance
    (row,) = (line for line in result.out.splitlines() if line.startswith(" encoder.layer.1 "))
    assert row.split()[1:] == [f"{float(importance[term].mean):.3f}" for term in importance]
    compared = cli("compare", "a.safetensors", "b.safetensors", "-o", "both.html")
    assert compared.code == 0, compared.err
    assert "importance" in compared.out
    assert "wrote both.html (" in compared.out
    assert 'data-name="compared_components_importance_input_mean"' in Path("both.html").read_text()


def test_covariance(cli, bert: Path, text: Path):
    """All that follows from it is in the file, and the table shows how many directions count."""
    result = cli("measure", bert, "--text", text, "--statistics", "covariance", "--max-length", 16)
    assert result.code == 0, result.err
    geometry = gh.load("geometry.safetensors")
    found = geometry[geometry.sites[-1]].covariance
    assert int(found.count) == geometry.tokens[""]["real"]
    assert found.covariance.shape == (16, 16)
    values = torch.linalg.eigvalsh(found.covariance).flip(0)
    torch.testing.assert_close(found.eigenvalues[:15], values[:15])
    assert f"{float(found.effective_rank):.4g}" in result.out
    assert f"{float(found.leading_share):.3f}" in result.out


def test_paths_of_words(cli, bert: Path, text: Path):
    """The next word's pull is in the table, and a few contexts are kept, not thousands."""
    statistics = ("--statistics", "next_word,trajectories", "--max-length", 16)
    result = cli("measure", bert, "--text", text, *statistics)
    assert result.code == 0, result.err
    geometry = gh.load("geometry.safetensors")
    found = geometry[geometry.sites[-1]]
    assert f"{float(found.next_word.pull.mean):.2f}" in result.out
    assert f"{float(found.next_word.own_cosine.mean):.3f}" in result.out
    counted = found.next_word.pull.count + found.next_word.without_next
    assert int(counted) == geometry.tokens[""]["real"]
    assert geometry.stack("trajectories.states").shape[1:] == (8, 16, 16)
    assert (found.trajectories.token_ids >= 0).equal(found.trajectories.filled)


def test_leaders(cli, bert: Path, text: Path):
    """How tokens cluster at each block, and the words that lead there."""
    arguments = ("measure", bert, "--text", text, "--statistics", "leaders", "--max-length", 16)
    result = cli(*arguments)
    assert result.code == 0, result.err
    geometry = gh.load("geometry.safetensors")
    vocabulary = ["[UNK]", *WORDS, "[CLS]", "[SEP]", "[PAD]"]
    for site in geometry.sites:
        found = geometry[site].leaders
        assert f"{float(found.cluster_count.mean):.1f}" in result.out
        if "words" in found:
            assert f"{float(found.mean_heads.leaders):.2f}" in result.out
            word, count = vocabulary[int(found.words.ids[0])], int(found.words.counts[0])
            assert re.search(rf"{re.escape(site)} +{re.escape(word)} {count}\b", result.out)
    assert "words that lead" in result.out
    again = cli(*arguments, "--resume")
    assert again.code == 0, again.err
    assert "words that lead" in again.out


def test_several_texts_and_json_lines(cli, bert: Path, tmp_path: Path):
    documents = passage(20).split("\n\n")
    Path("a.txt").write_text("\n\n".join(documents[:8]))
    Path("b.jsonl").write_text("\n".join(json.dumps({"body": d}) for d in documents[8:]))
    Path("all.txt").write_text("\n".join(documents))
    several = ("--text", "a.txt", "b.jsonl", "--field", "body", "--out", "several.safetensors")
    assert cli("measure", bert, *several).code == 0
    lines = ("--text", "all.txt", "--documents", "lines", "--out", "lines.safetensors")
    assert cli("measure", bert, *lines).code == 0
    scalars_equal(gh.load("several.safetensors"), gh.load("lines.safetensors"), 1e-6)


def test_texts_are_the_groups(cli, bert: Path, tmp_path: Path):
    """Each text a group, by its name; their means are those of runs over one text each."""
    (tmp_path / "x").mkdir()
    for name, words in (("a.txt", "cat sat"), ("b.txt", "dog ran far"), ("x/b.txt", "the mat")):
        Path(name).write_text("\n\n".join([words, f"{words} {words}"]))
    texts, common = ("a.txt", "b.txt", "x/b.txt"), ("--sites", "blocks", "--max-length", 16)
    several = cli(
        *("measure", bert, "--text", *texts, *common),
        *("--statistics", "group_means,pos_ctx", "--out", "all.safetensors"),
    )
    assert several.code == 0, several.err
    geometry = gh.load("all.safetensors")
    site = geometry.sites[-1]
    found = geometry[site].group_means
    assert list(found.named) == ["a.txt", "b.txt (1)", "b.txt (2)"]
    assert "similarity" in geometry[site].pos_ctx
    for number, text in enumerate(texts):
        out = f"{number}.safetensors"
        single = ("--statistics", "covariance", "--out", out)
        assert cli("measure", bert, "--text", text, *common, *single).code == 0
        alone = gh.load(out)[site].covariance
        torch.testing.assert_close(found.mean[number], alone.mean)
        assert int(found.count[number]) == int(alone.count)


def test_batch_size_does_not_matter(cli, bert: Path, text: Path):
    for size in (1, 7, 64):
        result = cli("measure", bert, "--text", text, "--batch-size", size, "--out", f"{size}.st")
        assert result.code == 0, result.err
    scalars_equal(gh.load("1.st"), gh.load("7.st"), 1e-5)
    scalars_equal(gh.load("1.st"), gh.load("64.st"), 1e-5)


def test_merge_equals_one_run(cli, bert: Path):
    Path("a.txt").write_text(passage(20, seed=1))
    Path("b.txt").write_text(passage(30, seed=2))
    for name, texts in {"a": ["a.txt"], "b": ["b.txt"], "ab": ["a.txt", "b.txt"]}.items():
        assert cli("measure", bert, "--text", *texts, "--out", f"{name}.safetensors").code == 0
    result = cli("merge", "a.safetensors", "b.safetensors", "-o", "merged.safetensors")
    assert result.code == 0, result.err
    assert "encoder.layer.1" in result.out
    merged = gh.load("merged.safetensors")
    scalars_equal(merged, gh.load("ab.safetensors"), 1e-6)
    assert [part["file"] for part in merged.notes["merged"]] == ["a.safetensors", "b.safetensors"]


def test_slow_tokenizer_cuts_alike(bert: Path):
    """A tokenizer without overflow is cut by token ids."""
    from geomhooks.measuring.models import _cutter

    class Slow:
        is_fast = False

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [WORDS.index(word) + 1 for word in text.split()]}

        def num_special_tokens_to_add(self) -> int:
            return 2

        def build_inputs_with_special_tokens(self, ids: list[int]) -> list[int]:
            return [len(WORDS) + 1, *ids, len(WORDS) + 2]

    reader = load_model(str(bert), length=10)
    slow = _cutter(Slow(), 10)
    for document in ["", "word3", *passage(5).split("\n\n")]:
        expected = reader.cut(document) if document else []
        assert slow(document) == expected


def test_missing_weights_are_told(cli, bert: Path, text: Path, tmp_path: Path):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(bert)
    kept = {k: v for k, v in model.state_dict().items() if "layer.1" not in k}
    model.save_pretrained(tmp_path / "part", state_dict=kept)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "part")
    result = cli("measure", tmp_path / "part", "--text", text)
    assert result.code == 0
    assert result.err.startswith("warning: 16 weights are not in the checkpoint")
    assert result.err.count("\n") == 1


def test_help_version_and_module(tmp_path: Path, cli):
    result = finish(start("--version", folder=tmp_path))
    assert result == (0, f"geomhooks {gh.__version__}\n", "")
    result = cli("measure", "--help")
    assert result.code == 0
    assert "--batch-size" in result.out
    assert "demo" in cli("--help").out
