"""Compiled models count what eager ones do, in one graph, whenever the watch comes and goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

import geomhooks as gh
from tests.forwards.models import bert, encoder, ids, llama, same_numbers, tiny_gpt2
from tests.models import Stack

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": tiny_gpt2,
    "bert": bert,
    "llama": llama,
    "torch encoder": encoder,
}
BATCHES = (3, 4, 5, 2, 6)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled by others, and no recompilation beyond the default limit goes unseen."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batches(model: nn.Module, padded: bool = True) -> Iterator[dict[str, Tensor]]:
    for seed, size in enumerate(BATCHES):
        mask = torch.ones(size, 8, dtype=torch.int64)
        mask[0, 6:] = 0
        if isinstance(model, nn.TransformerEncoder):
            states = torch.randn(size, 8, 16, generator=torch.Generator().manual_seed(seed))
            yield {"src": states, "src_key_padding_mask": mask == 0}
        else:
            told = {"attention_mask": mask} if padded else {}
            extra: dict[str, Any] = (
                {} if model.config.model_type == "bert" else {"use_cache": False}
            )
            yield {"input_ids": ids(size, 8, seed), **told, **extra}


def stream(model: nn.Module, run: nn.Module | None = None, **options: Any) -> Any:
    with torch.no_grad(), gh.watch(model, **options) as watch:
        for batch in batches(getattr(model, "_orig_mod", model)):
            (model if run is None else run)(**batch)
    return watch.geometry()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def compile_blocks(model: nn.Module, backend: str) -> None:
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1)
    for block in blocks:
        block.compile(backend=backend, fullgraph=True)


@pytest.mark.parametrize(
    ("family", "way", "backend"),
    [
        *((family, "model", "eager") for family in FAMILIES),
        ("bert", "in place", "aot_eager"),
        ("gpt2", "blocks", "aot_eager"),
        ("llama", "blocks", "eager"),
    ],
)
def test_a_compiled_model(family: str, way: str, backend: str) -> None:
    """Batches of five sizes: the second makes the size dynamic, the others find it compiled."""
    model = FAMILIES[family]()
    expected = stream(model)
    run = model
    if way == "model":
        run = torch.compile(model, backend=backend, fullgraph=True)
    elif way == "in place":
        model.compile(backend=backend, fullgraph=True)
    else:
        compile_blocks(model, backend)
    with torch.no_grad(), gh.watch(run) as watch:
        for number, batch in enumerate(batches(model)):
            run(**batch)
            if number == 1:
                warm = graphs()
    assert graphs() == warm > 0
    assert not counters["graph_break"]
    same_numbers(expected, watch.geometry(), rtol=1e-4)


@pytest.mark.parametrize("way", ["model", "blocks"])
def test_inductor_with_gradients(way: str) -> None:
    """The gradients are those of the bare compiled model, to the last bit."""
    model = Stack(16)
    batches = [torch.randn(n, 5, 16, generator=torch.Generator().manual_seed(n)) for n in (2, 4, 3)]
    with torch.no_grad(), gh.watch(model) as eager:
        for states in batches:
            model(states)
    compiled: Any = model
    if way == "model":
        compiled = torch.compile(model, fullgraph=True, dynamic=True)
    else:
        for states in batches:  # which dynamo looks at as it finds them
            states.requires_grad_()
        for block in model.blocks:
            block.compile(fullgraph=True, dynamic=True)
    watch = gh.watch(compiled)
    gradients = []
    for watched in (False, True):
        if watched:
            watch.attach()
        for states in batches:
            compiled(states).square().mean().backward()
        watch.detach()
        gradients.append([p.grad for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    same_numbers(eager.geometry(), watch.geometry(), rtol=1e-4)
    assert all(torch.equal(bare, seen) for bare, seen in zip(*gradients, strict=True))


def test_every_block_of_a_deep_model_runs_the_same_graph() -> None:
    """Blocks with hooks of their own would otherwise exceed the recompilation limit of eight."""
    model = tiny_gpt2(n_layer=12)
    compile_blocks(model, "eager")
    geometry = stream(model)
    assert {int(geometry[s].pos_ctx.count) for s in geometry.sites} == {
        sum(BATCHES) * 8 - 2 * len(BATCHES)
    }
    assert graphs() <= 6  # with and without a hook on the input, each for one size and for all


def test_many_epochs_with_a_watch_each_compile_once() -> None:
    model = tiny_gpt2()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    expected = stream(model)
    seen = []
    for _ in range(12):
        same_numbers(expected, stream(compiled, compiled))
        seen.append(graphs())
    assert seen[1:] == seen[:-1]


@pytest.mark.parametrize("way", ["model", "in place", "blocks", "a function around it"])
def test_a_model_that_was_compiled_and_run_before_entered_left_and_entered_again(way: str) -> None:
    model = tiny_gpt2(n_layer=2)
    expected = stream(model)
    run: Any = model
    if way == "model":
        run = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    elif way == "in place":
        model.compile(backend="eager", fullgraph=True, dynamic=True)
    elif way == "blocks":
        compile_blocks(model, "eager")
    else:
        run = torch.compile(
            lambda **batch: model(**batch), backend="eager", fullgraph=True, dynamic=True
        )
    torch._dynamo.config.skip_nnmodule_hook_guards = True  # as torch has it, until a watch comes
    watch = gh.watch(model)

    def run_all() -> None:
        with torch.no_grad():
            for batch in batches(model):
                run(**batch)

    run_all()
    with watch:
        run_all()
    same_numbers(expected, watch.geometry(), rtol=1e-4)
    run_all()
    same_numbers(expected, watch.geometry(), rtol=1e-4)
    watch.reset()
    with watch:
        run_all()
    same_numbers(expected, watch.geometry(), rtol=1e-4)
    same_numbers(expected, stream(model, run), rtol=1e-4)


def test_nothing_counts_once_detached_even_where_the_code_with_our_hooks_is_still_run() -> None:
    """The setting that torch has by itself keeps compiled code with hooks that are gone."""
    model = tiny_gpt2()
    hooks: list[Any] = []
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    watch = gh.watch(model).attach()
    batch = next(batches(model))
    with torch.no_grad():
        compiled(**batch)
        before = watch.state_dict()["tensors"]
        kept = [dict(m._forward_hooks) for m in model.modules()]
        watch.detach()
        for module, own in zip(model.modules(), kept, strict=True):
            for key, hook in own.items():  # put back behind the watch's back
                module._forward_hooks[key] = hook
                module._forward_hooks_with_kwargs[key] = True
                hooks.append(hook)
        compiled(**batch)
    after = watch.state_dict()["tensors"]
    assert hooks
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_detaching_gives_the_bare_graph_back() -> None:
    model = tiny_gpt2()
    seen: list[torch.fx.GraphModule] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(graph)
        return graph

    compiled = torch.compile(model, backend=note, fullgraph=True, dynamic=True)
    stream(model, compiled)
    assert any("geomhooks" in str(graph.graph) for graph in seen)
    seen.clear()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled(**next(batches(model)))
    assert seen
    assert not any("geomhooks" in str(graph.graph) for graph in seen)


def test_pausing_windows_and_statements_compile_nothing_anew() -> None:
    model = tiny_gpt2()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    batch = next(batches(model))
    with torch.no_grad(), gh.watch(compiled) as watch:
        compiled(**batch)
        warm = graphs()
        with watch.pause():
            compiled(**batch)
        watch.reset()
        with watch.tokens(contexts=torch.tensor([5, 5, 6])):
            compiled(**batch)
    assert graphs() == warm
    assert watch.geometry()["h.0"].pos_ctx.context_id.tolist() == [5, 6]


def test_what_a_compiled_model_was_told_by_a_function() -> None:
    """The function is traced along."""
    model = encoder()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)

    def first_three(module: nn.Module, arguments: Any) -> dict[str, Tensor]:
        shape = arguments["src"].shape[:2]
        return {"mask": torch.arange(shape[1]).expand(shape) < 3}

    geometry = stream(compiled, compiled, tokens=first_three)
    assert geometry["layers.1"].pos_ctx.position_count.tolist() == [sum(BATCHES)] * 3


def test_state_need_not_be_allocated_before_the_first_compiled_forward() -> None:
    """Modules without a config tell their width when they run, compiled or not."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    states = torch.randn(3, 5, 4)
    with torch.no_grad(), gh.watch(model) as eager:
        model(states)
    with torch.no_grad(), gh.watch(compiled) as watch:
        compiled(states)
    same_numbers(eager.geometry(), watch.geometry(), rtol=1e-4)


def test_what_is_wrong_in_a_measurement_is_said_from_within_compiled_code() -> None:
    model = tiny_gpt2()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    batch = next(batches(model))
    watch = gh.watch(compiled)
    with (
        pytest.raises(gh.errors.TokensError, match="mask"),
        watch,
        watch.tokens(mask=torch.ones(2, 2)),
    ):
        compiled(**batch)


def test_a_compiled_model_of_which_no_hook_fires_raises() -> None:
    model = tiny_gpt2()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(gh.errors.HookError, match=r"torch\._dynamo\.reset\(\)"), gh.watch(compiled):
        pass


def test_hooks_that_fired_in_an_earlier_entry_only_are_reported() -> None:
    """Counts of the first entry look healthy; those since the second are what matters."""
    model = tiny_gpt2()
    watch = gh.watch(model)
    with watch:
        model(input_ids=ids(2, 5))
    first, skipped, last = model.h
    model.h = nn.ModuleList([first, last])
    with pytest.raises(gh.errors.HookError, match=r"1 of 4 hooks never fired: h\.1\."), watch:
        model(input_ids=ids(2, 5))
    with pytest.raises(gh.errors.HookError, match=r"h\.1\."):
        watch.geometry()
    with pytest.warns(UserWarning, match="other numbers of forwards"):
        assert watch.geometry(strict=False)["h.0"].pos_ctx.count == 20
    assert len(skipped._forward_hooks) == 0


def test_generation_with_a_static_cache_and_a_compiled_forward() -> None:
    from transformers import CompileConfig

    model = llama().double()
    how = CompileConfig(backend="eager", mode=None, fullgraph=True)
    how._compile_all_devices = True
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4, [0] * 2 + [1] * 5])
    common = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 49}
    common["cache_implementation"] = "static"
    geometries = []
    for extra in ({}, {"compile_config": how}):
        with gh.watch(model) as watch:
            model.generate(ids(3, 7), **common, **extra)
        geometries.append(watch.geometry())
    assert graphs() > 0, "it was compiled"
    same_numbers(*geometries)
    watch = gh.watch(model)
    with pytest.raises(gh.errors.TokensError, match="num_beams=1"), watch:
        model.generate(ids(3, 7), **common, compile_config=how, num_beams=2)


def test_generation_by_hand_with_a_compiled_model_and_a_cache_that_grows() -> None:
    from transformers import DynamicCache

    model = llama(num_hidden_layers=2).double()
    compiled = torch.compile(model, backend="eager", dynamic=True)
    text = ids(3, 6)
    geometries = []
    for run in (model, compiled):
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), gh.watch(model) as watch:
            for start, end in ((0, 3), (3, 4), (4, 5), (5, 6)):
                run(text[:, start:end], cache=cache)
        geometries.append(watch.geometry())
    same_numbers(*geometries)


def test_threads_that_run_one_compiled_model_at_once_are_refused() -> None:
    """Each waits within its forward until the other has begun."""
    model = tiny_gpt2()
    compile_blocks(model, "eager")
    both = threading.Barrier(2, timeout=20)
    model.wte.register_forward_pre_hook(lambda *_: both.wait() and None)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with torch.no_grad():
                model(input_ids=ids(2, 5), use_cache=False)
        except (gh.errors.WatchError, threading.BrokenBarrierError) as error:
            errors.append(error)
            both.abort()

    with gh.watch(model) as watch:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [e for e in errors if isinstance(e, gh.errors.WatchError)]
        assert errors
        assert "DataParallel" in str(errors[0])
        model.wte._forward_pre_hooks.clear()
        watch.reset()
        run()
    assert int(watch.geometry()["h.0"].pos_ctx.count) == 10
