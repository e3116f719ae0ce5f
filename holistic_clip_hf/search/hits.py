# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What is found, with what each term and branch added to its score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .query import Term
from .scoring import Question, contributions


@dataclass(frozen=True)
class Part:
    """What one term adds to a score: `by_branch` adds up to `score`, the term's weight included."""

    term: Term
    score: float
    by_branch: Mapping[str, float]


@dataclass(frozen=True)
class Hit:
    """An image that was found; the scores of `parts`, one for each term, add up to `score`."""

    image_id: str
    score: float
    parts: Sequence[Part]
    columns: Mapping[str, Any]


def best_places(scores: np.ndarray, ids: Sequence[str], k: int) -> list[int]:
    """The places of the `k` highest scores (N,), best first; of equal ones, that of the first id."""
    return sorted(range(len(ids)), key=lambda place: (-scores[place], ids[place]))[:k]


def explained(
    questions: Sequence[Question], names: Sequence[str], facts: Sequence[Mapping[str, Any]], vectors: np.ndarray
) -> list[Hit]:
    """A hit for each image: `facts` its id and columns, `vectors` (N, H, D) in the order of `names`."""
    hits = []
    for fact, added in zip(facts, contributions(questions, names, vectors), strict=True):
        parts = [
            Part(question.term, float(each.sum()), {name: float(each[names.index(name)]) for name in question.vectors})
            for question, each in zip(questions, added, strict=True)
        ]
        columns = {name: value for name, value in fact.items() if name != "image_id"}
        hits.append(Hit(fact["image_id"], float(added.sum()), parts, columns))
    return hits
