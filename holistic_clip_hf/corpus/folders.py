# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Sources of images that are files: with a text beside each, or with a list in CSV or JSON lines."""

import csv
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .build import Skipped
from .columns import CaptionColumns, Columns, MalformedRecordError
from .source import Item

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
# A field of more lines is taken for one whose quote does not close; captions of several paragraphs have a dozen.
_MOST_LINES = 50
LISTINGS = ("metadata.csv", "metadata.jsonl")  # as the imagefolder of `datasets` has them


class ImageFolder:
    """A `Source` of the images below a folder; the text beside `a/cat.jpg` is in `a/cat.txt`, as one caption.

    Hidden files and folders are not looked at, and folders that are links are listed as left out. An image id is the
    path below the folder.

    Args:
        root: the folder.
        perspective: of the texts.
        name: of the source, and of the captions' source.

    Raises:
        ValueError: no such folder.
    """

    def __init__(self, root: str | Path, *, perspective: str = "short", name: str = "") -> None:
        self.root = _require_folder(Path(root))
        self.folders, self.is_walked = (self.root,), True
        self.perspective = perspective
        self.name = name or self.root.resolve().name

    def items(self) -> Iterator[Item | Skipped]:
        for folder, names in _walk(self.root):
            texts = {name for name in names if name.casefold().endswith(".txt")}
            for name in names:
                path = folder / name
                if path.suffix.casefold() in IMAGE_ENDINGS:
                    text = next((path.with_suffix(end) for end in (".txt", ".TXT") if path.stem + end in texts), None)
                    texts -= {text.name} if text else set()
                    yield self._item(path, text)
                elif path.is_dir():
                    yield _skipped(path.relative_to(self.root).as_posix(), "a link to a folder")
            for name in sorted(texts):
                yield _skipped((folder / name).relative_to(self.root).as_posix(), "a text without an image")

    def read(self, place: str) -> bytes:
        return (self.root / place).read_bytes()

    def _item(self, path: Path, text_path: Path | None) -> Item | Skipped:
        place = path.relative_to(self.root).as_posix()
        try:
            text = "" if text_path is None else " ".join(text_path.read_text(encoding="utf-8-sig").split())
        except UnicodeDecodeError:
            return _skipped(place, "its text is not UTF-8")
        caption = {"perspective": self.perspective, "text": text, "source": self.name}
        return _item(self.root, place, [caption] if text else [])


class ListedImages:
    """A `Source` of the images that a list names: CSV with a head, or JSON lines. An image id is the path it gives.

    Args:
        listing: the list; `.csv`, otherwise JSON lines.
        captions: which columns are captions; see `CaptionColumns`.
        root: the folder that paths are relative to, and that they may not leave. Default: the folder of the list.
        image_column: the column that has the path of the image.
        name: of the source, and of the captions' source.

    Raises:
        ValueError: no such list or folder; by `items`, a column that no record has, or captions without a perspective.
    """

    def __init__(
        self,
        listing: str | Path,
        captions: Columns,
        *,
        root: str | Path | None = None,
        image_column: str = "file_name",
        name: str = "",
    ) -> None:
        self.listing = Path(listing)
        if not self.listing.is_file():
            raise ValueError(f"Got {self.listing}, which is no file; expected a list of images. Correct the path.")
        self.root = _require_folder(Path(root) if root is not None else self.listing.parent)
        self.folders, self.is_walked = (self.root, self.listing), False
        self.image_column = image_column
        self.name = name or self.listing.resolve().parent.name
        self.captions = captions
        CaptionColumns(captions, self.name)

    def items(self) -> Iterator[Item | Skipped]:
        columns = CaptionColumns({self.image_column: "image", **self.captions}, self.name)
        for line, record in _read_records(self.listing):
            if record is None:
                yield Skipped(f"{self.listing.name}:{line}", "no record in UTF-8")
                continue
            try:
                yield self._item(record, columns)
            except MalformedRecordError as error:
                yield Skipped(f"{self.listing.name}:{line}", str(error))
        columns.require_all_seen(str(self.listing))

    def read(self, place: str) -> bytes:
        return (self.root / place).read_bytes()

    def _item(self, record: Mapping[str, Any], columns: CaptionColumns) -> Item | Skipped:
        captions = columns.read(record)
        if not captions or captions[0]["perspective"] != "image":
            raise MalformedRecordError(f"no path in {self.image_column!r}")
        return _item(self.root, captions[0]["text"], captions[1:])


def official_json_lines(
    path: str | Path, perspectives: Sequence[str], *, root: str | Path, name: str = ""
) -> ListedImages:
    """The paper's own format, `{"image": path, "caption": [text, ...]}`: captions named by their position.

    Example: `official_json_lines("cc3m.jsonl", ["web", "detail", "short"], root="cc3m")`.
    """
    return ListedImages(path, {"caption": list(perspectives)}, root=root, image_column="image", name=name)


def _item(root: Path, place: str, captions: Sequence[Mapping[str, str]]) -> Item | Skipped:
    if not _is_utf8(place):
        return _skipped(place, "its name is not UTF-8")
    inside = _inside(root, place)
    if inside is None:
        return Skipped(place, "its path leaves the folder of the images")
    try:
        facts = os.stat(root / inside)
    except (OSError, ValueError):  # a path may hold what no file system takes
        return Skipped(place, "no such file")
    return Item(inside, inside, f"{facts.st_size} {facts.st_mtime_ns}", captions, facts.st_size)


def _skipped(place: str, reason: str) -> Skipped:
    return Skipped(place if _is_utf8(place) else ascii(place), reason)


def _inside(root: Path, place: str) -> str | None:
    """`place` relative to `root`; links are not followed, so that a folder may hold links to the images."""
    joined = os.path.normpath(root / place)
    start = os.path.normpath(root)
    if os.path.commonpath([os.path.abspath(joined), os.path.abspath(start)]) != os.path.abspath(start):
        return None
    return PurePosixPath(os.path.relpath(joined, start)).as_posix()


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders with their files and the links to folders in them, both in order of their names."""
    for folder, folders, names in os.walk(root, followlinks=False):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        yield Path(folder), sorted(name for name in names + links if not name.startswith("."))


def _require_folder(root: Path) -> Path:
    if not root.is_dir():
        raise ValueError(f"Got {root}, which is no folder; expected the folder of the images. Correct the path.")
    return root


def _read_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Records by the number of their line; `None` where a line is none or is not UTF-8."""
    if path.suffix.casefold() == ".csv":
        yield from _read_csv(path)
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse(line)


def _parse(line: bytes) -> Mapping[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """Records by the number of their last line.

    Raises:
        ValueError: a quote that does not close, or closes within a field; it would swallow the lines behind it.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Without `strict`, a field goes on to the end of the file where its quote does not close.
        reader, num_broken = csv.DictReader(file, strict=True), 0
        while True:
            begin = reader.line_num + 1
            try:
                record = next(reader, None)
            except csv.Error as error:
                if str(error).startswith("field larger"):  # than the module's limit; the next line is read again
                    yield reader.line_num, None
                    continue
                raise ValueError(
                    f"{path}, line {begin}: a double quote does not close as it should ({error}); expected each to be "
                    f"closed before the next comma or the end of the line. Close it, or write it twice inside quotes."
                ) from error
            if record is None:
                break
            num_broken += reader.line_num > begin
            if reader.line_num - begin >= _MOST_LINES:
                raise ValueError(
                    f"{path}, lines {begin} to {reader.line_num}: a quoted field goes on over all of them; expected "
                    f"at most {_MOST_LINES} lines. Close the double quote where the field ends."
                )
            is_whole = None not in record and all(_is_utf8(value) for value in record.values())
            yield reader.line_num, record if is_whole else None
    if num_broken:
        logger.warning("%s: %d records go over several lines, inside double quotes.", path, num_broken)


def _is_utf8(value: str | None) -> bool:
    """Whether no byte had to be escaped to read it as text."""
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        return False
    return True
