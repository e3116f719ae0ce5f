"""Zero-shot classification: known vectors by hand, scikit-learn's accuracies, the templates, bad input."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from sklearn.metrics import recall_score, top_k_accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.classification import (
    Templates,
    encode_classes,
    evaluate_classification,
    load_templates,
    measure_classification,
)
from holistic_clip_hf.evaluation.records import Record, capture_provenance

MakeModel = Callable[..., HolisticCLIPModel]
PROVENANCE = capture_provenance(model="tiny", dataset="squares", split="test", seed=0)
NAMES = ["short", "style", "nouns"]
PLAIN = load_templates("plain")
COLOURS = ["red", "green", "blue", "yellow"]


def by_key(records: list[Record]) -> dict[tuple[str, str], Record]:
    keyed = {(str(record.details["branch"]), record.label): record for record in records}
    assert len(keyed) == len(records)
    return keyed


def measure(
    model: HolisticCLIPModel, branches: Tensor, labels: Tensor, classes: Tensor, ks: tuple[int, ...] = (1, 2)
) -> dict[tuple[str, str], Record]:
    found = measure_classification(model, branches, labels, classes, provenance=PROVENANCE, templates="plain", ks=ks)
    return by_key(found)


def coloured(corpus: Dataset, shift: int = 0) -> Dataset:
    labels = [COLOURS.index(image_id.split("-")[0]) for image_id in corpus["image_id"]]
    return corpus.add_column("label", [label + shift for label in labels])


def test_templates_are_openais() -> None:
    eighty, seven = load_templates("openai-80"), load_templates("openai-7")
    assert (len(eighty.texts), len(seven.texts)) == (80, 7)
    assert len(set(eighty.texts)) == 80 and set(seven.texts) <= set(eighty.texts)
    assert eighty.of("cat")[0] == "a bad photo of a cat." and eighty.of("cat")[-1] == "a tattoo of the cat."
    assert seven.of("cat")[0] == "itap of a cat." and "a cat in a video game." in seven.of("cat")
    assert load_templates("photo").of("cat") == ["a photo of a cat."] and PLAIN.of("cat") == ["cat"]
    assert PLAIN.of("{x} {}") == ["{x} {}"], "a name is put in as it is"


def test_a_class_is_the_mean_of_its_templates(make_model: MakeModel, processor: HolisticCLIPProcessor) -> None:
    model, templates = make_model(), Templates("two", ["a {} square", "all {}"])
    found = encode_classes(model, processor, ["red", " green "], templates, batch_size=3)
    with torch.no_grad():
        for name, vector in zip(["red", "green"], found, strict=True):
            tokens = [processor(text=text, return_tensors="pt") for text in (f"a {name} square", f"all {name}")]
            units = [F.normalize(model.get_text_features(**each).pooler_output[0], dim=-1) for each in tokens]
            torch.testing.assert_close(vector, F.normalize((units[0] + units[1]) / 2, dim=-1))


def test_accuracy_by_hand(make_model: MakeModel) -> None:
    """Three classes at right angles, one branch; four images, of which one is wrong at first and one ties."""
    model = make_model(vision={"num_branches": 1}, perspectives=["short"])
    classes = torch.eye(16)[:3]
    images = (
        F.normalize(torch.tensor([[1.0, 0, 0], [0.9, 0.5, 0], [0, 0.7, 0.7], [0, 0.2, 0.9]]), dim=-1)
        @ torch.eye(16)[:3]
    )
    found = measure(model, images[:, None], torch.tensor([0, 1, 1, 2]), classes)
    assert {label: record.value for (_, label), record in found.items()} == {
        "accuracy@1": 0.5,  # the third ties
        "accuracy@2": 1.0,
        "mean_per_class_accuracy": pytest.approx((1 + 0 + 1) / 3),
    }
    assert found["fused", "accuracy@2"].chance == pytest.approx(2 / 3)
    assert found["fused", "accuracy@1"].counts == {"n_images": 4, "n_classes": 3, "n_classes_seen": 3}
    assert found["fused", "accuracy@1"].details == {
        "branch": "fused",
        "fusion": "centroid",
        "templates": "plain",
        "k": 1,
    }


@pytest.mark.parametrize("fusion", ["mean", "max", "routed"])
def test_accuracies_are_scikit_learns(make_model: MakeModel, fusion: str) -> None:
    model = make_model(perspectives=NAMES, fusion=fusion)
    if fusion == "routed":
        nn.init.normal_(model.branch_fusion.router.weight, std=0.5)
    generator = torch.Generator().manual_seed(0)
    branches = F.normalize(torch.randn(60, 3, 16, generator=generator), dim=-1)
    classes = F.normalize(torch.randn(7, 16, generator=generator), dim=-1)
    labels = torch.randint(0, 5, (60,), generator=generator)  # two classes have no image
    found = measure(model, branches, labels, classes, ks=(1, 3))
    with torch.no_grad():
        fused = model.branch_fusion.similarity(branches, classes, model.logit_scale.exp())
    scores = {"fused": fused, **{name: branches[:, h] @ classes.T for h, name in enumerate(NAMES)}}
    for name, matrix in scores.items():
        for k in (1, 3):
            expected = top_k_accuracy_score(labels, matrix.numpy(), k=k, labels=np.arange(7))
            assert found[name, f"accuracy@{k}"].value == pytest.approx(expected)
        balanced = recall_score(labels, matrix.argmax(dim=1), labels=range(5), average="macro")
        assert found[name, "mean_per_class_accuracy"].value == pytest.approx(balanced)
    assert found["fused", "accuracy@1"].counts["n_classes_seen"] == 5


def test_a_perfect_model_is_always_right_and_a_random_one_as_often_as_chance(make_model: MakeModel) -> None:
    model = make_model(vision={"num_branches": 1}, perspectives=["short"])
    generator = torch.Generator().manual_seed(0)
    classes = F.normalize(torch.randn(20, 16, generator=generator), dim=-1)
    labels = torch.randint(0, 20, (4_000,), generator=generator)
    perfect = measure(model, classes[labels][:, None], labels, classes)
    assert {record.value for record in perfect.values()} == {1.0}
    noise = F.normalize(torch.randn(4_000, 1, 16, generator=generator), dim=-1)
    for record in measure(model, noise, labels, classes).values():
        assert record.value == pytest.approx(record.chance, abs=4 * (0.1 / 4_000) ** 0.5)
    collapsed = measure(model, classes[:1].expand(4_000, 1, -1), labels, classes[:1].expand(20, -1))
    assert {record.value for record in collapsed.values()} == {0.0}, "ties count against the model"


def test_from_images_to_records(make_model: MakeModel, processor: HolisticCLIPProcessor, corpus: Dataset) -> None:
    model, dataset = make_model(perspectives=NAMES), coloured(corpus)
    options: dict[str, Any] = {"provenance": PROVENANCE, "class_names": COLOURS, "ks": (1, 9)}
    found = by_key(evaluate_classification(model, processor, dataset, templates=PLAIN, batch_size=3, **options))
    with torch.no_grad():
        output = model(**processor(images=list(dataset["image"]), text=COLOURS, return_tensors="pt", padding=True))
    hits = output.logits_per_image.argmax(dim=1) == torch.tensor(dataset["label"])
    assert found["fused", "accuracy@1"].value == pytest.approx(hits.double().mean().item())
    assert found["fused", "accuracy@9"].value == 1.0 == found["fused", "accuracy@9"].chance, "fewer classes than k"
    assert {branch for branch, _ in found} == {"fused", *NAMES}
    as_labels = dataset.cast_column("label", ClassLabel(names=COLOURS))
    again = evaluate_classification(model, processor, as_labels, templates=PLAIN, **options)
    assert [record.value for record in again] == [record.value for record in found.values()]


def test_classes_of_one_name_are_told(
    make_model: MakeModel, processor: HolisticCLIPProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        encode_classes(make_model(), processor, ["missile", "cat", " missile"], PLAIN)
    assert "Several classes are called missile; they tie" in caplog.text


def test_misuse_is_refused(make_model: MakeModel, processor: HolisticCLIPProcessor, corpus: Dataset) -> None:
    model, rows = make_model(perspectives=NAMES), coloured(corpus)
    missing = corpus.add_column("label", [0, None] * 4)
    cases: list[tuple[Dataset, list[Any], str]] = [
        (rows, ["red", "", "blue", "yellow"], "`class_names` has '' for class 1, and 1 of 4 have no name"),
        (rows, ["red", None, "blue", "yellow"], "`class_names` has None for class 1"),
        (
            rows,
            COLOURS[:3],
            "2 of 8 rows have a label without a name, such as 3 of yellow-square; expected indices of 3",
        ),
        (coloured(corpus, -1), COLOURS, "such as -1 of red-square"),
        (missing, COLOURS, "such as None of red-circle"),
        (rows.select([]), COLOURS, "no rows"),
        (corpus, COLOURS, "columns image_id, image, captions; expected image and label"),
        (corpus, [], "expected image and label"),
    ]
    for dataset, names, message in cases:
        with pytest.raises(ValueError, match=message):
            evaluate_classification(
                model, processor, dataset, provenance=PROVENANCE, class_names=names, templates=PLAIN
            )
    with pytest.raises(ValueError, match="no class names"):
        encode_classes(model, processor, [], PLAIN)
    with pytest.raises(ValueError, match="`templates` is 'openai'; expected one of plain, photo, openai-7, openai-80"):
        load_templates("openai")
    for texts in ([], ["a cat"], ["{} and {}"]):
        with pytest.raises(ValueError, match="each with one {}"):
            Templates("mine", texts)
