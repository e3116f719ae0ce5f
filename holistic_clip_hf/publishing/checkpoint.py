# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint as it will stand on the Hub, staged in a folder, and verified in a fresh interpreter without this
package.
"""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel

from ..checkpoint_files import (
    CALIBRATION_FILE,
    is_link_of_the_cache,
    require_all_weights,
    require_loadable,
    write_checkpoint,
)
from ..configuration_holistic_clip import MODEL_TYPES
from ..evaluation.calibration import read_calibration, save_calibration
from ..evaluation.records import Record, load_records, records_of, shareable_command
from ..locks import LOCK
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..storage import (
    PARTIAL,
    parse_json,
    raise_if_disk_full,
    require_apart,
    require_free_space,
    require_own_folder,
    write_json,
)
from . import stranger
from .eval_results import RECORDS_FILE, eval_results, write_eval_results
from .inventory import ALLOWED, TRAVELLING_FILES, require_own_code, require_png, require_safe_folder
from .model_card import FACTS_FILE, CardFacts, known_facts, render_model_card, save_facts

CARD = "README.md"
MAX_SHARD_SIZE = "5GB"
SPARE_BYTES = 50_000_000  # configuration, tokenizer, code, pictures


def require_checkpoint(checkpoint: Path) -> None:
    """Raise `ValueError` unless `checkpoint` is a folder with a model of ours in it, in safetensors, safe to load.

    What is published of it has to be files that lie there: a link is refused, which may lead to anything.
    """
    if not (checkpoint / "config.json").is_file():
        raise ValueError(
            f"`checkpoint` is {checkpoint}, which has no `config.json`; expected a checkpoint. Pass the folder of a "
            f"checkpoint."
        )
    for path in sorted(checkpoint.iterdir()):
        if ALLOWED.fullmatch(path.name) and path.is_symlink() and not is_link_of_the_cache(path, checkpoint):
            raise ValueError(
                f"{path} is a symbolic link; expected a file of its own, since all that is published has to lie in "
                "the folder. Put the file itself there."
            )
    require_loadable(checkpoint, "checkpoint")
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"{checkpoint} holds a model of type {config.model_type!r}; what is published here are models of type "
            f"{' or '.join(map(repr, MODEL_TYPES))}. See `holistic_clip_hf.initialization` for how to make one."
        )
    if not list(checkpoint.glob("model*.safetensors")):
        raise ValueError(f"{checkpoint} holds no weights in safetensors. Save the model with `save_pretrained`.")


def require_checkpoint_folder(directory: Path) -> None:
    """Refuse to save a checkpoint into a folder that holds anything but one of ours.

    Raises:
        ValueError: somebody else's files lie there, another kind of checkpoint among them.
    """
    try:
        found = parse_json((directory / "config.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        found = None
    if not isinstance(found, dict) or found.get("model_type") not in MODEL_TYPES:
        # What a killed process was saving lies in a folder of its own, from which `config.json` comes last.
        partial = [path.name for path in directory.glob(".*.partial") if PARTIAL.fullmatch(path.name)]

        def is_ours(path: str) -> bool:
            is_begun = bool(partial) and bool(ALLOWED.fullmatch(path))
            # Earlier versions saved in place, beginning with the code that travels along.
            return is_begun or path.split("/")[0] in (LOCK, *TRAVELLING_FILES, *partial)

        require_own_folder(directory, is_ours, holds="a checkpoint")


def facts_of(checkpoint: Path, repo_id: str) -> CardFacts:
    """Read `card_facts.json` beside a checkpoint; without it, names alone."""
    return replace(known_facts(checkpoint), repo_id=repo_id)


def stage(
    checkpoint: Path,
    folder: Path,
    facts: CardFacts,
    *,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> dict[str, int]:
    """Fill `folder` with what will be published of a checkpoint; the files there, with their sizes in bytes.

    Model and processor are saved anew, so that the code beside them is this package's; the card is rendered from
    configuration, `facts`, and the records in the checkpoint's `results.json`, if it exists. Of the checkpoint's
    other files only the calibration and the card's pictures come along.

    Raises:
        ValueError: no checkpoint of ours, a damaged calibration, a picture that is missing, or a folder that is the
            checkpoint's own, holds other things or would not be safe to load.
        OSError: the disk is full.
    """
    require_checkpoint(checkpoint)
    require_apart(folder, checkpoint, walked=False)
    require_checkpoint_folder(folder)
    _require_space(checkpoint, folder)
    try:
        model, report = AutoModel.from_pretrained(
            checkpoint, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        require_all_weights(checkpoint, report["missing_keys"], "checkpoint")
        with write_checkpoint(folder) as partial:
            model.save_pretrained(partial, max_shard_size=max_shard_size)
            processor = HolisticCLIPProcessor.from_pretrained(checkpoint)
            processor.save_pretrained(partial)
        if (checkpoint / CALIBRATION_FILE).is_file():
            save_calibration(folder / CALIBRATION_FILE, read_calibration(checkpoint / CALIBRATION_FILE))
        records = _copy_records(checkpoint, folder)
        save_facts(folder / FACTS_FILE, facts)
        form, written = processor.caption_form, processor.caption_perspectives
        card = render_model_card(model.config, records, facts, caption_form=form, caption_perspectives=written)
        (folder / CARD).write_text(card, encoding="utf-8")
        own = records_of(records, facts.model_name)
        write_eval_results(folder, eval_results(own, facts.listed_results, facts.repo_id))
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
    if not (checkpoint / RECORDS_FILE).is_file():
        return []
    records = [
        replace(record, command=shareable_command(_words_of(record.command)))  # as earlier versions did not write it
        for record in load_records(checkpoint / RECORDS_FILE)
    ]
    write_json(folder / RECORDS_FILE, [asdict(record) for record in records])
    return records


def _words_of(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # an open quote
        return command.split()


def _copy_picture(checkpoint: Path, folder: Path, picture: str) -> None:
    if Path(picture).name != picture or not (checkpoint / picture).is_file():
        raise ValueError(f"The card shows {picture!r}, which is not a file in {checkpoint}. Draw it, or leave it out.")
    require_png(checkpoint / picture)
    shutil.copyfile(checkpoint / picture, folder / picture)


def _require_space(checkpoint: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Twice the weights: staged and pulled.
    needed = 2 * sum(path.stat().st_size for path in checkpoint.glob("model*.safetensors")) + SPARE_BYTES
    purpose = "the checkpoint, staged here and pulled again,"
    require_free_space(folder, needed, purpose, "set `TMPDIR` to another disk. Nothing was sent")


# Sums over the same weights differ in the last bits, by where they lie in memory.
TOLERANCES = {"torch.float64": 1e-6, "torch.float32": 1e-5, "torch.float16": 1e-2, "torch.bfloat16": 3e-2}
TIME_LIMIT = 3600  # seconds; a model of some billion parameters loads in minutes
OFFLINE = {"HF_HUB_OFFLINE": "1"}


class VerificationError(RuntimeError):
    """A checkpoint that does not load for people without the package, or gives them other numbers."""


def verify(
    name: str | Path,
    expected: Mapping[str, Any],
    *,
    scratch: Path,
    revision: str | None = None,
    settings: Mapping[str, str] = OFFLINE,
) -> None:
    """Load a folder or a repository as a stranger would, and compare with `stranger.measure` of the original.

    `scratch` becomes the stranger's home and working directory, which must hold nothing of ours. `settings` are
    environment variables, among them a token, if one is needed.

    Raises:
        VerificationError: it does not load, its code is not the code that it carries, or a number differs.
    """
    found = _measure_elsewhere(str(name), revision, scratch, settings)
    strange = [module for module in found["modules"] if not module.startswith("transformers_modules.")]
    if strange:
        raise VerificationError(f"{name} was loaded by {', '.join(strange)} and not by the code that it carries.")
    tolerance = TOLERANCES.get(str(expected["dtype"]), TOLERANCES["torch.float32"])
    for what, before in expected.items():
        if what == "modules":
            continue
        problem = _difference(found[what], before, tolerance)
        if problem:
            raise VerificationError(
                f"{name}: `{what}` differs from the checkpoint's: {problem}. Save model and processor again, and see "
                "that both are of the same run."
            )


def _difference(found: Any, before: Any, tolerance: float) -> str | None:
    if isinstance(before, str):
        return None if found == before else f"{found} instead of {before}"
    if len(found) != len(before):
        return f"{len(found)} numbers instead of {len(before)}"
    far = [
        (new, old)
        for new, old in zip(found, before, strict=True)
        if not math.isclose(new, old, rel_tol=tolerance, abs_tol=tolerance)
    ]
    return f"{len(far)} of {len(before)} numbers, the first {far[0][0]:g} instead of {far[0][1]:g}" if far else None


def _measure_elsewhere(name: str, revision: str | None, scratch: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    elsewhere, home = scratch / "elsewhere", scratch / "home"
    elsewhere.mkdir(parents=True, exist_ok=True)
    # Python's own variables are ignored by `-I`; the Hub's client must find neither our cache nor our modules.
    environment = {**os.environ, "HF_HOME": str(home), "HF_MODULES_CACHE": str(scratch / "modules"), **settings}
    for name_of_cache in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name_of_cache, None)
    command = [sys.executable, "-I", stranger.__file__, name, *([revision] if revision else [])]
    try:
        ran = subprocess.run(
            command,
            cwd=elsewhere,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationError(f"{name} did not load within {TIME_LIMIT} seconds.") from error
    if ran.returncode != 0:
        raise VerificationError(f"{name} does not load without this package:\n{ran.stderr.strip()[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])
