"""sentence-transformers loads a saved checkpoint as it is: no adapter, no wrapper, texts and images alike."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from torch import Tensor

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.adapters import sentence_transformer
from holistic_clip_hf.evaluation.ranking import average_precision, recall_at, retrieval_ranks

TEXTS = ["a red square", "a blue circle, drawn flat on white", "all green"]
EXACT = {"rtol": 1e-5, "atol": 1e-6}

SCRIPT = """
import json
import sys

import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

torch.set_num_threads(1)
encoder = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
images = [Image.open(path) for path in json.loads(sys.argv[3])]
torch.save([encoder.encode(some, convert_to_tensor=True) for some in (json.loads(sys.argv[2]), images)], sys.argv[4])
sys.stdout.write(type(encoder[0].model).__module__)
"""


@pytest.fixture
def images(red_square: Image.Image) -> list[Image.Image]:
    return [red_square, red_square.rotate(90).convert("L").convert("RGB")]


@pytest.fixture
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=["short", "colour", "shape"], fusion="mean")  # whose vectors are not of unit length


@pytest.fixture
def checkpoint(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def expected(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, images: list[Image.Image]
) -> tuple[Tensor, Tensor]:
    """(T, D) and (N, D)."""
    with torch.no_grad():
        texts = model.get_text_features(**processor(text=TEXTS, return_tensors="pt")).pooler_output
        fused = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
    return texts, fused


def test_vectors_are_the_models_own(
    checkpoint: Path, expected: tuple[Tensor, Tensor], images: list[Image.Image]
) -> None:
    encoder = SentenceTransformer(str(checkpoint), device="cpu")
    assert isinstance(encoder[0].model, HolisticCLIPModel)
    assert set(encoder.modalities) == {"text", "image"}
    for found, wanted in zip((encoder.encode(TEXTS), encoder.encode(images)), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, **EXACT)


def test_dot_product_ranks_images_as_the_model_does(
    checkpoint: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, images: list[Image.Image]
) -> None:
    # sentence-transformers does not normalise, so the dot product is the fused similarity. Its default is the cosine,
    # which divides by the length of the fused vector, another one for each image.
    encoder = SentenceTransformer(str(checkpoint), device="cpu", similarity_fn_name="dot")
    scores = encoder.similarity(encoder.encode(images), encoder.encode(TEXTS))  # (N, T)
    with torch.no_grad():
        output = model(**processor(images=images, text=TEXTS, return_tensors="pt"))
    torch.testing.assert_close(scores * output.logit_scale, output.logits_per_image, rtol=1e-4, atol=1e-5)


def test_its_retrieval_evaluator_finds_what_ours_finds(
    checkpoint: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, images: list[Image.Image]
) -> None:
    pictures = [*images, *(image.rotate(45, fillcolor=colour) for image in images for colour in ("white", "green"))]
    texts = [f"a {colour} shape" for colour in ("red", "blue", "green", "white", "yellow", "dark")]
    evaluator = InformationRetrievalEvaluator(
        queries={str(index): text for index, text in enumerate(texts)},
        corpus={str(index): picture for index, picture in enumerate(pictures)},
        relevant_docs={str(index): {str(index)} for index in range(6)},
        accuracy_at_k=[1, 3],
        map_at_k=[6],
    )
    found = evaluator(sentence_transformer(str(checkpoint), device="cpu"))
    with torch.no_grad():
        queries = model.get_text_features(**processor(text=texts, return_tensors="pt", padding=True)).pooler_output
        candidates = model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
    pairs = torch.arange(6)[:, None].expand(-1, 2)
    ours = recall_at(retrieval_ranks(queries, candidates, pairs), (1, 3))
    assert {k: found[f"dot_accuracy@{k}"] for k in (1, 3)} == pytest.approx(ours)
    precision = average_precision(queries, candidates, pairs).mean().item()
    assert found["dot_map@6"] == pytest.approx(precision) and 0 < precision < 1


def test_a_fusion_that_is_no_dot_product_is_refused(checkpoint: Path) -> None:
    configuration = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(configuration | {"fusion": "softmax"}))
    with pytest.raises(ValueError, match="fusion is 'softmax'.*Expected is centroid, mean, weighted or routed"):
        sentence_transformer(str(checkpoint), device="cpu")


def test_normalised_vectors_have_the_same_directions(
    checkpoint: Path, expected: tuple[Tensor, Tensor], images: list[Image.Image]
) -> None:
    encoder = SentenceTransformer(str(checkpoint), device="cpu")
    found = torch.from_numpy(encoder.encode(images, normalize_embeddings=True))
    torch.testing.assert_close(found, expected[1] / expected[1].norm(dim=-1, keepdim=True), **EXACT)
    assert expected[1].norm(dim=-1).max() < 0.999  # so that the two are not the same thing


def test_it_works_where_the_package_was_never_imported(
    checkpoint: Path,
    expected: tuple[Tensor, Tensor],
    images: list[Image.Image],
    without_the_package: Callable[..., str],
    tmp_path: Path,
) -> None:
    paths = [str(tmp_path / f"{index}.png") for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    vectors = tmp_path / "vectors.pt"
    printed = without_the_package(SCRIPT, checkpoint, json.dumps(TEXTS), json.dumps(paths), vectors)
    assert printed.startswith("transformers_modules.")
    for found, wanted in zip(torch.load(vectors), expected, strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)
