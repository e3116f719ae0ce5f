"""Train one run of a recipe: `python -m training.train --run holistic [--recipe training/recipes/emoji.yaml]`."""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from transformers import CLIPImageProcessorPil, PrinterCallback, ProgressCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.augmentation import Augmentation
from holistic_clip_hf.corpus.build import read_manifest, write_atomically
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from training.corpora.opening import corpus_directory, open_split
from training.progress import OneLineProgress
from training.recipe import Recipe, load_recipe
from training.tokenizer import train_tokenizer

FINISHED = "finished.json"


def is_finished(checkpoint: Path, fingerprint: str) -> bool:
    """Whether this very run has been trained to its end."""
    marker = checkpoint / FINISHED
    if not marker.is_file() or not (checkpoint / SAFE_WEIGHTS_NAME).is_file():
        return False
    return json.loads(marker.read_text())["fingerprint"] == fingerprint


def last_whole_state(states: Path) -> str | None:
    """The newest saved state. The Trainer writes `trainer_state.json` last: without it, a save was cut short."""
    whole = [path.parent for path in states.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def train_run(recipe: Recipe, run: str, corpus: Path, checkpoint: Path) -> None:
    """Train a run into `checkpoint`, unless it is there; an interrupted one goes on from its last saved state."""
    fingerprint = recipe.fingerprint(run, read_manifest(corpus)["fingerprint"])
    if is_finished(checkpoint, fingerprint):
        print(f"already trained: {checkpoint}")
        return
    states = checkpoint.with_name(f"{checkpoint.name}-states") / fingerprint
    column = recipe.split_column
    train, validation = (open_split(corpus, split, split_column=column) for split in ("train", "validation"))
    set_seed(recipe.seed)
    processor = make_processor(recipe, train)
    trainer = HolisticCLIPTrainer(
        model=HolisticCLIPModel(recipe.config(run, processor.tokenizer)),
        args=HolisticCLIPTrainingArguments(
            output_dir=str(states),
            slots=recipe.runs[run].slots,
            dataloader_pin_memory=torch.cuda.is_available(),
            **recipe.training,
        ),
        processing_class=processor,
        augmentation=Augmentation(size=recipe.image_size, **recipe.augmentation),
        train_dataset=train,
        eval_dataset=validation,
    )
    for chatty in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(chatty)
    trainer.add_callback(OneLineProgress())
    state = last_whole_state(states)
    if state:
        print(f"going on from {state}")
    trainer.train(resume_from_checkpoint=state)
    if trainer.is_world_process_zero():
        publish_checkpoint(trainer, checkpoint, {"fingerprint": fingerprint, "recipe": recipe.name, "run": run})
        shutil.rmtree(states.parent)
    trainer.accelerator.wait_for_everyone()


def publish_checkpoint(trainer: HolisticCLIPTrainer, checkpoint: Path, facts: dict[str, str]) -> None:
    """Put the trained model in place; the marker comes last, so that half a checkpoint is never taken for a whole."""
    shutil.rmtree(checkpoint, ignore_errors=True)
    trainer.save_model(str(checkpoint))
    (checkpoint / TRAINING_ARGS_NAME).unlink()  # a pickle, which nobody should be asked to load
    trainer.state.save_to_json(str(checkpoint / "trainer_state.json"))
    with write_atomically(checkpoint / FINISHED) as marker:
        marker.write(f"{json.dumps(facts, indent=2)}\n".encode())


def make_processor(recipe: Recipe, corpus: Dataset) -> HolisticCLIPProcessor:
    """CLIP's image processor at the recipe's size, and a tokenizer trained on the corpus."""
    size = recipe.image_size
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return HolisticCLIPProcessor(image_processor, train_tokenizer(caption_texts(corpus), **recipe.tokenizer))


def caption_texts(corpus: Dataset) -> Iterator[str]:
    """All captions of a corpus, without decoding its images."""
    for captions in corpus.select_columns("captions")["captions"]:
        for caption in captions:
            yield caption["text"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="training/recipes/emoji.yaml")
    parser.add_argument("--run", required=True, help="a name under `runs` in the recipe")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    if options.run not in recipe.runs:
        raise ValueError(f"{options.recipe} has no run {options.run!r}. It has: {', '.join(recipe.runs)}.")
    checkpoint = options.output_dir / recipe.name / options.run
    train_run(recipe, options.run, corpus_directory(recipe.corpus), checkpoint)
    print(checkpoint)


if __name__ == "__main__":
    main()
