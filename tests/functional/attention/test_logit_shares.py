"""Streamed shares of the variance of logits against the variance of all logits at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from geomhooks.functional import key_only_share, logit_shares, logit_sums, query_key_logits

B, T, H, G, K, P = 3, 9, 4, 2, 5, 3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


QUERY, KEY = draw(P, B, H, T, K, seed=1) + 1, draw(P + 1, B, G, T, K, seed=2) - 1
REAL = torch.arange(T) < torch.tensor([9, 5, 1])[:, None]
ALLOWED = (torch.ones(T, T, dtype=torch.bool).tril() & REAL[:, None, :] & REAL[:, :, None])[:, None]


def dense(head: int, within: bool) -> np.ndarray:
    """(N, N) covariance of the parts of one head's logits."""
    logits = query_key_logits(QUERY, KEY)[:, :, :, head].numpy()
    columns = []
    for b in range(B):
        for t in range(T):
            keys = ALLOWED[b, 0, t].numpy()
            if keys.any():
                row = logits[:, :, b, t][..., keys].reshape(P * (P + 1), -1)
                columns.append(row - row.mean(1, keepdims=True) if within else row)
    every = np.concatenate(columns, axis=1)
    every = every - every.mean(1, keepdims=True)
    return np.asarray(every @ every.T / every.shape[1])


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("block", [1, 4, None])
def test_against_all_logits_at_once(within: bool, block: int | None) -> None:
    shares = logit_shares(logit_sums(QUERY, KEY, ALLOWED, block=block).over(0), within)
    for head in range(H):
        expected = dense(head, within)
        variance = expected.sum()
        found = shares.covariance[head].reshape(P * (P + 1), -1)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(shares.variance[head], variance)
        np.testing.assert_allclose(
            shares.shares[head].flatten(), expected.sum(1) / variance, atol=1e-10
        )
        alone = np.diag(expected) / variance
        np.testing.assert_allclose(shares.alone[head].flatten(), alone, atol=1e-10)
        np.testing.assert_allclose(shares.cross[head], 1 - alone.sum(), atol=1e-9)
    torch.testing.assert_close(shares.shares.sum((-2, -1)), torch.ones(H).double())


def test_contexts_add_up_and_what_is_not_allowed_may_be_anything() -> None:
    holes = KEY.masked_fill(~REAL[None, :, None, :, None], float("nan"))
    whole = logit_sums(QUERY, KEY, ALLOWED).over(0)
    added = logit_sums(QUERY[:, :1], holes[:, :1], ALLOWED[:1]).over(0)
    added = added + logit_sums(QUERY[:, 1:], holes[:, 1:], ALLOWED[1:]).over(0)
    for name in ("pairs", "within", "total", "between"):
        torch.testing.assert_close(getattr(added, name), getattr(whole, name))
    with pytest.raises(ValueError, match=r"sums of \(3, 4\) and of \(2, 4\) parts"):
        whole + logit_sums(QUERY[:2], KEY, ALLOWED).over(0)


def test_what_all_keys_share_is_no_variance_within_a_query() -> None:
    """Planted: the second part of the key is the same for all, so that softmax cannot see it."""
    key = draw(2, 1, T, K, seed=3)
    key[1] = 100 * key[1, :, :1]
    query = draw(1, 1, T, K, seed=4)
    sums = logit_sums(query, key, torch.ones(T, T, dtype=torch.bool))
    shares = logit_shares(sums)
    torch.testing.assert_close(shares.shares, torch.tensor([[[1.0, 0.0]]]).double())
    assert float(logit_shares(sums, within=False).shares[0, 0, 1]) > 0.99


def test_far_from_zero() -> None:
    """A part of mean 1e4 and spread 1: no digits are lost within queries, few between."""
    query = torch.ones(1, 1, T, 1, dtype=torch.float64)
    key = 1e4 + draw(1, 1, T, 1, seed=5)
    found = logit_shares(logit_sums(query, key, torch.ones(T, T, dtype=torch.bool)))
    torch.testing.assert_close(found.variance[0], key.var(correction=0), rtol=1e-9, atol=0)
    between = logit_sums(key, query, torch.ones(T, T, dtype=torch.bool))
    torch.testing.assert_close(
        logit_shares(between, within=False).variance[0], key.var(correction=0), rtol=1e-6, atol=0
    )


def test_in_float32() -> None:
    """Products of one block are in float32: shares stay right to six digits."""
    wide = logit_shares(logit_sums(QUERY, KEY, ALLOWED).over(0))
    narrow = logit_shares(logit_sums(QUERY.float(), KEY.float(), ALLOWED).over(0))
    assert narrow.covariance.dtype == torch.float64
    torch.testing.assert_close(narrow.shares, wide.shares, rtol=1e-5, atol=1e-5)
    half = logit_shares(logit_sums(QUERY.bfloat16(), KEY.bfloat16(), ALLOWED).over(0))
    torch.testing.assert_close(half.shares, wide.shares, rtol=0.1, atol=0.02)


def test_key_only_share_asks_the_last_part_of_the_query_of_the_others_of_the_key() -> None:
    """Var of what the last part of the query makes of all but the last part of the key."""
    query, key = QUERY.double(), KEY.double()
    sums = logit_sums(query, key, ALLOWED).over(0)
    found = key_only_share(logit_shares(sums))
    only, rest = query.clone(), key.clone()
    only[:-1], rest[-1] = 0, 0
    alone, whole = (
        logit_shares(logit_sums(*sides, ALLOWED).over(0)).variance
        for sides in ((only, rest), (query, key))
    )
    torch.testing.assert_close(found, alone / whole)
    assert (found > 0).all()
