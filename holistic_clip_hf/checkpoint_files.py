# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Files of a checkpoint: written together, and judged before anything in them is loaded.

Nothing here runs or unpickles what it looks at.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .configuration_holistic_clip import is_foreign_attention, settings_of
from .storage import parse_json, write_folder

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
SHARD = r"model-\d{5}-of-\d{5}\.safetensors"
CONFIG_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
CALIBRATION_FILE = "calibration.json"  # what scores of these weights are worth, see `evaluation.calibration`
ADAPTER_FILE = "adapter_config.json"
# Weights of another size or number of shards, beside which a new checkpoint would be read as a mixture of both; and
# the calibration of others.
_WEIGHTS = rf"{re.escape(WEIGHTS_FILE)}|{SHARD}|{re.escape(INDEX_FILE)}|{re.escape(CALIBRATION_FILE)}"
MAX_HEADER_BYTES = 10_000_000  # of safetensors: some 100 bytes a tensor
MAX_JSON_BYTES = 200_000_000  # a tokenizer of a million tokens is some 50 MB


def write_checkpoint(folder: Path) -> AbstractContextManager[Path]:
    """Provide a folder to save model and processor into, which become the checkpoint in `folder` together.

    Until all is on disk, and after any error, `folder` holds the checkpoint that it held, or none.

    Raises:
        OSError: as writing does; of a full disk it says which.

    >>> with write_checkpoint(Path("runs/emoji")) as partial:
    ...     model.save_pretrained(partial)
    """
    return write_folder(folder, last="config.json", replaced=_WEIGHTS)


def require_loadable(folder: str | Path, name: str) -> None:
    """Refuse a folder that would have other people's code or files loaded, or whose weights are damaged.

    Only what loading reads is looked at. Code beside it is not run (`trust_remote_code=False`).

    Args:
        folder: Folder of a checkpoint.
        name: Name of the option or argument, for the message.

    Raises:
        ValueError: with every reason.
    """
    folder = Path(folder)
    problems: list[str] = []
    if (folder / ADAPTER_FILE).exists():
        problems.append(f"{ADAPTER_FILE} has another repository loaded as the base of this one; merge it")
    for file in (*CONFIG_FILES, INDEX_FILE):
        if (folder / file).is_file():
            problems += [f"{file} {why}" for why in _problems_of_json(folder / file)]
    for path in sorted(folder.glob("model*.safetensors")):
        problems += [f"{path.name} {why}" for why in weights_problems(path)]
    if problems:
        raise ValueError(
            f"`{name}` is {folder}, which is not safe to load: {'; '.join(problems)}. Get it again or, if it is not "
            "yours, leave it."
        )


def require_all_weights(source: str | Path, missing: Iterable[str], name: str) -> None:
    """Refuse a checkpoint of this package without some of its weights, in place of which random ones were drawn.

    Args:
        source: Folder of the checkpoint, or its name on the Hub.
        missing: Names of the weights, as `from_pretrained` reports them.
        name: Name of the option or argument, for the message.

    Raises:
        ValueError: weights are missing.
    """
    if lacking := sorted(missing):
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(
            f"`{name}` is {source}, which lacks the weights {', '.join(lacking[:3])}{more}; expected a whole "
            "checkpoint. Get it again, or save it again."
        )


def _problems_of_json(path: Path) -> Iterator[str]:
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        yield f"has {size:,} bytes; {MAX_JSON_BYTES:,} are the most"
        return
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        yield f"is not JSON: {error}"
        return
    if path.name == INDEX_FILE:
        yield from index_problems(content, path.parent)
    else:
        yield from setting_problems(content)


def is_link_of_the_cache(path: Path, folder: Path) -> bool:
    """Tell whether the Hub's client made this link, from `snapshots/<commit>` to `blobs` in one cache."""
    repository = folder.resolve().parent.parent
    return folder.resolve().parent.name == "snapshots" and path.resolve().parent == repository / "blobs"


def weights_problems(path: Path) -> Iterator[str]:
    """Say what is wrong with a file of weights, by its head."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        yield f"is not a safetensors file, or its header has {length:,} bytes, where {MAX_HEADER_BYTES:,} are the most"
        return
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        yield f"is damaged or no safetensors: {error}"


def index_problems(content: Any, folder: Path) -> Iterator[str]:
    """Say what is wrong with the list of a folder's shards."""
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        yield "has no `weight_map` from weights to files"
        return
    named = set(shards.values())
    for shard in sorted(named):
        if not re.fullmatch(SHARD, shard):
            yield f"takes weights from {shard!r}, which is not a shard in this folder"
        elif not (folder / shard).is_file():
            yield f"takes weights from {shard}, which is not there"
    for stray in sorted({path.name for path in folder.iterdir() if re.fullmatch(SHARD, path.name)} - named):
        yield f"takes no weight from {stray}"


def setting_problems(content: Any) -> Iterator[str]:
    """Say what is wrong with the content of a configuration file: code and weights that lie elsewhere."""
    if not isinstance(content, dict):
        yield "holds no settings"
        return
    for key, value in settings_of(content):
        if key == "custom_pipelines":
            yield "names pipelines of its own (`custom_pipelines`), which are code"
        elif key == "transformers_weights" and value is not None:
            yield f"takes weights from {value!r} (`transformers_weights`)"
        elif is_foreign_attention(key, value):
            yield f"takes attention from {value!r} (`{key}`), which is code of another repository"
