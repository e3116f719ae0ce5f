"""Recipes: one YAML file per comparison. All its runs share corpus, backbone, steps and batch, so that it is fair."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from transformers import CLIPTokenizer

from holistic_clip_hf import HolisticCLIPConfig


@dataclass
class Run:
    """What one run has of its own: the names of its branches and the caption slots it is trained on."""

    perspectives: list[str]
    slots: list[str]


@dataclass
class Recipe:
    """A recipe file; see the comments at the head of each in `training/recipes/`.

    `corpus` is `emoji` or a corpus directory, whose column `split_column` says train, validation or test.
    """

    name: str
    corpus: str
    split_column: str
    image_size: int
    tokenizer: dict[str, int]
    augmentation: dict[str, list[float]]
    model: dict[str, Any]
    training: dict[str, Any]
    runs: dict[str, Run]

    @property
    def seed(self) -> int:
        return int(self.training["seed"])

    @property
    def slots(self) -> list[str]:
        """Every perspective that some run is trained on, in order of first appearance."""
        return list(dict.fromkeys(slot for run in self.runs.values() for slot in run.slots))

    def fingerprint(self, run: str, corpus: str) -> str:
        """Changes with the recipe of a run and with the fingerprint of its corpus."""
        facts = {**asdict(self), "runs": asdict(self.runs[run]), "name": None, "corpus": corpus}
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def config(self, run: str, tokenizer: CLIPTokenizer) -> HolisticCLIPConfig:
        """The model configuration of a run."""
        perspectives = self.runs[run].perspectives
        text, vision = self.model["text_config"], self.model["vision_config"]
        return HolisticCLIPConfig(
            **{key: value for key, value in self.model.items() if key not in ("text_config", "vision_config")},
            perspectives=perspectives,
            text_config={
                **text,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": tokenizer.model_max_length,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={**vision, "image_size": self.image_size, "num_branches": len(perspectives)},
        )


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ValueError: no such file, or keys that a recipe does not have.
    """
    path = Path(path)
    if not path.is_file():
        found = ", ".join(sorted(str(file) for file in Path("training/recipes").glob("*.yaml")))
        raise ValueError(f"No recipe at {path}. There are: {found or 'none here; run from the checkout'}.")
    content = yaml.safe_load(path.read_text())
    runs = {name: Run(**run) for name, run in content.pop("runs").items()}
    try:
        return Recipe(name=path.stem, runs=runs, **content)
    except TypeError as error:
        raise ValueError(
            f"{path} is not a recipe: {error}. Valid keys: {', '.join(Recipe.__annotations__)}."
        ) from error
