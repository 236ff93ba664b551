"""What the parts of a model contribute to its hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count, Moments
from geomhooks.accumulators.table import EMPTY, Table, hash_keys
from geomhooks.checks import check_flags, check_needed, check_positive
from geomhooks.errors import SiteError
from geomhooks.forwards.tokens import Tokens
from geomhooks.functional.components.indicators import Indicators, indicators
from geomhooks.functional.shapes import as_float
from geomhooks.reductions.plain import sum_by_context, wide_of
from geomhooks.results import Result, Unavailable
from geomhooks.statistics.base import LAWS, Reading, Site, Statistic
from geomhooks.statistics.by_position import by_position
from geomhooks.statistics.looked_at import continued, looked_at
from geomhooks.statistics.subset_scores import add_scores, score_sums, scores, subsets, targets_of

if TYPE_CHECKING:
    from geomhooks.anatomy.terms import Terms

__all__ = ["Components"]

Method = Literal["muppet", "oh_schuler"]
Split = Literal["layer", "head"]
NAMES = Indicators._fields
SPLIT_TERMS = ("attention", "source", "feed_forward", "correction")


class Components(Statistic):
    r"""How much of each hidden state comes from the input, attention, feed-forward layers, biases.

    A hidden state is a sum of terms, whatever the weights of attention are, e = i + h + f + c:
    ``input`` i, what came into the first block; ``attention`` h, what attention made of values;
    ``feed_forward`` f, what feed-forward layers made; ``correction`` c, all biases and what norms
    shift; and in decoders of two stacks ``source``, what attention to the encoder brought. Norms on
    the way divide all terms alike (T. Mickus, D. Paperno, M. Constant, "How to Dissect a Muppet:
    The Structure of Transformer Embedding Spaces", TACL 2022, arXiv 2206.03529; the rules are those
    of :class:`geomhooks.anatomy.Terms`).

    ``method="oh_schuler"`` asks where a state comes from instead (B.-D. Oh, W. Schuler, "Token-wise
    Decomposition of Autoregressive Language Model Hidden States for Analyzing Model Predictions",
    ACL 2023, arXiv 2305.10614, with its rows for tokens added up): ``tokens``, all that the text's
    own tokens bring, through attention, the tangents of activations, and gates held fixed;
    ``source``; ``correction``; see :class:`geomhooks.anatomy.Origins`. It needs the weights of
    attention, which are computed again, (B, H, T, T) in each block; the first method needs none.

    Of each term z it keeps the indicators of :func:`geomhooks.functional.indicators`:
    ``importance`` <e, z> / |e|^2, which sums to one over the terms, ``cosine``, ``l2`` |z - e| and
    ``norm_ratio`` |z| / |e|.

    Both methods at once take two watches around one forward, or a subclass with a name of its own.

    Taken at all blocks of a stack (``sites="blocks"``) of models that :mod:`geomhooks.anatomy`
    knows. In a forward it keeps the running terms of one hidden state, four or five times its size
    in float32, and nothing else. In training, what is added counts before dropout, and ``gap``
    tells how far the terms are from the states.

    Args:
        method: "muppet" or "oh_schuler".
        final_norm: look at states through the norm after the last block, which models with norms
            before their sublayers have; else as they are.
        split: None; "layer": also attention, source, feed-forward and correction of each block
            apart, which takes as many hidden states in a forward; "head": also the heads of each
            block, which takes H times as many. Of the first method only.
        subsets: also put every sum of some of the terms, 2^K - 1 of them, through the norm after
            the last block and the model's head, and see how well it says the next word, or in a
            model for masked words those that ``labels=`` of its call asks for. That takes as many
            products with the whole vocabulary. Of the first method only.
        contexts: of how many contexts to keep the means, a uniform sample.
        own_means: with "oh_schuler" a norm takes its own mean off each term, as the published code
            does; else the mean of the whole off correction, as the first method does.
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

    Results, float64:

    - ``importance``, ``cosine``, ``l2``, ``norm_ratio``: each has the K terms by name, and each of
      these ``mean``, ``variance`` (population), ``min``, ``max`` and ``count`` over all tokens, and
      ``at_position`` the same at each position, (T,). The cosine of a term that is zero is left
      out.
    - ``gap``: the same for |sum of terms - e| / |e|: float32's rounding, and in half precision the
      model's own.
    - ``by_context``: ``context_id`` (C,) and ``tokens`` (C,), and means over the tokens of each
      context of the indicators by name, (C, K).
    - with ``split``: ``layers``, or ``heads``: by indicator and term the means (L,) over all tokens
      of what each block so far added, of heads (L, H). Correction has one more, first, of what
      comes before the blocks.
    - with ``subsets``, at the last block: ``subsets.accuracy`` and ``subsets.cross_entropy`` (in
      nats) of each sum by the names of its terms, as ``input_attention``, over ``subsets.count``
      tokens that have a word to be said.
    - ``left_out``: tokens without numbers: not finite, or of a forward that began behind the first
      block or, with "oh_schuler", went on with a cache, whose values are not at hand.

    Raises:
        ValueError: an argument is not what it has to be.
        TokensError: with ``subsets``, in a forward that does not tell what words there are.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> with torch.no_grad(), gh.watch(model, statistics=[gh.Components()]) as watch:
        ...     _ = model(torch.randint(10, (4, 6)))
        >>> found = watch.geometry()["h.1"].components
        >>> importance = [float(term.mean) for term in found.importance.values()]
        >>> list(found.importance), round(sum(importance), 5)
        (['input', 'attention', 'feed_forward', 'correction'], 1.0)
    """

    optional_taps: ClassVar[tuple[str, ...]] = ("in",)
    follows_blocks: ClassVar[bool] = True

    def __init__(
        self,
        method: Method = "muppet",
        final_norm: bool = False,
        split: Split | None = None,
        subsets: bool = False,
        contexts: int = 256,
        own_means: bool = True,
        positions: int | None = None,
    ) -> None:
        if method not in get_args(Method):
            raise ValueError(f"Components(method={method!r}): 'muppet' or 'oh_schuler'")
        if split not in (None, *get_args(Split)):
            raise ValueError(f"Components(split={split!r}): None, 'layer' or 'head'")
        if split is not None and method != "muppet":
            raise ValueError(f"Components(split={split!r}): only method='muppet' has such rows")
        if subsets and method != "muppet":
            raise ValueError(f"Components(subsets={subsets!r}): only of method='muppet'")
        check_positive("Components", positions=positions)
        check_needed("Components", contexts=contexts)
        check_flags("Components", final_norm=final_norm, subsets=subsets, own_means=own_means)
        self.method = method
        self.final_norm = final_norm
        self.split = split
        self.subsets = subsets
        self.contexts = contexts
        self.own_means = own_means
        self.positions = positions
        further = {"heads": split == "head", "head": subsets}
        self.uses = ("additions", "stack", *(name for name, wanted in further.items() if wanted))
        # With a cache, other values than this forward's are looked at, or other words come next.
        self.laws = LAWS - ({"generation"} if subsets or method == "oh_schuler" else set())

    def terms_at(self, site: Site) -> tuple[str, ...]:
        """The terms by name."""
        source = ("source",) if site.reads_source else ()
        if self.method == "oh_schuler":
            return ("tokens", *source, "correction")
        return ("input", "attention", *source, "feed_forward", "correction")

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Moments of indicators, by position, by context, and of rows.

        Raises:
            SiteError: not all blocks up to this one are watched.
        """
        if not site.whole_stack:
            raise SiteError(
                f"Components adds up what the blocks before {site.name!r} contributed, and not all "
                "blocks of its stack are watched; give it the sites 'blocks'"
            )
        features = len(NAMES) * len(self.terms_at(site))
        columns: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "total": ((features,), torch.float64),
            "count": ((features,), torch.int64),
        }
        made: dict[str, Accumulator] = {
            "moments": Moments((site.positions, features + 1)),
            "by_context": Table(self.contexts, columns),
            "left_out": Count(),
        }
        if self.split is not None:
            made["rows"] = Moments((1, len(NAMES) * sum(self._rows_at(site).values())))
        if self.subsets and site.last:
            made |= score_sums(len(subsets(self.terms_at(site))))
        return made

    def _rows_at(self, site: Site) -> dict[str, int]:
        """How many rows each term has where they are kept apart."""
        heads = [number for number in site.sublayers.values() if number]
        each = (heads[0] if heads else 1) if self.split == "head" else 1
        number = {"attention": each, "source": each, "feed_forward": 1}
        found = {name: site.depth * number.get(name, 1) for name in SPLIT_TERMS}
        if not site.reads_source:
            del found["source"]
        return found | {"correction": site.depth + 1}

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Carry the terms on, and add what they are of the state."""
        followed, tokens = self._follow(reading), reading.tokens
        keep = reading.reductions.keep
        if followed is None:
            state["left_out"].value.add_(tokens.real.sum())
            return
        if self.method == "oh_schuler":
            keep = keep & ~continued(tokens)
        state["left_out"].value.add_((tokens.real & ~keep).sum())
        whole = as_float(reading.taps["out"])
        norm, terms = None if reading.stack is None else reading.stack.final_norm, followed
        if self.final_norm and norm is not None:
            from geomhooks.anatomy.rebuilding import normed

            terms = followed.copy()
            terms.pass_norm(norm, whole)
            whole = normed(whole, norm)
        summed = terms.summed
        found = torch.stack(indicators(summed, whole)).flatten(0, 1)
        gap = (summed.sum(0) - whole).norm(dim=-1) / whole.norm(dim=-1)
        values = torch.cat([found, gap[None]]).movedim(0, -1)
        state["moments"].add(values, tokens.at, keep)
        add_by_context(state["by_context"], values[..., :-1], keep, tokens)
        if self.split is not None:
            rows = torch.cat([terms.rows[name] for name in self._rows_at(reading.site)])
            of_rows = torch.stack(indicators(rows, whole)).flatten(0, 1).movedim(0, -1)
            at = torch.zeros_like(tokens.positions)
            state["rows"].add(of_rows, at, keep)
        if "answers" in state:
            self._score(state, reading, followed)

    def _score(self, state: Mapping[str, Any], reading: Reading, terms: Terms) -> None:
        """Put sums of the last states' terms, which nobody needs any more, through the head."""
        around = reading.stack
        assert around is not None
        assert reading.head is not None
        if around.final_norm is not None:
            terms.pass_norm(around.final_norm, as_float(reading.taps["out"]))
        causal = around.blocks[0].attention.causal
        target, known = targets_of(reading.tokens, causal, reading.site.name)
        known = known & reading.reductions.keep
        chosen = subsets(self.terms_at(reading.site))
        add_scores(state, terms.summed, reading.head, target, known, chosen)

    def _follow(self, reading: Reading) -> Any:
        """The terms at this site, from those of the site before; None where there are none."""
        from geomhooks.anatomy.origins import Origins
        from geomhooks.anatomy.terms import Terms

        site, carry, around = reading.site, reading.carry, reading.stack
        assert around is not None
        if site.depth == 0:
            embedded, norm = reading.taps.get("embedded"), None
            if embedded is None:
                embedded = reading.taps["out"]
            elif around.embeddings is not None:
                norm = around.embeddings.norm
            source = site.reads_source
            carry[site.stack] = (
                Terms.begin(embedded, norm, source=source, split=self.split)
                if self.method == "muppet"
                else Origins.begin(embedded, norm, source=source, own_means=self.own_means)
            )
            return carry[site.stack]
        terms = carry.get(site.stack)
        if terms is None or reading.block is None:
            return None
        terms.to(reading.taps["out"].device)
        if isinstance(terms, Terms):
            terms.add_block(reading.block, reading.additions)
        else:
            tokens = reading.tokens
            there = tokens.real if tokens.present is None else tokens.present
            terms.add_block(
                reading.block,
                reading.taps["in"],
                reading.additions,
                tokens.positions,
                lambda attention: looked_at(tokens, there, attention.causal, attention.window),
            )
        if site.last:
            del carry[site.stack]
        return terms

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Everything."""
        site: Site = state["site"]
        moments: Moments = state["moments"]
        names, left_out = self.terms_at(site), state["left_out"].value
        if not int(moments["count"].sum()):
            reason = Unavailable(
                f"no token has been counted at this site; {int(left_out)} real tokens were left out"
            )
            return dict.fromkeys((*NAMES, "gap", "by_context"), reason) | {"left_out": left_out}
        columns = [f"{what} {term}" for what in NAMES for term in names]
        found = by_position(moments, [*columns, "gap"])
        out: dict[str, Any] = {
            what: Result(**{term: found[f"{what} {term}"] for term in names}) for what in NAMES
        }
        out |= {"gap": found["gap"], "left_out": left_out}
        out["by_context"] = of_contexts(state["by_context"], len(names))
        if "answers" in state:
            out["subsets"] = scores(state, list(subsets(names)))
        if self.split is not None:
            out["layers" if self.split == "layer" else "heads"] = self._of_rows(state, site)
        return out

    def _of_rows(self, state: Mapping[str, Any], site: Site) -> Result:
        """Means of the rows of each term."""
        rows = self._rows_at(site)
        means = state["rows"].summary()["mean"].view(len(NAMES), -1)
        out: dict[str, Any] = {}
        for index, name in enumerate(NAMES):
            parts = means[index].split(list(rows.values()))
            of_term = dict(zip(rows, parts, strict=True))
            if self.split == "head" and site.depth:
                heads = ("attention", "source")
                of_term |= {t: of_term[t].view(site.depth, -1) for t in heads if t in of_term}
            out[name] = Result(**of_term)
        return Result(**out)


def add_by_context(table: Table, values: Tensor, keep: Tensor, tokens: Tokens) -> None:
    """Add values (B, T, F) of tokens to the rows of their contexts."""
    values = values.to(wide_of(values))
    there = keep[..., None] & torch.isfinite(values)
    total = sum_by_context(torch.where(there, values, 0.0), tokens)
    count = sum_by_context(there.to(values.dtype), tokens)
    placement = table.place(tokens.keys, hash_keys(tokens.keys), (count > 0).any(-1))
    table.write(placement, total=total, count=count.round().to(torch.int64))


def of_contexts(table: Table, number: int) -> Result:
    """Means by context of the indicators of some number of terms."""
    held = table["key"][:-1] != EMPTY
    order = table["key"][:-1].masked_fill(~held, EMPTY).argsort()[int((~held).sum()) :]
    total, count = table["total"][order], table["count"][order]
    means = (total / count).view(-1, len(NAMES), number)
    named = {name: means[:, index] for index, name in enumerate(NAMES)}
    return Result(context_id=table["key"][order], tokens=count.amax(1), **named)
