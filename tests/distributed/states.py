"""Checks that torchrun runs: what all have counted, and what goes wrong on one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import geomhooks as gh
from geomhooks.accumulators.turns import is_chosen
from geomhooks.errors import GeomhooksError, HookError, SchemaError, WatchError
from tests.conformance.cases import CASES, TOGETHER, Extent, LargestEntry
from tests.conformance.harness import POSITIONS, WIDTH, Context, Subject, Together, plant
from tests.models import Stack
from tests.reference import disagreement, pos_ctx, relative_to

NAMES = ("pos_ctx", "sphere")


def rank() -> int:
    return dist.get_rank()


def size() -> int:
    return dist.get_world_size()


def everywhere(thing: Any) -> list[Any]:
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, thing)
    return found


def subjects(**options: Any) -> list[Subject]:
    """The case of each statistic, all on the same contexts."""
    contexts = plant(**{"seed": 1, "number": 11, **options})
    return [Subject(case, torch.float32, contexts) for case in CASES.values()]


def together(dtype: torch.dtype = torch.float32, **options: Any) -> list[Subject]:
    """The same cases in as few watches as can be."""
    contexts = plant(**{"seed": 1, "number": 11, **options})
    return [Subject(case, dtype, contexts) for case in TOGETHER.values()]


def check(subject: Subject, geometry: gh.Geometry) -> None:
    """All ranks have the same to the last bit, and one sees that it is right."""
    assert len(set(everywhere(fingerprint(geometry)))) == 1
    if rank() == 0:
        subject.check(geometry)


def read(subject: Subject, contexts: Sequence[Context], watch: Any) -> None:
    with torch.no_grad():
        for first in range(0, len(contexts), 2):
            subject.feed(watch, subject.render(*contexts[first : first + 2]))


def mine(contexts: Sequence[Context]) -> Sequence[Context]:
    """Every rank's own share."""
    return contexts[rank() :: size()]


def watched(subject: Subject, contexts: Sequence[Context]) -> Any:
    watch = subject.new_watch()
    if contexts:
        with watch:
            read(subject, contexts, watch)
    return watch


def both(subject: Subject, **options: Any) -> Any:
    """A watch of one subject's model with both of the library's statistics."""
    statistics = [CASES[name].statistic() for name in NAMES]
    return gh.watch(
        subject.model, sites="blocks", statistics=statistics, positions=POSITIONS, **options
    )


def fingerprint(geometry: gh.Geometry) -> str:
    """Of every bit of every tensor, and of the description."""
    packed = geometry.state_dict()
    digest = hashlib.sha256(json.dumps(packed["description"]).encode())
    for name, tensor in packed["tensors"].items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def error_of(act: Callable[[], Any], kind: type[GeomhooksError]) -> str:
    """The message of the error that an act raises here."""
    try:
        act()
    except kind as error:
        return str(error)
    raise AssertionError(f"rank {rank()} raised no {kind.__name__}")


def same_error(act: Callable[[], Any], kind: type[GeomhooksError]) -> str:
    """The message, which has to be the same on all ranks; they can go on after it."""
    message = error_of(act, kind)
    assert set(everywhere(message)) == {message}
    return message


def close(one: gh.Geometry, other: gh.Geometry, rtol: float = 1e-6) -> None:
    """The same counts, and the same numbers but for rounding."""
    a, b = one.scalars(), other.scalars()
    assert a.keys() == b.keys()
    np.testing.assert_allclose(
        list(a.values()), list(b.values()), rtol=rtol, atol=rtol, err_msg=str(list(a))
    )
    assert [c["real"] for c in one.tokens.values()] == [c["real"] for c in other.tokens.values()]
    assert one.sites == other.sites


def the_law_of_ranks() -> None:
    """All ranks == one process, for every statistic, whatever contexts look like."""
    others: list[dict[str, Any]] = [
        {"anywhere": False}, {"ragged": False}, {"holes": True, "seed": 2}
    ]  # fmt: skip
    for subject in [*subjects(), *(one for options in others for one in together(**options))]:
        check(subject, watched(subject, mine(subject.contexts)).geometry(sync=True))


def the_law_of_ranks_in_halves() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for subject in together(dtype, seed=3, number=9):
            check(subject, watched(subject, mine(subject.contexts)).geometry(sync=True))


def packed_rows() -> None:
    for subject in together():
        with subject.watch() as watch:
            subject.feed(watch, subject.render(mine(subject.contexts)))
        check(subject, watch.geometry(sync=True))


def a_fraction_of_the_forwards_of_each() -> None:
    """Each rank chooses among its own forwards, and all that were chosen count."""
    statistic, subject = gh.Covariance(0.4), Subject(CASES["covariance"], torch.float32, plant(1))
    with torch.no_grad(), gh.watch(subject.model, statistics=[statistic], positions=16) as watch:
        for context in subject.contexts[rank() :]:
            subject.feed(watch, subject.render(context))
    geometry = watch.geometry(sync=True)
    chosen = [
        context
        for first in range(size())
        for number, context in enumerate(subject.contexts[first:])
        if is_chosen(number, 0.4)
    ]
    subject.contexts = chosen
    check(subject, geometry)
    assert int(geometry[geometry.sites[0]].covariance.forwards) == len(chosen)


def contexts_that_several_ranks_share() -> None:
    """A context that goes on on another rank is one context, by its id."""
    for subject in together():
        # Others take a context that goes on for another one.
        cases = [case for case in subject.case.cases if "generation" in case.statistic().laws]
        subject.case = Together(tuple(cases))
        parts = [part for c in subject.contexts[1:] if len(c.positions) > 3 for part in c.split(2)]
        whole = [c for c in subject.contexts[1:] if len(c.positions) <= 3]
        chosen = [subject.contexts[0], *parts, *whole]
        watch = watched(subject, mine(chosen))
        check(subject, watch.geometry(sync=True))


def the_local_state_stays() -> None:
    """Counting goes on after a reduction, and another one counts everything once."""
    for subject in together():
        half = len(mine(subject.contexts)) // 2
        with subject.watch() as watch:
            read(subject, mine(subject.contexts)[:half], watch)
            before = {n: t.clone() for n, t in watch.state_dict()["tensors"].items()}
            if size() == 2:  # with more, some have read nothing yet
                watch.geometry(sync=True)
            after = watch.state_dict()["tensors"]
            assert before.keys() == after.keys()
            assert all(np.array_equal(t, after[n], equal_nan=True) for n, t in before.items())
            read(subject, mine(subject.contexts)[half:], watch)
        for _ in range(2):
            check(subject, watch.geometry(sync=True))


def saved_on_every_rank_and_merged() -> None:
    """The files of the ranks, merged later, are what the ranks together were."""
    subject = subjects()[0]
    with torch.no_grad(), both(subject) as watch:
        read(subject, mine(subject.contexts), watch)
    together = watch.geometry(sync=True)
    watch.geometry().save(f"{rank()}.safetensors")
    dist.barrier()
    merged = gh.merge([gh.load(f"{r}.safetensors") for r in range(size())])
    close(merged, together, 1e-9)
    packed, other = merged.state_dict(), together.state_dict()
    assert packed["description"] == other["description"]
    for name, tensor in packed["tensors"].items():
        if not tensor.is_floating_point() and "time" not in name and "priority" not in name:
            assert torch.equal(tensor, other["tensors"][name]), name
    together.save(f"all-{rank()}.safetensors")
    close(gh.load(f"all-{rank()}.safetensors"), together, 0.0)
    dist.barrier()


def uneven_steps() -> None:
    """The last rank reads nearly everything."""
    for subject in together():
        shares = [[c] for c in subject.contexts[: size() - 1]] + [subject.contexts[size() - 1 :]]
        check(subject, watched(subject, shares[rank()]).geometry(sync=True))


def a_rank_without_data() -> None:
    """Any one rank, whose state was not even allocated; or all but one."""
    for subject in together():
        for idle in (0, size() - 1):
            busy = [r for r in range(size()) if r != idle]
            share = subject.contexts[busy.index(rank()) :: len(busy)] if rank() != idle else []
            check(subject, watched(subject, share).geometry(sync=True))
        share = subject.contexts if rank() == size() - 1 else []
        check(subject, watched(subject, share).geometry(sync=True))


def a_rank_whose_state_is_empty() -> None:
    """It was allocated by an example, and has seen nothing since."""
    for subject in together():
        example = subject.render(subject.contexts[0]).arguments()
        watch = gh.watch(
            subject.model,
            sites="blocks",
            statistics=subject.statistics(),
            positions=POSITIONS,
            example=example,
        )
        if rank():
            with watch:
                read(subject, subject.contexts[rank() - 1 :: size() - 1], watch)
        check(subject, watch.geometry(sync=True))


def nothing_anywhere() -> None:
    watch = both(subjects()[0])
    assert "no token has been counted" in same_error(lambda: watch.geometry(sync=True), WatchError)


def running_numbers_of_contexts() -> None:
    """Without ids every process numbers its contexts apart, and the numbers are one process's."""
    subject = Subject(CASES["pos_ctx"], torch.float32, plant(seed=5, number=12, anywhere=False))

    def count(contexts: Sequence[Context]) -> Any:
        with torch.no_grad(), both(subject) as watch:
            for first in range(0, len(contexts), 3):
                subject.model(**subject.render(*contexts[first : first + 3]).arguments())
        return watch

    torch.manual_seed(0)  # as training scripts do on all ranks
    together = count(mine(subject.contexts)).geometry(sync=True)
    alone = count(subject.contexts).geometry()
    a, b = together.scalars(), alone.scalars()
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-6, atol=1e-6)
    for site in alone.sites:
        one, other = together[site].pos_ctx, alone[site].pos_ctx
        assert int(one.contexts) == len(one.context_id.unique()) == 12
        assert int(one.split_contexts) == 0
        torch.testing.assert_close(one.pos, other.pos, rtol=1e-6, atol=1e-6, equal_nan=True)
        order = one.ctx.square().sum(1).argsort(), other.ctx.square().sum(1).argsort()
        torch.testing.assert_close(one.ctx[order[0]], other.ctx[order[1]], rtol=1e-5, atol=1e-6)


def more_contexts_than_are_kept_or_open() -> None:
    """With ids given, the same sample of contexts; and of those open all but a few are closed."""
    subject = Subject(CASES["pos_ctx"], torch.float32, plant(seed=6, number=40))
    statistic = gh.PosCtx(contexts=7, positions=POSITIONS, open_contexts=3)

    def count(contexts: Sequence[Context]) -> Any:
        with torch.no_grad(), gh.watch(subject.model, statistics=[statistic]) as watch:
            read(subject, contexts, watch)
        return watch

    together, alone = (
        count(mine(subject.contexts)).geometry(sync=True),
        count(subject.contexts).geometry(),
    )
    close(together, alone)
    for site in alone.sites:
        one, other = together[site].pos_ctx, alone[site].pos_ctx
        assert torch.equal(one.context_id, other.context_id)
        torch.testing.assert_close(one.ctx, other.ctx, rtol=1e-5, atol=1e-6)


def far_from_zero() -> None:
    """Ranks take their sums about different shifts, where means are 1e4 standard deviations."""
    contexts = [
        Context(c.id, c.embeddings * 1e-2 + 100.0 * np.arange(1, WIDTH + 1), c.positions)
        for c in plant(seed=7, number=16)
    ]
    subject = Subject(CASES["pos_ctx"], torch.float64, contexts)
    geometry = watched(subject, mine(contexts)).geometry(sync=True)
    check(subject, geometry)
    seen = next(iter(geometry))
    expected = pos_ctx(dense_inputs(contexts))
    for name in ("pos", "mean"):
        scale = 1e-2 if name == "pos" else 100.0
        problem = disagreement(
            geometry[seen].pos_ctx[name], relative_to(scale, expected[name].value, 1e-6)
        )
        assert not problem, f"{name} {problem}"


def dense_inputs(contexts: Sequence[Context]) -> Any:
    from tests.reference import Observations

    return Observations(
        np.concatenate([c.embeddings for c in contexts]),
        np.concatenate([c.positions for c in contexts]),
        np.concatenate([np.full(len(c.positions), c.id) for c in contexts]),
    )


def stages_of_a_pipeline() -> None:
    """Each rank runs some of the blocks, on what the rank before it sent; none reads all sites.

    With four ranks the stages are run by two each, on different contexts.
    """
    contexts = plant(seed=8, number=12)
    statistics = [CASES["pos_ctx"].statistic(), Extent("stream"), LargestEntry()]
    whole = Subject(CASES["pos_ctx"], torch.float32, contexts)
    whole.model = Stack(WIDTH, depth=4)
    with (
        torch.no_grad(),
        gh.watch(
            whole.model, sites="blocks.*", statistics=statistics, positions=POSITIONS
        ) as watch,
    ):
        read(whole, contexts, watch)
    alone = watch.geometry()

    stage, replica = rank() % 2, rank() // 2
    first, elsewhere = Stack(WIDTH, depth=4), Stack(WIDTH, depth=4)
    keep = [0, 2] if stage == 0 else [1, 3]  # stages that alternate
    before = [list(elsewhere.blocks[:i]) for i in keep]
    model = Stage({str(i): first.blocks[i] for i in keep}, before)
    with (
        torch.no_grad(),
        gh.watch(model, sites="blocks.*", statistics=statistics, positions=POSITIONS) as watch,
    ):
        for context in contexts[replica :: size() // 2]:
            batch = whole.render(context)
            with watch.tokens(contexts=batch.contexts, groups=batch.groups):
                model(**batch.arguments())
    together = watch.geometry(sync=True)
    assert together.sites == alone.sites
    assert len(set(everywhere(fingerprint(together)))) == 1
    for site in alone.sites:
        a, b = together[site].scalars(), alone[site].scalars()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-6, atol=1e-6)
        assert bool(together[site].pos_ctx.exact)
        assert torch.equal(together[site].pos_ctx.context_id, alone[site].pos_ctx.context_id)
        assert torch.equal(together[site].largest_entry.largest, alone[site].largest_entry.largest)
    for name in ("norm", "readings"):
        one, other = together.model[""].extent[name], alone.model[""].extent[name]
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)
    assert together.tokens.keys() == {"", "@blocks.1"}
    assert {counts["real"] for counts in together.tokens.values()} == {alone.tokens[""]["real"]}

    watch.geometry().save(f"stage-{rank()}.safetensors")
    dist.barrier()
    own = [Extent("stream"), LargestEntry()]
    files = [gh.load(f"stage-{r}.safetensors", statistics=own) for r in range(size())]
    merged = gh.merge(files, unite=True)
    assert merged.sites == alone.sites
    np.testing.assert_allclose(
        list(merged.scalars().values()), list(together.scalars().values()), rtol=1e-9, atol=1e-9
    )
    assert "merge: sites differs" in same_error(lambda: gh.merge(files), SchemaError)
    dist.barrier()


class Stage(torch.nn.Module):
    """Some blocks of a stack, each fed by what the blocks before it, run elsewhere, make."""

    def __init__(self, blocks: dict[str, torch.nn.Module], before: list[list[Any]]) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleDict(blocks)
        self.before = before  # in lists, so that they are no modules of this stage

    def forward(
        self,
        inputs_embeds: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        input_ids: Any = None,
    ) -> Any:
        for block, stack in zip(self.blocks.values(), self.before, strict=True):
            hidden = inputs_embeds
            for module in stack:
                hidden = module(hidden)
            hidden = block(hidden)
        return hidden


def sites_that_only_some_ranks_have() -> None:
    """Two ranks watch overlapping sites: each site is over the ranks that have it."""
    contexts = plant(seed=9, number=8)
    sites = ["blocks.0", "blocks.1"] if rank() == 0 else ["blocks.1", "blocks.2"]
    subject = Subject(CASES["pos_ctx"], torch.float32, contexts)

    def count(sites: list[str], contexts: Sequence[Context]) -> Any:
        with (
            torch.no_grad(),
            gh.watch(
                subject.model,
                sites=sites,
                statistics=subject.statistics(),
                positions=POSITIONS,
            ) as watch,
        ):
            read(subject, contexts, watch)
        return watch

    together = count(sites, mine(contexts)).geometry(sync=True)
    assert together.sites == ["blocks.0", "blocks.1", "blocks.2"]
    shares = [contexts[r :: size()] for r in range(size())]
    expected = {
        "blocks.0": shares[0],
        "blocks.1": contexts,
        "blocks.2": [c for share in shares[1:] for c in share],
    }
    for site, chosen in expected.items():
        alone = count([site], chosen).geometry()
        a, b = together[site].scalars(), alone[site].scalars()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-6, atol=1e-6)


class Named(gh.Statistic):
    """A statistic of one's own, with a parameter."""

    def __init__(self, power: tuple[int, ...] = (1,)) -> None:
        self.power = power

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"total": gh.Sum()}

    def update(self, state: Any, reading: Any) -> None:
        for power in self.power:
            state["total"].add(reading.taps["out"].double() ** power)

    def compute(self, state: Any) -> dict[str, Any]:
        return {"total": state["total"].value}


def a_statistic_that_one_rank_has() -> None:
    """It is sent to the others, which have to compute it."""
    wish: dict[str, Any] = {"blocks.0": [gh.Sphere()]}
    if rank() == size() - 1:
        wish["blocks.2"] = [Named((1, 2))]
    subject = Subject(CASES["sphere"], torch.float32, plant(seed=1))
    with torch.no_grad(), gh.watch(subject.model, statistics=wish, positions=POSITIONS) as watch:
        read(subject, subject.contexts[:2], watch)
    geometry = watch.geometry(sync=True)
    assert geometry.sites == ["blocks.0", "blocks.2"]
    assert len({float(t) for t in everywhere(geometry["blocks.2"].named.total)}) == 1

    class Local(Named):
        """Cannot be sent."""

    if rank() == size() - 1:
        wish["blocks.2"] = [Local()]
    with torch.no_grad(), gh.watch(subject.model, statistics=wish, positions=POSITIONS) as watch:
        read(subject, subject.contexts[:2], watch)
    message = same_error(lambda: watch.geometry(sync=True), SchemaError)
    assert "define the class at the top of a module" in message


def what_differs_is_told_everywhere() -> None:
    last = size() - 1
    subject = subjects()[0]
    odd = rank() == last
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("pos_ctx.contexts differs: 64 on rank 0, 32 on rank %d",
         {"statistics": [gh.PosCtx(contexts=64)]}, {"statistics": [gh.PosCtx(contexts=32)]}),
        ("the model: positions differs: 16 on rank 0, 8 on rank %d",
         {"positions": 16}, {"positions": 8}),
        ("skip differs: 0 on rank 0, 1 on rank %d", {}, {"skip_positions": 1}),
        ("exclude differs: [] on rank 0, [3] on rank %d", {}, {"exclude_token_ids": [3]}),
    ]  # fmt: skip
    for expected, usual, unusual in cases:
        options = {"statistics": [gh.Sphere()], "positions": POSITIONS, "sites": "blocks"}
        options |= unusual if odd else usual
        watch = gh.watch(subject.model, **options)
        if "exclude_token_ids" not in options:
            with watch:
                read(
                    subject,
                    [c for c in subject.contexts if c.positions[-1] < 8 or not odd][:4],
                    watch,
                )
        message = same_error(lambda watch=watch: watch.geometry(sync=True), SchemaError)
        assert expected % last in message, message
    # Of the same sites in another width, and in another model.
    for model, part in (
        (Stack(WIDTH + 2), "model differs"),
        (Swapped(Stack(WIDTH)), "model differs: 'Stack unnamed"),
    ):
        chosen = model if odd else subject.model
        with torch.no_grad(), gh.watch(chosen, sites="blocks.0", positions=4) as watch:
            chosen(torch.randn(2, 3, WIDTH + 2 if odd and model.__class__ is Stack else WIDTH))
        assert part in same_error(lambda watch=watch: watch.geometry(sync=True), SchemaError)
    # And after all these errors the ranks still reach each other.
    check(subject, watched(subject, mine(subject.contexts)).geometry(sync=True))


class Swapped(torch.nn.Module):
    """Another model with the same names."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.blocks = stack.blocks

    def forward(self, inputs_embeds: Any) -> Any:
        return self.blocks[0](inputs_embeds)


def one_shard_on_two_ranks() -> None:
    """All ranks have loaded the same state, as if it were each one's own."""
    subject = subjects()[0]
    state = everywhere(watched(subject, subject.contexts[:3]).state_dict())[0]
    watch = subject.new_watch()
    watch.load_state_dict(state)
    with watch:
        read(subject, mine(subject.contexts), watch)
    message = same_error(lambda: watch.geometry(sync=True), SchemaError)
    assert "is on rank 0 and on rank 1" in message
    assert "twice" in message


def loaded_and_going_on() -> None:
    """Each rank goes on from its own state; what was not allocated yet is counted as well."""
    for subject in together():
        share = mine(subject.contexts)
        state = watched(subject, share[:1]).state_dict()
        watch = subject.new_watch()
        watch.load_state_dict(state)
        if len(share) > 1 and rank() % 2:
            with watch:
                read(subject, share[1:], watch)
        elif len(share) > 1:  # nothing of it has run, and the state waits to be allocated
            other = watched(subject, share)
            watch = subject.new_watch()
            watch.load_state_dict(other.state_dict())
        check(subject, watch.geometry(sync=True))


class Breaking(gh.Sum):
    """Cannot be merged, on one rank."""

    def merge(self, other: Any, plan: Any = None) -> None:
        raise ZeroDivisionError("broken on purpose")


class Broken(LargestEntry):
    """Its state breaks where ranks are merged."""

    def accumulators(self, site: Any) -> dict[str, Any]:
        return {"largest": Breaking((site.positions,))}

    def update(self, state: Any, reading: Any) -> None:
        state["largest"].add(reading.taps["out"][..., 0], at=reading.tokens.positions)


def a_failure_on_one_rank() -> None:
    """In making the copy, and in merging: all ranks raise it, and none waits for ever."""
    subject = subjects()[0]
    watch = watched(subject, mine(subject.contexts))
    for broken in range(size()):
        original = watch._plan.snapshot
        if rank() == broken:
            watch._plan.snapshot = lambda *_: (_ for _ in ()).throw(MemoryError("no room"))
        message = same_error(lambda: watch.geometry(sync=True), WatchError)
        assert message == f"rank {broken} failed: MemoryError: no room"
        watch._plan.snapshot = original
    with torch.no_grad(), gh.watch(subject.model, statistics=[Broken()], positions=POSITIONS) as w:
        read(subject, subject.contexts[:2], w)
    message = same_error(lambda: w.geometry(sync=True), WatchError)
    assert message == "rank 0 failed: ZeroDivisionError: broken on purpose"
    check(subject, watch.geometry(sync=True))


class Sometimes(Stack):
    """Leaves out its last block if it is told so."""

    def forward(self, inputs_embeds: Any, leave_out: bool = False) -> Any:
        hidden = inputs_embeds
        for block in self.blocks[: 2 if leave_out else 3]:
            hidden = block(hidden)
        return hidden


def hooks_that_never_fired() -> None:
    """A site that fired on one rank has fired; one that fired on none is an error on all."""
    model = Sometimes(WIDTH)
    x = torch.randn(2, 4, WIDTH)
    watch = gh.watch(model, sites="blocks", statistics=[gh.Sphere()], positions=4).attach()
    with torch.no_grad():
        model(x, leave_out=rank() > 0)
    watch.detach()
    geometry = watch.geometry(sync=True)
    assert int(geometry["blocks.2"].sphere.norm.count) == 8
    assert int(geometry["blocks.1"].sphere.norm.count) == 8 * size()
    assert geometry.sites == ["blocks.0@in", "blocks.0", "blocks.1", "blocks.2"]
    watch = gh.watch(model, sites="blocks", statistics=[gh.Sphere()], positions=4).attach()
    with torch.no_grad():
        model(x, leave_out=True)
    watch.detach()
    message = same_error(lambda: watch.geometry(sync=True), HookError)
    assert message.startswith("1 of 4 hooks never fired: blocks.2.")
    geometry = watch.geometry(sync=True, strict=False)
    assert geometry.sites == ["blocks.0@in", "blocks.0", "blocks.1"]


def groups_of_ranks() -> None:
    """A group is reduced by itself; who is not in it is told so."""
    subject = subjects()[0]
    half = size() // 2
    groups = [dist.new_group(list(range(half))), dist.new_group(list(range(half, size())))]
    own = groups[rank() >= half]
    share = subject.contexts[rank() % half :: half]
    watch = watched(subject, share)
    subject.check(watch.geometry(sync=True, group=own))
    message = error_of(lambda: watch.geometry(sync=True, group=groups[rank() < half]), WatchError)
    assert "is not in the group" in message
    assert "sync=True" in error_of(lambda: watch.geometry(group=own), WatchError)


def the_numbers_of_a_geometry() -> None:
    """It is like any other: of the sites in order, saved, and merged with another run."""
    subject = subjects()[0]
    watch = watched(subject, mine(subject.contexts[:6]))
    first = watch.geometry(sync=True)
    watch.reset()
    with watch:
        read(subject, mine(subject.contexts[6:]), watch)
    second = watch.geometry(sync=True)
    subject.check(gh.merge([first, second]))
    # Rank 0 may go on from what all have counted, and the others from nothing.
    watch.reset()
    if rank() == 0:
        watch.load_state_dict(first.state_dict())
    with watch:
        read(subject, mine(subject.contexts[6:]), watch)
    check(subject, watch.geometry(sync=True))


CHECKS = [
    the_law_of_ranks,
    the_law_of_ranks_in_halves,
    packed_rows,
    a_fraction_of_the_forwards_of_each,
    contexts_that_several_ranks_share,
    the_local_state_stays,
    saved_on_every_rank_and_merged,
    uneven_steps,
    a_rank_without_data,
    a_rank_whose_state_is_empty,
    nothing_anywhere,
    running_numbers_of_contexts,
    more_contexts_than_are_kept_or_open,
    far_from_zero,
    stages_of_a_pipeline,
    sites_that_only_some_ranks_have,
    a_statistic_that_one_rank_has,
    what_differs_is_told_everywhere,
    one_shard_on_two_ranks,
    loaded_and_going_on,
    a_failure_on_one_rank,
    hooks_that_never_fired,
    groups_of_ranks,
    the_numbers_of_a_geometry,
]
