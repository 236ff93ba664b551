"""What the theorem on hardmax attention asks of a block, and what the block is instead.

A. Alcalde, G. Fantuzzi and E. Zuazua (arXiv 2407.01602) prove that tokens cluster around leaders
where one head attends by a symmetric positive definite form, moves tokens by a multiple of
themselves, and nothing else is there. From weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomhooks.anatomy.parts import Attention, BlockParts
from geomhooks.anatomy.virtual_matrices import query_key_form_of, value_output_of
from geomhooks.functional.low_rank import symmetric_part

__all__ = ["FACTS", "HardmaxFacts", "hardmax_facts", "reasons_against"]

FACTS = (
    "symmetric_share",
    "positive",
    "negative",
    "value_identity_share",
    "value_step",
    "causal",
    "window",
    "positional",
    "biased",
    "normed",
    "other_sublayers",
)
"""What is known of each head, in order; the last six are of the block, 0 or 1, or a number."""

EXACT = 1e-6  # of a share, for it to be all


class HardmaxFacts(dict[str, Tensor]):
    """(H,) of each of ``FACTS``."""

    @classmethod
    def of(cls, facts: Tensor) -> HardmaxFacts:
        """Of (H, F)."""
        return cls(zip(FACTS, facts.unbind(1), strict=True))


def hardmax_facts(block: BlockParts) -> Tensor:
    """(H, F) float64 in the order of ``FACTS``; NaN where a head has no bilinear form.

    ``symmetric_share`` is |S|^2 / |M|^2 for M the query-key form at distance 0 with the norm's gain
    in it, and S its symmetric part, which has ``positive`` and ``negative`` eigenvalues;
    ``value_identity_share`` is the share of the squared value-output map that a multiple of the
    identity has, and ``value_step`` that multiple, alpha in the paper.

    Args:
        block: with one self-attention.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from geomhooks.anatomy import find_anatomy
        >>> model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
        >>> facts = HardmaxFacts.of(hardmax_facts(find_anatomy(model).stack().blocks[0]))
        >>> facts["positive"].tolist(), facts["causal"].tolist()
        ([4.0, 4.0], [1.0, 1.0])
    """
    attention = block.attention
    (scale,) = (sublayer.scale for sublayer in block.sublayers if sublayer.part is attention)
    heads, width = attention.heads, attention.query.weight.shape[1]
    shape = (heads,)
    if attention.query_norm is not None or attention.key_norm is not None:
        share = positive = negative = torch.full(
            shape, torch.nan, device=attention.query.weight.device
        )
    else:
        form = query_key_form_of(attention)
        part = symmetric_part(form.left.double(), form.right.double())
        share, positive, negative = 1 - part.antisymmetric_share, part.positive, part.negative
    mapped = value_output_of(attention)
    left, right = mapped.left.double(), mapped.right.double()
    trace = (left * right).sum((1, 2))
    square = ((left.mT @ left) * (right.mT @ right)).sum((1, 2))
    flags = (
        attention.causal,
        attention.window is not None,
        attention.rotary is not None or attention.distance is not None,
        is_biased(attention),
        attention.norm is not None
        or any(s.after is not None or s.closing is not None for s in block.sublayers),
        len(block.sublayers) - 1,
    )
    of_heads = (share, positive, negative, trace.square() / (width * square), scale * trace / width)
    device = attention.query.weight.device
    columns = [value.to(device, torch.float64) for value in of_heads]
    columns += [columns[0].new_full(shape, float(flag)) for flag in flags]
    return torch.stack(columns, 1)


def is_biased(attention: Attention) -> bool:
    """Logits have terms besides the product of two states, or are capped."""
    biases = (attention.query.bias, attention.key.bias)
    return any(b is not None and bool(b.any()) for b in biases) or attention.softcap is not None


def reasons_against(facts: HardmaxFacts, width: int) -> tuple[str, ...]:
    """Why the theorem says nothing of a block, a sentence each; empty where it holds.

    Args:
        facts: of a block.
        width: d.
    """
    heads = len(facts["causal"])
    block = {name: float(facts[name][0]) for name in FACTS[5:]}
    found = [f"it has {heads} heads, not one"] if heads > 1 else []
    share, step = facts["symmetric_share"], facts["value_step"]
    identity = facts["value_identity_share"]
    definite = (facts["positive"] == width) & (facts["negative"] == 0)
    for failed, what in (
        (share.isnan(), "queries or keys are normed, so that logits are no form of the states"),
        (
            share < 1 - EXACT,
            f"the query-key form is not symmetric (symmetric share {spread(share)})",
        ),
        (
            ~share.isnan() & ~definite,
            f"its symmetric part is not positive definite ({spread(facts['positive'], 'd')} "
            f"eigenvalues of {width} are positive, {spread(facts['negative'], 'd')} negative)",
        ),
        (
            (identity < 1 - EXACT) | ~(step > 0),
            "value and output are no positive multiple of the identity, which has "
            f"{spread(identity)} of their squares",
        ),
    ):
        if bool(failed.any()):
            found.append(f"{named(failed)}: {what}")
    told = {
        "causal": "the mask is causal: the token at position 0 attends to itself, whatever it is",
        "window": "a token sees those of a window only",
        "positional": "logits depend on the distance of the tokens",
        "biased": "logits have biases or a cap",
        "normed": "there are norms",
        "other_sublayers": "there are other sublayers than attention",
    }
    return (*found, *(what for name, what in told.items() if block[name]))


def named(heads: Tensor) -> str:
    """Which heads, (H,) bool, in words.

    Example:
        >>> named(torch.tensor([True, False, True])), named(torch.tensor([True]))
        ('heads 0, 2', 'all heads')
    """
    if bool(heads.all()):
        return "all heads"
    return f"heads {', '.join(map(str, heads.nonzero().flatten().tolist()))}"


def spread(values: Tensor, kind: str = ".2g") -> str:
    """From the smallest to the largest of those that are numbers.

    Example:
        >>> spread(torch.tensor([0.25, 0.5])), spread(torch.tensor([4.0, 4.0]), "d")
        ('0.25 to 0.5', '4')
    """
    known: Sequence[float] = values[~values.isnan()].tolist()
    if not known:
        return "nothing"
    ends = [f"{v:{'.0f' if kind == 'd' else kind}}" for v in (min(known), max(known))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
