"""Forms and maps of heads against whole queries, keys and values in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geomhooks.functional import (
    FoldedHeads,
    QueryKeyForm,
    Rotary,
    fold_norm,
    query_key_form,
    standardise,
    value_output_map,
)

B, T, D, H, G, K = 2, 6, 12, 4, 2, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


GAIN, SHIFT = draw(D, seed=1), draw(D, seed=2)
QUERY, KEY, VALUE = draw(H, D, K, seed=3), draw(G, D, K, seed=4), draw(G, D, K, seed=5)
QUERY_BIAS, KEY_BIAS, VALUE_BIAS = draw(H, K, seed=6), draw(G, K, seed=7), draw(G, K, seed=8)
OUTPUT = draw(H, K, D, seed=9)
STATES = standardise(draw(B, T, D, seed=10))
NORMED = STATES * GAIN + SHIFT


def form(centred: bool = False, rotary: Rotary | None = None) -> QueryKeyForm:
    return query_key_form(
        fold_norm(QUERY, QUERY_BIAS, GAIN, SHIFT, centred=centred),
        fold_norm(KEY, KEY_BIAS, GAIN, SHIFT, centred=centred),
        rotary=rotary,
    )


def queries_and_keys() -> tuple[Tensor, Tensor]:
    """(B, H, T, K) each, key heads repeated."""
    query = torch.einsum("btd,hdk->bhtk", NORMED, QUERY) + QUERY_BIAS[:, None]
    key = torch.einsum("btd,gdk->bgtk", NORMED, KEY) + KEY_BIAS[:, None]
    return query, key[:, [0, 0, 1, 1]]


@pytest.mark.parametrize("centred", [False, True])
def test_the_four_terms_are_the_logits(centred: bool) -> None:
    query, key = queries_and_keys()
    terms = form(centred).terms(STATES)
    assert [tuple(t.shape) for t in terms] == [
        (B, H, T, T), (B, H, T, 1), (B, H, 1, T), (H, 1, 1)
    ]  # fmt: skip
    torch.testing.assert_close(terms.total, query @ key.mT / K**0.5, rtol=1e-12, atol=1e-12)
    assert all(float(term.abs().min()) > 0 for term in terms)


def test_each_term_is_the_published_one() -> None:
    """Molina's expansion: X W_QK X^T, X W_Q b_K^T, b_Q W_K^T X^T, b_Q b_K^T, with X = x G + B."""
    found = form()
    for head in range(H):
        query, key = QUERY[head], KEY[head // 2]
        query_bias, key_bias = QUERY_BIAS[head], KEY_BIAS[head // 2]
        matrix = query @ key.T / K**0.5
        diagonal = GAIN.diag()
        query_only = diagonal @ (query @ key_bias / K**0.5 + matrix @ SHIFT)
        key_only = diagonal @ (key @ query_bias / K**0.5 + matrix.T @ SHIFT)
        constant = (SHIFT @ query + query_bias) @ (SHIFT @ key + key_bias) / K**0.5
        dense = found.left[head] @ found.right[head].T
        torch.testing.assert_close(dense, diagonal @ matrix @ diagonal, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.query_only[head], query_only, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.key_only[head], key_only, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.constant[head], constant, rtol=1e-12, atol=1e-12)


def test_other_keys_and_scale() -> None:
    others = draw(B, 3, D, seed=11)
    bare = query_key_form(fold_norm(QUERY), fold_norm(KEY), scale=2.0)
    terms = bare.terms(STATES, others)
    key = torch.einsum("bsd,gdk->bgsk", others, KEY)[:, [0, 0, 1, 1]]
    query = torch.einsum("btd,hdk->bhtk", STATES, QUERY)
    torch.testing.assert_close(terms.total, 2 * query @ key.mT, rtol=1e-12, atol=1e-12)
    assert not any(term.any() for term in (terms.query_only, terms.key_only, terms.constant))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [4, K])
def test_a_rotary_embedding_is_one_form_for_each_distance(width: int, interleaved: bool) -> None:
    """Also where cosines carry a factor, as some embeddings for long texts have it."""
    angle = torch.arange(T).double()[:, None] * 10.0 ** -torch.arange(width // 2)
    angle = angle.repeat_interleave(2, 1) if interleaved else torch.cat((angle, angle), 1)
    whole = Rotary(1.3 * angle.cos(), 1.3 * angle.sin(), interleaved)
    query, key = (whole.turn(v) for v in queries_and_keys())
    own = query @ key.mT / K**0.5
    for t in range(T):
        for s in range(T):
            places = torch.tensor([max(t - s, 0), max(s - t, 0)])
            rotary = Rotary(whole.cos[places], whole.sin[places], interleaved)
            total = form(rotary=rotary).terms(STATES).total
            torch.testing.assert_close(total[..., t, s], own[..., t, s], rtol=1e-12, atol=1e-12)


def test_values_and_output() -> None:
    found = value_output_map(fold_norm(VALUE, VALUE_BIAS, GAIN, SHIFT), OUTPUT)
    values = torch.einsum("btd,gdk->bgtk", NORMED, VALUE) + VALUE_BIAS[:, None]
    own = values[:, [0, 0, 1, 1]] @ OUTPUT
    updates = found.updates(STATES)
    torch.testing.assert_close(updates, own, rtol=1e-12, atol=1e-12)
    dense = found.left @ found.right.mT
    torch.testing.assert_close(
        STATES[:, None] @ dense + found.constant[:, None], own, rtol=1e-12, atol=1e-12
    )


def test_centring_keeps_directions_in_the_hyperplane() -> None:
    for factor in (form(centred=True).left, form(centred=True).right):
        assert factor.sum(-2).abs().max() < 1e-13
    assert form().left.sum(-2).abs().max() > 0.1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_laws(seed: int, heads: int, inner: int, keys: int) -> None:
    """The softmax sees content and key_only alone; terms are linear in each state."""
    width = 5
    some = query_key_form(
        fold_norm(draw(heads, width, inner, seed=seed), draw(heads, inner, seed=seed + 1)),
        fold_norm(draw(1, width, inner, seed=seed + 2), draw(1, inner, seed=seed + 3)),
    )
    one, two = draw(3, width, seed=seed + 4), draw(keys, width, seed=seed + 5)
    terms = some.terms(one, two)
    torch.testing.assert_close(
        terms.total.softmax(-1), (terms.content + terms.key_only).softmax(-1), rtol=1e-9, atol=1e-12
    )
    doubled = some.terms(2 * one, 3 * two)
    torch.testing.assert_close(doubled.content, 6 * terms.content)
    torch.testing.assert_close(doubled.query_only, 2 * terms.query_only)
    torch.testing.assert_close(doubled.key_only, 3 * terms.key_only)
    # Roles exchanged, the form is transposed.
    swapped = QueryKeyForm(some.right, some.left, some.key_only, some.query_only, some.constant)
    torch.testing.assert_close(swapped.terms(two, one).total, terms.total.mT)


def test_narrow_weights_are_widened() -> None:
    folded = fold_norm(QUERY.bfloat16(), None, GAIN, SHIFT)
    assert folded.weight.dtype == folded.bias.dtype == torch.float32


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"weight: shape \(H, d, k\) is needed, found \(12, 6\)"):
        fold_norm(QUERY[0])
    with pytest.raises(ValueError, match=r"gain: shape \(12,\) is needed for .*found \(5,\)"):
        fold_norm(QUERY, None, torch.ones(5))
    with pytest.raises(ValueError, match=r"bias: shape \(4, 6\) is needed for .*found \(2, 6\)"):
        fold_norm(QUERY, KEY_BIAS)
    narrow = FoldedHeads(KEY[..., :4], KEY_BIAS[:, :4])
    with pytest.raises(ValueError, match="queries of width 6 and keys of width 4 have no product"):
        query_key_form(fold_norm(QUERY), narrow)
    three = Rotary(torch.ones(3, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"rotary: cosines and sines \(2, r\).*found \(3, 4\)"):
        query_key_form(fold_norm(QUERY), fold_norm(KEY), rotary=three)
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads"):
        query_key_form(fold_norm(QUERY[:3]), fold_norm(KEY))
    with pytest.raises(ValueError, match=r"output: shape \(H, 6, d\).*found \(4, 12, 6\)"):
        value_output_map(fold_norm(VALUE), OUTPUT.mT)
