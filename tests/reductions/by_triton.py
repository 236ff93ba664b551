"""What the kernels of a GPU compute is what plain torch does; ``test_triton`` runs this file.

With TRITON_INTERPRET=1 in a process of its own, Triton runs them in Python on a CPU's tensors;
without, they run on the GPU that is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import geomhooks as gh
import geomhooks.reductions as reductions
from geomhooks.accumulators import moments, two_way, unit_vectors
from geomhooks.forwards import shortcut
from geomhooks.forwards.calls import Statement
from geomhooks.forwards.tokens import Tokens
from geomhooks.reductions import NAMES, Reduced, on_cuda, plain
from geomhooks.reductions.on_cuda import reduce_move_triton, reduce_triton
from tests import test_precision
from tests.conformance import test_laws
from tests.conformance.cases import CASES
from tests.conformance.harness import Subject, Together, plant
from tests.forwards.models import same_numbers
from tests.models import Stack
from tests.reductions.test_ways import CAPACITY, assert_same, close, resolve

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
LAYOUTS = ("columns", "positions", "contexts", "packed", "packed columns")

pytestmark = [
    # NumPy tells of divisions by zero, which a GPU does not.
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*TRITON_DEFAULT_FP_FUSION"),
]
on_a_cpu = pytest.mark.skipif(not INTERPRETED, reason="the model and its numbers are on a CPU")


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Everything goes by Triton, on a CPU as well; what it gives are the calls that did."""
    calls: list[int] = []

    def counted(*arguments: Any) -> Reduced:
        calls.append(1)
        return reduce_triton(*arguments)

    for module in (reductions, moments, shortcut, two_way, unit_vectors):
        monkeypatch.setattr(module, "usable", lambda *_: False)
    for module in (moments, two_way, unit_vectors):
        monkeypatch.setattr(module, "runs_on", lambda *_: True)
    monkeypatch.setattr(reductions, "kernels_run", lambda *_: True)
    monkeypatch.setattr(reductions, "reduce_triton", counted)
    yield calls
    assert calls


def stated(layout: str, batch: int, length: int, random: torch.Generator) -> Tokens:
    mask = torch.rand((batch, length), generator=random) > 0.3
    positions = torch.randint(0, CAPACITY, (batch, length), generator=random)
    contexts = torch.randint(0, 3, (batch, length), generator=random)
    statement = {
        "columns": Statement(mask),
        "positions": Statement(mask, positions),
        "contexts": Statement(mask, contexts=contexts[:, 0]),
        "packed": Statement(mask, positions, contexts),
        "packed columns": Statement(mask, contexts=contexts),
    }[layout]
    return resolve(batch, length, statement)


def there(value: Any) -> Any:
    """The same on the device."""
    if isinstance(value, (Tensor, Tokens)):
        return value.to(DEVICE)
    if isinstance(value, Reduced):
        moved = {name: there(getattr(value, name)) for name in Reduced.__annotations__}
        return Reduced(**moved)
    return value


def here(r: Reduced) -> Reduced:
    """The same on the CPU."""
    found = {name: getattr(r, name) for name in Reduced.__annotations__}
    for name, value in found.items():
        if isinstance(value, Tensor):
            found[name] = value.cpu()
        elif value is not None:
            found[name] = plain.Directions(*(part.cpu() for part in value))
    return Reduced(**found)


def run(way: Any, arguments: tuple[Any, ...], targeted: bool) -> tuple[Reduced, Tensor]:
    """What a way finds, and the state that it added sums by position to."""
    width = arguments[1].shape[-1]
    on = (lambda value: value) if way is plain.reduce_plain else there
    target = on(torch.ones((CAPACITY, width), dtype=torch.float64))
    found = way(*map(on, arguments), target if targeted else None)
    return here(found), target.cpu()


@settings(max_examples=24, deadline=None)
@given(
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 7, 20]),
    st.sampled_from([6, 8, 33]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(LAYOUTS),
    st.sampled_from([1, 2, 8]),
    st.integers(0, 2**31),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_what_plain_torch_gives(
    batch: int,
    length: int,
    width: int,
    dtype: torch.dtype,
    layout: str,
    processors: int,
    seed: int,
    poisoned: bool,
    targeted: bool,
    informed: bool,
) -> None:
    random = torch.Generator().manual_seed(seed)
    into = torch.randn((batch, length, width), generator=random).to(dtype)
    out = into + torch.randn(into.shape, generator=random).to(dtype)
    tokens = stated(layout, batch, length, random)
    out[~tokens.real] = float("nan")  # what a mask hides may be anything
    if poisoned:
        out[0, 0, 0] = torch.tensor([float("nan"), float("inf")])[seed % 2]
    shift = torch.randn(width, generator=random).to(dtype).double()
    known = None
    if informed:
        known = plain.reduce_plain(NAMES, into, None, tokens, shift)
    arguments = NAMES, out, into, tokens, shift, known
    expected, to = run(plain.reduce_plain, arguments, targeted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_cuda, "processors_of", lambda _: processors)
        found, target = run(reduce_triton, arguments, targeted)
    assert_same(found, expected, size=width)
    close(target, to, width, "state")


@pytest.mark.parametrize("needs", [{n} for n in sorted(NAMES)] + [set()], ids=str)
@pytest.mark.parametrize("layout", ["columns", "packed"])
def test_what_is_needed_alone(layout: str, needs: set[str]) -> None:
    random = torch.Generator().manual_seed(0)
    into, out = torch.randn((2, 2, 5, 7), generator=random)
    tokens = stated(layout, 2, 5, random)
    arguments = frozenset(needs), out, into, tokens, torch.zeros(7, dtype=torch.float64), None
    expected, _ = run(plain.reduce_plain, arguments, False)
    found, _ = run(reduce_triton, arguments, False)
    for name in Reduced.__annotations__:
        mine, theirs = getattr(found, name), getattr(expected, name)
        if mine is None or name in ("norm", "radius"):
            assert theirs is None or mine is not None, name
            setattr(found, name, theirs)  # they cost nothing, and may be given unasked
    assert_same(found, expected, size=7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5), (1, 18, 1), (5, 1, 3)])
def test_shapes_of_one(shape: tuple[int, int, int], layout: str) -> None:
    batch, length, width = shape
    random = torch.Generator().manual_seed(1)
    into, out = torch.randn((2, batch, length, width), generator=random)
    tokens = stated(layout, batch, length, random)
    arguments = NAMES, out, into, tokens, torch.randn(width, generator=random).double(), None
    expected, _ = run(plain.reduce_plain, arguments, False)
    found, _ = run(reduce_triton, arguments, False)
    if width < 3:  # of a single entry nothing is left when it is centred
        for name in ("directions", "radius", "radial", "tangential", "outward"):
            setattr(found, name, None)
            setattr(expected, name, None)
    assert_same(found, expected, size=max(length, width))


def test_any_strides() -> None:
    random = torch.Generator().manual_seed(2)
    whole = torch.randn((12, 5, 3, 2), generator=random)
    out, into = whole.permute(2, 1, 0, 3).unbind(-1)  # (3, 5, 12), entries 30 apart
    for o, i in ((out, into), (out[:, ::2], into[:, 1::2].expand(3, 2, 12)[:, [0, 1, 1]]),
                 (out[:1].expand(3, 5, 12), into)):  # fmt: skip
        tokens = stated("columns", *o.shape[:2], random)
        arguments = NAMES, o, i, tokens, torch.randn(12, generator=random).double(), None
        expected, _ = run(plain.reduce_plain, arguments, False)
        found, _ = run(reduce_triton, arguments, False)
        assert_same(found, expected, size=12)


@pytest.mark.parametrize("most", [1, 2, 128])
def test_rows_are_shared_out_among_programs(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program adds up no more of them than float32 can; their sums meet in one place."""
    monkeypatch.setattr(on_cuda, "MOST_ROWS", most)
    monkeypatch.setattr(on_cuda, "processors_of", lambda _: 0)
    on_cuda.tile_for.cache_clear()
    random = torch.Generator().manual_seed(3)
    out = torch.randn((5, 2, 4), generator=random) + 1
    tokens = stated("columns", 5, 2, random)
    assert on_cuda.tile_for(5, 2, 4, 0).rows == min(most, 5)
    arguments = frozenset({"position_sum"}), out, None, tokens, torch.zeros(4).double(), None
    expected = torch.where(tokens.real[..., None], out.double(), 0.0).sum(0)
    found, _ = run(reduce_triton, arguments, False)
    torch.testing.assert_close(found.position_sum, expected, rtol=1e-6, atol=1e-6)
    on_cuda.tile_for.cache_clear()


@pytest.mark.parametrize("near", [True, False], ids=["near the shift", "far from the shift"])
@pytest.mark.parametrize("layout", ["columns", "packed"])
def test_dimensions_with_a_mean_of_ten_thousand_deviations(layout: str, near: bool) -> None:
    """Every number to five digits of what float64 gives; so are those of tokens without them."""
    random = torch.Generator().manual_seed(4)
    mean = torch.zeros(64)
    mean[[3, 17, 40]] = torch.tensor([1e4, -1e4, 1e4])
    y = torch.randn((4, 24, 64), generator=random) + mean
    h = y + 0.1 * torch.randn(y.shape, generator=random)
    h[:, 5] -= mean
    tokens = stated(layout, 4, 24, random)
    shift = (mean + 0.3 if near else torch.full((64,), 0.3)).double()
    arguments = NAMES, h, y, tokens, shift, None
    found, _ = run(reduce_triton, arguments, False)
    wide = NAMES, h.double(), y.double(), tokens, shift, None
    expected, _ = run(plain.reduce_plain, wide, False)
    keep = expected.keep
    for name in ("squared_norm", "norm", "radius", "shifted_squared_norm"):
        mine, theirs = getattr(found, name)[keep], getattr(expected, name)[keep]
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0, msg=name)
    # What is small beside |h| is right to a few units in the last place of |h| or of the move.
    update = (h - y).norm(dim=-1)[keep].double()
    size = expected.norm[keep] if not near else 64**0.5 * torch.ones_like(update)
    assert float(((found.ones - expected.ones)[keep].abs() / size).max()) < 1e-5
    sizes = {"radial": update, "tangential": update, "outward": y.norm(dim=-1)[keep].double()}
    for name, of in sizes.items():
        gap = (getattr(found, name) - getattr(expected, name))[keep].abs() / of
        assert float(gap.max()) < 1e-5, name
    for name in ("position_sum", "context_sum"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-4 if near else 1e-1)
    mine, theirs = found.directions, expected.directions
    torch.testing.assert_close(mine.about, theirs.about, rtol=1e-12, atol=1e-12)
    assert torch.equal(mine.number, theirs.number)
    # A token a thousand times its own length away from the shift has as many digits less.
    lost = float((shift.norm() + h.double().norm(dim=-1)[keep].max()) / expected.radius[keep].min())
    torch.testing.assert_close(mine.offset, theirs.offset, rtol=1e-5, atol=1e-7 * lost)
    torch.testing.assert_close(mine.square, theirs.square, rtol=1e-5, atol=1e-9)


def test_what_is_known_of_the_input_is_not_computed_again() -> None:
    into, out = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    tokens = resolve(2, 3, Statement())
    square, ones = (torch.full((2, 3), number, dtype=torch.float64) for number in (7.0, 4.0))
    radius = (square - ones.square() / 4).sqrt()
    known = Reduced(tokens.real, squared_norm=square, ones=ones, norm=square.sqrt(), radius=radius)
    arguments = frozenset({"step"}), out, into, tokens, torch.zeros(4).double(), known
    found, _ = run(reduce_triton, arguments, False)
    torch.testing.assert_close(found.outward - found.radial, radius, rtol=1e-6, atol=1e-6)


def test_a_radial_move_has_no_angle() -> None:
    y = there(torch.randn(1, 5, 64))
    r = reduce_move_triton(1.5 * y, y)
    assert float(torch.atan2(r.tangential, r.outward).max()) < 1e-6


def test_states_of_zeros_have_no_direction() -> None:
    """Nor have those whose entries are all the same, once they are centred."""
    out = torch.stack([torch.zeros(3, 12), torch.full((3, 12), 0.1), torch.randn(3, 12)])
    tokens = resolve(3, 3, Statement())
    arguments = NAMES, out, None, tokens, torch.randn(12).double(), None
    found, _ = run(reduce_triton, arguments, False)
    assert found.directions.number.sum(1).tolist() == [3, 6]
    assert torch.isfinite(found.directions.offset).all()
    assert not found.norm[0].any()
    assert not found.radius[:2].any()


def test_float64_is_left_to_plain_torch() -> None:
    into, out = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    tokens = resolve(2, 3, Statement())
    arguments = NAMES, out, into, tokens, torch.randn(4).double(), None
    found, _ = run(reduce_triton, arguments, False)
    expected, _ = run(plain.reduce_plain, arguments, False)
    torch.testing.assert_close(found.tangential, expected.tangential, rtol=1e-12, atol=0)


@on_a_cpu
@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        (test_laws.one_batch, torch.float16),
        (test_laws.padded_with_nan, torch.bfloat16),
        (test_laws.packed_rows, torch.float32),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("anywhere", [False, True], ids=["from position 0", "from anywhere"])
def test_law(way: Any, anywhere: bool, dtype: torch.dtype, tmp_path: Path, forced: Any) -> None:
    case = Together((CASES["pos_ctx"], CASES["sphere"]))
    subject = Subject(case, dtype, plant(seed=1, number=5, longest=8, anywhere=anywhere))
    subject.check(way(subject, tmp_path))


@on_a_cpu
def test_digits(forced: Any) -> None:
    test_precision.test_steps_of_a_millionth_of_a_radian()
    test_precision.check_huge_means(C=24, T=8)


@on_a_cpu
@pytest.mark.parametrize("layout", ["columns", "holes", "packed"])
def test_contexts_that_are_closed(layout: str, request: pytest.FixtureRequest) -> None:
    """Of four contexts two stay open, and three are kept: all rows are used again."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 5))
    random = torch.Generator().manual_seed(6)
    batches = [torch.randn((4, 6, 5), generator=random) for _ in range(3)]
    mask = torch.ones(4, 6, dtype=torch.bool)
    if layout == "holes":
        mask[1:, 2] = mask[2:, 4] = mask[3, :] = False
    contexts = torch.arange(4)[:, None] * 2 + (torch.arange(6) > 2)

    def stream() -> Any:
        statistics = [gh.PosCtx(contexts=3, open_contexts=8, positions=6), gh.Sphere()]
        with torch.no_grad(), gh.watch(model, statistics=statistics) as watch:
            for index, states in enumerate(batches):
                told = {"contexts": 100 * index + contexts} if layout == "packed" else {}
                with watch.tokens(mask=mask, **told):
                    model(states)
        return watch.geometry()

    expected = stream()
    request.getfixturevalue("forced")
    same_numbers(expected, stream(), rtol=5e-5)


@on_a_cpu
def test_a_compiled_model_reaches_the_kernels(forced: list[int]) -> None:
    """Compiled code runs the hooks as one operator, and so whatever eager hooks run."""
    model = Stack(8)
    batches = [torch.randn(n, 5, 8, generator=torch.Generator().manual_seed(n)) for n in (2, 3)]
    geometries, numbers = [], []
    for run_it in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        forced.clear()
        with torch.no_grad(), gh.watch(run_it) as watch:
            for states in batches:
                run_it(states)
        numbers.append(len(forced))
        geometries.append(watch.geometry())
    assert numbers[0] == numbers[1] == len(batches) * len(geometries[0].sites)
    same_numbers(*geometries, rtol=1e-6)


@pytest.mark.skipif(INTERPRETED, reason="a GPU is at hand where this runs without interpreter")
def test_a_model_on_the_gpu() -> None:
    """The kernels are chosen by themselves, and give what the same model on the CPU shows."""
    model = Stack(24)
    states = torch.randn(6, 20, 24)
    geometries = []
    for device in ("cpu", "cuda"):
        model.to(device)
        with torch.no_grad(), gh.watch(model) as watch:
            model(states.to(device))
        geometries.append(watch.geometry())
    assert reductions.kernels_run(states.cuda())
    same_numbers(*geometries, rtol=1e-4)


@pytest.mark.skipif(INTERPRETED, reason="a CUDA graph needs a GPU")
def test_a_cuda_graph_holds_it() -> None:
    """Replays add what the states hold by then."""
    random = torch.Generator().manual_seed(5)
    tokens = there(stated("packed", 3, 20, random))
    held = torch.zeros((3, 20, 24), device=DEVICE)
    shift = torch.zeros(24, dtype=torch.float64, device=DEVICE)
    target = torch.zeros((CAPACITY, 24), dtype=torch.float64, device=DEVICE)
    arguments = NAMES, held, held, tokens, shift, None, target
    reduce_triton(*arguments)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = reduce_triton(*arguments)
    held.copy_(torch.randn(held.shape, generator=random))
    target.zero_()
    graph.replay()
    expected, _ = run(plain.reduce_plain, (NAMES, held.cpu(), held.cpu(), tokens.to("cpu"),
                       shift.cpu(), None), False)  # fmt: skip
    close(here(found).context_sum, expected.context_sum, 24, "context_sum")
    close(target.cpu(), expected.position_sum, 24, "position_sum")
