"""Words through single heads, as the published code finds them with whole matrices, and the model.

The published procedure is done again here densely, a head at a time, on small GPT-2s in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geomhooks.anatomy import (
    Words,
    attention_logits,
    attention_output,
    bias_words,
    embedding_distances,
    find_anatomy,
    head_spectra,
    key_words,
    normed,
    ranked_words,
    single_tokens,
    singular_words,
    value_words,
    word_rows,
)
from geomhooks.errors import AnatomyError
from geomhooks.functional import sphere_distances
from tests.anatomy.models import MODELS, VOCABULARY, gpt2, make, opt
from tests.models import minilm, smollm

K, HEADS, WIDTH = 5, 4, 6
GIVEN = ["w7", "w1 w2", "w40", "w11"]
KEPT = {"w7": 7, "w40": 40, "w11": 11}


def encode(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def decode(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


PAIR = (encode, decode)


def published_model() -> nn.Module:
    return make("gpt2").double()


def published_parts(model: nn.Module, block: int) -> dict[str, list[Tensor]]:
    """Weights and biases by head, x W; the output as (d, k), as a Linear would have it."""
    attention = model.h[block].attn
    weight, bias = attention.c_attn.weight.detach(), attention.c_attn.bias.detach()
    names = ("query", "key", "value")
    width = weight.shape[0]
    parts = {n: list(w.split(WIDTH, 1)) for n, w in zip(names, weight.split(width, 1), strict=True)}
    parts |= {
        f"{n} bias": list(b.split(WIDTH)) for n, b in zip(names, bias.split(width), strict=True)
    }
    parts["output"] = list(attention.c_proj.weight.detach().T.split(WIDTH, 1))
    return parts


def nearest(vectors: Tensor, rows: Tensor) -> Tensor:
    return (vectors @ rows.T).argsort(dim=1, descending=True)[:, :K]


@pytest.mark.parametrize("block", [0, 2])
def test_published_keys_and_values(block: int) -> None:
    model = published_model()
    parts = published_parts(model, block)
    with torch.no_grad():
        words = model.wte.weight.detach()
        read = model.h[block].ln_1(words)
        own = list(KEPT.values())
        keys = key_words(model, PAIR, GIVEN, block, k=K)
        values = value_words(model, PAIR, GIVEN, block, k=K)
        alone = value_words(model, PAIR, GIVEN, block, k=K, alone=True)
        bias = model.h[block].attn.c_proj.bias
        total = torch.zeros(len(own), words.shape[1]).double()
        for head in range(HEADS):
            w_qk = parts["query"][head] @ parts["key"][head].T / WIDTH**0.5
            assert torch.equal(keys.indices[head], nearest(read[own] @ w_qk, read))
            update = read[own] @ (parts["value"][head] @ parts["output"][head].T)
            update = update + parts["value bias"][head] @ parts["output"][head].T
            total += update
            found = nearest(model.ln_f(words[own] + update + bias), words)
            assert torch.equal(values.indices[head], found)
            assert torch.equal(alone.indices[head], nearest(model.ln_f(update), words))
            torch.testing.assert_close(values.lengths[head], update.norm(dim=1))
        found = nearest(model.ln_f(words[own] + total + bias), words)
        assert torch.equal(values.indices[-1], found)
        assert torch.equal(alone.indices[-1], nearest(model.ln_f(total), words))
        torch.testing.assert_close(values.lengths[-1], total.norm(dim=1))
        assert torch.equal(alone.lengths, values.lengths)  # type: ignore[arg-type]
    assert keys.words == values.words == list(KEPT)
    assert keys.nearest[1][2] == [f"w{i}" for i in keys.indices[1, 2].tolist()]
    assert keys.lengths is None

    rows = values.table()
    assert len(rows) == (HEADS + 1) * len(KEPT)
    assert rows[-1] == {
        "attention": f"h.{block}.attn",
        "head": "sum",
        "word": "w11",
        "nearest": values.nearest[-1][-1],
        "length": pytest.approx(float(values.lengths[-1, -1])),
    }
    # Not cut off to whole numbers.
    assert all(row["length"] % 1 for row in rows)
    assert "length" not in keys.table()[0]
    assert [row["head"] for row in keys.table()[:: len(KEPT)]] == list(range(HEADS))


@pytest.mark.parametrize("of", ["query_key", "value_output"])
def test_published_singular_words(of: Any) -> None:
    model = published_model()
    parts = published_parts(model, 1)
    words = model.wte.weight.detach()
    read = model.h[1].ln_1(words).detach()
    found = singular_words(model, PAIR, 1, of, k=K)
    assert found.values.shape == (HEADS, WIDTH)
    for head in range(HEADS):
        if of == "query_key":
            matrix, right_rows = parts["query"][head] @ parts["key"][head].T / WIDTH**0.5, read
        else:
            matrix, right_rows = parts["value"][head] @ parts["output"][head].T, words
        u, s, vh = torch.linalg.svd(matrix)
        left, right = (u * s).T[:WIDTH], vh[:WIDTH]
        above, below = (right @ right_rows.T).amax(1), (-right @ right_rows.T).amax(1)
        sign = torch.where(above >= below, 1, -1)[:, None]
        torch.testing.assert_close(found.values[head], s[:WIDTH])
        assert torch.equal(found.right_indices[head], nearest(sign * right, right_rows))
        assert torch.equal(found.left_indices[head], nearest(sign * left, read))
    few = singular_words(model, PAIR, 1, of, number=2, k=3)
    assert torch.equal(few.left_indices, found.left_indices[:, :2, :3])
    row = few.table()[3]
    assert (row["head"], row["rank"], row["of"]) == (1, 1, of)
    assert row["left"] == few.left[1][1] == [decode([i]) for i in few.left_indices[1, 1].tolist()]
    assert row["right"] == few.right[1][1]
    assert row["value"] == pytest.approx(float(found.values[1, 1]))


def test_published_bias_directions() -> None:
    model = published_model()
    parts = published_parts(model, 0)
    read = model.h[0].ln_1(model.wte.weight).detach()
    found = bias_words(model, PAIR, 0, k=K)
    for head in range(HEADS):
        query = parts["query"][head] @ parts["key bias"][head]
        key = parts["key"][head] @ parts["query bias"][head]
        for side, direction in enumerate((query, key)):
            torch.testing.assert_close(
                found.directions[side, head], direction / WIDTH**0.5, rtol=1e-9, atol=1e-12
            )
            for which, sign in enumerate((1, -1)):
                expected = nearest(sign * direction[None], read)[0]
                assert torch.equal(found.indices[side, which, head], expected)
    rows = found.table()
    assert [(row["side"], row["sign"]) for row in rows[:4]] == [
        ("query", "+"), ("query", "-"), ("key", "+"), ("key", "-")
    ]  # fmt: skip
    assert rows[7]["nearest"] == found.nearest[1][1][1]


def test_with_the_gain_of_the_norm_in_the_matrix() -> None:
    """Words before the gain and shift, forms with them: the same products."""
    model = published_model()
    rows = word_rows(model, 1)
    gain, shift = rows.attention.norm.affine(rows.embedded)  # type: ignore[union-attr]
    torch.testing.assert_close(rows.standardised * gain + shift, rows.read)
    found = bias_words(model, PAIR, 1, folded=True)
    assert not torch.equal(found.indices, bias_words(model, PAIR, 1).indices)
    parts = published_parts(model, 1)
    inner = shift @ parts["query"][2] + parts["query bias"][2]
    expected = gain * (parts["key"][2] @ inner) / WIDTH**0.5
    torch.testing.assert_close(found.directions[1, 2], expected)
    values = singular_words(model, PAIR, 1, folded=True).values
    dense = gain[:, None] * (parts["query"][2] @ parts["key"][2].T) * gain / WIDTH**0.5
    torch.testing.assert_close(values[2], torch.linalg.svdvals(dense)[:WIDTH])


@pytest.mark.parametrize("name", MODELS)
def test_keys_are_ranked_as_the_model_ranks_them(name: str) -> None:
    """With biases, at a distance: by the logits of a sequence of the key and the query."""
    model = make(name).double()
    distance = 3
    if find_anatomy(model).at(0).query_norm is not None:
        with pytest.raises(AnatomyError, match="norms its queries or keys"):
            key_words(model, PAIR, GIVEN, 0)
        return
    found = key_words(model, PAIR, GIVEN, 0, k=VOCABULARY, distance=distance, biases=True)
    rows = word_rows(model, 0)
    query = rows.embedded[40].expand(VOCABULARY, -1)
    pairs = torch.stack((rows.embedded, query), 1)
    positions = torch.tensor([0, distance])
    before_cap = replace(rows.attention, softcap=None)
    logits = attention_logits(before_cap, pairs, positions)[:, :, 1, 0].T
    scores = torch.empty_like(logits).scatter(1, found.indices[:, 1], found.scores[:, 1])
    # The scores are the logits but for what all keys share.
    apart = logits - scores
    spread = (apart - apart.mean(1, keepdim=True)).abs().max()
    assert float(spread) < 1e-5 * float(logits.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_values_of_all_heads_are_the_output_for_a_word_alone(name: str) -> None:
    model = make(name).double()
    found = value_words(model, PAIR, GIVEN, 1, k=K)
    rows = word_rows(model, 1)
    own = rows.embedded[list(KEPT.values())]
    whole = added = attention_output(rows.attention, own[:, None])[:, 0]
    kept = normed(own, rows.attention.norm) if rows.sublayer.residual_is_normed else own
    added = normed(added, rows.sublayer.after)
    states = normed(normed(kept + added, rows.sublayer.closing), rows.stack.final_norm)
    assert torch.equal(found.indices[-1], nearest(states, rows.unembedding))
    torch.testing.assert_close(
        found.scores[-1], (states @ rows.unembedding.T).gather(1, found.indices[-1]),
        rtol=1e-6, atol=1e-6,
    )  # fmt: skip
    alone = value_words(model, PAIR, GIVEN, 1, k=K, alone=True)
    bias = rows.attention.output.bias
    added = normed(whole if bias is None else whole - bias, rows.sublayer.after)
    states = normed(
        normed(rows.sublayer.scale * added, rows.sublayer.closing), rows.stack.final_norm
    )
    products = (states @ rows.unembedding.T).gather(1, alone.indices[-1])
    torch.testing.assert_close(alone.scores[-1], products, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_ranked_words(name: str) -> None:
    model = make(name).double()
    anatomy = find_anatomy(model)
    found = ranked_words(model, PAIR, k=3)
    rows = word_rows(anatomy, 0).unembedding
    norm = anatomy.stack().final_norm
    gain, bias = torch.ones(24).double(), torch.zeros(24).double()
    if norm is not None:
        gain, bias = norm.affine(rows)
    expected = {
        "norm": rows.norm(dim=1),
        "scaled_norm": (rows * gain).norm(dim=1),
        "norm_and_bias": rows.norm(dim=1) + rows @ bias,
        "scaled_norm_and_bias": (rows * gain).norm(dim=1) + rows @ bias,
    }
    table = found.table()
    assert len(table) == 6 * 2 * 3
    for by, scores in expected.items():
        for end, descending in (("top", True), ("bottom", False)):
            order = scores.argsort(descending=descending)[:3]
            mine = [row for row in table if (row["by"], row["end"]) == (by, end)]
            assert [row["word"] for row in mine] == [decode([int(i)]) for i in order]
            assert [row["score"] for row in mine] == pytest.approx(scores[order].tolist())
            assert [row["place"] for row in mine] == [1, 2, 3]


def test_embedding_distances() -> None:
    for name in ("gpt2", "llama", "bert"):
        model = make(name)
        rows = word_rows(model, 0)
        norm = rows.attention.norm
        own = sphere_distances(rows.embedded, eps=1e-5) if norm is None else sphere_distances(
            rows.embedded, eps=norm.eps, centred=norm.centred
        )  # fmt: skip
        found = embedding_distances(model)
        assert found.words == own.words == VOCABULARY
        torch.testing.assert_close(found.scaled.l2_mean, own.scaled.l2_mean)


@pytest.mark.parametrize("name", ["minilm", "smollm"])
def test_pretrained_models_and_their_tokenizers(name: str) -> None:
    model, tokenizer = {"minilm": minilm, "smollm": smollm}[name]()
    nouns = ["time", "year", "people", "way", "day", "antidisestablishmentarianism"]
    known = single_tokens(nouns, tokenizer)
    assert "antidisestablishmentarianism" not in known
    assert {"time", "people"} <= set(known)
    assert single_tokens(nouns, tokenizer.backend_tokenizer) == known
    anatomy = find_anatomy(model)
    layer = len(anatomy.attention) // 2
    found = value_words(anatomy, tokenizer, nouns, layer, k=3)
    assert found.words == list(known)
    assert float(found.lengths.min()) > 0  # type: ignore[union-attr]
    assert found.nearest[0][0] == [tokenizer.decode([i]) for i in found.indices[0, 0].tolist()]
    keys = key_words(anatomy, tokenizer, nouns, 0, k=3, metric="cosine")
    assert float(keys.scores.abs().max()) <= 1 + 1e-5
    singular = singular_words(anatomy, tokenizer, layer, "value_output", number=2, k=3)
    products = word_rows(anatomy, layer).unembedding[singular.right_indices[:, :, 0]]
    assert products.shape[:2] == (anatomy.attention[layer].heads, 2)


def test_tokenizers() -> None:
    words = Words.of(PAIR)
    assert Words.of(words) is words
    assert words.texts(torch.tensor([[[1], [2]]])) == [[["w1"], ["w2"]]]

    class Plain:
        encode = staticmethod(encode)
        decode = staticmethod(decode)

    assert single_tokens(GIVEN, Plain()) == KEPT
    for wrong in (3, (encode,), (encode, "decode")):
        with pytest.raises(TypeError, match="tokenizer: one with encode and decode is needed"):
            Words.of(wrong)
    with pytest.raises(ValueError, match="none of 1 words is one token"):
        single_tokens(["w1 w2"], PAIR)
    with pytest.raises(ValueError, match=r"a list of words is needed, such as \['w1'\]"):
        single_tokens("w1", PAIR)


def test_errors() -> None:
    model = make("gpt2")
    with pytest.raises(AnatomyError, match=r"no attention 'h\.9'"):
        key_words(model, PAIR, GIVEN, "h.9")
    with pytest.raises(ValueError, match=r"'w99' is token 99, and the model's table has 60 rows"):
        key_words(model, PAIR, ["w1", "w99"], 0)
    with pytest.raises(TypeError, match=r"a BlockParts is no attention; find_anatomy\(model\)\.at"):
        head_spectra(next(iter(find_anatomy(model).stacks.values())).blocks[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k=61 and block=8192: from 1 to the 60 rows"):
        key_words(model, PAIR, GIVEN, 0, k=61)
    with pytest.raises(ValueError, match="k=0: from 1 to the 60 words"):
        ranked_words(model, PAIR, k=0)
    with pytest.raises(AnatomyError, match=r"layers\.0\.self_attn has no biases.*folded=True"):
        bias_words(make("llama, one key head"), PAIR, 0)
    with pytest.raises(ValueError, match="of='keys'"):
        singular_words(model, PAIR, 0, "keys")  # type: ignore[arg-type]
    with pytest.raises(AnatomyError, match=r"no table of tokens as wide as its hidden states"):
        key_words(opt(word_embed_proj_dim=12), PAIR, GIVEN, 0)


def test_a_head_that_is_not_tied_is_what_values_are_compared_with() -> None:
    model = make("llama")
    assert not find_anatomy(model).tied
    torch.testing.assert_close(word_rows(model, 0).unembedding, model.lm_head.weight.detach())
    headless = gpt2()
    assert word_rows(headless, 0).unembedding.data_ptr() == headless.wte.weight.data_ptr()
