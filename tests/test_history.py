"""Series of snapshots: curves, whole geometries, memory, and files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import geomhooks as gh
from tests.conformance.cases import LargestEntry
from tests.conformance.harness import flatten
from tests.models import Stack

NORM = "blocks.0@in/sphere/norm/mean"


def states(step: int) -> torch.Tensor:
    """(3, 5, 4), of norm about 2 (1 + step)."""
    noise = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(step))
    return (1 + step) * (1 + 0.1 * noise)


def geometries(steps: Any, statistics: Any = None) -> dict[int, gh.Geometry]:
    model = Stack(4)
    chosen = statistics or [gh.PosCtx(contexts=16), gh.Sphere()]
    found = {}
    with torch.no_grad(), gh.watch(model, statistics=chosen, positions=8) as watch:
        for step in steps:
            model(inputs_embeds=states(step))
            found[step] = watch.geometry()
            watch.reset()
    return found


def recorded(steps: Any, statistics: Any = None, **options: Any) -> gh.History:
    history = gh.History(**options)
    for step, geometry in geometries(steps, statistics).items():
        history.append(step, geometry)
    return history


def same(one: gh.Geometry, other: gh.Geometry) -> None:
    assert one.sites == other.sites
    for site in one.sites:
        found, expected = flatten(one[site]), flatten(other[site])
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)


def test_a_curve_is_the_scalar_of_each_step() -> None:
    steps = [0, 7, 10, 25]
    history = recorded(steps)
    found, values = history.curve(NORM)
    assert found.tolist() == steps == history.steps
    expected = [float(states(step).double().norm(dim=-1).mean()) for step in steps]
    torch.testing.assert_close(values, torch.tensor(expected).double(), rtol=1e-6, atol=0)
    each = geometries(steps)
    for step in steps:
        assert history.scalars(step).keys() == each[step].scalars().keys()
        assert all(
            history.scalars(step)[name] == value or math.isnan(value)
            for name, value in each[step].scalars().items()
        )


def test_whole_geometries_to_the_last_bit_before_and_after_a_file(tmp_path: Path) -> None:
    each = geometries([0, 3, 4])
    history = gh.History(snapshots="all", notes={"why": "a test"})
    for step, geometry in each.items():
        history.append(step, geometry)
    history.save(tmp_path / "a.safetensors")
    loaded = gh.History.load(tmp_path / "a.safetensors")
    assert [*tmp_path.iterdir()] == [tmp_path / "a.safetensors"]
    for found in (history, loaded):
        assert found.steps == found.kept == [0, 3, 4]
        assert found.notes == {"why": "a test"}
        for step, geometry in each.items():
            same(found[step], geometry)
    for name in history.names:
        torch.testing.assert_close(
            loaded.curve(name), history.curve(name), rtol=0, atol=0, equal_nan=True
        )
    merged = gh.merge([loaded[0], loaded[3], loaded[4]])
    assert merged.tokens[""]["real"] == 45, "each window is a shard of its own"


def test_a_history_goes_on_after_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    each = geometries(range(12))
    whole, part = gh.History(snapshots=4), gh.History(snapshots=4)
    for step, geometry in each.items():
        whole.append(step, geometry)
        part.append(step, geometry)
        if step in (2, 7):
            part.save(path)
            part = gh.History.load(path)
    assert part.steps == whole.steps == list(range(12))
    assert part.kept == whole.kept
    for name in whole.names:
        torch.testing.assert_close(part.curve(name), whole.curve(name), equal_nan=True)


@pytest.mark.parametrize("limit", [2, 3, 5, 8])
def test_so_many_whole_geometries_evenly_over_the_steps(limit: int) -> None:
    history = gh.History(snapshots=limit, only=NORM)
    for step, geometry in geometries(range(0, 70, 2)).items():
        history.append(step, geometry)
        assert 1 <= len(history.kept) <= limit
        assert history.kept[-1] == step, "the newest is there"
        assert history.kept[0] == 0
        gaps = {b - a for a, b in zip(history.kept[:-2], history.kept[1:-1], strict=True)}
        assert len(gaps) <= 1, "and the others are evenly spread"
    assert len(history.kept) >= limit // 2
    assert history.curve(NORM)[0].tolist() == list(range(0, 70, 2)), "of scalars none is lost"
    assert history.nbytes < limit * 40_000


def test_scalars_only_are_small_and_say_so() -> None:
    history = recorded([0, 5])
    assert history.kept == []
    assert history.nbytes == 2 * 9 * len(history.names)
    with pytest.raises(gh.errors.HistoryError, match=r"of step 5 only the scalars.*of none"):
        history[5]
    with pytest.raises(gh.errors.HistoryError, match=r"no step 3; there are 0, 5"):
        history[3]
    kept = recorded(range(4), snapshots=2)
    with pytest.raises(gh.errors.HistoryError, match=r"kept of steps 0, 3, by .*snapshots=2"):
        kept[1]


def test_only_some_scalars() -> None:
    history = recorded([0, 1], only=["*/pos_ctx/shares/*", "blocks.1/sphere/anisotropy"])
    sites = ["blocks.0@in", "blocks.0", "blocks.1", "blocks.2"]
    shares = [f"{site}/pos_ctx/shares/{part}" for site in sites for part in ("pos", "ctx", "resid")]
    assert sorted(history.names) == sorted([*shares, "blocks.1/sphere/anisotropy"])
    with pytest.raises(
        gh.errors.HistoryError, match=r"did you mean .*blocks\.1/pos_ctx/shares/pos"
    ):
        history.curve("blocks.1/pos_ctx/share/pos")


def test_scalars_that_come_and_go_and_nan_that_stays(tmp_path: Path) -> None:
    """A scalar that a step does not have is left out of its curve; one that is NaN is not."""
    history = recorded([0])
    model = Stack(4)
    with gh.watch(model, statistics=[LargestEntry(), gh.Sphere()], positions=8) as watch:
        model(inputs_embeds=torch.full((1, 1, 4), 2.0))
    history.append(1, watch.geometry())
    history.save(tmp_path / "a.safetensors")
    for found in (history, gh.History.load(tmp_path / "a.safetensors")):
        assert found.curve("blocks.0/pos_ctx/shares/pos")[0].tolist() == [0]
        steps, values = found.curve("blocks.0@in/sphere/mean_cosine")
        assert steps.tolist() == [0, 1]
        assert values.isnan().tolist() == [False, True]
        assert "blocks.0/pos_ctx/shares/pos" not in found.scalars(1)


def test_frame() -> None:
    pytest.importorskip("pandas", reason="pip install 'geomhooks[frame]'")
    history = recorded([0, 4], only=["*/norm/mean"])
    frame = history.frame()
    assert frame.index.tolist() == [0, 4]
    assert frame.index.name == "step"
    assert frame[NORM].tolist() == history.curve(NORM)[1].tolist()
    assert gh.History().frame().empty


def test_a_statistic_of_ones_own(tmp_path: Path) -> None:
    each = geometries([0, 1], [LargestEntry()])
    history = gh.History(snapshots="all")
    for step, geometry in each.items():
        history.append(step, geometry)
    history.save(tmp_path / "a.safetensors")
    loaded = gh.History.load(tmp_path / "a.safetensors", statistics=[LargestEntry()])
    same(loaded[1], each[1])
    with pytest.raises(gh.errors.SchemaError, match="largest_entry"):
        gh.History.load(tmp_path / "a.safetensors")[1]


def test_cut() -> None:
    history = recorded(range(6), snapshots="all")
    history.cut(3)
    assert history.steps == history.kept == [0, 1, 2, 3]
    history.append(4, geometries([4])[4])
    assert history.curve(NORM)[0].tolist() == [0, 1, 2, 3, 4]
    history.cut(-1)
    assert len(history) == 0
    assert history.curve(NORM)[0].tolist() == []


def test_steps_ascend() -> None:
    history = recorded([0, 4], snapshots="all")
    geometry = geometries([0])[0]
    before = history.scalars(4)
    for step, words in (
        (4, r"last step is 4.*cut\(3\)"),
        (2, "last step is 4"),
        (-1, "integers from 0"),
        (1.5, "integers from 0"),
        (True, "integers from 0"),
    ):
        with pytest.raises(gh.errors.HistoryError, match=words):
            history.append(step, geometry)  # type: ignore[arg-type]
    with pytest.raises(gh.errors.HistoryError, match=r"watch\.geometry\(\).*found a dict"):
        history.append(5, {})  # type: ignore[arg-type]
    assert history.steps == history.kept == [0, 4]
    assert {k: v for k, v in history.scalars(4).items() if v == v} == {
        k: v for k, v in before.items() if v == v
    }


@pytest.mark.parametrize("snapshots", [1, -1, -3, 2.0, True, None, "none"])
def test_no_such_number_of_snapshots(snapshots: Any) -> None:
    with pytest.raises(gh.errors.HistoryError, match=r'at least 2, or "all"'):
        gh.History(snapshots=snapshots)


@pytest.mark.parametrize("only", [(), [3]])
def test_no_such_selection(only: Any) -> None:
    with pytest.raises(gh.errors.HistoryError, match="globs"):
        gh.History(only=only)


# Files


def test_each_kind_of_file_names_the_right_loader(tmp_path: Path) -> None:
    recorded([0]).save(tmp_path / "history.safetensors")
    geometries([0])[0].save(tmp_path / "geometry.safetensors")
    with pytest.raises(gh.errors.FileFormatError, match=r"holds a history.*gh\.History\.load"):
        gh.load(tmp_path / "history.safetensors")
    with pytest.raises(gh.errors.FileFormatError, match=r"holds a geometry.*gh\.load\(path\)"):
        gh.History.load(tmp_path / "geometry.safetensors")


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    recorded([0, 1], snapshots=2).save(path)
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(gh.errors.FileFormatError, match=r"a\.safetensors"):
            gh.History.load(path)


def test_a_foreign_file_and_none(tmp_path: Path) -> None:
    text, tensors = tmp_path / "a.txt", tmp_path / "b.safetensors"
    text.write_text("no history at all\n" * 100)
    save_file({"weight": torch.zeros(3)}, tensors)
    for path in (text, tensors):
        with pytest.raises(gh.errors.FileFormatError, match=path.name):
            gh.History.load(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        gh.History.load(tmp_path / "missing.safetensors")


def rewritten(path: Path, change: Any) -> None:
    """The same file with its document and tensors changed."""
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["geomhooks"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del document["checksum"]
    change(document, tensors)
    save_file(tensors, path, metadata={"geomhooks": json.dumps(document)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d, t: d.update(schema=2), "schema 2.*Upgrade"),
        (lambda d, t: d.update(kind="atlas"), "holds a atlas.*Upgrade"),
        (lambda d, t: d.pop("names"), "names"),
        (lambda d, t: d["names"].pop(), r"'values'.* are needed, found torch.float64 \(2, "),
        (lambda d, t: t.pop("steps"), "steps"),
        (lambda d, t: t.update(steps=t["steps"].flip(0).contiguous()), "ascend"),
        (lambda d, t: d["descriptions"].update({"99": {}}), "there is no step '99'"),
        (lambda d, t: d["descriptions"].clear(), "belongs to no step"),
        (lambda d, t: d.update(snapshots=-5), "at least 2"),
    ],
    ids=[
        "schema", "kind", "no names", "shape", "no steps", "order", "stray", "undescribed", "limit",
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_together(tmp_path: Path, change: Any, words: str) -> None:
    path = tmp_path / "a.safetensors"
    recorded([0, 1], snapshots=2).save(path)
    rewritten(path, change)
    with pytest.raises(gh.errors.FileFormatError, match=rf"a\.safetensors.*{words}"):
        gh.History.load(path)


def test_writing_where_nothing_can_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    history = recorded([0])
    history.save(path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="no-such-folder"):
        history.save(tmp_path / "no-such-folder" / "a.safetensors")
    history.notes = {"why": object()}
    with pytest.raises(gh.errors.SchemaError, match="JSON"):
        history.save(path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_an_empty_history_says_so() -> None:
    with pytest.raises(gh.errors.HistoryError, match=r"no scalar 'a': the history is empty; add"):
        gh.History().curve("a")
