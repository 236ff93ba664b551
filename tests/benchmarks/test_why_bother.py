"""The study of indicators over training, in pieces and on something tiny."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmarks.test_scripts import run


def test_made_up_language_is_a_function_of_its_source(benchmarks: Path) -> None:
    from parallel_texts import parallel_text

    text = parallel_text("made-up", 20, 3)
    train = dict(text.train["same"])
    assert len(text.test) == 20
    assert not {side for pair in text.test for side in pair} & {*train, *train.values()}
    assert len(text.train["other"]) == -(-len(text.train["same"]) // 2)
    assert text.test == parallel_text("made-up", 20, 3).test
    source, target = text.test[0]
    assert source.split()[-1] == target.split()[-1] == "."
    # Word for word, but for what articles, plurals and endings are.
    articles = {"il": "the", "un": "some", "ye": "many"}
    for word, other in articles.items():
        assert source.split().count(word) == target.split().count(other)


def test_files_of_pairs_and_what_is_refused(benchmarks: Path, tmp_path: Path) -> None:
    from parallel_texts import parallel_text

    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"um {n}\tone {n}\n" for n in range(30)) + "a " * 30 + "\tlong\n")
    text = parallel_text(str(file), 5, 0)
    assert (text.name, len(text.train["same"]), len(text.test)) == ("pairs.tsv", 25, 5)
    file.write_text("no translation\n")
    with pytest.raises(SystemExit, match="a sentence, a tab and its translation on each line"):
        parallel_text(str(file), 5, 0)
    with pytest.raises(SystemExit, match="nowhere: 'verses', 'made-up', or a file of pairs"):
        parallel_text("nowhere", 5, 0)


def test_verses(benchmarks: Path, tmp_path: Path) -> None:
    """The same verses in other languages are training text of the other condition only."""
    from parallel_texts import of_verses

    database = tmp_path / "bible.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE bible (bbName, bNumber, cNumber, vNumber, vText)")
        for version in "kavl":
            rows = [(version, 1, 1, n, f"{version} {n}") for n in range(40)]
            connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)
    text = of_verses(database, 10, 0)
    assert (len(text.test), len(text.train["same"]), len(text.train["other"])) == (10, 30, 90)
    assert all(source[2:] == target[2:] for source, target in text.train["other"])
    assert {target[0] for _, target in text.train["other"]} == {"k"}
    assert {source[0] for source, _ in text.train["other"]} == {"a", "v", "l"}
    taken = {target for _, target in text.test}
    assert not taken & {target for _, target in text.train["other"]}


def small(benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A made-up text, and pieces of it, for models of width 16."""
    import small_translators
    import translator_checkpoints
    from parallel_texts import parallel_text

    for module in (small_translators, translator_checkpoints):
        monkeypatch.setattr(module, "LENGTH", 24)
    for name, value in (("WIDTH", 16), ("FEED", 24), ("HEADS", 2), ("WARMUP", 20)):
        monkeypatch.setattr(small_translators, name, value)
    text = parallel_text("made-up", 6, 0)
    said = [side for pair in text.train["same"] for side in pair]
    return text, small_translators.learn_pieces(said, 200)


def test_two_checkpoints_and_going_on(
    benchmarks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is streamed is what single tokens have; a run that was stopped ends the same."""
    from small_translators import new_translator, train
    from translator_checkpoints import TERMS, load_run, look

    text, pieces = small(benchmarks, monkeypatch)
    folders = tmp_path / "whole", tmp_path / "parts"
    for folder, stops in zip(folders, ([(3, 6)], [(3,), (3, 6)]), strict=True):
        folder.mkdir()
        for at in stops:
            translator = new_translator(pieces, 7)

            def checkpoint(step: int, folder: Path = folder, of: Any = translator) -> None:
                look(of, text.test, step, folder / f"checkpoint-{step:06d}.npz")

            pairs = text.train["same"]
            train(translator, pairs, seed=7, size=4, at=at, look=checkpoint, folder=folder)
    whole, parts = (load_run(folder) for folder in folders)
    assert [one.step for one in whole] == [one.step for one in parts] == [3, 6]
    for one, other in zip(whole, parts, strict=True):
        assert one.quality == other.quality
        for at, tokens in one.tokens.items():
            np.testing.assert_array_equal(tokens, other.tokens[at])
            decoding, method = at
            assert tokens.shape == (len(one.owners[decoding]), len(TERMS[method]), 4)
            np.testing.assert_allclose(tokens[:, :, 0].sum(1), 1, atol=1e-3)
            np.testing.assert_allclose(tokens.mean(0), one.means[at][-1], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(tokens.std(0), one.deviations[at][-1], rtol=0.02, atol=1e-4)
            for sentence in range(6):
                own = tokens[one.owners[decoding] == sentence].mean(0)
                np.testing.assert_allclose(
                    own, one.sentences[at][sentence, -1], rtol=1e-3, atol=1e-4
                )
        assert one.means["forced", "by_part"].shape == (4, 5, 4)
    assert whole[1].quality["loss"] < whole[0].quality["loss"]


def planted(seed: int, rate: float, steps: int = 16, sentences: int = 8) -> list[Any]:
    """Checkpoints whose source's importance is what the quality is; the rest is noise."""
    from translator_checkpoints import DECODINGS, TERMS, Checkpoint

    draw, found = np.random.default_rng(seed), []
    quality = 1 + rate * draw.random(steps).cumsum()
    owners = np.repeat(np.arange(sentences), 5)
    for step in range(steps):
        arrays: dict[str, dict[tuple[str, str], np.ndarray]] = {
            kind: {} for kind in ("means", "deviations", "sentences", "tokens")
        }
        for at in ((d, m) for d in DECODINGS for m in TERMS):
            terms = len(TERMS[at[1]])
            arrays["means"][at] = draw.standard_normal((2, terms, 4))
            arrays["means"][at][:, TERMS[at[1]].index("source"), 0] = quality[step]
            arrays["deviations"][at] = np.ones((2, terms, 4))
            arrays["sentences"][at] = draw.standard_normal((sentences, 2, terms, 4))
            arrays["tokens"][at] = draw.standard_normal((len(owners), terms, 4))
        scores = {"BLEU": 10 * quality[step], "chrF": 20 * quality[step], "loss": 5 - quality[step]}
        found.append(
            Checkpoint(
                step, scores, arrays["sentences"]["generated", "by_part"][:, -1, 2, 0],
                **arrays, owners=dict.fromkeys(DECODINGS, owners),
            )
        )  # fmt: skip
    return found


def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    import why_bother_causality
    import why_bother_statistics as statistics

    for name, value in (("DRAWS", 3), ("DEALS", 3), ("SAMPLED", 60), ("QUARTER", 20)):
        monkeypatch.setattr(statistics, name, value)
    monkeypatch.setattr(why_bother_causality, "MOST_LAGS", 2)


def test_planted_agreement_is_found(
    benchmarks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import why_bother_statistics as statistics
    from why_bother_figures import draw_figures
    from why_bother_runs import Run
    from why_bother_table import summary, table

    few_draws(monkeypatch)
    runs = [
        Run(name, name[:-2], planted(seed, 0.05 if name == "other-1" else 0.1))
        for seed, name in enumerate(("same-1", "same-2", "same-3", "other-1"))
    ]
    found = statistics.analyse(runs)
    source, noise = "by_part/importance/source", "by_part/importance/input"
    for which in ("all", "successive"):
        for quality in ("BLEU", "chrF", "loss"):
            rows = found["changes"][f"{quality}, {which}"]
            assert rows[source] == [pytest.approx([1.0] * 4)]
            assert max(abs(value) for row in rows[noise] for value in row) < 0.7
    assert found["sentences"]["last"][source] == [pytest.approx([1.0] * 3)] * 4
    assert [abs(row[0]) < 1 for row in found["sentences"]["last"][noise]] == [True] * 4
    assert found["generated_and_forced"][source]["spearman"] == pytest.approx([1.0] * 4)
    assert found["warping"][source]["distances"] == found["warping"]["BLEU"]["distances"]
    assert found["warping"][source]["arrangements of runs"] == 4
    assert found["warping"][source]["arrangements of pairs"] == 20
    assert found["causality"]["tests"] == 32 * 4
    # What is the quality itself is the same at equal quality, and not at equal steps.
    assert found["matched"][source]["loss"] < 0.3 * found["matched"][source]["step"]
    strength, one_sign = summary(found, "BLEU, all", "by_part")
    assert 0 < strength < 0.5
    assert 0 < one_sign < 1
    told = {"text": "t", "conditions": {"same": "a", "other": "b"}, "checkpoints": 16, "every": 1,
            "batch": 2, "tests": 8, "parameters": 1000,
            "seconds": {one.name: 60.0 for one in runs}}  # fmt: skip
    text = table(told | found)
    assert "| by part, importance, source | 1.00 / 1.00 / 1.00 / 1.00 |" in text
    draw_figures(runs, found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "layers.png", "curves-by-part.png", "curves-by-origin.png", "warping.png", "seeds.png",
        "agreement.png", "changes.png",
    }  # fmt: skip
    json.dumps(found)


def test_the_script(benchmarks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It trains, analyses what it has measured, and hands it on to be drawn."""
    import why_bother
    import why_bother_statistics

    drawn: list[Any] = []
    small(benchmarks, monkeypatch)
    few_draws(monkeypatch)
    # So narrow a model translates nothing for too many checkpoints.
    untested = {"reason": "the BLEU of a run never changes"}
    monkeypatch.setattr(why_bother_statistics, "causality", lambda runs: untested)
    monkeypatch.setattr(why_bother, "draw_figures", lambda *given: drawn.append(given))
    out, folder = tmp_path / "out", tmp_path / "runs"
    options = ("--quick", "--text", "made-up", "--folder", str(folder), "--out", str(out))
    shown = run("why_bother.py", *options, "--runs", "same-1", "same-2", "other-1")
    result = json.loads((out / "statistics.json").read_text())
    assert list(result["curves"]) == ["same-1", "same-2", "other-1"]
    ((runs, found, where),) = drawn
    assert [len(one.checkpoints) for one in runs] == [14] * 3
    assert found["curves"] == result["curves"]
    assert where == out
    assert (out / "tables.md").read_text() in shown
    assert torch.load(folder / "same-1" / "state.pt")["step"] == 28
