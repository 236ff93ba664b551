"""lm-evaluation-harness's simple_evaluate, run as it is on local tasks inside a watch."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.loops.examples import example
from tests.loops.models import STACKS, causal_lm, sentences, word_tokenizer
from tests.loops.recording import check, dense, generation, needed, record, submodules, watched

lm_eval = needed("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

WORDS = {"choices": ["word1", "word2 word3", "word4"]}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Tasks of all kinds of requests, on a file of nine rows that is written here."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"text": line, "label": index % 3} | WORDS for index, line in enumerate(sentences(9))]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(folder)},
        "test_split": "test",
        "doc_to_text": "{{text}}",
    }
    acc = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    exact = acc | {"metric": "exact_match"}
    perplexity = {"metric": "word_perplexity"}
    return {
        "multiple_choice": common
        | {"task": "choose", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
           "doc_to_target": "{{label}}", "metric_list": [acc]},
        "generate_until": common
        | {"task": "write", "output_type": "generate_until", "doc_to_target": "word1",
           "generation_kwargs": {"until": ["word9"], "max_gen_toks": 4},
           "metric_list": [exact]},
        "loglikelihood_rolling": common
        | {"task": "read", "output_type": "loglikelihood_rolling", "doc_to_text": "",
           "doc_to_target": "{{text}}", "metric_list": [perplexity]},
    }  # fmt: skip


@pytest.fixture(autouse=True)
def without_a_report_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness asks pip, git and the system who they are, which takes seconds each time."""
    from lm_eval import evaluator

    monkeypatch.setattr(evaluator, "add_env_info", lambda storage: None)
    monkeypatch.setattr(evaluator, "get_git_commit_hash", lambda: None)


def evaluate(lm: Any, task: dict[str, Any]) -> Any:
    """The results, and what the model answered to every row."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=lm, tasks=[dict(task)], task_manager=manager, bootstrap_iters=0
    )
    rows = [row["resps"] for row in found["samples"][task["task"]]]
    return found["results"][task["task"]], rows


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("kind", "family"),
    [("multiple_choice", "gpt2"), ("generate_until", "llama"), ("loglikelihood_rolling", "gpt2")],
)
def test_simple_evaluate(
    kind: str, family: str, batch_size: int, tasks: dict[str, dict[str, Any]]
) -> None:
    """Batches are sorted by length, filled up with zeros and, for likelihoods, have no mask."""
    from lm_eval.models.huggingface import HFLM

    model, stack = causal_lm(family), STACKS[family]
    lm = HFLM(pretrained=model, tokenizer=word_tokenizer("left"), batch_size=batch_size)
    caller = model.get_submodule(stack.rpartition(".")[0])
    options = {"tokens": example("harness_evaluate").fillers} if batch_size > 1 else {}
    if kind == "generate_until":  # rows that have ended go on with padding under a mask of ones
        options = {"exclude_token_ids": [0]}
    bare = evaluate(lm, tasks[kind])
    with (
        record(caller, submodules(model, stack)) as forwards,
        watched(model, **options) as watch,
    ):
        assert evaluate(lm, tasks[kind]) == bare
    expected = dense(forwards, generation)
    if kind != "generate_until":
        padded = any(bool((forward.given("input_ids") == 0).any()) for forward in forwards)
        assert padded == (batch_size > 1)
        # One forward for each text, or for each text with each choice; those with one word share.
        lines = sentences(9)
        rows = 9 * (1 if kind == "loglikelihood_rolling" else 2)
        assert len(set(expected[0].contexts.tolist())) == rows
        words = sum(len(line.split()) for line in lines)
        read = words if kind == "loglikelihood_rolling" else 2 * words + 9
        assert len(expected[0].states) == read
    check(watch.geometry(), stack, expected)


def test_the_zeros_at_the_end_are_no_tokens() -> None:
    fillers = example("harness_evaluate").fillers
    ids = torch.tensor([[5, 0, 7, 0, 0], [1, 2, 3, 4, 5]])
    assert fillers(None, {"input_ids": ids})["mask"].long().tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert fillers(None, {"input_ids": ids, "attention_mask": ids}) is None
    assert fillers(None, {"inputs_embeds": ids}) is None
