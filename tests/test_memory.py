"""A watch costs what it says, and no more however long it runs."""

from __future__ import annotations

import gc

import psutil
import torch

import geomhooks as gh
from tests.conformance.harness import plant, render
from tests.models import Stack

MIB = 2**20
BATCHES = 500


def test_resident_memory_is_flat_after_the_first_batches() -> None:
    """Of the batches the kept activations of one block alone would be 32 MiB."""
    width = 64
    model = Stack(width)
    contexts = plant(seed=0, number=8, longest=32, width=width, ragged=False)
    batch = render([[context] for context in contexts], torch.float32, width=width)
    process = psutil.Process()
    statistics = [
        gh.PosCtx(contexts=32, positions=32, second_moment=True),
        gh.Covariance(0.5),
        gh.Sphere(),
    ]
    with torch.no_grad(), gh.watch(model, sites="blocks", statistics=statistics) as watch:
        early = highest = 0
        for number in range(BATCHES):
            model(inputs_embeds=batch.embeddings, attention_mask=batch.mask)
            if number == 9:
                gc.collect()
                early = process.memory_info().rss
            elif number > 9 and number % 10 == 0:
                highest = max(highest, process.memory_info().rss)
    assert int(watch.geometry()["blocks.0"].pos_ctx.count) == BATCHES * 8 * 32
    assert highest - early < 4 * MIB


def test_nbytes_is_what_the_states_hold() -> None:
    """As found in what the watch holds, by looking through it for tensors."""
    model = Stack(64)
    contexts = plant(seed=0, number=8, longest=32, width=64)
    batch = render([[context] for context in contexts], torch.float32, width=64)
    statistics = [gh.PosCtx(), gh.Sphere(), gh.Covariance(0.5)]
    with gh.watch(model, sites="blocks", statistics=statistics) as watch:
        model(inputs_embeds=batch.embeddings, attention_mask=batch.mask)
        foreign = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
        # Beside the states there is a number for each hook, by which compiled code knows it.
        hooks = sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.modules()
        )
        assert held_bytes(watch, foreign) == watch.nbytes + hooks * torch.int64.itemsize


def held_bytes(root: object, foreign: set[int]) -> int:
    """Size of all tensors that can be reached from an object, each storage once."""
    seen: set[int] = set()
    storages: dict[int, int] = {}
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (torch.nn.Module, type)):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            if storage.data_ptr() not in foreign:
                storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, dict):
            waiting.extend(thing.values())
        elif isinstance(thing, (list, tuple, set)):
            waiting.extend(thing)
        elif type(thing).__module__.startswith("geomhooks"):
            waiting.extend(vars(thing).values() if hasattr(thing, "__dict__") else ())
    return sum(storages.values())
