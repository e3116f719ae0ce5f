"""transformers' pipelines by path, in a process that never imported the package, against direct calls of the model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import pipeline

from holistic_clip_hf import HolisticCLIPForImageClassification, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.processing_holistic_clip import clean_caption

LABELS = ["red square", "blue circle", "green square"]

SCRIPT = """
import json
import sys

import torch
from transformers import pipeline

torch.set_num_threads(1)
joint, classifier, picture, labels = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])


def make(task, folder):
    return pipeline(task, model=folder, trust_remote_code=True, device="cpu")


found = {
    "zero-shot-image-classification": make("zero-shot-image-classification", joint)(
        picture, candidate_labels=labels, hypothesis_template="a {}"
    ),
    "image-feature-extraction": make("image-feature-extraction", joint)(picture),
    "feature-extraction": make("feature-extraction", joint)("a red square"),
    "image-classification": make("image-classification", classifier)(picture, top_k=3),
}
sys.stdout.write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=["short", "colour", "shape"])


def test_pipelines_by_path(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    red_square: Image.Image,
    without_the_package: Callable[..., str],
    tmp_path: Path,
) -> None:
    joint, single, picture = tmp_path / "joint", tmp_path / "classifier", tmp_path / "red.png"
    red_square.save(picture)
    classifier = HolisticCLIPForImageClassification(model.config).eval()
    classifier.config.id2label = {0: "no", 1: "perhaps"}
    for one, folder in ((model, joint), (classifier, single)):
        one.save_pretrained(folder)
        processor.save_pretrained(folder)
    printed = without_the_package(SCRIPT, joint, single, picture, json.dumps(LABELS))
    found = json.loads(printed.splitlines()[-1])

    images = processor(images=red_square, return_tensors="pt")
    texts = processor(text=[f"a {label}" for label in LABELS], return_tensors="pt")
    with torch.no_grad():
        output = model(**images, **texts)
        text = model(**processor(text=["a red square"], return_tensors="pt"))
        scores = classifier(**images).logits.softmax(dim=1)[0]
    probabilities = dict(zip(LABELS, output.logits_per_image.softmax(dim=1)[0].tolist(), strict=True))
    zero_shot = {row["label"]: row["score"] for row in found["zero-shot-image-classification"]}
    assert zero_shot == pytest.approx(probabilities, abs=1e-5)
    assert {row["label"]: row["score"] for row in found["image-classification"]} == pytest.approx(
        {"no": scores[0].item(), "perhaps": scores[1].item()}, abs=1e-5
    )
    # The first thing that the model returns: the fused vector of an image, the vector of a text.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(found["image-feature-extraction"]), output.image_embeds, **close)
    torch.testing.assert_close(torch.tensor(found["feature-extraction"]), text.text_embeds, **close)


def logo(path: Path) -> None:
    """A red disc, with green painted beneath what is transparent."""
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=(220, 30, 30, 255))
    image.save(path)


def deep(path: Path) -> None:
    ramp = Image.linear_gradient("L").convert("I").point(lambda value: value * 257)
    ramp.convert("I;16").save(path)


@pytest.mark.parametrize("draw", [logo, deep])
def test_pipelines_open_images_by_their_own_rules(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    draw: Callable[[Path], None],
) -> None:
    """What docs/images.md says of them, and that what the processor makes of an image passes through unchanged."""
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "image.png"
    draw(path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    with torch.no_grad():
        expected = model.get_image_features(**processor(images=str(path), return_tensors="pt")).pooler_output
    bypassed, told = (torch.tensor(extract(given)) for given in (str(path), processor.to_rgb(path)))
    torch.testing.assert_close(told, expected, rtol=1e-5, atol=1e-5)
    assert (bypassed - expected).norm() > 0.7


def test_pipelines_take_labels_as_they_are(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, red_square: Image.Image, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path), device="cpu")
    labels = ["Tom &amp;amp; Jerry", "a red square"]
    with torch.no_grad():
        output = model(**processor(images=red_square, text=labels, return_tensors="pt"))
    expected = output.logits_per_image.softmax(dim=1)[0].tolist()

    def scores(given: list[str]) -> list[float]:
        found = {row["label"]: row["score"] for row in classify(red_square, given, hypothesis_template="{}")}
        return [found[label] for label in given]

    assert scores([clean_caption(label) for label in labels]) == pytest.approx(expected, abs=1e-5)
    assert max(abs(found - right) for found, right in zip(scores(labels), expected, strict=True)) > 0.2
