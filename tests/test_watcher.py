"""What `watch` finds in models of many kinds, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from tests.models import Stack, tiny_gpt2

TEXT = {"input_ids": 1 + torch.arange(10).view(2, 5)}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gpt2() -> tuple[nn.Module, dict[str, Any], list[str]]:
    return tiny_gpt2(), TEXT, ["h.0@in", "h.0", "h.1", "h.2"]


def llama() -> tuple[nn.Module, dict[str, Any], list[str]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config), TEXT, ["model.layers.0@in", "model.layers.0", "model.layers.1"]


def bert() -> tuple[nn.Module, dict[str, Any], list[str]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return BertModel(config), TEXT, ["encoder.layer.0@in", "encoder.layer.0", "encoder.layer.1"]


def t5() -> tuple[nn.Module, dict[str, Any], list[str]]:
    from transformers import T5Config, T5Model

    model = T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    sites = [
        f"{side}.block.{name}" for side in ("encoder", "decoder") for name in ("0@in", "0", "1")
    ]
    return model, {**TEXT, "decoder_input_ids": TEXT["input_ids"]}, sites


def mixtral() -> tuple[nn.Module, dict[str, Any], list[str]]:
    from transformers import MixtralConfig, MixtralModel

    config = MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
    )
    return MixtralModel(config), TEXT, ["layers.0@in", "layers.0", "layers.1"]


def torch_encoder() -> tuple[nn.Module, dict[str, Any], list[str]]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return (
        nn.TransformerEncoder(layer, 2),
        {"src": randn(2, 5, 8)},
        ["layers.0@in", "layers.0", "layers.1"],
    )


def sequential() -> tuple[nn.Module, dict[str, Any], list[str]]:
    return (
        nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))),
        {"input": randn(2, 5, 8)},
        ["0@in", "0", "1", "2"],
    )


FAMILIES: list[Callable[[], tuple[nn.Module, dict[str, Any], list[str]]]] = [
    gpt2,
    llama,
    bert,
    t5,
    mixtral,
    torch_encoder,
    sequential,
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@torch.no_grad()
def test_blocks_of_a_family(
    family: Callable[[], tuple[nn.Module, dict[str, Any], list[str]]],
) -> None:
    model, batch, sites = family()
    with gh.watch(model.eval(), sites="blocks") as watch:
        model(**batch)
    geometry = watch.geometry()
    assert list(geometry.sites) == sites
    assert {int(geometry[site].pos_ctx.count) for site in sites} == {10}
    assert {int(geometry[site].sphere.norm.count) for site in sites} == {10}


def test_a_name_that_matches_nothing_is_answered_with_near_ones() -> None:
    with pytest.raises(gh.errors.SiteError, match=r"h\.1\.mpl.*h\.1\.mlp"):
        gh.watch(tiny_gpt2(), sites="h.1.mpl")


def test_globs_inputs_and_predicates() -> None:
    model = tiny_gpt2()
    chosen = {
        "h.*.mlp": ["h.0.mlp", "h.1.mlp", "h.2.mlp"],
        "h.2@in": ["h.2@in"],
        "norms": [f"h.{i}.ln_{k}" for i in range(3) for k in (1, 2)] + ["ln_f"],
        "attention": ["h.0.attn", "h.1.attn", "h.2.attn"],
        "mlp": ["h.0.mlp", "h.1.mlp", "h.2.mlp"],
    }
    for sites, names in chosen.items():
        assert sorted(gh.watch(model, sites=sites).sites) == sorted(names), sites
    assert gh.watch(model, sites=["h.0", "h.1.mlp@in"]).sites == ["h.0", "h.1.mlp@in"]
    assert (
        gh.watch(model, sites=lambda name, module: name.endswith(".attn")).sites
        == chosen["attention"]
    )


@dataclass
class Output:
    number: int
    hidden: Tensor


@pytest.mark.parametrize(
    "pack",
    [
        lambda h: h,
        lambda h: (h, None),
        lambda h: [h],
        lambda h: {"aux": 3, "hidden": h},
        lambda h: Output(3, h),
    ],
    ids=["tensor", "tuple", "list", "dict", "dataclass"],
)
def test_outputs_of_any_form(pack: Callable[[Tensor], Any]) -> None:
    class Packs(nn.Module):
        def forward(self, hidden: Tensor) -> Any:
            return pack(2 * hidden)

    states = randn(2, 5, 4)
    model = nn.Sequential(Packs())
    with gh.watch(model, sites="0", statistics=[gh.PosCtx()]) as watch:
        model(states)
    torch.testing.assert_close(watch.geometry()["0"].pos_ctx.mean, 2 * states.double().mean((0, 1)))


def test_an_output_without_a_floating_tensor_names_its_type() -> None:
    class Names(nn.Module):
        def forward(self, hidden: Tensor) -> str:
            return "a name"

    model = nn.Sequential(Names())
    with pytest.raises(gh.errors.SiteError, match=r"'0'.*str"), gh.watch(model, sites="0"):
        model(randn(1, 2, 3))


def test_a_layout_brings_other_shapes_to_tokens() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1))
    images = randn(2, 3, 4, 5)
    with (
        torch.no_grad(),
        gh.watch(
            model, sites="0", statistics=[gh.PosCtx()], layout="b c h w -> b (h w) c"
        ) as watch,
    ):
        out = model(images)
    found = watch.geometry()["0"].pos_ctx
    assert found.position_count.tolist() == [2] * 20
    torch.testing.assert_close(found.position_mean, out.double().flatten(2).mean(0).T)
    with (
        pytest.raises(gh.errors.SiteError, match=r"\(2, 6, 4, 5\).*layout"),
        gh.watch(model, sites="0"),
    ):
        model(images)


def test_a_module_that_runs_twice_counts_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, hidden: Tensor) -> Tensor:
            return self.layer(self.layer(hidden))

    model = Twice()
    states = randn(3, 5, 4)
    with torch.no_grad(), gh.watch(model, sites="layer", statistics=[gh.Sphere()]) as watch:
        model(states)
    with pytest.warns(UserWarning, match=r"runs several times.*'layer': 2"):
        found = watch.geometry()["layer"].sphere.norm
    with torch.no_grad():
        both = torch.cat([model.layer(states), model(states)]).double().norm(dim=-1)
    assert int(found.count) == 30
    assert float(found.mean) == pytest.approx(float(both.mean()), rel=1e-6)


def test_a_model_that_is_kept_out_of_the_module_tree() -> None:
    """As TransformerLens's bridge has its blocks in a model of its own, which it runs."""

    class Bridge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = tiny_gpt2()
            self.blocks = model.h
            self.__dict__["model"] = model

        def forward(self, tokens: Tensor, real: Tensor) -> Any:
            return self.model(tokens, attention_mask=real)

    bridge, mask = Bridge(), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    with torch.no_grad(), gh.watch(bridge, sites="blocks") as watch:
        bridge(TEXT["input_ids"], mask)
        bridge.forward(TEXT["input_ids"], mask)  # past the hooks of the bridge itself
    found = watch.geometry()
    assert found.sites == ["blocks.0@in", "blocks.0", "blocks.1", "blocks.2"]
    assert found.tokens[""]["masked"] == 2 * 4
    for site in found.sites:
        assert found[site].pos_ctx.context_length.tolist() == [4, 2, 4, 2]


def test_forward_called_past_the_hooks_is_told_of() -> None:
    model, states = Stack(4), randn(3, 5, 4)
    with torch.no_grad(), gh.watch(model, sites="blocks.1", statistics=[gh.PosCtx()]) as watch:
        model.forward(states)
    with pytest.warns(UserWarning, match=r"past the model's own hooks.*model\(\.\.\.\)"):
        watch.geometry()
    watch.reset()
    with torch.no_grad(), watch, watch.tokens(contexts=torch.arange(3)):
        model.forward(states)
        model(states)
    assert int(watch.geometry()["blocks.1"].pos_ctx.contexts) == 3


def test_a_hook_that_never_fired() -> None:
    class Forgets(Stack):
        def forward(self, inputs_embeds: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[0](inputs_embeds))

    model = Forgets(4)
    with (
        pytest.raises(gh.errors.HookError, match=r"blocks\.2"),
        gh.watch(model, sites="blocks") as watch,
    ):
        model(randn(1, 2, 4))
    with pytest.raises(gh.errors.HookError, match=r"blocks\.2"):
        watch.geometry()


def test_geometry_before_any_token() -> None:
    model = tiny_gpt2()
    with gh.watch(model, sites="blocks") as watch:
        with pytest.raises(gh.errors.WatchError, match="no token"):
            watch.geometry()
        model(**TEXT)
    assert watch.geometry().sites == watch.sites


def test_entering_twice() -> None:
    model = tiny_gpt2()
    with gh.watch(model, sites="blocks") as watch:
        model(**TEXT)
        with pytest.raises(gh.errors.WatchError, match="attached already"):
            watch.attach()
    assert int(watch.geometry()["h.0"].pos_ctx.count) == 10


def test_pause_counts_nothing() -> None:
    model = tiny_gpt2()
    with gh.watch(model, sites="blocks") as watch:
        model(**TEXT)
        with watch.pause():
            model(**TEXT)
    assert int(watch.geometry()["h.0"].pos_ctx.count) == 10


def test_a_snapshot_stays_as_it_was() -> None:
    model = tiny_gpt2()
    with gh.watch(model, sites="blocks") as watch:
        model(**TEXT)
        early = watch.geometry()
        model(**TEXT)
    assert int(early["h.0"].pos_ctx.count) == 10
    assert int(watch.geometry()["h.0"].pos_ctx.count) == 20


def test_nbytes_is_known_before_the_first_forward_or_asks_for_an_example() -> None:
    model = Stack(4)
    with pytest.raises(gh.errors.SiteError, match="example"):
        _ = gh.watch(model, sites="blocks").nbytes
    told = gh.watch(model, sites="blocks", example={"inputs_embeds": randn(1, 2, 4)})
    before = told.nbytes
    with told as watch:
        model(inputs_embeds=randn(2, 5, 4))
    assert watch.nbytes == before
    assert int(watch.geometry()["blocks.0"].pos_ctx.count) == 10, "the example does not count"
    assert gh.watch(tiny_gpt2(), sites="blocks").nbytes > 0


def test_statistics_by_site() -> None:
    model = tiny_gpt2()
    with gh.watch(model, statistics={"blocks": [gh.PosCtx()], "norms": [gh.Sphere()]}) as watch:
        model(**TEXT)
    geometry = watch.geometry()
    assert "sphere" not in geometry["h.1"]
    assert "pos_ctx" not in geometry["ln_f"]
    assert int(geometry["h.1"].pos_ctx.count) == int(geometry["ln_f"].sphere.norm.count) == 10


def test_a_function_tells_the_tokens() -> None:
    model = Stack(4)

    def first_two(module: nn.Module, arguments: Any) -> dict[str, Tensor]:
        states = arguments["inputs_embeds"]
        return {"mask": torch.arange(states.shape[1]).expand(states.shape[:2]) < 2}

    with gh.watch(model, sites="blocks", tokens=first_two) as watch:
        model(inputs_embeds=randn(3, 5, 4))
    assert watch.geometry()["blocks.1"].pos_ctx.position_count.tolist() == [3, 3]


def test_after_a_forward_that_broke_off_the_sites_that_counted_more_say_so() -> None:
    """The next forwards begin anew; sites before the break have one forward more."""
    model = Stack(4)
    states = randn(3, 5, 4)

    def break_down(*_: Any) -> None:
        raise ZeroDivisionError

    with gh.watch(model, sites="blocks") as watch:
        model(inputs_embeds=states)
        handle = model.blocks[1].register_forward_pre_hook(break_down)
        with pytest.raises(ZeroDivisionError):
            model(inputs_embeds=states)
        handle.remove()
        model(inputs_embeds=states)
    with pytest.warns(UserWarning, match=r"an exception half way.*'blocks.1': 2, 'blocks.2': 2"):
        geometry = watch.geometry()
    assert [int(geometry[site].pos_ctx.count) for site in geometry.sites] == [45, 45, 30, 30]
    assert [bool(geometry[site].pos_ctx.exact) for site in geometry.sites] == [
        True,
        True,
        False,
        False,
    ]
    assert int(geometry["blocks.2"].sphere.path_length.count) == 30


def test_a_statistic_counts_once_at_a_site_however_often_it_is_said() -> None:
    model, states = Stack(8), torch.randn(2, 5, 8)

    def measured(statistics: Any) -> Any:
        with torch.no_grad(), gh.watch(model, statistics=statistics) as watch:
            model(states)
        return watch.geometry()

    once = measured([gh.Sphere(), gh.PosCtx(contexts=4)]).scalars()
    twice = [gh.Sphere(), gh.Sphere(), gh.PosCtx(contexts=4), gh.PosCtx(contexts=4)]
    overlapping = {
        "blocks": [gh.Sphere(), gh.PosCtx(contexts=4)],
        "blocks.1": [gh.Sphere(), gh.PosCtx(contexts=4)],
    }
    for statistics in (twice, overlapping):
        assert measured(statistics).scalars() == pytest.approx(once, rel=1e-12, nan_ok=True)
    with pytest.raises(
        gh.errors.SiteError, match="two different statistics named 'pos_ctx' in one watch"
    ):
        gh.watch(model, statistics=[gh.PosCtx(contexts=4), gh.PosCtx(contexts=5)]).__enter__()
