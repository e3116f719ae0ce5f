# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What is indexed: the images of a folder, or of a data set. No file outside of the folder is ever opened."""

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset, Features, Image, Value

from ..corpus.build import Skipped
from ..corpus.folders import IMAGE_ENDINGS
from ..corpus.source import Item

MOST_BYTES = 256 * 2**20  # of one file, which is read whole
RESERVED = ("image_id", "stamp")
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class Images(Protocol):
    """Images with their ids and, for filters, further columns.

    Attributes:
        origin: what they are, for the index to tell.
        features: of the further columns.
        others: by file ending, how many files were seen that are no images.
    """

    @property
    def origin(self) -> Mapping[str, str]: ...

    @property
    def features(self) -> Features: ...

    @property
    def others(self) -> Mapping[str, int]: ...

    def items(self) -> Iterator[Item | Skipped]:
        """All images by id, and what cannot be one, with the reason."""
        ...

    def read(self, image_id: str) -> bytes:
        """The image's file. Raises `OSError` where it cannot be read, `KeyError` for an unknown id."""
        ...

    def columns(self, image_id: str) -> dict[str, Any]:
        """The image's values of `features`."""
        ...


class FolderImages:
    """The images below a folder; an image id is the path below it, with slashes.

    Links are listed as left out and never followed: neither when the folder is walked nor when an image is opened,
    should a link have taken its place by then. Hidden files and folders are not looked at.

    Args:
        root: the folder; it may be a link itself.

    Raises:
        ValueError: no such folder.
    """

    def __init__(self, root: str | Path) -> None:
        if not Path(root).is_dir():
            raise ValueError(f"Got {root}, which is no folder; expected a folder of images. Correct the path.")
        self.root = Path(root).resolve()
        self.origin: Mapping[str, str] = {"kind": "folder", "root": str(self.root)}
        self.features = Features({})
        self.others: Mapping[str, int] = {}

    def items(self) -> Iterator[Item | Skipped]:
        self.others = others = Counter[str]()
        closed: list[Skipped] = []

        def note(error: OSError) -> None:
            closed.append(Skipped(self._id(str(error.filename)), f"{type(error).__name__}: {error.strerror}"))

        for folder, folders, names in os.walk(self.root, onerror=note):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
            for name in sorted(each for each in [*names, *links] if not each.startswith(".")):
                if name in links:
                    yield Skipped(self._id(os.path.join(folder, name)), "a link to a folder; links are not followed")
                else:
                    yield from self._items(os.path.join(folder, name), others)
        yield from closed

    def read(self, image_id: str) -> bytes:
        """Raises `OSError` for a link, for what is no regular file, and for files above `MOST_BYTES`."""
        with open(self._open(image_id), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(f"{image_id} is no regular file")
            if facts.st_size > MOST_BYTES:
                raise OSError(f"{image_id} has {facts.st_size:,} bytes; the limit is {MOST_BYTES:,}")
            return file.read(MOST_BYTES)

    def columns(self, image_id: str) -> dict[str, Any]:
        return {}

    def _items(self, path: str, others: Counter[str]) -> Iterator[Item | Skipped]:
        ending = os.path.splitext(path)[1].casefold()
        image_id = self._id(path)
        if ending not in IMAGE_ENDINGS:
            others[ending] += 1
            return
        try:
            image_id.encode()
            facts = os.lstat(path)
        except UnicodeEncodeError:
            yield Skipped(ascii(image_id), "its name is not UTF-8")
            return
        except OSError as error:
            yield Skipped(image_id, f"{type(error).__name__}: {error.strerror}")
            return
        if stat.S_ISLNK(facts.st_mode):
            yield Skipped(image_id, "a link; links are not followed")
        elif not stat.S_ISREG(facts.st_mode):
            yield Skipped(image_id, "no regular file")
        else:
            yield Item(image_id, image_id, f"{facts.st_size} {facts.st_mtime_ns}")

    def _id(self, path: str) -> str:
        return Path(os.path.relpath(path, self.root)).as_posix()

    def _open(self, image_id: str) -> int:
        """Folder by folder, each relative to the one before, so that no link is followed on the way."""
        parts = image_id.split("/")
        if any(part in ("", ".", "..") or "\0" in part or os.sep in part for part in parts):
            raise OSError(f"{image_id!r} is no path below the folder")
        if os.open not in os.supports_dir_fd:  # Windows
            path = self.root.joinpath(*parts)
            if path.resolve() != path:
                raise OSError(f"{image_id!r} leads out of the folder")
            return os.open(path, _FLAGS | getattr(os, "O_BINARY", 0))
        here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        for number, part in enumerate(parts, start=1):
            try:
                deeper = os.open(part, _FLAGS | (os.O_DIRECTORY if number < len(parts) else 0), dir_fd=here)
            finally:
                os.close(here)
            here = deeper
        return here


class DatasetImages:
    """The rows of a map-style data set, such as a built corpus.

    Args:
        dataset: with a column of the feature `Image`.
        id_column: names each row, once.
        image_column: where the images are.
        columns: further ones to filter by, of strings, numbers or truth values.
        name: of the data set, for the index to tell.

    Raises:
        ValueError: a column that the data set lacks or that holds something else.

    Example: `DatasetImages(load_corpus(directory), columns=["artist"])`.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        id_column: str = "image_id",
        image_column: str = "image",
        columns: Sequence[str] = (),
        name: str = "dataset",
    ) -> None:
        wanted = [id_column, image_column, *columns]
        if absent := [column for column in wanted if column not in dataset.column_names]:
            raise ValueError(f"Got the columns {absent}; {name} has {', '.join(dataset.column_names)}. Correct them.")
        if not isinstance(dataset.features[image_column], Image):
            raise ValueError(
                f"Column {image_column!r} holds {dataset.features[image_column]}; expected images. Cast it: "
                f"`dataset.cast_column({image_column!r}, datasets.Image())`."
            )
        for column in columns:
            feature = dataset.features[column]
            if column in RESERVED or column.startswith("vector.") or not isinstance(feature, Value):
                raise ValueError(
                    f"Column {column!r} of {feature} is nothing to filter by. Valid: strings, numbers and truth "
                    f"values under another name than {', '.join(RESERVED)} and vector."
                )
        self.origin: Mapping[str, str] = {"kind": "dataset", "name": name}
        self.features = Features({column: dataset.features[column] for column in columns})
        self.others: Mapping[str, int] = {}
        ids = [str(value) for value in dataset.with_format(None)[id_column]]
        self._images = dataset.with_format(None).select_columns(image_column)
        self._images = self._images.cast_column(image_column, Image(decode=False))
        self._facts = dataset.with_format(None).select_columns(list(columns)) if columns else None
        self._image_column = image_column
        self._ids = ids
        self._rows = {image_id: row for row, image_id in reversed(list(enumerate(ids)))}  # the first of equal ones

    def items(self) -> Iterator[Item | Skipped]:
        """An image's stamp is a hash of its bytes and columns, so all bytes are read."""
        for row, image_id in enumerate(self._ids):
            if self._rows[image_id] != row:
                yield Skipped(image_id, f"row {row} has the image id of row {self._rows[image_id]}")
                continue
            try:
                contents = self.read(image_id)
            except OSError as error:
                yield Skipped(image_id, f"{type(error).__name__}: {error}")
                continue
            facts = json.dumps(self.columns(image_id), sort_keys=True, default=str).encode()
            yield Item(image_id, image_id, hashlib.blake2b(contents + facts, digest_size=16).hexdigest())

    def read(self, image_id: str) -> bytes:
        """Raises `OSError` for a row that has neither bytes nor a path."""
        image = self._images[self._rows[image_id]][self._image_column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise OSError("the row has no image")
        return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]

    def columns(self, image_id: str) -> dict[str, Any]:
        return {} if self._facts is None else self._facts[self._rows[image_id]]
