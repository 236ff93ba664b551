"""The short way from a hook to the state is taken where it is meant to be, to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks import watcher
from geomhooks.errors import SiteError
from geomhooks.forwards.routing import Routing
from geomhooks.forwards.shortcut import Shortcut

WIDTH, LENGTH = 8, 12


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        return states + torch.tanh(self.linear(states))


class Model(nn.Module):
    """Three blocks behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        states = self.embedding(input_ids)
        for block in self.blocks:
            states = block(states)
        return states


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture(autouse=True)
def one_shard() -> Iterator[None]:
    """Contexts are sampled alike only where their running numbers are."""
    with mock.patch.object(watcher, "new_shard", return_value="0" * 32):
        yield


@contextmanager
def counted_ways() -> Iterator[list[bool]]:
    """Whether each read of a site went the short way."""
    ways: list[bool] = []
    read, went = Routing.read, Routing._went_short

    def reading(*arguments: Any, **named: Any) -> None:
        ways.append(False)
        read(*arguments, **named)

    def going(*arguments: Any, **named: Any) -> bool:
        ways[-1] = went(*arguments, **named)
        return ways[-1]

    with (
        mock.patch.object(Routing, "read", reading),
        mock.patch.object(Routing, "_went_short", going),
    ):
        yield ways


def ids(batch: int = 4) -> Tensor:
    return torch.randint(50, (batch, LENGTH))


def masked(batch: int = 4) -> dict[str, Tensor]:
    lengths = torch.arange(LENGTH - batch, LENGTH)
    return {
        "input_ids": ids(batch),
        "attention_mask": (torch.arange(LENGTH) < lengths[:, None]).long(),
    }


def packed() -> dict[str, Tensor]:
    return {"input_ids": ids(2), "position_ids": torch.tensor([[*range(5), *range(7)]] * 2)}


def holes() -> dict[str, Tensor]:
    return {"input_ids": ids(), "attention_mask": (torch.rand(4, LENGTH) > 0.3).long()}


KINDS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "plain": lambda: {"input_ids": ids()},
    "masked": masked,
    "packed": packed,
    "holes": holes,
    "one token": lambda: {"input_ids": ids(1)[:, :1]},
}


def state_of(model: Model, batches: list[dict[str, Tensor]], **options: Any) -> dict[str, Tensor]:
    watch = gh.watch(model, positions=16, **options)
    with watch, torch.no_grad():
        for batch in batches:
            model(**batch)
    tensors: dict[str, Tensor] = watch.state_dict()["tensors"]
    return tensors


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-6, atol=1e-6, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "chosen",
    [
        lambda: [gh.PosCtx(contexts=6, open_contexts=4), gh.Sphere()],
        lambda: [gh.PosCtx(contexts=6, open_contexts=4)],
        lambda: [gh.Sphere()],
    ],
    ids=["both", "pos_ctx", "sphere"],
)
def test_the_same_numbers_the_long_way(
    model: Model, kind: str, dtype: torch.dtype, chosen: Any
) -> None:
    model.to(dtype)
    batches = [KINDS[kind]() for _ in range(4)]
    with counted_ways() as ways:
        found = state_of(model, batches, statistics=chosen())
    assert ways == 4 * [False] + 12 * [True]  # the first forward finds out whether it is open
    with mock.patch.object(Shortcut, "of", return_value=None):
        assert_alike(found, state_of(model, batches, statistics=chosen()))


def test_equal_ids_in_a_batch_are_one_context(model: Model) -> None:
    batches = [ids() for _ in range(3)]
    keys = torch.tensor([5, 9, 5, 5])

    def run() -> dict[str, Tensor]:
        watch = gh.watch(model, positions=16)
        with watch, torch.no_grad():
            for batch in batches:
                with watch.tokens(contexts=keys):
                    model(batch)
        tensors: dict[str, Tensor] = watch.state_dict()["tensors"]
        return tensors

    with counted_ways() as ways:
        found = run()
    assert all(ways[4:])
    with mock.patch.object(Shortcut, "of", return_value=None):
        assert_alike(found, run())


@pytest.mark.parametrize("change", ["strided", "several steps", "runs twice"])
def test_what_is_unusual_goes_the_long_way(model: Model, change: str) -> None:
    batches: list[Any] = [ids() for _ in range(3)]
    chosen = [gh.PosCtx(open_contexts=2 if change == "several steps" else 64), gh.Sphere()]
    if change == "strided":
        model.blocks[1] = Strided()
    elif change == "runs twice":
        model.blocks[2] = model.blocks[1]
    with counted_ways() as ways:
        watch = gh.watch(model, statistics=chosen, sites="blocks.*", positions=16)
        with watch, torch.no_grad():
            for batch in batches:
                model(batch)
    assert sum(ways) == {"strided": 2, "several steps": 0, "runs twice": 4}[change]
    twice = pytest.warns(UserWarning, match="a module that runs several times")
    with twice if change == "runs twice" else nullcontext():
        geometry = watch.geometry(strict=False)
    for site in geometry.sites:
        states = 2 if change == "runs twice" and site == "blocks.1" else 1
        assert int(geometry[site].sphere.norm.count) == 3 * 4 * 12 * states


class Strided(nn.Module):
    """A block whose output is no contiguous tensor."""

    def forward(self, states: Tensor) -> Tensor:
        return (2 * states).transpose(1, 2).contiguous().transpose(1, 2)


def test_another_statistic_reads_what_it_needs_without_gradients(model: Model) -> None:
    """Reductions and taps are handed to it as on the long way."""

    class Probe(gh.Statistic):
        needs = ("squared_norm", "norm", "radius", "directions", "step")
        optional_taps = ("in",)

        def accumulators(self, site: Any) -> dict[str, Any]:
            return {"worst": gh.Max(()), "forwards": gh.Sum((), torch.int64)}

        def update(self, state: Any, reading: Any) -> None:
            r, h = reading.reductions, reading.taps["out"]
            assert not torch.is_grad_enabled()
            assert not h.requires_grad
            wrong = (r.norm - h.double().norm(dim=-1)).abs()
            if reading.site.has_input:
                assert not reading.taps["in"].requires_grad
                wrong = wrong + (r.squared_norm.sqrt() - r.norm).abs()
                assert r.radial is not None
            assert int(r.directions.number.sum()) == 2 * h[..., 0].numel()
            assert r.keep.all()
            with pytest.raises(AttributeError, match="is no reduction"):
                _ = r.nothing
            state["worst"].add(wrong)
            state["forwards"].add(torch.tensor(1))

        def compute(self, state: Any) -> dict[str, Any]:
            return {"worst": state["worst"].value, "forwards": state["forwards"].value}

    with counted_ways() as ways, gh.watch(model, statistics=[Probe(), gh.PosCtx()]) as watch:
        for _ in range(3):
            model(ids()).sum().backward()
    assert sum(ways) == 8
    for site in watch.geometry().sites:
        found = watch.geometry()[site].probe
        assert float(found.worst) < 1e-5
        assert int(found.forwards) == 3


def test_a_state_that_was_replaced_is_found_again(model: Model) -> None:
    """Resetting and loading write into the state, or put another in its place: both count."""
    batches = [ids() for _ in range(4)]
    watch = gh.watch(model, positions=16)
    with watch, torch.no_grad():
        for batch in batches[:2]:
            model(batch)
        kept = watch.state_dict()
        watch.reset()
        for batch in batches[:2]:
            model(batch)
        watch.load_state_dict(kept)
        for batch in batches[2:]:
            model(batch)
    with mock.patch.object(Shortcut, "of", return_value=None):
        expected = state_of(model, [{"input_ids": batch} for batch in batches])
    assert_alike(watch.state_dict()["tensors"], expected)


def test_an_empty_batch_counts_nothing(model: Model) -> None:
    """On neither way, so that sites and their stream agree on the number of forwards."""
    batches = [{"input_ids": batch} for batch in (ids(), ids(0), ids())]
    found = state_of(model, batches)
    assert_alike(found, state_of(model, batches[::2]))


def test_a_block_that_overwrites_its_input_is_refused(model: Model) -> None:
    class InPlace(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return states.mul_(2) if self.writes else states * 2

        writes = False

    model.blocks[1] = InPlace()
    with gh.watch(model, sites="blocks.*") as watch, torch.no_grad():
        model(ids())
        model.blocks[1].writes = True
        with pytest.raises(SiteError, match="overwrites its input in place"):
            model(ids())
    with pytest.warns(UserWarning, match="after an exception half way"):
        geometry = watch.geometry(strict=False)
    assert int(geometry["blocks.1"].sphere.norm.count) == 48
