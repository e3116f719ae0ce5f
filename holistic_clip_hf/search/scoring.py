# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Scores of images for a query, and what each term and branch adds to them.

A term is worth its weight times the similarity of its vector to one branch, or fused over all. If fusion is linear,
that is a sum over branches again, so all terms in favour, however many there are, cost one product for each branch.
A term against counts by what exceeds its floor: an image that shows no more of it than most is not the better for
showing less (training/LOG.md, "Answers"). Scores are found in float32 and decided in float64, image by image, so that
equal vectors have equal scores.

Axes: N images, H kinds of vectors (branches, or the fused one alone), D projection width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..evaluation.calibration import Usual, describe_usual
from ..evaluation.records import FUSED
from ..storage import shown
from .query import Term

SUM, CENTROID, MAX, SOFTMAX = "sum", "centroid", "max", "softmax"
LEAST_LENGTH = 1e-12  # of a mean of vectors, as torch normalises
_ROUND_OFF = 2.0**-24
_AT_ONCE = 4_096  # images whose scores are decided together
MOST_SAMPLED = 1_024  # images whose scores say what is usual; their mean is off by a thirtieth of the spread
FLOOR = 1.0  # spreads above the mean; better than the mean itself (training/LOG.md, "Answers")
Blocks = Mapping[str, Sequence[np.ndarray]]  # by kind of vector, the rows in blocks (n, D) alike for all kinds


@dataclass(frozen=True)
class EmbeddedTerm:
    """One term as vectors: what each kind of vector is held against, and how the products become one number.

    Args:
        term: Term of the query.
        vectors: Vectors (D,) by kind; with `SUM` and `CENTROID` each has its share in the fusion.
        combine: `SUM` of the products, `CENTROID`, their sum divided by the length of the image's mean vector, their
            `MAX`, or `SOFTMAX`, their mean weighted by their softmax.
        scale: Scale of that softmax.
        floor: Similarity up to which the term counts nothing. Default: all of it counts.
    """

    term: Term
    vectors: Mapping[str, np.ndarray]
    combine: str = SUM
    scale: float = 1.0
    floor: float | None = None


def mean_lengths(vectors: np.ndarray) -> np.ndarray:
    """Return the length of the mean over branches of each row (N, H, D): (N,) float64."""
    return np.maximum(np.linalg.norm(vectors.astype(np.float64).mean(axis=1), axis=-1), LEAST_LENGTH)


def rough_scores(
    questions: Sequence[EmbeddedTerm], blocks: Blocks, lengths: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Score all rows in one pass over the kinds of vectors that are asked, (N,) float32; see `margin`.

    `lengths` are the `mean_lengths` of each block, which a `CENTROID` needs.
    """
    linear, central = (_added_up(questions, combine) for combine in (SUM, CENTROID))
    others = [question for question in questions if not _is_added_up(question)]
    names = list(dict.fromkeys([*linear, *central, *(name for question in others for name in question.vectors)]))
    found = []
    for number, block in enumerate(zip(*(blocks[name] for name in names), strict=True)):
        by_name = dict(zip(names, block, strict=True))
        scores = np.zeros(len(block[0]), dtype=np.float32)
        for name, vector in central.items():
            scores += by_name[name] @ vector.astype(np.float32)
        if central and lengths is not None:
            scores /= lengths[number].astype(np.float32)
        for name, vector in linear.items():
            scores += by_name[name] @ vector.astype(np.float32)
        for question in others:
            products = [by_name[name] @ vector.astype(np.float32) for name, vector in question.vectors.items()]
            shares = _shares(np.stack(products, axis=1), question)
            if question.combine == CENTROID and lengths is not None:
                shares /= lengths[number].astype(np.float32)[:, None]
            scores += question.term.weight * _above_floor(shares, question).sum(axis=1)
        found.append(scores)
    return np.concatenate(found)


def _is_added_up(question: EmbeddedTerm) -> bool:
    """Tell whether a term's vectors may be added to those of others before the product."""
    return question.combine in (SUM, CENTROID) and question.floor is None


def _add(total: dict[str, np.ndarray], vectors: Mapping[str, np.ndarray], weight: float) -> None:
    for name, vector in vectors.items():
        total[name] = total.get(name, 0.0) + weight * vector


def _added_up(questions: Sequence[EmbeddedTerm], combine: str) -> dict[str, np.ndarray]:
    """Return by kind the weighted sum of the vectors of all terms that are combined alike: one product for all."""
    total: dict[str, np.ndarray] = {}
    for question in questions:
        if question.combine == combine and _is_added_up(question):
            _add(total, question.vectors, question.term.weight)
    return total


def margin(questions: Sequence[EmbeddedTerm], shortest: float = 1.0) -> float:
    """Bound how far a rough score can be from the true one, for vectors of length one or less.

    `shortest` is the least of all `mean_lengths`, by which a `CENTROID` divides what its products are off.
    """
    reach = 0.0
    for question in questions:
        lengths = [float(np.linalg.norm(vector)) for vector in question.vectors.values()]
        width = len(next(iter(question.vectors.values())))
        # A softmax passes an error of its products on, and one of its own weights, by the scale.
        sway = {SOFTMAX: 1 + 2 * question.scale, CENTROID: 1 / shortest}.get(question.combine, 1.0)
        reach += abs(question.term.weight) * sum(lengths) * (width + 8) * sway
    return 2 * _ROUND_OFF * reach


def contributions(questions: Sequence[EmbeddedTerm], names: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Return what each question's products with each kind of vector add to the score: (N, questions, H) float64.

    Shapes: `vectors` (N, H, D), their kinds in the order of `names`. The score is the sum over questions and kinds.
    """
    parts = np.zeros((len(vectors), len(questions), len(names)))
    for number, question in enumerate(questions):
        places = [names.index(name) for name in question.vectors]
        asked = np.stack(list(question.vectors.values())).astype(np.float64)
        # Not a matrix product: there, the rounding of a row may depend on where it stands.
        products = (vectors[:, places].astype(np.float64) * asked).sum(axis=-1)
        shares = _shares(products, question)
        if question.combine == CENTROID:
            shares = shares / mean_lengths(vectors)[:, None]
        parts[:, number, places] = question.term.weight * _above_floor(shares, question)
    return parts


def similarities(question: EmbeddedTerm, names: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Return what one term is worth before its weight and its floor: (N,) float64. Shapes as in `contributions`."""
    plain = replace(question, term=replace(question.term, weight=1.0), floor=None)
    return contributions([plain], names, vectors).sum(axis=(1, 2))


def usual(question: EmbeddedTerm, names: Sequence[str], vectors: np.ndarray, size: int) -> Usual:
    """Describe the similarities of a gallery of `size` images by those of a sample (N, H, D) of it."""
    return describe_usual(similarities(question, names, vectors), size)


def with_floors(questions: Sequence[EmbeddedTerm], gallery: Sequence[Usual]) -> list[EmbeddedTerm]:
    """Return the terms, those against with a floor if there are others: what is usual in the gallery costs nothing.

    If all are against, there is nothing else to go by, and what shows least of them is best.
    """
    if all(question.term.weight < 0 for question in questions):
        return list(questions)
    return [
        replace(question, floor=found.mean + FLOOR * found.spread) if question.term.weight < 0 else question
        for question, found in zip(questions, gallery, strict=True)
    ]


def sampled(rows: np.ndarray) -> np.ndarray:
    """Return up to `MOST_SAMPLED` rows, evenly spread."""
    return rows[:: max(1, -(-len(rows) // MOST_SAMPLED))]


def candidates(rough: np.ndarray, allowed: np.ndarray, k: int, slack: float) -> np.ndarray:
    """Return the rows of all images that may be among the best `k` of `allowed` (N,), given rough scores (N,)."""
    rows = np.flatnonzero(allowed)
    if len(rows) <= k:
        return rows
    scores = rough[rows]
    lowest = np.partition(scores, len(scores) - k)[len(scores) - k]
    return rows[scores >= lowest - 2 * slack]


def proposals_by(questions: Sequence[EmbeddedTerm]) -> dict[str, np.ndarray]:
    """Return by kind of vector the (D,) to look up in an approximate index, of the kinds that a term in favour asks.

    What counts against moves these, but names no images by itself: those it likes least may be anything. With a floor
    it does not even move them. A term that asks all branches is looked up in each and in their mean, since its best
    image need not be the best of any branch.
    """
    total: dict[str, np.ndarray] = {}
    in_favour: set[str] = set()
    for question in (each for each in questions if each.floor is None):
        vectors = dict(question.vectors)
        if len(vectors) > 1:
            vectors[FUSED] = np.sum(list(vectors.values()), axis=0)
        _add(total, vectors, question.term.weight)
        if question.term.weight > 0:
            in_favour |= vectors.keys()
    return {name: vector for name, vector in total.items() if name in in_favour}


def linear_totals(questions: Sequence[EmbeddedTerm]) -> dict[str, np.ndarray] | None:
    """Return by kind of vector the one (D,) whose products add up to the scores; `None` if a fusion is not linear.

    A term that asks the centroid of all branches stands under `FUSED`, whose vectors are centroids. Terms with a floor
    only take away from a score, and propose nothing.
    """
    total: dict[str, np.ndarray] = {}
    for question in (each for each in questions if each.floor is None):
        if question.combine in (MAX, SOFTMAX):
            return None
        vectors = dict(question.vectors)
        if question.combine == CENTROID and len(vectors) > 1:
            vectors = {FUSED: np.sum(list(vectors.values()), axis=0)}
        _add(total, vectors, question.term.weight)
    return total


def chunked(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a bounded number of rows at a time."""
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]


def _shares(products: np.ndarray, question: EmbeddedTerm) -> np.ndarray:
    """Turn products (N, H) into what each of them counts."""
    if question.combine in (SUM, CENTROID):
        return products
    if question.combine == MAX:
        first = products.argmax(axis=1)[:, None] == np.arange(products.shape[1])
        return np.where(first, products, 0.0)
    logits = question.scale * products
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) * products


def _above_floor(shares: np.ndarray, question: EmbeddedTerm) -> np.ndarray:
    """Return the shares (N, H) of similarities that exceed the term's floor, less the floor in equal parts, else 0."""
    if question.floor is None:
        return shares
    is_above = shares.sum(axis=1, keepdims=True) > question.floor
    return np.where(is_above, shares - question.floor / shares.shape[1], 0.0)


def require_finite_terms(questions: Sequence[EmbeddedTerm]) -> None:
    """Raise `ValueError` where a query has no usable vector."""
    for question in questions:
        if not all(np.isfinite(vector).all() for vector in question.vectors.values()) or math.isnan(question.scale):
            raise ValueError(
                f"The model gave values that are not finite for {shown(str(question.term))}. Check its weights and "
                "dtype."
            )


@dataclass(frozen=True)
class TermScore:
    """Addition of one term to a score. `by_branch` adds up to `score`, the term's weight included."""

    term: Term
    score: float
    by_branch: Mapping[str, float]


@dataclass(frozen=True)
class Hit:
    """An image that was found; the scores of `parts`, one for each term, add up to `score`.

    `probability` says how likely the image fits the query, if the checkpoint has a calibration for all its terms.
    """

    image_id: str
    score: float
    parts: Sequence[TermScore]
    columns: Mapping[str, Any]
    probability: float | None = None


def best_places(scores: np.ndarray, ids: Sequence[str], k: int) -> list[int]:
    """Return the places of the `k` highest scores (N,), best first; of equal ones, that of the first id."""
    return sorted(range(len(ids)), key=lambda place: (-scores[place], ids[place]))[:k]


def explained(
    questions: Sequence[EmbeddedTerm], names: Sequence[str], facts: Sequence[Mapping[str, Any]], vectors: np.ndarray
) -> list[Hit]:
    """Return a hit for each image: `facts` its id and columns, `vectors` (N, H, D) in the order of `names`."""
    hits = []
    for fact, added in zip(facts, contributions(questions, names, vectors), strict=True):
        parts = [
            TermScore(
                question.term, float(each.sum()), {name: float(each[names.index(name)]) for name in question.vectors}
            )
            for question, each in zip(questions, added, strict=True)
        ]
        columns = {name: value for name, value in fact.items() if name != "image_id"}
        hits.append(Hit(fact["image_id"], float(added.sum()), parts, columns))
    return hits
