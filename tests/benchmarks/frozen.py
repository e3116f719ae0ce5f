"""Steps on the cached states of a frozen tower, against steps that run it: SigLIP's ViT-B/16 and 6 probes, 4 images.

    python tests/benchmarks/frozen.py           ten minutes on two cores; writes results/frozen.json

A step is all between rows and gradients: decoding or reading, towers, loss, backward. Cases differ in what the text
tower, CLIP's of ViT-B/16, has to do. Target: with frozen texts at least 10 times as fast, at gradients that differ by
at most 1e-6 of their length. States are in float32 for that; `float16` tells what half the bytes cost.
"""

import io
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measure import arguments, interleaved, ratio, write_record
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, SiglipImageProcessorPil, SiglipVisionConfig

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.corpus.build import corpus_features
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer.tiny import train_tokenizer

IMAGES, SIDE = 4, 224
PERSPECTIVES = ["short", "detail", "main_object", "background", "style", "relations"]
TEXT = "a brown dog runs through deep snow past a red barn"
TARGET, MOST_APART = 10.0, 1e-6
TOWER = ["vision_model.backbone.*"]
TEXTS = ["text_model.*", "text_projection.*"]
# What is frozen besides the tower, and how many captions of an image are read in a step.
CASES: dict[str, tuple[list[str], int]] = {
    "texts frozen, 1 caption": (TEXTS, 1),
    "texts trained, 1 caption": ([], 1),
    "texts trained, 6 captions": ([], 6),
}


def photo(seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    rough = (torch.rand(12, 16, 3, generator=generator) * 255).to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(rough).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def corpus() -> Dataset:
    rows = [
        {
            "image_id": f"{number}",
            "image": {"path": None, "bytes": photo(number)},
            "captions": [
                {"perspective": name, "text": f"{TEXT}, {name} {number}", "source": "drawn"} for name in PERSPECTIVES
            ],
        }
        for number in range(IMAGES)
    ]
    return Dataset.from_list(rows, features=corpus_features())


def world() -> tuple[HolisticCLIPModel, HolisticCLIPProcessor]:
    """Towers of the real sizes, with random weights."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([TEXT, *PERSPECTIVES], vocab_size=1_000, max_length=77)
    size = {"height": SIDE, "width": SIDE}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = HolisticCLIPConfig(
        vision_config={
            "backbone_config": SiglipVisionConfig(image_size=SIDE, patch_size=16),
            "num_branches": len(PERSPECTIVES),
            "branched_head_mlp": True,
        },
        text_config=CLIPTextConfig(**tokens, vocab_size=len(tokenizer), max_position_embeddings=77).to_dict(),
        perspectives=PERSPECTIVES,
    )
    return HolisticCLIPModel(config), HolisticCLIPProcessor(SiglipImageProcessorPil(size=size), tokenizer)


def make_trainer(
    given: tuple[HolisticCLIPModel, HolisticCLIPProcessor], rows: Dataset, folder: str, case: str, **options: Any
) -> HolisticCLIPTrainer:
    frozen, captions = CASES[case]
    args = HolisticCLIPTrainingArguments(
        folder,
        frozen=[*frozen, *TOWER],
        captions_per_image=captions,
        per_device_train_batch_size=IMAGES,
        max_steps=1,
        warmup_steps=0,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **options,
    )
    model, processor = given
    model.requires_grad_(True)
    trainer = HolisticCLIPTrainer(model, args, processing_class=processor, train_dataset=rows)
    trainer._prepare_states()
    return trainer


def step(trainer: HolisticCLIPTrainer) -> None:
    trainer.model.zero_grad()
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(IMAGES)])
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()


def gradients(trainer: HolisticCLIPTrainer) -> dict[str, Tensor]:
    step(trainer)
    return {name: each.grad.clone() for name, each in trainer.model.named_parameters() if each.grad is not None}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Length of the difference of all gradients, as a share of their length."""
    if one.keys() != other.keys():
        raise ValueError(f"Gradients are of other parameters: {sorted(one.keys() ^ other.keys())}.")
    vectors = [torch.cat([each[name].flatten().double() for name in one]) for each in (one, other)]
    return float((vectors[0] - vectors[1]).norm() / vectors[0].norm())


def measure(given: Any, rows: Dataset, folder: Path, case: str, rounds: int) -> dict[str, float]:
    """Seconds of a step of each kind, how many times faster the cached one is, and how far gradients are apart."""
    kinds: dict[str, Callable[[], HolisticCLIPTrainer]] = {
        "on pixels": partial(make_trainer, given, rows, str(folder / "run"), case),
        **{
            dtype: partial(
                make_trainer,
                given,
                rows,
                str(folder / "run"),
                case,
                freeze_tower=True,
                states_folder=str(folder / dtype),
                states_dtype=dtype,
            )
            for dtype in ("float32", "float16")
        },
    }
    trainers = {name: make() for name, make in kinds.items()}
    found = {name: gradients(trainer) for name, trainer in trainers.items()}
    seconds = interleaved({name: partial(step, trainer) for name, trainer in trainers.items()}, rounds)
    result = {f"seconds {name}": statistics.median(each) for name, each in seconds.items()}
    result |= {f"faster {name}": 1 / ratio(seconds, name, "on pixels") for name in ("float32", "float16")}
    return result | {f"apart {name}": apart(found["on pixels"], found[name]) for name in ("float32", "float16")}


def main() -> None:
    options = arguments(__doc__, rounds=5)
    given, rows = world(), corpus()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            results[case] = measured = measure(given, rows, Path(folder), case, options.rounds)
            sys.stdout.write(
                f"{case:26} {measured['seconds on pixels']:6.2f} s -> {measured['seconds float32']:6.3f} s   "
                f"{measured['faster float32']:5.1f} x (float16 {measured['faster float16']:5.1f} x)   gradients apart "
                f"{measured['apart float32']:.1e} (float16 {measured['apart float16']:.1e})\n"
            )
    first = results[next(iter(CASES))]
    sys.stdout.write(f"targets: {TARGET:g} x in the first case, gradients apart at most {MOST_APART:g}\n")
    met = first["faster float32"] >= TARGET and all(each["apart float32"] <= MOST_APART for each in results.values())
    write_record(
        "frozen", {"rounds": options.rounds, "target": TARGET, "most_apart": MOST_APART, "met": met, "cases": results}
    )


if __name__ == "__main__":
    main()
