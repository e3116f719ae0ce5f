# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Calibrated answers: the probability that an image fits a text, and whether a gallery has anything to answer with.

A cosine says little by itself: what is high for one text is usual for another, and the best of many images scores high
whatever is asked. So a logistic regression takes three facts of an image's score: the score, its standing among those
of the gallery, and the size of the gallery. It is fitted to galleries of several sizes with the images that are right
for a text, and to the same without them, so that a query has an answer as often as not. Each perspective has
coefficients of its own, for the branch of its name, and the fused score has some for texts of all perspectives.

Axes: N images of a gallery, T texts, H branches, D projection width.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import cached_file

from ..checkpoint_files import CALIBRATION_FILE
from ..field_types import require_types
from ..storage import field_names, parse_json, require_keys, write_json
from .encoding import DualEncoder, vectors_by_name
from .fusion_fitting import INVERSE_REGULARISATION, MOST_IMAGES, MOST_STEPS, MOST_TEXTS
from .probes import minimise
from .ranking import bootstrap_interval
from .records import FUSED, Detail, Provenance, Record, Recorder
from .retrieval import Captions, EmbeddedCorpus, per_perspective

logger = logging.getLogger(__name__)

TASK = "answers"
# Ten for each of four coefficients (Peduzzi et al., 1996, https://doi.org/10.1016/S0895-4356(96)00236-3).
FEWEST_TEXTS = 40
SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)  # of the images, in galleries of which the dependence on size is learnt
FEWEST_IMAGES = 10  # of such a gallery
LEARNT = 50  # results of each gallery that are learnt from; all others have a probability near 0
LOOKED_AT = 5  # results among which an answer counts as found, as in recall@5
MOST_LOST = 0.1  # of the queries that find one, that may be told that there is nothing
SHOWN = 10  # results whose probabilities are held against the truth
BINS = 15  # of the calibration error (Guo et al., 2017, https://arxiv.org/abs/1706.04599)


@dataclass(frozen=True)
class Usual:
    """Scores of a gallery for one text: their mean, their standard deviation, and the number of images."""

    mean: float
    spread: float
    size: int


def describe_usual(scores: np.ndarray, size: int) -> Usual:
    """Describe the scores of a gallery of `size` images by those of a sample of it, (N,)."""
    return Usual(float(scores.mean()), float(scores.std()), size)


@dataclass(frozen=True)
class ScoreCalibration:
    """Coefficients of the logistic regression of one kind of score.

    Args:
        bias: Log-odds where all else is 0.
        score: Weight of the score itself.
        standing: Weight of the number of standard deviations that it lies above the mean of the gallery.
        size: Weight of the logarithm of the number of images.
        num_texts: Number of texts that it was fitted to; one that several galleries were asked counts in each.
        num_images: Number of images that it was fitted to.
        least: Probability of the best image, as among `num_images`, below which nothing is found.
    """

    bias: float
    score: float
    standing: float
    size: float
    num_texts: int
    num_images: int
    least: float = 0.0

    def probability(self, scores: np.ndarray, gallery: Usual) -> np.ndarray:
        """Return the probability that an image fits, for scores (N,) in a gallery: (N,) float64.

        >>> round(float(ScoreCalibration(-1, 2, 0.5, 0, 40, 9).probability(np.array([0.5]), Usual(0, 0.25, 9))[0]), 3)
        0.731
        """
        weights = np.array([self.score, self.standing, self.size])
        # Not a matrix product: there, the rounding of a row may depend on where it stands.
        return 1 / (1 + np.exp(-((_facts(scores, gallery) * weights).sum(axis=1) + self.bias)))

    def evidence(self, scores: np.ndarray, gallery: Usual) -> np.ndarray:
        """Return the same as if the gallery had `num_images`, which `least` is compared with: (N,) float64.

        In a gallery of ten times as many, all probabilities are a tenth, and the right image is as clear as before.
        """
        return self.probability(scores, replace(gallery, size=self.num_images))


def _facts(scores: np.ndarray, gallery: Usual) -> np.ndarray:
    """Return what decides the probability of each score: (N, 3)."""
    standing = (scores - gallery.mean) / gallery.spread if gallery.spread else np.zeros_like(scores)
    return np.stack([scores, standing, np.full_like(scores, math.log(gallery.size))], axis=1)


class Gallery(NamedTuple):
    """Scores (N,) of the images of a gallery for one text, and which of them are right (N,)."""

    scores: np.ndarray
    right: np.ndarray

    def best(self, count: int) -> np.ndarray:
        """Return the places of the highest scores, best first."""
        return np.argsort(-self.scores, kind="stable")[:count]

    @property
    def usual(self) -> Usual:
        """Description of the scores."""
        return describe_usual(self.scores, len(self.scores))

    def finds_nothing(self, calibration: ScoreCalibration) -> bool:
        """Tell whether even the best image is less likely to fit than `least`."""
        return bool(calibration.evidence(self.scores, self.usual).max() < calibration.least)

    @property
    def is_answered(self) -> bool:
        """Truth of whether an image that is right is among the first `LOOKED_AT`."""
        return bool(self.right[self.best(LOOKED_AT)].any())

    def without_answer(self) -> "Gallery":
        """Return the same gallery without the images that are right."""
        return Gallery(self.scores[~self.right], self.right[~self.right])


def fit_calibration(
    model: DualEncoder, corpus: EmbeddedCorpus, *, gallery_size: int | None = None, seed: int = 0
) -> dict[str, ScoreCalibration]:
    """Fit the fused score and each branch, by name; those with fewer than `FEWEST_TEXTS` texts are left out.

    Args:
        model: Model whose scores they are.
        corpus: Corpus that it was not trained on, encoded.
        gallery_size: Number of images of the galleries into which the corpus is dealt. They share none, so that a text
            counts in each. Default: one gallery of all images, or of `MOST_IMAGES` of them.
        seed: Seed of the texts and images that are drawn.

    Raises:
        ValueError: the corpus has fewer images than a gallery.
    """
    corpus.require_images()
    found = {}
    for name, galleries in _galleries_by_score(model, corpus, np.random.default_rng(seed), gallery_size):
        if len(galleries) >= FEWEST_TEXTS:
            found[name] = fit_scores(galleries, np.random.default_rng(seed))
    return found


def fit_scores(galleries: Sequence[Gallery], generator: np.random.Generator) -> ScoreCalibration:
    """Fit the coefficients of one kind of score to the whole gallery of each text, and draw the smaller ones."""
    facts, right, weights = [], [], []
    for each in galleries:
        for gallery in _drawn(each, generator):
            best = gallery.best(LEARNT)
            facts.append(_facts(gallery.scores, gallery.usual)[best])
            right.append(gallery.right[best])
            weights.append(np.full(len(best), 1 / len(best)))
    rows, targets, counts = (torch.from_numpy(np.concatenate(each)).double() for each in (facts, right, weights))
    mean, spread = rows.mean(dim=0), rows.std(dim=0).clamp(min=1e-9)
    scaled = (rows - mean) / spread

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        errors = F.binary_cross_entropy_with_logits(scaled @ weight + bias, targets, weight=counts, reduction="sum")
        return (errors + weight.square().sum() / (2 * INVERSE_REGULARISATION)) / counts.sum()

    weight, bias = minimise(loss, torch.zeros(3).double(), torch.zeros(()).double(), most_steps=MOST_STEPS)
    weight = weight / spread
    size = max(len(each.scores) for each in galleries)
    score, standing, logarithm = weight.tolist()
    fitted = ScoreCalibration((bias - weight @ mean).item(), score, standing, logarithm, len(galleries), size)
    best_of = [fitted.evidence(each.scores, each.usual).max() for each in galleries if each.is_answered]
    least = float(np.quantile(best_of, MOST_LOST, method="lower")) if best_of else 0.0
    return replace(fitted, least=least)


def _drawn(whole: Gallery, generator: np.random.Generator) -> Iterator[Gallery]:
    """Yield galleries of several sizes that have an answer, and the same without it."""
    right, wrong = np.flatnonzero(whole.right), np.flatnonzero(~whole.right)
    for share in SHARES:
        count = round(share * len(wrong))
        if count >= FEWEST_IMAGES:
            some = generator.permutation(right)[: max(1, round(share * len(right)))]
            rows = np.concatenate([some, generator.permutation(wrong)[:count]])
            gallery = Gallery(whole.scores[rows], whole.right[rows])
            yield from (gallery, gallery.without_answer())


def _galleries_by_score(
    model: DualEncoder, corpus: EmbeddedCorpus, generator: np.random.Generator, size: int | None
) -> Iterator[tuple[str, list[Gallery]]]:
    """Yield each kind of score with the galleries of its texts: all perspectives' for the fused one, else its own."""
    found: dict[str, list[Gallery]] = {FUSED: []}
    for images in _dealt(len(corpus.branch_embeds), size, generator):
        for name, galleries in _galleries_of(model, corpus, images, generator):
            found.setdefault(name, []).extend(galleries)
    yield from found.items()


def _dealt(num_images: int, size: int | None, generator: np.random.Generator) -> list[np.ndarray]:
    """Return the images of each gallery: of one, or of as many as there are of `size`, none of which share any."""
    order = generator.permutation(num_images)
    if size is None:
        return [np.sort(order[:MOST_IMAGES])]
    if not FEWEST_IMAGES <= size <= num_images:
        raise ValueError(
            f"`gallery_size` is {size}; expected {FEWEST_IMAGES} to {num_images}, the images of the split. Name a "
            "smaller one, or leave it out."
        )
    return [np.sort(order[first : first + size]) for first in range(0, num_images - size + 1, size)]


def _galleries_of(
    model: DualEncoder, corpus: EmbeddedCorpus, images: np.ndarray, generator: np.random.Generator
) -> Iterator[tuple[str, list[Gallery]]]:
    """Yield the galleries of some images of the corpus, perspective by perspective, for each kind of score."""
    captions: Captions = {name: [owned[image] for image in images] for name, owned in corpus.captions.items()}
    for question in per_perspective(captions):
        texts = np.sort(generator.permutation(len(question.texts))[:MOST_TEXTS])
        right = question.right.numpy()
        if not len(texts):
            continue
        embeds = corpus.embeds_of([question.texts[text] for text in texts])
        for details, vectors in vectors_by_name(model, corpus.branch_embeds[torch.from_numpy(images)], embeds):
            if (name := str(details["branch"])) in (FUSED, question.perspective):
                scores = vectors.score(vectors.images.double(), vectors.texts.double()).T.numpy()
                rows = [Gallery(*each) for each in zip(scores, right[texts], strict=True)]
                yield name, [each for each in rows if not each.right.all()]


@dataclass(frozen=True)
class Calibration:
    """All that `fit` found out about the scores of a checkpoint.

    Args:
        checkpoint: Fingerprint of what makes the vectors.
        fusion: Settings by which branches become one score, see `fusion_facts`.
        dataset, split: Data that it was fitted to.
        scores: Coefficients by kind of score: of the fused one and of branches, by name.
    """

    checkpoint: str
    fusion: Mapping[str, Any]
    dataset: str
    split: str
    scores: Mapping[str, ScoreCalibration]


def fusion_facts(model: DualEncoder) -> dict[str, Any]:
    """Return what decides how the similarities of branches become one score."""
    config, router = model.config, model.branch_fusion.router
    facts = {name: getattr(config, name) for name in ("fusion", "branch_weights", "fusion_scale")}
    if config.fusion == "softmax" and config.fusion_scale is None:
        facts["fusion_scale"] = round(model.logit_scale.detach().float().exp().item(), 3)
    if router is not None:
        numbers = torch.cat([each.detach().float().cpu().flatten() for each in router.parameters()])
        facts["router"] = hashlib.sha256(numbers.numpy().tobytes()).hexdigest()
    return facts


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON that appears complete or not at all."""
    write_json(path, asdict(calibration))


def load_calibration(checkpoint: str | Path) -> Calibration | None:
    """Read the calibration beside a checkpoint, in its folder or on the Hub; `None` if it has none.

    Raises:
        ValueError: the file is damaged.
    """
    found = cached_file(
        str(checkpoint),
        CALIBRATION_FILE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else read_calibration(Path(found))


def calibration_or_warning(checkpoint: str | Path) -> Calibration | None:
    """Read the calibration beside a checkpoint, and say in a warning if it is damaged: answers need none."""
    try:
        return load_calibration(checkpoint)
    except ValueError as error:
        logger.warning("Images are found without probabilities: %s", error)
        return None


def read_calibration(path: Path) -> Calibration:
    """Read a calibration from its file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = _read(Calibration, parse_json(path.read_bytes()))
        scores = {name: _read(ScoreCalibration, each) for name, each in found["scores"].items()}
        numbers = [value for each in scores.values() for value in each.values()]
        if not all(math.isfinite(value) for value in numbers):
            raise ValueError("a coefficient is not finite")
        return Calibration(**{**found, "scores": {name: ScoreCalibration(**each) for name, each in scores.items()}})
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(
            f"{path} is not a calibration ({reason}); expected one by `holistic-clip fit`. Fit it again, or delete it."
        ) from error


def _read(kind: type, content: Any) -> dict[str, Any]:
    names = field_names(kind)
    found = require_keys(kind.__name__, content, names, names)
    require_types(kind.__name__, found, {**get_type_hints(kind), "scores": dict})
    return found


def measure_answers(
    model: DualEncoder,
    corpus: EmbeddedCorpus,
    scores: Mapping[str, ScoreCalibration],
    *,
    provenance: Provenance,
    gallery_size: int | None = None,
) -> list[Record]:
    """Measure calibrated answers on a corpus, each text asked of all images and of those that are wrong for it.

    - `calibration_error`: mean distance between probability and share of right images, over the `SHOWN` best results,
      in bins of equal width.
    - `told_nothing`: share of the queries without an answer that are told so.
    - `answers_lost`: share of the queries with an answer among the `LOOKED_AT` best results that are told the same.

    Args:
        model: Model whose scores they are.
        corpus: Corpus, encoded.
        scores: Calibration of each kind of score.
        provenance: Origin of the records.
        gallery_size: Number of images of a gallery, as `fit_calibration` takes it.

    Raises:
        ValueError: the corpus has fewer images than a gallery.
    """
    recorder, records = Recorder(provenance, TASK, len(corpus.left_out)), []
    generator = np.random.default_rng(provenance.seed)
    for name, galleries in _galleries_by_score(model, corpus, generator, gallery_size):
        if name not in scores or not galleries:
            continue
        calibration, empty = scores[name], [each.without_answer() for each in galleries]
        shown = [_shown(each, calibration) for each in (*galleries, *empty)]
        error = calibration_error(*(np.concatenate(each) for each in zip(*shown, strict=True)))
        told = {
            "told_nothing": _told(empty, calibration),
            "answers_lost": _told([each for each in galleries if each.is_answered], calibration),
        }
        counts = {"n_queries": len(galleries), "n_candidates": len(galleries[0].scores)}
        details: dict[str, Detail] = {"branch": name}
        if gallery_size is not None:
            details["gallery_size"] = gallery_size
        records.append(recorder.record("calibration_error", error, {**details, "results": SHOWN}, counts))
        for metric, values in told.items():
            if len(values):
                interval = bootstrap_interval(values, seed=provenance.seed)
                counts = {**counts, "n_queries": len(values)}
                records.append(
                    recorder.record(metric, float(values.mean()), details, counts, confidence_interval=interval)
                )
    return records


def _shown(gallery: Gallery, calibration: ScoreCalibration) -> tuple[np.ndarray, np.ndarray]:
    best = gallery.best(SHOWN)
    return calibration.probability(gallery.scores, gallery.usual)[best], gallery.right[best]


def _told(galleries: Sequence[Gallery], calibration: ScoreCalibration) -> np.ndarray:
    """Say of each query whether it is told that there is nothing."""
    return np.array([each.finds_nothing(calibration) for each in galleries], dtype=float)


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error of probabilities (N,) of what is right (N,), in bins of equal width.

    >>> round(calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False])), 3)
    0.25
    """
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    sums = [np.bincount(bins, weights=each, minlength=BINS) for each in (probabilities, right.astype(float))]
    return float(np.abs(sums[0] - sums[1]).sum() / len(probabilities))
