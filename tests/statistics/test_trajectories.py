"""What Trajectories does beyond the conformance suite: samples, chosen contexts, generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.accumulators.contexts import to_device
from geomhooks.accumulators.trajectory_states import Places, TokenStates
from geomhooks.errors import SiteError, UnidentifiedError
from geomhooks.statistics import trajectories as module
from tests.models import smollm, texts, tiny_gpt2, tiny_gpt2_lm
from tests.statistics.without_numbers import update_on_meta

LAST = "transformer.h.2"


def token_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 50, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def measure(
    model: nn.Module, statistic: gh.Statistic, *calls: tuple[Tensor, Any], **options: Any
) -> gh.Geometry:
    """Ids and contexts of each forward."""
    with gh.watch(model, statistics=[statistic], **options) as watch:
        for ids, contexts in calls:
            with watch.tokens(contexts=contexts):
                model(ids)
    return watch.geometry()


@torch.no_grad()
def final_states(model: nn.Module, ids: Tensor) -> Tensor:
    """(L, B, T, d) of what comes into the first block and out of each, through the final norm."""
    core, found = model.transformer, []
    handles = [core.h[0].register_forward_pre_hook(lambda m, a: found.append(a[0]))]
    handles += [block.register_forward_hook(lambda m, a, o: found.append(o)) for block in core.h]
    model(ids)
    for handle in handles:
        handle.remove()
    norm = core.ln_f
    x = torch.stack(found).double()
    return nn.functional.layer_norm(
        x, x.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps
    )


def test_states_of_all_layers_in_the_space_of_the_last() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(3, 9)
    geometry = measure(model, gh.Trajectories(contexts=5, tokens=6), (ids, torch.tensor([4, 2, 9])))
    states = geometry.stack("trajectories.states")
    expected = final_states(model, ids)[:, [1, 0, 2], :6]
    assert states.shape == (4, 3, 6, 16)
    assert states.dtype == torch.float32
    torch.testing.assert_close(states.double(), expected, rtol=1e-5, atol=1e-5)
    found = geometry[LAST].trajectories
    assert found.contexts.tolist() == [2, 4, 9]
    assert torch.equal(found.token_ids, ids[[1, 0, 2], :6])
    assert found.filled.all()
    assert int(found.count) == 18
    # At the last block they are what the head reads.
    with torch.no_grad():
        logits = model(ids).logits[[1, 0, 2], :6]
    torch.testing.assert_close(states[-1] @ model.lm_head.weight.T, logits, rtol=1e-4, atol=1e-4)


def test_a_real_model_against_float64() -> None:
    model, tokenizer = smollm()
    inputs = tokenizer(texts(2, 200), return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
        with gh.watch(model, statistics=[gh.Trajectories(contexts=2, tokens=16)]) as watch:
            model(**inputs)
    geometry, real = watch.geometry(), inputs["attention_mask"].bool()
    found = geometry[geometry.sites[0]].trajectories
    row = [int((inputs["input_ids"][:, :16] == ids).all(1).nonzero()[0]) for ids in found.token_ids]
    assert sorted(row) == [0, 1]
    assert torch.equal(found.filled, real[row, :16])
    gain, eps = model.model.norm.weight.double(), model.model.norm.variance_epsilon
    # What transformers calls the last hidden state has been through the norm already.
    for site, states in list(zip(geometry.sites, hidden, strict=True))[:-1:7]:
        x = states[row, :16].double()
        expected = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain
        found = geometry[site].trajectories.states.double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_sample_is_that_of_pos_ctx_in_whatever_order() -> None:
    model, contexts = tiny_gpt2_lm(), torch.arange(100, 140)
    ids = token_ids(40, 5)
    with (
        torch.no_grad(),
        gh.watch(model, statistics=[gh.PosCtx(contexts=6)]) as watch,
        watch.tokens(contexts=contexts),
    ):
        model(ids)
    sample = watch.geometry()[LAST].pos_ctx.context_id.sort().values
    found = []
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for order, size in ((torch.arange(40), 40), (torch.arange(40).flip(0), 3), (shuffled, 1)):
        calls = [(ids[part], contexts[part]) for part in order.split(size)]
        found.append(measure(model, gh.Trajectories(6, 4), *calls)[LAST].trajectories)
        assert torch.equal(found[-1].contexts, sample)
        assert torch.equal(found[-1].token_ids, ids[sample - 100, :4])
        torch.testing.assert_close(found[-1].states, found[0].states)


def test_shards_of_which_each_has_another_sample(tmp_path: Path) -> None:
    model, contexts, ids = tiny_gpt2_lm(), torch.arange(30), token_ids(30, 5)
    whole = measure(model, gh.Trajectories(4, 5), (ids, contexts))
    parts = []
    for part in range(3):
        rows = torch.arange(part, 30, 3)
        parts.append(measure(model, gh.Trajectories(4, 5), (ids[rows], contexts[rows])))
        parts[-1].save(tmp_path / f"{part}.safetensors")
    files = [gh.load(tmp_path / f"{part}.safetensors") for part in (2, 0, 1)]
    for merged in (gh.merge(parts), gh.merge(files)):
        for site in whole.sites:
            one, other = whole[site].trajectories, merged[site].trajectories
            assert torch.equal(one.contexts, other.contexts)
            assert torch.equal(one.token_ids, other.token_ids)
            torch.testing.assert_close(one.states, other.states)


def test_contexts_that_are_asked_for(tmp_path: Path) -> None:
    model, ids = tiny_gpt2_lm(), token_ids(6, 5)
    statistic = gh.Trajectories(contexts=[17, 3, 99], tokens=8)
    calls = [(ids[:3], torch.tensor([1, 17, 2])), (ids[3:], torch.tensor([5, 6, 3]))]
    geometry = measure(model, statistic, *calls)
    geometry.save(tmp_path / "some.safetensors")
    for read in (geometry, gh.load(tmp_path / "some.safetensors")):
        found = read[LAST].trajectories
        assert found.contexts.tolist() == [3, 17]
        assert torch.equal(found.token_ids, ids[[5, 1]])
    packed = torch.tensor([[3, 3, 8, 17, 17]])
    positions = torch.tensor([[0, 1, 0, 0, 1]])
    with (
        torch.no_grad(),
        gh.watch(model, statistics=[statistic]) as watch,
        watch.tokens(contexts=packed, positions=positions),
    ):
        model(ids[:1])
    assert torch.equal(watch.geometry()[LAST].trajectories.token_ids, ids[0, [[0, 1], [3, 4]]])


def test_contexts_from_tensors_and_arrays() -> None:
    for ids in (torch.tensor([3, 17]), np.array([3, 17]), (3, 17), range(3, 18, 14)):
        assert gh.Trajectories(contexts=ids).contexts == (3, 17)


def test_forwards_of_other_contexts_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    through = module.through_lens

    def counted(reading: Any) -> Tensor:
        seen.append(reading.site.name)
        return through(reading)

    monkeypatch.setattr(module, "through_lens", counted)
    calls = [(token_ids(2, 4), torch.tensor(rows)) for rows in ([5, 6], [7, 8], [8, 9])]
    geometry = measure(tiny_gpt2_lm(), gh.Trajectories(contexts=[7]), *calls)
    assert seen == geometry.sites
    assert geometry.tokens["transformer"]["forwards"] == 3
    assert int(geometry[LAST].trajectories.count) == 4


def test_a_generation_fills_the_later_positions() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(3, 4)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Trajectories(3, tokens=8)]) as watch:
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, min_new_tokens=7,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
    geometry = watch.geometry()
    found = geometry[LAST].trajectories
    assert torch.equal(found.token_ids, out[:, :8])
    torch.testing.assert_close(
        geometry.stack("trajectories.states").double(),
        final_states(model, out[:, :8]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_context_without_some_of_its_positions() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0]])
    with (
        torch.no_grad(),
        gh.watch(model, statistics=[gh.Trajectories(2)]) as watch,
        watch.tokens(contexts=torch.tensor([1, 2])),
    ):
        model(ids, attention_mask=mask)
    found = watch.geometry()[LAST].trajectories
    assert torch.equal(found.filled, mask[:, :4].bool())
    assert torch.equal(torch.isnan(found.states).all(-1), mask[:, :4] == 0)
    assert torch.equal(found.token_ids, torch.where(mask[:, :4] > 0, ids[:, :4], -1))
    assert int(found.count) == 6


def test_a_token_that_comes_several_times_is_averaged() -> None:
    """As that of a context that is read again while the model changes."""
    model, ids, rows = tiny_gpt2_lm(), token_ids(1, 4), torch.tensor([3])
    expected = []
    with gh.watch(model, statistics=[gh.Trajectories(2)]) as watch:
        for factor in (1.5, 1.0):
            with torch.no_grad(), watch.tokens(contexts=rows):
                model(ids)
            with watch.pause():
                expected.append(final_states(model, ids))
            model.transformer.wte.weight.data.mul_(factor)
    found = watch.geometry().stack("trajectories.states").double()
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2, rtol=1e-5, atol=1e-5)


def test_a_block_that_runs_twice_in_a_forward() -> None:
    """Its states are averaged, where a context is new and where it goes on."""
    model = tiny_gpt2_lm()
    model.transformer.h[1] = model.transformer.h[0]
    seen: list[Tensor] = []
    handle = model.transformer.h[0].register_forward_hook(lambda m, a, o: seen.append(o))
    ids, positions = token_ids(1, 6), torch.arange(6)[None]
    with (
        torch.no_grad(),
        gh.watch(model, sites="transformer.h.0", statistics=[gh.Trajectories(2)]) as watch,
    ):
        for part in (slice(0, 4), slice(4, 6)):
            with watch.tokens(contexts=torch.tensor([3]), positions=positions[:, part]):
                model(ids[:, part])
    handle.remove()
    with pytest.warns(UserWarning, match="a module that runs several times"):
        found = watch.geometry()["transformer.h.0"].trajectories.states[0]
    norm = model.transformer.ln_f
    first, second = (torch.cat([seen[i][0], seen[i + 2][0]]) for i in (0, 1))
    with torch.no_grad():
        expected = (norm(first) + norm(second)) / 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_forward_that_breaks_off_leaves_later_sites_without_it() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(2, 4)
    handles: list[Any] = []

    def break_down(*_: Any) -> None:
        raise ZeroDivisionError

    def run(watch: Any) -> None:
        with torch.no_grad(), watch:
            with watch.tokens(contexts=torch.tensor([1])):
                model(ids[:1])
            handles.append(model.transformer.h[2].register_forward_pre_hook(break_down))
            with watch.tokens(contexts=torch.tensor([2])):
                model(ids[1:])

    watch = gh.watch(model, statistics=[gh.Trajectories(4)])
    with pytest.raises(ZeroDivisionError):
        run(watch)
    handles[0].remove()
    with pytest.warns(UserWarning, match=LAST):
        geometry = watch.geometry()
    assert geometry["transformer.h.1"].trajectories.filled.all(1).tolist() == [True, True]
    assert geometry[LAST].trajectories.filled.all(1).tolist() == [True, False]
    assert geometry.stack("trajectories.states").shape == (4, 2, 4, 16)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("contexts", [3, [7, 8]])
def test_a_forward_does_not_wait_for_the_device(contexts: Any, packed: bool) -> None:
    state = update_on_meta(gh.Trajectories(contexts), packed=packed)
    assert {t.device.type for a in state.values() for t in a.tensors.values()} == {"meta"}


def test_where_tokens_go_is_told_on_the_device_of_a_site() -> None:
    places = Places(torch.zeros(2, 3, dtype=torch.int64), torch.ones(5, dtype=torch.bool), True)
    moved = to_device(places, torch.device("meta"))
    assert [moved.at.device.type, moved.fresh.device.type, moved.any_kept] == ["meta", "meta", True]


def test_tokens_without_ids() -> None:
    model = tiny_gpt2()
    with torch.no_grad(), gh.watch(model, statistics=[gh.Trajectories(2)]) as watch:
        model(inputs_embeds=torch.randn(2, 3, 16))
    found = watch.geometry()["h.2"].trajectories
    assert torch.equal(found.token_ids, torch.full((2, 3), -1))
    assert int(found.count) == 6
    assert torch.isfinite(found.states).all()


def test_a_state_that_is_not_finite_is_shown() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(2, 4)
    model.transformer.wte.weight.data[49] = float("nan")
    ids[1, 2] = 49
    geometry = measure(model, gh.Trajectories(2), (ids, torch.tensor([1, 2])))
    found = geometry["transformer.h.0@in"].trajectories
    assert found.filled.all()
    assert torch.isnan(found.states).all(-1).tolist() == [[False] * 4, [False, False, True, False]]


def test_without_any_of_the_contexts_there_is_a_reason() -> None:
    geometry = measure(
        tiny_gpt2_lm(), gh.Trajectories([7, 8]), (token_ids(2, 4), torch.tensor([1, 2]))
    )
    found = geometry[LAST].trajectories
    assert int(found.count) == 0
    with pytest.raises(
        UnidentifiedError,
        match=r"no token of \(7, 8\), ids that .* has been counted at positions below 64",
    ):
        found["states"]


def test_what_the_state_takes() -> None:
    """4 K T d at a site, and 12 K T for the stream, with one row more and its counts."""
    model = tiny_gpt2_lm()
    site = TokenStates(8, 64, 16)
    assert site.nbytes == 9 * 64 * (4 * 16 + 4)
    watch = gh.watch(model, statistics=[gh.Trajectories()])
    states, stream = 4 * site.nbytes, 9 * 64 * 12
    # What any watch holds for a site and a stream besides is a few hundred bytes each.
    assert states + stream < watch.nbytes < states + stream + 2500


def test_no_more_positions_than_the_stream_has() -> None:
    statistic = gh.Trajectories(contexts=2, tokens=64)
    geometry = measure(
        tiny_gpt2_lm(), statistic, (token_ids(2, 9), torch.tensor([1, 2])), positions=5
    )
    assert geometry.stack("trajectories.states").shape == (4, 2, 5, 16)


def test_paths_and_projections_of_what_was_kept() -> None:
    """From a stack of states to lengths of paths, and to points in a plane."""
    model, ids = tiny_gpt2_lm(), token_ids(3, 7)
    geometry = measure(model, gh.Trajectories(3), (ids, torch.tensor([1, 2, 3])))
    states = geometry.stack("trajectories.states")
    path = gh.functional.sphere_path(states, centred=False)
    expected = gh.functional.sphere_path(final_states(model, ids), centred=False)
    torch.testing.assert_close(path.length.double(), expected.length, rtol=1e-4, atol=1e-5)
    plane = gh.functional.principal_geodesics(states.flatten(0, -2), 3)
    assert plane.transform(states).shape == (4, 3, 7, 3)
    assert plane.transform(model.lm_head.weight.detach()).shape == (50, 3)


def test_a_state_that_would_take_too_much_is_refused() -> None:
    message = (
        r"the state of Trajectories for site 'transformer.h.0@in' \(8 contexts, 64 tokens, "
        r"d = 16\) would take 39,168 bytes, more than max_bytes=1,000"
    )
    with pytest.raises(SiteError, match=message):
        gh.watch(tiny_gpt2_lm(), statistics=[gh.Trajectories(max_bytes=1000)])


def test_sites_of_another_width_are_refused() -> None:
    with pytest.raises(SiteError, match=r"has states of width 64, and the model's head reads 16"):
        measure(
            tiny_gpt2_lm(),
            gh.Trajectories(),
            (token_ids(1, 4), None),
            sites="transformer.h.0.mlp.c_fc",
        )


@pytest.mark.parametrize("contexts", [0, -1, 2.5, True, "ab", [], [3, 3], [1.5], None])
def test_contexts_that_are_none(contexts: Any) -> None:
    with pytest.raises(
        ValueError, match=r"Trajectories\(contexts=.*\): a positive integer, or the"
    ):
        gh.Trajectories(contexts=contexts)


@pytest.mark.parametrize("name", ["tokens", "positions"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True])
def test_numbers_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"Trajectories\({name}=.*\): a positive integer is"):
        gh.Trajectories(**{name: value})
