"""Activations of factors on texts at hand: what tests of a factor ask a model for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import geomhooks as gh
from geomhooks.errors import SiteError
from geomhooks.functional.factors.interventions import MarkedTokens
from geomhooks.measuring.errors import TextError
from geomhooks.statistics.encoders import Encoder

__all__ = ["FactorActivations"]


class FactorActivations:
    """What factors do at one site of a model, for token ids or for words.

    It makes the functions that :func:`geomhooks.functional.edit_effects`,
    :func:`geomhooks.functional.masked_saliency` and
    :func:`geomhooks.functional.sense_separation` take.

    Args:
        model: takes ``input_ids`` and ``attention_mask``.
        encoder: as :class:`geomhooks.Factors` takes one.
        site: the name of one site, as :func:`geomhooks.watch` takes it.
        tokenizer: of the model, where words are asked for; one that tells where its tokens are.
        factors: F, where the encoder does not say it.
        batch_size: texts at a time.

    Example:
        >>> import torch, geomhooks as gh
        >>> from geomhooks.measuring import FactorActivations
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10)).eval()
        >>> coder = gh.functional.SparseCoder(torch.eye(8), penalty=0.01)
        >>> activations = FactorActivations(model, coder, "h.0")
        >>> ids = torch.tensor([[3, 1, 4, 1]])
        >>> activations.of_ids(ids).shape
        torch.Size([1, 4, 8])
        >>> of_factor = activations.at_position(5, position=2)
        >>> gh.functional.masked_saliency(of_factor, ids[0], 0, samples=20).weights.shape
        torch.Size([4])
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: Any,
        site: str,
        tokenizer: Any = None,
        *,
        factors: int | None = None,
        batch_size: int = 32,
    ) -> None:
        self.model = model
        self.encoder = Encoder(encoder, factors=factors)
        self.site = site
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @torch.no_grad()
    def of_ids(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Activations (B, T, F) of all factors at all tokens.

        Args:
            ids: (B, T).
            mask: (B, T), 1 at tokens and 0 at padding, whose activations mean nothing.

        Raises:
            SiteError: the site's name is not that of one site.
        """
        device = next(self.model.parameters()).device
        caught, found = Caught(), []
        mask = torch.ones_like(ids) if mask is None else mask
        with gh.watch(self.model, sites=self.site, statistics=[caught]):
            for first in range(0, len(ids), self.batch_size):
                part = slice(first, first + self.batch_size)
                caught.states.clear()
                self.model(input_ids=ids[part].to(device), attention_mask=mask[part].to(device))
                if len(caught.states) != 1:
                    raise SiteError(
                        f"site={self.site!r} has {', '.join(caught.states) or 'no site'}; the name "
                        "of one is needed"
                    )
                states = next(iter(caught.states.values()))
                codes = self.encoder.encode(states.flatten(0, 1).float())
                found.append(codes.view(*states.shape[:2], -1))
        return torch.cat(found)

    def at_positions(self, factor: int) -> Callable[[Tensor, Tensor], Tensor]:
        """One factor's activation, as a function of texts (B, T) and positions (B,)."""

        def activation(ids: Tensor, positions: Tensor) -> Tensor:
            found = self.of_ids(ids)[..., factor]
            return found.gather(1, positions.to(found.device)[:, None])[:, 0]

        return activation

    def at_position(self, factor: int, position: int) -> Callable[[Tensor], Tensor]:
        """One factor's activation at one position, as a function of texts (B, T)."""

        def activation(ids: Tensor) -> Tensor:
            return self.of_ids(ids)[:, position, factor]

        return activation

    def mark(self, words: Sequence[str], place: int) -> MarkedTokens:
        """A sentence with the last token of one of its words marked.

        Args:
            words: of the sentence, with spaces between them.
            place: which of them is marked.

        Raises:
            ValueError: there is no tokenizer that tells where its tokens are, or no such word.
            TextError: the tokenizer makes no token of the word.
        """
        if self.tokenizer is None or not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(
                "FactorActivations(tokenizer=...): a fast tokenizer, which tells where its tokens "
                f"are, is needed for words; found {type(self.tokenizer).__name__}"
            )
        if not 0 <= place < len(words):
            raise ValueError(f"place={place}: the sentence has {len(words)} words")
        start = sum(len(word) + 1 for word in words[:place])
        end = start + len(words[place])
        made = self.tokenizer(" ".join(words), return_offsets_mapping=True)
        inside = [
            token
            for token, (first, last) in enumerate(made["offset_mapping"])
            if first < end and last > start
        ]
        if not inside:
            raise TextError(f"the tokenizer makes no token of the word {words[place]!r}")
        return MarkedTokens(torch.tensor(made["input_ids"], device="cpu"), inside[-1])

    def of_words(
        self, sentences: Sequence[Sequence[str]], places: Sequence[int], factor: int
    ) -> Tensor:
        """One factor's activation at the last token of one word of each sentence, (N,).

        Args:
            sentences: N of them, each its words.
            places: (N,) which word of each.
            factor: which factor.

        Raises:
            ValueError: not as many places as sentences.
        """
        marked = [self.mark(words, at) for words, at in zip(sentences, places, strict=True)]
        if not marked:
            raise ValueError("sentences: there is none")
        lengths = torch.tensor([len(each.ids) for each in marked], device="cpu")
        mask = (torch.arange(int(lengths.max()), device="cpu") < lengths[:, None]).long()
        pads = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        ids = torch.full(mask.shape, next(pad for pad in pads if pad is not None), device="cpu")
        ids[mask.bool()] = torch.cat([each.ids for each in marked])
        rows = torch.arange(len(marked), device="cpu")
        at = torch.tensor([each.position for each in marked], device="cpu")
        found = []
        for first in range(0, len(marked), self.batch_size):
            part = slice(first, first + self.batch_size)
            codes = self.of_ids(ids[part], mask[part]).cpu()
            found.append(codes[rows[: len(codes)], at[part], factor])
        return torch.cat(found)


class Caught(gh.Statistic):
    """Hands out the hidden states of one forward."""

    def __init__(self) -> None:
        self.states: dict[str, Tensor] = {}

    def accumulators(self, site: gh.statistics.Site) -> dict[str, gh.Accumulator]:
        """Nothing is counted."""
        return {}

    def update(self, state: Mapping[str, Any], reading: gh.statistics.Reading) -> None:
        """Keep what is there."""
        self.states[reading.site.name] = reading.taps["out"].clone()

    def compute(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing."""
        return {}
