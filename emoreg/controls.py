"""What a probe must beat: a bag of words on the same split, shuffled labels, random directions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import ComplementNB
from sklearn.pipeline import make_pipeline
from torch import Tensor
from torch.nn.functional import normalize

from emoreg.bank import Text
from emoreg.gates import separation

Array = NDArray[np.float64]
WORDS = r"(?u)\b\w+(?:['\u2019]\w+)?\b"


def said(text: Text) -> str:
    """The words that a probe could use: a raw text, or the assistant's turns."""
    turns = (m["content"] for m in text.messages if m["role"] == "assistant")
    return text.text or "\n".join(turns)


@lru_cache(maxsize=8)
def _fitted(
    fit: tuple[str, ...], labels: tuple[str, ...], test: tuple[str, ...]
) -> tuple[list[str], list[Array]]:
    """Classes, and of each classifier the score of every test text for each, (texts, classes)."""
    shares = TfidfVectorizer(token_pattern=WORDS, sublinear_tf=True, min_df=2)
    counts = CountVectorizer(token_pattern=WORDS, min_df=2)
    pairs = (
        (shares, LogisticRegression(C=10.0, max_iter=1000)),
        (shares, ComplementNB()),
        (counts, LogisticRegression(C=0.1, max_iter=1000)),  # how often a word stands, not only if
    )
    found = [make_pipeline(words, m).fit(fit, labels).predict_proba(test) for words, m in pairs]
    return sorted(set(labels)), found


def _scores(fit: Sequence[Text], test: Sequence[Text]) -> tuple[list[str], list[Array]]:
    return _fitted(tuple(map(said, fit)), tuple(t.label for t in fit), tuple(map(said, test)))


def bag_of_words_accuracy(fit: Sequence[Text], test: Sequence[Text]) -> float:
    """Accuracy on `test` of the best of three word classifiers that were trained on `fit`."""
    classes, scores = _scores(fit, test)
    truth = np.array([t.label for t in test])
    return max(float((np.array(classes)[s.argmax(1)] == truth).mean()) for s in scores)


def bag_of_words_auroc(fit: Sequence[Text], test: Sequence[Text], label: str) -> float:
    """AUROC on `test`, one label against the others, of the best of three word classifiers."""
    classes, scores = _scores(fit, test)
    own = np.array([t.label == label for t in test])
    columns = [s[:, classes.index(label)] for s in scores]
    return max(separation(c[own].tolist(), c[~own].tolist()) for c in columns)


def shuffle_within(
    labels: Sequence[str], groups: Sequence[str], generator: np.random.Generator
) -> list[str]:
    """Labels permuted within each group, so that their balance over groups stays."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    shuffled = list(labels)
    for at in members.values():
        for i, j in zip(at, generator.permutation(at), strict=True):
            shuffled[i] = labels[j]
    return shuffled


def random_directions(number: int, blocks: int, width: int, seed: int = 0) -> Tensor:
    """Unit directions, uniform on the sphere, (number, blocks, width)."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(number, blocks, width, generator=generator), dim=-1)
