"""Generation with a cache counts what one forward over its sequences counts, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from tests.forwards.models import SIZES, ids, llama, same_numbers, tiny_gpt2_lm

NEW = 6
LEFT = torch.tensor([[1] * 7, [0] * 3 + [1] * 4, [0] * 2 + [1] * 5, [1] * 7])
FAMILIES = {"gpt2": tiny_gpt2_lm, "llama": llama}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return FAMILIES[request.param]().double()


def generate(model: nn.Module, prompts: Tensor, mask: Tensor | None = None, **how: Any) -> Tensor:
    """Sequences of one length; of a mask, those of the prompts."""
    torch.manual_seed(1)
    mask = torch.ones_like(prompts) if mask is None else mask
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 49} | how
    return model.generate(prompts, attention_mask=mask, **how)


def at_once(model: nn.Module, sequences: Tensor, mask: Tensor | None = None) -> Any:
    """One forward over everything that generation reads: all but the last token."""
    told: dict[str, Tensor] = {}
    if mask is not None:
        mask = mask.repeat_interleave(len(sequences) // len(mask), 0)
        new = torch.ones(len(sequences), NEW - 1, dtype=torch.int64)
        mask = torch.cat([mask, new], 1)
        told = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad(), gh.watch(model) as watch:
        model(sequences[:, :-1], use_cache=False, **told)
    return watch.geometry()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left-padded"])
@pytest.mark.parametrize(
    "how",
    [{}, {"do_sample": True, "num_return_sequences": 3}],
    ids=["greedy", "three samples each"],
)
def test_generate(model: nn.Module, how: dict[str, Any], padded: bool, cache: str) -> None:
    mask = LEFT if padded else None
    static = {"cache_implementation": "static"} if cache == "static" else {}
    with gh.watch(model) as watch:
        sequences = generate(model, ids(4, 7), mask, **how, **static)
    same_numbers(at_once(model, sequences, mask), watch.geometry())


def test_a_conversation_goes_on_with_the_cache_of_the_turn_before(model: nn.Module) -> None:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with gh.watch(model) as watch:
        first = generate(model, ids(2, 4), cache=cache)
        turn = torch.cat([first, ids(2, 3, seed=5)], 1)
        whole = generate(model, turn, cache=cache)
    same_numbers(at_once(model, whole), watch.geometry())


def test_generations_in_turns_go_on_with_their_own_contexts(model: nn.Module) -> None:
    from transformers import DynamicCache

    texts = [ids(1, 6, seed) for seed in range(20)]
    caches = [DynamicCache(config=model.config) for _ in texts]
    with torch.no_grad(), gh.watch(model) as in_turns:
        for t in range(0, 6, 2):
            for text, cache in zip(texts, caches, strict=True):
                model(text[:, t : t + 2], cache=cache)
    with torch.no_grad(), gh.watch(model) as whole:
        for text in texts:
            model(text, use_cache=False)
    same_numbers(whole.geometry(), in_turns.geometry())


def gemma() -> nn.Module:
    """Of two kinds of layers, so that it is given a mask for each."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    small = SIZES | {"num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2}
    config = Gemma3TextConfig(sliding_window=4, layer_types=kinds, eos_token_id=48, **small)
    return Gemma3ForCausalLM(config).eval()


def bloom() -> nn.Module:
    """It is given a mask that is as wide as a static cache, with nothing in the columns to come."""
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    config = BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2, eos_token_id=48)
    return BloomForCausalLM(config).eval()


@pytest.mark.parametrize("make", [gemma, bloom])
def test_masks_as_they_are_made_for_a_static_cache(make: Any) -> None:
    model = make()
    with gh.watch(model) as watch:
        sequences = generate(model, ids(4, 7), LEFT, cache_implementation="static")
    same_numbers(at_once(model, sequences, LEFT), watch.geometry(), rtol=1e-4, atol=1e-6)


def test_a_static_cache_that_is_cut_back_is_refused(model: nn.Module) -> None:
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad(), gh.watch(model) as watch:
        model(ids(2, 6), cache=cache)
        cache.crop(-2)
        with pytest.raises(gh.errors.TokensError, match="was changed after its last forward"):
            model(ids(2, 3, seed=1), cache=cache)
    assert int(watch.geometry()[watch.sites[0]].pos_ctx.count) == 12


def test_another_cache_where_one_lay_that_is_gone() -> None:
    """Memory is used again; what lay there says nothing of whose tokens now do."""
    from transformers import DynamicCache

    model = llama().double()
    with torch.no_grad(), gh.watch(model) as watch:
        gone, other = (DynamicCache(config=model.config) for _ in range(2))
        model(ids(2, 5), cache=gone)
        with watch.pause():
            model(ids(2, 5, seed=1), cache=other)
        for name in ("keys", "values"):
            memory = getattr(gone.layers[0], name).untyped_storage()
            there = getattr(other.layers[0], name).new_empty(0).set_(memory, 0, (2, 2, 5, 8))
            setattr(other.layers[0], name, there)
        del gone
        model(ids(2, 3, seed=2), cache=other)
    contexts = watch.geometry()[watch.sites[0]].pos_ctx.context_length.tolist()
    assert contexts == [5, 5, 3, 3]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder(family: str) -> None:
    model = encoder_decoder(family).double()
    prompts = ids(3, 7)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 5 + [0] * 2])
    with gh.watch(model) as watch:
        sequences = generate(model, prompts, mask)
    with torch.no_grad(), gh.watch(model) as whole:
        model(input_ids=prompts, attention_mask=mask, decoder_input_ids=sequences[:, :-1])
    same_numbers(whole.geometry(), watch.geometry())
    assert {t["real"] for t in watch.geometry().tokens.values()} == {16, 3 * NEW}


def encoder_decoder(family: str) -> nn.Module:
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 50, "d_model": 16, "pad_token_id": 49}
    common |= {"eos_token_id": 48, "decoder_start_token_id": 49}
    if family == "t5":
        return T5ForConditionalGeneration(
            T5Config(d_kv=8, d_ff=32, num_layers=2, num_heads=2, **common)
        ).eval()
    sides = {
        f"{side}_{name}": 2
        for side in ("encoder", "decoder")
        for name in ("layers", "attention_heads")
    }
    config = BartConfig(
        encoder_ffn_dim=32, decoder_ffn_dim=32, bos_token_id=47, forced_eos_token_id=None,
        max_position_embeddings=64, **sides, **common,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def test_a_state_space_model_whose_cache_counts_no_positions() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2)
    model = MambaForCausalLM(config).eval().double()
    with gh.watch(model) as watch:
        sequences = generate(model, ids(3, 5))
    same_numbers(at_once(model, sequences), watch.geometry())


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3},
        {"num_beams": 3, "do_sample": True},
        {"num_beams": 3, "cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"assistant": True},
    ],
    ids=["beam search", "beam sampling", "beam search, static cache", "prompt lookup", "assistant"],
)
def test_rows_that_are_reordered_or_cut_back_are_refused(
    model: nn.Module, how: dict[str, Any]
) -> None:
    prompts = ids(4, 7)
    if how.pop("assistant", False):
        shallow = {"n_layer": 1} if model.config.model_type == "gpt2" else {"num_hidden_layers": 1}
        how["assistant_model"] = FAMILIES[model.config.model_type](**shallow).double()
    if "num_beams" not in how:
        prompts = prompts[:1]
    watch = gh.watch(model)
    with (
        pytest.raises(gh.errors.TokensError, match=r"num_beams=1.*watch\.pause\(\).*contexts"),
        watch,
    ):
        generate(model, prompts, **how)
    assert watch.geometry().sites, "what was counted before is kept"


def test_beam_search_under_pause_and_one_forward_over_its_sequences(model: nn.Module) -> None:
    with gh.watch(model) as watch:
        with watch.pause():
            sequences = generate(model, ids(4, 7), num_beams=3)
        with torch.no_grad():
            model(sequences[:, :-1], use_cache=False)
    same_numbers(at_once(model, sequences), watch.geometry())


def test_who_says_the_contexts_may_reorder(model: nn.Module) -> None:
    """Rows of one beam search are one context each: the user has the last word."""
    with gh.watch(model) as watch, watch.tokens(contexts=torch.arange(6) // 3):
        generate(model, ids(2, 7), num_beams=3)
    site = watch.geometry().sites[-1]
    assert watch.geometry()[site].pos_ctx.context_id.tolist() == [0, 1]


def test_a_cache_that_was_filled_unwatched_begins_contexts_of_its_own(model: nn.Module) -> None:
    """Their positions are those in the cache; no context of the forwards before is mixed in."""
    from transformers import DynamicCache

    other = DynamicCache(config=model.config)
    with torch.no_grad(), gh.watch(model) as watch:
        model(ids(2, 5), use_cache=True)
        with watch.pause():
            model(ids(2, 4), cache=other)
        model(ids(2, 3), cache=other)
    found = watch.geometry()[watch.geometry().sites[0]].pos_ctx
    assert found.context_length.tolist() == [5, 5, 3, 3]
    assert found.position_count.tolist() == [2, 2, 2, 2, 4, 2, 2]


def test_a_row_that_has_ended_is_padding_that_generate_calls_real() -> None:
    """Its padding is left out by naming the token."""
    model = llama().double()
    ends = torch.zeros(3, 50, dtype=torch.float64)

    def end_the_first_row(tokens: Tensor, scores: Tensor) -> Tensor:
        ends[:] = 0
        ends[:, 48] = -1e9
        if tokens.shape[1] == 7:
            ends[0, 48] = 1e9
        return scores + ends

    with gh.watch(model, exclude_token_ids=[49]) as watch:
        generate(model, ids(3, 5), min_new_tokens=None, logits_processor=[end_the_first_row])
    first = watch.geometry()[watch.geometry().sites[0]].pos_ctx
    assert first.context_length.tolist() == [8, 10, 10]  # the prompt, two words and the end
