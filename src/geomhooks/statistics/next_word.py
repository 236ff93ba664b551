"""How far hidden states have turned from their own word to the next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count, Moments
from geomhooks.checks import check_positive
from geomhooks.errors import TokensError
from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.shapes import as_float
from geomhooks.functional.sphere.logit_lens import LogitLens
from geomhooks.results import Result
from geomhooks.statistics.base import LAWS, Reading, Site, Statistic
from geomhooks.statistics.by_position import by_position
from geomhooks.statistics.through_lens import through_lens

__all__ = ["NextWord"]

FEATURES = ("pull", "next_cosine", "own_cosine")


class NextWord(Statistic):
    r"""How much more a hidden state is for the next word than for its own, under the logit lens.

    A state x of any layer is taken to the space of the last one by the final norm, and compared
    with the rows of the head there: y = norm(x), and :math:`l_w` the logit that the head gives a
    word w, bias and cap on logits included. With :math:`w_t` the word that comes in at position t,

    .. math:: s_t = l_{w_{t+1}}(y_t) - l_{w_t}(y_t)
                  = \log p(w_{t+1}) - \log p(w_t),

    as all logits of a token share one normalisation. A word is found to start out at itself and to
    end near the next one (R. Molina, "Traveling Words: A Geometric Interpretation of Transformers",
    arXiv 2309.07315; s is from the experiment in the repository's branch ``distance-experiment``).

    The next word of a token is the next real token of its row, if it is of the same context. The
    last token of a row has none in its forward and is not counted: contexts that go on in other
    forwards, as in generation, lose one pair for each, and ``laws`` says so.

    Taken where :mod:`geomhooks.anatomy` knows the model. Where it has no head, or one that is more
    than a projection, as models for masked words have, the rows of its token embeddings stand in
    for one. The rows of all tokens and of their next ones are held for the time of a forward.

    Args:
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

    Each of the following results has ``mean``, ``variance`` (population), ``min``, ``max`` and
    ``count`` over all tokens, and ``at_position`` the same at each position, shape (T,):

    - ``pull``: s, in nats. Positive where the next word is more likely than the own one.
    - ``next_cosine`` and ``own_cosine`` of y and the row of the next word, and of the own.

    And ``without_next``, real tokens that have no next one, or whose id or that of the next is none
    of the head's. Numbers that are not finite count nothing.

    ``without_first`` holds all of them without position 0, whose token often is an outlier.

    Raises:
        TokensError: in a forward whose tokens have no ids.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=10)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.NextWord()]) as watch:
        ...     _ = model(torch.randint(10, (3, 16)))
        >>> geometry = watch.geometry()
        >>> geometry["transformer.h.1"].next_word.pull.count
        tensor(45)
        >>> geometry.stack("next_word.pull.mean").shape
        torch.Size([3])
    """

    uses: tuple[str, ...] = ("logit_lens",)
    laws = LAWS - {"generation"}

    def __init__(self, positions: int | None = None) -> None:
        check_positive("NextWord", positions=positions)
        self.positions = positions

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Moments by position; those without a next word, away from position 0 and at it."""
        return {
            "moments": Moments((site.positions, len(FEATURES))),
            "without_next": Count((2,)),
        }

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add one forward.

        Raises:
            TokensError: its tokens have no ids.
        """
        states, tokens, lens = through_lens(reading), reading.tokens, reading.lens
        assert lens is not None
        # One stack of blocks has one lens; tokens are the same object at all sites of a device.
        key = reading.site.stack, id(tokens)
        if key not in reading.carry:
            reading.carry[key] = tokens, pair_words(tokens, lens, reading.site.name)
        pair: Pairs = reading.carry[key][1]
        values = torch.stack(compare(states, pair, lens), -1)
        state["moments"].add(values, at=tokens.at, where=pair.known)
        lost = tokens.real & ~pair.known
        state["without_next"].value.add_(
            torch.stack([(lost & ~tokens.first).sum(), (lost & tokens.first).sum()])
        )

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Everything, with and without position 0."""
        later, first = state["without_next"].value.unbind()
        moments = state["moments"]
        everything = by_position(moments, FEATURES)
        without = by_position(moments, FEATURES, first=1)
        return everything | {
            "without_next": later + first,
            "without_first": Result(**without, without_next=later),
        }


class Pairs(NamedTuple):
    """The words of one forward's tokens.

    Attributes:
        known: (B, T) bool, tokens that have a next one, and words that the head knows.
        own: rows (B, T, d) and biases (B, T) of their words.
        following: of their next words.
        lengths: (B, T) of the rows of both.
    """

    known: Tensor
    own: tuple[Tensor, Tensor | None]
    following: tuple[Tensor, Tensor | None]
    lengths: tuple[Tensor, Tensor]


def pair_words(tokens: Tokens, lens: LogitLens, site: str) -> Pairs:
    """Look up the words of a forward's tokens, and of the tokens that follow them.

    Raises:
        TokensError: the tokens have no ids.
    """
    ids, real = tokens.ids, tokens.real
    if ids is None:
        raise TokensError(
            f"next_word at {site!r} needs the ids of the tokens, and the call that shows it "
            f"{tuple(real.shape)} hidden states had no input_ids of that shape. Give input_ids "
            "instead of inputs_embeds, or run these forwards under watch.pause()"
        )
    follower, has_one = next_tokens(tokens)
    next_ids = ids.gather(1, follower)
    number = len(lens.rows)
    known = real & has_one
    for some in (ids, next_ids):
        known = known & (some >= 0) & (some < number)

    def look_up(some: Tensor) -> tuple[Tensor, Tensor | None]:
        words = torch.where(known, some, 0).to(lens.rows.device)
        rows, offsets = lens.words(words)
        return rows.to(real.device), None if offsets is None else offsets.to(real.device)

    own, following = look_up(ids), look_up(next_ids)
    lengths = [torch.linalg.vector_norm(as_float(rows), dim=-1) for rows, _ in (own, following)]
    return Pairs(known, own, following, (lengths[0], lengths[1]))


def next_tokens(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Column (B, T) of each token's next one, and whether (B, T) there is one.

    It is the next real token of the row, where both are in one context.
    """
    real, length = tokens.real, tokens.length
    column = torch.arange(length, device=real.device).expand_as(real)
    at_or_after = torch.where(real, column, length).flip(1).cummin(1).values.flip(1)
    after = torch.nn.functional.pad(at_or_after[:, 1:], (0, 1), value=length)
    follower = after.clamp(max=length - 1)
    has_one = after < length
    if tokens.segments is not None:
        has_one = has_one & (tokens.segments == tokens.segments.gather(1, follower))
    return follower, has_one


def compare(states: Tensor, pairs: Pairs, lens: LogitLens) -> tuple[Tensor, Tensor, Tensor]:
    """Pull, and cosines with the next and with the own word, (B, T) each.

    Args:
        states: (B, T, d) as the final norm makes them.
        pairs: their words.
        lens: how logits are made.
    """
    plain = lens._replace(offsets=None, softcap=None)
    own, following = (
        plain.logits(states, (rows, None)) for rows, _ in (pairs.own, pairs.following)
    )
    length = torch.linalg.vector_norm(states, dim=-1)
    own_length, next_length = pairs.lengths
    cosines = following / (length * next_length), own / (length * own_length)
    if lens.offsets is not None or lens.softcap is not None:
        own, following = lens.logits(states, pairs.own), lens.logits(states, pairs.following)
    return following - own, *cosines
