# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Calibrated answers of an index: how likely each image fits a query, and whether any does.

Axes: N images, H kinds of vectors, D projection width.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..evaluation.calibration import Calibration, ScoreCalibration, Usual, fusion_facts
from ..evaluation.encoding import DualEncoder
from ..evaluation.records import FUSED
from .scoring import EmbeddedTerm, Hit, similarities

logger = logging.getLogger(__name__)
Scores = Mapping[str, ScoreCalibration]  # by perspective, or `FUSED`
SEEN = 10  # of the best images by score, among which the most likely one is sought


@dataclass(frozen=True)
class Answer:
    """Images for a query, best first.

    Args:
        hits: Images.
        found: False if none of them seems to fit; `None` if that is not known, as for an example image, or for a
            checkpoint without a calibration.
    """

    hits: Sequence[Hit]
    found: bool | None = None

    @property
    def best(self) -> float:
        """Highest probability of the images."""
        return max((hit.probability or 0.0 for hit in self.hits), default=0.0)


def sound_scores(calibration: Calibration, model: DualEncoder, checkpoint: str) -> dict[str, ScoreCalibration]:
    """Return what of a calibration holds for a model; what does not is named in a warning.

    Args:
        calibration: Calibration of a checkpoint.
        model: Model that the index is asked with.
        checkpoint: Fingerprint of what makes its vectors.
    """
    if calibration.checkpoint != checkpoint:
        logger.warning(
            "The calibration is that of another checkpoint (%s; this one is %s): images are found without "
            "probabilities. Fit it again with `holistic-clip fit`.",
            calibration.checkpoint[:12],
            checkpoint[:12],
        )
        return {}
    scores = dict(calibration.scores)
    if calibration.fusion != fusion_facts(model) and scores.pop(FUSED, None) is not None:
        logger.warning(
            "The calibration is that of another fusion (%r; this checkpoint's is %r): only queries that name their "
            "perspectives have probabilities. Fit it again with `holistic-clip fit`.",
            calibration.fusion.get("fusion"),
            model.config.fusion,
        )
    return scores


class Judged(NamedTuple):
    """Probability of each image (N,), and whether any is likely enough."""

    probabilities: np.ndarray
    found: bool


def judge(
    questions: Sequence[EmbeddedTerm],
    gallery: Sequence[Usual],
    scores: Scores,
    names: Sequence[str],
    vectors: np.ndarray,
) -> Judged | None:
    """Judge images by all terms of a query; `None` if a term has no calibration, or all are against.

    An image fits if it fits every term in favour and none against, which are taken as independent.

    Args:
        questions: Terms as vectors.
        gallery: Description of the gallery's similarities to each of them.
        scores: Calibrations.
        names: Kinds of vectors.
        vectors: Vectors of the images, (N, H, D) in the order of `names`.
    """
    if any(each.term.text is None or each.term.perspective not in scores for each in questions):
        return None
    if all(each.term.weight < 0 for each in questions):
        return None
    used = [scores[each.term.perspective] for each in questions]
    found = [similarities(each, names, vectors) for each in questions]
    judged = list(zip(used, found, gallery, strict=True))
    likely = _all_of(questions, [one.probability(values, usual) for one, values, usual in judged])
    evidence = _all_of(questions, [one.evidence(values, usual) for one, values, usual in judged])
    in_favour = [(question, one) for question, one in zip(questions, used, strict=True) if question.term.weight > 0]
    needed = _all_of([question for question, _ in in_favour], [np.array([one.least]) for _, one in in_favour])
    return Judged(likely, bool(evidence.max(initial=0.0) >= needed[0]))


def _all_of(questions: Sequence[EmbeddedTerm], likely: Sequence[np.ndarray]) -> np.ndarray:
    """Multiply the probabilities (N,) of each term. A text that several perspectives are asked for counts once."""
    shares: dict[tuple[str | None, bool], list[tuple[float, np.ndarray]]] = {}
    for question, each in zip(questions, likely, strict=True):
        term = question.term
        shares.setdefault((term.text, term.weight > 0), []).append((abs(term.weight), each))
    product = np.ones_like(likely[0])
    for (_, is_wanted), found in shares.items():
        mean = sum(weight * each for weight, each in found) / sum(weight for weight, _ in found)
        product = product * (mean if is_wanted else 1 - mean)
    return product
