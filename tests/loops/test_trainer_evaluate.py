"""Trainer.evaluate and Trainer.predict, run as they are inside a watch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from tests.loops.models import causal_lm, sentences, word_tokenizer
from tests.loops.recording import check, dense, needed, record, seeded, submodules, watched
from tests.models import MINILM, package_folder, texts

needed("accelerate")


def classifier() -> tuple[Any, Any, list[dict[str, Any]], str, str]:
    """MiniLM with a head, on pages of different length with labels."""
    folder = package_folder(*MINILM) / "model"
    seeded()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [
        dict(tokenizer(page[:150])) | {"labels": index % 2}
        for index, page in enumerate(texts(11, 150))
    ]
    return model, DataCollatorWithPadding(tokenizer), rows, "bert", "encoder.layer"


def language_model() -> tuple[Any, Any, list[dict[str, Any]], str, str]:
    """A causal language model on sentences of different length."""
    tokenizer = word_tokenizer()
    rows = [dict(tokenizer(line)) for line in sentences(11)]
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return causal_lm(), collate, rows, "transformer", "h"


@pytest.mark.parametrize("make", [classifier, language_model], ids=lambda make: make.__name__)
def test_evaluate_and_predict(make: Any, tmp_path: Path) -> None:
    model, collate, rows, inner, stack = make()
    options = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=4, use_cpu=True, report_to=[], disable_tqdm=True
    )
    trainer = Trainer(model, options, data_collator=collate, eval_dataset=rows)
    caller, stack_name = model.get_submodule(inner), f"{inner}.{stack}"
    bare, bare_predictions = trainer.evaluate(), trainer.predict(rows).predictions
    with (
        record(caller, submodules(caller, stack)) as forwards,
        watched(model) as watch,
    ):
        found = trainer.evaluate()
    assert found["eval_loss"] == bare["eval_loss"]
    expected = dense(forwards)
    assert len(expected[0].states) == sum(len(row["input_ids"]) for row in rows)
    check(watch.geometry(), stack_name, expected)

    with record(caller, submodules(caller, stack)) as forwards, watched(model) as watch:
        predictions = trainer.predict(rows).predictions
    assert all(map(np.array_equal, as_list(predictions), as_list(bare_predictions)))
    check(watch.geometry(), stack_name, dense(forwards))


def as_list(predictions: Any) -> list[Any]:
    """One array or several."""
    return list(predictions) if isinstance(predictions, (tuple, list)) else [predictions]
