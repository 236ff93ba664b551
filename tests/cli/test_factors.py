"""``geomhooks measure --statistics factors`` and ``geomhooks factors``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import geomhooks as gh
from geomhooks.cli.factors_command import marked_text
from geomhooks.functional import FactorContext
from geomhooks.measuring import load_tokenizer, text_of
from geomhooks.measuring.words import spell
from geomhooks.storage.dictionaries import save_dictionary
from tests.cli.test_errors import fails


def dictionary(number: int, width: int = 16) -> torch.Tensor:
    rows = torch.randn(number, width, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.fixture
def measured(cli, bert: Path, text: Path) -> Path:
    """A file of 20 factors, measured by the command."""
    save_dictionary("d.safetensors", dictionary(20), penalty=0.3, relative=True)
    result = cli(
        *("measure", bert, "--text", text, "--statistics", "factors", "--max-length", 32),
        *("--dictionary", "d.safetensors", "--out", "f.safetensors"),
    )
    assert result.code == 0, result.err
    assert "factors" in result.out
    return Path("f.safetensors")


def test_measure_and_show(cli, bert: Path, text: Path, measured: Path):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    coder = gh.functional.SparseCoder(dictionary(20), 0.3, relative=True)
    with torch.inference_mode(), gh.watch(model, statistics=[gh.Factors(encoder=coder)]) as watch:
        for document in text.read_text().split("\n\n"):
            words = document.split()
            for first in range(0, len(words), 30):
                part = " ".join(words[first : first + 30])
                model(**tokenizer(part, return_tensors="pt"))
    expected, found = watch.geometry(), gh.load(measured)
    assert found.sites == expected.sites
    last = found.sites[-1]
    for name in ("mean", "importance", "snr"):
        torch.testing.assert_close(
            found[last].factors[name], expected[last].factors[name], rtol=1e-4, atol=1e-6
        )

    listed = cli("factors", measured)
    assert listed.code == 0, listed.err
    levels = gh.functional.importance_levels(found.stack("factors.importance").T)
    for name in set(levels.names()):
        assert name in listed.out
    factor = int(found[last].factors.importance.argmax())
    shown = cli("factors", measured, "--factor", factor, "--site", last, "--contexts", 3)
    assert shown.code == 0, shown.err
    assert f"factor {factor}, level {levels.names()[factor]}" in shown.out
    best = gh.functional.factor_contexts(found[last].factors.top, factor)[0]
    marked = "".join(
        [*(f"{tokenizer.decode([i])} " for i in best.before), f"«{tokenizer.decode([best.token])}»"]
    )
    assert marked in " ".join(shown.out.split())
    assert f"{best.activation:.3g}" in shown.out
    assert shown.out.count("«") == 3
    only = cli("factors", measured, "--level", "high", "--bounds", "0.1", "0.2", "--by", "peak")
    assert only.code == 0, only.err
    assert "low" not in only.out


def test_resume_knows_the_dictionary(cli, bert: Path, text: Path, measured: Path):
    same = ("measure", bert, "--text", text, "--statistics", "factors", "--max-length", 32)
    kept = ("--dictionary", "d.safetensors", "--out", measured, "--resume")
    assert cli(*same, *kept).code == 0
    save_dictionary("d.safetensors", dictionary(21), penalty=0.3, relative=True)
    fails(cli(*same, *kept), 7, "cannot resume", "dictionary was")


def test_marks_and_what_looks_like_markup():
    """Tokens may be anything: [red] is no colour, and a line break no line."""
    names = {1: " [red]", 2: "left", 3: "\n[/red]", 4: " café"}
    context = FactorContext(1.0, 0, 3, [4, 1], 3, [2])
    text = marked_text(context, lambda ids: "".join(names[i] for i in ids))
    assert text.plain == " café [red]«\\n[/red]»left"
    assert [text.plain[s.start : s.end] for s in text.spans] == ["«", "\\n[/red]", "»"]
    unknown = marked_text(FactorContext(1.0, 0, 3, [], -1, []), str)
    assert "not known" in unknown.plain


def test_ids_that_the_tokenizer_does_not_know(bert: Path):
    tokenizer = load_tokenizer(str(bert))
    assert text_of(tokenizer, [1, 2, 999, 7, 1000, -1]) == "word0 word1 #999 word6 #1000 #-1"
    assert text_of(tokenizer, [999]) == "#999"
    assert spell(tokenizer, [1, 999]) == ["word0", "#999"]


def test_errors(cli, bert: Path, text: Path, measured: Path):
    start = ("measure", bert, "--text", text, "--out", "g.safetensors")
    fails(cli(*start, "--statistics", "factors"), 2, "factors needs the dictionary", "--dictionary")
    fails(cli(*start, "--dictionary", "d.safetensors"), 2, "--dictionary is for --statistics fact")
    chosen = ("--statistics", "factors", "--dictionary")
    fails(cli(*start, *chosen, "none.safetensors"), 7, "no such file: none.safetensors")
    fails(cli(*start, *chosen, measured), 7, "holds a geometry, not a dictionary")
    save_dictionary("w.safetensors", dictionary(20, 8), penalty=0.3, relative=True)
    fails(cli(*start, *chosen, "w.safetensors"), 2, "width 16", "factors of width 8")
    assert not Path("g.safetensors").exists()

    fails(cli("factors", measured, "--factor", 20), 2, "--factor 20", "20 factors, from 0 on")
    fails(cli("factors", measured, "--site", "x"), 2, "no factors at 'x'", "encoder.layer.1")
    fails(cli("factors", measured, "--bounds", "0.9", "0.1"), 2, "--bounds", "0.9")
    fails(cli("factors", measured, "--tokenizer", "./none"), 3, "./none", "--tokenizer")
    fails(cli("factors", "d.safetensors"), 7, "holds a dictionary, not a geometry")
    assert cli(*start).code == 0
    fails(cli("factors", "g.safetensors"), 7, "g.safetensors has no factors", "--dictionary")
    gh.load(measured).save("bare.safetensors", notes={})
    fails(cli("factors", "bare.safetensors"), 3, "does not say of which model", "--tokenizer")
    assert cli("factors", "bare.safetensors", "--tokenizer", bert).code == 0


def test_a_file_with_impossible_numbers(cli, measured: Path):
    with safe_open(measured, framework="pt") as file:
        document = json.loads(file.metadata()["geomhooks"])
    del document["checksum"]  # else it were damaged, whatever its numbers
    tensors = load_file(measured)
    name = next(name for name in tensors if name.endswith("top/value"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, "odd.safetensors", metadata={"geomhooks": json.dumps(document)})
    fails(cli("factors", "odd.safetensors"), 7, "importances of factors are negative or no numbers")
