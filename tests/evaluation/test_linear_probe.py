"""Linear probes and neighbours against scikit-learn's, on vectors whose classes are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation import probes as linear_probe
from holistic_clip_hf.evaluation.encoding import encode_images
from holistic_clip_hf.evaluation.probes import (
    LabelledImages,
    choose_regularisation,
    evaluate_probes,
    fit_logistic_regression,
    measure_probes,
    neighbour_votes,
    ranks_of_labels,
)
from holistic_clip_hf.evaluation.records import Record, capture_provenance

MakeModel = Callable[..., HolisticCLIPModel]
PROVENANCE = capture_provenance(model="tiny", dataset="blobs", split="test", seed=0)
NAMES = ["short", "style", "nouns"]


def blobs(number: int, noise: float, seed: int, width: int = 16) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, D) around four centres, and which."""
    centres = torch.randn(4, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (number,), generator=generator)
    return F.normalize(centres[labels] + noise * torch.randn(number, width, generator=generator), dim=-1), labels


def branches_of(number: int, seed: int) -> LabelledImages:
    """The first branch knows the class's first bit, the second its second bit, the third nothing."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (number,), generator=generator)
    branches = torch.randn(number, 3, 16, generator=generator)
    branches[:, 0, 0] += 12.0 * (2 * (labels // 2) - 1)
    branches[:, 1, 0] += 12.0 * (2 * (labels % 2) - 1)
    return LabelledImages(F.normalize(branches, dim=-1), labels)


def by_key(records: list[Record]) -> dict[tuple[str, str, str], Record]:
    keyed = {(record.task, str(record.details["branch"]), record.label): record for record in records}
    assert len(keyed) == len(records)
    return keyed


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_regression_is_scikit_learns(strength: float, balanced: bool) -> None:
    vectors, labels = blobs(120, noise=2.0, seed=0)
    vectors, labels = vectors[labels != 3], labels[labels != 3]
    keep = (labels != 1) | (torch.arange(len(labels)) % 3 == 0)
    vectors, labels = vectors[keep], labels[keep]
    weight, bias = fit_logistic_regression(vectors, labels, 4, inverse_regularisation=strength, balanced=balanced)
    theirs = LogisticRegression(C=strength, class_weight="balanced" if balanced else None, tol=1e-9, max_iter=5_000)
    theirs.fit(vectors.double().numpy(), labels.numpy())
    queries, _ = blobs(50, noise=2.0, seed=1)
    found = F.linear(queries.double(), weight, bias).softmax(dim=1)
    assert found[:, 3].max() < 1e-3, "no row is of class 3"
    np.testing.assert_allclose(found[:, :3], theirs.predict_proba(queries.double().numpy()), atol=1e-3)
    np.testing.assert_allclose(weight[:3], theirs.coef_, atol=2e-2 * strength**0.5)


def test_a_start_changes_the_way_and_not_the_end() -> None:
    vectors, labels = blobs(120, noise=2.0, seed=0)
    start = fit_logistic_regression(vectors, labels, 4, inverse_regularisation=0.1)
    ends = [
        fit_logistic_regression(vectors, labels, 4, inverse_regularisation=10.0, start=each) for each in (None, start)
    ]
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)
    cut_short = fit_logistic_regression(vectors, labels, 4, inverse_regularisation=10.0, start=start, most_steps=1)
    assert (cut_short[0] - start[0]).abs().max() < (ends[0][0] - start[0]).abs().max(), "it began at the start"


def test_votes_are_scikit_learns() -> None:
    (vectors, labels), (queries, _) = blobs(80, noise=2.5, seed=0), blobs(30, noise=2.5, seed=1)
    theirs = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(vectors.double().numpy(), labels.numpy())
    found = neighbour_votes(vectors, labels, queries, 4)
    np.testing.assert_allclose(
        found / found.sum(dim=1, keepdim=True), theirs.predict_proba(queries.double().numpy()), rtol=1e-4
    )


def test_votes_do_not_depend_on_how_many_are_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (vectors, labels), (queries, _) = blobs(80, noise=2.5, seed=0), blobs(30, noise=2.5, seed=1)
    expected = neighbour_votes(vectors, labels, queries, 4)
    monkeypatch.setattr(linear_probe, "IMAGES_AT_ONCE", 7)
    assert torch.equal(neighbour_votes(vectors, labels, queries, 4), expected)


def test_ties_count_against_the_model() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.2, 0.5], [0.1, 0.9, 0.1]])
    assert ranks_of_labels(scores, torch.tensor([1, 0, 1])).tolist() == [2, 1, 0]


def test_regularisation_is_chosen_by_what_is_held_out() -> None:
    """Noisy vectors want much of it, clean ones little; of equally good ones the middle is taken."""
    noisy, clean = blobs(200, noise=6.0, seed=0), blobs(200, noise=0.01, seed=0)
    assert choose_regularisation(*noisy, 4, seed=0)[0] < choose_regularisation(*clean, 4, seed=0)[0]
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    hits = []
    for strength in linear_probe.INVERSE_REGULARISATIONS:
        theirs = LogisticRegression(C=strength, tol=1e-9, max_iter=5_000)
        theirs.fit(noisy[0][order[20:]].numpy(), noisy[1][order[20:]].numpy())
        hits.append(theirs.score(noisy[0][order[:20]].numpy(), noisy[1][order[:20]].numpy()))
    chosen = linear_probe.INVERSE_REGULARISATIONS.index(choose_regularisation(*noisy, 4, seed=0)[0])
    assert hits[chosen] == max(hits)


def test_branches_know_together_what_none_knows_alone(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "INVERSE_REGULARISATIONS", (0.1, 10.0))
    found = by_key(
        measure_probes(
            make_model(perspectives=NAMES),
            branches_of(160, seed=0),
            branches_of(200, seed=1),
            provenance=PROVENANCE,
            num_classes=5,
        )
    )
    values = {key: record.value for key, record in found.items()}
    for task in ("linear_probe", "nearest_neighbours"):
        assert values[task, "concatenated", "accuracy@1"] > 0.95
        assert values[task, "concatenated", "mean_per_class_accuracy"] > 0.95
        for branch in ("short", "style"):
            assert 0.35 < values[task, branch, "accuracy@1"] < 0.65
        assert values[task, "nouns", "accuracy@1"] < 0.4
        assert values[task, "fused", "accuracy@5"] == 1.0, "as many classes as k"
    record = found["linear_probe", "concatenated", "accuracy@1"]
    assert record.counts == {"n_train": 160, "n_images": 200, "n_classes": 5, "n_classes_seen": 4}
    frequent = branches_of(160, seed=0).labels.mode().values
    assert record.chance == pytest.approx((branches_of(200, seed=1).labels == frequent).double().mean().item())
    assert {branch for _, branch, _ in found} == {"fused", *NAMES, "concatenated"}
    assert values["linear_probe", "style", "inverse_regularisation"] in linear_probe.INVERSE_REGULARISATIONS


def test_one_branch_has_one_kind_of_vector(make_model: MakeModel) -> None:
    model = make_model(vision={"num_branches": 1}, perspectives=["short"])
    train, test = blobs(60, noise=0.5, seed=0), blobs(30, noise=0.5, seed=1)
    records = measure_probes(
        model,
        LabelledImages(train[0][:, None], train[1]),
        LabelledImages(test[0][:, None], test[1]),
        provenance=PROVENANCE,
        num_classes=4,
    )
    assert {record.details["branch"] for record in records} == {"fused"}
    perfect = {record.label: record.value for record in records if record.metric == "accuracy"}
    assert perfect == {"accuracy@1": 1.0, "accuracy@5": 1.0}


def test_from_images_to_records(
    make_model: MakeModel, processor: HolisticCLIPProcessor, corpus: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probe, "INVERSE_REGULARISATIONS", (0.1, 10.0))
    shapes = [image_id.split("-")[1] for image_id in corpus["image_id"]]
    rows = corpus.add_column("label", [["square", "circle"].index(shape) for shape in shapes])
    options: dict[str, Any] = {"provenance": PROVENANCE, "class_names": ["square", "circle"], "neighbours": 3}
    found = by_key(evaluate_probes(make_model(perspectives=NAMES), processor, rows, rows, **options))
    encoded = encode_images(make_model(perspectives=NAMES), processor, rows, batch_size=8)
    vectors = encoded.branch_embeds.flatten(1).numpy() / 3**0.5
    strength = found["linear_probe", "concatenated", "inverse_regularisation"].value
    theirs = LogisticRegression(C=strength, tol=1e-9, max_iter=5_000).fit(vectors, rows["label"])
    expected = theirs.score(vectors, rows["label"])
    assert found["linear_probe", "concatenated", "accuracy@1"].value == pytest.approx(expected)
    assert found["linear_probe", "concatenated", "accuracy@1"].counts["n_train"] == 8
    with pytest.raises(ValueError, match="`neighbours` is 20 for 8 training rows"):
        evaluate_probes(make_model(perspectives=NAMES), processor, rows, rows, **options | {"neighbours": 20})


def test_misuse_is_refused(make_model: MakeModel) -> None:
    model, images = make_model(perspectives=NAMES), branches_of(40, seed=0)
    few = LabelledImages(images.branch_embeds[:19], images.labels[:19])
    alike = LabelledImages(images.branch_embeds, torch.zeros(40, dtype=torch.int64))
    cases = [
        (model, few, "`neighbours` is 20 for 19 training rows"),
        (model, alike, "All training rows are of one class"),
    ]
    cases.append(
        (make_model(perspectives=["short", "concatenated", "x"]), images, "A branch is called 'concatenated'")
    )
    for given, train, message in cases:
        with pytest.raises(ValueError, match=message):
            measure_probes(given, train, images, provenance=PROVENANCE, num_classes=4)
