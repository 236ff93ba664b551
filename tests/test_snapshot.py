"""Geometries as files: what comes back, what is refused, and what the refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import geomhooks as gh
from tests.conformance.harness import flatten
from tests.models import Stack, tiny_gpt2

STATES = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def measure(model: nn.Module | None = None, sites: Any = "blocks", **options: Any) -> Any:
    model = model or Stack(4)
    statistics = [gh.PosCtx(contexts=16, positions=8, **options), gh.Sphere(positions=8)]
    with torch.no_grad(), gh.watch(model, sites=sites, statistics=statistics) as watch:
        model(inputs_embeds=STATES)
    return watch.geometry()


def test_a_file_gives_back_every_number_to_the_last_bit(tmp_path: Path) -> None:
    geometry = measure()
    geometry.save(tmp_path / "a.safetensors", notes={"why": "a test"})
    loaded = gh.load(tmp_path / "a.safetensors")
    assert loaded.sites == geometry.sites
    for site in geometry.sites:
        found, expected = flatten(loaded[site]), flatten(geometry[site])
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"], (
        "nothing else is left in the folder"
    )


class Pair(nn.Module):
    """Two stacks that are called each with its own tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stack(4, seed=1), Stack(4, seed=2)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.decoder(inputs_embeds=self.encoder(inputs_embeds=states)[:, :3])
        return found


def test_a_file_of_streams_that_have_different_statistics(tmp_path: Path) -> None:
    """What the sites of one stream share, those of another need not have."""
    wish = {"encoder.blocks.*": [gh.PosCtx(positions=8)], "decoder.blocks.*": [gh.Covariance()]}
    found = []
    for number, part in enumerate(STATES):
        with torch.no_grad(), gh.watch(Pair(), statistics=wish) as watch:
            watch._plan.root(part[None])
        watch.geometry().save(tmp_path / f"{number}.safetensors")
        found.append(gh.load(tmp_path / f"{number}.safetensors"))
        assert found[-1].scalars() == pytest.approx(watch.geometry().scalars(), nan_ok=True, rel=0)
    with torch.no_grad(), gh.watch(Pair(), statistics=wish) as watch:
        watch._plan.root(STATES)
    whole = watch.geometry().scalars()
    for unite in (False, True):
        merged = gh.merge(found, unite=unite).scalars()
        forwards = [name for name in whole if name.endswith("/forwards")]
        assert {n: v for n, v in merged.items() if n not in forwards} == pytest.approx(
            {n: v for n, v in whole.items() if n not in forwards}, nan_ok=True, rel=1e-5, abs=1e-7
        )


def test_metadata_can_be_read_without_the_library(tmp_path: Path) -> None:
    from safetensors import safe_open

    measure().save(tmp_path / "a.safetensors", notes={"why": "a test"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        text = " ".join(file.metadata().values())
    for word in ("Stack", "pos_ctx", "contexts", "a test", torch.__version__):
        assert word in text


def test_the_same_shard_twice(tmp_path: Path) -> None:
    geometry = measure()
    geometry.save(tmp_path / "a.safetensors")
    again = gh.load(tmp_path / "a.safetensors")
    for pair in ([geometry, geometry], [geometry, again], [gh.merge([geometry, measure()]), again]):
        with pytest.raises(gh.errors.SchemaError, match="twice"):
            gh.merge(pair)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (lambda: measure(second_moment=True), "second_moment"),
        (lambda: measure(sites="blocks.0"), "sites"),
        (lambda: measure(Stack(4, depth=2)), "model"),
    ],
    ids=["parameters", "sites", "depth"],
)
def test_what_does_not_fit_together_names_the_field(other: Any, field: str) -> None:
    with pytest.raises(gh.errors.SchemaError, match=field):
        gh.merge([measure(), other()])


def test_another_model() -> None:
    class Other(Stack):
        pass

    with pytest.raises(gh.errors.SchemaError, match=r"model.*Stack.*Other"):
        gh.merge([measure(), measure(Other(4))])


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    measure().save(path)
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(gh.errors.FileFormatError, match=r"a\.safetensors"):
            gh.load(path)


def test_a_foreign_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    text, tensors = tmp_path / "a.txt", tmp_path / "b.safetensors"
    text.write_text("no geometry at all\n" * 100)
    save_file({"weight": torch.zeros(3)}, tensors)
    for path in (text, tensors):
        with pytest.raises(gh.errors.FileFormatError, match=path.name):
            gh.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        gh.load(tmp_path / "missing.safetensors")


def test_writing_where_nothing_can_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    measure().save(path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="no-such-folder"):
        measure().save(tmp_path / "no-such-folder" / "a.safetensors")
    assert path.read_bytes() == before


def test_a_state_of_another_watch_changes_nothing() -> None:
    model = Stack(4)
    with gh.watch(model, sites="blocks") as watch:
        model(inputs_embeds=STATES)
        before = {
            name: value.clone() for name, value in flatten(watch.geometry()["blocks.0"]).items()
        }
        gpt2 = tiny_gpt2()
        with gh.watch(gpt2, sites="blocks") as other:
            gpt2(input_ids=torch.ones(1, 3, dtype=torch.int64))
        with pytest.raises(gh.errors.SchemaError):
            watch.load_state_dict(other.state_dict())
    for name, value in flatten(watch.geometry()["blocks.0"]).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_stack_scalars_and_unknown_names() -> None:
    geometry = measure()
    assert geometry.stack("pos_ctx.mean").shape == (4, 4)
    assert geometry.stack("sphere.norm.mean").shape == (4,)
    assert geometry.scalars()["blocks.1/sphere/radius/mean"] == float(
        geometry["blocks.1"].sphere.radius.mean
    )
    with pytest.raises(gh.errors.SiteError, match=r"blocks\.7"):
        geometry["blocks.7"]
    with pytest.raises(AttributeError, match="there are"):
        _ = geometry["blocks.1"].pos_ctx.no_such_result


def test_a_path_that_is_not_there_is_corrected() -> None:
    model = nn.Sequential(nn.Identity())
    with torch.no_grad(), gh.watch(model, sites="0") as watch:
        model(torch.randn(3, 4, 2))
    geometry = watch.geometry()
    with pytest.raises(gh.errors.SiteError, match=r"did you mean pos_ctx\.shares\.pos"):
        geometry.stack("pos_ctx.share.pos")
    with pytest.raises(gh.errors.SiteError, match="the last has pos_ctx") as caught:
        geometry.stack("nope")
    assert len(str(caught.value)) < 1000
    with pytest.raises(OSError, match=r"'/proc/x\.safetensors'$"):
        geometry.save("/proc/x.safetensors")
