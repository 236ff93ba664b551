"""SentenceTransformer.encode, run as it is inside a watch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.loops.recording import check, dense, needed, record, submodules, watched
from tests.models import MINILM, package_folder, texts

sentence_transformers = needed("sentence_transformers")


@pytest.fixture(scope="module")
def model() -> Any:
    """MiniLM with mean pooling."""
    folder = str(package_folder(*MINILM) / "model")
    return sentence_transformers.SentenceTransformer(folder, device="cpu")


@pytest.mark.parametrize("options", [{}, {"output_value": "token_embeddings"}], ids=str)
def test_encode(model: Any, options: dict[str, Any]) -> None:
    """It sorts by length and pads to the longest of each batch."""
    pages = [page[:140] for page in texts(13, 140)]
    stack = stack_of(model)
    bare = model.encode(pages, batch_size=4, **options)
    with record(model, submodules(model, stack)) as forwards, watched(model) as watch:
        found = model.encode(pages, batch_size=4, **options)
    assert len(found) == len(bare) == len(pages)
    assert all(map(np.array_equal, found, bare))
    expected = dense(forwards)
    lengths = [len(ids) for ids in model.tokenizer(pages)["input_ids"]]
    _, counts = np.unique(expected[0].contexts, return_counts=True)
    assert sorted(counts) == sorted(lengths)
    check(watch.geometry(), stack, expected)


def test_similarity_of_queries_and_documents(model: Any) -> None:
    """Two calls in one watch, with a prompt before every text: all of it is counted."""
    queries, documents = texts(3, 60), texts(9, 90)[3:]
    stack = stack_of(model)
    with record(model, submodules(model, stack)) as forwards, watched(model) as watch:
        model.encode_query(queries, prompt="query: ", batch_size=2)
        model.encode_document(documents, batch_size=4)
    expected = dense(forwards)
    assert len(set(expected[0].contexts.tolist())) == 9
    check(watch.geometry(), stack, expected)


def stack_of(model: Any) -> str:
    """Name of the blocks of the BERT inside, whose forward is called past its hooks."""
    outer = next(n for n, m in model.named_modules() if type(m).__name__ == "BertModel")
    return f"{outer}.encoder.layer"
