"""The page that ``geomhooks measure`` writes beside its numbers, which never costs these."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import geomhooks as gh
from tests.cli.conftest import passage
from tests.cli.test_errors import fails

SCRIPT = "<script>taken=1</script>"


def test_words_labels_and_groups_are_on_the_page(cli, bert: Path):
    odd = Path(f"{SCRIPT.replace('/', ' ')}.txt")
    Path("a.txt").write_text(passage(8, seed=1))
    odd.write_text(f"{SCRIPT} word1 word2\n\n{passage(8, seed=2)}")
    start = ("measure", bert, "--text", "a.txt", odd, "--max-length", 16)
    result = cli(
        *start, "--statistics", "pos_ctx,group_means,trajectories", "--out", "g.safetensors"
    )
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1].startswith("figures and what stands out: g.html (")
    page = Path("g.html").read_text()
    geometry = gh.load("g.safetensors")
    found = geometry[geometry.sites[0]]
    labels = geometry.notes["labels"]
    assert {int(i) for i in labels} == set(found.pos_ctx.context_id.tolist())
    assert all(text.startswith(("word", "[UNK]")) for text in labels.values())
    ids = found.trajectories.token_ids[0].tolist()
    assert any(f'"{at}: word{ids[at] - 1}"' in page for at in (1, 2)), "some words are drawn"
    assert "a.txt: word" in page, "group and label"
    assert SCRIPT not in page

    # The file alone knows the same.
    again = cli("report", "g.safetensors", "-o", "again.html")
    assert again.code == 0, again.err
    assert any(f'"{at}: word{ids[at] - 1}"' in Path("again.html").read_text() for at in (1, 2))
    assert "a.txt: word" in Path("again.html").read_text()
    Path("labels.json").write_text(json.dumps(dict.fromkeys(labels, "a title")))
    named = cli(
        *("report", "g.safetensors", "-o", "named.html"),
        *("--labels", "labels.json", "--groups", "first,second"),
    )
    assert named.code == 0, named.err
    assert "second: a title (context" in Path("named.html").read_text()
    for content, words in (
        ("[1]", "found a list"),
        ("{", "line 1, column 2 is no JSON"),
        ('{"a": "b"}', "found the id 'a'"),
    ):
        Path("labels.json").write_text(content)
        result = cli("report", "g.safetensors", "--labels", "labels.json")
        fails(result, 2, "--labels labels.json", words)


def test_where_the_page_goes(cli, bert: Path, text: Path):
    start = ("measure", bert, "--text", text, "--statistics", "sphere", "--out", "g.safetensors")
    fails(cli(*start, "--report", "x.html", "--no-report"), 2, "--report and --no-report")
    fails(cli(*start, "--report", "none/x.html"), 5, "no folder none")
    fails(cli(*start, "--report", "g.safetensors"), 2, "is the output itself")
    Path("mine.html").write_text("<p>mine")
    fails(cli(*start, "--report", "mine.html"), 5, "mine.html is there, and is no page of geomhoo")
    assert not Path("g.safetensors").exists()
    assert cli(*start, "--report", "x.html").code == 0
    assert 'data-name="length_by_layer"' in Path("x.html").read_text()
    resumed = cli(*start, "--resume")
    assert resumed.code == 0
    assert Path("g.html").exists(), "a run that is finished has its page as well"
    none = cli(*start, "--overwrite", "--no-report", "--no-labels")
    assert "figures" not in none.out
    assert gh.load("g.safetensors").notes["labels"] == {}


def test_no_page_costs_no_numbers(cli, bert: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    start = ("measure", bert, "--text", text, "--statistics", "sphere")
    Path("a.html").write_text("<p>mine")
    result = cli(*start, "--out", "a.safetensors")
    assert result.code == 0
    assert result.err.startswith("no report was written: a.html is there, and is no page of geom")
    assert Path("a.html").read_text() == "<p>mine"
    for package in ("plotly", "jinja2"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.setitem(sys.modules, f"{package}.graph_objects", None)
            result = cli(*start, "--out", f"{package}.safetensors")
        assert result.code == 0
        assert result.err.count("\n") == 1
        assert f"need{'s' * (package == 'jinja2')} {package}: pip install 'geomhooks[report]'" in (
            result.err
        )
        assert gh.load(f"{package}.safetensors").sites
        assert not Path(f"{package}.html").exists()
