"""A dictionary of factors for all layers, learned while the model runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count
from geomhooks.accumulators.learned_dictionary import NO_ID, LearnedDictionary, WaitingTokens
from geomhooks.accumulators.table import LAST, hash_keys
from geomhooks.checks import check_flags, check_needed, check_positive, is_number, is_whole
from geomhooks.errors import SiteError
from geomhooks.functional.factors.coding_checks import check_penalty
from geomhooks.functional.factors.dictionary_learning import (
    DAMPING,
    LENGTH,
    STEP,
    dictionary_step,
    problem_of_rows,
    word_weights,
)
from geomhooks.functional.factors.sparse_coding import SparseCoder, exactly
from geomhooks.functional.precision import without_autocast
from geomhooks.functional.shapes import as_matrix
from geomhooks.results import Unavailable
from geomhooks.statistics.base import Reading, Site, Statistic

__all__ = ["FactorLearning"]

REVIVED_AT_ONCE = 10  # factors a mini-batch


class Sample(NamedTuple):
    """Tokens of one forward, over all layers so far, by ascending priority."""

    priority: Tensor
    """(n,) LAST where there is no token"""
    states: Tensor
    """(n, d)"""
    ids: Tensor
    """(n,)"""


class FactorLearning(Statistic):
    r"""Learns one dictionary for the hidden states of all watched layers: transformer factors.

    Hidden states are sparse, non-negative sums of factors, rows of a dictionary D that all layers
    share, and minimise :math:`\frac12 |x - a D|^2 + \lambda |a|_1` (Z. Yun, Y. Chen, B. Olshausen,
    Y. LeCun, "Transformer visualization via dictionary learning", arXiv 2103.15949). Of each
    forward a uniform sample of its tokens in all layers is put aside, mini-batches are drawn from
    what waits, and each makes one step of the published update
    (:func:`geomhooks.functional.dictionary_step`), at the end of a forward. Tokens that are masked
    or not finite never come in, no token comes in twice, and no state is kept but those that wait.

    What differs from the published code, which saves states and goes through them layer by layer:

    - Mini-batches are mixed over layers and forwards.
    - With ``relative``, states are taken to the length :math:`\sqrt d` first, which makes layers
      and models of different scale count alike, and keeps outliers from making factors of their
      own. ``relative=False`` takes them as they are, as published.
    - Where learning begins with a dictionary, the mean of squared activations is not taken for
      smaller than it is while it is young; as published, the first steps are so long that they
      would undo it.
    - Words are counted while the text is read, not before, and weights are divided by their mean
      over a mini-batch.

    A forward costs ``updates_per_forward`` mini-batches of some ``4 * batch * iterations * F * d``
    operations, whatever its own size. The state takes ``4 F d`` bytes for the dictionary, ``4 d``
    for each token that waits, and 8 for each word. What is learned depends on the order of the
    text and on nothing else: a run that is repeated, or saved and resumed, gives the same
    dictionary. It cannot be merged, over ranks neither (``laws`` says so).

    Args:
        size: number of factors, F.
        penalty: :math:`\lambda`; with ``relative`` in units of the length of each hidden state.
        relative: take all states to one length.
        start: (F, d) a dictionary to begin with; by default random directions.
        seed: of these.
        batch: states of a mini-batch.
        updates_per_forward: how many mini-batches a forward makes at most, and gives tokens for.
        iterations: steps of sparse coding, of :class:`geomhooks.functional.SparseCoder`.
        waiting: for how many states there is room to wait; learning begins when it is full. By
            default ten times what a forward may give.
        step: of the update.
        length: of running means, in mini-batches. Greater steps go with shorter means: their
            product is 1.5 as published, and far above it a factor that is seldom in use never
            settles.
        damping: of the update, in units of squared activations.
        weigh_words: tokens count by one over the root of how often their word was seen.
        revive: factors that ``length`` mini-batches had no use for are pointed along what the
            next ones leave.
        vocabulary: how many words there is room to count; ids beyond it share the places.
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

    Results, under ``geometry.model.factor_learning``; means run over some ``length`` mini-batches:

    - ``dictionary`` (F, d) rows of length 1. :func:`geomhooks.save_dictionary` saves it alone.
    - ``snr``, the energy of states over that of what codes leave; ``l0``, how many activations are
      not zero; ``objective``, for states of length :math:`\sqrt d` if ``relative``.
    - ``mean_activation`` and ``hessian`` (F,), means of activations and of their squares, of states
      of that length; ``idle`` (F,), mini-batches since each was in use; ``dead``, how many were in
      use in none of the last ``length``; ``revived``, how many times one was.
    - ``tokens`` that were seen, in all layers; ``vectors`` that were learned from; ``updates``.

    Raises:
        ValueError: an argument is not what it has to be.
        SiteError: watched layers are of different width, or of another than ``start``.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> learning = gh.FactorLearning(size=12, penalty=0.05, batch=20, iterations=50)
        >>> with torch.no_grad(), gh.watch(model, statistics=[learning]) as watch:
        ...     for _ in range(20):
        ...         _ = model(torch.randint(10, (4, 6)))
        >>> found = watch.geometry().model.factor_learning
        >>> found.dictionary.shape, int(found.vectors), int(found.tokens)
        (torch.Size([12, 8]), 220, 1440)
        >>> coder = gh.functional.SparseCoder(found.dictionary, penalty=0.05, relative=True)
        >>> coder(torch.randn(5, 8)).shape
        torch.Size([5, 12])
    """

    scope: ClassVar[str] = "model"
    # Which tokens come into a mini-batch goes by their place in a forward, and all else by order.
    laws = frozenset({"resume", "mask"})

    def __init__(
        self,
        size: int = 2000,
        penalty: float = 0.015,
        relative: bool = True,
        start: Tensor | None = None,
        *,
        seed: int = 0,
        batch: int = 100,
        updates_per_forward: int = 1,
        iterations: int = 500,
        waiting: int | None = None,
        step: float = STEP,
        length: int = LENGTH,
        damping: float = DAMPING,
        weigh_words: bool = True,
        revive: bool = False,
        vocabulary: int = 1 << 18,
        positions: int | None = None,
    ) -> None:
        check_needed(
            "FactorLearning",
            size=size,
            batch=batch,
            updates_per_forward=updates_per_forward,
            iterations=iterations,
            length=length,
            vocabulary=vocabulary,
        )
        check_positive("FactorLearning", waiting=waiting, positions=positions)
        check_flags("FactorLearning", relative=relative, weigh_words=weigh_words, revive=revive)
        if not is_whole(seed) or not -(1 << 63) <= seed < 1 << 64:  # what torch takes
            raise ValueError(f"FactorLearning(seed={seed!r}): an integer of 64 bits is needed")
        for name, number in (("step", step), ("damping", damping)):
            if not is_number(number) or not 0 < number < math.inf:
                raise ValueError(f"FactorLearning({name}={number!r}): a positive number is needed")
        if isinstance(penalty, Tensor) and not penalty.ndim:
            penalty = float(penalty)
        if isinstance(penalty, Tensor):
            raise ValueError(f"penalty: one number is needed, found shape {tuple(penalty.shape)}")
        check_penalty(penalty)
        if start is not None:
            start = as_matrix(start, "start", "(F, d)").detach().float().cpu()
            if len(start) != size:
                raise ValueError(
                    f"FactorLearning(size={size}): start has {len(start)} factors; give their "
                    "number as size"
                )
            if problem := problem_of_rows(start):
                raise ValueError(f"FactorLearning(start=...): {problem}")
        each = batch * updates_per_forward
        if waiting is not None and waiting < each:
            raise ValueError(
                f"FactorLearning(waiting={waiting}): room for at least the {each} states that a "
                "forward gives is needed, batch * updates_per_forward"
            )
        self.size, self.penalty, self.relative = size, float(penalty), bool(relative)
        self._start, self.seed = start, seed
        self.batch, self.updates_per_forward = batch, updates_per_forward
        self.iterations, self.length = iterations, length
        self.step, self.damping = float(step), float(damping)
        self.waiting = 10 * each if waiting is None else waiting
        self.weigh_words, self.revive = bool(weigh_words), bool(revive)
        self.vocabulary, self.positions = vocabulary, positions

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """The dictionary, what waits for its turn, and how often each word was seen.

        Raises:
            SiteError: the dictionary to begin with is of another width.
        """
        if self._start is not None and self._start.shape[1] != site.width:
            raise SiteError(
                f"FactorLearning(start=...) has factors of width {self._start.shape[1]}, and site "
                f"{site.name!r} has hidden states of width {site.width}"
            )
        return {
            "learned": LearnedDictionary(
                self.size, site.width, self.seed, self.length, self._start
            ),
            "waiting": WaitingTokens(self.waiting, site.width),
            "words": Count((self.vocabulary if self.weigh_words else 1,)),
        }

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Take a layer's share of the forward's sample.

        Raises:
            SiteError: the layer is of another width than the dictionary.
        """
        learned: LearnedDictionary = state["learned"]
        hidden, keep, carry = reading.taps["out"], reading.reductions.keep, reading.carry
        width = learned["dictionary"].shape[1]
        if hidden.shape[-1] != width:
            raise SiteError(
                f"site {reading.site.name!r} has hidden states of width {hidden.shape[-1]}, and "
                f"the dictionary's factors are of width {width}: learn one for each width, with "
                "statistics={sites: [FactorLearning()]} in watches of their own"
            )
        ids = reading.tokens.ids
        if ids is None or ids.shape != keep.shape:
            ids = torch.full_like(keep, NO_ID, dtype=torch.int64)
        if "state" not in carry:
            carry["state"], carry["sites"] = state, 0
            if self.weigh_words:
                known = (reading.tokens.real & (ids >= 0)).reshape(-1).to(torch.int64)
                words = state["words"].value
                row = ids.reshape(-1) % self.vocabulary
                words.index_add_(0, row.to(words.device), known.to(words.device))
        home = learned["tokens"].device  # a model may be spread over several
        learned["tokens"].add_(keep.sum().to(home))
        layer = hash_keys(hash_keys(learned["forwards"]) + carry["sites"]).to(keep.device)
        carry["sites"] += 1
        places = torch.arange(keep.numel(), device=keep.device)
        priority = torch.where(keep.reshape(-1), hash_keys(layer + places), LAST)
        number = min(self.batch * self.updates_per_forward, len(priority))
        chosen = priority.topk(number, largest=False, sorted=True)
        states = hidden.reshape(-1, width)[chosen.indices].to(torch.float32)
        found = chosen.values, states, ids.reshape(-1)[chosen.indices]
        sample = Sample(*(part.to(home) for part in found))
        carry["sample"] = self._lowest(carry.get("sample"), sample)

    def _lowest(self, before: Sample | None, more: Sample) -> Sample:
        """Of the tokens of several layers the first ones, as many as a forward gives."""
        if before is None:
            return more
        every = [torch.cat(pair) for pair in zip(before, more, strict=True)]
        number = min(self.batch * self.updates_per_forward, len(every[0]))
        order = every[0].topk(number, largest=False, sorted=True).indices
        return Sample(*(part[order] for part in every))

    def finish(self, carry: dict[Any, Any]) -> None:
        """Put the sample aside, and make the forward's mini-batches."""
        if "sample" not in carry:
            return
        state, sample = carry["state"], carry["sample"]
        learned, waiting = state["learned"], state["waiting"]
        with without_autocast(sample.states.device):
            states, valid = sample.states, sample.priority != LAST
            length = torch.linalg.vector_norm(states, dim=1)
            valid = valid & (length > 0) & torch.isfinite(length)
            if self.relative:
                states = states * (math.sqrt(states.shape[1]) / length)[:, None]
            waiting.put(torch.where(valid[:, None], states, 0.0), sample.ids, valid)
            learned["forwards"].add_(1)
            for _ in range(self.updates_per_forward):
                # Full but for what a forward gives: what waits is well mixed.
                spare = self.batch * self.updates_per_forward
                ready = waiting["held"].sum() >= max(self.batch, self.waiting - spare + 1)
                if ready.device.type == "cpu" and not bool(ready):
                    break  # looked at where that costs nothing
                self._learn(state, ready)

    def _learn(self, state: Mapping[str, Any], ready: Tensor) -> None:
        """One mini-batch."""
        learned: LearnedDictionary = state["learned"]
        waiting: WaitingTokens = state["waiting"]
        states, ids = waiting.take(ready, waiting.choose(self.batch))
        penalty = self.penalty * (math.sqrt(states.shape[1]) if self.relative else 1)
        coder = SparseCoder.trusted(learned["dictionary"], penalty, iterations=self.iterations)
        codes = coder(states)
        left = exactly(states) - exactly(codes) @ exactly(learned["dictionary"])
        residual = left.to(states.dtype)
        weights = None
        if self.weigh_words:
            seen = state["words"].value[ids % self.vocabulary]
            weights = word_weights(torch.where(ids >= 0, seen, 0)).to(states.dtype)
            weights = weights / weights.mean()
        made = dictionary_step(
            learned["dictionary"], learned["hessian"], codes, residual, weights,
            step=self.step, damping=self.damping, length=self.length,
            weight=learned.maturity,
        )  # fmt: skip
        energy, rest = (x.double().square().sum(1) for x in (states, residual))
        objective = (rest / 2 + penalty * codes.double().sum(1)).mean()
        learned.note(ready, made, codes, (energy.mean(), rest.mean(), objective))
        if self.revive:
            worst = rest.topk(min(REVIVED_AT_ONCE, self.batch)).indices
            learned.revive(ready, residual[worst])

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The dictionary, and what its codes have been like lately."""
        learned: LearnedDictionary = state["learned"]
        counts = {
            "tokens": learned["tokens"],
            "updates": learned["updates"],
            "vectors": learned["updates"] * self.batch,
            "revived": learned["revived"],
        }
        names = ("dictionary", "snr", "l0", "objective", "mean_activation", "hessian", "idle")
        if not int(learned["updates"]):
            reason = Unavailable(
                f"no mini-batch has been learned from: {int(state['waiting']['held'].sum())} "
                f"states wait, and learning begins at {self.waiting}; run more forwards, or give "
                "FactorLearning a smaller waiting="
            )
            return dict.fromkeys((*names, "dead"), reason) | counts
        weight = learned["weight"]
        return counts | {
            "dictionary": learned["dictionary"],
            "snr": learned["signal"] / learned["noise"],
            "l0": learned["active"] / weight,
            "objective": learned["objective"] / weight,
            "mean_activation": learned["activation"] / weight.to(torch.float32),
            "hessian": learned["hessian"],
            "idle": learned["idle"],
            "dead": learned.dead.sum(),
        }
