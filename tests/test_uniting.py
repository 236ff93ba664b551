"""Parts with a common schema: their order, their streams, and a process that is alone."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geomhooks as gh
from geomhooks.errors import SchemaError, WatchError
from geomhooks.storage.messages import pack_message, unpack_message
from geomhooks.uniting import forward_order
from tests.conformance.cases import CASES
from tests.conformance.harness import POSITIONS, WIDTH, Subject, plant
from tests.models import Stack

NAMES = [f"h.{i}" for i in range(12)]


def measure(sites: Any = "blocks", seed: int = 1, model: Any = None, **options: Any) -> Any:
    model = model or Stack(WIDTH)
    with torch.no_grad(), gh.watch(model, sites=sites, positions=POSITIONS, **options) as watch:
        model(torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(seed)))
    return watch


@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.randoms())
def test_blocks_in_any_stages(owners: list[int], random: Any) -> None:
    chains = [[n for n, owner in zip(NAMES, owners, strict=True) if owner == r] for r in range(4)]
    random.shuffle(chains)
    assert forward_order(chains) == NAMES


def test_equal_parts_keep_their_order() -> None:
    assert forward_order([["z", "a", "h.2", "h.1"]] * 3) == ["z", "a", "h.2", "h.1"]


def test_parts_that_contradict_each_other_lose_nothing() -> None:
    for chains in permutations([["a", "b", "c"], ["c", "a"], ["d", "b"]]):
        assert sorted(forward_order(chains)) == ["a", "b", "c", "d"]


def test_a_process_that_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process group it is the only rank; where torchrun started more, it is an error."""
    watch = measure()
    together = watch.geometry(sync=True)
    assert together.scalars() == pytest.approx(watch.geometry().scalars(), rel=0, nan_ok=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        WatchError, match=r"2 processes were started .*init_process_group\(\) first"
    ):
        watch.geometry(sync=True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert watch.geometry(sync=True).sites == together.sites
    with pytest.raises(WatchError, match="no token has been counted"):
        gh.watch(Stack(WIDTH)).geometry(sync=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_message_holds_a_state(case: Any) -> None:
    subject = Subject(case, torch.float32, plant(seed=4))
    with subject.watch() as watch:
        subject.feed(watch, subject.render(*subject.contexts))
    state = watch._plan.snapshot()
    message = pack_message(state)
    restored = unpack_message(message, state.statistics)
    assert restored.describe() == {**state.describe(), "sites": restored.describe()["sites"]}
    for path, tensor in state.tensors().items():
        torch.testing.assert_close(
            restored.tensors()[path], tensor, rtol=0, atol=0, equal_nan=True, msg=path
        )
    assert case.name != "pos_ctx" or len(message) < state.nbytes


def test_parts_with_different_sites() -> None:
    """A site is over the parts that have it, and so are its contexts."""
    first, second = measure(["blocks.0", "blocks.1"], 1), measure(["blocks.1", "blocks.2"], 2)
    parts = [watch.geometry() for watch in (first, second)]
    with pytest.raises(SchemaError, match="merge: sites differs"):
        gh.merge(parts)
    whole = gh.merge(parts, unite=True)
    assert whole.sites == ["blocks.0", "blocks.1", "blocks.2"]
    assert whole.tokens.keys() == {"", "@blocks.1", "@blocks.2"}
    one = gh.merge([measure("blocks.1", seed).geometry() for seed in (1, 2)])
    for site, expected in (
        ("blocks.0", parts[0]["blocks.0"]),
        ("blocks.1", one["blocks.1"]),
        ("blocks.2", parts[1]["blocks.2"]),
    ):
        found = whole[site].scalars()
        assert found == pytest.approx(expected.scalars(), rel=1e-9, abs=1e-9, nan_ok=True)
    assert whole.uneven == {}
    # The parts are as they were.
    assert parts[0].sites == ["blocks.0", "blocks.1"]
    assert gh.merge(parts, unite=True).scalars() == pytest.approx(whole.scalars(), nan_ok=True)


def test_a_united_geometry_is_saved_and_united_again(tmp_path: Path) -> None:
    files = []
    for seed in (1, 2):
        parts = [measure(f"blocks.{i}", seed).geometry() for i in range(3)]
        files.append(tmp_path / f"{seed}.safetensors")
        gh.merge(parts, unite=True).save(files[-1])
    loaded = [gh.load(file) for file in files]
    expected = gh.merge([measure("blocks.2", seed).geometry() for seed in (1, 2)])
    for whole in (gh.merge(loaded), gh.merge(loaded, unite=True)):
        assert whole.sites == ["blocks.0", "blocks.1", "blocks.2"]
        found = whole["blocks.2"].scalars()
        assert found == pytest.approx(expected["blocks.2"].scalars(), rel=1e-9, nan_ok=True)


def test_united_geometries_of_other_parts() -> None:
    """A run in two stages and one in three are united as well; a site is over both."""
    stages = [["blocks.0", "blocks.1"], ["blocks.2"]], ["blocks.0", "blocks.1", "blocks.2"]
    runs = [
        gh.merge([measure(sites, seed).geometry() for sites in run], unite=True)
        for seed, run in enumerate(stages)
    ]
    whole = gh.merge(runs, unite=True)
    for site in ("blocks.0", "blocks.1", "blocks.2"):
        expected = gh.merge([measure(site, seed).geometry() for seed in (0, 1)])[site].scalars()
        found = whole[site].scalars()
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


class Free(gh.Statistic):
    """Has a parameter that no file can hold."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"total": gh.Sum(dtype=self.dtype)}

    def update(self, state: Any, reading: Any) -> None:
        state["total"].add(reading.taps["out"])

    def compute(self, state: Any) -> dict[str, Any]:
        return {"total": state["total"].value}


def test_parts_that_cannot_be_united() -> None:
    geometry = measure().geometry()
    with pytest.raises(SchemaError, match=r"shard \w+ is on part 0 and on part 1"):
        gh.merge([geometry, geometry], unite=True)
    other = measure(statistics=[gh.PosCtx(contexts=9)]).geometry()
    with pytest.raises(SchemaError, match=r"pos_ctx\.contexts differs: 4096 on part 0, 9 "):
        gh.merge([geometry, other], unite=True)
    with pytest.raises(SchemaError, match=r"model differs: .Stack unnamed \(72 parameters\)"):
        gh.merge([geometry, measure(model=Stack(WIDTH, depth=2)).geometry()], unite=True)
    free = measure(statistics=[Free()])
    with pytest.raises(SchemaError, match="parameters have to be JSON"):
        free.geometry(sync=True)


@torch.no_grad()
def test_a_text_that_was_measured_twice() -> None:
    """Pieces of one context at other positions go together; the same positions count twice."""
    model, states, ids = Stack(8), torch.randn(5, 6, 8), torch.arange(5)

    def measure(piece: slice, at_once: int = 5) -> gh.Geometry:
        with gh.watch(model, statistics=[gh.PosCtx(open_contexts=at_once)]) as watch:
            for row in range(5):
                told = {"contexts": ids[row : row + 1], "positions": torch.arange(6)[piece]}
                with watch.tokens(**told):
                    model(states[row : row + 1, piece])
        return watch.geometry()

    for at_once in (5, 1):  # contexts that wait for more, and those that do not
        whole, part = measure(slice(6), at_once), measure(slice(2, 4), at_once)
        with pytest.warns(UserWarning, match="^5 contexts have tokens at the same positions"):
            gh.merge([whole, part])
    merged = gh.merge([measure(slice(3)), measure(slice(3, 6))])["blocks.0"].pos_ctx
    assert int(merged.contexts) == 5
    assert bool(merged.exact)
