"""Labels are kept of the contexts that a watch keeps, whatever the order and the process."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import geomhooks as gh
from geomhooks.measuring.labels import Labels, labels_in


@given(
    st.lists(st.integers(0, 2**62), min_size=1, max_size=60, unique=True),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_any_order_and_any_processes(ids: list[int], capacity: int, order: object) -> None:
    whole, parts = Labels(capacity), [Labels(capacity), Labels(capacity)]
    whole.note(ids, lambda row: str(ids[row]))
    mixed = sorted(ids, key=lambda _: order.random())  # type: ignore[attr-defined]
    for start in range(0, len(mixed), 5):
        some = mixed[start : start + 5]
        parts[start % 2].note(some, lambda row, some=some: str(some[row]))
    together = Labels(capacity)
    together.take(part.texts for part in parts)
    assert together.texts == whole.texts
    assert len(whole.texts) == min(capacity, len(ids))
    assert all(text == str(identity) for identity, text in whole.texts.items())


def test_the_contexts_that_a_watch_keeps() -> None:
    labels, model = Labels(6), nn.Sequential(nn.Identity())
    with gh.watch(model, sites="0", statistics=[gh.PosCtx(contexts=6)]) as watch:
        for start in range(0, 40, 8):
            ids = torch.arange(start, start + 8)
            with watch.tokens(contexts=ids):
                model(torch.randn(8, 3, 2))
            labels.note(ids.tolist(), str)
    kept = watch.geometry()["0"].pos_ctx.context_id.tolist()
    assert sorted(labels.texts) == sorted(kept)


def test_notes_of_others_are_not_trusted() -> None:
    assert labels_in({}) == labels_in({"labels": 3, "merged": "x"}) == {}
    assert labels_in({"labels": {"1": ["x"], "-": "y"}, "merged": [None]}) == {1: "['x']"}
