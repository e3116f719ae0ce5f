# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The files that a repository of a checkpoint may hold, and the refusal of every other one.

The list is signed off: a new kind of file comes onto it by a change of this file. Nothing here runs or unpickles what
it looks at, so that a folder can be judged before anything in it is loaded.
"""

import filecmp
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..checkpoint_files import (
    CONFIG_FILES,
    INDEX_FILE,
    MAX_JSON_BYTES,
    SHARD,
    WEIGHTS_FILE,
    index_problems,
    is_link_of_the_cache,
    setting_problems,
    weights_problems,
)
from ..configuration_holistic_clip import settings_of
from ..storage import parse_json

PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
_PARTS = ("backbone", "configuration", "loss", "modeling", "options", "processing", "streaming", "text", "vision")
TRAVELLING_FILES = tuple(f"{part}_holistic_clip.py" for part in _PARTS)
# The code of single towers in other programs, which travels with those and not with a checkpoint of both towers.
TOWERS_FILE = "towers_holistic_clip.py"
# Files that 0.1.0 carried beside these; checkpoints that were published with them stay as they are.
FORMER_FILES = tuple(f"{part}_holistic_clip.py" for part in ("fusion", "layers", "matching", "packing"))
ALLOWED_FILES = {
    **dict.fromkeys(map(re.escape, TRAVELLING_FILES + FORMER_FILES), "code of the model and its processor"),
    re.escape(TOWERS_FILE): "code of a single tower",
    **dict.fromkeys(map(re.escape, CONFIG_FILES), "configuration"),
    re.escape(WEIGHTS_FILE): "weights",
    SHARD: "a shard of the weights",
    re.escape(INDEX_FILE): "which shard holds which weight",
    r"tokenizer\.json|vocab\.json|merges\.txt": "tokenizer",
    r"special_tokens_map\.json|added_tokens\.json": "tokenizer, as older releases of transformers wrote it",
    r"README\.md|LICENSE|NOTICE": "card and licences",
    r"results\.json|card_facts\.json": "records, and what the card says beside them",
    r"calibration\.json": "what scores are worth as probabilities",
    r"trainer_state\.json|finished\.json|left_out\.json|unreadable_images\.json": "log of the training",
    r"[A-Za-z0-9][A-Za-z0-9_-]*\.png": "a picture of the card",
    r"\.eval_results/[A-Za-z0-9_-]+\.yaml": "results as the Hub lists them",
    r"\.lock|\.results\.json\.lock|\.README\.md\.lock": "locks between processes, which do not travel",
    r"\.gitattributes": "written by the Hub",
    r"\.cache/huggingface/(\.gitignore|CACHEDIR\.TAG|download/([\w.-]+/)*[\w.-]+\.(metadata|lock))": (
        "written by the Hub's client into folders that it downloads to"
    ),
}
ALLOWED = re.compile("|".join(f"(?:{pattern})" for pattern in ALLOWED_FILES))
# Why a file is refused, where there is more to say than that it is not on the list.
REASONS = {
    r".*\.(bin|pt|pth|pkl|pickle|ckpt|npy|npz|h5|msgpack|joblib)": "may hold a pickle, which runs code when it is "
    "read; weights come as safetensors",
    r".*\.(py|pyc|pyd|so|dll|sh|ipynb)": "is code that is not the model's",
    r"adapter_.*": "would have transformers load another repository as the base of this one",
}
MAX_CODE_BYTES = 1_000_000
MAX_PICTURE_BYTES = 20_000_000
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def require_safe_folder(folder: str | Path) -> list[str]:
    """Return the files of a checkpoint's folder as sorted paths, if none of them can do harm when it is loaded.

    Raises:
        ValueError: no such folder, or files that are not on the list, links out of it, weights that are damaged or
            lie elsewhere, or settings that name code or weights of others. The message has every reason.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Pass the folder of a checkpoint, with its `config.json`.")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    problems = [f"{name} {why}" for name, path in paths.items() if (why := _kind_problem(name, path, folder))]
    files = [name for name, path in paths.items() if path.is_file() and ALLOWED.fullmatch(name)]
    if not problems:  # nothing is read before it is known to lie here
        for name in files:
            problems += [f"{name} {why}" for why in _content_problems(name, folder)]
        problems += _sharding_problems(files)
    if problems:
        raise ValueError(
            f"{folder} is not safe to load or to publish:\n- " + "\n- ".join(problems) + "\nIf the folder is yours, "
            "delete what does not belong and save model and processor again; if it is not, do not load it. A "
            "repository may hold what `holistic_clip_hf.publishing.inventory.ALLOWED_FILES` lists."
        )
    return files


def require_png(path: Path) -> None:
    """Refuse a picture that is not a PNG by its bytes, from its signature to its last chunk and no further.

    Raises:
        ValueError: another format, a file that is cut or goes on behind the picture, or one too large for a card.
    """
    if (size := path.stat().st_size) > MAX_PICTURE_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes; expected at most {MAX_PICTURE_BYTES:,} for a picture of a card. Shrink it."
        )
    content = path.read_bytes()
    at, is_first, kind = len(PNG_SIGNATURE), True, b""
    while content.startswith(PNG_SIGNATURE) and kind != b"IEND":
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if is_first != (kind == b"IHDR") or at + 12 + length > size:
            break
        at, is_first = at + 12 + length, False
    if kind != b"IEND" or at != size:
        raise ValueError(f"{path} is not a PNG by its bytes; expected a whole one. Draw it again, or leave it out.")


def require_own_code(folder: str | Path) -> None:
    """Raise `ValueError` where the folder's Python files are not, byte for byte, those of this package."""
    for name in TRAVELLING_FILES:
        found = Path(folder) / name
        if not found.is_file():
            raise ValueError(f"{folder} lacks {name}, so people without the package cannot load it. Save it again.")
        if not filecmp.cmp(found, PACKAGE_FOLDER / name, shallow=False):
            raise ValueError(
                f"{found} differs from this package's. Published code is that of the package: load the checkpoint "
                "with the package and save it again."
            )


def _kind_problem(name: str, path: Path, folder: Path) -> str | None:
    if path.is_symlink() and not is_link_of_the_cache(path, folder):
        return f"is a symbolic link, to {path.readlink()}"
    if path.is_dir():
        return None
    if not path.is_file():
        return "is not a regular file"
    if ALLOWED.fullmatch(name):
        return None
    reasons = [reason for pattern, reason in REASONS.items() if re.fullmatch(pattern, name, flags=re.IGNORECASE)]
    return reasons[0] if reasons else "is not on the list of files that a checkpoint has"


def _content_problems(name: str, folder: Path) -> Iterator[str]:
    path = folder / name
    size = path.stat().st_size
    limit = MAX_CODE_BYTES if name.endswith(".py") else MAX_JSON_BYTES if name.endswith(".json") else size
    if size > limit:
        yield f"has {size:,} bytes; {limit:,} are the most"
    elif name.endswith(".safetensors"):
        yield from weights_problems(path)
    elif name.endswith(".png"):
        try:
            require_png(path)
        except ValueError as error:
            yield f"is not a picture of a card: {error}"
    elif name.endswith(".json"):
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            yield f"is not JSON: {error}"
            return
        if name == INDEX_FILE:
            yield from index_problems(content, folder)
        elif name in CONFIG_FILES:
            yield from setting_problems(content)
            for key, value in settings_of(content):
                if key == "auto_map":
                    yield from _code_problems(value, folder)
                elif key.endswith("_file") and isinstance(value, str) and _leaves_the_folder(value):
                    yield f"points outside the folder: `{key}` is {value!r}"


def _sharding_problems(files: list[str]) -> Iterator[str]:
    if WEIGHTS_FILE in files and INDEX_FILE in files:
        yield f"{WEIGHTS_FILE} stands beside {INDEX_FILE}: which of them is loaded would depend on the reader"
    if INDEX_FILE not in files:
        yield from (f"{name} is a shard without {INDEX_FILE}" for name in files if re.fullmatch(SHARD, name))


def _code_problems(auto_map: Any, folder: Path) -> Iterator[str]:
    """Check `auto_map`: where each class comes from, `file.Class` here or `owner/name--file.Class` elsewhere."""
    values = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
    references = [one for value in values for one in (value if isinstance(value, list) else [value])]
    for reference in references:
        module, _, name = str(reference).partition(".")
        if reference is None:  # of a tokenizer: there is no slow or no fast one
            continue
        if f"{module}.py" not in (*TRAVELLING_FILES, TOWERS_FILE) or not name.isidentifier():
            yield f"takes code from {reference!r} (`auto_map`), which is not one of the model's files"
        elif not (folder / f"{module}.py").is_file():
            yield f"takes code from {module}.py (`auto_map`), which is not there"


def _leaves_the_folder(value: str) -> bool:
    kinds = (PurePosixPath(value), PureWindowsPath(value))
    return any(path.is_absolute() or path.drive or ".." in path.parts for path in kinds)
