"""Checks on a device that is not the CPU, in a process of their own.

Notes what went wrong, by the name of the check, as JSON in the file that it is told.
"""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import geomhooks as gh
from geomhooks.cli.commands import run
from geomhooks.report import write_report
from tests.anatomy.models import make, token_ids
from tests.cli.conftest import WORDS, save_tokenizer
from tests.conformance import test_laws as laws
from tests.conformance.cases import TOGETHER
from tests.conformance.harness import Batch, Subject, Together, plant
from tests.elsewhere.device import DEVICE, no_waiting
from tests.forwards.models import same_numbers
from tests.models import Stack, tiny_gpt2_lm

Check = Callable[[], None]

# A device like this one has no streams, which torch wants for a backward.
BACKWARD = ("with_gradients", "in_inference_mode_and_out_of_it")
FAMILIES = ("gpt2", "llama, one key head", "gpt_neox", "bloom", "mistral, window", "qwen3",
            "phi3, long", "gemma2", "gemma3", "bert", "roberta", "distilbert", "opt")  # fmt: skip


@contextmanager
def default_device() -> Iterator[None]:
    """Within, new tensors are on the device unless said otherwise, as many a notebook has it."""
    torch.set_default_device(DEVICE)
    try:
        yield
    finally:
        torch.set_default_device(None)


class SubjectElsewhere(Subject):
    """Its model and all that it is told are on the device, which the host never waits for.

    But in the first forward of a watch, where weights are looked at and memory is taken.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.here, self.model = Stack(8, dtype=self.dtype), self.model.to(DEVICE)
        self.begun: list[Any] = []
        self.resets = False

    def render(self, *rows: Any, **options: Any) -> Batch:
        batch = super().render(*rows, **options)
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return replace(batch, **{n: to_device(v) for n, v in values.items()})

    def run(self, watch: Any, **arguments: Any) -> Tensor:
        if any(watch is other for other in self.begun) and not self.resets:
            with no_waiting():
                return super().run(watch, **arguments)
        self.begun.append(watch)
        return super().run(watch, **arguments)

    def check(self, geometry: Any) -> None:
        self.model = self.here
        super().check(geometry)


def to_device(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def law(case: Together, way: laws.Way) -> None:
    subject = SubjectElsewhere(case, torch.float32, plant(seed=1))
    subject.resets = "reset" in way.__name__
    with tempfile.TemporaryDirectory() as folder:
        subject.check(way(subject, Path(folder)))


def family(name: str, statistics: Callable[[], list[gh.Statistic]]) -> None:
    """A model with its weights on the device, and statistics that work with these."""
    ids, mask = token_ids(4, 9), torch.ones(4, 9, dtype=torch.int64)
    mask[0, 5:] = 0
    geometries = []
    for device in (torch.device("cpu"), DEVICE):
        model = make(name).to(device)
        given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        with torch.no_grad(), gh.watch(model, statistics=statistics()) as watch:
            model(**given)
            with no_waiting():
                model(**given)
        geometries.append(watch.geometry())
    same_numbers(*geometries, rtol=1e-4, atol=1e-5)


def with_weights() -> list[gh.Statistic]:
    return [
        gh.Updates(heads=True),
        gh.Components(contexts=8, method="oh_schuler"),
        gh.Leaders(directions=8),
        gh.FeedForwardFit(),
    ]


def with_words() -> list[gh.Statistic]:
    return [gh.NextWord(), gh.Trajectories(contexts=8, tokens=5), gh.PosCtx(), gh.Sphere()]


def moved_there_and_back() -> None:
    states = torch.randn(3, 6, 5, 8)
    model = Stack(8)
    with torch.no_grad(), gh.watch(model) as whole:
        model(states.flatten(0, 1))
    with torch.no_grad(), gh.watch(model) as moved:
        model(states[0])
        model.to(DEVICE)
        model(states[1].to(DEVICE))
        assert moved.geometry()["blocks.0"].sphere.norm.mean.device == DEVICE
        model.cpu()
        model(states[2])
    same_numbers(whole.geometry(), moved.geometry(), rtol=1e-4)


def generation_there() -> None:
    """Greedy, padded on the left, with a cache that grows and one that does not."""
    ids, mask = token_ids(3, 6) % 47 + 1, torch.ones(3, 6, dtype=torch.int64)
    mask[0, :3] = 0
    for cache in (None, "static"):
        geometries = []
        for device in (torch.device("cpu"), DEVICE):
            model = tiny_gpt2_lm(attn_implementation="eager").to(device)
            with torch.no_grad(), gh.watch(model) as watch:
                model.generate(
                    ids.to(device), attention_mask=mask.to(device), max_new_tokens=5,
                    do_sample=False, cache_implementation=cache,
                )  # fmt: skip
            geometries.append(watch.geometry())
        same_numbers(*geometries, rtol=1e-4, atol=1e-5)


def handed_on() -> None:
    """Files, pages, histories and tables of what was measured there, with that device default."""
    model = Stack(8).to(DEVICE)
    history = gh.History(snapshots="all")
    with default_device(), torch.no_grad(), gh.watch(model) as watch:
        for step in (0, 10):
            model(torch.randn(4, 6, 8))
            history.append(step, watch.geometry())
        geometry = watch.geometry()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            geometry.save(folder / "one.safetensors")
            history.save(folder / "history.safetensors")
            loaded = gh.load(folder / "one.safetensors")
            gh.History.load(folder / "history.safetensors").frame()
            write_report(geometry, folder / "one.html")
            write_report(loaded, folder / "loaded.html")
        geometry.frame()
        geometry._repr_html_()
    same_numbers(geometry, loaded)


def command_line() -> None:
    """``measure`` with all statistics, and what its file is made into."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(folder / "model", special=False)
        config = GPT2Config(vocab_size=70, n_positions=64, n_embd=16, n_layer=2, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(folder / "model")
        (folder / "text.txt").write_text(" ".join(WORDS[i * i % 60] for i in range(600)))
        found = []
        for device in ("cpu", DEVICE.type):
            path = folder / f"{device}.safetensors"
            given = ["measure", folder / "model", "--text", folder / "text.txt", "--out", path]
            assert run([*map(str, given), "--device", device, "--max-length", "16"]) == 0
            found.append(gh.load(path))
    same_numbers(*found, rtol=1e-4, atol=1e-5)


def examples(module: str) -> None:
    """The examples in docstrings, where tensors are on the device unless said otherwise."""
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    told: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module)):
        with default_device():
            runner.run(test, out=told.append)
    assert not runner.failures, "".join(told)


FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def checks() -> dict[str, Check]:
    """All of them by name."""
    found: dict[str, Check] = {
        check.__name__: check
        for check in (moved_there_and_back, generation_there, handed_on, command_line)
    }
    ways = [
        (title, way)
        for title, some in laws.WAYS.items()
        for way in some
        if way.__name__ not in BACKWARD
    ]
    # Statistics that are together in a watch take turns with the others.
    for turn, (name, case) in enumerate(TOGETHER.items()):
        for title, way in ways[turn::2]:
            kept = laws.with_law(case, title)
            if kept.cases:
                found[f"law {name}-{way.__name__}"] = partial(law, kept, way)
    for name in FAMILIES:
        for statistics in (with_weights, with_words):
            title = f"{statistics.__name__} {name}"
            found[title] = partial(family, name, statistics)
    for module in pkgutil.walk_packages(gh.__path__, "geomhooks."):
        if not module.name.startswith(ON_THE_HOST):
            found[f"examples {module.name}"] = partial(examples, module.name)
    return found


# What they make or read is on the host, unless they are told otherwise.
ON_THE_HOST = (
    "geomhooks.__main__",
    "geomhooks.accumulators",
    "geomhooks.storage.dictionaries",
    "geomhooks.storage.messages",
)


def main(path: str, only: str = "") -> None:
    warnings.simplefilter("ignore")
    noted = {}
    for name, check in checks().items():
        if not name.startswith(only):
            continue
        if len(sys.argv) > 2 and not name.startswith(sys.argv[2]):
            continue
        try:
            check()
            noted[name] = ""
        except Exception:
            noted[name] = traceback.format_exc()
    Path(path).write_text(json.dumps(noted))


if __name__ == "__main__":
    main(*sys.argv[1:])
