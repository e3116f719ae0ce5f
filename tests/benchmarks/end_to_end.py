"""Whole training steps from files on disk, beside what people would run instead: ViT-B/16, 224 px, batches of 8.

    python tests/benchmarks/end_to_end.py       half an hour on two cores; writes results/end_to_end.json
    python tests/benchmarks/end_to_end.py --rounds 14      goes on with those that were measured before

Decoding, cropping, tokenizing, both towers, loss, backward and optimizer, with one data loader worker, float32 and
random weights. Ours learn six captions of each image, the others one; a peer that is not installed is left out and
named. Each round runs all of them in turn, each in a fresh process, and takes the median of its steps behind the
first. Rounds are kept in `build/end_to_end.jsonl`, so that a run goes on after a stop. Remove it after a change of the
code.
Target: six captions and six class tokens at no more than open_clip's time for one caption.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _measure import ratio, write_record
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer.augmentation import Augmentation
from holistic_clip_hf.trainer.recipes import train_tokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = Path(__file__).parents[2] / "build" / "end_to_end.jsonl"
IMAGES, BATCH, STEPS, WARM_UP = 40, 8, 5, 1
SLOTS = ("web", "detail", "short", "main_object", "background", "style")
# Words per caption, from ... to: one long description, the others short, as the paper's.
WORDS = ((4, 20), (30, 50), (5, 14), (8, 20), (8, 20), (6, 18))
WORD_LIST = ("a", "the", "red", "small", "house", "tree", "under", "dog", "river", "light", "wooden", "window", "with")
PEER = "open_clip, one caption"
TARGETS = {"ours, class tokens": 1.0}
PAPER_VISION = {"hidden_act": "gelu", "patch_size": 16}
COMMON = {
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "dataloader_num_workers": 1,
    "learning_rate": 1e-5,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": DEVICE == "cpu",
    "disable_tqdm": True,
}
LOG_LINE = re.compile(r"Batch \(t\): ([0-9.]+)")


def make_files(folder: Path) -> None:
    """JPEGs of 640 x 480 as a camera or the web has them, and `captions.json` with six captions for each."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(IMAGES):
        coarse = torch.randint(0, 256, (12, 16, 3), dtype=torch.uint8, generator=generator)
        image = Image.fromarray(coarse.numpy()).resize((640, 480), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=90)
        texts = []
        for low, high in WORDS:
            length = int(torch.randint(low, high + 1, (), generator=generator))
            words = torch.randint(len(WORD_LIST), (length,), generator=generator)
            texts.append(" ".join(WORD_LIST[word] for word in words))
        rows.append({"image": str(folder / f"{number}.jpg"), "texts": texts})
    (folder / "captions.json").write_text(json.dumps(rows))
    lines = ["filepath\ttitle", *(f"{row['image']}\t{row['texts'][0]}" for row in rows)]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "captions.json").read_text())


def make_processor(rows: list[dict[str, Any]]) -> HolisticCLIPProcessor:
    tokenizer = train_tokenizer((text for row in rows for text in row["texts"]), vocab_size=600, max_length=77)
    return HolisticCLIPProcessor(CLIPImageProcessorPil(), tokenizer)


def paper_text(processor: HolisticCLIPProcessor) -> dict[str, Any]:
    """Text tower of ViT-B/16, its vocabulary of full size and its end token the tokenizer's."""
    return {"hidden_act": "gelu", "eos_token_id": processor.tokenizer.eos_token_id}


class Clock(TrainerCallback):
    """Times at which steps ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


def seconds_of(trainer: Trainer) -> list[float]:
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]


def ours(folder: Path, **vision: Any) -> list[float]:
    rows = read_rows(folder)
    processor = make_processor(rows)
    config = HolisticCLIPConfig(
        perspectives=list(SLOTS), text_config=paper_text(processor), vision_config={**PAPER_VISION, **vision}
    )
    captions = [
        [{"perspective": slot, "text": text, "source": ""} for slot, text in zip(SLOTS, row["texts"], strict=True)]
        for row in rows
    ]
    table = {"image_id": [str(n) for n in range(len(rows))], "image": [row["image"] for row in rows]}
    trainer = HolisticCLIPTrainer(
        model=HolisticCLIPModel(config),
        args=HolisticCLIPTrainingArguments(str(folder / "ours"), slots=list(SLOTS), eval_strategy="no", **COMMON),
        processing_class=processor,
        augmentation=Augmentation(size=224, scale=(0.9, 1.0)),
        train_dataset=Dataset.from_dict({**table, "captions": captions}).cast_column("image", ImageFeature()),
    )
    return seconds_of(trainer)


def pairs(folder: Path) -> Dataset:
    rows = read_rows(folder)
    table = {"image": [row["image"] for row in rows], "text": [row["texts"][0] for row in rows]}
    return Dataset.from_dict(table).cast_column("image", ImageFeature())


def transformers_trainer(folder: Path) -> list[float]:
    """CLIPModel under transformers' Trainer, as its `run_clip.py` does: texts padded to all positions."""
    processor = make_processor(read_rows(folder))

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        images = processor.image_processor([each["image"].convert("RGB") for each in examples], return_tensors="pt")
        options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
        texts = processor.tokenizer([each["text"] for each in examples], **options)
        return {"pixel_values": images["pixel_values"], **texts, "return_loss": True}

    args = TrainingArguments(str(folder / "theirs"), remove_unused_columns=False, **COMMON)
    model = CLIPModel(CLIPConfig(text_config=paper_text(processor), vision_config=PAPER_VISION))
    return seconds_of(Trainer(model, args, data_collator=collate, train_dataset=pairs(folder)))


def sentence_transformers_trainer(folder: Path) -> list[float]:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    processor, checkpoint = make_processor(read_rows(folder)), str(folder / "clip")
    CLIPModel(CLIPConfig(text_config=paper_text(processor), vision_config=PAPER_VISION)).save_pretrained(checkpoint)
    CLIPProcessor(processor.image_processor, processor.tokenizer).save_pretrained(checkpoint)
    model = SentenceTransformer(
        modules=[Transformer(checkpoint)], device="cuda" if torch.cuda.is_available() else "cpu"
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=Arguments(str(folder / "cached"), **COMMON),
        train_dataset=pairs(folder),
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=BATCH),
    )
    return seconds_of(trainer)


def open_clip_trainer(folder: Path) -> list[float]:
    command = [sys.executable, "-m", "open_clip_train.main", "--train-data", str(folder / "pairs.tsv")]
    command += ["--dataset-type", "csv", "--csv-separator", "\t", "--model", "ViT-B-16", "--precision", "fp32"]
    command += ["--batch-size", str(BATCH), "--workers", "1", "--epochs", "1", "--log-every-n-steps", "1"]
    command += ["--logs", str(folder / "logs"), "--save-frequency", "0", "--lr", "1e-5", "--warmup", "1"]
    command += ["--device", DEVICE]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(found) for found in LOG_LINE.findall(ended.stdout + ended.stderr)][:STEPS]


CONTESTANTS: dict[str, tuple[str, Callable[[Path], list[float]]]] = {
    PEER: ("open_clip_train", open_clip_trainer),
    "transformers, one caption": ("transformers", transformers_trainer),
    "sentence-transformers, one caption": ("sentence_transformers", sentence_transformers_trainer),
    "ours, class tokens": ("holistic_clip_hf", ours),
    "ours, class tokens with MLPs of their own": (
        "holistic_clip_hf",
        lambda folder: ours(folder, branched_token_mlp=True),
    ),
    "ours, MLPs": ("holistic_clip_hf", lambda folder: ours(folder, branch_type="mlp")),
}


def measure(name: str, folder: Path, threads: int) -> float:
    """Median seconds of a step of one contestant, in a process of its own."""
    command = [sys.executable, __file__, "--run", name, "--folder", str(folder), "--threads", str(threads)]
    roots = {"HOLISTIC_CLIP_IMAGE_ROOTS": str(folder)}  # rows of paths are read from allowed folders alone
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **roots})
    if ended.returncode:
        raise SystemExit(f"{name} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return float(ended.stdout.split()[-1])


def measure_rounds(names: list[str], rounds: int, threads: int) -> list[dict[str, float]]:
    """Seconds of each contestant in each round, those of earlier runs first."""
    done = [json.loads(line) for line in ROUNDS.read_text().splitlines()] if ROUNDS.is_file() else []
    found = [each["seconds"] for each in done if each["threads"] == threads and each["seconds"].keys() == set(names)]
    ROUNDS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        for number in range(len(found), rounds):
            seconds = {}
            for name in names:
                seconds[name] = measure(name, Path(folder), threads)
                sys.stderr.write(f"round {number + 1} of {rounds}: {name} {seconds[name]:.2f} s\n")
            with ROUNDS.open("a") as file:
                file.write(json.dumps({"threads": threads, "seconds": seconds}) + "\n")
            found.append(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--run", choices=CONTESTANTS, help="run one contestant and print its seconds a step")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.run:
        seconds = CONTESTANTS[options.run][1](options.folder)
        sys.stdout.write(f"\n{statistics.median(seconds[WARM_UP:])}\n")
        return
    present = [name for name, (module, _) in CONTESTANTS.items() if find_spec(module)]
    left_out = [name for name in CONTESTANTS if name not in present]
    measured = measure_rounds(present, options.rounds, options.threads)
    seconds = {name: [each[name] for each in measured] for name in present}
    rows = {
        name: {
            "seconds": statistics.median(found),
            "images_per_second": BATCH / statistics.median(found),
            **({"ratio": ratio(seconds, name, PEER)} if PEER in seconds else {}),
        }
        for name, found in seconds.items()
    }
    sys.stdout.write(f"{json.dumps(rows, indent=2)}\nLeft out, not installed: {', '.join(left_out) or 'none'}\n")
    write_record("end_to_end", {"rounds": len(measured), "targets": TARGETS, "left_out": left_out, "results": rows})


if __name__ == "__main__":
    main()
