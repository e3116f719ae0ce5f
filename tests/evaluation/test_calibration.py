"""Calibration of scores: against scikit-learn, plain loops, and data whose probabilities are known."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.checkpoint_files import CALIBRATION_FILE, write_checkpoint
from holistic_clip_hf.evaluation import calibration
from holistic_clip_hf.evaluation.calibration import (
    Calibration,
    Gallery,
    ScoreCalibration,
    Usual,
    calibration_error,
    calibration_or_warning,
    fit_calibration,
    fit_scores,
    fusion_facts,
    load_calibration,
    measure_answers,
    read_calibration,
    save_calibration,
)
from holistic_clip_hf.evaluation.records import capture_provenance
from holistic_clip_hf.evaluation.retrieval import EmbeddedCorpus

MakeModel = Callable[..., HolisticCLIPModel]
NAMES = ["short", "style"]
WIDTH = 16
FITTED = ScoreCalibration(-2.0, 3.0, 0.5, -1.0, 50, 20, 0.25)


def drawn(count: int, *, seed: int = 0, size: int = 60, gain: float = 0.3) -> list[Gallery]:
    """Galleries in which one to three images are right, and score higher by chance."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        right = np.arange(size) < generator.integers(1, 4)
        found.append(Gallery(generator.normal(0.1, 0.1, size) + gain * right * generator.random(size), right))
    return found


def plain_facts(scores: np.ndarray) -> list[list[float]]:
    mean = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return [[score, (score - mean) / spread, math.log(len(scores))] for score in scores]


def test_the_coefficients_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    monkeypatch.setattr(calibration, "SHARES", (1.0,))
    galleries = drawn(80)
    rows, right, weights = [], [], []
    for gallery in galleries:
        for kept in (
            gallery,
            gallery._replace(scores=gallery.scores[~gallery.right], right=gallery.right[~gallery.right]),
        ):
            best = sorted(range(len(kept.scores)), key=lambda image: -kept.scores[image])[: calibration.LEARNT]
            facts = plain_facts(kept.scores)
            rows += [facts[image] for image in best]
            right += [bool(kept.right[image]) for image in best]
            weights += [1 / len(best)] * len(best)
    mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
    oracle = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
    oracle.fit((np.array(rows) - mean) / spread, right, sample_weight=weights)
    expected = oracle.coef_[0] / spread
    fitted = fit_scores(galleries, np.random.default_rng(0))
    np.testing.assert_allclose([fitted.score, fitted.standing, fitted.size], expected, rtol=2e-3, atol=2e-3)
    assert fitted.bias == pytest.approx(oracle.intercept_[0] - expected @ mean, abs=2e-2)
    assert (fitted.num_texts, fitted.num_images) == (80, 60)


def test_a_probability_is_the_logistic_function_of_three_facts() -> None:
    scores = np.array([0.1, 0.4, -0.3])
    found = FITTED.probability(scores, Usual(0.1, 0.2, 40))
    for score, each in zip(scores, found, strict=True):
        logit = -2.0 + 3.0 * score + 0.5 * (score - 0.1) / 0.2 - math.log(40)
        assert each == pytest.approx(1 / (1 + math.exp(-logit)))
    np.testing.assert_allclose(
        FITTED.evidence(scores, Usual(0.1, 0.2, 40)), FITTED.probability(scores, Usual(0.1, 0.2, 20))
    )
    assert np.isfinite(FITTED.probability(scores, Usual(0.1, 0.0, 1))).all()  # one image, or equal ones


def test_probabilities_are_right_on_other_galleries_of_another_size() -> None:
    fitted = fit_scores(drawn(400), np.random.default_rng(0))
    held = drawn(400, seed=1, size=200)
    held += [gallery.without_answer() for gallery in held]
    shown = [
        (fitted.probability(each.scores, each.usual)[best], each.right[best])
        for each in held
        for best in [each.best(10)]
    ]
    assert calibration_error(*(np.concatenate(each) for each in zip(*shown, strict=True))) < 0.05
    assert np.concatenate([right for _, right in shown]).mean() < 0.2  # far from what always saying one half would get


def test_least_keeps_nine_answers_of_ten() -> None:
    galleries = drawn(200)
    fitted = fit_scores(galleries, np.random.default_rng(0))
    answered = [each for each in galleries if each.right[np.argsort(-each.scores)[:5]].any()]
    best = sorted(fitted.evidence(each.scores, each.usual).max() for each in answered)
    assert fitted.least == best[int(0.1 * (len(best) - 1))]
    assert sum(each.finds_nothing(fitted) for each in answered) <= 0.1 * len(answered)


def test_the_calibration_error_is_that_of_plain_loops() -> None:
    generator = np.random.default_rng(0)
    likely, right = generator.random(500), generator.random(500) < 0.4
    error = 0.0
    for low in range(15):
        inside = [place for place in range(500) if low / 15 <= likely[place] < (low + 1) / 15]
        if inside:
            error += abs(sum(likely[place] - right[place] for place in inside)) / 500
    assert calibration_error(likely, right) == pytest.approx(error)
    assert calibration_error(np.ones(4), np.ones(4, dtype=bool)) == 0


def known_corpus(*, noise: float, count: int = 60, seed: int = 0) -> EmbeddedCorpus:
    """Every image holds the vectors of its own two captions, one in each branch, and some noise."""
    generator = torch.Generator().manual_seed(seed)
    captions = {name: [[f"{name} {image}"] for image in range(count)] for name in NAMES}
    texts = F.normalize(torch.randn(2, count, WIDTH, generator=generator), dim=-1)
    branches = texts.transpose(0, 1) + noise * torch.randn(count, 2, WIDTH, generator=generator)
    embeds = {f"{name} {image}": texts[branch, image] for branch, name in enumerate(NAMES) for image in range(count)}
    return EmbeddedCorpus(F.normalize(branches, dim=-1), captions, embeds)


def test_a_model_that_knows_tells_what_is_missing(make_model: MakeModel) -> None:
    model = make_model(perspectives=NAMES, vision={"num_branches": 2})
    scores = fit_calibration(model, known_corpus(noise=0.1))
    assert list(scores) == ["fused", *NAMES]
    assert [each.num_texts for each in scores.values()] == [120, 60, 60]
    provenance = capture_provenance(model="known", dataset="known", split="test", seed=0)
    records = measure_answers(model, known_corpus(noise=0.1, seed=1), scores, provenance=provenance)
    found = {(record.metric, record.details["branch"]): record for record in records}
    for name in NAMES:
        assert found["told_nothing", name].value > 0.9 and found["answers_lost", name].value <= 0.2
        assert found["calibration_error", name].value < 0.05
        assert found["calibration_error", name].counts == {"n_queries": 60, "n_candidates": 60}


def test_a_corpus_is_dealt_into_galleries_of_a_size(make_model: MakeModel) -> None:
    """Each image is in one gallery and each text asks where its image is, so 7 of 67 images ask nothing."""
    model = make_model(perspectives=NAMES, vision={"num_branches": 2})
    corpus = known_corpus(noise=0.1, count=67)
    scores = fit_calibration(model, corpus, gallery_size=12)
    assert [(each.num_texts, each.num_images) for each in scores.values()] == [(120, 12), (60, 12), (60, 12)]
    provenance = capture_provenance(model="known", dataset="known", split="test", seed=0)
    records = measure_answers(model, corpus, scores, provenance=provenance, gallery_size=12)
    found = {(record.metric, record.details["branch"]): record for record in records}
    assert found["told_nothing", "short"].counts == {"n_queries": 60, "n_candidates": 12}
    assert {record.details["gallery_size"] for record in records} == {12}
    assert found["told_nothing", "short"].value > 0.9 and found["answers_lost", "short"].value <= 0.2
    many = known_corpus(noise=0.1, count=200)
    few = replace(many, captions={name: [[f"{name} {place % 4}"] for place in range(200)] for name in NAMES})
    assert [each.num_texts for each in fit_calibration(model, few, gallery_size=20).values()] == [80, 40, 40]
    assert not fit_calibration(model, few), "four texts, asked of one gallery, are too few"
    for size in (9, 68):
        with pytest.raises(ValueError, match=f"`gallery_size` is {size}; expected 10 to 67, the images of the split"):
            fit_calibration(model, corpus, gallery_size=size)


def test_few_texts_are_not_calibrated(make_model: MakeModel) -> None:
    model, corpus = make_model(perspectives=NAMES, vision={"num_branches": 2}), known_corpus(noise=0.1)
    few = {
        "short": corpus.captions["short"],
        "style": [each if image < 39 else [] for image, each in enumerate(corpus.captions["style"])],
    }
    assert list(fit_calibration(model, EmbeddedCorpus(corpus.branch_embeds, few, corpus.text_embeds))) == [
        "fused",
        "short",
    ]
    one = make_model(perspectives=["all"], vision={"num_branches": 1})
    assert list(fit_calibration(one, EmbeddedCorpus(corpus.branch_embeds[:, :1], few, corpus.text_embeds))) == [
        "fused"
    ]


def test_what_is_saved_is_loaded(make_model: MakeModel, tmp_path: Path) -> None:
    assert load_calibration(tmp_path) is None
    model = make_model(perspectives=NAMES, vision={"num_branches": 2}, fusion="weighted", branch_weights=[1.0, 2.0])
    saved = Calibration("abc", fusion_facts(model), "emoji", "validation", {"fused": FITTED, "style": FITTED})
    save_calibration(tmp_path / CALIBRATION_FILE, saved)
    assert load_calibration(tmp_path) == saved and saved.fusion["branch_weights"] == [1.0, 2.0]
    with write_checkpoint(tmp_path) as partial:  # other weights, to which it says nothing
        model.save_pretrained(partial)
    assert load_calibration(tmp_path) is None


def test_another_router_or_scale_is_another_fusion(make_model: MakeModel) -> None:
    routed = make_model(perspectives=NAMES, vision={"num_branches": 2}, fusion="routed")
    before = fusion_facts(routed)
    assert fusion_facts(routed) == before
    routed.branch_fusion.router.bias.data[0] += 1
    assert fusion_facts(routed) != before
    soft = make_model(perspectives=NAMES, vision={"num_branches": 2}, fusion="softmax")
    before = fusion_facts(soft)
    soft.logit_scale.data += 1
    assert fusion_facts(soft) != before


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda text: text[:-40], "Expecting|Unterminated|delimiter"),
        (lambda text: "[]", "expected keys and values"),
        (lambda text: text.replace('"split"', '"splits"'), "unknown keys splits.*missing keys split"),
        (lambda text: text.replace('"bias": -2.0', '"bias": "x"'), "`bias` is 'x'; expected a number"),
        (lambda text: text.replace('"bias": -2.0', '"bias": NaN'), "not finite"),
        (lambda text: text.replace('"bias": -2.0', '"bias": true'), "`bias` is True"),
        (lambda text: text.replace('"fused": {', '"fused": 3, "style": {'), "got 3; expected keys and values"),
        (lambda text: text.replace('"least": 0.25', '"least": 0.25, "least": 0.5'), "stands twice"),
        (lambda text: "\xff\xfe", "."),
    ],
)
def test_a_damaged_file_is_one_sentence_and_no_obstacle(
    break_it: Callable[[str], str], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / CALIBRATION_FILE
    save_calibration(path, Calibration("abc", {"fusion": "mean"}, "emoji", "validation", {"fused": FITTED}))
    path.write_text(break_it(path.read_text()), encoding="latin-1")
    with pytest.raises(
        ValueError, match=rf"is not a calibration \((?s:.)*({reason}).*\); expected one by .*Fit it again"
    ):
        read_calibration(path)
    assert calibration_or_warning(tmp_path) is None
    assert "found without probabilities" in caplog.text and "Traceback" not in caplog.text


def test_the_file_has_nothing_but_names_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / CALIBRATION_FILE
    save_calibration(path, Calibration("abc", {"fusion": "mean"}, "emoji", "validation", {"fused": FITTED}))
    assert json.loads(path.read_text())["scores"]["fused"] == {
        **{"bias": -2.0, "score": 3.0, "standing": 0.5, "size": -1.0},
        **{"num_texts": 50, "num_images": 20, "least": 0.25},
    }
