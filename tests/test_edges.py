"""Runs that go wrong, or hardly run at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from tests.models import Stack


@pytest.mark.filterwarnings("ignore:tokens left out because an entry")
@torch.no_grad()
def test_a_site_where_nothing_is_finite() -> None:
    model = Stack(8, depth=1)
    with gh.watch(model) as watch:
        model(torch.full((3, 4, 8), float("nan")))
    layer = watch.geometry()["blocks.0"]
    assert int(layer.sphere.non_finite) == 12
    assert torch.isnan(layer.sphere.norm.mean)
    with pytest.raises(gh.errors.UnidentifiedError, match="no finite token"):
        _ = layer.pos_ctx.mean
    assert watch.geometry().frame().loc["blocks.0", "sphere/non_finite"] == 12


@torch.no_grad()
def test_an_empty_batch_counts_nothing() -> None:
    model = Stack(8, depth=1)
    with gh.watch(model) as watch:
        model(torch.randn(0, 4, 8))
        model(torch.randn(2, 4, 8))
    assert int(watch.geometry()["blocks.0"].pos_ctx.count) == 8


@torch.no_grad()
def test_a_loaded_state_can_be_read_before_the_model_has_run(tmp_path: Path) -> None:
    model = Stack(8, depth=1)
    with gh.watch(model) as watch:
        model(torch.randn(2, 4, 8))
    before = watch.geometry()
    before.save(tmp_path / "g.safetensors")
    again = gh.watch(model)
    again.load_state_dict(gh.load(tmp_path / "g.safetensors").state_dict())
    after = again.geometry()
    assert torch.equal(before["blocks.0"].pos_ctx.pos, after["blocks.0"].pos_ctx.pos)
    again.load_state_dict(again.state_dict())
    assert again.geometry().sites == before.sites
    assert again._plan.pending is not None
    with again:
        model(torch.randn(3, 4, 8))
    assert again._plan.pending is None  # every site has taken its part, no second state is held
    assert int(again.geometry()["blocks.0"].pos_ctx.count) == 2 * 4 + 3 * 4


@torch.no_grad()
def test_one_token_has_no_pairwise_cosine() -> None:
    model = Stack(8, depth=1)
    with gh.watch(model, statistics=[gh.Sphere()]) as watch:
        model(torch.randn(1, 1, 8))
    assert torch.isnan(watch.geometry()["blocks.0"].sphere.mean_cosine)


@torch.no_grad()
def test_a_site_that_is_itself_the_module_whose_call_opens_the_stream() -> None:
    model = Stack(8, depth=1)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    with gh.watch(model, sites=["", "blocks.0"], statistics=[gh.Sphere()]) as watch:
        model(inputs_embeds=torch.randn(2, 3, 8), attention_mask=mask)
    geometry = watch.geometry()
    assert [int(geometry[site].sphere.norm.count) for site in geometry.sites] == [5, 5]


@torch.no_grad()
def test_a_block_that_stands_in_several_places() -> None:
    """It is one site, by its first name, also where another list holds it too."""
    model = Stack(8)
    model.blocks[1] = model.blocks[0]
    model.every = nn.ModuleList(model.blocks)
    with gh.watch(model) as watch:
        model(torch.randn(2, 4, 8))
    with pytest.warns(UserWarning, match="a module that runs several times"):
        geometry = watch.geometry()
    counts = {site: int(geometry[site].pos_ctx.count) for site in geometry.sites}
    assert counts == {"blocks.0@in": 16, "blocks.0": 16, "blocks.2": 8}


class Biased(nn.Module):
    """Takes the hidden state by a name that nobody knows, and something else before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, residual: Tensor, bias: Tensor) -> Tensor:
        return residual + self.linear(residual) + bias


class ByName(Stack):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.blocks = nn.ModuleList(Biased(width) for _ in range(3))

    def forward(self, inputs_embeds: Tensor) -> Tensor:  # type: ignore[override]
        for block in self.blocks:
            inputs_embeds = block(bias=torch.ones(1, 1, 8), residual=inputs_embeds)
        return inputs_embeds


@torch.no_grad()
def test_a_hidden_state_that_is_given_by_name() -> None:
    """It is the first of the block's parameters, in whatever order they are given."""
    states = torch.randn(5, 4, 8)
    model = ByName(8)
    with gh.watch(model) as watch:
        model(states)
    geometry = watch.geometry()
    mean = states.double().mean((0, 1)).float()
    torch.testing.assert_close(geometry["blocks.0@in"].pos_ctx.mean.float(), mean)
    before, after = states, model.blocks[0](bias=torch.ones(1, 1, 8), residual=states)
    centred = [one - one.mean(-1, keepdim=True) for one in (before, after)]
    angle = torch.acos(torch.cosine_similarity(*centred, dim=-1)).mean()
    found = geometry["blocks.0"].sphere.step_angle.mean
    torch.testing.assert_close(found.float(), angle, rtol=1e-4, atol=0)


@torch.no_grad()
def test_a_site_that_is_called_by_itself() -> None:
    """Outside of any call of the model, a site is a forward of its own for every statistic."""
    model = Stack(8)
    with torch.no_grad(), gh.watch(model, sites="blocks.1", positions=4) as watch:
        for _ in range(2):
            model.blocks[1](torch.randn(3, 4, 8))
    with pytest.warns(UserWarning, match="past the model's own hooks"):
        found = watch.geometry()["blocks.1"]
    assert int(found.pos_ctx.count) == int(found.sphere.norm.count) == 24


def test_a_block_that_overwrites_its_input() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.add_(self.scale)

    model = nn.Sequential(InPlace(), InPlace())
    wrong = pytest.raises(gh.errors.SiteError, match="overwrites its input in place")
    with wrong, gh.watch(model, statistics=[gh.Sphere()]):
        model(torch.randn(2, 3, 8))


def test_steps_along_the_path_of_a_stack_whose_first_block_is_skipped() -> None:
    class Skipping(Stack):
        def forward(self, inputs_embeds: torch.Tensor, skip: bool = False) -> torch.Tensor:  # type: ignore[override]
            hidden = inputs_embeds
            for block in self.blocks[int(skip) :]:
                hidden = block(hidden)
            return hidden

    model = Skipping(8, depth=3)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Sphere()]) as watch:
        model(torch.randn(2, 3, 8))
        model(torch.randn(2, 3, 8), skip=True)
    with pytest.warns(UserWarning, match="other numbers of forwards"):
        sphere = watch.geometry()["blocks.2"].sphere
    assert int(sphere.step_angle.count) == 12
    assert int(sphere.path_length.count) == int(sphere.chord.count) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "b c h w"}, "'b c h w' is no einops pattern"),
        ({"layout": {"zzz": "t b d -> b t d"}}, "no site matches 'zzz'; there are blocks.0@in"),
        ({"positions": 0}, "positions=0"),
        ({"positions": "4"}, "positions='4'"),
        ({"skip_positions": -1}, "skip_positions=-1"),
        ({"exclude_token_ids": "ab"}, "exclude_token_ids=.*: integers are needed"),
        ({"statistics": ["pos_ctx"]}, "'pos_ctx' is no statistic"),
        ({"statistics": []}, "no statistics given"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(gh.errors.SiteError, match=message):
        gh.watch(Stack(8, depth=1), **arguments)


def test_states_and_geometries_that_are_none(tmp_path: Path) -> None:
    watch = gh.watch(Stack(8, depth=1))
    with pytest.raises(gh.errors.SchemaError, match=r"found \['a'\]"):
        watch.load_state_dict({"a": 1})
    with pytest.raises(gh.errors.SchemaError, match="found a str"):
        gh.merge(["a.safetensors"])  # type: ignore[list-item]
    with torch.no_grad(), watch:
        watch._plan.root(torch.randn(1, 2, 8))
    with pytest.raises(FileNotFoundError, match="no such folder to save into"):
        watch.geometry().save(tmp_path / "missing" / "g.safetensors")
    watch.geometry().save(tmp_path / "g.safetensors")
    with pytest.raises(gh.errors.SchemaError, match="is no instance of"):
        gh.load(tmp_path / "g.safetensors", statistics=[gh.Sphere])  # type: ignore[list-item]
    with pytest.raises(gh.errors.SiteError, match=r"sphere\.radius\.mean"):
        watch.geometry().stack("sphere.radius")


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@torch.no_grad()
def test_a_checkpoint_of_torch_distributed_goes_on_or_is_refused(tmp_path: Path) -> None:
    """It fills in tensors that a watch holds; one that holds none would lose what was saved."""
    import torch.distributed.checkpoint as checkpoint

    model, first, second = Stack(8, depth=1), torch.randn(2, 4, 8), torch.randn(3, 4, 8)
    with gh.watch(model) as watch:
        model(first)
        checkpoint.save({"watch": watch.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
        model(second)

    def load(resumed: gh.Watch) -> gh.Watch:
        state = {"watch": resumed.state_dict()}
        checkpoint.load(state, checkpoint_id=tmp_path, no_dist=True)
        resumed.load_state_dict(state["watch"])
        return resumed

    with pytest.raises(gh.errors.SchemaError, match=r"\d+ tensors were saved, and 0 are here"):
        load(gh.watch(model))
    with load(gh.watch(model, example=first)) as resumed:
        model(second)
    assert resumed.geometry().scalars() == pytest.approx(watch.geometry().scalars(), nan_ok=True)


@torch.no_grad()
def test_another_default_device(tmp_path: Path) -> None:
    """As scripts set one for their model: what is read and put together is on the CPU all the same.

    Whatever is made on "meta" by mistake has no numbers, and raises.
    """
    parts = []
    for seed in range(2):
        torch.manual_seed(seed)
        with gh.watch(Stack(8), example=torch.randn(2, 4, 8)) as watch:
            watch._plan.root(torch.randn(3, 4, 8))
        watch.geometry().save(tmp_path / f"{seed}.safetensors")
        parts.append(watch.geometry())
    expected, alone = gh.merge(parts).scalars(), parts[1].scalars()
    history = gh.History(snapshots=2)
    with torch.device("meta"):
        loaded = [gh.load(tmp_path / f"{seed}.safetensors") for seed in range(2)]
        merged = gh.merge(loaded)
        assert merged.scalars() == pytest.approx(expected, nan_ok=True, rel=0)
        merged.save(tmp_path / "both.safetensors")
        for sync in (False, True):
            found = watch.geometry(sync=sync)
            assert found.scalars() == pytest.approx(alone, nan_ok=True, rel=0)
        history.append(0, merged)
        history.append(1, merged)  # the very same
        history.save(tmp_path / "history.safetensors")
        again = gh.History.load(tmp_path / "history.safetensors")
        assert again[1].scalars() == pytest.approx(expected, nan_ok=True, rel=0)
