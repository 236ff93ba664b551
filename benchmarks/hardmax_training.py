"""Train a hardmax classifier as published, on a processor.

Two things make it quick, and change nothing that float32 has a digit for. Words that are repeated
in a review, padding above all, are at the same place in every layer: they are one token that counts
as many times. And softmax at T = 0.001 is nothing but its few largest terms: those of scores more
than 30 T below the largest are below exp(-30) = 1e-13 of it. The loops here compute the scores of a
token in the processor's cache, and go on with what is left of them, forward and backward.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomhooks.models import HardmaxClassifier

History = dict[str, list[Any]]

__all__ = [
    "BATCH",
    "COLD",
    "EVERY",
    "Data",
    "History",
    "Means",
    "Scored",
    "Training",
    "Words",
    "compare",
    "different_words",
    "loss_of",
    "quick_logits",
    "right",
    "score",
]

BATCH = 64
EVERY = 10  # epochs between looks at hardmax
CLIP = 5.0
RATE = 1e-3
FAR = 30.0  # temperatures below the largest score
COLD = 1e-12
NUMBERS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "alpha", "seconds")


class Words(NamedTuple):
    """Reviews by the different words that are in them, padding among these."""

    ids: Tensor
    """(N, m) int64; what is beyond the size of a review is 0"""
    copies: Tensor
    """(N, m) float32, how often each is there, 0 beyond the size"""
    sizes: Tensor
    """(N,) int64"""

    def of(self, rows: Tensor) -> Words:
        """Some of the reviews, no longer than they need to be."""
        sizes = self.sizes[rows]
        longest = int(sizes.max())
        return Words(self.ids[rows, :longest], self.copies[rows, :longest], sizes)


def different_words(ids: Tensor) -> Words:
    """Count the words of each of (N, T) ids."""
    ordered = ids.sort(1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered.diff(dim=1) != 0
    place = first.cumsum(1) - 1
    found = torch.zeros_like(ordered).scatter_(1, place, ordered)
    copies = torch.zeros(ordered.shape).scatter_add_(1, place, torch.ones(ordered.shape))
    return Words(found, copies, place[:, -1] + 1)


@numba.njit(fastmath=True, cache=True)
def forward_kernel(states, copies, sizes, beta, means, index, weights, counts):  # type: ignore[no-untyped-def]
    """Means of (B, m, d); and which tokens with what weights they are made of, side by side."""
    rows, number, width = states.shape
    turned = np.empty((width, number), np.float32)
    scores = np.empty(number, np.float32)
    for row in range(rows):
        size, at = sizes[row], 0
        for j in range(size):
            for k in range(width):
                turned[k, j] = states[row, j, k]
        for i in range(size):
            entry, line = states[row, i, 0], turned[0]
            for j in range(size):
                scores[j] = entry * line[j]
            for k in range(1, width):
                entry, line = states[row, i, k], turned[k]
                for j in range(size):
                    scores[j] += entry * line[j]
            top = scores[0]
            for j in range(size):
                top = max(top, scores[j])
            least = top - np.float32(FAR) / beta
            near = np.int32(0)
            for j in range(size):
                near += np.int32(scores[j] >= least)
            counts[row, i] = near
            end, j = at + near, 0
            for one in range(at, end):
                while scores[j] < least:
                    j += 1
                index[row, one] = j
                j += 1
            if near == 1:  # nearly always
                weights[row, at] = 1
                for k in range(width):
                    means[row, i, k] = states[row, index[row, at], k]
                at = end
                continue
            total = np.float32(0)
            for one in range(at, end):
                j = index[row, one]
                weights[row, one] = copies[row, j] * np.exp((scores[j] - top) * beta)
                total += weights[row, one]
            for one in range(at, end):
                weights[row, one] /= total
                for k in range(width):
                    means[row, i, k] += weights[row, one] * states[row, index[row, one], k]
            at = end


@numba.njit(fastmath=True, cache=True)
def backward_kernel(states, sizes, beta, index, weights, counts, given, out):  # type: ignore[no-untyped-def]
    """Gradient with respect to the states, from that with respect to the means."""
    rows, number, width = states.shape
    slopes = np.empty(number, np.float32)
    for row in range(rows):
        at = 0
        for i in range(sizes[row]):
            found = counts[row, i]
            if found == 1:
                j = index[row, at]
                for k in range(width):
                    out[row, j, k] += given[row, i, k]
                at += 1
                continue
            mean = np.float32(0)
            for one in range(found):
                j, slope = index[row, at + one], np.float32(0)
                for k in range(width):
                    slope += given[row, i, k] * states[row, j, k]
                slopes[one] = slope
                mean += weights[row, at + one] * slope
            for one in range(found):
                j, weight = index[row, at + one], weights[row, at + one]
                slope = weight * (slopes[one] - mean) * beta
                for k in range(width):
                    out[row, i, k] += slope * states[row, j, k]
                    out[row, j, k] += slope * states[row, i, k] + weight * given[row, i, k]
            at += found


class Means(torch.autograd.Function):
    """The means of what tokens attend to, softmax(<z_i, z_j> / T) with copies, in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, words: Words, temperature: float) -> Tensor:  # noqa: D102
        rows, number, _ = states.shape
        seen, beta = states.detach().contiguous().numpy(), np.float32(1 / temperature)
        sizes, copies = words.sizes.numpy(), words.copies.contiguous().numpy()
        means = np.zeros_like(seen)
        # Few of these are written to, the first ones of each review.
        index = np.empty((rows, number * number + 1), np.int16)
        weights = np.empty((rows, number * number + 1), np.float32)
        counts = np.empty((rows, number), np.int32)
        forward_kernel(seen, copies, sizes, beta, means, index, weights, counts)
        ctx.kept = seen, sizes, beta, index, weights, counts
        return torch.from_numpy(means)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None]:  # noqa: D102
        out = np.zeros_like(ctx.kept[0])
        backward_kernel(*ctx.kept, given[0].contiguous().numpy(), out)
        return torch.from_numpy(out), None, None


def quick_logits(
    model: HardmaxClassifier, words: Words, temperature: float | None = None
) -> Tensor:
    """The model's logits in training, or at another temperature; padding takes part.

    At 1e-12 nothing but equal scores is left, which is hardmax.
    """
    temperature = model.config.temperature if temperature is None else temperature
    states: Tensor = model.body.embedding(words.ids)
    gain = model.alpha / (1 + model.alpha)
    for _ in range(model.config.num_hidden_layers):
        states = states + gain * (Means.apply(states, words, temperature) - states)
    pooled = (words.copies[..., None] * states).sum(1) / words.copies.sum(1, keepdim=True)
    return model.decoder(pooled)[:, 0]


class Scored(NamedTuple):
    """Of some reviews, as published: means over batches of a batch's mean."""

    loss: float
    accuracy: float


class Data(NamedTuple):
    """Reviews and their labels."""

    words: Words
    positive: Tensor
    """(N,) float32"""


def loss_of(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross entropy of probabilities, as published: they are 1 from logits of 17 on."""
    return F.binary_cross_entropy(logits.sigmoid(), positive)


def right(logits: Tensor, positive: Tensor) -> float:
    """The share of a batch that is classified correctly."""
    return float(((logits > 0) == positive.bool()).float().mean())


@torch.no_grad()
def score(model: HardmaxClassifier, data: Data, temperature: float | None = None) -> Scored:
    """Loss and accuracy of the model as it is trained, or at another temperature."""
    losses, shares = [], []
    for rows in torch.arange(len(data.positive)).split(BATCH):
        logits = quick_logits(model, data.words.of(rows), temperature)
        losses.append(float(loss_of(logits, data.positive[rows])))
        shares.append(right(logits, data.positive[rows]))
    return Scored(math.fsum(losses) / len(losses), math.fsum(shares) / len(shares))


class Training:
    """A training that can be stopped after an epoch, kept in a file, and gone on with.

    Args:
        model: as published.
        trained: what to train on.
        test: what to test on after each epoch.
        seed: of the order of the reviews.
    """

    def __init__(self, model: HardmaxClassifier, trained: Data, test: Data, seed: int = 0) -> None:
        self.model, self.trained, self.test = model, trained, test
        self.optimiser = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
        self.draw = torch.Generator().manual_seed(seed)
        self.history: History = {name: [] for name in (*NUMBERS, "hardmax")}

    @property
    def epochs(self) -> int:
        """How many are done."""
        return len(self.history["alpha"])

    def state(self) -> dict[str, Any]:
        """Everything that going on needs."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "draw": self.draw.get_state(),
            "history": self.history,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Be where another training was."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.draw.set_state(state["draw"])
        self.history = state["history"]

    def epoch(self) -> dict[str, float]:
        """Train on all reviews once, and test; the numbers of this epoch."""
        start = time.process_time()
        losses, shares = [], []
        number = len(self.trained.positive)
        for rows in torch.randperm(number, generator=self.draw).split(BATCH):
            self.optimiser.zero_grad(set_to_none=True)
            logits = quick_logits(self.model, self.trained.words.of(rows))
            loss = loss_of(logits, self.trained.positive[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimiser.step()
            losses.append(float(loss.detach()))
            shares.append(right(logits.detach(), self.trained.positive[rows]))
        tested = score(self.model, self.test)
        of_training = math.fsum(losses) / len(losses), math.fsum(shares) / len(shares)
        alpha, seconds = float(self.model.alpha.detach()), time.process_time() - start
        row = dict(zip(NUMBERS, (*of_training, *tested, alpha, seconds), strict=True))
        row = {name: round(value, 5) for name, value in row.items()}
        if self.epochs % EVERY == 0:
            found = compare(self.model, self.trained, self.test)
            self.history["hardmax"].append({"epoch": self.epochs, **found})
        for name, value in row.items():
            self.history[name].append(value)
        return row


def compare(model: HardmaxClassifier, trained: Data, test: Data) -> dict[str, dict[str, float]]:
    """Softmax and hardmax with the same weights, on what was trained on and on the test."""
    found = {}
    for name, data in (("train", trained), ("test", test)):
        for way, temperature in (("softmax", None), ("hardmax", COLD)):
            scored = score(model, data, temperature)
            found[f"{way}_{name}"] = {k: round(v, 5) for k, v in scored._asdict().items()}
    return found
