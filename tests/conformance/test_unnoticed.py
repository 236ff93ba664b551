"""The model does not notice: nothing changes while it is watched, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import nn

import geomhooks as gh
from tests.conformance.cases import CASES, SECOND
from tests.conformance.harness import POSITIONS
from tests.models import tiny_gpt2

pytestmark = pytest.mark.filterwarnings("ignore:GroupMeans. no token had the label")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def known_geometry() -> gh.Geometry:
    """What ``Attention`` has to know of the model."""
    model = tiny_gpt2()
    with torch.no_grad(), watched(model, gh.PosCtx()) as watch:
        model(input_ids=ids())
    return watch.geometry()


STATISTICS = {name: case.statistic for name, case in CASES.items()} | {
    "attention": lambda: gh.Attention(known_geometry()),
    "factor_learning": lambda: gh.FactorLearning(20, batch=10, waiting=10, iterations=5),
    "factors": lambda: gh.Factors(torch.eye(16), 0.01, iterations=5),
    "factors of texts": lambda: gh.Factors(torch.eye(16), 0.01, iterations=5, one_per_text=True),
}


@pytest.fixture(params=["all", "second"])
def statistics(request: pytest.FixtureRequest) -> list[gh.Statistic]:
    """As many as can be in one watch."""
    second = request.param == "second"
    return [make() for name, make in STATISTICS.items() if (name in SECOND) == second]


def ids() -> torch.Tensor:
    return torch.arange(3 * POSITIONS).view(3, POSITIONS) % 50


def watched(model: nn.Module, *statistics: gh.Statistic) -> Any:
    return gh.watch(model, sites="blocks", statistics=statistics)


def belongings(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything that a module is made of: attributes, hooks, and which function its forward is."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            yield f"{name}.{attribute}", list(value.items()) if isinstance(value, dict) else value


def training_step(
    model: nn.Module, seed: int = 0
) -> tuple[torch.Tensor, list[torch.Tensor | None], torch.Tensor]:
    """Outputs, gradients, and the state of the random numbers afterwards; the model drops out."""
    model.zero_grad()
    torch.manual_seed(seed)
    out = model(input_ids=ids(), use_cache=False).last_hidden_state
    out.float().square().mean().backward()
    return out.detach(), [p.grad for p in model.parameters()], torch.get_rng_state()


@pytest.mark.parametrize(("name", "dtype"), zip(STATISTICS, cycle(DTYPES), strict=False), ids=str)
def test_outputs_gradients_and_random_numbers(name: str, dtype: torch.dtype) -> None:
    statistic = STATISTICS[name]()
    model = tiny_gpt2().to(dtype).train()
    out, gradients, random = training_step(model)
    with watched(model, statistic) as watch:
        watched_out, watched_gradients, watched_random = training_step(model)
    assert watch.geometry().sites
    assert torch.equal(out, watched_out)
    assert all(
        torch.equal(a, b)
        for a, b in zip(gradients, watched_gradients, strict=True)
        if a is not None
    )
    assert [g is None for g in gradients] == [g is None for g in watched_gradients]
    assert torch.equal(random, watched_random)


def test_entering_and_leaving_draw_no_random_numbers(statistics: list[gh.Statistic]) -> None:
    model = tiny_gpt2()
    before = torch.get_rng_state()
    with watched(model, *statistics) as watch:
        model(input_ids=ids())
    watch.geometry()
    assert torch.equal(before, torch.get_rng_state())


def test_state_dict_and_parameters(statistics: list[gh.Statistic]) -> None:
    model = tiny_gpt2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [
        name
        for name, _ in (*model.named_parameters(), *model.named_buffers(), *model.named_modules())
    ]
    with watched(model, *statistics):
        model(input_ids=ids())
        inside = model.state_dict()
        assert list(inside) == list(before)
        assert all(torch.equal(inside[name], value) for name, value in before.items())
        assert [
            n
            for n, _ in (*model.named_parameters(), *model.named_buffers(), *model.named_modules())
        ] == names


def test_nothing_is_left_behind(statistics: list[gh.Statistic]) -> None:
    model = tiny_gpt2()
    before = dict(belongings(model))
    with watched(model, *statistics):
        model(input_ids=ids())
    assert dict(belongings(model)).keys() == before.keys()
    changed = [
        name
        for name, value in belongings(model)
        if value is not before[name] and value != before[name]
    ]
    assert changed == []


def test_nothing_is_left_behind_by_a_forward_that_raises(statistics: list[gh.Statistic]) -> None:
    model = tiny_gpt2()
    before = dict(belongings(model))

    def break_down(*_: Any) -> None:
        raise ZeroDivisionError

    watch = watched(model, *statistics)

    def run() -> None:
        with watch:
            model(input_ids=ids())
            handles.append(model.h[2].register_forward_pre_hook(break_down))
            model(input_ids=ids())

    handles: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        run()
    handles[0].remove()
    assert [
        name
        for name, value in belongings(model)
        if value is not before[name] and value != before[name]
    ] == []
    with pytest.warns(UserWarning, match="h.2"):
        assert watch.geometry().sites, "what was counted before is still to be had"


def test_hooks_of_others_stay_and_fire(statistics: list[gh.Statistic]) -> None:
    model = tiny_gpt2()
    fired: list[str] = []
    handles = [model.h[1].register_forward_hook(lambda *_: fired.append("before"))]
    with watched(model, *statistics):
        handles.append(model.h[1].register_forward_hook(lambda *_: fired.append("inside")))
        handles.append(model.h[1].register_forward_pre_hook(lambda *_: fired.append("pre")))
        model(input_ids=ids())
    model(input_ids=ids())
    assert sorted(fired) == sorted(["before", "inside", "pre"] * 2)
    assert [len(model.h[1]._forward_hooks), len(model.h[1]._forward_pre_hooks)] == [2, 1]
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_watches_at_once(statistics: list[gh.Statistic], first_out: int) -> None:
    """Each removes its own hooks, in whichever order they go, and the other goes on counting."""
    model = tiny_gpt2()
    watches = [watched(model, *statistics) for _ in range(2)]
    for watch in watches:
        watch.attach()
    model(input_ids=ids())
    watches[first_out].detach()
    model(input_ids=ids())
    watches[1 - first_out].detach()
    counts = [watch.geometry().tokens[""]["real"] for watch in watches]
    assert counts[first_out] == ids().numel()
    assert counts[1 - first_out] == 2 * ids().numel()
    assert all(
        not module._forward_hooks and not module._forward_pre_hooks for module in model.modules()
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_results_hold_no_graph(statistics: list[gh.Statistic], mode: Any) -> None:
    model = tiny_gpt2()
    with mode(), watched(model, *statistics) as watch:
        model(input_ids=ids())

    def tensors(state: Any) -> Iterator[torch.Tensor]:
        if isinstance(state, torch.Tensor):
            yield state
        elif isinstance(state, dict):
            for value in state.values():
                yield from tensors(value)

    held = list(tensors(watch.state_dict()))
    assert held
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in held)
