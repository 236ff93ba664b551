"""Checkpointing in Hugging Face models; recorded programs; threads, devices, transforms."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import geomhooks as gh
from tests.forwards.models import bert, ids, llama, same_numbers, tiny_gpt2, tiny_gpt2_lm
from tests.models import Stack

SITES = ["h.*", "h.*.mlp", "h.*.ln_2"]  # blocks, and what is inside of what is recomputed


def train(model: nn.Module, sites: Any, run: Any = None) -> Any:
    with gh.watch(model, sites=sites) as watch:
        for seed in range(3):
            out = (model if run is None else run)(input_ids=ids(2 + seed, 6, seed), use_cache=False)
            out[0].float().square().mean().backward()
    return watch.geometry()


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, at blocks' inputs
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("way", ["eager", "compiled", "compiled blocks"])
def test_gradient_checkpointing_of_hugging_face(way: str, reentrant: bool) -> None:
    model = tiny_gpt2(n_layer=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    expected = train(model, SITES)
    wanted = gradients(model)
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": reentrant, "preserve_rng_state": False}
    )
    run: Any = model
    if way == "compiled":
        run = torch.compile(model, backend="aot_eager")
    elif way == "compiled blocks":
        for block in model.h:
            block.compile(backend="aot_eager", dynamic=True)
    same_numbers(expected, train(model, SITES, run), rtol=1e-4)
    for bare, seen in zip(wanted, gradients(model), strict=True):
        torch.testing.assert_close(seen, bare, rtol=1e-4, atol=1e-7)


def test_checkpoints_inside_blocks() -> None:
    """Only a part of each block is recomputed, sites in it included."""
    from torch.utils.checkpoint import checkpoint

    model = tiny_gpt2()
    expected = train(model, SITES)
    for block in model.h:
        block.mlp.forward = lambda states, forward=block.mlp.forward: checkpoint(
            forward, states, use_reentrant=False
        )
    same_numbers(expected, train(model, [*SITES]), rtol=1e-5)


def test_a_forward_that_raises_half_way_in_compiled_code() -> None:
    """Whatever it has opened is closed by the next forward."""
    model = tiny_gpt2()
    for block in model.h:
        block.compile(backend="eager")

    def break_down(*_: Any) -> None:
        raise ZeroDivisionError

    with torch.no_grad(), gh.watch(model) as watch:
        handle = model.h[1].mlp.register_forward_hook(break_down)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=ids(2, 5), use_cache=False)
        handle.remove()
        watch.reset()
        model(input_ids=ids(3, 5), use_cache=False)
    assert {int(watch.geometry()[s].pos_ctx.count) for s in watch.sites} == {15}


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_hook_of_the_user_s_that_changes_an_output(first: bool) -> None:
    """The watch sees what a hook gives on that was there before it."""
    model = Stack(8, dtype=torch.float64)
    states = torch.randn(3, 5, 8, dtype=torch.float64)
    bare: list[Tensor] = []
    steered: list[Tensor] = []
    with torch.no_grad():
        watch = gh.watch(model)
        if not first:
            watch.attach()
        model.blocks[0].register_forward_hook(lambda _, __, out: bare.append(out))
        model.blocks[0].register_forward_hook(lambda _, __, out: 2 * out + 1)
        model.blocks[0].register_forward_hook(lambda _, __, out: steered.append(out))
        if first:
            watch.attach()
        after = model(states)
        watch.detach()
    geometry = watch.geometry()
    expected = {"blocks.0": (steered if first else bare)[0], "blocks.2": after}
    for site, seen in expected.items():
        torch.testing.assert_close(geometry[site].pos_ctx.mean.double(), seen.mean((0, 1)))


def test_two_threads_in_one_model_at_once_are_refused() -> None:
    model = Stack(4)
    both = threading.Barrier(2, timeout=20)
    errors: list[BaseException] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda *_: both.wait() and None)

    def run() -> None:
        try:
            model(torch.randn(2, 3, 4))
        except BaseException as error:
            errors.append(error)
            both.abort()

    with gh.watch(model) as watch:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = [str(e) for e in errors if isinstance(e, gh.errors.WatchError)]
        assert found
        assert "DataParallel" in found[0]
        assert "DistributedDataParallel" in found[0]
        handle.remove()
        watch.reset()
        for _ in range(2):  # one thread at a time is fine
            thread = threading.Thread(target=model, args=(torch.randn(2, 3, 4),))
            thread.start()
            thread.join()
    assert int(watch.geometry()["blocks.2"].pos_ctx.count) == 12


def test_vmap_is_refused_and_runs_under_pause() -> None:
    model = Stack(4)
    states = torch.randn(3, 2, 5, 4)
    with gh.watch(model) as watch:
        model(states[0])
        with pytest.raises(gh.errors.WatchError, match=r"torch\.vmap.*watch\.pause\(\)"):
            torch.vmap(model)(states)
        with watch.pause():
            torch.vmap(model)(states)
    assert int(watch.geometry()["blocks.2"].pos_ctx.count) == 10


@pytest.mark.parametrize("way", ["torch.jit.trace", "torch.export", "torch.export, strict"])
def test_recording_a_program_is_not_running_the_model(way: str) -> None:
    """It counts nothing, and the program has no trace of the watch."""
    model = Stack(4)
    states = torch.randn(2, 5, 4)
    with torch.no_grad(), gh.watch(model) as watch:
        model(states)
        before = watch.state_dict()["tensors"]
        if way == "torch.jit.trace":
            program: Any = torch.jit.trace(model, (states,), check_trace=False)
            text = str(program.inlined_graph)
        else:
            exported = torch.export.export(model, (states,), strict="strict" in way)
            program, text = exported.module(), str(exported.graph)
        out = program(states)
        after = watch.state_dict()["tensors"]
        torch.testing.assert_close(out, model(states))
    assert "geomhooks" not in text
    assert "index_add" not in text
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_recording_a_program_says_that_nothing_was_counted() -> None:
    model = Stack(4)
    with pytest.warns(UserWarning, match=r"torch\.export"), gh.watch(model):
        torch.export.export(model, (torch.randn(2, 5, 4),))


@pytest.mark.parametrize("make", [bert, llama, tiny_gpt2_lm], ids=["bert", "llama", "gpt2"])
def test_the_state_follows_a_model_to_another_device(make: Any) -> None:
    """The meta device holds no numbers, and so shows that nothing asks for any."""
    model = make()
    watch = gh.watch(model).attach()
    with torch.no_grad():
        model(input_ids=ids(2, 5))
        model.to("meta")
        model(input_ids=ids(2, 5).to("meta"))
    devices = {t.device.type for t in watch.state_dict()["tensors"].values()}
    watch.detach()
    assert devices == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_moved_to_a_gpu_and_back_counts_on() -> None:
    model = Stack(8)
    states = torch.randn(2, 6, 5, 8)
    with torch.no_grad(), gh.watch(model) as whole:
        model(states.flatten(0, 1))
    with torch.no_grad(), gh.watch(model) as moved:
        model(states[0])
        model.cuda()
        model(states[1].cuda())
        model.cpu()
    same_numbers(whole.geometry(), moved.geometry(), rtol=1e-4)
