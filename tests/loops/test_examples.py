"""The scripts in `examples/` run, and say what they should of models made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.loops.examples import FOLDER, example
from tests.loops.models import save_causal_lm, sentences
from tests.loops.recording import needed
from tests.models import MINILM, package_folder

TESTED = {
    "encode_sentences",
    "harness_evaluate",
    "lens_bridge",
    "pipelines",
    "trainer_evaluate",
    "vision_transformer",
}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_causal_lm(tmp_path_factory.mktemp("causal"), "llama"))


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(sentences(9)))
    return str(path)


def minilm() -> str:
    return str(package_folder(*MINILM) / "model")


def test_they_are_short_and_say_how_to_install_and_run_them() -> None:
    loops = [path for path in FOLDER.glob("*.py") if path.stem in TESTED]
    assert {path.stem for path in loops} == TESTED
    for path in loops:
        text = path.read_text()
        assert "pip install " in text, path
        assert f"python examples/{path.name} " in text, path
        assert len([line for line in text.splitlines() if line.strip()]) <= 40, path


def test_pipelines(causal: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("pipelines").main(minilm(), causal)
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out] == [
        *(["reading", f"encoder.layer.{i}"] for i in ("0@in", *range(6))),
        *(["writing", f"model.layers.{i}"] for i in ("0@in", *range(3))),
    ]
    assert all("3 contexts" in line for line in out)


@pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning")
def test_trainer_evaluate(causal: str, lines: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed("accelerate")
    example("trainer_evaluate").main(causal, lines)
    out = capsys.readouterr().out
    assert "loss " in out
    assert "model.layers.2/pos_ctx/shares/ctx" in out


def test_encode_sentences(lines: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed("sentence_transformers")
    example("encode_sentences").main(minilm(), lines)
    out = capsys.readouterr().out
    assert out.startswith("9 texts, ")
    assert "encoder.layer.5 " in out


def test_lens_bridge(causal: str, lines: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed("transformer_lens")
    example("lens_bridge").main(causal, lines)
    out = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in out] == [f"blocks.{i}" for i in range(3)]


def test_vision_transformer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(num_hidden_layers=2, image_size=16, patch_size=4, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    example("vision_transformer").main(str(tmp_path))
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:3]] == ["layers.0@in", "layers.0", "layers.1"]
    assert out[-1].endswith("of 17")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_harness_evaluate(causal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needed("lm_eval")
    from lm_eval.tasks import TaskManager

    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in sentences(9)))
    task = {
        "task": "read", "dataset_path": "json", "test_split": "test", "doc_to_text": "",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(tmp_path)},
        "output_type": "loglikelihood_rolling", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }  # fmt: skip
    manager = TaskManager(include_defaults=False)
    example("harness_evaluate").main(causal, task, task_manager=manager, bootstrap_iters=0)
    out = capsys.readouterr().out
    assert "word_perplexity" in out
    assert "model.layers.2 " in out
