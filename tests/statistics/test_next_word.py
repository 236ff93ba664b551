"""What NextWord does beyond the conformance suite: real heads, whose next word, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.errors import SiteError, TokensError
from geomhooks.statistics import next_word as module
from tests.conformance.harness import compare
from tests.models import minilm, smollm, texts, tiny_gpt2, tiny_gpt2_lm
from tests.reference import Lens, Observations, next_word
from tests.statistics.without_numbers import update_on_meta


def token_ids(*shape: int, seed: int = 0, below: int = 50) -> Tensor:
    return torch.randint(1, below, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def measure(model: nn.Module, *calls: dict[str, Any], **options: Any) -> gh.Geometry:
    options = {"statistics": [gh.NextWord()]} | options
    with gh.watch(model, **options) as watch:
        for call in calls:
            model(**call)
    return watch.geometry()


def pulls(logits: Tensor, ids: Tensor) -> Tensor:
    """Log p of the next word less that of the own one, (B, T - 1)."""
    logs = logits.double().log_softmax(-1)[:, :-1]
    following, own = (logs.gather(2, some[..., None])[..., 0] for some in (ids[:, 1:], ids[:, :-1]))
    return following - own


def assert_pull(found: Any, expected: Tensor, rtol: float = 1e-5) -> None:
    pull = found.next_word.pull
    size = float(expected.abs().mean())
    assert int(pull.count) == expected.numel()
    assert float(pull.mean) == pytest.approx(float(expected.mean()), abs=rtol * size)
    assert float(pull.variance) == pytest.approx(float(expected.var(correction=0)), rel=1e-4)
    assert float(pull.max) == pytest.approx(float(expected.max()), rel=1e-4)


def test_at_the_last_block_it_is_what_the_model_itself_says() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(4, 12)
    found = measure(model, {"input_ids": ids})
    with torch.no_grad():
        expected = pulls(model(ids).logits, ids)
    last = found["transformer.h.2"]
    assert_pull(last, expected)
    np.testing.assert_allclose(
        last.next_word.pull.at_position.mean, expected.mean(0), atol=1e-5 * float(expected.std())
    )
    assert int(last.next_word.without_next) == 4
    assert int(last.next_word.without_first.without_next) == 4
    assert int(last.next_word.without_first.pull.count) == 4 * 10


def test_a_real_model_against_float64() -> None:
    """Every layer of SmolLM2, texts of unequal length padded on the left."""
    model, tokenizer = smollm()
    tokenizer.padding_side, side = "left", tokenizer.padding_side
    inputs = tokenizer(texts(3, 300), return_tensors="pt", padding=True)
    tokenizer.padding_side = side
    kept: dict[str, Tensor] = {}

    def keep(name: str, states: Tensor) -> None:
        kept[name] = states

    inner = model.model
    handles = [inner.layers[0].register_forward_pre_hook(lambda m, a: keep("in", a[0]))]
    handles += [
        block.register_forward_hook(lambda m, a, out, i=i: keep(f"model.layers.{i}", out))
        for i, block in enumerate(inner.layers)
    ]
    geometry = measure(model, dict(inputs))
    for handle in handles:
        handle.remove()
    kept["model.layers.0@in"] = kept.pop("in")
    norm, rows = inner.norm, model.lm_head.weight.detach().double().numpy()

    class RootMeanSquare(Lens):
        def states(self, hidden: np.ndarray) -> np.ndarray:
            length = np.sqrt((hidden**2).mean(-1, keepdims=True) + self.eps)
            return hidden / length * self.gain

    gain = norm.weight.detach().double().numpy()
    lens = RootMeanSquare(rows, gain, np.zeros_like(gain), norm.variance_epsilon)
    real = inputs["attention_mask"].bool()
    assert not real[:, 0].all()
    context = torch.arange(len(real))[:, None].expand_as(real)[real].numpy()
    words = inputs["input_ids"][real].numpy()
    columns = torch.arange(real.shape[1]).expand_as(real)[real].numpy()
    for site in geometry.sites[::6]:
        seen = Observations(kept[site][real].double().numpy(), columns, context)
        compare(geometry[site].next_word, next_word(seen, words, lens), site)
    pull = geometry.stack("next_word.pull.mean")
    assert float(pull[0]) < -5, "a word begins at itself"
    assert float(pull[-1]) > 0, "and ends nearer to the next one"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_model_of_another_type(dtype: torch.dtype) -> None:
    """Numbers are those of its own states, rows and norm, each as it is, in float64."""
    model, ids = tiny_gpt2_lm().to(dtype), token_ids(3, 9)
    kept: list[Tensor] = []
    handle = model.transformer.h[1].register_forward_hook(lambda m, a, out: kept.append(out))
    found = measure(model, {"input_ids": ids})["transformer.h.1"].next_word
    handle.remove()
    norm = model.transformer.ln_f
    weights = (model.lm_head.weight, norm.weight, norm.bias)
    lens = Lens(*(w.detach().double().numpy() for w in weights), norm.eps)
    states = kept[0].double().numpy().reshape(27, 16)
    seen = Observations(states, np.tile(np.arange(9), 3), np.repeat(np.arange(3), 9))
    compare(found, next_word(seen, ids.flatten().numpy(), lens), "transformer.h.1")


def test_bias_and_cap_of_the_head() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(3, 9)
    model.lm_head = nn.Linear(16, 50)
    with torch.no_grad():
        model.lm_head.bias.normal_(std=5)
        expected = pulls(model(ids).logits, ids)
    assert_pull(measure(model, {"input_ids": ids})["transformer.h.2"], expected)

    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=0.2,
        initializer_range=0.3, query_pre_attn_scalar=8, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        logits = capped(ids).logits
    assert 0.1 < float(logits.abs().max()) < 0.2001, "the cap is to be felt"
    assert_pull(measure(capped, {"input_ids": ids})["model.layers.1"], pulls(logits, ids), 1e-4)


def test_a_model_without_a_head_is_compared_with_its_embeddings() -> None:
    model, ids = tiny_gpt2(), token_ids(3, 9)
    with torch.no_grad():
        states = model(ids).last_hidden_state
        logits = states @ model.wte.weight.T
    found = measure(model, {"input_ids": ids})["h.2"]
    assert_pull(found, pulls(logits, ids))
    rows = model.wte.weight.detach()[ids[:, 1:]]
    cosine = torch.cosine_similarity(states[:, :-1].double(), rows.double(), dim=-1)
    assert float(found.next_word.next_cosine.mean) == pytest.approx(float(cosine.mean()), abs=1e-6)


def test_an_encoder() -> None:
    model, tokenizer = minilm()
    inputs = tokenizer(texts(3, 200), return_tensors="pt", padding=True, truncation=True)
    geometry = measure(model, dict(inputs))
    real = int(inputs["attention_mask"].sum())
    for site in geometry.sites:
        found = geometry[site].next_word
        assert int(found.pull.count) == real - 3
        assert int(found.without_next) == 3
        assert torch.isfinite(found.pull.mean)
        assert -1 <= float(found.own_cosine.min) <= float(found.own_cosine.max) <= 1


def test_the_next_word_is_that_of_the_same_context() -> None:
    """Packed rows, whose contexts restart at position 0, are as many rows."""
    model = tiny_gpt2_lm(attn_implementation="eager")
    contexts = [token_ids(n, seed=n) for n in (5, 3, 4)]
    packed = torch.cat(contexts)[None]
    positions = torch.cat([torch.arange(len(c)) for c in contexts])[None]
    sites = "transformer.wte"  # states that are the same however rows are packed
    one = measure(model, {"input_ids": packed, "position_ids": positions}, sites=sites)
    other = measure(model, *({"input_ids": c[None]} for c in contexts), sites=sites)
    a, b = one.scalars(), other.scalars()
    assert a["transformer.wte/next_word/pull/count"] == 4 + 2 + 3
    assert a["transformer.wte/next_word/without_next"] == 3
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-6)


def test_masked_tokens_and_those_left_out_are_no_next_words() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(1, 6)
    mask = torch.tensor([[1, 1, 0, 1, 0, 0]])
    real = ids[:, mask[0].bool()]
    sites = "transformer.wte"
    found = measure(model, {"input_ids": ids, "attention_mask": mask}, sites=sites)
    expected = measure(model, {"input_ids": real}, sites=sites)
    assert int(found[sites].next_word.pull.count) == 2
    for name in ("pull", "next_cosine", "own_cosine"):
        one, other = (float(g[sites].next_word[name].mean) for g in (found, expected))
        assert one == pytest.approx(other, rel=1e-6)
    ids[0, 2] = 49
    without = torch.cat([ids[:, :2], ids[:, 3:]], 1)
    found = measure(model, {"input_ids": ids}, sites=sites, exclude_token_ids=[49])
    expected = measure(model, {"input_ids": without}, sites=sites)
    assert int(found[sites].next_word.pull.count) == 4
    one, other = (float(g[sites].next_word.pull.mean) for g in (found, expected))
    assert one == pytest.approx(other, rel=1e-6)


def test_the_last_token_of_each_forward_of_a_generation_has_none() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(2, 5)
    with torch.no_grad(), gh.watch(model, statistics=[gh.NextWord()]) as watch:
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
    found = watch.geometry()["transformer.h.0"].next_word
    assert int(found.pull.count) == 2 * 4
    assert int(found.without_next) == 2 * (1 + 3)


def test_words_that_the_head_does_not_know() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(2, 20)
    model.lm_head = nn.Linear(16, 30, bias=False)
    known = ids < 30
    found = measure(model, {"input_ids": ids})["transformer.h.1"].next_word
    pairs = int((known[:, :-1] & known[:, 1:]).sum())
    assert 0 < pairs < 2 * 19
    assert int(found.pull.count) == pairs
    assert int(found.without_next) == ids.numel() - pairs


def test_states_that_are_not_finite_are_not_counted() -> None:
    model, ids = tiny_gpt2_lm(), token_ids(2, 8)
    clean = measure(model, {"input_ids": ids[:1]})["transformer.h.0@in"].next_word
    model.transformer.wte.weight.data[49] = float("nan")
    ids[1] = 49
    model.lm_head = nn.Linear(16, 50, bias=False)  # not tied any more, and finite
    model.lm_head.weight.data = tiny_gpt2_lm().lm_head.weight.data.clone()
    found = measure(model, {"input_ids": ids})["transformer.h.0@in"].next_word
    for name in ("pull", "next_cosine", "own_cosine"):
        assert int(found[name].count) == 7
        assert float(found[name].mean) == pytest.approx(float(clean[name].mean), rel=1e-6)


def test_words_are_looked_up_once_in_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    look_up = module.pair_words

    def counted(tokens: Any, lens: Any, site: str) -> Any:
        calls.append(site)
        return look_up(tokens, lens, site)

    monkeypatch.setattr(module, "pair_words", counted)
    measure(tiny_gpt2_lm(), *({"input_ids": token_ids(2, 5, seed=s)} for s in range(3)))
    assert calls == ["transformer.h.0@in"] * 3


@pytest.mark.parametrize("packed", [False, True])
def test_a_forward_does_not_wait_for_the_device(packed: bool) -> None:
    state = update_on_meta(gh.NextWord(), packed=packed)
    assert {t.device.type for a in state.values() for t in a.tensors.values()} == {"meta"}


def test_nothing_counted_is_no_number() -> None:
    """A forward of single tokens has no pair; it is said how many were looked at."""
    found = measure(tiny_gpt2_lm(), {"input_ids": token_ids(3, 1)})["transformer.h.0"].next_word
    assert int(found.pull.count) == 0
    assert torch.isnan(found.pull.mean)
    assert int(found.without_next) == 3
    assert int(found.without_first.without_next) == 0


def test_tokens_without_ids_are_refused() -> None:
    states = torch.randn(2, 5, 16)
    message = (
        r"next_word at 'transformer.h.0@in' needs the ids of the tokens, and the call that shows "
        r"it \(2, 5\) hidden states had no input_ids of that shape. Give input_ids"
    )
    with pytest.raises(TokensError, match=message):
        measure(tiny_gpt2_lm(), {"inputs_embeds": states})


def test_sites_of_another_width_are_refused() -> None:
    message = r"'transformer.h.0.mlp.c_fc' has states of width 64, and the model's head reads 16"
    with pytest.raises(SiteError, match=message):
        measure(tiny_gpt2_lm(), {"input_ids": token_ids(1, 4)}, sites="transformer.h.0.mlp.c_fc")


@pytest.mark.parametrize("positions", [0, -3, 2.5, "many"])
def test_positions_that_are_none(positions: Any) -> None:
    with pytest.raises(ValueError, match=r"NextWord\(positions=.*\): a positive integer is needed"):
        gh.NextWord(positions=positions)
