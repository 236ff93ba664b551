"""Sparse factors of hidden states: how often each is active, how much, and at which tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from geomhooks.accumulators import Accumulator, Count, Sum
from geomhooks.accumulators.top_tokens import Candidates, TokenRows, TopTokens, TopValues
from geomhooks.checks import check_flags, check_needed, check_positive, is_whole
from geomhooks.errors import SiteError
from geomhooks.functional.factors.sparse_coding import SparseCoder
from geomhooks.functional.shapes import as_float
from geomhooks.results import Result, Unavailable
from geomhooks.statistics.base import LAWS, Reading, Site, Statistic
from geomhooks.statistics.encoders import Encoder

__all__ = ["Factors"]

CoActivation = Literal["counts", "products"]
COUNTED = ("firing_rate", "mean", "mean_square", "importance", "top", "l0", "snr", "inactive")


class Factors(Statistic):
    r"""Activations of the factors of a dictionary, layer by layer, and the tokens they are at.

    Each hidden state is encoded, :math:`x \approx \sum_c a_c D_c` with few :math:`a_c > 0`, and
    what is kept are sums over the activations a and, for each factor, the tokens at which it is
    most active, with the tokens around them. One dictionary may serve all layers, which tells at
    what depth a factor is at home (Z. Yun, Y. Chen, B. Olshausen, Y. LeCun, "Transformer
    visualization via dictionary learning", arXiv 2103.15949); :mod:`geomhooks.functional` has what
    follows from the results: ``importance_levels``, ``token_entropy``, ``factor_contexts``.

    The encoder works on each token alone, in float32 at least (a module in the type of its
    weights), without autograd and autocast, a fixed number of tokens at a time. In a forward that
    takes some 40 F bytes for each of these, beside what the encoder itself needs.

    Records of tokens are ranked by activation, then by context id, then by position, which makes
    rankings of shards merge exactly, whatever their order. Activations that differ by rounding
    alone, as those of one word at one place in the input of the first block do, are in the order
    of their rounding, and so may be others of them in other batches.

    Args:
        dictionary: (F, d), a row a factor; encoded with ``penalty`` as
            :class:`geomhooks.functional.SparseCoder` does.
        penalty: of the activations' sum, in units of the hidden states.
        relative: the penalty is in units of the length of each hidden state.
        encoder: instead of a dictionary: a :class:`~geomhooks.functional.SparseCoder`, a
            :class:`~geomhooks.functional.SparseAutoencoder`, an object with ``encode`` and
            ``decode`` as those of SAELens are, or any callable from hidden states (N, d) to
            activations (N, F). A file knows it by its digest, a text, with which a statistic can
            be read and merged but looks at no forward. The digest covers what encoder and decoder
            hold when the statistic is made: tensors and arrays, plain values, containers,
            attributes of instances, the state of modules, what bound methods are bound to, the
            arguments of partials, and of functions their name, compiled code (that differs between
            versions of Python), defaults and closure. It does not cover the values of globals, the
            code of methods, which are known by the name of their class, nor random state.
        decoder: from activations (N, F) to hidden states (N, d), where the encoder has no
            ``decode``.
        factors: F, where the encoder does not say it.
        top: how many tokens to keep of each factor, n.
        window: how many tokens to keep on each side of one of these, w.
        one_per_text: keep of each context the best token alone.
        coactivation: also keep F x F numbers: "counts", how often two factors are active together,
            or "products", the mean of the product of their activations.
        iterations: steps of the encoding, with a dictionary.
        tokens_at_once: how many tokens are encoded at a time.
        max_bytes: refuse a configuration whose state at one site would take more.
        positions: capacity T; by default the smaller of the model's maximum and 2048. All
            statistics of a watch share one capacity.

    Results, over the tokens whose hidden state and activations are finite:

    - ``firing_rate`` (F,), share of the tokens at which a factor is active; ``mean`` and
      ``mean_square`` (F,) of its activation, zeros included.
    - ``importance`` (F,), the mean of its n largest activations, of all tokens if there are fewer.
    - ``l0``, the mean number of active factors of a token; ``inactive``, how many factors were
      never active; ``snr``, :math:`\sum |x|^2 / \sum |x - \hat x|^2`, a plain ratio, where there is
      a decoder; ``count``, how many tokens; ``not_finite``, how many were left out.
    - ``top``, the tokens at which each factor is most active, the first one first: ``activation``
      (F, n), NaN where a factor is active at fewer; ``context`` (F, n), their context's id;
      ``position`` (F, n); ``token_id`` (F, n) and ``window`` (F, n, 2 w + 1), ids of the tokens
      around, the token's own in the middle; -1 where there is no token of the context, or its id is
      not known. A window has tokens of its own forward alone: what is generated with a cache one
      by one stands by itself.
    - ``coactivation`` (F, F), where it was asked for.

    Raises:
        ValueError: an argument is not what it has to be.
        SiteError: the state would take more than ``max_bytes``, or hidden states and encoder do not
            fit.

    Example:
        >>> import torch, geomhooks as gh
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> statistic = gh.Factors(torch.eye(8), penalty=0.01, top=5, window=2)
        >>> with torch.no_grad(), gh.watch(model, statistics=[statistic]) as watch:
        ...     _ = model(torch.randint(10, (4, 6)))
        >>> geometry = watch.geometry()
        >>> importance = geometry.stack("factors.importance").T  # (F, L), a curve a factor
        >>> gh.functional.importance_levels(importance).level.shape
        torch.Size([8])
        >>> top = geometry["h.1"].factors.top
        >>> top.window.shape, len(gh.functional.factor_contexts(top, factor=3)) <= 5
        (torch.Size([8, 5, 5]), True)
    """

    def __init__(
        self,
        dictionary: Tensor | None = None,
        penalty: float | None = None,
        relative: bool = False,
        *,
        encoder: Any = None,
        decoder: Callable[[Tensor], Tensor] | None = None,
        factors: int | None = None,
        top: int = 100,
        window: int = 10,
        one_per_text: bool = False,
        coactivation: CoActivation | None = None,
        iterations: int = 500,
        tokens_at_once: int = 1024,
        max_bytes: int = 1 << 31,
        positions: int | None = None,
    ) -> None:
        check_positive("Factors", factors=factors, positions=positions)
        check_needed("Factors", top=top, tokens_at_once=tokens_at_once, max_bytes=max_bytes)
        check_flags("Factors", relative=relative, one_per_text=one_per_text)
        if not is_whole(window) or window < 0:
            raise ValueError(f"Factors(window={window!r}): an integer of at least 0 is needed")
        if coactivation not in (None, *get_args(CoActivation)):
            raise ValueError(
                f"Factors(coactivation={coactivation!r}): None, 'counts' or 'products'"
            )
        if (dictionary is None) == (encoder is None):
            found = "neither" if encoder is None else "both"
            raise ValueError(
                f"Factors needs either a dictionary (F, d) with a penalty, or an encoder; found "
                f"{found}"
            )
        if dictionary is not None:
            if penalty is None:
                raise ValueError(
                    "Factors(dictionary=...): give the penalty of its codes, penalty=: that with "
                    "which the dictionary was learned (gh.load_dictionary(path).penalty); a larger "
                    "one leaves fewer factors active"
                )
            encoder = SparseCoder(dictionary, penalty, relative, iterations)
        elif not isinstance(encoder, str) and (penalty is not None or relative):
            raise ValueError(
                f"Factors(penalty={penalty!r:.80}, relative={relative}): they are for a "
                f"dictionary; an encoder makes codes its own way, give {type(encoder).__name__} "
                "its penalty"
            )
        self._encoder: Encoder | None = None
        if isinstance(encoder, str):
            if factors is None:
                raise ValueError("Factors(encoder=...): with a digest alone give factors=")
            self.encoder, self.factors = encoder, factors
        else:
            self._encoder = Encoder(encoder, decoder, factors)
            self.encoder, self.factors = self._encoder.digest, self._encoder.factors
            if isinstance(encoder, SparseCoder):
                penalty, relative = float(encoder.penalty), encoder.relative
        self.penalty = None if penalty is None else float(penalty)
        self.relative = relative
        self.top = top
        self.window = window
        self.one_per_text = one_per_text
        self.coactivation = coactivation
        self.max_bytes = max_bytes
        self.positions = positions
        self._at_once = tokens_at_once
        # Tokens that come one by one have nothing around them.
        self.laws = LAWS - ({"generation"} if window else set())

    def accumulators(self, site: Site) -> dict[str, Accumulator]:
        """Sums by factor, and rankings.

        Raises:
            SiteError: they would take too much, or hidden states are of another width than factors.
        """
        number = self.factors
        width = None if self._encoder is None else self._encoder.width
        if width is not None and width != site.width:
            raise SiteError(
                f"Factors at {site.name!r}: hidden states are of width {site.width}, and the "
                f"factors of width {width}; they are of another model or place"
            )
        made: dict[str, Accumulator] = {
            "tokens": Count((2,)),  # counted, and not finite
            "active": Count((number,)),
            "total": Sum((number,)),
            "squares": Sum((number,)),
            "energy": Sum((2,)),  # of the states, and of what decoding leaves of them
            "top": TopTokens(number, self.top, self.window, self.one_per_text),
        }
        if self.one_per_text:
            made["largest"] = TopValues(number, self.top)
        if self.coactivation is not None:
            kind = Count if self.coactivation == "counts" else Sum
            made["together"] = kind((number, number))
        size = sum(accumulator.nbytes for accumulator in made.values())
        if size > self.max_bytes:
            raise SiteError(
                f"the state of Factors for site {site.name!r} ({number} factors, top={self.top}, "
                f"window={self.window}, coactivation={self.coactivation!r}) would take {size:,} "
                f"bytes, more than max_bytes={self.max_bytes:,}. Keep fewer or narrower contexts, "
                "or raise max_bytes."
            )
        return made

    def update(self, state: Mapping[str, Any], reading: Reading) -> None:
        """Add one forward, part after part.

        Raises:
            SiteError: the statistic was made of the digest of an encoder alone.
        """
        if self._encoder is None:
            raise SiteError(
                f"Factors at {reading.site.name!r} knows its encoder by its digest alone; give the "
                "dictionary or the encoder to look at forwards"
            )
        tokens, carry = reading.tokens, reading.carry
        key = id(tokens)  # the same object at all sites of a device
        if key not in carry:
            carry[key] = tokens, TokenRows.of(tokens, self.window)
        rows: TokenRows = carry[key][1]
        hidden = reading.taps["out"].flatten(0, 1)
        real, keep = tokens.real.reshape(-1), reading.reductions.keep.reshape(-1)
        found = Candidates(rows, self.top, self.one_per_text)
        for first in range(0, len(hidden), self._at_once):
            part = slice(first, first + self._at_once)
            states = torch.where(keep[part, None], as_float(hidden[part]), 0.0)
            codes = self._encoder.encode(states)
            kept = keep[part] & torch.isfinite(codes).all(1)
            codes = torch.where(kept[:, None], codes, 0.0)
            found.add(codes, part, kept)
            counts = torch.stack([kept.sum(), (real[part] & ~kept).sum()])
            state["tokens"].value.add_(counts)
            self._add(state, states, codes, kept)
        state["top"].add(found)

    def _add(self, state: Mapping[str, Any], states: Tensor, codes: Tensor, kept: Tensor) -> None:
        """Add the sums over some tokens, whose codes are zero where they are not kept."""
        assert self._encoder is not None
        active = codes > 0
        wide = state["total"].value.dtype
        state["active"].value.add_(active.sum(0))
        state["total"].value.add_(codes.sum(0, dtype=wide))
        state["squares"].value.add_(codes.square().sum(0, dtype=wide))
        if self.one_per_text:
            state["largest"].add(codes, kept)
        if self.coactivation is not None:
            factors = codes if self.coactivation == "products" else active.to(codes.dtype)
            together = state["together"].value
            together.add_((factors.T @ factors).to(together.dtype))
        if self._encoder.decodes:
            left = states - self._encoder.decode(codes, states.shape[1])
            energies = [vectors.square().sum(1) for vectors in (states, left)]
            energy = torch.where(kept, torch.stack(energies), 0.0)
            state["energy"].value.add_(energy.sum(1, dtype=wide))

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Rates, means and rankings."""
        count, lost = state["tokens"].value.unbind()
        active, top = state["active"].value, state["top"]
        known = {"count": count, "not_finite": lost}
        names = (*COUNTED, *(("coactivation",) if self.coactivation else ()))
        if not int(count):
            reason = Unavailable(
                f"no token has been counted at this site; {int(lost)} real tokens were not finite"
            )
            return dict.fromkeys(names, reason) | known
        largest = (state["largest"] if self.one_per_text else top)["value"]
        signal, left = state["energy"].value.unbind()
        there = top["value"] > 0
        window = top["window"].to(torch.int64)
        found: dict[str, Any] = {
            "firing_rate": active.double() / count,
            "mean": state["total"].value / count,
            "mean_square": state["squares"].value / count,
            "importance": largest.double().sum(1) / count.clamp(max=self.top),
            "top": Result(
                activation=torch.where(there, top["value"], torch.nan),
                context=top["context"],
                position=top["position"].to(torch.int64),
                token_id=window[..., self.window],
                window=window,
            ),
            "l0": active.sum().double() / count,
            "inactive": (active == 0).sum(),
            "snr": signal / left
            if bool(signal > 0)
            else Unavailable("there is no decoder, or all states are zero", by_choice=True),
        }
        if self.coactivation is not None:
            together = state["together"].value
            counted = self.coactivation == "counts"
            found["coactivation"] = together if counted else together / count
        return found | known
