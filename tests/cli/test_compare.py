"""``geomhooks compare``: what it prints is what the functions find in the files."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import geomhooks as gh
from geomhooks.comparing.options import choose_scalars
from geomhooks.functional import compare
from tests.cli.test_errors import fails
from tests.report.geometries import everything

WIDTH, LENGTH, CONTEXTS = 12, 9, 30
SITE = "1"


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed: int, noise: float = 0.0, width: int = WIDTH) -> torch.nn.Module:
    """Two linear layers; runs of one seed differ in a little noise."""
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, width), torch.nn.Linear(width, width))
    for number, weight in enumerate(model.parameters()):
        own = torch.randn(1, generator=torch.Generator().manual_seed(int(noise * 1000)))
        weight.data = normal(10 * seed + number, *weight.shape)
        weight.data += noise * normal(int(own * 1e6) + number, *weight.shape)
    return model


def states(step: int = 0) -> torch.Tensor:
    """(C, T, d) with parts of the position and of the context."""
    parts = normal(1, CONTEXTS, 1, WIDTH), normal(2, 1, LENGTH, WIDTH)
    return parts[0] + parts[1] * (1 + 0.1 * step) + 0.4 * normal(3 + step, CONTEXTS, LENGTH, WIDTH)


def geometry(
    model: torch.nn.Module, ids: torch.Tensor | None = None, sites: str = "blocks"
) -> gh.Geometry:
    """Of the states of the contexts with these ids, in their order."""
    order = torch.arange(CONTEXTS) if ids is None else ids
    watch = gh.watch(model, sites, statistics=[gh.PosCtx(positions=LENGTH), gh.Sphere()])
    with torch.no_grad(), watch, watch.tokens(contexts=order):
        model(states()[order % CONTEXTS])
    return watch.geometry()


def history(seed: int, steps: range, noise: float) -> gh.History:
    found = gh.History(
        only="*/shares/*", notes={"losses": {str(step): 1 / (1 + step) for step in steps}}
    )
    model = network(seed)
    with torch.no_grad(), gh.watch(model, statistics=[gh.PosCtx(positions=LENGTH)]) as watch:
        for step in steps:
            for number, weight in enumerate(model.parameters()):
                common = normal(100 * seed + step + 7 * number, *weight.shape)
                own = normal(int(noise * 1e5) + step + number, *weight.shape)
                weight.data += 0.3 * common + noise * own
            model(states())
            found.append(step, watch.geometry())
            watch.reset()
    return found


RUNS = {"a1": (1, 0.01), "a2": (1, 0.02), "b1": (2, 0.03), "b2": (2, 0.04)}  # seed, noise


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four geometries and four histories: two runs each of two models."""
    folder = tmp_path_factory.mktemp("measured")
    for name, (seed, noise) in RUNS.items():
        geometry(network(seed, noise)).save(folder / f"{name}.safetensors")
        steps = range(0, 24, 2) if name != "b2" else range(0, 28, 2)
        history(seed, steps, noise).save(folder / f"history-{name}.safetensors")
    return folder


def put(names: list[str], measured: Path) -> list[str]:
    for name in names:
        shutil.copy(measured / name, name)
    return names


@pytest.fixture
def files(cli: Any, measured: Path) -> list[str]:
    """The geometries, in the folder of ``cli``."""
    return put([f"{name}.safetensors" for name in RUNS], measured)


@pytest.fixture
def histories(cli: Any, measured: Path) -> list[str]:
    """The histories, in the folder of ``cli``."""
    return put([f"history-{name}.safetensors" for name in RUNS], measured)


def reported(cli: Any, *arguments: object) -> dict[str, Any]:
    result = cli("compare", *arguments, "--json")
    assert (result.code, result.err) == (0, "")
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_two_geometries(cli: Any, files: list[str]) -> None:
    report = reported(cli, files[0], files[2], "--dimensions", 2)
    (pair,) = report["pairs"]
    assert pair["files"] == [files[0], files[2]]
    one, other = (gh.load(file)[SITE] for file in pair["files"])
    site = pair["sites"][SITE]
    share = site["scalars"]["pos_ctx/shares/pos"]
    assert share["difference"] == float(other.pos_ctx.shares.pos - one.pos_ctx.shares.pos)
    assert share["standard_error"] is None
    radius = site["scalars"]["sphere/radius/mean"]
    errors = [float(side.sphere.radius.variance / (CONTEXTS * LENGTH - 1)) for side in (one, other)]
    assert radius["standard_error"] == pytest.approx(math.sqrt(sum(errors)))
    assert radius["second"] - radius["first"] == radius["difference"]
    for side in ("positions", "directions"):
        found = compare.pos_subspace_angles(
            one.pos_ctx.pos, other.pos_ctx.pos, 2, side=side, permutations=99
        )
        assert site["pos"][side]["overlap"] == found.overlap
        assert site["pos"][side]["p_value"] == found.p_value
        assert site["pos"][side]["angles"] == found.angles.tolist()
    assert (site["ctx"]["shared"], site["ctx"]["compared"]) == (CONTEXTS, CONTEXTS)
    alike = compare.cka(one.pos_ctx.ctx, other.pos_ctx.ctx, permutations=0)
    assert site["ctx"]["cka"]["value"] == pytest.approx(alike.value)
    assert site["ctx"]["cka"]["low"] < alike.value < site["ctx"]["cka"]["high"]
    left = compare.procrustes_distance(one.pos_ctx.ctx, other.pos_ctx.ctx, permutations=0)
    assert site["ctx"]["procrustes"]["value"] == pytest.approx(left.value)

    shown = cli("compare", files[0], files[2], "--dimensions", 2)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[-1].startswith("figures and what stands out: comparison.html (")
    assert 'data-name="spirals"' in Path("comparison.html").read_text()
    Path("comparison.html").write_text("notes of mine")
    again = cli("compare", files[0], files[2], "--permutations", 0)
    assert (again.code, Path("comparison.html").read_text()) == (0, "notes of mine")
    assert "no report was written: comparison.html is there" in again.err
    assert "name another by --out" in again.err
    cka = site["ctx"]["cka"]
    for text in (
        f"{files[2]} less {files[0]}",
        f"{cka['value']:.3f} ({cka['low']:.3f} to {cka['high']:.3f})",
        f"{share['difference']:+.3g}",
        f"± {radius['standard_error']:.1g}",
    ):
        assert text in shown.out


def test_contexts_are_matched_by_id(cli: Any, files: list[str]) -> None:
    """Those of the second file stand in another order and are numbered as in the first."""
    geometry(network(1, 0.01), normal(0, CONTEXTS).argsort()).save("mixed.safetensors")
    site = reported(cli, files[0], "mixed.safetensors")["pairs"][0]["sites"][SITE]
    assert site["ctx"]["cka"]["value"] == pytest.approx(1)
    assert site["ctx"]["procrustes"]["high"] == pytest.approx(0, abs=1e-9)
    some = reported(cli, files[0], "mixed.safetensors", "--contexts", 12, "--permutations", 0)
    found = some["pairs"][0]["sites"][SITE]["ctx"]
    assert (found["shared"], found["compared"]) == (CONTEXTS, 12)
    assert found["cka"]["p_value"] is None, "JSON has no NaN"


def test_contexts_that_do_not_match(cli: Any, files: list[str]) -> None:
    geometry(network(1), CONTEXTS + torch.arange(CONTEXTS)).save("other.safetensors")
    report = reported(cli, files[0], "other.safetensors")
    reason = report["pairs"][0]["sites"][SITE]["ctx"]["unavailable"]
    assert "0 contexts in common, 8 are needed" in reason
    shown = cli("compare", files[0], "other.safetensors")
    assert shown.code == 0
    assert shown.out.count("0 contexts in common") == 1
    assert "(0@in and 2 more)" in shown.out


def test_other_widths_and_too_many_dimensions(cli: Any, files: list[str]) -> None:
    geometry(network(1, width=15)).save("wide.safetensors")
    report = reported(cli, files[0], "wide.safetensors", "--sites", SITE)
    site = report["pairs"][0]["sites"][SITE]
    assert set(report["pairs"][0]["sites"]) == {SITE}
    assert "as many rows" in site["pos"]["directions"]["unavailable"]
    assert 0 < site["pos"]["positions"]["overlap"] <= 1
    assert 0 < site["ctx"]["cka"]["value"] < 1
    many = reported(cli, files[0], files[1], "--dimensions", LENGTH)["pairs"][0]["sites"][SITE]
    assert (
        "first spans 8 dimensions, and 9 are asked for" in many["pos"]["positions"]["unavailable"]
    )


def test_conditions_of_geometries(cli: Any, files: list[str]) -> None:
    report = reported(cli, *files, "--groups", "a,a,b,b", "--permutations", 0, "--sites", SITE)
    assert [pair["files"] for pair in report["pairs"]] == [
        [files[i], files[j]] for i in range(4) for j in range(i + 1, 4)
    ]
    tests = report["tests"][SITE]
    assert {"ctx: 1 - CKA", "ctx: Procrustes", "pos: positions", "sphere/radius/mean"} <= set(tests)
    for name, pick in (
        ("ctx: Procrustes", lambda site: site["ctx"]["procrustes"]["value"]),
        ("ctx: 1 - CKA", lambda site: 1 - site["ctx"]["cka"]["value"]),
    ):
        values = [pick(pair["sites"][SITE]) for pair in report["pairs"]]
        distances = torch.zeros(4, 4).double()
        distances[tuple(torch.triu_indices(4, 4, 1))] = torch.tensor(values).double()
        for permute in ("runs", "pairs"):
            for statistic in ("mean", "mann_whitney"):
                expected = compare.condition_test(
                    distances + distances.T, "aabb", statistic=statistic, permute=permute
                )
                assert tests[name][permute][statistic]["p_value"] == expected.p_value
        assert tests[name]["same"] < 0.1 * tests[name]["different"], "planted"
        assert tests[name]["runs"]["mean"]["p_value"] == pytest.approx(1 / 3)
    shown = cli("compare", *files, "--groups", "a,a,b,b", "--permutations", 0, "--sites", SITE)
    assert "all 3 ways" in shown.out
    assert "below 0.33" in shown.out


def test_histories(cli: Any, histories: list[str]) -> None:
    name = f"{SITE}/pos_ctx/shares/ctx"
    report = reported(
        cli, *histories, "--groups", "a,a,b,b", "--scalars", "*/shares/ctx", "--quality", "losses"
    )
    assert report["steps"] == list(range(0, 24, 2)), "those in common"
    curves = [gh.History.load(file).curve(name)[1][:12] for file in histories]
    distances = compare.warping_distances(curves)
    found = report["scalars"][name]
    assert [pair["warping_distance"] for pair in found["pairs"]] == pytest.approx(
        [float(distances[i, j]) for i in range(4) for j in range(i + 1, 4)]
    )
    spearman = compare.curve_agreement(curves[0], curves[3])
    assert found["pairs"][2]["files"] == [histories[0], histories[3]]
    assert found["pairs"][2]["spearman"]["value"] == spearman.value
    assert found["pairs"][2]["spearman"]["low"] == spearman.interval.low
    test = compare.condition_test(distances, "aabb")
    assert found["tests"]["runs"]["mean"]["p_value"] == test.p_value
    assert found["tests"]["same"] < found["tests"]["different"]
    losses = torch.tensor([1 / (1 + step) for step in range(0, 24, 2)], dtype=torch.float64)
    change = compare.change_agreement(curves[1], losses)
    assert found["quality"][1]["file"] == histories[1]
    assert found["quality"][1]["value"] == pytest.approx(change.value)
    flat = report["scalars"]["0@in/pos_ctx/shares/ctx"]
    assert "does not vary" in flat["unavailable"]
    shown = cli("compare", *histories, "--scalars", name, "--quality", "0/pos_ctx/shares/pos")
    assert (shown.code, shown.err) == (0, "")
    assert f"{spearman.value:.3f} ({spearman.interval.low:.3f} to" in shown.out
    assert "change with 0/pos_ctx/shares/pos" in shown.out


def test_identical_files(cli: Any, histories: list[str]) -> None:
    again = reported(cli, histories[0], histories[0], "--scalars", f"{SITE}/pos_ctx/shares/*")
    for scalar in again["scalars"].values():
        (pair,) = scalar["pairs"]
        assert pair["warping_distance"] == 0
        assert pair["spearman"]["value"] == pair["spearman"]["low"] == 1
    geometry(network(1)).save("one.safetensors")
    site = reported(cli, "one.safetensors", "one.safetensors")["pairs"][0]["sites"][SITE]
    assert all(scalar["difference"] == 0 for scalar in site["scalars"].values())
    assert site["ctx"]["cka"]["value"] == pytest.approx(1)
    assert site["pos"]["directions"]["overlap"] == pytest.approx(1)


def test_models_of_other_names_on_one_text(cli: Any, bert: Path, gpt2: Path, text: Path) -> None:
    """Sites go by their order, contexts by their text."""
    for folder in (bert, gpt2):
        out = f"{folder.name}.safetensors"
        measured = cli(
            *("measure", folder, "--text", text, "--documents", "lines", "--max-length", 32),
            *("--out", out, "--statistics", "pos_ctx"),
        )
        assert measured.code == 0, measured.err
    report = reported(cli, "bert.safetensors", "gpt2.safetensors")
    sites = report["pairs"][0]["sites"]
    assert list(sites) == [
        " | ".join(names)
        for names in zip(
            gh.load("bert.safetensors").sites, gh.load("gpt2.safetensors").sites, strict=True
        )
    ]
    last = list(sites.values())[-1]["ctx"]
    assert last["shared"] >= 40
    assert last["other_length"] > 0, "one tokenizer adds marks"
    shown = cli("compare", "bert.safetensors", "gpt2.safetensors", "--permutations", 0)
    assert "have another number of tokens in the other file" in shown.out


def test_a_page_and_other_numbers(cli: Any, files: list[str], histories: list[str]) -> None:
    """With JSON on stdout, the page's line is on stderr."""
    result = cli("compare", *files[:2], "--json", "-o", "page.html", "--permutations", 0)
    assert result.code == 0
    assert json.loads(result.out)["files"] == files[:2]
    assert result.err.startswith("wrote page.html (")
    drawn = Path("page.html").read_text()
    assert 'data-name="spirals"' in drawn
    assert "a2 less a1" in drawn
    result = cli("compare", *histories, "-o", "trainings.html", "--groups", "a,a,b,b")
    assert result.code == 0, result.err
    drawn = Path("trainings.html").read_text()
    assert 'data-name="training_pos_ctx_shares_pos"' in drawn
    assert "Runs of one condition" not in drawn, "that is said of geometries"
    assert 'data-name="tests"' in drawn
    fails(cli("compare", *files[:2], "-o", "none/x.html"), 5, "no folder none")
    fails(cli("compare", *files[:2], "-o", "x.html", "--no-page"), 2, "exclude each other")
    assert cli("compare", *files[:2], "--no-page", "--permutations", 0).code == 0
    assert not Path("comparison.html").exists()


def test_what_is_refused(cli: Any, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    history(1, range(5), 0.1).save("h1.safetensors")
    history(1, range(3, 8), 0.1).save("h2.safetensors")
    save_file({"x": torch.ones(1)}, "foreign.safetensors")
    Path("notes.txt").write_text("not a geometry")
    two = files[:2]
    for arguments, code, parts in (
        (files[:1], 2, ["two or more files are needed to compare; found 1"]),
        ([], 2, ["FILE"]),
        ([*two, "--groups", "a"], 2, ["--groups names 1 conditions for 2 files"]),
        ([*two, "--groups", "a,b"], 2, ["--groups a,b: two files of one condition and one of"]),
        ([*two, "--groups", "a,a"], 2, ["--groups a,a: two files of one condition and one of"]),
        ([*two, "--quality", "losses"], 2, ["--quality losses is for histories"]),
        ([*two, "--level", "95"], 2, ["--level", "between 0 and 1", "95"]),
        ([*two, "--dimensions", "0"], 2, ["--dimensions", "'0'"]),
        ([*two, "--scalars", ","], 2, ["--scalars is empty"]),
        ([*two, "--scalars", "*/spheer/*"], 2, ["no scalar matches */spheer/*"]),
        ([*two, "--sites", "h.*"], 2, ["no site matches h.*; there are 0@in, 0, 1"]),
        ([files[0], "h1.safetensors"], 2, ["one kind", f"{files[0]} is a geometry", "a history"]),
        (["h1.safetensors", "h2.safetensors"], 7, ["have 2 steps in common; 3 are needed"]),
        (["h1.safetensors", "h1.safetensors", "--scalars", "x"], 2, ["no scalar that matches x"]),
        (["h1.safetensors", "h1.safetensors", "--quality", "bleu"], 2, ["--quality bleu"]),
        ([files[0], "foreign.safetensors"], 7, ["foreign.safetensors", "not geomhooks'"]),
        (
            [files[0], "notes.txt"],
            7,
            ["notes.txt is truncated, damaged, or no geometry or history file"],
        ),
        ([files[0], "none.safetensors"], 7, ["no such file: none.safetensors"]),
    ):
        fails(cli("compare", *arguments), code, *parts)
    named = torch.nn.Sequential(OrderedDict(x=torch.nn.Linear(WIDTH, 3)))
    geometry(named, sites="x").save("named.safetensors")
    parts = ["no site of the same name", f"3 (0@in, ...) in {files[0]}", "1 (x, ...) in named"]
    fails(cli("compare", files[0], "named.safetensors"), 2, *parts)
    model = network(1)
    with torch.no_grad(), gh.watch(model, statistics=[gh.Covariance()]) as watch:
        model(states())
    watch.geometry().save("covariance.safetensors")
    parts = ["no number in common", f"{files[0]} has pos_ctx, sphere", "safetensors has covariance"]
    refused = cli("compare", files[0], "covariance.safetensors", "-o", "empty.html")
    fails(refused, 2, *parts)
    assert not Path("empty.html").exists()
    monkeypatch.setitem(sys.modules, "scipy", None)
    fails(cli("compare", *two), 1, "pip install 'geomhooks[compare]'")


def test_what_is_compared_by_default() -> None:
    """Main scalars, once: those without position 0 are left to whoever names them."""
    found = choose_scalars(everything().scalars())
    assert not [name for name in found if "without_first" in name]
    site = everything().sites[-1]
    for name in ("pos_ctx/shares/pos", "updates/mlp/step_angle/mean", "next_word/pull/mean"):
        assert f"{site}/{name}" in found
    assert f"{site}/components/importance/attention/mean" in found
