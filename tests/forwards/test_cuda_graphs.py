"""CUDA graphs, ``mode="reduce-overhead"``, as torch cuts them, replayed by a stand-in on the CPU.

What decides is torch's own: where a compiled program is cut into graphs, which inputs are at one
place, what is written to. The stand-in does what a replay does: it never runs the Python of a graph
again, its inputs are copied to where they were, its outputs lie where they lay, and whoever kept
those of an earlier forward finds other numbers there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor import compile_fx, cudagraph_utils, output_code, scheduler

import geomhooks as gh
from tests.forwards.models import bert, ids, llama, same_numbers, tiny_gpt2
from tests.models import Stack


@dataclass
class Graph:
    """One graph of a program: what is at one place, what it writes to, and how often it ran."""

    run: Callable[[list[Any]], Sequence[Any]]
    static: set[int]
    written: set[int]
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    replays: int = -2

    def __call__(self, given: list[Any]) -> Sequence[Any]:
        """Twice it is run, to warm up and to be recorded, as torch does; then it is replayed."""
        values = list(given)
        given.clear()
        self.replays += 1
        if self.replays < 0:
            return self.run(values)
        if not self.replays:
            self.inputs = [v.clone() if self.moves(i, v) else v for i, v in enumerate(values)]
        for index, value in enumerate(values):
            if self.moves(index, value):
                self.inputs[index].copy_(value)
            elif isinstance(value, Tensor):
                assert value.data_ptr() == self.inputs[index].data_ptr()
        found = self.run(list(self.inputs))
        if not self.replays:
            self.outputs = [v.clone() if isinstance(v, Tensor) else v for v in found]
        for kept, new in zip(self.outputs, found, strict=True):
            if isinstance(new, Tensor):
                kept.copy_(new)
        return list(self.outputs)

    def moves(self, index: int, value: Any) -> bool:
        return isinstance(value, Tensor) and index not in self.static

    def spoil(self) -> None:
        """What it gave out is other memory's from now on."""
        for kept in self.outputs:
            if isinstance(kept, Tensor) and kept.is_floating_point():
                kept.fill_(float("nan"))


class Graphs(list[Graph]):
    """All graphs that were made."""

    def next_forward(self) -> None:
        for graph in self:
            graph.spoil()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """The CPU passes for a GPU where torch decides on graphs, and what it makes is noted."""
    made = Graphs()

    def make(run: Any, static_input_idxs: Any = (), **told: Any) -> Graph:
        made.append(Graph(run, set(static_input_idxs), set(told["mutated_input_idxs"])))
        return made[-1]

    own = output_code.cudagraph_partition_post_compile

    def after_compiling(inputs: Any, program: Any, *told: Any) -> None:
        program.device_idxs.add(0)
        own(inputs, program, *told)

    monkeypatch.setattr(scheduler.BaseSchedulerNode, "is_gpu", lambda _: True)
    monkeypatch.setattr(cudagraph_utils, "check_multiple_devices_or_any_cpu_nodes", lambda _: None)
    monkeypatch.setattr(output_code, "cudagraph_partition_post_compile", after_compiling)
    monkeypatch.setattr(compile_fx, "cudagraphify", make)
    torch._dynamo.reset()
    counters.clear()
    with torch._inductor.config.patch(fx_graph_cache=False, graph_partition=True):
        yield made
    torch._dynamo.reset()


FAMILIES = {"gpt2": tiny_gpt2, "bert": bert, "llama": llama}


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_are_cut_at_each_site_and_replayed(family: str, graphs: Graphs) -> None:
    model: nn.Module = FAMILIES[family]()
    batches = [{"input_ids": ids(3, 8, seed)} for seed in range(6)]
    if family != "bert":
        batches = [{**batch, "use_cache": False} for batch in batches]
    with torch.no_grad(), gh.watch(model) as eager:
        for batch in batches:
            model(**batch)
    run = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad(), gh.watch(model) as watch:
        for batch in batches:
            run(**batch)
            graphs.next_forward()
    assert len(graphs) >= len(watch.sites) - 1
    assert {graph.replays for graph in graphs} == {len(batches) - 2}
    assert all(graph.written <= graph.static for graph in graphs)
    assert not counters["inductor"]["cudagraph_skips"]
    same_numbers(eager.geometry(), watch.geometry(), rtol=1e-4, atol=1e-5)


def test_training_replays_forwards_and_backwards(graphs: Graphs) -> None:
    model = Stack(16)
    states = torch.randn(5, 3, 8, 16)
    weight = model.blocks[0].turn.scale
    gradients = []
    with gh.watch(model) as eager:
        for batch in states:
            gradients += torch.autograd.grad(model(batch).square().sum(), weight)
    run = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    with gh.watch(model) as watch:
        for batch, expected in zip(states, gradients, strict=True):
            (found,) = torch.autograd.grad(run(batch).square().sum(), weight)
            torch.testing.assert_close(found, expected)
            del found
            graphs.next_forward()
    assert {graph.replays for graph in graphs} == {len(states) - 2}
    assert all(graph.written <= graph.static for graph in graphs)
    assert not counters["inductor"]["cudagraph_skips"]
    same_numbers(eager.geometry(), watch.geometry(), rtol=1e-4, atol=1e-5)
