"""Hugging Face pipelines, run as they are inside a watch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    pipeline,
)

import geomhooks as gh
from tests.loops.models import STACKS, causal_lm, sentences, word_tokenizer
from tests.loops.recording import (
    check,
    dense,
    generation,
    record,
    seeded,
    submodules,
    watched,
)
from tests.models import MINILM, package_folder, texts

ENCODERS = {
    "feature-extraction": (AutoModel, ""),
    "text-classification": (AutoModelForSequenceClassification, "bert"),
    "fill-mask": (AutoModelForMaskedLM, "bert"),
}


@pytest.mark.parametrize(
    ("task", "batch_size"), [("feature-extraction", 1), *((task, 4) for task in ENCODERS)]
)
def test_encoders(task: str, batch_size: int) -> None:
    """Texts of different length, padded to the longest of each batch."""
    folder = package_folder(*MINILM) / "model"
    kind, inner = ENCODERS[task]
    seeded()
    model, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    run = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
    pages = [page[:120] for page in texts(10, 120)]
    if task == "fill-mask":
        pages = [f"{page} [MASK]." for page in pages]
    bare = run(pages, batch_size=batch_size)
    bert = model.get_submodule(inner) if inner else model
    stack = f"{inner}.encoder.layer".lstrip(".")
    with record(bert, submodules(model, stack)) as forwards, watched(model) as watch:
        assert run(pages, batch_size=batch_size) == bare
    expected = dense(forwards)
    alone = [len(tokenizer(page)["input_ids"]) for page in pages]
    assert len(expected[0].states) == sum(alone)  # no padding was counted, and no text twice
    check(watch.geometry(), stack, expected)


@pytest.mark.parametrize("family", STACKS)
@pytest.mark.parametrize(
    ("batch_size", "options"),
    [
        (1, {}),
        (4, {}),
        (4, {"do_sample": True, "num_return_sequences": 2}),
        (3, {"cache_implementation": "static"}),
    ],
    ids=["alone", "batched", "sampled", "static"],
)
def test_generation(family: str, batch_size: int, options: dict[str, Any]) -> None:
    """Prompts padded on the left; what is generated goes on where they end."""
    model, tokenizer, stack = causal_lm(family), word_tokenizer("left"), STACKS[family]
    run = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    prompts = sentences(7, longest=6)
    short = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    options = short | options
    caller = model.get_submodule(stack.rpartition(".")[0])

    def generate() -> Any:
        seeded()
        return run(prompts, batch_size=batch_size, **options)

    bare = generate()
    with record(caller, submodules(model, stack)) as forwards, watched(model) as watch:
        assert generate() == bare
    expected = dense(forwards, generation)
    rows = len(prompts) * options.get("num_return_sequences", 1)
    assert len(set(expected[0].contexts.tolist())) == rows
    lengths = [len(tokenizer(text)["input_ids"]) for text in prompts]
    read = options.get("num_return_sequences", 1) * (sum(lengths) + 4 * len(prompts))
    assert len(expected[0].states) == read  # the last token is never read
    check(watch.geometry(), stack, expected)


@pytest.mark.parametrize("family", STACKS)
def test_rows_that_end_at_different_steps(family: str) -> None:
    """generate() goes on with padding in the rows that have ended, and its mask calls it real."""
    model, tokenizer, stack = causal_lm(family), word_tokenizer("left"), STACKS[family]
    run = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    caller = model.get_submodule(stack.rpartition(".")[0])
    options = {"max_new_tokens": 12, "do_sample": True,
               "eos_token_id": list(range(2, 20))}  # fmt: skip

    def generate() -> Any:
        seeded()
        return run(sentences(6, longest=6), batch_size=6, **options)

    bare = generate()
    with (
        record(caller, submodules(model, stack)) as forwards,
        watched(model, exclude_token_ids=[tokenizer.pad_token_id]) as watch,
    ):
        assert generate() == bare
    expected = dense(forwards, generation)
    _, lengths = np.unique(expected[0].contexts, return_counts=True)
    assert len(set(lengths.tolist())) > 2
    assert (np.asarray(forwards[-1].given("input_ids")) == 0).any()
    check(watch.geometry(), stack, expected)


@pytest.mark.filterwarnings("ignore:no hook of this watch fired")
def test_continuous_batching_is_refused() -> None:
    """generate_batch packs a step of every request into one row; transformers reports the error."""
    model = causal_lm("llama")
    ids = [word_tokenizer()(line)["input_ids"] for line in sentences(3)]
    options = {
        "generation_config": GenerationConfig(
            max_new_tokens=2, do_sample=False, eos_token_id=2, pad_token_id=0
        ),
        "continuous_batching_config": ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64),
    }
    with gh.watch(model) as watch:
        answers = model.generate_batch(inputs=ids, **options)
    assert len(answers) == 3
    for answer in answers.values():
        assert "generate_batch" in answer.error
        assert "watch.pause()" in answer.error
    with gh.watch(model) as watch, watch.pause():
        answers = model.generate_batch(inputs=ids, **options)
    assert [len(answer.generated_tokens) for answer in answers.values()] == [2] * 3


def test_a_generator_of_texts() -> None:
    """A pipeline over a stream of texts runs while its results are taken."""
    model, tokenizer = causal_lm(), word_tokenizer()
    run = pipeline("feature-extraction", model=model.transformer, tokenizer=tokenizer, device="cpu")
    lines = sentences(6)
    with (
        record(model.transformer, submodules(model.transformer, "h")) as forwards,
        watched(model.transformer) as watch,
    ):
        found = [torch.tensor(out).shape[1] for out in run((line for line in lines), batch_size=1)]
    assert found == [len(line.split()) for line in lines]
    check(watch.geometry(), "h", dense(forwards))
