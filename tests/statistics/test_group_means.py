"""What GroupMeans does beyond the conformance suite: labels of all kinds, far groups, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import geomhooks as gh
from geomhooks import functional
from tests.conformance.harness import compare
from tests.models import Stack
from tests.reference import Observations, group_means

SITE = "blocks.0@in"


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def watching(width: int, *statistics: gh.Statistic, dtype: torch.dtype = torch.float32) -> Any:
    model = Stack(width, depth=1, dtype=dtype)
    return model, gh.watch(model, sites=SITE, statistics=list(statistics), positions=512)


@torch.no_grad()
def measure(states: Tensor, labels: Tensor | None, *statistics: gh.Statistic, **told: Any) -> Any:
    model, watch = watching(states.shape[-1], *statistics, dtype=states.dtype)
    with watch, watch.tokens(groups=labels, **told):
        model(inputs_embeds=states)
    return watch.geometry()


def expected(states: Tensor, labels: Tensor, groups: int) -> Any:
    flat = states.double().numpy().reshape(-1, states.shape[-1])
    each = labels if labels.ndim == 2 else labels[:, None].expand(states.shape[:2])
    nowhere = np.zeros(len(flat), np.int64)
    return group_means(Observations(flat, nowhere, nowhere), each.reshape(-1).numpy(), groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("integers", [torch.int64, torch.int32, torch.uint8])
def test_groups_ten_thousand_deviations_apart(dtype: torch.dtype, integers: torch.dtype) -> None:
    """Their variances keep their digits, though the sums are taken about one point for all."""
    labels = torch.arange(300) % 3
    centres = 1e4 * randn(3, 12, seed=1)
    states = (randn(300, 7, 12) + centres[labels][:, None]).to(dtype)
    found = measure(states, labels.to(integers), gh.GroupMeans(3))[SITE].group_means
    own = expected(states, labels, 3)
    variance = own["variance"].value
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.mean, own["mean"].value, rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, own["standard_error"].value, rtol=1e-5)
    np.testing.assert_allclose(float(found.between_share), own["between_share"].value, rtol=1e-6)


def test_labels_of_tokens_such_as_answers_against_prompts() -> None:
    states = randn(5, 9, 4)
    labels = (torch.arange(9) >= torch.tensor([3, 4, 5, 6, 7])[:, None]).to(torch.int64)
    by_token = measure(states, labels, gh.GroupMeans(names=("prompt", "answer"), by="token"))
    found = by_token[SITE].group_means
    named = found.named
    torch.testing.assert_close(named.answer.mean, states[labels == 1].double().mean(0))
    assert int(named.answer.count) == 20
    assert int(named.prompt.count) == 25
    scalars = by_token.scalars()
    assert scalars[f"{SITE}/group_means/named/answer/count"] == 20
    assert "between_share" in found
    contexts = measure(states, labels, gh.GroupMeans(2))[SITE].group_means
    assert contexts.count.tolist() == [0, 45]  # a context is of the largest group of its tokens


def test_labels_of_rows_serve_for_their_tokens() -> None:
    states, labels = randn(4, 3, 4), torch.tensor([1, 0, 1, -5])
    found = [
        measure(states, labels, gh.GroupMeans(2, by=by))[SITE].group_means
        for by in ("context", "token")
    ]
    for one in found:
        compare(one, expected(states, labels, 2), SITE)
        assert int(one.unlabelled) == 3


def test_labels_beyond_the_groups_are_counted_and_warned_of() -> None:
    states, labels = randn(4, 3, 4), torch.tensor([0, 1, 2, 9])
    geometry = measure(states, labels, gh.GroupMeans(2))
    with pytest.warns(UserWarning, match=r"6 tokens had a group label of 2 or more.*groups=2"):
        found = geometry[SITE].group_means
    assert int(found.outside) == 6
    assert found.count.tolist() == [3, 3]
    torch.testing.assert_close(found.mean, states[:2].double().mean(1))


def test_forwards_without_labels_are_in_no_group() -> None:
    model, watch = watching(4, gh.GroupMeans(2))
    with torch.no_grad(), watch:
        model(inputs_embeds=randn(2, 3, 4))
        with watch.tokens(groups=torch.tensor([1])):
            model(inputs_embeds=randn(1, 3, 4, seed=1))
    found = watch.geometry()[SITE].group_means
    assert found.count.tolist() == [0, 3]
    assert int(found.unlabelled) == 6
    assert torch.isnan(found.mean[0]).all()


def test_without_any_label_there_is_no_mean_but_a_reason() -> None:
    with pytest.warns(UserWarning, match=r"no label of a group at '.*watch\.tokens\(groups="):
        found = measure(randn(2, 3, 4), None, gh.GroupMeans(2))[SITE].group_means
    assert int(found.unlabelled) == 6
    with pytest.raises(
        gh.errors.UnidentifiedError, match=r"label from 0 to 1: 6 had none.*groups="
    ):
        found["mean"]


def test_states_that_are_not_finite_are_left_out() -> None:
    states, labels = randn(4, 5, 3), torch.tensor([0, 1, 0, 1])
    states[0, 2, 1], states[1, 4, 0] = float("nan"), float("inf")
    mask = torch.ones(4, 5, dtype=torch.int64)
    mask[3, 3:] = 0
    found = measure(states, labels, gh.GroupMeans(2), mask=mask)[SITE].group_means
    keep = torch.isfinite(states).all(-1) & mask.bool()
    each = labels[:, None].expand_as(keep)
    assert found.count.tolist() == [9, 7]
    for group in range(2):
        own = states[keep & (each == group)].double()
        torch.testing.assert_close(found.mean[group], own.mean(0), rtol=1e-6, atol=1e-7)


def test_contexts_are_what_is_independent() -> None:
    """Errors over tokens are too small where contexts differ; those of ctx are right."""
    labels = torch.arange(200) % 2
    states = randn(200, 16, 6) * 0.3 + randn(200, 1, 6, seed=1)
    geometry = measure(states, labels, gh.GroupMeans(2), gh.PosCtx())
    found, ctx = geometry[SITE].group_means, geometry[SITE].pos_ctx
    moments = functional.group_moments(ctx.ctx, ctx.context_group, 2)
    by_context = functional.mean_difference(*moments, 0, 1)
    by_token = functional.mean_difference(found.count, found.mean, found.scatter, 0, 1)
    torch.testing.assert_close(by_context.difference, by_token.difference, rtol=1e-5, atol=1e-6)
    means = states.double().mean(1)
    error = (means[labels == 0].var(0) / 100 + means[labels == 1].var(0) / 100).sqrt()
    torch.testing.assert_close(by_context.standard_error, error, rtol=1e-4, atol=0)
    assert (by_token.standard_error < 0.5 * error).all()


def test_one_group_and_one_token() -> None:
    found = measure(randn(1, 1, 3), torch.tensor([0]), gh.GroupMeans(1))[SITE].group_means
    assert found.count.tolist() == [1]
    assert torch.isnan(found.standard_error).all()
    assert found.variance.tolist() == [[0, 0, 0]]


def test_names_come_back_from_a_file(tmp_path: Path) -> None:
    statistic = gh.GroupMeans(names=["en", "pt"])
    measure(randn(2, 3, 4), torch.tensor([0, 1]), statistic).save(tmp_path / "a.safetensors")
    again = gh.load(tmp_path / "a.safetensors")
    assert list(again[SITE].group_means.named) == ["en", "pt"]


# Labels of contexts, on their way through tokens, tables, files and merges


@pytest.mark.parametrize("two", [False, True], ids=["of rows", "of tokens"])
@pytest.mark.parametrize("stated", [False, True], ids=["running contexts", "ids given"])
def test_labels_of_contexts_through_files_and_merges(
    two: bool, stated: bool, tmp_path: Path
) -> None:
    labels = torch.tensor([4, 2, 4, 7, 2, 7])
    states = randn(6, 5, 8) + 4 * randn(8, 1, 8, seed=1)[labels]
    paths = [tmp_path / f"{part}.safetensors" for part in range(2)]
    for part, path in enumerate(paths):
        rows = slice(3 * part, 3 * part + 3)
        given = labels[rows][:, None].expand(3, 5).clone() if two else labels[rows]
        mask = torch.ones(3, 5, dtype=torch.int64)
        if two:
            mask[:, 4], given[:, 4] = 0, 99  # the label of an entry that is masked says nothing
        told = {"contexts": 10 + torch.arange(6)[rows]} if stated else {}
        measure(states[rows], given, gh.PosCtx(), mask=mask, **told).save(path)
    found = gh.merge([gh.load(path) for path in paths])[SITE].pos_ctx
    assert sorted(found.context_group.tolist()) == sorted(labels.tolist())
    if stated:
        assert found.context_group[found.context_id.argsort()].tolist() == labels.tolist()
    similar = functional.group_similarity(found.ctx, found.context_group)
    torch.testing.assert_close(found.similarity.intra, similar.intra)
    assert float(found.similarity.intra) > 0.8


def test_rows_of_one_context_have_one_label() -> None:
    """Of labels by token the largest, wherever in the context it is."""
    labels = torch.tensor([[1, 1], [0, 0], [3, 1]])
    told = {"contexts": torch.tensor([5, 6, 5])}
    found = measure(randn(3, 2, 4), labels, gh.PosCtx(), **told)[SITE].pos_ctx
    groups = dict(zip(found.context_id.tolist(), found.context_group.tolist(), strict=True))
    assert groups == {5: 3, 6: 0}


# What is refused


@pytest.mark.parametrize("groups", [0, -3, 2.5, "4", True])
def test_what_is_no_number_of_groups(groups: Any) -> None:
    with pytest.raises(ValueError, match=r"GroupMeans\(groups=.*positive integer"):
        gh.GroupMeans(groups)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 3, "names": ("a", "b")}, r"2 names for 3 groups"),
        ({"names": ("a", "a")}, r"'a'; names are texts.*all different"),
        ({"names": ("a/b",)}, r"'a/b'; names are texts.*without a slash"),
        ({"names": "ab"}, r"names='ab'\): a sequence"),
        ({"names": ()}, r"groups=0\): a positive integer"),
        ({"by": "row"}, r"by='row'\): 'context' or 'token'"),
        ({"positions": 0}, r"positions=0\): a positive integer"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gh.GroupMeans(**arguments)


def test_a_state_too_large_is_refused() -> None:
    too_large = r"1000 groups, d = 64.*1,034,064 bytes.*max_bytes=30,000"
    with pytest.raises(gh.errors.SiteError, match=too_large):
        measure(randn(1, 2, 64), torch.tensor([0]), gh.GroupMeans(1000, max_bytes=30_000))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"groups has dtype torch\.float32; integers"),
        (torch.tensor([0, 1, 1]), r"groups of the stream '' has shape \(3,\).*\(2,\) or \(2, 3\)"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor, message: str) -> None:
    with pytest.raises(gh.errors.TokensError, match=message):
        measure(randn(2, 3, 4), labels, gh.GroupMeans(2))


def test_other_groups_do_not_merge() -> None:
    geometries = [
        measure(randn(2, 3, 4), torch.tensor([0, 1]), gh.GroupMeans(names=names))
        for names in (("a", "b"), ("b", "a"))
    ]
    with pytest.raises(gh.errors.SchemaError, match=r"group_means\.names differs: \['a', 'b'\]"):
        gh.merge(geometries)
