# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint as it will stand on the Hub, in a folder: weights, configuration, processor, code, card, records."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoConfig

from ..atomic import raise_if_disk_full, require_free_space
from ..configuration_holistic_clip import HolisticCLIPConfig
from ..evaluation.records import Record, load_records
from ..modeling_holistic_clip import HolisticCLIPModel
from ..processing_holistic_clip import HolisticCLIPProcessor
from .card_facts import FACTS_FILE, CardFacts, load_facts, save_facts
from .inventory import require_own_code, require_safe_folder
from .model_card import render_model_card

CARD = "README.md"
RECORDS = "results.json"
MAX_SHARD_SIZE = "5GB"
SPARE_BYTES = 50_000_000  # configuration, tokenizer, code, pictures


def require_checkpoint(checkpoint: Path) -> None:
    """Raise `ValueError` unless `checkpoint` is a folder with a model of ours in it, in safetensors."""
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"Got {checkpoint}, which holds no `config.json`. Pass the folder of a checkpoint.")
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if config.model_type != HolisticCLIPConfig.model_type:
        raise ValueError(
            f"{checkpoint} holds a model of type {config.model_type!r}; what is published here are models of type "
            f"{HolisticCLIPConfig.model_type!r}. See `holistic_clip_hf.initialization` for how to make one."
        )
    if not list(checkpoint.glob("model*.safetensors")):
        raise ValueError(f"{checkpoint} holds no weights in safetensors. Save the model with `save_pretrained`.")


def facts_of(checkpoint: Path, repo_id: str) -> CardFacts:
    """What lies beside a checkpoint for its card, `card_facts.json`; without it, names alone."""
    path = checkpoint / FACTS_FILE
    known = load_facts(path) if path.is_file() else CardFacts(repo_id, model_name=checkpoint.absolute().name)
    return replace(known, repo_id=repo_id)


def stage(
    checkpoint: Path,
    folder: Path,
    facts: CardFacts,
    *,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> dict[str, int]:
    """Fill `folder` with what will be published of a checkpoint; the files there, with their sizes in bytes.

    Model and processor are saved anew, so that the code beside them is this package's; the card is rendered from
    configuration, `facts`, and the records in the checkpoint's `results.json`, if there are any. Of the checkpoint's
    other files only the card's pictures come along.

    Raises:
        ValueError: no checkpoint of ours, a picture that is missing, or a folder that would not be safe to load.
        OSError: the disk is full.
    """
    require_checkpoint(checkpoint)
    _require_space(checkpoint, folder)
    try:
        model = HolisticCLIPModel.from_pretrained(checkpoint, use_safetensors=True)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        HolisticCLIPProcessor.from_pretrained(checkpoint).save_pretrained(folder)
        records = _copy_records(checkpoint, folder)
        save_facts(folder / FACTS_FILE, facts)
        (folder / CARD).write_text(render_model_card(model.config, records, facts), encoding="utf-8")
        for picture in facts.pictures.values():
            _copy_picture(checkpoint, folder, picture)
    except SafetensorError as error:  # what its library makes of an OSError while writing
        raise OSError(f"The weights could not be written into {folder}: {error}. Nothing was sent") from error
    except OSError as error:
        raise_if_disk_full(error, folder / CARD)
        raise
    files = require_safe_folder(folder)
    require_own_code(folder)
    return {name: (folder / name).stat().st_size for name in files}


def _copy_records(checkpoint: Path, folder: Path) -> Sequence[Record]:
    if not (checkpoint / RECORDS).is_file():
        return []
    records = load_records(checkpoint / RECORDS)
    shutil.copyfile(checkpoint / RECORDS, folder / RECORDS)
    return records


def _copy_picture(checkpoint: Path, folder: Path, picture: str) -> None:
    if Path(picture).name != picture or not (checkpoint / picture).is_file():
        raise ValueError(f"The card shows {picture!r}, which is no file in {checkpoint}. Draw it, or leave it out.")
    shutil.copyfile(checkpoint / picture, folder / picture)


def _require_space(checkpoint: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Twice the weights: staged and pulled.
    needed = 2 * sum(path.stat().st_size for path in checkpoint.glob("model*.safetensors")) + SPARE_BYTES
    purpose = "the checkpoint, staged here and pulled again,"
    require_free_space(folder, needed, purpose, "set `TMPDIR` to another disk. Nothing was sent")
