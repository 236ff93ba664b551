"""Figures that need the model itself beside its geometry: heads of attention, on one text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from html import unescape
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from geomhooks.errors import FigureError, GeomhooksError
from geomhooks.functional.attention.query_key import QUERY_KEY_PARTS
from geomhooks.report.figures import query_key_logits, singular_value_coverage
from geomhooks.report.figures.found import thinned
from geomhooks.report.figures.layers import add_slider
from geomhooks.report.figures.words import Words, word
from geomhooks.report.rendering import Entry
from geomhooks.report.theme import visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geomhooks.anatomy.logits import SplitLogits
    from geomhooks.snapshot import Geometry

__all__ = ["entries_of_model", "head_shares"]

LAYERS = 8  # that are looked at, evenly spaced
TOKENS = 32  # of the text
BEGINNING = 100  # letters of it that are told
HEADS = 12  # of a layer whose curves are drawn
PLACE = ((QUERY_KEY_PARTS.index("pos"),), (QUERY_KEY_PARTS.index("pos"),))
TEXT = (QUERY_KEY_PARTS.index("ctx"), QUERY_KEY_PARTS.index("resid"))


class Head(NamedTuple):
    """One head on one text."""

    block: str
    split: SplitLogits
    head: int


def entries_of_model(
    geometry: Geometry, model: nn.Module, prompt: Tensor | None, words: Words | None
) -> list[Entry]:
    """Figures of a model's heads, which are left out where its parts are not known.

    Args:
        geometry: of the model.
        model: that it was measured on.
        prompt: (1, T) token ids of a text.
        words: as in :func:`geomhooks.report.figures.word_paths`.
    """
    entries = [
        Entry(
            "singular_value_coverage",
            "How many directions heads use",
            partial(guarded, partial(coverage_by_layer, model)),
        )
    ]
    if prompt is None:
        return entries
    splits = cache(partial(_splits, geometry, model, prompt[:, :TOKENS]))
    ids = prompt[0, :TOKENS].tolist()
    texts = [word(words, token) for token in ids] if words is not None else None
    # The page escapes its texts itself.
    read = "" if texts is None else visible(" ".join(map(unescape, texts)), BEGINNING)
    beginning = f"The text begins: {read}" if read else ""

    def logits(parts: tuple[tuple[int, ...], tuple[int, ...]]) -> go.Figure:
        found = _most(splits(), parts)
        figure = query_key_logits(found.split, found.head, words=texts, block=found.block)
        about = figure.layout.meta
        said = f"{about['explanation']} {beginning}".rstrip()
        return figure.update_layout(meta=about | {"explanation": said})

    for name, heading, parts in (
        ("query_key_logits_place", "The head that looks most at places, on one text", PLACE),
        (
            "query_key_logits_text",
            "The head that looks most at the text, on one text",
            (TEXT, TEXT),
        ),
    ):
        entries.append(Entry(name, heading, partial(guarded, partial(logits, parts))))
    return entries


def guarded(make: Callable[[], go.Figure]) -> go.Figure:
    """A figure, or a FigureError where the model's parts are not known or do not run."""
    try:
        return make()
    except FigureError:
        raise
    except (GeomhooksError, RuntimeError, ValueError, TypeError) as error:
        raise FigureError(f"the model's heads cannot be drawn: {error}") from error


def coverage_by_layer(model: nn.Module) -> go.Figure:
    """The coverage of the singular values of heads, with a slider over the blocks."""
    from geomhooks.anatomy import find_anatomy, head_spectra

    anatomy = find_anatomy(model)
    names = [block.name for block in anatomy.stack().blocks]
    made = {
        names[at]: singular_value_coverage(head_spectra(anatomy.at(at)), HEADS)
        for at in thinned(len(names), LAYERS)
    }
    first = next(iter(made.values()))
    figure = first.__class__(layout=first.layout)
    return add_slider(
        figure,
        {name: list(single.data) for name, single in made.items()},
        {name: single.layout.title.text for name, single in made.items()},
    )


def head_shares(split: SplitLogits, query: tuple[int, ...], key: tuple[int, ...]) -> Tensor:
    r"""What parts make of the variance of each head's logits over the keys that a query sees, (H,).

    With parts :math:`l_i` of the logits l, centred over the keys of each query,
    :math:`\sum l_i l / \sum l^2`.

    Args:
        split: of one text.
        query: parts of the query.
        key: parts of the key.
    """
    seen = split.allowed[0]
    known = split.logits[:, :, 0].nan_to_num()
    number = seen.sum(-1, keepdim=True).clamp(min=1)

    def centred(values: Tensor) -> Tensor:
        mean = (values * seen).sum(-1, keepdim=True) / number
        return (values - mean) * seen

    whole = centred(known.sum((0, 1)))
    part = centred(known[list(query)][:, list(key)].sum((0, 1)))
    return (part * whole).sum((-2, -1)) / (whole**2).sum((-2, -1))


def _splits(geometry: Geometry, model: nn.Module, prompt: Tensor) -> dict[str, SplitLogits]:
    """By block, of some of them."""
    from geomhooks.anatomy import attention_parts, find_anatomy

    names = [block.name for block in find_anatomy(model).stack().blocks]
    device = next(model.parameters()).device
    inputs = {"input_ids": prompt.to(device)}
    return {
        names[at]: attention_parts(model, geometry, inputs, at)
        for at in thinned(len(names), LAYERS)
    }


def _most(splits: dict[str, SplitLogits], parts: tuple[tuple[int, ...], tuple[int, ...]]) -> Head:
    """The head of the largest share."""
    shares = {
        name: head_shares(split, *parts).nan_to_num(-torch.inf) for name, split in splits.items()
    }
    block = max(shares, key=lambda name: float(shares[name].max()))
    return Head(block, splits[block], int(shares[block].argmax()))
