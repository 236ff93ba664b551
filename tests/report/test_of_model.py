"""Which head looks at places, and the figures that need the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from geomhooks.anatomy import attention_parts
from geomhooks.errors import FigureError
from geomhooks.report.of_model import PLACE, TEXT, coverage_by_layer, guarded, head_shares
from geomhooks.report.packing import figure_json
from geomhooks.report.page import report_page
from tests.report.geometries import HEADS, LENGTH, everything, hostile, model_and_texts


def test_shares_of_heads_are_those_of_the_sums() -> None:
    model, texts = model_and_texts()
    split = attention_parts(model, everything(), {"input_ids": texts[:1]}, layer=1)
    found = head_shares(split, *PLACE)
    logits = split.logits[:, :, 0]
    for head in range(HEADS):
        part = whole = 0.0
        for query in range(1, LENGTH):  # causal: the first sees one key, which does not vary
            seen = logits[:, :, head, query, : query + 1].double()
            total = seen.sum((0, 1))
            place = seen[1, 1]
            part += float(((place - place.mean()) * (total - total.mean())).sum())
            whole += float(((total - total.mean()) ** 2).sum())
        assert float(found[head]) == pytest.approx(part / whole, rel=1e-4)
    rest = [(q, k) for q in range(5) for k in range(5)]
    every = sum(head_shares(split, (q,), (k,)) for q, k in rest)
    torch.testing.assert_close(every, torch.ones(HEADS))
    assert head_shares(split, TEXT, TEXT).shape == (HEADS,)


def test_figures_of_a_model_are_on_its_page() -> None:
    model, texts = model_and_texts()
    page = report_page(everything(), model=model, prompt=texts[:1], words=lambda i: f"w{i}")
    for name in ("query_key_logits_place", "query_key_logits_text", "singular_value_coverage"):
        assert f'data-name="{name}"' in page
    assert f'"0: w{int(texts[0, 0])}"' in page
    figure = coverage_by_layer(model)
    assert [step.label for step in figure.layout.sliders[0].steps] == ["0", "1", "2"]
    assert len([trace for trace in figure.data if trace.visible]) == HEADS


def test_a_model_whose_parts_are_not_known() -> None:
    with pytest.raises(FigureError, match="the model's heads cannot be drawn"):
        guarded(lambda: coverage_by_layer(nn.Linear(2, 2)))
    page = report_page(hostile(), model=nn.Linear(2, 2), prompt=torch.ones(1, 3).long())
    assert "singular_value_coverage" not in page
    assert 'data-name="variance_shares"' in page


def test_little_room() -> None:
    """Matrices that are not symmetric, or small, stay as they are."""
    go = pytest.importorskip("plotly.graph_objects")
    wide = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    symmetric = wide + wide.T
    for z, packed in ((wide, False), (symmetric, True), (symmetric[:5, :5], False)):
        text = figure_json(go.Figure(go.Heatmap(z=z)).to_dict())
        assert ('"half":' in text) is packed
    assert len(figure_json(go.Figure(go.Heatmap(z=symmetric)).to_dict())) < 2 * 2 * 41 * 20 * 4
    named = [go.Heatmap(x=["a", "b"], y=["a", "b"], z=wide[:2, :2]) for _ in range(2)]
    text = figure_json(go.Figure(named).to_dict())
    assert text.count('"a"') == 1
    hostile_text = figure_json(go.Figure(go.Scatter(name="</script>")).to_dict())
    assert "</script>" not in hostile_text
