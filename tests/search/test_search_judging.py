"""Probabilities of what is found, held against plain loops over single images, and what is told if nothing fits."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.calibration import Calibration, ScoreCalibration, fusion_facts
from holistic_clip_hf.evaluation.fingerprints import fingerprint
from holistic_clip_hf.search import FUSED, DatasetImages, Filter, SearchIndex, Term, index_images
from holistic_clip_hf.search import index as index_module

MakeModel = Callable[..., HolisticCLIPModel]
MakeIndex = Callable[..., SearchIndex]
NAMES = ["short", "style"]
SCORES = {
    FUSED: ScoreCalibration(-1.0, 3.0, 0.8, -0.4, 50, 20, 0.2),
    "short": ScoreCalibration(-0.5, 2.0, 0.5, -0.6, 50, 40, 0.1),
    "style": ScoreCalibration(0.3, -1.0, 1.1, -0.2, 50, 10, 0.3),
}


@pytest.fixture
def make_index(make_model: MakeModel, processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path) -> MakeIndex:
    """`make_index(**changes)`: of the eight drawings, with `SCORES`; `changes` are those of the calibration."""

    def make(
        vectors: str = "branches", lookup: str = "exact", names: Sequence[str] = NAMES, **changes: object
    ) -> SearchIndex:
        model = make_model(perspectives=list(names), vision={"num_branches": len(names)})
        images = DatasetImages(corpus)
        index_images(tmp_path / "index", images, model, processor, vectors=vectors, lookup=lookup)
        checkpoint = fingerprint(model, processor, with_fusion=False)
        calibration = Calibration(checkpoint, fusion_facts(model), "drawings", "validation", SCORES)
        return SearchIndex(
            tmp_path / "index", model, processor, images=images, calibration=replace(calibration, **changes)
        )

    return make


def plain_probability(score: float, scores: list[float], one: ScoreCalibration, size: int) -> float:
    mean = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((each - mean) ** 2 for each in scores) / len(scores))
    logit = one.bias + one.score * score + one.standing * (score - mean) / spread + one.size * math.log(size)
    return 1 / (1 + math.exp(-logit))


def likeness(index: SearchIndex, text: str, perspective: str) -> dict[str, float]:
    """The similarity of every image to a text, asked alone."""
    return {hit.image_id: hit.score for hit in index.search(Term(text, perspective=perspective), k=100)}


@pytest.mark.parametrize("perspective", [FUSED, *NAMES])
@pytest.mark.parametrize("lookup", ["exact", "hnsw"])
def test_a_probability_is_that_of_plain_loops(
    make_index: MakeIndex, perspective: str, lookup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "FEW", 0)
    index, one = make_index(lookup=lookup), SCORES[perspective]
    scores = likeness(index, "a red square", perspective)
    answer = index.answer(Term("a red square", perspective=perspective, weight=3.0), k=3)
    for hit in answer.hits:
        expected = plain_probability(scores[hit.image_id], list(scores.values()), one, 8)
        assert hit.probability == pytest.approx(expected, abs=1e-6)
        assert index.explain(Term("a red square", perspective=perspective, weight=3.0), hit.image_id) == hit
    best = max(plain_probability(score, list(scores.values()), one, one.num_images) for score in scores.values())
    assert answer.found == (best >= one.least)
    circles = {name: score for name, score in scores.items() if name.endswith("circle")}
    (hit,) = index.search(Term("a red square", perspective=perspective), k=1, where=Filter(path="*circle"))
    assert hit.probability == pytest.approx(
        plain_probability(circles[hit.image_id], list(circles.values()), one, 4), abs=1e-6
    )


def test_several_wishes_are_all_to_fit(make_index: MakeIndex) -> None:
    """The product over terms; of a text that two perspectives are asked for, the mean by weight counts once."""
    index = make_index()
    terms = [
        Term("red", weight=2.0),
        Term("red", perspective="short"),
        Term("a circle", perspective="style", weight=-0.5),
    ]
    similar = [likeness(index, term.text or "", term.perspective) for term in terms]
    for hit in index.search(terms, k=8):
        fused, short, circle = (
            plain_probability(each[hit.image_id], list(each.values()), SCORES[term.perspective], 8)
            for term, each in zip(terms, similar, strict=True)
        )
        assert hit.probability == pytest.approx((2 * fused + short) / 3 * (1 - circle), abs=1e-6)


def test_nothing_is_found_below_the_least(make_index: MakeIndex) -> None:
    never = {name: replace(each, least=1.0) for name, each in SCORES.items()}
    always = {name: replace(each, least=0.0) for name, each in SCORES.items()}
    for query in ("a red square", "style: a red square; not short: blue", "short: red; style: a circle"):
        nothing, something = (make_index(scores=scores).answer(query, k=2) for scores in (never, always))
        assert nothing.found is False and something.found is True
        assert nothing.hits == something.hits and len(nothing.hits) == 2
        assert nothing.best == max(hit.probability or 0 for hit in nothing.hits)
    assert make_index().answer("red", where=Filter(path="nowhere")).found is None


def test_what_is_decided_does_not_depend_on_how_many_are_shown(make_index: MakeIndex) -> None:
    index = make_index()
    for query in ("a red square", "short: red; not style: a circle", "style: x"):
        assert len({index.answer(query, k=k).found for k in (1, 3, 8)}) == 1


def test_without_a_calibration_of_every_term_there_is_no_probability(make_index: MakeIndex, corpus: Dataset) -> None:
    index = make_index(scores={"style": SCORES["style"]})
    assert index.search("style: red", k=1)[0].probability is not None
    example = Image.new("RGB", (32, 32), "red")
    for query in ("red", "short: red", "style: red; short: blue", "not style: red", [Term(image=example)]):
        answer = index.answer(query)
        assert answer.found is None and {hit.probability for hit in answer.hits} == {None}


def test_a_calibration_of_another_checkpoint_is_left_out(
    make_index: MakeIndex, caplog: pytest.LogCaptureFixture
) -> None:
    index = make_index(checkpoint="f" * 64)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "is that of another checkpoint (ffffffffffff; this one is " in record.getMessage()
    assert "Fit it again" in record.getMessage()
    assert index.search("style: red", k=1)[0].probability is None


def test_of_a_calibration_of_another_fusion_the_branches_hold(
    make_index: MakeIndex, caplog: pytest.LogCaptureFixture
) -> None:
    index = make_index(fusion={"fusion": "mean", "branch_weights": None, "fusion_scale": None})
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "of another fusion ('mean'; this checkpoint's is 'centroid')" in record.getMessage()
    assert index.search("red", k=1)[0].probability is None
    assert index.search("style: red", k=1)[0].probability is not None


def test_an_index_of_fused_vectors(make_index: MakeIndex) -> None:
    index = make_index(vectors="fused")
    scores = likeness(index, "red", FUSED)
    (hit,) = index.search("red", k=1)
    expected = plain_probability(hit.score, list(scores.values()), SCORES[FUSED], 8)
    assert hit.probability == pytest.approx(expected, abs=1e-6)


def test_one_branch_is_the_fused_score(make_index: MakeIndex) -> None:
    index = make_index(names=["all"], scores={FUSED: SCORES[FUSED]})
    named, fused = (index.search(query, k=1)[0].probability for query in ("all: red", "red"))
    assert named == pytest.approx(fused, abs=1e-6)
