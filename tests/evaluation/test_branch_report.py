"""What is said of branches, against plain loops over the same vectors."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_fusion_fitting import NAMES, NUM_IMAGES, corpus_of_known_branches
from torch import nn

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.evaluation import branch_report
from holistic_clip_hf.evaluation.branch_report import report_branches, without_branch
from holistic_clip_hf.evaluation.records import Record, capture_provenance
from holistic_clip_hf.evaluation.retrieval import EmbeddedCorpus

MakeModel = Callable[..., HolisticCLIPModel]
PROVENANCE = capture_provenance(model="known", dataset="known", split="test", seed=0)
OPTIONS: list[dict[str, Any]] = [
    {"fusion": "mean"},
    {"fusion": "weighted", "branch_weights": [1.0, 3.0, 2.0]},
    {"fusion": "routed"},
    {"fusion": "max"},
]


def report(model: HolisticCLIPModel, metric: str) -> list[Record]:
    found = report_branches(model, corpus_of_known_branches(), provenance=PROVENANCE, ks=(1,))
    return [record for record in found if record.metric == metric]


def test_similarity_of_two_branches_is_the_mean_cosine(make_model: MakeModel) -> None:
    branches = corpus_of_known_branches().branch_embeds
    found = {
        (r.details["branch"], r.details["other"]): r.value
        for r in report(make_model(perspectives=NAMES), "similarity")
    }
    assert set(found) == {("short", "style"), ("short", "nouns"), ("style", "nouns")}
    for (first, second), value in found.items():
        pair = [image[[NAMES.index(first), NAMES.index(second)]] for image in branches]
        assert value == pytest.approx(sum(float(a @ b) for a, b in pair) / NUM_IMAGES, abs=1e-6)


def test_wins_are_shares_of_true_pairs(make_model: MakeModel) -> None:
    corpus = corpus_of_known_branches()
    found = {
        (r.details["perspective"], r.details["branch"]): r for r in report(make_model(perspectives=NAMES), "wins")
    }
    for perspective in NAMES:
        winners = []
        for image in range(NUM_IMAGES):
            text = corpus.text_embeds[f"{perspective} {image}"]
            scores = [float(branch @ text) for branch in corpus.branch_embeds[image]]
            winners.append(NAMES[scores.index(max(scores))])
        for branch in NAMES:
            assert found[perspective, branch].value == pytest.approx(winners.count(branch) / NUM_IMAGES)
            assert found[perspective, branch].counts == {"n_pairs": NUM_IMAGES}
        assert found[perspective, perspective].value > 0.9


def test_branches_of_a_collapsed_model_win_alike(make_model: MakeModel) -> None:
    corpus = corpus_of_known_branches()
    rounding = 1e-7 * torch.randn(NUM_IMAGES, 3, 1)
    alike = corpus.branch_embeds[:, :1] * (1 + rounding)
    collapsed = EmbeddedCorpus(alike, corpus.captions, corpus.text_embeds)
    found = report_branches(make_model(perspectives=NAMES), collapsed, provenance=PROVENANCE, ks=(1,))
    wins = [record for record in found if record.metric == "wins"]
    assert len(wins) == 9
    for record in wins:
        assert record.value == pytest.approx(1 / 3) == record.chance


def test_what_is_gained_by_name_is_a_difference_of_reciprocal_ranks(make_model: MakeModel) -> None:
    """Each text has one image and each image one text, so that average precision is one through the rank."""
    corpus = corpus_of_known_branches()
    corpus.branch_embeds[0] = corpus.branch_embeds[1].flip(0)  # two images that are found less well
    found = [
        record
        for record in report_branches(make_model(perspectives=NAMES), corpus, provenance=PROVENANCE)
        if record.metric == "gain_by_name"
    ]

    def precision(perspective: str, branch: int) -> list[float]:
        scores = [
            [float(image[branch] @ corpus.text_embeds[f"{perspective} {text}"]) for text in range(NUM_IMAGES)]
            for image in corpus.branch_embeds
        ]
        lines = [*scores, *map(list, zip(*scores, strict=True))]  # an image asks, then a text
        owns = [*range(NUM_IMAGES), *range(NUM_IMAGES)]
        return [1 / sum(score >= line[own] for score in line) for line, own in zip(lines, owns, strict=True)]

    assert len(found) == len(NAMES) * (len(NAMES) - 1)
    for record in found:
        perspective, other = str(record.details["perspective"]), NAMES.index(str(record.details["other"]))
        own = precision(perspective, NAMES.index(perspective))
        expected = (sum(own) - sum(precision(perspective, other))) / (2 * NUM_IMAGES)
        assert record.value == pytest.approx(expected, abs=1e-6)
        assert record.details["branch"] == record.details["perspective"]
        assert record.counts == {"n_queries": 2 * NUM_IMAGES} and record.confidence_interval is not None
    assert {record.value > 0 for record in found} == {True}


def test_wins_do_not_depend_on_how_many_pairs_are_seen_at_once(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(perspectives=NAMES)
    expected = [record.value for record in report(model, "wins")]
    monkeypatch.setattr(branch_report, "PAIRS_AT_ONCE", 7)
    assert [record.value for record in report(model, "wins")] == pytest.approx(expected, abs=1e-12)


def test_without_the_only_weighted_branch_the_others_count_alike(make_model: MakeModel) -> None:
    model = make_model(perspectives=NAMES, fusion="weighted", branch_weights=[0.0, 1.0, 0.0])
    branches = corpus_of_known_branches().branch_embeds[:, [0, 2]]
    torch.testing.assert_close(
        without_branch(model.branch_fusion, 1).image_vectors(branches), (branches[:, 0] + branches[:, 1]) / 2
    )


@pytest.mark.parametrize("options", OPTIONS, ids=[each["fusion"] for each in OPTIONS])
def test_recall_without_a_branch_is_that_of_the_others(make_model: MakeModel, options: dict[str, Any]) -> None:
    model, corpus = make_model(perspectives=NAMES, **options), corpus_of_known_branches()
    if options["fusion"] == "routed":
        nn.init.normal_(model.branch_fusion.router.weight, std=4.0)
    found = {
        (r.details["perspective"], r.details["without"]): r.value
        for r in report(model, "recall")
        if r.details["direction"] == "text_to_image"
    }
    assert len(found) == 9

    def fused(scores: list[float], text: torch.Tensor, kept: list[int]) -> float:
        logits = None
        if options["fusion"] == "routed":  # which takes vectors of length sqrt(D)
            router = model.branch_fusion.router
            logits = (router.weight @ text * len(text) ** 0.5 + router.bias).detach()
        shares = {
            "mean": lambda h: 1.0,
            "weighted": lambda h: options["branch_weights"][h],
            "routed": lambda h: math.exp(float(logits[h])),
        }
        if options["fusion"] == "max":
            return max(scores)
        weights = [shares[options["fusion"]](h) for h in kept]
        return sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)

    for (perspective, without), value in found.items():
        kept = [h for h, name in enumerate(NAMES) if name != without]
        hits = 0
        for image in range(NUM_IMAGES):
            text = corpus.text_embeds[f"{perspective} {image}"]
            scores = [fused([float(b[h] @ text) for h in kept], text, kept) for b in corpus.branch_embeds]
            hits += all(score < scores[image] for other, score in enumerate(scores) if other != image)
        assert value == pytest.approx(hits / NUM_IMAGES)


def test_the_model_is_left_as_it_was(make_model: MakeModel) -> None:
    model = make_model(perspectives=NAMES, fusion="routed")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report(model, "recall")
    assert model.config.perspectives == NAMES
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_branch_has_nothing_to_report(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="one branch"):
        report(make_model(perspectives=["short"], vision={"num_branches": 1}), "wins")
