"""Recipes: one YAML file per comparison. All its runs share corpus, backbone, steps and batch, so that it is fair."""

import json
import re
from collections.abc import Collection
from dataclasses import MISSING, asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from transformers import CLIPTextConfig

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPVisionConfig
from holistic_clip_hf.augmentation import Augmentation
from holistic_clip_hf.trainer.arguments import HolisticCLIPTrainingArguments

# What a recipe says elsewhere than under `model`, and what `training.train` says itself, by run and machine.
SAID_ELSEWHERE = {"perspectives", "num_branches", "image_size", "max_position_embeddings"}
# A run is a folder below that of its recipe.
RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
SAID_BY_TRAIN = {"output_dir", "slots", "dataloader_pin_memory"}


@dataclass
class Run:
    """What one run has of its own: the names of its branches and the caption slots it is trained on."""

    perspectives: list[str]
    slots: list[str]


@dataclass
class Recipe:
    """A recipe file; see the comments at the head of each in `training/recipes/`.

    Args:
        corpus: `emoji`, or a corpus directory.
        split_column: the column of the corpus that says train, validation or test.
        image_size: side of the square that the vision tower sees.
        tokenizer: `max_length` in tokens, and either `vocab_size`, to train one on the corpus, or `checkpoint`, a CLIP
            checkpoint to take it from.
        model: fields of `HolisticCLIPConfig`; with `start_from`, what differs from the checkpoint.
        training: fields of `HolisticCLIPTrainingArguments`, `seed` among them.
        augmentation: of training images. Left out: none.
        start_from: a CLIP checkpoint, by name or folder, whose weights and image processor are taken over. Left out:
            random weights.
        held_out: a column and the value of it that is tested on and never trained on, in place of the rows that the
            split column calls test. Left out: the split column decides.
    """

    name: str
    corpus: str
    split_column: str
    image_size: int
    tokenizer: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    runs: dict[str, Run]
    augmentation: dict[str, list[float]] | None = None
    start_from: str | None = None
    held_out: dict[str, str] | None = None

    @property
    def seed(self) -> int:
        return int(self.training["seed"])

    @property
    def slots(self) -> list[str]:
        """Every perspective that some run is trained on, in order of first appearance."""
        return list(dict.fromkeys(slot for run in self.runs.values() for slot in run.slots))

    def fingerprint(self, run: str, corpus: str) -> str:
        """Changes with the recipe of a run and with the fingerprint of its corpus.

        What is left out does not count, so that a recipe keeps its fingerprint when recipes learn a new key.
        """
        facts = {**asdict(self), "runs": asdict(self.runs[run]), "name": None, "corpus": corpus}
        left_out = {field.name for field in fields(self) if field.default is None and facts[field.name] is None}
        told = {name: fact for name, fact in facts.items() if name not in left_out}
        return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def model_fields(self, run: str) -> dict[str, Any]:
        """What the recipe says of the configuration of a run's model; the rest comes with tokenizer or checkpoint."""
        perspectives = self.runs[run].perspectives
        sizes = {"image_size": self.image_size, "num_branches": len(perspectives)}
        return {
            **self.model,
            "perspectives": perspectives,
            "text_config": dict(self.model.get("text_config", {})),
            "vision_config": {**self.model.get("vision_config", {}), **sizes},
        }


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ValueError: no such file, keys that are unknown or lacking.
    """
    path = Path(path)
    if not path.is_file():
        found = ", ".join(sorted(str(file) for file in Path("training/recipes").glob("*.yaml")))
        raise ValueError(f"No recipe at {path}. There are: {found or 'none here; run from the checkout'}.")
    content = yaml.safe_load(path.read_text())
    valid = {field.name: field for field in fields(Recipe) if field.name != "name"}
    needed = [name for name, field in valid.items() if field.default is MISSING]
    _check_keys(str(path), content, valid, needed)
    if not content["runs"] or not isinstance(content["runs"], dict):
        raise ValueError(f"{path} has no runs. Valid: a name and, below it, `perspectives` and `slots`.")
    for name, run in content["runs"].items():
        if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
            raise ValueError(
                f"{path}: `runs` has {name!r}; expected names of letters, digits, '.', '_' and '-' that do not begin "
                f"with a dot. Rename the run."
            )
        _check_keys(f"{path}, runs, {name}", run, _names(Run), _names(Run))
    _check_model(path, content["model"])
    _check_tokenizer(path, content["tokenizer"])
    arguments = _names(HolisticCLIPTrainingArguments) - SAID_BY_TRAIN
    _check_keys(f"{path}, training", content["training"], arguments, ["seed"])
    if content.get("augmentation") is not None:
        _check_keys(f"{path}, augmentation", content["augmentation"], _names(Augmentation) - {"size"})
    runs = {name: Run(**run) for name, run in content.pop("runs").items()}
    return Recipe(name=path.stem, runs=runs, **content)


def _check_model(path: Path, model: Any) -> None:
    _check_keys(f"{path}, model", model, _names(HolisticCLIPConfig) - SAID_ELSEWHERE)
    for name, kind in (("text_config", CLIPTextConfig), ("vision_config", HolisticCLIPVisionConfig)):
        _check_keys(f"{path}, model, {name}", model.get(name, {}), _names(kind) - SAID_ELSEWHERE)


def _check_tokenizer(path: Path, tokenizer: Any) -> None:
    _check_keys(f"{path}, tokenizer", tokenizer, ["vocab_size", "checkpoint", "max_length"], ["max_length"])
    if ("vocab_size" in tokenizer) == ("checkpoint" in tokenizer):
        raise ValueError(
            f"{path}, tokenizer: got {tokenizer}. Valid: either `vocab_size`, to train one, or `checkpoint`, to take "
            f"one from."
        )


def _check_keys(where: str, found: Any, valid: Collection[str], needed: Collection[str] = ()) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where}: got {found!r}. Valid: keys and values, with the keys {', '.join(sorted(valid))}.")
    unknown, lacking = sorted(set(found) - set(valid)), sorted(set(needed) - set(found))
    if unknown or lacking:
        problems = {"unknown keys": unknown, "lacking keys": lacking}
        got = "; ".join(f"{what} {', '.join(keys)}" for what, keys in problems.items() if keys)
        raise ValueError(f"{where}: {got}. Valid keys: {', '.join(sorted(valid))}.")


def _names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}
