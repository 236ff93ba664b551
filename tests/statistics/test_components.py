"""Streamed terms of hidden states, against the dense ones of a forward in float64."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.anatomy import find_anatomy
from geomhooks.anatomy.origins import Origins
from geomhooks.anatomy.terms import Terms
from geomhooks.errors import AnatomyError, SiteError, TokensError, UnidentifiedError
from geomhooks.functional.components.indicators import Indicators, indicators
from tests.anatomy import stacked
from tests.anatomy import test_heads as heads
from tests.anatomy.models import gpt2, make, token_ids
from tests.anatomy.test_rebuilding import recorded
from tests.anatomy.test_terms import EVERY, MODELS, Seen, masked_call
from tests.models import minilm, smollm, texts

NAMES = Indicators._fields


def streamed(name: str, **options: Any) -> tuple[gh.Geometry, list[Any]]:
    """What a watch finds in float32, and the real tokens of each stack."""
    model = make(name) if name in MODELS else stacked.make(name)
    call, real = masked_call(name)
    call = {n: v.float() if v.is_floating_point() else v for n, v in call.items()}
    with torch.no_grad(), gh.watch(model, statistics=[gh.Components(**options)]) as watch:
        model(**call)
    return watch.geometry(), real


@pytest.mark.parametrize("method", ["muppet", "oh_schuler"])
@pytest.mark.parametrize("name", EVERY)
def test_as_dense_in_every_family(name: str, method: Any) -> None:
    geometry, _ = streamed(name, method=method)
    seen = Seen(name)
    for stack, real in zip(seen.stacks, seen.real, strict=True):
        first = stack.blocks[0].name
        running = seen.begin(stack, Terms if method == "muppet" else Origins)
        for site in (f"{first}@in", *(block.name for block in stack.blocks)):
            if site != f"{first}@in":
                block = next(block for block in stack.blocks if block.name == site)
                running = seen.followed(running, block, real)
            found = geometry[site].components
            assert list(found.importance) == list(running.names)
            terms = running.summed[:, real]
            numbers = indicators(terms)
            assert float(found.gap.max) < 1e-5
            total = 0.0
            for what in NAMES:
                for index, term in enumerate(running.names):
                    expected, mean = getattr(numbers, what)[index], found[what][term].mean
                    if what == "cosine" and expected.isnan().any():
                        assert int(found.cosine[term].count) == int((~expected.isnan()).sum())
                        continue
                    size = float(numbers.norm_ratio[index].max().clamp(min=1))
                    size *= float(terms.sum(0).norm(dim=-1).max()) if what == "l2" else 1.0
                    assert float((mean - expected.mean()).abs()) < 1e-4 * size
                    if what == "importance":
                        total += float(mean)
            assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "bert", "gemma3", "llama"])
def test_through_the_final_norm(name: str) -> None:
    geometry, _ = streamed(name, final_norm=True)
    seen = Seen(name)
    (stack,), (real,) = seen.stacks, seen.real
    running = seen.begin(stack, Terms)
    for block in stack.blocks:
        running = seen.followed(running, block, real)
        through = running.copy()
        if stack.final_norm is not None:
            through.pass_norm(stack.final_norm, seen.found[block.name][1])
        expected = indicators(through.summed[:, real]).importance.mean(1)
        found = geometry[block.name].components.importance
        means = torch.stack([found[term].mean for term in running.names])
        assert torch.allclose(means, expected, atol=1e-4)


@pytest.mark.parametrize("split", ["layer", "head"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gemma2", "t5", "marian"])
def test_rows_of_layers_and_heads(name: str, split: Any) -> None:
    geometry, _ = streamed(name, split=split)
    seen = Seen(name)
    for stack, real in zip(seen.stacks, seen.real, strict=True):
        running = seen.begin(stack, Terms, split=split)
        for depth, block in enumerate(stack.blocks, 1):
            running = seen.followed(running, block, real)
            found = geometry[block.name].components
            rows = found.layers if split == "layer" else found.heads
            for term, values in running.rows.items():
                if term == "input":
                    continue
                expected = indicators(values[:, real], running.total[real]).importance.mean(1)
                mean = rows.importance[term]
                heads = split == "head" and term in ("attention", "source")
                assert mean.shape == ((depth, block.attention.heads) if heads else expected.shape)
                assert torch.allclose(mean.flatten(), expected, atol=1e-4)
                assert float(mean.sum()) == pytest.approx(
                    float(found.importance[term].mean), abs=1e-4
                )


def test_by_context_and_by_position() -> None:
    model, ids = make("gpt2"), token_ids(4, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad(), gh.watch(model, statistics=[gh.Components(contexts=3)]) as watch:
        for row in range(4):
            with watch.tokens(contexts=torch.tensor([10 * row])):
                model(ids[row : row + 1], attention_mask=mask[row : row + 1])
    found = watch.geometry()["h.2"].components
    kept = found.by_context
    assert kept.context_id.shape == (3,)
    assert kept.importance.shape == (3, 4)
    assert torch.allclose(kept.importance.sum(1), torch.ones(3, dtype=torch.float64), atol=1e-5)
    assert kept.tokens.tolist() == [5 if i == 10 else 7 for i in kept.context_id.tolist()]
    at = found.importance.attention.at_position
    assert at.count.tolist() == [4, 4, 4, 4, 4, 3, 3]


def test_generation_is_one_forward() -> None:
    model, ids = make("llama"), token_ids(2, 6)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Components()]) as watch:
        out = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    grown = watch.geometry()
    with torch.no_grad(), gh.watch(model, statistics=[gh.Components()]) as watch:
        model(out[:, :-1])
    whole = watch.geometry()
    for site in whole.sites:
        for a, b in zip(
            *(g[site].components.importance.values() for g in (grown, whole)), strict=True
        ):
            assert int(a.count) == int(b.count)
            assert torch.allclose(a.mean, b.mean, atol=1e-5)


def test_with_a_cache_origins_are_left_out() -> None:
    model, ids = make("llama"), token_ids(2, 6)
    statistic = gh.Components(method="oh_schuler")
    with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    found = watch.geometry()["model.layers.1"].components
    assert int(found.importance.tokens.count) == 12
    assert int(found.left_out) == 8


def test_packed_sequences_do_not_see_each_other() -> None:
    """Two texts side by side in one row, as position ids tell the model too."""
    model = make("llama")
    model.set_attn_implementation("sdpa")
    one, two = token_ids(1, 5, 1), token_ids(1, 4, 2)
    positions = torch.cat([torch.arange(5), torch.arange(4)])[None]
    results = []
    for packed in (True, False):
        statistic = gh.Components(method="oh_schuler")
        with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
            if packed:
                model(torch.cat([one, two], 1), position_ids=positions, use_cache=False)
            else:
                model(one, use_cache=False)
                model(two, use_cache=False)
        results.append(watch.geometry()["model.layers.1"].components)
    for term in results[0].importance:
        a, b = (found.importance[term].mean for found in results)
        assert torch.allclose(a, b, atol=1e-5)
    assert float(results[0].gap.max) < 1e-5


def test_excluded_tokens_are_still_looked_at() -> None:
    """What is not counted is no less there for the others."""
    model, ids = make("gpt2"), token_ids(2, 6)
    statistic = gh.Components(method="oh_schuler")
    with torch.no_grad(), gh.watch(model, statistics=[statistic], skip_positions=2) as watch:
        model(ids)
    found = watch.geometry()["h.2"].components
    assert int(found.gap.count) == 8
    assert float(found.gap.max) < 1e-5


@pytest.mark.parametrize("pretrained", ["minilm", "smollm"])
def test_of_pretrained_models(pretrained: str) -> None:
    model, tokenizer = minilm() if pretrained == "minilm" else smollm()
    batch = tokenizer(texts(4, 300), return_tensors="pt", padding=True)
    for method in ("muppet", "oh_schuler"):
        statistic = gh.Components(method=method)
        with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
            model(**batch)
        for site in watch.geometry().sites:
            found = watch.geometry()[site].components
            assert float(found.gap.max) < 1e-4
            total = sum(float(term.mean) for term in found.importance.values())
            assert total == pytest.approx(1, abs=1e-4)


def test_half_precision_is_told_by_the_gap() -> None:
    model, ids = make("gpt2").bfloat16(), token_ids(3, 8)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Components()]) as watch:
        model(ids)
    found = watch.geometry()["h.2"].components
    assert 1e-5 < float(found.gap.max) < 3e-2


def test_compiled_and_checkpointed() -> None:
    results = []
    for way in ("plain", "compiled", "checkpointed"):
        torch._dynamo.reset()
        model, ids = make("llama"), token_ids(3, 8)
        if way == "checkpointed":
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        run: Any = torch.compile(model, fullgraph=True) if way == "compiled" else model
        with gh.watch(run, statistics=[gh.Components(), gh.FeedForwardFit()]) as watch:
            out = run(ids, use_cache=False).logits
            if way == "checkpointed":
                out.sum().backward()
        results.append(watch.geometry())
    for other in results[1:]:
        for site in results[0].sites:
            a, b = (g[site].components for g in (results[0], other))
            for term in a.importance:
                assert int(a.importance[term].count) == int(b.importance[term].count)
                assert torch.allclose(a.importance[term].mean, b.importance[term].mean, atol=1e-5)


def test_linear_fit_of_feed_forward_layers() -> None:
    model, ids = make("llama"), token_ids(8, 20)
    block = model.model.layers[1]
    inside = {"in": block.mlp.up_proj, "out": block.mlp.down_proj}
    with (
        torch.no_grad(),
        recorded(inside) as found,
        gh.watch(model, statistics=[gh.FeedForwardFit()]) as watch,
    ):
        model(ids)
    x, y = (v.flatten(0, 1).double() for v in (found["in"][0], found["out"][1]))
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    left = y - x @ torch.linalg.lstsq(x, y).solution
    expected = (1 - left.square().sum(0) / (y - y.mean(0)).square().sum(0)).mean()
    fit = watch.geometry()["model.layers.1"].feed_forward_fit
    assert torch.allclose(fit.r_squared, expected, atol=1e-6)
    assert (int(fit.count), int(fit.rank)) == (160, 24)


def test_the_plane_of_a_norm_is_no_freedom() -> None:
    model, ids = make("bert"), token_ids(8, 20)
    with torch.no_grad(), gh.watch(model, statistics=[gh.FeedForwardFit()]) as watch:
        model(ids)
    assert int(watch.geometry()["encoder.layer.1"].feed_forward_fit.rank) == 23


def test_linear_fit_in_shards() -> None:
    model, ids = make("llama"), token_ids(12, 10)

    def measured(part: Tensor) -> gh.Geometry:
        with torch.no_grad(), gh.watch(model, statistics=[gh.FeedForwardFit()]) as watch:
            model(part)
        return watch.geometry()

    whole, merged = measured(ids), gh.merge([measured(ids[:5]), measured(ids[5:])])
    for g in (whole, merged):
        assert int(g["model.layers.0"].feed_forward_fit.count) == 120
    a, b = (g["model.layers.0"].feed_forward_fit.of_entries for g in (whole, merged))
    assert torch.allclose(a, b, atol=1e-9)


def test_errors(tmp_path: Any) -> None:
    for wrong, message in (
        ({"method": "muppets"}, r"method='muppets'\): 'muppet' or 'oh_schuler'"),
        ({"split": "block"}, r"split='block'\): None, 'layer' or 'head'"),
        ({"split": "layer", "method": "oh_schuler"}, r"only method='muppet' has such rows"),
        ({"contexts": 0}, r"contexts=0\): a positive integer is needed"),
        ({"positions": True}, r"positions=True\): a positive integer is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            gh.Components(**wrong)
    for given in ("a", None, 0):
        with pytest.raises(ValueError, match=r"FeedForwardFit\(max_bytes=.*a positive integer"):
            gh.FeedForwardFit(max_bytes=given)  # type: ignore[arg-type]
    with pytest.raises(
        SiteError,
        match=r"components at 'h.1' goes on from the sites before it, of "
        r"which 'h.0@in' is not watched; give it the sites 'blocks'",
    ):
        gh.watch(gpt2(), sites="h.1", statistics=[gh.Components()])
    with pytest.raises(
        SiteError, match=r"reads what the sublayers of blocks add, and 'h.0.mlp' is none"
    ):
        gh.watch(gpt2(), sites="h.0.mlp", statistics=[gh.Components()])
    with pytest.raises(AnatomyError, match=r"no config.model_type; known are"):
        gh.watch(nn.Sequential(nn.Linear(2, 2)), sites="*", statistics=[gh.Components()])
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    with pytest.raises(SiteError, match=r"that does not call it as a module; leave out heads"):
        gh.watch(encoder, statistics=[gh.Components(split="head")])


def test_a_forward_that_begins_behind_the_first_block() -> None:
    model = make("gpt2")
    with torch.no_grad(), gh.watch(model, statistics=[gh.Components()]) as watch:
        model(token_ids(2, 5))
        model.h[1](torch.randn(1, 3, 24))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a block by itself, and other numbers of forwards
        found = watch.geometry()["h.1"].components
    assert int(found.left_out) == 3
    assert int(found.gap.count) == 10


def test_nothing_but_left_out_tokens() -> None:
    model = make("llama")
    with torch.no_grad(), gh.watch(model, statistics=[gh.Components(method="oh_schuler")]) as watch:
        with watch.pause():
            cache = model(token_ids(2, 4), use_cache=True).past_key_values
        model(token_ids(2, 1), past_key_values=cache)
    found = watch.geometry()["model.layers.1"].components
    assert int(found.left_out) == 2
    with pytest.raises(UnidentifiedError, match=r"no token has been counted at this site; 2 real"):
        _ = found.importance


def scored(kind: str, **call: Any) -> tuple[Any, Any, nn.Module]:
    """The scores of a model, and what it gives out."""
    model = heads.make(kind)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Components(subsets=True)]) as watch:
        out = model(**call)
    geometry = watch.geometry()
    assert all("subsets" not in geometry[site].components for site in geometry.sites[:-1])
    return geometry[geometry.sites[-1]].components.subsets, out, model


@pytest.mark.parametrize("kind", [k for k in heads.KINDS if "PreTraining" not in k])
def test_scores_of_subsets(kind: str) -> None:
    """That of all terms is the model's loss, and the others those of the sums of their terms."""
    ids = token_ids(3, 8)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    causal = "MaskedLM" not in kind
    if not causal:
        labels = labels.masked_fill(torch.arange(8) % 3 > 0, -100)
    found, out, model = scored(kind, input_ids=ids, attention_mask=mask, labels=labels)
    everything = [name for name in found.accuracy if name.count("_") >= 4]
    (whole,) = (name for name in everything if "correction" in name and name.startswith("input_a"))
    assert len(found.accuracy) == 15
    assert torch.allclose(found.cross_entropy[whole].float(), out.loss, atol=1e-4)
    said = out.logits.argmax(-1)
    wanted = labels[:, 1:] if causal else labels
    said = said[:, :-1] if causal else said
    there = wanted != -100
    assert int(found.count) == int(there.sum())
    assert float(found.accuracy[whole]) == pytest.approx(
        float((said == wanted)[there].float().mean())
    )
    # The input alone, through the final norm as it acts on the whole, and the head.
    anatomy = find_anatomy(model)
    stack = anatomy.stack()
    names = {"last": stack.blocks[-1].module, "first": stack.blocks[0].module}
    with torch.no_grad(), recorded(names) as seen:
        model(input_ids=ids, attention_mask=mask)
    if stack.final_norm is not None:
        assert anatomy.head is not None
        terms = Terms.begin(seen["first"][0])
        terms.pass_norm(stack.final_norm, seen["last"][1])
        logits = anatomy.head(terms.rows["input"][0])[:, :-1]
        expected = nn.functional.cross_entropy(logits[there], wanted[there])
        assert torch.allclose(found.cross_entropy.input.float(), expected, atol=1e-4)


def test_scores_need_to_know_the_words() -> None:
    model = heads.make("BertForMaskedLM")
    with (
        pytest.raises(TokensError, match=r"need what the masked words are; give the model labels="),
        torch.no_grad(),
        gh.watch(model, statistics=[gh.Components(subsets=True)]),
    ):
        model(token_ids(2, 5))
    model = heads.make("GPT2LMHeadModel")
    with (
        pytest.raises(TokensError, match=r"need the ids of the tokens; give input_ids"),
        torch.no_grad(),
        gh.watch(model, statistics=[gh.Components(subsets=True)]),
    ):
        model(inputs_embeds=torch.randn(2, 5, 24))
    with pytest.raises(SiteError, match=r"the model's head, and GPT2Model has none that is known"):
        gh.watch(gpt2(), statistics=[gh.Components(subsets=True)])
    with pytest.raises(ValueError, match=r"subsets=True\): only of method='muppet'"):
        gh.Components(method="oh_schuler", subsets=True)


def test_tokens_that_are_not_finite_are_counted_as_left_out() -> None:
    model, ids = gpt2(), token_ids(2, 5)

    def spoil(module: nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        states[1, 3:] = float("nan")

    model.h[1].register_forward_hook(spoil)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Components()]) as watch:
        model(ids)
    for site, left_out in {"h.0": 0, "h.1": 2}.items():
        found = watch.geometry()[site].components
        assert int(found.left_out) == left_out
        assert int(found.importance.input.count) == 10 - left_out
