"""sentence-transformers' encoders of a checkpoint: saved, opened again by strangers too, trained, and quantised."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from sentence_transformers import (
    MultiVectorEncoderTrainer,
    MultiVectorEncoderTrainingArguments,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.adapters import multi_vector_encoder, sentence_transformer

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("rectangle", "ellipse")
TEXTS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
BRANCH_TYPES = ["cls", "mlp", "probe"]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
KINDS: dict[str, Any] = {"SentenceTransformer": sentence_transformer, "MultiVectorEncoder": multi_vector_encoder}

SCRIPT = """
import json
import sys

import torch
from PIL import Image
import sentence_transformers

torch.set_num_threads(1)
kind = getattr(sentence_transformers, sys.argv[2])
try:
    kind(sys.argv[1], device="cpu", local_files_only=True)
except ValueError as error:
    refused = "trust_remote_code" in str(error)
else:
    refused = False
encoder = kind(sys.argv[1], device="cpu", trust_remote_code=True, local_files_only=True)
encoder.save_pretrained(sys.argv[5])
again = kind(sys.argv[5], device="cpu", trust_remote_code=True, local_files_only=True)
images = [Image.open(path) for path in json.loads(sys.argv[4])]
texts = json.loads(sys.argv[3])
scores = [each.similarity(each.encode(texts), each.encode(images)) for each in (encoder, again)]
torch.save(torch.stack([torch.as_tensor(each) for each in scores]), sys.argv[5] + ".pt")
sys.stdout.write(f"{refused} {encoder.similarity_fn_name}")
"""


def drawing(colour: str, shape: str) -> Image.Image:
    image = Image.new("RGB", (32, 32), "white")
    getattr(ImageDraw.Draw(image), shape)((5, 5, 27, 27), fill=colour)
    return image


@pytest.fixture
def images() -> list[Image.Image]:
    return [drawing(colour, shape) for colour in COLOURS for shape in SHAPES]


@pytest.fixture
def save(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path
) -> Callable[..., Path]:
    """`save(**options)`: the folder of a checkpoint of `make_model(**options)`."""

    def save(**options: Any) -> Path:
        for part in (make_model(perspectives=["short", "colour", "shape"], **options), processor):
            part.save_pretrained(tmp_path / "checkpoint")
        return tmp_path / "checkpoint"

    return save


def scores_of(encoder: Any, images: list[Image.Image]) -> torch.Tensor:
    """(T, N) by the encoder's own similarity."""
    return torch.as_tensor(encoder.similarity(encoder.encode(TEXTS), encoder.encode(images)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_that_was_saved_is_the_same_here_and_for_strangers(
    save: Callable[..., Path],
    images: list[Image.Image],
    without_the_package: Callable[..., str],
    tmp_path: Path,
    kind: str,
) -> None:
    # `mean`, whose fused vectors differ in length: that dot products are compared must come through, too.
    encoder = KINDS[kind](str(save(fusion="mean")), device="cpu")
    expected, folder = scores_of(encoder, images), tmp_path / "saved"
    encoder.save_pretrained(str(folder))
    torch.testing.assert_close(scores_of(KINDS[kind](str(folder), device="cpu"), images), expected, **CLOSE)
    paths = [str(tmp_path / f"{number}.png") for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    printed = without_the_package(SCRIPT, folder, kind, json.dumps(TEXTS), json.dumps(paths), tmp_path / "again")
    assert printed == ("True dot" if kind == "SentenceTransformer" else "True maxsim")
    for found in torch.load(f"{tmp_path / 'again'}.pt"):
        torch.testing.assert_close(found, expected, **CLOSE)


def pairs(images: list[Image.Image]) -> Dataset:
    features = Features({"anchor": Value("string"), "positive": ImageFeature()})
    return Dataset.from_dict({"anchor": TEXTS, "positive": images}, features=features)


@pytest.mark.parametrize("branch_type", BRANCH_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_its_trainer_trains_both_towers(
    save: Callable[..., Path], images: list[Image.Image], tmp_path: Path, kind: str, branch_type: str
) -> None:
    encoder: Any = KINDS[kind](str(save(vision={"branch_type": branch_type})), device="cpu")
    before = {name: value.detach().clone() for name, value in encoder[0].model.named_parameters()}
    multi = kind == "MultiVectorEncoder"
    arguments = MultiVectorEncoderTrainingArguments if multi else SentenceTransformerTrainingArguments
    args = arguments(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=len(TEXTS),
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    loss: Any = (MultiVectorMultipleNegativesRankingLoss if multi else MultipleNegativesRankingLoss)(
        encoder, scale=20.0
    )
    trainer: Any = MultiVectorEncoderTrainer if multi else SentenceTransformerTrainer
    trained = trainer(model=encoder, args=args, train_dataset=pairs(images), loss=loss)
    trained.train()
    losses = [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
    assert losses[2] < losses[1] < losses[0]
    after = dict(encoder[0].model.named_parameters())
    still = {name for name, value in before.items() if torch.equal(value, after[name])}
    # What no vector depends on: the temperature, and of the text tower nothing.
    assert still <= {"logit_scale"}, still


def recall(found: np.ndarray, exact: np.ndarray, k: int) -> float:
    """Share of the `k` nearest by exact vectors that are found: both (Q, k)."""
    return float(np.mean([len(set(a[:k]) & set(b[:k])) / k for a, b in zip(found, exact, strict=True)]))


def test_quantised_vectors_find_nearly_the_same(save: Callable[..., Path]) -> None:
    encoder: Any = sentence_transformer(str(save(projection_dim=256)), device="cpu")
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(300):
        image = Image.new("RGB", (32, 32), tuple(generator.integers(0, 255, 3).tolist()))
        left, top, width, height = generator.integers(2, 16, 4).tolist()
        place = (left, top, left + width, top + height)
        ImageDraw.Draw(image).rectangle(place, fill=tuple(generator.integers(0, 255, 3).tolist()))
        pictures.append(image)
    corpus, k = encoder.encode(pictures), 10
    queries = corpus[:40]
    exact = np.argsort(-queries @ corpus.T, axis=1, kind="stable")[:, :k]
    as_bytes = quantize_embeddings(corpus, precision="int8")
    assert as_bytes.dtype == np.int8 and as_bytes.shape == corpus.shape
    low, high = corpus.min(axis=0), corpus.max(axis=0)
    restored = (as_bytes.astype(np.float32) + 128) * (high - low) / 255 + low
    in_bytes = recall(np.argsort(-queries @ restored.T, axis=1), exact, k)
    as_bits = quantize_embeddings(corpus, precision="ubinary")
    assert as_bits.shape == (300, 256 // 8)
    found = {
        rescore: semantic_search_faiss(
            queries,
            corpus_embeddings=as_bits,
            corpus_precision="ubinary",
            top_k=k,
            rescore=rescore,
            rescore_multiplier=4,
        )[0]
        for rescore in (False, True)
    }
    in_bits, rescored = (
        recall(np.array([[hit["corpus_id"] for hit in each] for each in hits]), exact, k) for hits in found.values()
    )
    # 0.99, 0.81 and 0.86, where 10 of 300 at random have 0.03.
    assert in_bytes > 0.97 and 0.75 < in_bits < rescored
