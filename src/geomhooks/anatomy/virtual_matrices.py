"""The query-key forms and value-output maps of a model's heads, and what their spectra say.

From weights alone; :mod:`geomhooks.functional` has the mathematics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from geomhooks.anatomy.parts import Attention, Heads
from geomhooks.errors import AnatomyError
from geomhooks.functional.attention.virtual_matrices import (
    FoldedHeads,
    QueryKeyForm,
    ValueOutputMap,
    fold_norm,
    query_key_form,
    value_output_map,
)
from geomhooks.functional.low_rank import coverage_index, factored_svd, symmetric_part
from geomhooks.functional.rank import effective_rank
from geomhooks.functional.sphere.norm_geometry import NormConstants, norm_constants, standardise
from geomhooks.norms import NormModule

__all__ = [
    "HeadSpectra",
    "Matrix",
    "constants_of_norm",
    "head_spectra",
    "query_key_form_of",
    "standardised",
    "value_output_of",
]

Matrix = Literal["query_key", "value_output"]


def standardised(states: Tensor, norm: NormModule | None) -> Tensor:
    """States (..., d) before the gain and shift of a norm, or as they are where there is none."""
    return states if norm is None else standardise(states, norm.eps, centred=norm.centred)


def constants_of_norm(norm: NormModule, width: int) -> NormConstants:
    """Centre, plane and axes of the ellipsoid on which a norm's outputs lie.

    Args:
        norm: such as ``attention.norm``, or ``final_norm`` of a stack.
        width: d.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import find_anatomy
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=10))
        >>> found = constants_of_norm(find_anatomy(model).stack().final_norm, 16)
        >>> found.largest_axis, found.anisotropy, found.plane_distance
        (tensor(4.), tensor(1.), tensor(0.))
    """
    weight = getattr(norm.module, "weight", None)
    like = weight.detach() if isinstance(weight, Tensor) else torch.empty(0, device="cpu")
    gain, shift = norm.affine(like.new_empty(width))
    return norm_constants(gain, shift, centred=norm.centred)


def query_key_form_of(
    attention: Attention,
    distance: int = 0,
    *,
    folded: bool = True,
    centred: bool = False,
    last: int | None = None,
) -> QueryKeyForm:
    """The logits of each head as a form of a query's and a key's state.

    Of states that :func:`standardised` gives, its terms add up to the model's own logits before the
    mask (and before the cap, where there is one).

    Args:
        attention: of one block.
        distance: how many tokens the query is after the key; it matters with a rotary embedding and
            where logits have a bias for distance, which is then part of the constant.
        folded: take the gain and shift of the norm into the form. Otherwise it is one of the norm's
            output, as Molina has it, and query-only and key-only terms are those of the biases.
        centred: of :func:`geomhooks.functional.fold_norm`; for LayerNorm.
        last: position of the last token of the text, for rotary embeddings whose frequencies depend
            on it (LongRoPE, dynamic scaling); by default the later of the two.

    Raises:
        AnatomyError: a norm over the entries of queries or keys stands between: no bilinear form.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import find_anatomy
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
        >>> form = query_key_form_of(find_anatomy(model).at(1))
        >>> form.left.shape, form.key_only.shape, form.constant.shape
        (torch.Size([2, 8, 4]), torch.Size([2, 8]), torch.Size([2]))
    """
    if attention.query_norm is not None or attention.key_norm is not None:
        raise AnatomyError(
            f"{attention.name} norms its queries or keys, so that its logits are no bilinear form "
            "of the states; geomhooks.anatomy.attention_logits has them for given states"
        )
    query = fold(attention, attention.query, folded, centred)
    key = fold(attention, attention.key, folded, centred, read_by_cross=True)
    places = torch.tensor([max(distance, 0), max(-distance, 0)], device=query.weight.device)
    rotary = None
    if attention.rotary is not None:
        told = places if last is None else torch.cat((places, places.new_tensor([last])))
        every = attention.rotary(told)
        rotary = every._replace(cos=every.cos[:2], sin=every.sin[:2])
    form = query_key_form(query, key, attention.scale, rotary)
    if attention.distance is not None:
        bias = attention.distance(places[:1], places[1:])[:, 0, 0]
        form = form._replace(constant=form.constant + bias.to(form.constant))
    return form


def value_output_of(
    attention: Attention, *, folded: bool = True, centred: bool = False
) -> ValueOutputMap:
    """What each head adds for a state that is looked at.

    Of states that :func:`standardised` gives, weighted by the shares of attention and added up over
    tokens and heads, and with ``attention.output.bias``, it is the model's own output of attention.

    Args:
        attention: of one block.
        folded: take the gain and shift of the norm into the map.
        centred: of :func:`geomhooks.functional.fold_norm`; for LayerNorm.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import find_anatomy
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
        >>> value_output_of(find_anatomy(model).at(0)).updates(torch.randn(5, 8)).shape
        torch.Size([2, 5, 8])
    """
    value = fold(attention, attention.value, folded, centred, read_by_cross=True)
    return value_output_map(value, attention.output.weight)


def fold(
    attention: Attention, heads: Heads, folded: bool, centred: bool, read_by_cross: bool = False
) -> FoldedHeads:
    """A projection with the norm before it; of another stack's output, cross-attention has none."""
    norm = attention.norm
    if norm is None or not folded or (attention.cross and read_by_cross):
        return fold_norm(*heads)
    gain, shift = norm.affine(heads.weight[0, :, 0])
    return fold_norm(*heads, gain, shift, centred=centred)


@dataclass(frozen=True)
class HeadSpectra:
    """Spectra of one kind of matrix of all heads of an attention.

    Attributes:
        attention: its name.
        of: "query_key" or "value_output".
        values: (H, p) singular values, the largest first.
        coverage_index: (H,) index of the first with which they cover more than 99 % of their sum.
        effective_rank: (H,).
        positive: (H,) how many eigenvalues of the symmetric part are positive.
        negative: (H,) how many are negative.
        positive_share: (H,) of their absolute sum, what is positive.
        antisymmetric_share: (H,) of the sum of squares of the matrix.
    """

    attention: str
    of: Matrix
    values: Tensor
    coverage_index: Tensor
    effective_rank: Tensor
    positive: Tensor
    negative: Tensor
    positive_share: Tensor
    antisymmetric_share: Tensor

    def table(self) -> list[dict[str, Any]]:
        """A row for each head."""
        columns = ("coverage_index", "effective_rank", "positive", "negative", "positive_share",
                   "antisymmetric_share")  # fmt: skip
        return [
            {"attention": self.attention, "of": self.of, "head": head}
            | {"largest": float(self.values[head, 0])}
            | {name: getattr(self, name)[head].item() for name in columns}
            for head in range(len(self.values))
        ]


def factors(
    attention: Attention, of: Matrix, distance: int, folded: bool, centred: bool
) -> tuple[Tensor, Tensor]:
    """Left and right factor, (H, d, k) each, of a kind of matrix.

    Raises:
        TypeError: it is no attention.
        ValueError: there is no such kind.
        AnatomyError: there is no such matrix.
    """
    if not isinstance(attention, Attention):
        raise TypeError(
            f"a {type(attention).__name__} is no attention; find_anatomy(model).at(layer) is one"
        )
    if of not in get_args(Matrix):
        raise ValueError(f"of={of!r}: 'query_key' or 'value_output' is needed")
    if of == "query_key":
        form = query_key_form_of(attention, distance, folded=folded, centred=centred)
        return form.left, form.right
    mapped = value_output_of(attention, folded=folded, centred=centred)
    return mapped.left, mapped.right


def head_spectra(
    attention: Attention,
    of: Matrix = "query_key",
    *,
    distance: int = 0,
    folded: bool = True,
    centred: bool = False,
) -> HeadSpectra:
    """Spectra of the query-key forms or value-output maps of all heads.

    Args:
        attention: of one block.
        of: "query_key" or "value_output".
        distance: of :func:`query_key_form_of`, for query-key forms.
        folded: with the gain of the norm in them. Molina's are without.
        centred: without the direction of ones.

    Raises:
        ValueError: there is no such kind.
        AnatomyError: see :func:`query_key_form_of`.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import find_anatomy
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
        >>> found = head_spectra(find_anatomy(model).at(0))
        >>> found.values.shape, found.table()[1]["head"], found.table()[1]["positive"]
        (torch.Size([2, 4]), 1, 4)
    """
    left, right = factors(attention, of, distance, folded, centred)
    values = factored_svd(left, right).values
    part = symmetric_part(left, right)
    return HeadSpectra(
        attention.name,
        of,
        values,
        coverage_index(values),
        torch.stack([effective_rank(head) for head in values]),
        part.positive,
        part.negative,
        part.positive_share,
        part.antisymmetric_share,
    )
