# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Recipes made so small that a laptop runs them offline in seconds, to show that the file can be run.

Sizes and numbers of steps shrink. What is downloaded is made in place: a corpus of drawings, a random CLIP or
SigLIP, its tokenizer. Everything else (slots, options, losses, kinds of schedules, precision) stays.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Value
from PIL import Image, ImageDraw
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from ..corpus.build import MANIFEST, build_corpus, corpus_features, is_corpus_file, require_corpus_folder
from ..storage import remove_own_files, require_own_folder
from .recipes import OWN_FILES, Recipe, clear_result, remove_states, require_own_run, train_tokenizer
from .tower_states import is_states_file


def make_tiny(recipe: Recipe, output_dir: Path, run: str) -> Recipe:
    """Return the recipe at its smallest, with nothing left of an earlier run of this kind."""
    state, ingredients = PartialState(cpu=True), output_dir / "ingredients"
    small = shrink(recipe, ingredients)
    with state.main_process_first():
        if state.is_main_process:
            require_own_run(output_dir / run)
            require_own_ingredients(ingredients)  # before the run's files are removed
            if (output_dir / run).is_dir():
                clear_result(output_dir / run)
            remove_states(output_dir / run)
            reset_ingredients(ingredients)
            make_ingredients(recipe, ingredients)
    return small


CORPUS, CLIP, STATES = "corpus", "clip", "states"
IMAGE_SIZE, PATCH_SIZE = 32, 8
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PROJECTION = 16
CLIP_TOKENS, SIGLIP_TOKENS = 77, 64
VOCABULARY = 600
STEPS, BATCH = 4, 4
ROWS = {"train": 16, "validation": 8, "test": 8}
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle", "triangle")
# More sentences than a long text slot of 248 tokens holds, so that every position is trained.
MOST_SENTENCES = 32


def require_own_ingredients(directory: Path) -> None:
    """Refuse a folder for ingredients in which somebody else's files lie.

    Raises:
        ValueError: they do.
    """
    require_corpus_folder(directory / CORPUS)
    has_corpus = (directory / CORPUS / MANIFEST).is_file()  # it is finished before the CLIP is saved

    def is_ours(path: str) -> bool:
        folder, _, name = path.partition("/")
        is_made = (folder == CLIP and OWN_FILES.fullmatch(name)) or (folder == STATES and is_states_file(name))
        return folder == CORPUS or (has_corpus and bool(is_made))

    require_own_folder(directory, is_ours, holds="what --tiny draws")


def reset_ingredients(directory: Path) -> None:
    """Remove what was made in a folder for ingredients.

    Raises:
        ValueError: somebody else's files lie in it.
    """
    require_own_ingredients(directory)
    remove_own_files(directory / CLIP, lambda path: bool(OWN_FILES.fullmatch(path)))
    remove_own_files(directory / STATES, is_states_file)
    corpus = directory / CORPUS
    # The manifest stays until the next build replaces it: by it the folder is known as ours.
    remove_own_files(corpus, lambda path: path != MANIFEST and is_corpus_file(corpus, path))


def make_ingredients(recipe: Recipe, directory: Path) -> None:
    """Make what the tiny recipe needs: a corpus of drawings, and a SigLIP if its name says so, or a CLIP."""
    make_tiny_corpus(directory / CORPUS, recipe.slots, recipe.split_column)
    (make_tiny_siglip if "siglip" in (recipe.start_from or "").lower() else make_tiny_clip)(directory / CLIP)


def shrink(recipe: Recipe, directory: Path) -> Recipe:
    """Return the recipe at its smallest, with the ingredients that lie in `directory`."""
    clip = str(directory / CLIP)
    return replace(
        recipe,
        corpus=str(directory / CORPUS),
        image_size=IMAGE_SIZE,
        tokenizer=recipe.tokenizer | ({"checkpoint": clip} if "checkpoint" in recipe.tokenizer else {}),
        model=_shrink_model(recipe.model, has_tower=bool(recipe.start_from)),
        training=_shrink_training(recipe.training, directory),
        start_from=clip if recipe.start_from else None,
    )


def changes(before: Recipe, after: Recipe) -> list[str]:
    """Return one line for each value in which two recipes differ."""
    old, new = (dict(_leaves(asdict(recipe))) for recipe in (before, after))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name}: {old.get(name, 'left out')} -> {new.get(name, 'left out')}" for name in names]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shrink_model(model: dict[str, Any], *, has_tower: bool) -> dict[str, Any]:
    """Return the model's settings for the tiny tower, which a checkpoint already `has_tower`."""
    vision = dict(model.get("vision_config", {}))
    if "num_branch_layers" in vision:
        vision["num_branch_layers"] = min(vision["num_branch_layers"], TOWER["num_hidden_layers"])
    if has_tower:
        return model | ({"vision_config": vision} if vision else {})
    if "backbone_config" in vision:
        vision["backbone_config"] = _shrink_backbone(vision["backbone_config"])
    else:
        vision |= TOWER | {"patch_size": PATCH_SIZE}
    return model | {"projection_dim": PROJECTION, "text_config": model["text_config"] | TOWER, "vision_config": vision}


def _shrink_backbone(backbone: dict[str, Any]) -> dict[str, Any]:
    """Return a backbone at its smallest; sizes that the recipe does not say stay those of its family."""
    width = TOWER["hidden_size"]
    small: dict[str, Any] = {**TOWER, "image_size": IMAGE_SIZE, "embedding_size": width}
    small |= {name: [size] * len(backbone.get(name, ())) for name, size in (("hidden_sizes", width), ("depths", 1))}
    return {name: small.get(name, value) for name, value in backbone.items()}


def _shrink_training(training: dict[str, Any], directory: Path) -> dict[str, Any]:
    most = {
        "per_device_eval_batch_size": BATCH,
        "gradient_cache_size": BATCH // 2,
        "loss_chunk_size": BATCH // 2,
        "warmup_steps": 1,
        "logging_steps": STEPS // 2,
        "eval_steps": STEPS // 2,
        "save_steps": STEPS // 2,
        "dataloader_num_workers": 1,
    }
    small = {name: min(training[name], value) for name, value in most.items() if name in training}
    if training.get("fp16"):
        small |= {"fp16": False, "bf16": True}  # no CPU trains in float16
    if training.get("freeze_tower"):
        small |= {"states_folder": str(directory / STATES)}
    return training | small | {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "use_cpu": True}


def make_tiny_corpus(directory: Path, slots: list[str], split_column: str) -> None:
    """Make drawings with captions for every slot of a recipe: of one and of many sentences, a few missing.

    Args:
        directory: Folder of the corpus.
        slots: Perspectives of the captions.
        split_column: Column that says train, validation or test.
    """
    features = corpus_features(**{split_column: Value("string")})
    facts = json.dumps([slots, split_column, ROWS, MOST_SENTENCES])
    fingerprint = hashlib.sha256(facts.encode()).hexdigest()
    build_corpus(directory, {"drawings": lambda: _rows(slots, split_column)}, features, fingerprint=fingerprint)


def _rows(slots: list[str], split_column: str) -> Iterator[dict[str, Any]]:
    for split, number in ROWS.items():
        for row in range(number):
            colour, shape = list(COLOURS)[row % len(COLOURS)], SHAPES[row % len(SHAPES)]
            # One caption lacks in every third row; an image always has another, where there is more than one slot.
            absent = slots[row // 3 % len(slots)] if row % 3 == 2 and len(slots) > 1 else None
            captions = [
                {"perspective": slot, "text": _caption(slot, colour, shape, row), "source": "drawn"}
                for slot in slots
                if slot != absent
            ]
            image = {"image_id": f"{split}-{row}", "image": draw_shape(colour, shape), "captions": captions}
            yield {**image, split_column: split}


def _caption(slot: str, colour: str, shape: str, row: int) -> str:
    first = f"{slot.replace('_', ' ').capitalize()} number {row}: a {colour} {shape}."
    more = [f"Sentence {number} of it says {colour} again." for number in range(2, MOST_SENTENCES + 1)]
    return " ".join([first, *more[: row % 3 * (MOST_SENTENCES // 2)]])


def draw_shape(colour: str, shape: str) -> Image.Image:
    """Draw one of `SHAPES` in one of `COLOURS`."""
    image = Image.new("RGB", (48, 40), "white")
    pen, fill = ImageDraw.Draw(image), COLOURS[colour]
    if shape == "square":
        pen.rectangle((12, 8, 36, 32), fill=fill)
    elif shape == "circle":
        pen.ellipse((12, 8, 36, 32), fill=fill)
    else:
        pen.polygon([(24, 6), (38, 34), (10, 34)], fill=fill)
    return image


def make_tiny_clip(directory: Path) -> None:
    """Save a random CLIP of 77 text positions with its tokenizer and image processor, for `from_pretrained`."""
    tokenizer = train_tokenizer(_texts(), vocab_size=VOCABULARY, max_length=CLIP_TOKENS)
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=crop)
    for part in (tokenizer, images, _random_clip(tokenizer)):
        part.save_pretrained(directory)


def make_tiny_siglip(directory: Path) -> None:
    """Save a random SigLIP of 64 text positions with CLIP's kind of tokenizer and its own image processor."""
    tokenizer = train_tokenizer(_texts(), vocab_size=VOCABULARY, max_length=SIGLIP_TOKENS)
    images = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    for part in (tokenizer, images, _random_siglip(tokenizer)):
        part.save_pretrained(directory)


def _random_clip(tokenizer: CLIPTokenizer) -> PreTrainedModel:
    return _random(CLIPModel, CLIPConfig(**_towers(tokenizer, CLIP_TOKENS), projection_dim=PROJECTION))


def _random_siglip(tokenizer: CLIPTokenizer) -> PreTrainedModel:
    return _random(SiglipModel, SiglipConfig(**_towers(tokenizer, SIGLIP_TOKENS)))


def _random(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return kind(config)


def _towers(tokenizer: CLIPTokenizer, num_positions: int) -> dict[str, Any]:
    tokens = {"vocab_size": len(tokenizer), "max_position_embeddings": num_positions}
    tokens |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = {**TOWER, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    return {"text_config": {**TOWER, **tokens}, "vision_config": vision}


def _texts() -> list[str]:
    return [_caption("short", colour, shape, 1) for colour in COLOURS for shape in SHAPES]
