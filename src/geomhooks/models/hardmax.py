"""A classifier of texts whose transformer is nothing but hardmax attention.

After A. Alcalde, G. Fantuzzi and E. Zuazua, "Clustering in pure-attention hardmax transformers and
its role in sentiment analysis" (arXiv 2407.01602): an embedding of words, layers of attention that
share one learned step, the mean over the tokens, one linear layer. The mathematics is in
:mod:`geomhooks.functional.hardmax.dynamics`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomhooks.checks import is_number, is_whole
from geomhooks.functional.hardmax.dynamics import attended_means, hardmax_path, move
from geomhooks.functional.hardmax.token_arguments import what_is

__all__ = [
    "HardmaxAttention",
    "HardmaxBlock",
    "HardmaxClassifier",
    "HardmaxConfig",
    "HardmaxTransformer",
]

When = Literal["evaluation", "always", "never"]


@dataclass(frozen=True)
class HardmaxConfig:
    """How a :class:`HardmaxClassifier` is made; by default as it makes sense.

    Attributes:
        vocab_size: V, how many words there are.
        hidden_size: d.
        num_hidden_layers: how often the layer is applied.
        temperature: T of the softmax that is trained, softmax(<z_i, z_j> / T).
        hard: when hardmax takes the place of softmax.
        pad_token_id: of the words that fill up a text.
        masked: padding is no token: nobody attends to it. If not, it interacts like a word.
        pool_padding: padding counts in the mean over the tokens.
        constrained: the step is kept positive, as softplus of its parameter. If not, the parameter
            is the step, and may become anything.
        embed_padding: padding has an embedding that is drawn and learned as a word's is. If not, it
            is zero and stays so.

    Raises:
        ValueError: a number is out of its range, or no number, or a switch neither True nor False.
    """

    vocab_size: int
    hidden_size: int = 2
    num_hidden_layers: int = 8
    temperature: float = 1e-3
    hard: When = "evaluation"
    pad_token_id: int = 0
    masked: bool = True
    pool_padding: bool = False
    constrained: bool = True
    embed_padding: bool = False
    model_type: str = "hardmax"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise ValueError(f"{name}={value!r}: an integer, 1 or more, is needed")
        if not is_whole(self.pad_token_id) or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id={self.pad_token_id!r}: the id of one of {self.vocab_size} words, "
                f"from 0 to {self.vocab_size - 1}, is needed"
            )
        if not is_number(self.temperature) or not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r}: a number above 0 is needed")
        for name in ("masked", "pool_padding", "constrained", "embed_padding"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: True or False is needed")
        check_when(self.hard)

    @classmethod
    def published(cls, vocab_size: int, hidden_size: int = 2, **changes: Any) -> HardmaxConfig:
        """As the published code has it, in what it may not have meant to do too.

        Padding is embedded, interacts with words and counts in the mean, and what is to keep the
        step positive has no effect. Softmax at T = 0.001 is trained; hardmax is for evaluation.

        Example:
            >>> HardmaxConfig.published(121296).masked
            False
        """
        quirks = {
            "masked": False,
            "pool_padding": True,
            "constrained": False,
            "embed_padding": True,
        }
        return cls(vocab_size, hidden_size, **(quirks | changes))


def check_when(hard: str) -> None:
    """Raises ValueError where it is none of the three."""
    if hard not in ("evaluation", "always", "never"):
        raise ValueError(f"hard={hard!r}: 'evaluation', 'always' or 'never' is needed")


class HardmaxAttention(nn.Module):
    """The mean of what each token attends to, by hardmax or by softmax; without parameters."""

    def __init__(self, temperature: float, hard: When) -> None:
        super().__init__()
        self.temperature, self.hard = temperature, hard

    @property
    def is_hard(self) -> bool:
        """Hardmax is what the next forward uses."""
        return self.hard == "always" or (self.hard == "evaluation" and not self.training)

    def forward(self, states: Tensor, valid: Tensor | None = None) -> Tensor:
        """Of (B, T, d), and (B, T) which tokens are there."""
        temperature = None if self.is_hard else self.temperature
        return attended_means(states, valid=valid, temperature=temperature)

    def extra_repr(self) -> str:
        """For the model's print."""
        return f"temperature={self.temperature:g}, hard={self.hard!r}"


class HardmaxBlock(nn.Module):
    """One layer: tokens go alpha / (1 + alpha) of the way to the mean of what they attend to.

    Args:
        config: of the model.
        step: what alpha is made of, shared by all blocks.
    """

    def __init__(self, config: HardmaxConfig, step: nn.Parameter) -> None:
        super().__init__()
        self.step = step
        self.constrained = config.constrained
        self.attention = HardmaxAttention(config.temperature, config.hard)

    @property
    def alpha(self) -> Tensor:
        """The step, ()."""
        return F.softplus(self.step) if self.constrained else self.step

    def forward(self, states: Tensor, valid: Tensor | None = None) -> Tensor:
        """Of (B, T, d), and (B, T) which tokens are there."""
        alpha = self.alpha
        return move(states, self.attention(states, valid), alpha / (1 + alpha), valid)


class HardmaxTransformer(nn.Module):
    """The embedding and the blocks of a :class:`HardmaxClassifier`."""

    def __init__(self, config: HardmaxConfig) -> None:
        super().__init__()
        self.config = config
        padding = None if config.embed_padding else config.pad_token_id
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=padding)
        alpha = torch.rand(()).clamp(min=1e-3)
        step = nn.Parameter(alpha.expm1().log() if config.constrained else alpha)
        self.blocks = nn.ModuleList(
            HardmaxBlock(config, step) for _ in range(config.num_hidden_layers)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The states (B, T, d) after the last block."""
        states: Tensor = self.embedding(input_ids)
        valid = None if attention_mask is None else attention_mask.bool()
        for block in self.blocks:
            states = block(states, valid)
        return states


class HardmaxClassifier(nn.Module):
    """A binary classifier of texts by hardmax attention, that hooks can watch.

    Its blocks are modules of their own that share one step, so that each layer has its site, and
    :mod:`geomhooks.anatomy` knows it as the family "hardmax". By default padding takes no part and
    softmax at a low temperature, which has gradients, is trained, while hardmax is used when
    evaluating; :meth:`HardmaxConfig.published` is what was published.

    Args:
        config: how it is made; or leave it out and give what :class:`HardmaxConfig` takes.

    Raises:
        ValueError: as :class:`HardmaxConfig`.
        TypeError: both are given, or neither, or something else.

    Example: 8 layers, and V d + d + 2 parameters.
        >>> model = HardmaxClassifier(HardmaxConfig.published(100, hidden_size=4))
        >>> sum(parameter.numel() for parameter in model.parameters())
        406
        >>> ids = torch.randint(100, (2, 6))
        >>> with torch.no_grad():
        ...     logits = model.eval()(ids)
        ...     last = model.path(ids)[-1]
        >>> torch.equal(logits, model.decoder(last.mean(1))[:, 0])
        True
    """

    def __init__(self, config: HardmaxConfig | None = None, **options: Any) -> None:
        super().__init__()
        if (config is None) == (not options):
            raise TypeError("HardmaxClassifier takes a HardmaxConfig, or what that takes")
        if config is not None and not isinstance(config, HardmaxConfig):
            raise TypeError(
                f"HardmaxClassifier takes a HardmaxConfig, or what that takes, by name, as "
                f"HardmaxClassifier(vocab_size=100); found {config!r}"
            )
        self.config = HardmaxConfig(**options) if config is None else config
        self.body = HardmaxTransformer(self.config)
        self.decoder = nn.Linear(self.config.hidden_size, 1)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of words."""
        return self.body.embedding

    @property
    def alpha(self) -> Tensor:
        """() the step that all layers share."""
        first = self.body.blocks[0]
        assert isinstance(first, HardmaxBlock)
        return first.alpha

    def use_hardmax(self, when: When) -> None:
        """Say when hardmax takes the place of softmax: "evaluation", "always" or "never".

        Raises:
            ValueError: it is none of these.
        """
        check_when(when)
        for module in self.body.modules():
            if isinstance(module, HardmaxAttention):
                module.hard = when

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B,) of the positive class.

        Args:
            input_ids: (B, T) of words.
            attention_mask: (B, T), 0 where there is no word; by default where the id is that of
                padding. Only for models with ``masked``.

        Raises:
            ValueError: ids are not integers (B, T) with T > 0, the mask has another shape, or the
                model's padding takes part.
        """
        words = self._words(input_ids, attention_mask)
        if self.config.masked:
            states = self.body(input_ids, attention_mask=words)
        else:
            states = self.body(input_ids)
        return self.classify(states, words)

    def classify(self, states: Tensor, words: Tensor | None = None) -> Tensor:
        """Logits (B,) of last states: of their mean over the tokens.

        Args:
            states: (B, T, d).
            words: (B, T) bool, which are no padding; by default all.
        """
        if words is None or self.config.pool_padding:
            pooled = states.mean(1)
        else:
            kept = states.masked_fill(~words[..., None], 0)
            pooled = kept.sum(1) / words.sum(1, keepdim=True).clamp(min=1)
        logits: Tensor = self.decoder(pooled)[:, 0]
        return logits

    @torch.no_grad()
    def path(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The states (K + 1, B, T, d) before and after each layer, by hardmax, whatever is trained.

        They are those of :func:`geomhooks.functional.hardmax_path`.

        Args:
            input_ids: (B, T), as the forward takes them.
            attention_mask: (B, T), the same.

        Raises:
            ValueError: as the forward, or the step is not positive.
        """
        words = self._words(input_ids, attention_mask)
        alpha, layers = self.alpha.detach(), self.config.num_hidden_layers
        if not float(alpha) > 0:
            raise ValueError(
                f"the model has learned a step of {float(alpha):g}; hardmax attention needs a "
                "positive one, as constrained=True keeps it"
            )
        valid = words if self.config.masked else None
        return hardmax_path(self.body.embedding(input_ids), alpha, layers, valid=valid)

    def _words(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Which entries are words."""
        if not isinstance(ids, Tensor):
            raise ValueError(
                "input_ids: a tensor of integers (B, T) is needed, found "
                f"{type(ids).__name__}; make one with torch.tensor"
            )
        if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                f"input_ids: integers (B, T) are needed, found {ids.dtype} {tuple(ids.shape)}"
            )
        if not ids.shape[1]:
            raise ValueError(
                f"input_ids: texts of one word or more are needed, found {tuple(ids.shape)}"
            )
        if mask is None:
            return ids != self.config.pad_token_id
        if not self.config.masked:
            raise ValueError(
                "attention_mask: padding takes part in this model (masked=False), so that there is "
                "nothing to mask; leave it out, or make the model with masked=True"
            )
        if not isinstance(mask, Tensor) or mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask: shape {tuple(ids.shape)} as the ids is needed, found "
                f"{what_is(mask)}"
            )
        return mask.bool()

    def extra_repr(self) -> str:
        """For the model's print."""
        told = asdict(self.config)
        return ", ".join(f"{name}={told[name]!r}" for name in ("masked", "constrained"))
