"""From a model and a wish to a frozen plan: which module, which tensors, which accumulators.

Everything that can be decided before a forward is decided here, so that a forward runs straight.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from geomhooks.errors import SiteError
from geomhooks.forwards.openers import (
    config_of,
    enclosing,
    find_openers,
    opening_module,
    positions_from_config,
)
from geomhooks.forwards.running import looks_at
from geomhooks.norms import inspect_norm
from geomhooks.plan import Plan, SitePlan
from geomhooks.reductions import NAMES
from geomhooks.sites import (
    Place,
    Selector,
    find_stacks,
    is_norm,
    named_modules,
    select,
    unwrap,
)
from geomhooks.state import State
from geomhooks.statistics import PosCtx, Sphere
from geomhooks.statistics.base import Statistic

if TYPE_CHECKING:
    from geomhooks.anatomy.families import Anatomy, Stack

__all__ = ["make_plan"]

DEFAULT_OPEN = 256
TIME_FIRST = "t b d -> b t d"
AVAILABLE_TAPS = ("out", "in", "gain", "bias")
AVAILABLE_PARTS = ("query_key", "logit_lens", "head", "additions", "heads", "stack")
OF_BLOCKS = {
    "query_key": "the attention of blocks",
    "additions": "what the sublayers of blocks add",
    "heads": "what the heads of blocks mix",
}


def make_plan(
    model: nn.Module,
    sites: Selector | None,
    statistics: Sequence[Statistic] | Mapping[Any, Sequence[Statistic]] | None,
    *,
    positions: int | None,
    exclude: Iterable[int],
    skip: int,
    layout: str | Mapping[str, str] | None,
    shard: str,
) -> Plan:
    """Resolve sites, statistics and token streams once."""
    if not isinstance(model, nn.Module):
        raise SiteError(f"watch needs a torch.nn.Module, not {type(model).__name__}")
    root = unwrap(model)
    for name, value, least in (("positions", positions, 1), ("skip_positions", skip, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise SiteError(f"watch({name}={value!r}): an integer of at least {least} is needed")
    exclude = list(exclude) if isinstance(exclude, Iterable) else [exclude]
    if not all(isinstance(i, int) for i in exclude):
        raise SiteError(f"exclude_token_ids={exclude!r}: integers are needed")
    wishes = read_wishes(sites, statistics)
    by_name = check_statistics(wishes)
    places: dict[str, Place] = {}
    taken: dict[str, list[Statistic]] = {}
    for selector, chosen in wishes:
        for place in select(root, selector):
            places[place.name] = place
            for statistic in chosen:
                if place.is_input and "in" in statistic.taps:
                    continue  # an input has no input of its own
                there = taken.setdefault(place.name, [])
                if all(statistic.name != other.name for other in there):  # once, however often said
                    there.append(statistic)
    modules = named_modules(root)
    order = {name: index for index, name in enumerate(modules)}
    chosen_places = sorted(
        (p for n, p in places.items() if taken.get(n)),
        key=lambda p: (order.get(p.name.removesuffix("@in"), 0), not p.is_input),
    )
    if not chosen_places:
        raise SiteError(
            "no site is left: the statistics need the tap 'in', which inputs (name@in) lack"
        )
    check_layout(layout, chosen_places)
    stacks = find_stacks(root)
    watched = {p.name for p in chosen_places}
    streams = {p.name: opening_module(p.name.removesuffix("@in"), modules) for p in chosen_places}
    plans = [
        SitePlan(
            p,
            taken[p.name],
            streams[p.name],
            layout_of(p, layout, modules),
            inspect_norm(p.module) if is_norm(p.name, p.module) and not p.is_input else None,
            bool(p.stack or p.kind == "block")
            and all(n in watched for n, _ in stacks.get(p.stack, [])),
        )
        for p in chosen_places
    ]
    describe_parts(root, plans)
    stated = {s.positions for s in by_name.values() if s.positions is not None}
    if len(stated) > 1:
        raise SiteError(
            f"statistics state different positions ({', '.join(map(str, sorted(stated)))}); one "
            "token stream has one capacity: state it once, watch(..., positions=T)"
        )
    capacity = stated.pop() if stated else positions
    configs = {name: config_of(name, modules) for name in set(streams.values())}
    capacities = {n: capacity or positions_from_config(c, n) for n, c in configs.items()}
    opens = [s.open_contexts for s in by_name.values() if isinstance(s, PosCtx)]
    state = State(
        by_name,
        describe_model(model),
        [shard],
        selection={
            "sites": [p.name for p in chosen_places],
            "exclude": exclude,
            "skip": skip,
        },
    )
    warn_of_other_models(by_name.values(), state.model)
    return Plan(
        root,
        plans,
        find_openers(root, modules, [p.name.removesuffix("@in") for p in chosen_places]),
        state,
        capacities,
        max(opens, default=DEFAULT_OPEN),
        tuple(exclude),
        skip,
        configs=configs,
    )


def describe_parts(root: nn.Module, plans: Iterable[SitePlan]) -> None:
    """Find what statistics use of the model's anatomy.

    Raises:
        AnatomyError: the model is of no family that is known, or lacks what is used.
        SiteError: such a statistic is to be taken where there is nothing of the kind.
    """
    plans = [plan for plan in plans if any(statistic.uses for statistic in plan.statistics)]
    if not plans:
        return
    from geomhooks.anatomy.finding import find_anatomy, find_blocks
    from geomhooks.anatomy.live import LiveBlock, LiveLens

    family, blocks = find_blocks(root)
    known = {block.name: block for block in blocks}
    stacks = list(dict.fromkeys(block.stack for block in blocks))
    anatomy = cache(lambda: find_anatomy(root))  # which tries every norm of the model
    lenses: dict[str, LiveLens] = {}
    watched = {(plan.place.name, s.name) for plan in plans for s in plan.statistics}
    for plan in plans:
        name, stack = plan.place.name, plan.place.stack
        used = next((what for what in OF_BLOCKS if plan.uses(what)), None)
        if used is not None and not plan.place.is_input:
            if name not in known:
                raise SiteError(
                    f"{user_of(plan, used)} reads {OF_BLOCKS[used]}, and {name!r} is none of "
                    f"them; give it the sites 'blocks', or some of {', '.join([*known][:3])}, ..."
                )
            plan.block = LiveBlock(family, known[name])
        if plan.uses("additions") and plan.block is not None:
            plan.looks = looks_at(plan.block.latest, plan.uses("heads"))
        if plan.uses("stack"):
            plan.around = stack_around(plan, anatomy(), watched)
        if plan.uses("logit_lens") or plan.uses("head"):
            if not stack and len(stacks) > 1:
                raise SiteError(
                    f"{user_of(plan, 'logit_lens', 'head')} looks at states through the final norm "
                    f"of their stack, and {name!r} may be of any of {', '.join(stacks)}; give it "
                    "the sites 'blocks'"
                )
            if plan.place.kind == "norm" and not plan.place.is_input:
                raise SiteError(
                    f"{user_of(plan, 'logit_lens', 'head')} looks at states through the final "
                    f"norm, and those of {name!r} have been through a norm; give it the sites "
                    "'blocks', or what goes into the norm, '<name>@in'"
                )
            stack = stack or stacks[0]
            if stack not in lenses:
                lenses[stack] = LiveLens(root, anatomy(), stack)
            plan.lens = lenses[stack]
            if plan.uses("head") and plan.lens.head() is None:
                raise SiteError(
                    f"{user_of(plan, 'head')} puts states through the model's head, and "
                    f"{type(root).__name__} has none that is known; give it a model with a head "
                    "for language modelling"
                )


def stack_around(plan: SitePlan, anatomy: Anatomy, watched: set[tuple[str, str]]) -> Stack:
    """The stack that a site is in, from the first block's input to the last block.

    Raises:
        SiteError: the site is none of them, or what comes before it is not watched.
    """
    name, user = plan.place.name, user_of(plan, "stack")
    stack = anatomy.stacks.get(plan.place.stack)
    names = [] if stack is None else [f"{stack.blocks[0].name}@in", *(b.name for b in stack.blocks)]
    if stack is None or name not in names:
        raise SiteError(
            f"{user} follows hidden states from block to block, and {name!r} is no block and not "
            "what comes into the first one; give it the sites 'blocks'"
        )
    missing = [other for other in names[: names.index(name)] if (other, user) not in watched]
    if missing:
        raise SiteError(
            f"{user} at {name!r} goes on from the sites before it, of which {missing[0]!r} is not "
            "watched; give it the sites 'blocks'"
        )
    return stack


def user_of(plan: SitePlan, *what: str) -> str:
    """The name of a statistic that uses one of some things."""
    return next(s.name for s in plan.statistics if set(what) & set(s.uses))


def warn_of_other_models(statistics: Iterable[Statistic], model: str) -> None:
    """Warn of a statistic that goes by what was measured on a model of another size."""

    def size(description: str) -> str:
        return description.rpartition(" (")[2]

    for statistic in statistics:
        theirs = getattr(statistic, "measured_on", None)
        if theirs is not None and size(theirs) != size(model):
            warnings.warn(
                f"{statistic.name} was given the geometry of {theirs}, and this is {model}; its "
                "numbers mean something only if both have the same hidden states",
                stacklevel=4,
            )


def read_wishes(
    sites: Selector | None,
    statistics: Sequence[Statistic] | Mapping[Any, Sequence[Statistic]] | None,
) -> list[tuple[Selector, list[Statistic]]]:
    """Pairs of sites and what to measure there."""
    if isinstance(statistics, Mapping):
        if sites is not None:
            raise SiteError("statistics is a dictionary from sites; leave out sites, which it says")
        return [
            (selector, [wish] if isinstance(wish, Statistic) else list(wish))
            for selector, wish in statistics.items()
        ]
    if statistics is None:
        chosen: list[Statistic] = [PosCtx(), Sphere()]
    else:
        chosen = [statistics] if isinstance(statistics, Statistic) else list(statistics)
    return [("blocks" if sites is None else sites, chosen)]


def check_statistics(wishes: list[tuple[Selector, list[Statistic]]]) -> dict[str, Statistic]:
    """The statistics by name; each must be one, and known by one name."""
    found: dict[str, Statistic] = {}
    for _, statistics in wishes:
        for statistic in statistics:
            if not isinstance(statistic, Statistic):
                raise SiteError(
                    f"{statistic!r} is no statistic; give instances of gh.Statistic, such as "
                    "gh.PosCtx()"
                )
            if statistic.scope not in ("site", "stream", "model"):
                raise SiteError(
                    f"{statistic.name}: scope {statistic.scope!r}; site, stream or model is allowed"
                )
            for tap in (*statistic.taps, *statistic.optional_taps):
                if tap not in AVAILABLE_TAPS:
                    raise SiteError(
                        f"{statistic.name}: tap {tap!r}; there are {', '.join(AVAILABLE_TAPS)}"
                    )
            for part in statistic.uses:
                if part not in AVAILABLE_PARTS:
                    raise SiteError(
                        f"{statistic.name}: uses {part!r}; there are {', '.join(AVAILABLE_PARTS)}"
                    )
            taps = (*statistic.taps, *statistic.optional_taps)
            if "additions" in statistic.uses and "in" not in taps:
                raise SiteError(
                    f"{statistic.name}: uses 'additions', which are made to a block's input; its "
                    "taps must have 'in'"
                )
            if "heads" in statistic.uses and "additions" not in statistic.uses:
                raise SiteError(
                    f"{statistic.name}: uses 'heads', which are of additions; it must use "
                    "'additions' too"
                )
            for need in statistic.needs:
                if need not in NAMES:
                    raise SiteError(
                        f"{statistic.name}: need {need!r}; there are {', '.join(sorted(NAMES))}"
                    )
            if found.setdefault(statistic.name, statistic).parameters != statistic.parameters:
                raise SiteError(
                    f"two different statistics named {statistic.name!r} in one watch; use two "
                    "watches"
                )
    if not found:
        raise SiteError("no statistics given; such as statistics=[gh.PosCtx(), gh.Sphere()]")
    return found


def check_layout(layout: Any, places: Sequence[Place]) -> None:
    """Raise unless every pattern is one, and is for some site."""
    patterns = layout if isinstance(layout, Mapping) else {} if layout is None else {"*": layout}
    for glob, pattern in patterns.items():
        if not isinstance(pattern, str) or pattern.count("->") != 1:
            raise SiteError(
                f"layout {pattern!r} is no einops pattern; such as 'b c h w -> b (h w) c'"
            )
        if not any(fnmatch.fnmatchcase(place.name, glob) for place in places):
            raise SiteError(
                f"layout: no site matches {glob!r}; there are {', '.join(p.name for p in places)}"
            )


def layout_of(
    place: Place, layout: str | Mapping[str, str] | None, modules: Mapping[str, nn.Module]
) -> str | None:
    """The einops pattern for a site; torch's own transformer layers tell theirs."""
    if isinstance(layout, str):
        return layout
    for glob, pattern in (layout or {}).items():
        if fnmatch.fnmatchcase(place.name, glob):
            return pattern
    name = place.name.removesuffix("@in")
    around = [modules[outer] for outer in (name, *enclosing(name), "") if outer in modules]
    return TIME_FIRST if any(takes_time_first(module) for module in around) else None


def takes_time_first(module: nn.Module) -> bool:
    """One of torch's own modules for sequences, with time before batch."""
    if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
        return any(takes_time_first(layer) for layer in module.layers)
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        module = module.self_attn
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase, nn.Transformer)):
        return not module.batch_first
    return False


def describe_model(model: nn.Module) -> str:
    """A name by which to tell that two files are of one model."""
    root = unwrap(model)
    config = getattr(root, "config", None)
    name = getattr(config, "name_or_path", "") or getattr(config, "_name_or_path", "")
    parameters = sum(p.numel() for p in root.parameters())
    return f"{type(root).__name__} {name or 'unnamed'} ({parameters} parameters)"
