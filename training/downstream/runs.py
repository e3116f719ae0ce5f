"""Recipes and runs of downstream programs: read with every key checked, trained once, gone on with after a kill."""

import json
import logging
import math
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from holistic_clip_hf.evaluation.ranking import bootstrap_interval
from holistic_clip_hf.field_types import require_types
from holistic_clip_hf.storage import checksum, field_names, read_yaml, require_keys, write_json
from holistic_clip_hf.trainer.recipes import FINISHED, clear_result, is_finished, remove_states, require_own_run
from holistic_clip_hf.trainer.resuming import hold_output, last_whole_checkpoint

logger = logging.getLogger(__name__)

SAID_BY_RUN = {"output_dir", "remove_unused_columns"}
Kind = TypeVar("Kind")


def read_recipe(path: Path, kind: type[Kind]) -> Kind:
    """Read a recipe file into a dataclass that also has its `name`.

    Args:
        path: YAML file.
        kind: Dataclass of the recipe's keys.

    Raises:
        ValueError: not a file, unknown or lacking keys, values of another type.
    """
    if not path.is_file():
        raise ValueError(
            f"`recipe` is {path}, which is not a file; expected a recipe, such as those in training/downstream."
        )
    return read_part(str(path), read_yaml(path), kind, name=path.stem)


def read_part(where: str, found: Any, kind: type[Kind], **given: Any) -> Kind:
    """Read a mapping of a recipe into a dataclass.

    Args:
        where: Name of the file and of the place in it, for messages.
        found: Mapping as it was read.
        kind: Dataclass of its keys.
        given: Fields that are not read.

    Raises:
        ValueError: unknown or lacking keys, values of another type.
    """
    lacking = {field.name for field in fields(kind) if field.default is MISSING}  # type: ignore[arg-type]
    content = require_keys(where, found, field_names(kind) - given.keys(), sorted(lacking - given.keys()))
    require_types(where, content, get_type_hints(kind))
    return kind(**content, **given)


def require_training(where: str, training: Mapping[str, Any]) -> None:
    """Refuse settings that are not fields of transformers' `TrainingArguments`, or lack a seed.

    Args:
        where: Name of the file and of the place in it, for messages.
        training: Settings.

    Raises:
        ValueError: they are refused.
    """
    require_keys(where, training, field_names(TrainingArguments) - SAID_BY_RUN, ["seed"])
    require_types(where, training, get_type_hints(TrainingArguments))


def tiny_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for four steps of four on the CPU; kinds of schedules and rates stay."""
    small = {"max_steps": 4, "save_steps": 2, "logging_steps": 2, "warmup_steps": 1, "gradient_accumulation_steps": 1}
    small |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "dataloader_num_workers": 0}
    return {**training, **small, "save_strategy": "steps", "use_cpu": True}


def fingerprint(recipe: Any, *facts: str) -> str:
    """Return a hash that changes with a part of a recipe and with further facts.

    Args:
        recipe: Dataclass.
        facts: Facts that the result depends on besides, such as the fingerprint of a corpus.
    """
    return sha256(json.dumps([asdict(recipe), *facts], sort_keys=True).encode()).hexdigest()[:16]


def weights_digest(checkpoint: str) -> str:
    """Return a hash of a checkpoint's weights; of one on the Hub, its name."""
    files = sorted(Path(checkpoint).glob("*.safetensors"))
    return " ".join(map(checksum, files)) or checkpoint


def train_once(
    checkpoint: Path,
    mark: str,
    make_trainer: Callable[[Path], Trainer],
    finish: Callable[[Path], object],
) -> None:
    """Train into a folder, unless that is done; an interrupted run goes on from its last whole state.

    Args:
        checkpoint: Folder of the result. States lie beside it until it is finished.
        mark: Fingerprint of the run.
        make_trainer: Function that makes the trainer, which saves its states into the folder it is given.
        finish: Function that adds files, such as those of a tokenizer, before the result counts as finished.

    Raises:
        ValueError: somebody else's files lie in the folder.
        InUseError: another process trains into it.
    """
    if is_finished(checkpoint, mark):
        logger.info("Already trained: %s", checkpoint)
        return
    require_own_run(checkpoint)
    states = checkpoint.with_name(f"{checkpoint.name}-states") / mark
    trainer = make_trainer(states)
    with hold_output(states.parent):
        state = last_whole_checkpoint(states)
        if state and trainer.is_world_process_zero():
            logger.info("Going on from %s", state)
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
        if trainer.is_world_process_zero():
            clear_result(checkpoint)
        trainer.save_model(str(checkpoint))
        if trainer.is_world_process_zero():
            finish(checkpoint)
            trainer.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))
            write_json(checkpoint / FINISHED, {"fingerprint": mark, "run": checkpoint.name})
            remove_states(checkpoint)
        trainer.accelerator.wait_for_everyone()


def exponential_of_mean(values: Sequence[float], seed: int) -> tuple[float, tuple[float, float]]:
    """Return the exponential of a mean, and those of the ends of its interval."""
    given = torch.tensor(values, dtype=torch.float64)
    low, high = bootstrap_interval(given, seed=seed)
    return math.exp(given.mean()), (math.exp(low), math.exp(high))


def parse_options(module: str, about: str | None, arguments: Sequence[str] | None, **more: Any) -> Namespace:
    """Read the options of a program of this folder.

    Args:
        module: Name of the program, which is that of its recipe.
        about: Text of its help.
        arguments: Arguments. Default: the command line's.
        more: Help of further options that take a text, by name.
    """
    parser = ArgumentParser(description=about, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path(f"training/downstream/{module}.yaml"))
    for name, told in more.items():
        parser.add_argument(f"--{name}", default=None, help=told)
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--tiny", action="store_true", help="everything at its smallest, on drawings, on the CPU")
    return parser.parse_args(arguments)
