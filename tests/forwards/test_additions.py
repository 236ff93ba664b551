"""What sublayers add is seen in every way of running a model, kept no longer than their block."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

import geomhooks as gh
import tests.conformance.cases  # noqa: F401 - describes the parts of a Stack
from geomhooks.anatomy import MLP, Block, BlockParts, Family, Linear, register
from geomhooks.anatomy.finding import KNOWN
from geomhooks.errors import HookError, SiteError
from tests.anatomy.collecting import Collect
from tests.forwards.models import bert, encoder, ids, llama, same_numbers, tiny_gpt2
from tests.models import Stack

HEADS_UNSEEN = (nn.TransformerEncoder,)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing compiled by others, and no recompilation beyond the default limit goes unseen."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def statistic(model: nn.Module) -> gh.Updates:
    return gh.Updates(heads=not isinstance(model, HEADS_UNSEEN))


def batches(model: nn.Module) -> Iterator[dict[str, Any]]:
    for seed, size in enumerate((3, 4, 2)):
        mask = torch.ones(size, 8, dtype=torch.int64)
        mask[0, 6:] = 0
        if isinstance(model, nn.TransformerEncoder):
            states = torch.randn(size, 8, 16, generator=torch.Generator().manual_seed(seed))
            yield {"src": states, "src_key_padding_mask": mask == 0}
        else:
            told = {} if model.config.model_type == "bert" else {"use_cache": False}  # type: ignore[union-attr]
            yield {"input_ids": ids(size, 8, seed), "attention_mask": mask, **told}


def stream(model: nn.Module, run: Any = None, watched: Any = None) -> gh.Geometry:
    watched = model if watched is None else watched
    with torch.no_grad(), gh.watch(watched, statistics=[statistic(model)]) as watch:
        for batch in batches(model):
            (model if run is None else run)(**batch)
    return watch.geometry()


def states(batch: int = 2, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("family", [tiny_gpt2, bert, llama, encoder], ids=lambda f: f.__name__)
@pytest.mark.parametrize("way", ["model", "blocks"])
def test_compiled(family: Callable[[], nn.Module], way: str) -> None:
    """In one graph, and no other for batches of other sizes."""
    model = family()
    expected = stream(model)
    run: Any = model
    if way == "model":
        backend = "aot_eager" if family is encoder else "eager"
        run = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    else:
        for block in next(m for m in model.modules() if isinstance(m, nn.ModuleList)):
            block.compile(backend="eager", fullgraph=True, dynamic=True)
    found = stream(model, run)
    graphs = counters["stats"]["unique_graphs"]
    same_numbers(expected, found, rtol=1e-4, atol=1e-5)
    same_numbers(expected, stream(model, run), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs > 0
    assert not counters["graph_break"]


@pytest.mark.usefixtures("fresh")
def test_memory_that_compiled_code_uses_again() -> None:
    """The inductor lends buffers that hold something else by the end of the block."""
    model = tiny_gpt2(n_layer=2)
    expected = stream(model)
    run = torch.compile(model, fullgraph=True, dynamic=True)
    same_numbers(expected, stream(model, run), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, at blocks' inputs
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("way", ["eager", "compiled blocks"])
def test_gradient_checkpointing(way: str, reentrant: bool) -> None:
    """Recomputed blocks are not counted, and leave nothing to those that are."""
    model = tiny_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()

    def train() -> gh.Geometry:
        with gh.watch(model, statistics=[gh.Updates(heads=True)]) as watch:
            for batch in batches(model):
                model(**batch)[0].square().mean().backward()
        assert not watch._frames
        return watch.geometry()

    expected = train()
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": reentrant, "preserve_rng_state": False}
    )
    if way == "compiled blocks":
        for block in model.h:
            block.compile(backend="aot_eager", dynamic=True)
    same_numbers(expected, train(), rtol=1e-4, atol=1e-5)


def test_one_block_s_additions_at_a_time() -> None:
    """When a block begins what those before it added is gone, but for what the model holds."""
    model = tiny_gpt2()
    made: list[weakref.ref[Tensor]] = []

    def note(_: nn.Module, __: Any, out: Tensor) -> None:
        made.append(weakref.ref(out))

    def look(*_: Any) -> None:
        alive.append(sum(one() is not None for one in made))

    alive: list[int] = []
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates()]) as watch:
        handles = [model.h[index].mlp.c_proj.register_forward_hook(note) for index in range(3)]
        handles += [model.h[index].register_forward_pre_hook(look) for index in range(3)]
        model(input_ids=ids(2, 5))
        assert not watch._frames
    assert len(made) == 3
    assert alive == [0, 0, 0]


def test_a_forward_that_raises_leaves_nothing_to_the_next() -> None:
    model = tiny_gpt2()
    expected = stream(model)

    def break_down(*_: Any) -> None:
        raise ZeroDivisionError

    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates(heads=True)]) as watch:
        for index, batch in enumerate(batches(model)):
            # In the first block, so that no block is ahead of the others.
            place = model.h[0].mlp.c_proj if index else model.h[0].attn.c_proj
            handle = place.register_forward_hook(break_down)
            with pytest.raises(ZeroDivisionError):
                model(**batch)
            handle.remove()
            assert not watch._frames
            model(**batch)
    same_numbers(expected, watch.geometry())


class Twice(Stack):
    """Every block runs twice in one forward."""

    def forward(self, inputs_embeds: Tensor, **told: Any) -> Tensor:
        return super().forward(super().forward(inputs_embeds, **told), **told)


def test_a_block_that_runs_twice_in_a_forward() -> None:
    model, statistic = Twice(8), Collect()
    with torch.no_grad(), gh.watch(model, statistics=[statistic, gh.Updates()]) as watch:
        model(states())
    with pytest.warns(UserWarning, match=r"a module that runs several times"):
        assert int(watch.geometry()["blocks.1"].updates.mlp.norm.count) == 2 * 6
    for calls in statistic.found.values():
        assert len(calls) == 2
        for shown in calls:
            assert torch.equal(shown.additions[-1].left, shown.left)
        assert not torch.equal(calls[0].entered, calls[1].entered)


class OneProjection(Stack):
    """All blocks have the same last sublayer."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        for block in self.blocks[1:]:
            block.push = self.blocks[0].push  # type: ignore[union-attr]


def test_a_module_that_several_blocks_share() -> None:
    """It is looked at in the block that runs."""
    model, statistic = OneProjection(8), Collect()
    with torch.no_grad(), gh.watch(model, statistics=[statistic]):
        model(states())
    for (shown,) in statistic.found.values():
        assert torch.equal(shown.additions[-1].left, shown.left)


def test_a_module_that_runs_twice_in_a_block() -> None:
    model = bert()
    model.config.chunk_size_feed_forward = 4  # type: ignore[union-attr]
    for block in model.encoder.layer:
        block.chunk_size_feed_forward = 4
    message = r"the mlp of 'encoder.layer.0': its module ran twice in one call of the block"
    with pytest.raises(SiteError, match=message):
        stream(model)


def test_a_sublayer_that_is_not_called_as_a_module() -> None:
    model = Stack(8)
    push = model.blocks[1].push
    model.blocks[1].forward = lambda hidden: hidden + push.forward(hidden)
    message = r"the attention of 'blocks.1': its Turn did not run in this call of the block"
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates()]) as watch:
        with pytest.raises(HookError, match=message):
            model(states())
        del model.blocks[1].forward
        watch.reset()
        model(states())
    assert int(watch.geometry()["blocks.1"].updates.mlp.norm.count) == 6


def overwrite_input(block: Any, hidden: Tensor) -> Tensor:
    moved = block.turn(hidden)
    hidden += moved
    return hidden + block.push(hidden)


def overwrite_addition(block: Any, hidden: Tensor) -> Tensor:
    moved: Tensor = block.turn(hidden)
    moved += hidden
    return moved + block.push(moved)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_overwritten_in_place(mode: Any) -> None:
    model = Stack(8, depth=2)
    block = model.blocks[1]
    block.forward = lambda hidden: overwrite_addition(block, hidden)
    if mode is torch.no_grad:
        message = r"the attention of 'blocks.1': what its Turn shows is overwritten in place"
        with pytest.raises(SiteError, match=message), mode(), watch_of(model):
            model(states())
    else:  # where nothing counts what is written there is a copy
        statistic = Collect()
        with mode(), gh.watch(model, statistics=[statistic]):
            model(states())
        (shown,) = statistic.found["blocks.1"]
        torch.testing.assert_close(shown.additions[-1].left, shown.left)


@pytest.mark.parametrize("site", ["blocks", "blocks.1"])
def test_an_input_that_is_overwritten_in_place(site: str) -> None:
    """Also where nobody has looked at it before."""
    model = Stack(8, depth=2)
    block = model.blocks[1]
    block.forward = lambda hidden: overwrite_input(block, hidden)
    watch = gh.watch(model, sites=site, statistics=[gh.Updates()])
    with pytest.raises(SiteError, match=r"'blocks.1' overwrites its input"), torch.no_grad(), watch:
        model(states())
    block.forward = lambda hidden: hidden.add_(block.turn(hidden)).add_(block.push(hidden))
    with torch.inference_mode(), pytest.raises(SiteError, match=r"overwrites its input"):
        model_with(watch, model)


def model_with(watch: gh.Watch, model: nn.Module) -> None:
    with watch:
        model(states())


def watch_of(model: nn.Module) -> gh.Watch:
    return gh.watch(model, statistics=[gh.Updates()])


def test_when_every_and_pause() -> None:
    """Forwards that do not count keep nothing."""
    model = tiny_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    expected = stream(model)
    kept: list[int] = []
    with (
        torch.no_grad(),
        gh.watch(model, statistics=[gh.Updates(heads=True)], when="eval", every=2) as watch,
    ):
        model.h[1].register_forward_pre_hook(
            lambda *_: kept.append(sum(len(frame.running) for frame in watch._frames))
        )
        for batch in batches(model):
            model.train()
            model(**batch)
            model.eval()
            with watch.pause():
                model(**batch)
            model(**batch)
            watch.step()
            model(**batch)  # of a step that does not count
            watch.step()
    same_numbers(expected, watch.geometry())
    assert kept == [0, 0, 1, 0] * 3


class Wrapped(nn.Module):
    """As DistributedDataParallel wraps a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def test_a_wrapped_model() -> None:
    model = tiny_gpt2()
    wrapped = Wrapped(model)
    same_numbers(stream(model), stream(model, wrapped, wrapped))


def test_detaching_leaves_no_hook() -> None:
    model = tiny_gpt2()
    watch = gh.watch(model, statistics=[gh.Updates(heads=True)]).attach()
    assert model.h[0].attn.c_proj._forward_hooks
    watch.detach()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_block_that_is_called_by_itself() -> None:
    model, statistic = Stack(8), Collect()
    with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        with watch.tokens(contexts=torch.arange(2)):
            model.forward(states())
        assert watch._lone is None
    for (shown,) in statistic.found.values():
        assert torch.equal(shown.additions[-1].left, shown.left)
        assert len(shown.additions) == 2


def test_a_watch_that_comes_in_the_middle_of_a_forward() -> None:
    model = Stack(8)
    watch = gh.watch(model, sites="blocks.1", statistics=[gh.Updates()])
    model.blocks[1].register_forward_pre_hook(lambda *_: watch.attach() and None)
    with torch.no_grad(), pytest.raises(HookError, match=r"in the middle of a forward"):
        model(states())
    watch.detach()


def test_the_model_s_own_copy_is_not_watched() -> None:
    from copy import deepcopy

    model = tiny_gpt2()
    with torch.no_grad(), gh.watch(model, statistics=[gh.Updates()]) as watch:
        model(input_ids=ids(2, 5))
        deepcopy(model)(input_ids=ids(2, 5))
    assert int(watch.geometry()["h.0"].updates.mlp.norm.count) == 10


def test_a_description_that_does_not_say_what_is_added() -> None:
    def block(block: Block) -> BlockParts:
        none = Linear(torch.zeros(8, 8), None)
        return block.parts(MLP(block.name, block.module, None, none, None, torch.relu, none))

    class Silent(Stack):
        pass

    register(Family("Silent", block))
    try:
        with pytest.raises(SiteError, match=r"mlp of 'blocks.0' does not say which module's outp"):
            gh.watch(Silent(8), statistics=[gh.Updates()])
    finally:
        del KNOWN["Silent"]


def test_what_is_no_row_for_each_token() -> None:
    class Pools(Stack):
        pass

    def block(block: Block) -> BlockParts:
        none = Linear(torch.zeros(8, 8), None)
        down = none._replace(module=block.find("turn"))
        return block.parts(MLP(block.name, block.module, None, none, None, torch.relu, down))

    register(Family("Pools", block))
    model = Pools(8)
    for one in model.blocks:
        one.turn.forward = lambda hidden: hidden.mean(1, keepdim=True)
    try:
        with (
            pytest.raises(SiteError, match=r"shape \(2, 1, 8\), and the block one of shape \(2, 3"),
            torch.no_grad(),
            watch_of(model),
        ):
            model(states())
    finally:
        del KNOWN["Pools"]


def test_additions_need_a_block_s_input() -> None:
    class Blind(gh.Statistic):
        uses = ("additions",)

        def accumulators(self, site: Any) -> dict[str, Any]:
            return {}

        def update(self, state: Any, reading: Any) -> None: ...

        def compute(self, state: Any) -> dict[str, Any]:
            return {}

    with pytest.raises(SiteError, match=r"blind: uses 'additions', .* its taps must have 'in'"):
        gh.watch(Stack(8), statistics=[Blind()])
    Blind.uses = ("heads",)
    with pytest.raises(SiteError, match=r"blind: uses 'heads', which are of additions; it must"):
        gh.watch(Stack(8), statistics=[Blind()])
