"""Train one run of a recipe: `python -m training.train --run holistic [--recipe training/recipes/emoji.yaml]`.

Under `accelerate launch` or `torchrun` the same command trains on many devices. With `--tiny` the recipe is made so
small that a CPU runs it offline in seconds.
"""

import argparse
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback, ProgressCallback, logging, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from holistic_clip_hf.atomic import PARTIAL, require_own_folder, write_atomically
from holistic_clip_hf.augmentation import Augmentation
from holistic_clip_hf.corpus.build import read_manifest
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer.resuming import last_whole_checkpoint
from training.corpora.opening import corpus_directory, open_split
from training.models import make_model, make_processor
from training.progress import OneLineProgress
from training.recipe import Recipe, load_recipe
from training.tiny import changes, make_ingredients, shrink

FINISHED = "finished.json"
TINY = "tiny"
# What a run leaves in its folder; a folder with anything else was made by somebody else and is not replaced.
OWN_FILES = re.compile(
    r"(?:config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|processor_config"
    r"|preprocessor_config|trainer_state|finished|results|card_facts|unreadable_images|model\.safetensors\.index)\.json"
    r"|model(?:-\d+-of-\d+)?\.safetensors|merges\.txt|training_args\.bin|\w+_holistic_clip\.py|README\.md|[\w-]+\.png"
    rf"|\.gitattributes|{PARTIAL.pattern}"
)
STATE = re.compile(r"[0-9a-f]{16}(?:/.*)?")
INGREDIENTS = re.compile(r"(?:corpus|clip)(?:/.*)?")


def is_finished(checkpoint: Path, fingerprint: str) -> bool:
    """Whether this very run has been trained to its end."""
    marker = checkpoint / FINISHED
    if not marker.is_file() or not (checkpoint / SAFE_WEIGHTS_NAME).is_file():
        return False
    return json.loads(marker.read_text())["fingerprint"] == fingerprint


def train_run(recipe: Recipe, run: str, corpus: Path, checkpoint: Path) -> None:
    """Train a run into `checkpoint`, unless it is there; an interrupted one goes on from its last saved state."""
    fingerprint = recipe.fingerprint(run, read_manifest(corpus)["fingerprint"])
    if is_finished(checkpoint, fingerprint):
        print(f"already trained: {checkpoint}")
        return
    states = checkpoint.with_name(f"{checkpoint.name}-states") / fingerprint
    require_own_run(checkpoint)
    trainer = make_trainer(recipe, run, corpus, states)
    state = last_whole_checkpoint(states)
    if state and trainer.is_world_process_zero():
        print(f"going on from {state}")
    trainer.train(resume_from_checkpoint=None if state is None else str(state))
    publish_checkpoint(trainer, checkpoint, {"fingerprint": fingerprint, "recipe": recipe.name, "run": run})
    if trainer.is_world_process_zero():
        shutil.rmtree(states.parent)
    trainer.accelerator.wait_for_everyone()


def require_own_run(checkpoint: Path) -> None:
    """Refuse, before anything is trained, a folder that is to be replaced and was not made by training.

    Raises:
        ValueError: somebody else's files lie where the run's checkpoint or its states are to be.
    """
    if not (checkpoint / FINISHED).is_file():
        require_own_folder(checkpoint, lambda path: bool(OWN_FILES.fullmatch(path)), holds="a checkpoint")
    states = checkpoint.with_name(f"{checkpoint.name}-states")
    require_own_folder(states, lambda path: bool(STATE.fullmatch(path)), holds="states of training")


def make_trainer(recipe: Recipe, run: str, corpus: Path, states: Path) -> HolisticCLIPTrainer:
    """The trainer of a run, which saves into `states`."""
    args = HolisticCLIPTrainingArguments(
        output_dir=str(states),
        slots=recipe.runs[run].slots,
        dataloader_pin_memory=torch.cuda.is_available(),
        **recipe.training,
    )
    train, validation = (recipe_split(recipe, corpus, split) for split in ("train", "validation"))
    set_seed(recipe.seed)
    processor = make_processor(recipe, train)
    augmentation = recipe.augmentation
    trainer = HolisticCLIPTrainer(
        model=make_model(recipe, run, processor.tokenizer),
        args=args,
        processing_class=processor,
        augmentation=None if augmentation is None else Augmentation(size=recipe.image_size, **augmentation),
        train_dataset=train,
        eval_dataset=validation,
    )
    for chatty in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(chatty)
    trainer.add_callback(OneLineProgress())
    return trainer


def recipe_split(recipe: Recipe, corpus: Path, split: str) -> Dataset:
    """The rows of a corpus that the recipe takes for train, validation or test."""
    return open_split(corpus, split, split_column=recipe.split_column, held_out=recipe.held_out)


def publish_checkpoint(trainer: HolisticCLIPTrainer, checkpoint: Path, facts: dict[str, str]) -> None:
    """Put the trained model in place; the marker comes last, so that half a checkpoint is never taken for a whole."""
    if trainer.is_world_process_zero():
        shutil.rmtree(checkpoint, ignore_errors=True)
    trainer.save_result(checkpoint)
    if not trainer.is_world_process_zero():
        return
    trainer.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))
    with write_atomically(checkpoint / FINISHED) as marker:
        marker.write(f"{json.dumps(facts, indent=2)}\n".encode())


def seconds_of_training(checkpoint: Path) -> float | None:
    """As the trainer measured them, or None where it left no log."""
    log = checkpoint / TRAINER_STATE_NAME
    entries = json.loads(log.read_text(encoding="utf-8"))["log_history"] if log.is_file() else []
    seconds = [entry["train_runtime"] for entry in entries if "train_runtime" in entry]
    return sum(seconds) if seconds else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="training/recipes/emoji.yaml")
    parser.add_argument("--run", required=True, help="a name under `runs` in the recipe")
    parser.add_argument("--corpus", default=None, help="a corpus directory; default: the recipe's")
    parser.add_argument("--tiny", action="store_true", help="the recipe at its smallest, on drawings, on the CPU")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    disable_progress_bars()  # of `datasets` and `transformers`: reading and writing takes a second
    logging.disable_progress_bar()
    recipe = load_recipe(options.recipe)
    if options.run not in recipe.runs:
        raise ValueError(f"{options.recipe} has no run {options.run!r}. It has: {', '.join(recipe.runs)}.")
    if options.tiny and options.corpus is not None:
        raise ValueError("`--tiny` draws a corpus of its own. Leave out `--corpus`, or leave out `--tiny`.")
    if options.corpus is not None:
        recipe = replace(recipe, corpus=options.corpus)
    output_dir = options.output_dir / (TINY if options.tiny else "") / recipe.name
    if options.tiny:
        recipe = make_tiny(recipe, output_dir, options.run)
    train_run(recipe, options.run, corpus_directory(recipe.corpus), output_dir / options.run)
    if PartialState().is_main_process:
        print(output_dir / options.run)


def make_tiny(recipe: Recipe, output_dir: Path, run: str) -> Recipe:
    """The recipe at its smallest, with nothing left of an earlier run of this kind."""
    state, ingredients = PartialState(cpu=True), output_dir / "ingredients"
    small = shrink(recipe, ingredients)
    with state.main_process_first():
        if state.is_main_process:
            require_own_run(output_dir / run)
            require_own_folder(ingredients, lambda path: bool(INGREDIENTS.fullmatch(path)), holds="what --tiny draws")
            for old in (ingredients, output_dir / run, output_dir / f"{run}-states"):
                shutil.rmtree(old, ignore_errors=True)
            make_ingredients(recipe, ingredients)
            print("\n".join(["Made tiny, to show that the recipe runs:", *changes(recipe, small)]), flush=True)
    return small


if __name__ == "__main__":
    main()
