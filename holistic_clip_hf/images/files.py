# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Files that folders, lists and rows name: regular ones of a bounded size, below a folder that the user named.

A pipe would be waited for without end, a device or a sparse file read until memory is full. A row of a stranger may
name any file of this machine, or an address.
"""

import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
from PIL import Image

from ..storage import require_utf8

MOST_BYTES = 256 * 2**20  # of one file, which is read whole
ROOTS = "HOLISTIC_CLIP_IMAGE_ROOTS"  # environment variable: folders and addresses, with a semicolon between them
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}://")


def is_address(place: str) -> bool:
    """Tell `https://...` and `s3://...` from a path of this machine."""
    return bool(_ADDRESS.match(place))


def fault_of(facts: os.stat_result, most: int = MOST_BYTES) -> str:
    """Return why a file is not to be read whole, or nothing if it may be; `most` are bytes."""
    if not stat.S_ISREG(facts.st_mode):
        return "not a regular file"
    if facts.st_size > most:
        return f"file too large: {facts.st_size:,} bytes"
    return ""


def read_file(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Return the contents of a regular file. Neither a pipe nor a device is waited for.

    Raises:
        OSError: the file cannot be read, is not a regular one, or has more than `most` bytes.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if fault := fault_of(os.fstat(file.fileno()), most):
            raise OSError(f"{path}: {fault}")
        return file.read(most)


class RefusedPathError(OSError):
    """A path or an address that a row names and that the user did not allow; its text says how to."""


def read_named(place: str, roots: Sequence[str | Path] = ()) -> bytes:
    """Return the contents of the file that a row of a dataset names.

    Args:
        place: Path or address.
        roots: Folders, and beginnings of addresses, that are allowed. Allowed besides are those of the environment
            variable HOLISTIC_CLIP_IMAGE_ROOTS and the caches of the Hub and of `datasets`.

    Raises:
        RefusedPathError: `place` is below none of them.
        OSError: the file cannot be read.
    """
    allowed = [*map(str, roots), *filter(None, os.environ.get(ROOTS, "").split(";"))]
    if is_address(place):
        begins = [f"{root.rstrip('/')}/" for root in allowed if is_address(root)]
        # fsspec takes two colons for the address of something else, inside which the first one lies.
        leads_out = "::" in place or ".." in PurePosixPath(place).parts
        if leads_out or not any(place.startswith(begin) for begin in begins):
            raise RefusedPathError(
                f"its path is an address, which is not fetched: {place[:200]!r}. Download it, or put its beginning "
                f"into {ROOTS}"
            )
        with fsspec.open(place, "rb") as file:
            return file.read(MOST_BYTES)
    real = Path(os.path.realpath(place))  # links are followed first, so that none leads out
    for root in [*(each for each in allowed if not is_address(each)), *_caches()]:
        if real.is_relative_to(os.path.realpath(root)):
            return read_file(real)
    raise RefusedPathError(
        f"its path is not below an allowed folder: {place[:200]!r}. If the rows are yours, put the folder into {ROOTS}"
    )


def _caches() -> list[str]:
    """Return the folders into which the Hub's client and `datasets` download; they hold links into each other."""
    from datasets import config
    from huggingface_hub import constants

    downloads = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH)
    return [constants.HF_HUB_CACHE, *map(str, downloads)]


def allow_folder(folder: str | Path) -> None:
    """Allow rows to name files below a folder, in this process and those that it starts.

    Raises:
        ValueError: a semicolon in the path, which stands between folders.

    Example: `allow_folder("photos")`, before rows of `load_dataset("imagefolder", data_dir="photos")` are read.
    """
    path = os.path.abspath(folder)
    if ";" in path:
        raise ValueError(f"`folder` is {path}; expected a path without a semicolon. Rename the folder.")
    known = list(filter(None, os.environ.get(ROOTS, "").split(";")))
    if path not in known:
        os.environ[ROOTS] = ";".join([*known, path])  # workers that load data inherit it


def read_image_column(value: Any, roots: Sequence[str | Path] = ()) -> bytes:
    """Return the file of an image as a `datasets` column gives it undecoded: bytes, or `bytes` and a `path`.

    Raises:
        OSError: no image, or as `read_named`.
    """
    if isinstance(value, Mapping):
        if value["bytes"] is None and value["path"] is not None:
            return read_named(value["path"], roots)
        value = value["bytes"]
    if value is None:
        raise OSError("the row has no image")
    return value


def image_content(image: Any) -> bytes:
    """Return what decides an image; of one that cannot be read, why."""
    if isinstance(image, Image.Image):
        return f"{image.mode} {image.size}".encode() + image.tobytes()
    if hasattr(image, "shape"):
        array = np.asarray(image)
        return f"{array.dtype} {array.shape}".encode() + array.tobytes()
    try:
        return read_image_column({"bytes": None, "path": image} if isinstance(image, str) else image)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}".encode()


def inside(root: Path, place: str) -> str | None:
    """Return `place` relative to `root`, or nothing if it leaves it.

    Links are not followed, so that a folder may hold links to the images.
    """
    if os.sep == "/" and not {"", ".", ".."}.intersection(place.split("/")):
        return place  # nearly all are; what follows takes ten times as long
    joined = os.path.normpath(root / place)
    start = os.path.normpath(root)
    if os.path.commonpath([os.path.abspath(joined), os.path.abspath(start)]) != os.path.abspath(start):
        return None
    return PurePosixPath(os.path.relpath(joined, start)).as_posix()


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders with their files and the links to folders in them, both in order of their names."""
    for folder, folders, names in os.walk(root, followlinks=False):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        yield Path(folder), sorted(name for name in names + links if not name.startswith("."))


def require_folder(root: Path) -> Path:
    """Return the folder of the images.

    Raises:
        ValueError: no such folder, or one whose name is not UTF-8.
    """
    require_utf8(root, "root")
    if not root.is_dir():
        raise ValueError(
            f"`root` is {root}, which is not a folder; expected the folder of the images. Correct the path."
        )
    return root


_MOST_FOLDERS = 64  # in which a name is looked up; more are not a place for the images of a list


class NamedFiles:
    """Finder of files that a list names, as they are spelled on disk.

    A name is looked for below the folder, then below its sub-folders and theirs, since lists often leave out the
    folder of the images. Accents may be spelled in either of Unicode's forms, NFC and NFD, of which macOS has the one
    and the web the other.

    Args:
        root: Folder that no name may leave.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._below: list[str] | None = None

    def find(self, place: str) -> tuple[str, os.stat_result] | str:
        """Return the path below the folder with the facts of the file, or why no file can be read."""
        if "\0" in place:
            return "no such file"
        within = inside(self.root, place)
        if within is None:
            return "its path leaves the folder of the images"
        found = self._look_up(within)
        if found is None and "\\" in within:  # as Windows writes it
            within = within.replace("\\", "/")
            return self.find(within)
        return self._search(within) if found is None else found

    def _search(self, within: str) -> tuple[str, os.stat_result] | str:
        hits = [hit for folder in self._folders() if (hit := self._look_up(f"{folder}/{within}"))]
        if len(hits) > 1:
            return f"in several folders: {hits[0][0]}, {hits[1][0]}"
        return hits[0] if hits else "no such file"

    def _look_up(self, within: str) -> tuple[str, os.stat_result] | None:
        facts = _facts(self.root / within)
        if facts is None and not within.isascii() and (spelled := self._spelled(within)):
            within, facts = spelled, _facts(self.root / spelled)
        return None if facts is None else (within, facts)

    def _spelled(self, within: str) -> str | None:
        """Return the path in the forms that the disk has, folder by folder."""
        here = ""
        for part in within.split("/"):
            forms = dict.fromkeys([part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))])
            tried = [f"{here}/{form}".lstrip("/") for form in forms]
            found = next((each for each in tried if _facts(self.root / each) is not None), None)
            if found is None:
                return None
            here = found
        return here

    def _folders(self) -> list[str]:
        """Return the sub-folders and theirs; none if they are too many to look in all of them for each image."""
        if self._below is None:
            children = _subfolders(self.root)
            deeper = [f"{child}/{each}" for child in children for each in _subfolders(self.root / child)]
            found = sorted([*children, *deeper])
            self._below = found if len(found) <= _MOST_FOLDERS else []
        return self._below


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [each.name for each in entries if each.is_dir(follow_symlinks=False) and not each.name.startswith(".")]


def _facts(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):  # a path may hold what no file system takes
        return None
