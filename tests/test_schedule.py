"""Which forwards count: `when` the model trains or not, and `every` how many-th step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import geomhooks as gh
from tests.models import Stack, tiny_gpt2, tiny_gpt2_lm

IDS = torch.arange(10).view(2, 5)


def batch(value: float) -> Tensor:
    """One context of two tokens that tells which forward it was."""
    return torch.full((1, 2, 4), value)


def watched(model: nn.Module, **options: Any) -> gh.Watch:
    return gh.watch(model, sites="blocks.0@in", statistics=[gh.Sphere()], positions=4, **options)


def seen(watch: gh.Watch) -> tuple[int, float]:
    """Number of tokens that counted, and the mean of the values that were fed in them."""
    norm = watch.geometry().stack("sphere.norm.mean")[0] / 2
    return watch.geometry().tokens[""]["real"], round(float(norm), 5)


@pytest.mark.parametrize(
    ("when", "expected"), [("train", (4, 2.0)), ("eval", (2, 5.0)), ("all", (6, 3.0))]
)
def test_when(when: Any, expected: tuple[int, float]) -> None:
    model = Stack(4)
    with watched(model, when=when) as watch:
        for value, training in ((1.0, True), (5.0, False), (3.0, True)):
            model.train(training)
            model(batch(value))
    assert seen(watch) == expected


def test_the_module_that_opens_the_stream_decides() -> None:
    """A frozen backbone in evaluation mode, inside a model that trains."""
    model = tiny_gpt2_lm().train()
    model.transformer.eval()
    evaluation = gh.watch(model, when="eval")
    with (
        evaluation,
        pytest.warns(UserWarning, match="no hook .* fired.*when='train'"),
        gh.watch(model, when="train") as train,
    ):
        model(input_ids=IDS)
    assert evaluation.geometry().tokens["transformer"]["real"] == 10
    with pytest.raises(gh.errors.WatchError, match="when='train'"):
        train.geometry()


def test_a_module_called_by_itself_decides_for_itself() -> None:
    model = Stack(4).train()
    model.blocks[0].eval()
    for when, number in (("eval", 2), ("train", 0)):
        watch = gh.watch(
            model, sites="blocks.0", statistics=[gh.Sphere()], positions=4, when=when
        ).attach()
        model.blocks[0](batch(1.0))
        watch.detach()
        assert watch._forwards() == {"blocks.0": number // 2}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every(every: int) -> None:
    model = Stack(4)
    with watched(model, every=every) as watch:
        for step in range(7):
            for _ in range(2):  # two forwards whose gradients are accumulated
                model(batch(float(step)))
            watch.step()
    counted = [float(step) for step in range(7) if step % every == 0]
    assert seen(watch) == (4 * len(counted), round(sum(counted) / len(counted), 5))


def test_steps_may_be_numbered() -> None:
    model = Stack(4)
    with watched(model, every=10) as watch:
        for step in (20, 21, 29, 30):
            watch.step(step)
            model(batch(float(step)))
    assert seen(watch) == (4, 25.0)


def test_pausing_and_steps_do_not_undo_each_other() -> None:
    model = Stack(4)
    with watched(model, every=2) as watch:
        watch.step(1)
        with watch.pause():
            model(batch(1.0))
        model(batch(2.0))  # still a step that does not count
        watch.pause()
        watch.step(2)
        model(batch(3.0))  # a step that does, but paused
        watch.resume()
        model(batch(4.0))
    assert seen(watch) == (2, 4.0)


def test_the_step_is_part_of_the_state() -> None:
    model = Stack(4)
    with watched(model, every=3) as watch:
        for step in range(5):
            watch.step(step)
            model(batch(float(step)))
        state = watch.state_dict()
    again = watched(model, every=3)
    again.load_state_dict(state)
    with again:
        for value in (4.5, 5.0, 6.0):
            model(batch(value))
            again.step()
    assert seen(again) == (6, 3.0)


def test_other_models_states_do_not_move_the_step() -> None:
    watch = watched(Stack(4), every=3)
    watch.step(1)
    with pytest.raises(gh.errors.SchemaError):
        watch.load_state_dict({"step": 0, "description": {}})
    assert watch.paused


def test_an_example_tells_the_widths_in_either_mode() -> None:
    model = Stack(4).eval()
    watch = watched(model, when="train", example=batch(1.0))
    assert watch.nbytes > 0
    with watch:
        model.train()(batch(2.0))
    assert seen(watch) == (2, 2.0)


@pytest.mark.parametrize("when", ["training", None, True, ["train"]])
def test_no_such_mode(when: Any) -> None:
    with pytest.raises(gh.errors.WatchError, match="'train', 'eval', 'all'"):
        watched(Stack(4), when=when)


@pytest.mark.parametrize("every", [0, -1, 2.0, True, None, "2"])
def test_no_such_interval(every: Any) -> None:
    with pytest.raises(gh.errors.WatchError, match=r"watch\(every=.*at least 1"):
        watched(Stack(4), every=every)


@pytest.mark.parametrize("number", [-1, 1.5, True, "3"])
def test_no_such_step(number: Any) -> None:
    watch = watched(Stack(4), every=2)
    with pytest.raises(gh.errors.WatchError, match="numbered 0, 1, 2"):
        watch.step(number)
    assert not watch.paused


def test_where_nothing_counted_the_reason_may_be_the_schedule() -> None:
    model = Stack(4).eval()
    watch = watched(model, when="train", every=5).attach()
    model(batch(1.0))
    watch.detach()
    with pytest.raises(gh.errors.WatchError, match=r"when='train'.*every=5"):
        watch.geometry()


class Count(gh.Statistic):
    """How many tokens there were."""

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"count": gh.Sum(dtype=torch.int64)}

    def update(self, state: Any, reading: Any) -> None:
        state["count"].add(reading.tokens.real)

    def compute(self, state: Any) -> dict[str, Any]:
        return {"count": state["count"].value}


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("statistic", [Count, lambda: gh.PosCtx(contexts=8)])
def test_compiled_not_counting_compiles_nothing_anew(statistic: Any) -> None:
    model = Stack(4)
    example = {"inputs_embeds": batch(1.0)}
    watch = gh.watch(model, statistics=[statistic()], positions=4, every=3, example=example)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    graphs = []
    with watch, torch.no_grad():
        for _ in range(3):
            compiled(inputs_embeds=batch(0.0))
        warm = counter.frame_count
        for step in range(13):
            watch.step(step)
            compiled(inputs_embeds=batch(float(step)))
            graphs.append(counter.frame_count - warm)
    assert watch.geometry().tokens[""]["real"] == 2 * (3 + 5)
    assert graphs == [0] * 13


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(("when", "counted"), [("train", 10), ("eval", 8), ("all", 18)])
def test_compiled_a_mode_is_a_graph(when: Any, counted: int) -> None:
    model = Stack(4)
    example = {"inputs_embeds": batch(1.0)}
    watch = gh.watch(model, statistics=[Count()], positions=4, when=when, example=example)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    graphs = []
    with watch, torch.no_grad():
        for training in (True, True, False, False, True, False, True, False, True):
            model.train(training)
            compiled(inputs_embeds=batch(1.0))
            graphs.append(counter.frame_count)
    assert int(watch.geometry()["blocks.1"].count.count) == counted
    assert graphs[3:] == [graphs[3]] * 6, "both modes are compiled, and nothing more"


def test_models_do_not_notice_what_does_not_count() -> None:
    model = tiny_gpt2().train()
    torch.manual_seed(0)
    bare = model(input_ids=IDS).last_hidden_state
    watch = gh.watch(model, when="eval").attach()
    torch.manual_seed(0)
    assert torch.equal(bare, model(input_ids=IDS).last_hidden_state)
    watch.detach()


def test_a_watch_left_at_the_beginning_of_a_window_has_fired() -> None:
    """No warning: what it counted was taken, and then forgotten, window by window."""
    model = Stack(4)
    with watched(model) as watch:
        for value in (1.0, 2.0):
            model(batch(value))
            assert seen(watch) == (2, value)
            watch.reset()
    with pytest.warns(UserWarning, match="no hook"), watch:
        pass


@torch.no_grad()
def test_every_so_many_steps_and_nobody_says_where_one_begins() -> None:
    model = Stack(8)
    watch = gh.watch(model, every=10).__enter__()
    for _ in range(3):
        model(torch.randn(2, 4, 8))
    with pytest.warns(UserWarning, match=r"every=10\) counted all of 3 forwards: watch.step"):
        watch.__exit__(None, None, None)


def test_a_watch_that_was_never_entered() -> None:
    watch = gh.watch(Stack(8))
    with pytest.raises(gh.errors.NothingCountedError, match="the hooks were never put on"):
        watch.geometry()
