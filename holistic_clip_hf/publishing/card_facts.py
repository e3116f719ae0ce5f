# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What a card says that neither records nor configuration know, and the JSON file that keeps it with a checkpoint."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..atomic import write_atomically

FACTS_FILE = "card_facts.json"

Fact = str | int | float | bool

# Of training arguments: where things lie, how they are watched and who may push say nothing about a model.
NOT_OF_THE_RECIPE = (
    *(
        "_dir",
        "_token",
        "_path",
        "hub_",
        "push_to_hub",
        "run_name",
        "resume_from",
        "local_rank",
        "project",
        "trackio_",
    ),
    *(
        "logging_",
        "report_to",
        "tqdm",
        "log_level",
        "skip_memory_metrics",
        "project",
        "save_",
        "eval_",
        "do_",
        "use_cpu",
    ),
    *("dataloader_num_workers", "dataloader_pin_memory", "prefetch_factor"),
)


@dataclass(frozen=True)
class TrainingData:
    """One source of images: its licence in words, its page, its name on the Hub, and what captioned it."""

    name: str
    license: str
    url: str = ""
    hub_id: str = ""
    num_images: int | None = None
    captions: str = ""


@dataclass(frozen=True)
class EnvironmentalCost:
    """What training took, as far as somebody measured it: grams of CO2 are of the whole training."""

    hardware: str = ""
    hours: float | None = None
    kilowatt_hours: float | None = None
    co2_grams: float | None = None
    location: str = ""

    @property
    def rows(self) -> dict[str, Fact]:
        """What is known, by what it is called."""
        told = {
            "hardware": self.hardware or None,
            "hours": self.hours,
            "energy, kWh": self.kilowatt_hours,
            "CO₂ emitted, g": self.co2_grams,
            "place": self.location or None,
        }
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True)
class CardFacts:
    """What a card says that neither records nor configuration know. Only the first two must be known.

    Args:
        repo_id: where the card will stand, `owner/name`: what `from_pretrained` is given.
        model_name: the name under which this checkpoint's records were taken.
        license: of the weights, as the Hub spells it (`apache-2.0`, `cc-by-sa-4.0` ...).
        language: of the texts (`en`).
        base_model: the Hub name of the checkpoint it was started from.
        summary: a paragraph under the title.
        perspectives: what captions of each perspective say, by its name.
        training_data: where images and captions came from.
        training: the recipe, every value that is not a default: see `changed_arguments`.
        cost: of the training.
        limitations: one sentence each, biases too.
        pictures: file in the repository by alternative text.
        code_url: of the code base.
        heading: of the card; default: the end of `repo_id`.
    """

    repo_id: str
    model_name: str
    license: str = ""
    language: str = ""
    base_model: str = ""
    summary: str = ""
    perspectives: Mapping[str, str] = field(default_factory=dict)
    training_data: Sequence[TrainingData] = ()
    training: Mapping[str, Fact] = field(default_factory=dict)
    cost: EnvironmentalCost = EnvironmentalCost()
    limitations: Sequence[str] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    code_url: str = ""
    heading: str = ""

    @property
    def title(self) -> str:
        return self.heading or self.repo_id.split("/")[-1]


def save_facts(path: str | os.PathLike, facts: CardFacts) -> None:
    """Write facts as JSON; the file is replaced in one step."""
    with write_atomically(Path(path)) as file:
        file.write(f"{json.dumps(asdict(facts), indent=2, ensure_ascii=False, allow_nan=False)}\n".encode())


def load_facts(path: str | os.PathLike) -> CardFacts:
    """Facts as `save_facts` wrote them; what is left out is not known. Raises `ValueError` for anything else."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Expected a file written by `save_facts`.") from error
    told = _checked(told, CardFacts, str(path), needed=("repo_id", "model_name"))
    data = [_checked(one, TrainingData, f"{path}, training_data") for one in told.pop("training_data", [])]
    cost = _checked(told.pop("cost", {}), EnvironmentalCost, f"{path}, cost", needed=())
    sources = tuple(TrainingData(**one) for one in data)
    return CardFacts(**told, training_data=sources, cost=EnvironmentalCost(**cost))


def changed_arguments(args: TrainingArguments) -> dict[str, Fact]:
    """Every training argument that is not at its default and bears on the result, by name."""
    usual: Any = type(args)(output_dir=args.output_dir)
    changed = {}
    for item in fields(args):
        value = getattr(args, item.name)
        if value == getattr(usual, item.name) or any(part in item.name for part in NOT_OF_THE_RECIPE):
            continue
        changed[item.name] = value if isinstance(value, Fact) else _in_words(value)
    return changed


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _checked(told: Any, kind: type, where: str, needed: Sequence[str] = ("name", "license")) -> dict[str, Any]:
    valid = [item.name for item in fields(kind)]
    found = set(told) if isinstance(told, dict) else set()
    unknown, lacking = sorted(found - set(valid)), sorted(set(needed) - found)
    if not isinstance(told, dict) or unknown or lacking:
        raise ValueError(f"{where}: unknown {unknown}, lacking {lacking}. Valid keys: {', '.join(valid)}.")
    return told
