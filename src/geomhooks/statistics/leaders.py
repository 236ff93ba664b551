"""Who leads and who follows in live attention, were each token to attend to its largest score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count, Moments
from geomhooks.accumulators.noted import Noted
from geomhooks.accumulators.turns import Turns, check_fraction
from geomhooks.checks import check_needed, check_positive, is_number
from geomhooks.errors import SiteError
from geomhooks.forwards.token_stream import TokenStream
from geomhooks.functional.hardmax.follower_graphs import follower_graph
from geomhooks.functional.hardmax.hard_attention import Leading, hard_attention, leading_tokens
from geomhooks.functional.hardmax.token_covers import random_directions
from geomhooks.results import Result
from geomhooks.statistics.base import LAWS, Reading, Site
from geomhooks.statistics.leader_conditions import Facts
from geomhooks.statistics.leader_context import Context, score_rows
from geomhooks.statistics.leader_features import (
    GRAPH,
    LEADING,
    OF_TOKENS,
    add_both,
    add_by_first,
    by_feature,
    furthest_of_context,
    leader_numbers,
    token_numbers,
)
from geomhooks.statistics.leader_layers import OF_LAYERS, add_clusters, add_layer
from geomhooks.statistics.leader_results import describe_leaders
from geomhooks.statistics.leader_words import add_words, check_probe
from geomhooks.statistics.some_forwards import OF_A_SAMPLE, SomeForwards

__all__ = ["Leaders"]


class Leaders(SomeForwards):
    r"""Leaders, followers and clusters of tokens in each head of a live model, layer by layer.

    In attention at temperature zero a token moves towards the tokens that it attends to most,
    :math:`C_i`. It is a leader where :math:`C_i = \{i\}`; with a symmetric positive definite
    query-key form it then stays where it is, and all others end at leaders or on faces between them
    (A. Alcalde, G. Fantuzzi, E. Zuazua, "Clustering in pure-attention hardmax transformers and its
    role in sentiment analysis", arXiv 2407.01602). This takes its quantities from the live
    model: **diagnostics, and no confirmation of the theorem**, whose conditions no trained model
    meets. ``conditions`` says which ones fail, for each head.

    Scores are made again from each block's input, biases, norms, rotary embeddings, biases of
    distance and caps included, whatever way the model computes its attention; in blocks of rows of
    which each is reduced at once, so that no T x T matrix is kept. Masks, packed contexts and
    windows are as in :class:`geomhooks.Attention`; a token that is not counted, by
    ``exclude_token_ids``, is still attended to. It takes work T^2 (k + d) in each head, which is
    as much as a forward of a long context takes: see ``fraction``.

    Tokens nearer than ``radius`` are at one place, as repeated words are where nothing tells their
    positions, and count as one leader: the one that led in a layer before, else the first.

    Taken at all blocks of a stack (``sites="blocks"``) of models that :mod:`geomhooks.anatomy`
    knows.

    Args:
        tolerance: scores tie with the largest from ``largest - tolerance |largest|`` on; 0 for
            equality, which is for simulated dynamics.
        radius: how near tokens are that are at one place, in lengths of the longest of a context;
            1e-6 at least.
        cosine: tokens are of one cluster above it; see
            :func:`geomhooks.functional.cover_tokens`.
        directions: in how many fixed random directions the hull is looked at.
        words: of how many words the results have the counts, the most frequent.
        vocabulary: how many token ids to count words of; by default as many as the model's
            embeddings have. It takes 16 bytes for each, and 16 for all others together, at each
            block.
        probe: (w, b), w (d,) a vector and b a number, all finite: only leaders z with
            \|<w, z> + b\| above the ``threshold`` are counted as words. Files know it by a digest.
        threshold: see ``probe``.
        fraction: of the forwards that are looked at, evenly chosen.
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.
        rows: queries at a time; by default as many as make 4 million logits. It changes no number
            but by rounding.

    Results at blocks, of what the block's attention sees. Each has ``mean``, ``variance``
    (population), ``min``, ``max`` and ``count`` of shape (H,). Of contexts:

    - ``leaders``, how many; ``leader_share`` of the tokens; ``new_leaders``, that did not lead in a
      layer before; ``leaders_so_far``, in this layer or one before; ``overlap`` with the leaders of
      the first block, in the same head: how many are in both over how many are in either;
      ``initial_fraction``, how many the first block had for each here (the paper's "Frac. Ini.",
      there of the last layer); ``first_index_leaders``, those of the published code: the first
      largest score is the token's own.
    - ``attractors``, how many tokens are somebody's first hard target; ``in_degree``, the largest
      share of tokens that have the same; ``in_degree_entropy``, in nats.
    - ``basins``: at how many tokens or cycles one ends who goes from token to target to its target;
      ``basin``, the share of the largest; ``depth``, the most steps it takes.

    Of tokens:

    - ``sink``, the share whose first target is position 0.
    - ``largest``, the largest share of attention; ``entropy`` of attention in nats; ``softness``,
      the distance of total variation to hardmax attention; ``ties``, :math:`|C_i|`.
    - ``distance`` from the mean m of the targets, ``distance_after`` the block, and their
      ``ratio``, :math:`1 / (1 + \alpha)` in the paper's dynamics; ``step``, how much of the way z
      to m the block goes, :math:`\alpha / (1 + \alpha)` there; ``unexplained``, the share of its
      squared move that is not on that way (:mod:`geomhooks.functional.hardmax.hard_attention`).
      Tokens that are at m have neither.

    Of the block, () each: ``cluster_count``, how many clusters it leaves in a context; ``outside``,
    the share of tokens that it puts outside of the hull of those before, as far as the directions
    show; ``norm_decreased``, the share whose length it shortens. Both are 0 in the dynamics.
    ``seen`` has ``outside``, and ``norm_decreased`` (H,), of the states through the norm before
    attention, the lengths being those of the head's own form where that has no negative eigenvalue
    (``seen.own_form``), else plain ones. Before the first block there is ``cluster_count`` alone.

    - ``any_head``: the first group with a token leading where it leads in some head, () each;
      ``mean_heads``: the means of the others averaged over heads that have one.
    - ``words``: ``ids`` (W,) of the tokens that lead most often, ``counts`` (W,), once for each
      head in which they do, and their ``total`` over all words; ``beyond``, how often words led
      whose ids are not below ``vocabulary``, which are in none of the others.
    - ``conditions``: ``symmetric_share``, ``positive`` and ``negative`` eigenvalues of the
      symmetric part of the query-key form, ``value_identity_share``, ``value_step``, (H,) each (see
      :func:`geomhooks.anatomy.hardmax_facts`); ``hold``, whether all do, and ``reasons`` why not,
      sentences. Of the weights at the first forward that was counted.
    - ``left_out``: real tokens that count nowhere: not finite, or of a forward that went on with a
      cache, whose keys are not at hand.

    ``without_first`` has all of these without tokens at position 0, which under a causal mask
    attend to themselves: they are not counted as leaders, targets or ends. What others attend to
    does not change.

    Raises:
        ValueError: an argument is not what it has to be.
        SiteError: a probe is of another width.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(
        ...     num_hidden_layers=2,
        ...     hidden_size=8,
        ...     num_attention_heads=2,
        ...     intermediate_size=16,
        ...     vocab_size=10,
        ... )
        >>> model = BertModel(config).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Leaders()]) as watch:
        ...     _ = model(torch.randint(10, (4, 12)))
        >>> found = watch.geometry()["encoder.layer.1"].leaders
        >>> found.leaders.mean.shape, found.without_first.sink.count.tolist()
        (torch.Size([2]), [44, 44])
        >>> bool(found.conditions.hold), found.conditions.reasons[0]
        (False, 'it has 2 heads, not one')
    """

    optional_taps: ClassVar[tuple[str, ...]] = ("in",)
    follows_blocks: ClassVar[bool] = True
    uses: tuple[str, ...] = ("query_key", "stack")

    def __init__(
        self,
        tolerance: float = 1e-5,
        radius: float = 1e-4,
        cosine: float = 0.9,
        directions: int = 64,
        words: int = 20,
        vocabulary: int | None = None,
        probe: tuple[Tensor, float] | str | None = None,
        threshold: float = 0.0,
        fraction: float = 1.0,
        positions: int | None = None,
        rows: int | None = None,
    ) -> None:
        for name, number, low, high in (
            ("tolerance", tolerance, 0, 1),
            ("radius", radius, 1e-6, 1),
            ("cosine", cosine, -1, 1),
            ("threshold", threshold, 0, math.inf),
        ):
            if not is_number(number) or not low <= number <= high:
                raise ValueError(
                    f"Leaders({name}={number!r}): a number from {low:g} to {high:g} is needed"
                )
        check_needed("Leaders", directions=directions, words=words)
        check_positive("Leaders", vocabulary=vocabulary, positions=positions, rows=rows)
        self.tolerance, self.radius, self.cosine = float(tolerance), float(radius), float(cosine)
        self.directions, self.words, self.vocabulary = directions, words, vocabulary
        self.threshold, self.positions = float(threshold), positions
        self.fraction = check_fraction(fraction, "Leaders(fraction")
        self.probe, self._probe = check_probe(probe, float(threshold))
        self.laws = (LAWS if fraction == 1 else OF_A_SAMPLE) - {"generation"}
        self._rows = rows
        self._facts: dict[str, Facts] = {}
        self._drawn: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def shared(self, stream: TokenStream) -> dict[str, Accumulator]:
        """The number of the forward: the first of a window looks at the weights."""
        return {Turns.NAME: Turns()}

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Moments of tokens, of contexts, and of the layer; counts of words; the conditions.

        Raises:
            SiteError: a probe is of another width.
        """
        made: dict[str, Accumulator] = {"layer": Moments((2, len(OF_LAYERS)))}
        heads = site.heads
        if not heads:
            return made
        if self._probe is not None and len(self._probe.weight) != site.width:
            raise SiteError(
                f"Leaders at {site.name!r}: hidden states are of width {site.width}, and the probe "
                f"of width {len(self._probe.weight)}"
            )
        from geomhooks.anatomy.hardmax_conditions import FACTS

        made |= {
            "tokens": Moments((2, len(OF_TOKENS) * heads)),
            "leading": Moments((2, len(LEADING) * (heads + 1))),
            "graph": Moments((2, len(GRAPH) * heads)),
            "seen": Moments((2, 1 + heads)),
            "conditions": Noted((heads, len(FACTS))),
            "left_out": Count((2,)),
        }
        vocabulary = self.vocabulary or site.vocabulary
        if vocabulary:
            made["words"] = Count((2, vocabulary + 1))  # the last, of those beyond
        return made

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add one forward.

        Raises:
            SiteError: the statistic knows its probe by the digest alone.
        """
        if self.probe is not None and self._probe is None:
            raise SiteError(
                f"Leaders at {reading.site.name!r} knows its probe by its digest alone; give the "
                "probe, gh.Leaders(probe=(w, b)), to look at forwards"
            )
        there = Context.of(reading)
        if reading.query_key is None or "tokens" not in state:
            add_clusters(state["layer"], there, self.cosine)
            return
        reach = self.radius * furthest_of_context(
            torch.linalg.vector_norm(there.before, dim=-1), there.keys, there.home
        )
        heads = reading.site.heads
        begun, known = self._led_before(reading, (len(there.keys), heads, there.tokens.length))
        found = hard_attention(
            score_rows(reading.query_key, there, self._rows),
            there.before,
            there.after,
            reach,
            there=there.keys,
            home=there.home,
            known=known,
            tolerance=self.tolerance,
        )
        leading = leading_tokens(found, known)
        begun = leading.now if reading.site.depth == 1 else begun
        self._carry(reading, begun, leading)
        numbers = by_feature(token_numbers(found, there.tokens.first, reach))
        add_by_first(state["tokens"], numbers, there.counted, there.tokens)
        own = torch.arange(there.tokens.length, device=there.home.device)
        first_index = (found.targets == own) & (found.ties > 0)
        both = [
            (
                leader_numbers(leading, begun, first_index, counted, there.home),
                torch.stack(follower_graph(found.targets, there.keys, counted, there.home, hidden)),
            )
            for counted, hidden in ((there.counted, None), (there.later, there.tokens.first))
        ]
        for name, pair in zip(("leading", "graph"), zip(*both, strict=True), strict=True):
            add_both(state[name], *(by_feature(numbers) for numbers in pair))
        add_layer(
            state["layer"],
            state["seen"],
            reading.query_key,
            there,
            self._note(state, reading),
            self._directions_for(there.before),
            self.cosine,
        )
        if "words" in state:
            add_words(state["words"], leading.now, there, self._probe)
        lost = there.tokens.real & ~there.counted
        first = there.tokens.first
        state["left_out"].value.add_(torch.stack([(lost & ~first).sum(), (lost & first).sum()]))

    def _led_before(
        self, reading: Reading, shape: tuple[int, int, int]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Who led at the first block, and who at any so far, (B, H, T); None where not seen."""
        seen = reading.carry.pop((reading.site.stack, shape), None)
        if seen is None or reading.site.depth == 1:
            return None, None
        begun, so_far = (which.to(reading.taps["out"].device) for which in seen)
        return begun, so_far

    def _carry(self, reading: Reading, begun: Tensor | None, leading: Leading) -> None:
        """Leave to the next block who led at the first one, and who has so far."""
        if begun is not None and not reading.site.last:
            shape = tuple(leading.now.shape)
            reading.carry[reading.site.stack, shape] = begun, leading.so_far

    def _note(self, state: Mapping[str, Any], reading: Reading) -> Tensor:
        """Put down what is known of the weights; (H,) bool on the host, a head's form is a norm."""
        assert reading.block is not None
        name, block = reading.site.name, reading.block
        held = self._facts.get(name)
        # The first forward of a window looks anew: weights may have been trained.
        if held is None or held.module != id(block.module) or reading.plans[Turns.NAME] == 0:
            held = self._facts[name] = Facts.of(block)
        state["conditions"].add(held.facts.to(reading.taps["out"].device))
        return held.own_form

    def _directions_for(self, states: Tensor) -> Tensor:
        """(n, d) the directions in which the hull is looked at, where the states are."""
        key = states.shape[-1], states.device, states.dtype
        if key not in self._drawn:
            self._drawn[key] = random_directions(self.directions, states.shape[-1]).to(states)
        return self._drawn[key]

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Everything, with and without position 0."""
        rest = describe_leaders(state, self.words, without=True)
        everything = describe_leaders(state, self.words, without=False)
        return everything | {"without_first": Result(**rest)}
