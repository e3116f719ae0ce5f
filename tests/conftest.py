"""What several test files share: no network, one thread, tiny models with random weights, drawn images.

Weights are random everywhere, biases and norms included: a freshly initialised model is so close to zero that
exchanging two branches would go unnoticed.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read when huggingface_hub is imported, hence before the imports below.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTokenizer

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer.augmentation import Augmentation
from holistic_clip_hf.trainer.tiny import train_tokenizer
from hub_server import LoopbackHub
from random_weights import fill

torch.set_num_threads(1)

IMAGE_SIZE = 32
MAX_LENGTH = 24
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle")
CORPUS_SLOTS = ["short", "colour", "shape"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def session_tokenizer() -> CLIPTokenizer:
    texts = [f"a {colour} {shape} on white, drawn flat" for colour in COLOURS for shape in SHAPES]
    return train_tokenizer(texts, vocab_size=560, max_length=MAX_LENGTH)


@pytest.fixture
def tokenizer(session_tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    return copy.deepcopy(session_tokenizer)


def make_processor(tokenizer: CLIPTokenizer) -> HolisticCLIPProcessor:
    """A processor of images of IMAGE_SIZE."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return HolisticCLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer)


@pytest.fixture
def processor(tokenizer: CLIPTokenizer) -> HolisticCLIPProcessor:
    return make_processor(tokenizer)


@pytest.fixture(scope="session")
def make_config(session_tokenizer: CLIPTokenizer) -> Callable[..., HolisticCLIPConfig]:
    """`make_config(vision={...}, text={...}, **fields)`: two layers per tower, three branches unless said."""

    def make(
        vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **fields: Any
    ) -> HolisticCLIPConfig:
        tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        tokens = {
            "vocab_size": len(session_tokenizer),
            "max_position_embeddings": MAX_LENGTH,
            "bos_token_id": session_tokenizer.bos_token_id,
            "eos_token_id": session_tokenizer.eos_token_id,
            "pad_token_id": session_tokenizer.pad_token_id,
        }
        patches = {"image_size": IMAGE_SIZE, "patch_size": 8, "num_branches": 3, "num_branch_layers": 1}
        return HolisticCLIPConfig(
            text_config={**tower, **tokens, "hidden_act": "gelu", **(text or {})},
            vision_config={**tower, **patches, **(vision or {})},
            **{"projection_dim": 16, **fields},
        )

    return make


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights of a size at which attention is far from uniform and no two branches are alike."""
    fill(model, seed, spread=0.25)
    if hasattr(model, "logit_scale"):
        nn.init.constant_(model.logit_scale, 2.0)


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., HolisticCLIPConfig]) -> Callable[..., HolisticCLIPModel]:
    """As `make_config`, and `seed`, `attention`: a model in evaluation mode."""

    def make(seed: int = 0, attention: str = "sdpa", **options: Any) -> HolisticCLIPModel:
        model = HolisticCLIPModel._from_config(make_config(**options), attn_implementation=attention)
        randomise(model, seed)
        return model.eval()

    return make


@pytest.fixture
def pixel_values() -> Tensor:
    return torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def make_tokens(session_tokenizer: CLIPTokenizer) -> Callable[..., tuple[Tensor, Tensor]]:
    """`make_tokens([5, 9])`: `input_ids`, `attention_mask` of texts of these lengths, with junk behind the end."""

    def make(lengths: list[int]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(0, 500, (len(lengths), max(lengths)), generator=generator)
        mask = torch.zeros_like(ids)
        ids[:, 0] = session_tokenizer.bos_token_id
        for row, length in enumerate(lengths):
            ids[row, length - 1] = session_tokenizer.eos_token_id
            mask[row, :length] = 1
        return ids, mask

    return make


def draw(colour: str, shape: str, size: int = IMAGE_SIZE) -> Image.Image:
    image = Image.new("RGB", (size, size), "white")
    pen, box = ImageDraw.Draw(image), (size // 6, size // 6, size - size // 6, size - size // 6)
    (pen.rectangle if shape == "square" else pen.ellipse)(box, fill=COLOURS[colour])
    return image


@pytest.fixture
def red_square() -> Image.Image:
    return draw("red", "square")


@pytest.fixture(scope="session")
def corpus() -> Dataset:
    """Eight drawings, each with a caption of three perspectives; every caption of `short` is another text."""
    rows = []
    for colour in COLOURS:
        for shape in SHAPES:
            texts = {"short": f"a {colour} {shape}", "colour": f"all {colour}", "shape": f"one {shape}, drawn flat"}
            captions = [{"perspective": name, "text": text, "source": "test"} for name, text in texts.items()]
            rows.append({"image_id": f"{colour}-{shape}", "image": draw(colour, shape), "captions": captions})
    caption = {"perspective": Value("string"), "text": Value("string"), "source": Value("string")}
    features = Features({"image_id": Value("string"), "image": ImageFeature(), "captions": List(caption)})
    return Dataset.from_list(rows, features=features)


@pytest.fixture
def make_trainer(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> Callable[..., HolisticCLIPTrainer]:
    """`make_trainer(model_options, train=..., evaluation=..., **arguments)`; batches of four unless said."""

    def make(
        model_options: dict[str, Any] | None = None,
        train: Dataset = corpus,
        evaluation: Dataset | None = None,
        augmentation: Augmentation | None = None,
        **arguments: Any,
    ) -> HolisticCLIPTrainer:
        model = make_model(**{"perspectives": CORPUS_SLOTS, **(model_options or {})})
        options = {"max_steps": 2, "learning_rate": 1e-2, "warmup_steps": 0, "per_device_train_batch_size": 4}
        options |= {"per_device_eval_batch_size": 4, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
        options |= {"output_dir": str(tmp_path), "disable_tqdm": True}
        args = HolisticCLIPTrainingArguments(**(options | arguments))
        return HolisticCLIPTrainer(
            model,
            args,
            processing_class=processor,
            augmentation=augmentation,
            train_dataset=train,
            eval_dataset=evaluation,
        )

    return make


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub on loopback; its clients run in processes of their own (`hub_server.run_client`)."""
    with LoopbackHub() as hub:
        yield hub


# An installed package wins over the code in a checkpoint's folder, so it is kept off the path and shown to be absent.
WITHOUT_THE_PACKAGE = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "holistic_clip_hf":
            sys.exit(f"imported {name}")


sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def without_the_package(tmp_path: Path) -> Callable[..., str]:
    """`without_the_package(script, *arguments)`: what it prints, run by people who never heard of this package."""

    def run(script: str, *arguments: str | Path) -> str:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE + script, *map(str, arguments)]
        ran = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stdout

    return run
