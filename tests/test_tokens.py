"""Which tokens count, where they stand, and which are one context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from tests.conformance.harness import flatten
from tests.models import Stack, tiny_gpt2, tiny_gpt2_lm

LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])


def ids(batch: int = 3, length: int = 5) -> Tensor:
    return 1 + torch.arange(batch * length).view(batch, length) % 40


def watch(model: nn.Module, **options: Any) -> Any:
    return gh.watch(
        model, sites="blocks", statistics=[gh.PosCtx(positions=32), gh.Sphere()], **options
    )


def seen(watch: Any, site: str = "h.0") -> tuple[list[int], list[int]]:
    """Tokens at each position, and lengths of the contexts in order of appearance."""
    found = watch.geometry()[site].pos_ctx
    return found.position_count.tolist(), found.context_length.tolist()


def same_numbers(one: Any, other: Any) -> None:
    """Two geometries agree but for the ids of their contexts; ctx is kept in float32."""
    assert one.sites == other.sites
    for site in one.sites:
        numbers, others = flatten(one[site]), flatten(other[site])
        assert numbers.keys() == others.keys()
        for name, number in numbers.items():
            if not name.endswith("context_id"):
                np.testing.assert_allclose(
                    number, others[name], rtol=1e-6, atol=1e-8, err_msg=f"{site} {name}"
                )


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.bool, torch.float32, torch.bfloat16], ids=str
)
@torch.no_grad()
def test_a_mask_of_any_dtype(dtype: torch.dtype) -> None:
    model = tiny_gpt2()
    with watch(model) as w:
        model(input_ids=ids(), attention_mask=LEFT.flip(1).to(dtype))
    assert seen(w) == ([3, 3, 3, 2, 1], [3, 5, 4])


@torch.no_grad()
def test_without_position_ids_positions_are_those_of_the_model() -> None:
    """GPT-2 numbers the columns, whatever the mask says."""
    model = tiny_gpt2()
    with watch(model) as w:
        model(input_ids=ids(), attention_mask=LEFT)
    assert seen(w)[0] == [1, 2, 3, 3, 3]


@torch.no_grad()
def test_position_ids_of_left_padding() -> None:
    model = tiny_gpt2()
    positions = (LEFT.cumsum(1) - 1).clamp(min=0)
    with watch(model) as w:
        model(input_ids=ids(), attention_mask=LEFT, position_ids=positions)
    assert seen(w) == ([3, 3, 3, 2, 1], [3, 5, 4])


@torch.no_grad()
def test_positional_arguments_and_dictionaries() -> None:
    class Wrapper(nn.Module):
        """Takes a whole batch as one dictionary and calls the model in a way of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_gpt2()

        def forward(self, batch: dict[str, Tensor]) -> Any:
            return self.model.forward(batch["input_ids"], None, batch["attention_mask"])

    wrapper = Wrapper()
    with watch(wrapper) as w:
        wrapper({"input_ids": ids(), "attention_mask": LEFT.flip(1)})
    assert seen(w, "model.h.0") == ([3, 3, 3, 2, 1], [3, 5, 4])


@torch.no_grad()
def test_positions_that_begin_again_open_a_context() -> None:
    model = tiny_gpt2()
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]])
    with watch(model) as w:
        model(input_ids=ids(1, 8), position_ids=positions)
    assert seen(w) == ([3, 3, 2], [3, 2, 3])


@torch.no_grad()
def qwen_vl() -> nn.Module:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]
        },
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 8, "hidden_size": 16, "num_heads": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision)
    ).eval()


@pytest.mark.parametrize("kinds", [3, 4])
def test_positions_in_time_height_and_width(kinds: int) -> None:
    """Left padding moves nothing, whether or not the positions in the text are given with them."""
    positions = (LEFT.cumsum(1) - 1).clamp(min=0)
    model = qwen_vl()
    site = "model.language_model.layers.1"
    with torch.no_grad(), gh.watch(model, [site], positions=16) as watch:
        model(input_ids=ids(), attention_mask=LEFT, position_ids=positions.repeat(kinds, 1, 1))
        cache = model(
            input_ids=ids(), attention_mask=LEFT, position_ids=positions.repeat(kinds, 1, 1)
        ).past_key_values
        wider = torch.cat([LEFT, torch.ones(3, 1, dtype=torch.int64)], 1)
        after = (positions[:, -1:] + 1).repeat(kinds, 1, 1)
        model(input_ids=ids(3, 1), attention_mask=wider, position_ids=after, past_key_values=cache)
    found = watch.geometry()[site].pos_ctx
    assert found.context_length.tolist() == [3, 5, 4, 4, 6, 5]
    assert found.position_count.tolist() == [6, 6, 6, 5, 3, 1]


def test_texts_that_only_their_bounds_tell_apart() -> None:
    """As kernels of flash attention are told where texts begin, with no position_ids."""
    model = tiny_gpt2_lm()
    bounds = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 4]])
    found = []
    for told in ({"position_ids": positions}, {"cu_seq_lens_q": bounds}):
        with torch.no_grad(), gh.watch(model, ["transformer.wte"]) as watch:
            model(input_ids=ids(1, 9), **told)
        found.append(watch.geometry()["transformer.wte"].pos_ctx)
    assert found[1].context_length.tolist() == [3, 1, 5]
    torch.testing.assert_close(found[1].pos, found[0].pos)
    torch.testing.assert_close(found[1].ctx, found[0].ctx)


def test_generation_is_one_full_forward() -> None:
    """Prompts padded on the left, generate() with its cache, nothing told to the watch."""
    model = tiny_gpt2_lm().double()
    with watch(model) as generating:
        out = model.generate(
            ids(), attention_mask=LEFT, max_new_tokens=6, min_new_tokens=6, do_sample=False
        )
    mask = torch.cat([LEFT, torch.ones(3, 5, dtype=torch.int64)], 1)  # the last token is never read
    with watch(model) as reading:
        model(out[:, :-1], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    assert seen(generating, "transformer.h.0")[1] == [8, 10, 9]
    same_numbers(generating.geometry(), reading.geometry())


@torch.no_grad()
def test_a_loop_with_a_cache_is_one_full_forward() -> None:
    """Written by hand, without mask and position_ids; a second prompt is a second context."""
    model = tiny_gpt2().double()
    prompts = [ids(2, 6), 40 - ids(2, 4)]
    with watch(model) as step_by_step:
        for prompt in prompts:
            cache = None
            for t in range(prompt.shape[1]):
                cache = model(
                    prompt[:, t : t + 1], past_key_values=cache, use_cache=True
                ).past_key_values
    with watch(model) as at_once:
        for prompt in prompts:
            model(prompt)
    assert seen(step_by_step) == seen(at_once) == ([4, 4, 4, 4, 2, 2], [6, 6, 4, 4])
    same_numbers(step_by_step.geometry(), at_once.geometry())


@pytest.mark.parametrize("name", ["past_key_values", "cache", "state_of_my_own"])
@torch.no_grad()
def test_a_cache_by_any_name(name: str) -> None:
    """An argument that transformers has renamed before; a cache is known by what it can do."""
    from transformers import DynamicCache

    class Renamed(Stack):
        def forward(self, inputs_embeds: Tensor, **cache: Any) -> Tensor:
            return super().forward(inputs_embeds, past_key_values=cache[name])

    model, states = Renamed(4), torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    with watch(model) as w:
        cache = DynamicCache()
        for first, last in ((0, 3), (3, 4), (4, 5)):
            model(states[:, first:last], **{name: cache})
    assert seen(w, "blocks.0") == ([2] * 5, [5, 5])


@torch.no_grad()
def test_encoder_and_decoder_have_their_own_tokens() -> None:
    from transformers import T5Config, T5Model

    torch.manual_seed(0)
    model = T5Model(
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ).eval()
    encoder_mask = LEFT.flip(1)
    decoder_mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    with watch(model) as w:
        model(input_ids=ids(), attention_mask=encoder_mask, decoder_input_ids=ids(3, 3))
    assert seen(w, "encoder.block.1") == ([3, 3, 3, 2, 1], [3, 5, 4])
    assert seen(w, "decoder.block.1") == ([3, 3, 3], [3, 3, 3]), (
        "it must not take the encoder's mask"
    )
    with watch(model) as w:
        model(
            input_ids=ids(),
            attention_mask=encoder_mask,
            decoder_input_ids=ids(3, 3),
            decoder_attention_mask=decoder_mask,
        )
    assert seen(w, "encoder.block.1") == ([3, 3, 3, 2, 1], [3, 5, 4])
    assert seen(w, "decoder.block.1") == ([3, 2, 1], [2, 3, 1])


@torch.no_grad()
def test_patches_of_an_image_are_tokens() -> None:
    from transformers import ViTConfig, ViTModel

    options = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    model = ViTModel(ViTConfig(**options, image_size=16, patch_size=8)).eval()
    with watch(model) as w:
        model(pixel_values=torch.randn(3, 3, 16, 16))
    site = next(site for site in w.geometry().sites if not site.endswith("@in"))
    assert seen(w, site) == ([3] * 5, [5, 5, 5]), "four patches and the class token"


@torch.no_grad()
def test_token_ids_left_out() -> None:
    model = tiny_gpt2()
    batch = ids()
    batch[:, 0] = 7
    batch[1, 3] = 9
    with watch(model, exclude_token_ids=[7, 9]) as w:
        model(input_ids=batch)
    keep = ~torch.isin(batch, torch.tensor([7, 9]))
    assert seen(w) == (keep.sum(0).tolist(), keep.sum(1).tolist())


@torch.no_grad()
def test_leading_positions_left_out() -> None:
    model = tiny_gpt2()
    with watch(model, skip_positions=2) as w:
        model(input_ids=ids())
    assert seen(w) == ([0, 0, 3, 3, 3], [3, 3, 3])
    assert torch.isnan(w.geometry()["h.0"].pos_ctx.pos[:2]).all()


@torch.no_grad()
def test_the_user_has_the_last_word() -> None:
    """What is said by `watch.tokens` goes before what the model's call says."""
    model = tiny_gpt2()
    mask = torch.ones(3, 5, dtype=torch.int64)
    mask[0, 4] = 0
    with (
        watch(model) as w,
        w.tokens(mask=mask, contexts=torch.tensor([5, 8, 5]), groups=torch.tensor([1, 2, 1])),
    ):
        model(input_ids=ids(), attention_mask=LEFT)
    found = w.geometry()["h.0"].pos_ctx
    assert found.position_count.tolist() == [3, 3, 3, 3, 2]
    assert dict(zip(found.context_id.tolist(), found.context_length.tolist(), strict=True)) == {
        5: 9,
        8: 5,
    }
    assert dict(zip(found.context_id.tolist(), found.context_group.tolist(), strict=True)) == {
        5: 1,
        8: 2,
    }


@torch.no_grad()
def test_what_was_said_holds_for_its_block_alone() -> None:
    model = tiny_gpt2()
    with watch(model) as w:
        with w.tokens(mask=LEFT.flip(1)):
            model(input_ids=ids())
        model(input_ids=ids())
    assert seen(w)[0] == [6, 6, 6, 5, 4]


@torch.no_grad()
def test_contexts_kept_are_the_same_sample_in_any_order_and_shards() -> None:
    model = Stack(4, depth=1)
    embeddings = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(40) * 1000 + 17

    def kept(order: list[int], shards: int) -> dict[int, list[float]]:
        parts = []
        for part in range(shards):
            with gh.watch(
                model, sites="blocks.0", statistics=[gh.PosCtx(contexts=6, positions=3)]
            ) as w:
                for index in order[part::shards]:
                    with w.tokens(contexts=keys[index : index + 1]):
                        model(inputs_embeds=embeddings[index : index + 1])
            parts.append(w.geometry())
        found = (gh.merge(parts) if shards > 1 else parts[0])["blocks.0"].pos_ctx
        assert int(found.contexts) == 40
        return {
            key: row.tolist() for key, row in zip(found.context_id.tolist(), found.ctx, strict=True)
        }

    one = kept(list(range(40)), 1)
    assert len(one) == 6
    for other in (kept(list(range(39, -1, -1)), 1), kept(list(range(40)), 3)):
        assert other.keys() == one.keys()
        for key in one:
            np.testing.assert_allclose(other[key], one[key], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_context_that_went_on_after_it_was_closed_is_reported() -> None:
    model = Stack(4, depth=1)
    embeddings = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0))
    with gh.watch(model, sites="blocks", statistics=[gh.PosCtx(positions=4, open_contexts=2)]) as w:
        for index in (0, 1, 2, 3, 0):
            with w.tokens(contexts=torch.tensor([index])):
                model(inputs_embeds=embeddings[index : index + 1])
    geometry = w.geometry()
    with pytest.warns(UserWarning, match=r"1 contexts went on after .* raise open_contexts=2"):
        found = geometry["blocks.0"].pos_ctx
    assert int(found.split_contexts) == 1
    assert not found.exact


@torch.no_grad()
def test_a_mask_that_does_not_fit_names_both_shapes() -> None:
    model = tiny_gpt2()
    both_shapes = pytest.raises(gh.errors.TokensError, match=r"\(3, 4\).*\(3, 5")
    with both_shapes, watch(model) as w, w.tokens(mask=LEFT[:, :4]):
        model(input_ids=ids())


def test_negative_positions_are_refused_unless_they_are_masked() -> None:
    model, states = nn.Sequential(nn.Identity()), torch.randn(2, 5, 4)
    positions = torch.arange(5) - 2
    mask = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    with torch.no_grad(), gh.watch(model, sites="0") as watch:
        with (
            watch.tokens(positions=positions),
            pytest.raises(
                gh.errors.TokensError, match=r"4 tokens .* negative position, the least -2"
            ),
        ):
            model(states)
        with watch.tokens(positions=positions, mask=mask):  # as counting a mask gives them
            model(states)
    assert watch.geometry()["0"].pos_ctx.position_count.tolist() == [2, 2, 2]
