"""Activations of factors on texts at hand: by ids, and by words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import geomhooks as gh
from geomhooks.errors import SiteError
from geomhooks.functional import SparseCoder, edit_effects, masked_saliency, with_replaced
from geomhooks.measuring import FactorActivations
from tests.models import minilm, tiny_gpt2

SITE = "encoder.layer.2"


def coder(width: int = 384) -> SparseCoder:
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.randn(20, width, generator=generator)
    return SparseCoder(torch.nn.functional.normalize(dictionary, dim=1), 0.1, iterations=50)


@torch.no_grad()
def codes_of(text: str) -> tuple[list[str], Tensor]:
    """Tokens of a text, and the codes of the hidden states that transformers gives out."""
    model, tokenizer = minilm()
    made = tokenizer(text, return_tensors="pt")
    states = model(**made, output_hidden_states=True).hidden_states[3]
    return tokenizer.convert_ids_to_tokens(made["input_ids"][0]), coder()(states[0])


def test_words_of_sentences() -> None:
    """Words of several tokens, in sentences of different lengths."""
    model, tokenizer = minilm()
    activations = FactorActivations(model, coder(), SITE, tokenizer, batch_size=2)
    sentences = [
        ["He", "left", "the", "room", "."],
        ["Turn", "left", "!"],
        ["An", "unfathomableness", "of", "things", "that", "were", "left"],
    ]
    places, factor = [1, 1, 1], 4
    found = activations.of_words(sentences, places, factor)
    expected = []
    for sentence, behind in zip(sentences, ["the", "!", "of"], strict=True):
        tokens, codes = codes_of(" ".join(sentence))
        last = tokens.index(behind) - 1
        assert tokens[last] == "left" or tokens[last].startswith("##")
        expected.append(codes[last, factor])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-4)


def test_what_the_tests_of_a_factor_are_given() -> None:
    model, tokenizer = minilm()
    activations = FactorActivations(model, coder(), SITE, tokenizer)
    words = ["He", "left", "the", "room", "."]
    sentence = activations.mark(words, 1)
    assert tokenizer.convert_ids_to_tokens(sentence.ids)[sentence.position] == "left"
    _, codes = codes_of(" ".join(words))
    factor = int(codes[sentence.position].argmax())
    edits = {"unknown": with_replaced(sentence, [4], tokenizer.unk_token_id)}
    effects = edit_effects(activations.at_positions(factor), sentence, edits)
    whole = float(codes[sentence.position, factor])
    assert effects["original"].activation == pytest.approx(whole, rel=1e-3)
    assert effects["unknown"].activation != pytest.approx(whole, rel=1e-3)
    saliency = masked_saliency(
        activations.at_position(factor, sentence.position),
        sentence.ids,
        tokenizer.unk_token_id,
        samples=40,
    )
    assert saliency.original == pytest.approx(whole, rel=1e-3)


def test_bad_input() -> None:
    model, tokenizer = minilm()
    ids = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(SiteError, match=r"site='blocks' has h.0@in, h.0, .*; the name of one"):
        FactorActivations(tiny_gpt2(), coder(16), "blocks").of_ids(ids)
    with pytest.raises(ValueError, match=r"a fast tokenizer, .* for words; found NoneType"):
        FactorActivations(model, coder(), SITE).mark(["left"], 0)
    activations = FactorActivations(model, coder(), SITE, tokenizer)
    with pytest.raises(ValueError, match="place=1: the sentence has 1 words"):
        activations.mark(["left"], 1)
    with pytest.raises(gh.GeomhooksError, match=r"makes no token of the word '\\u200b"):
        activations.mark(["\u200b", "left"], 0)
