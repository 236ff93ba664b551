"""Where to look: module names, stacks of blocks, and the tensor of an input or an output."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import EinopsError, rearrange
from torch import Tensor, nn

from geomhooks.errors import SiteError

__all__ = [
    "ALIASES",
    "Place",
    "Selector",
    "canonical_name",
    "find_stacks",
    "find_tensor",
    "is_norm",
    "named_modules",
    "rearranged",
    "select",
    "to_batch_time_width",
    "unwrap",
]

Selector = str | Iterable[str] | Callable[[str, nn.Module], bool]
ALIASES = ("blocks", "attention", "mlp", "norms", "embeddings")
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# The module that a component of TransformerLens's bridge stands for. The component is the one that
# is called, and its output is what goes on, with what the user's hooks have made of it.
STOOD_FOR = "_original_component"


@dataclass(frozen=True)
class Place:
    """A module whose input or output is to be read, and its place in a stack of blocks."""

    name: str
    module: nn.Module
    is_input: bool = False
    kind: str = "other"
    stack: str = ""
    first: bool = False
    last: bool = False


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DistributedDataParallel and their like."""
    for _ in range(8):
        inner = next((model._modules.get(name) for name in WRAPPERS if _wraps(model, name)), None)
        if inner is None:
            return model
        model = inner
    return model


def _wraps(model: nn.Module, name: str) -> bool:
    """A model of one's own may well have a child called "module"; a wrapper has nothing else."""
    return list(model._modules) == [name]


def is_compiled(model: nn.Module) -> bool:
    """The model or a part of it was given to ``torch.compile``, as far as it shows."""
    return any(
        module._compiled_call_impl is not None or "_orig_mod" in module._modules
        for module in model.modules()
    )


def canonical_name(name: str) -> str:
    """A module's name without what wrappers add to it.

    Example:
        >>> canonical_name("_orig_mod.module.encoder.layer.0")
        'encoder.layer.0'
    """
    return ".".join(part for part in name.split(".") if part not in (*WRAPPERS, STOOD_FOR))


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by canonical name; of a wrapper and what it wraps, what is wrapped."""
    found: dict[str, nn.Module] = {}
    taken: dict[str, str] = {}
    for name, module in _walk(model, "", set()):
        canonical = canonical_name(name)
        if (
            canonical in found
            and found[canonical] is not module
            and not _wraps_directly(taken[canonical], name)
        ):
            canonical = name
        found[canonical] = module
        taken[canonical] = name
    return found


def _walk(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Modules in the order of registration, each once, but for those that a component stands for.

    What these hold comes last: the bridge has given most of it a name of its own.
    """
    if module in seen:
        return
    seen.add(module)
    if name.rpartition(".")[2] != STOOD_FOR:
        yield name, module
    for child in sorted(module._modules, key=lambda child: child == STOOD_FOR):
        held = module._modules[child]
        if held is not None:
            yield from _walk(held, f"{name}.{child}" if name else child, seen)


def _wraps_directly(outer: str, inner: str) -> bool:
    return inner.startswith(outer) and inner[len(outer) :].lstrip(".") in WRAPPERS


def find_stacks(model: nn.Module) -> dict[str, list[tuple[str, nn.Module]]]:
    """The stacks of repeated blocks, outermost first, by the name of the container.

    A stack is a ``ModuleList``, ``Sequential``, or a ``ModuleDict`` by number, that lies in no
    other. Those whose blocks hold attention are taken if there are any, so that a convolutional
    front end is not one; else those with the most parameters.

    Example:
        >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, batch_first=True), 3)
        >>> {name: len(blocks) for name, blocks in find_stacks(encoder).items()}
        {'layers': 3}
    """
    modules = named_modules(model)
    stacks: dict[str, list[tuple[str, nn.Module]]] = {}
    for name, module in modules.items():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) and not is_numbered(module):
            continue
        if any(_inside(name, other) for other in stacks):
            continue
        prefix = f"{name}." if name else ""
        named = {
            prefix + canonical_name(n): unwrap(child)
            for n, child in module._modules.items()
            if child is not None
        }
        # A block that stands in several places is one module, and has the first one's name.
        blocks = [(n, child) for n, child in named.items() if n in modules]
        repeated = _repeated(blocks, plain=isinstance(module, nn.Sequential))
        if repeated:
            stacks[name] = repeated
    attending = {n: b for n, b in stacks.items() if any(_attends(m) for _, m in b)}
    if attending:
        return attending
    sizes = {n: sum(p.numel() for _, m in b for p in m.parameters()) for n, b in stacks.items()}
    largest = max(sizes.values(), default=0)
    return {n: b for n, b in stacks.items() if sizes[n] == largest}


def is_numbered(module: nn.Module) -> bool:
    """A dictionary of blocks by number, as stages of a pipeline keep their part of a list."""
    return isinstance(module, nn.ModuleDict) and all(name.isdigit() for name in module)


def _repeated(blocks: list[tuple[str, nn.Module]], plain: bool) -> list[tuple[str, nn.Module]]:
    """The blocks of a container, or none if nothing in it is repeated.

    A ModuleList holds blocks and nothing else, perhaps of several classes (hybrid models). In a
    Sequential they may stand between an embedding and a head, and are of one class.
    """
    if not plain:
        return blocks if any(any(True for _ in m.parameters()) for _, m in blocks) else []
    counts = Counter(type(m) for _, m in blocks if any(True for _ in m.parameters()))
    if not counts:
        return []
    kind, number = counts.most_common(1)[0]
    return [(n, m) for n, m in blocks if type(m) is kind] if number > 1 else []


def _inside(name: str, outer: str) -> bool:
    return outer == "" or name.startswith(outer + ".")


def _attends(block: nn.Module) -> bool:
    return any(_is_attention(n, m) for n, m in block.named_modules())


def _is_attention(name: str, module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower() or bool(
        re.search(r"(^|\.)(self_)?(attn|attention)$", name)
    )


def _is_mlp(name: str, module: nn.Module) -> bool:
    return bool(
        re.search(
            r"mlp|feedforward|ffn|moe|denserelu|denseact|sparse.*block",
            type(module).__name__.lower(),
        )
        or re.search(r"(^|\.)(mlp|ffn|feed_forward|ff)$", name)
    )


def is_norm(name: str, module: nn.Module) -> bool:
    """A norm over the entries of a token, by its class."""
    kind = type(module).__name__.lower()
    over_others = re.search(r"(batch|group|instance|response|weight|spectral)norm", kind)
    return "norm" in kind and not over_others and not list(module.children())


def _is_embedding(name: str, module: nn.Module) -> bool:
    kind, last = type(module).__name__.lower(), name.rpartition(".")[2].lower()
    return "embed" in kind and not re.search(
        r"pos|rotary|wpe|type|patch_embeddings|bias|unembed", f"{last} {kind}"
    )


KINDS: dict[str, Callable[[str, nn.Module], bool]] = {
    "attention": _is_attention,
    "mlp": _is_mlp,
    "norms": is_norm,
    "embeddings": _is_embedding,
}


def select(model: nn.Module, sites: Selector) -> list[Place]:
    """Turn an alias, globs or a predicate into places, in the order of registration.

    In a glob ``*`` stands for anything but a dot, ``**`` for anything.

    Raises:
        SiteError: nothing matches; names that are near are listed.
    """
    modules = named_modules(model)
    stacks = find_stacks(model)
    if callable(sites):
        chosen = [(name, False) for name, module in modules.items() if sites(name, module)]
        if not chosen:
            raise SiteError("the sites predicate was True for none of the model's modules")
    else:
        patterns = [sites] if isinstance(sites, str) else list(sites)
        if not patterns:
            raise SiteError("no sites given; name an alias, a module, a glob, or a predicate")
        chosen = list(dict.fromkeys(c for p in patterns for c in _match(p, modules, stacks)))
    order = {name: index for index, name in enumerate(modules)}
    chosen.sort(key=lambda c: (order[c[0]], not c[1]))
    position = {
        name: (stack, index == 0, index == len(blocks) - 1)
        for stack, blocks in stacks.items()
        for index, (name, _) in enumerate(blocks)
    }
    places = []
    for name, is_input in chosen:
        stack, first, last = position.get(name, ("", False, False))
        kind = "block" if name in position else _kind(name, modules[name])
        places.append(
            Place(
                f"{name}@in" if is_input else name,
                modules[name],
                is_input,
                kind,
                stack,
                first,
                last,
            )
        )
    return places


def _kind(name: str, module: nn.Module) -> str:
    short = {"norms": "norm"}
    return next((short.get(k, k) for k, test in KINDS.items() if test(name, module)), "other")


def _match(
    pattern: Any, modules: dict[str, nn.Module], stacks: dict[str, list[tuple[str, nn.Module]]]
) -> list[tuple[str, bool]]:
    """The (name, is input) that one pattern selects."""
    if not isinstance(pattern, str):
        raise SiteError(f"a site is named by a string, not {type(pattern).__name__} {pattern!r}")
    if pattern == "blocks":
        if not stacks:
            raise SiteError(
                "no stack of repeated blocks found; name the modules to watch, for example "
                f"{_examples(modules)}"
            )
        return [
            choice
            for blocks in stacks.values()
            for index, (name, _) in enumerate(blocks)
            for choice in ([(name, True)] if index == 0 else []) + [(name, False)]
        ]
    if pattern in KINDS and pattern not in modules:
        found = [name for name, module in modules.items() if name and KINDS[pattern](name, module)]
        if len(stacks) == 1:  # a decoder of BART's kin alone has cross-attention that never runs
            found = [n for n in found if not re.search(r"\.encoder_attn(_layer_norm)?$", n)]
        if pattern != "norms":  # of nested matches the outermost; but never a whole stack of blocks
            found = [
                n
                for n in found
                if not any(b == n or b.startswith(n + ".") for s in stacks.values() for b, _ in s)
            ]
            found = [n for n in found if not any(n.startswith(o + ".") for o in found)]
        if pattern == "embeddings":
            found = [n for n in found if not _is_shadow(n, found, modules)]
        if pattern == "mlp" and not found:  # BERT and its kin: block.intermediate, block.output
            found = [
                f"{b}.output" for s in stacks.values() for b, _ in s if f"{b}.output" in modules
            ]
        if not found:
            raise SiteError(
                f"no module looks like {pattern!r}; name them, for example {_examples(modules)}"
            )
        return [(name, False) for name in found]
    glob, _, ending = pattern.partition("@")
    if ending not in ("", "in") or pattern.endswith("@"):
        raise SiteError(f"{pattern!r}: after @ only 'in' is allowed, for the input of a module")
    expression = re.compile(_glob_to_regex(canonical_name(glob)))
    found = [name for name in modules if expression.fullmatch(name)]
    if not found:
        near = difflib.get_close_matches(glob, modules, n=5, cutoff=0.4)
        hint = f"near names: {', '.join(near)}" if near else f"there are {_examples(modules)}"
        raise SiteError(f"no module matches {pattern!r}; {hint}; aliases: {', '.join(ALIASES)}")
    return [(name, ending == "in") for name in found]


def _is_shadow(name: str, names: list[str], modules: dict[str, nn.Module]) -> bool:
    """A shared table that only lends its weight to modules deeper in the model is never called."""
    weight = getattr(modules[name], "weight", None)
    return weight is not None and any(
        other.count(".") > name.count(".") and getattr(modules[other], "weight", None) is weight
        for other in names
    )


def _glob_to_regex(glob: str) -> str:
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]*\])", glob)
    rules = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return "".join(rules.get(p, p if p.startswith("[") else re.escape(p)) for p in parts)


def _examples(modules: dict[str, nn.Module]) -> str:
    names = [name for name in modules if name]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


PREFERRED = (
    "last_hidden_state",
    "hidden_states",
    "hidden_state",
    "inputs_embeds",
    "src",
    "tgt",
    "x",
    "input",
)


def find_tensor(value: Any) -> Tensor | None:
    """The hidden state in what a module takes or returns: the first floating tensor in it.

    Tuples and lists are searched in order; dictionaries and dataclasses by the usual names first.
    """
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, (tuple, list)):
        for item in value:
            found = find_tensor(item)
            if found is not None:
                return found
        return None
    if isinstance(value, Mapping):
        named: Mapping[str, Any] = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    else:
        return None
    for name in (*(n for n in PREFERRED if n in named), *named):
        found = find_tensor(named[name])
        if found is not None:
            return found
    return None


def describe_type(value: Any) -> str:
    """The type of what was found instead of a hidden state."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}"
    if isinstance(value, (tuple, list)):
        return (
            f"a {type(value).__name__} of {', '.join(describe_type(v) for v in value) or 'nothing'}"
        )
    return f"a {type(value).__name__}"


def rearranged(tensor: Tensor, name: str, layout: str) -> Tensor:
    """A site's tensor by the pattern that was given for it.

    Raises:
        SiteError: the pattern does not fit.
    """
    try:
        return rearrange(tensor, layout)
    except EinopsError as error:
        raise SiteError(
            f"site {name!r}: layout {layout!r} does not fit {tuple(tensor.shape)}: {error}"
        ) from error


def to_batch_time_width(
    tensor: Tensor, name: str, layout: str | None, grid: tuple[int, int] | None
) -> Tensor:
    """Bring a site's tensor to (B, T, d).

    Args:
        tensor: what was found.
        name: the site, for messages.
        layout: an einops pattern, or None.
        grid: (B, T) of the tokens, where something tells; packed (tokens, d) become that grid, and
            where nothing tells every row is a context of its own.

    Raises:
        SiteError: the tensor has another number of dimensions, or the pattern does not fit.
    """
    if tensor.is_nested:
        size = None if grid is None else (*grid, int(tensor.size(-1)))
        tensor = torch.nested.to_padded_tensor(tensor, 0.0, output_size=size)
    if tensor.ndim == 2 and grid == (1, len(tensor)):
        return tensor[None]  # one row, without the batch
    if layout is not None:
        tensor = rearranged(tensor, name, layout)
    if tensor.ndim == 2:
        if grid is not None and grid[0] * grid[1] == tensor.shape[0]:
            return tensor.reshape(*grid, tensor.shape[1])
        return tensor[:, None]
    if tensor.ndim != 3:
        raise SiteError(
            f"site {name!r} has a tensor of shape {tuple(tensor.shape)}; (batch, time, d) or "
            "(tokens, d) is needed. Give an einops pattern that brings it there, such as "
            "layout='b c h w -> b (h w) c'."
        )
    return tensor
