# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Sources of images that are files: with a text beside each, with a list in CSV or JSON lines, or without captions."""

import csv
import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import Features

from .sources import CaptionColumns, Columns, Item, MalformedRecordError, Skipped

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
# A field of more lines is taken for one whose quote does not close; captions of several paragraphs have a dozen.
_MOST_LINES = 50
# A field of CSV with the comma behind it. Nothing is tried twice, so that long fields take linear time.
_FIELD = re.compile(r'(?:"[^"]*+(?:""[^"]*+)*+"|[^",\r\n][^,\r\n]*+)?+,')
_NO_RECORD = "no record in UTF-8"
LISTINGS = ("metadata.csv", "metadata.jsonl")  # as the imagefolder of `datasets` has them


class ImageFolder:
    """A `Source` of the images below a folder; the text beside `a/cat.jpg` is in `a/cat.txt`, as one caption.

    Hidden files and folders are not looked at, and folders that are links are listed as left out. An image id is the
    path below the folder.

    Args:
        root: the folder.
        perspective: Perspective of the texts.
        name: Name of the source, and of the captions' source.

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
        name: Name of the source, and of the captions' source.

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
            raise ValueError(
                f"`listing` is {self.listing}, which is not a file; expected a list of images. Correct the path."
            )
        self.root = _require_folder(Path(root) if root is not None else self.listing.parent)
        self.folders, self.is_walked = (self.root, self.listing), False
        self.image_column = image_column
        self.name = name or self.listing.resolve().parent.name
        self.captions = captions
        CaptionColumns(captions, self.name)

    def items(self) -> Iterator[Item | Skipped]:
        columns = CaptionColumns({self.image_column: "image", **self.captions}, self.name)
        for line, record in _read_records(self.listing):
            if isinstance(record, str):
                yield Skipped(f"{self.listing.name}:{line}", record)
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
    """Return the paper's own format, `{"image": path, "caption": [text, ...]}`: captions named by their position.

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
    """Return `place` relative to `root`. Links are not followed, so that a folder may hold links to the images."""
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
        raise ValueError(
            f"`root` is {root}, which is not a folder; expected the folder of the images. Correct the path."
        )
    return root


def _read_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Records by the number of their line; a reason for a line that is not one."""
    if path.suffix.casefold() == ".csv":
        yield from _read_csv(path)
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse(line)


def _parse(line: bytes) -> Mapping[str, Any] | str:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return _NO_RECORD
    return record if isinstance(record, dict) else _NO_RECORD


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Records by the number of their last line; a reason for one that has not a cell for each column of the head.

    Raises:
        ValueError: a quote that does not close, or closes within a field; it would swallow the lines behind it.
    """
    lines: list[str] = []  # of the record that is being read

    def noted(file: Iterable[str]) -> Iterator[str]:
        for line in file:
            if len(lines) == _MOST_LINES:
                raise csv.Error(f"it goes on over more than {_MOST_LINES} lines")
            lines.append(line)
            yield line

    broken: list[int] = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Without `strict`, a field goes on to the end of the file where its quote does not close.
        reader, head = csv.reader(noted(file), strict=True), None
        while True:
            begin = reader.line_num + 1
            lines.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if len(lines) == 1 and str(error).startswith("field larger"):  # the next line is read again
                    yield begin, f"a cell of more than {csv.field_size_limit():,} letters"
                    continue
                raise ValueError(
                    f"{path}, line {begin + _lines_of_whole_fields(lines)}: a double quote does not close as it "
                    f"should ({error}); expected each to be closed before the next comma or the end of the line. "
                    "Close it, or write it twice inside quotes."
                ) from error
            if cells is None:
                break
            if len(lines) > 1:
                broken.append(begin)
            if head is None:
                head = cells or None
            elif cells:
                yield reader.line_num, _record(head, cells)
    if broken:
        logger.warning(
            "%s: %d records go over several lines, inside double quotes; the first begins at line %d.",
            path,
            len(broken),
            broken[0],
        )


def _record(head: Sequence[str], cells: Sequence[str]) -> Mapping[str, Any] | str:
    if len(cells) != len(head):
        return f"{len(cells)} cells, not {len(head)} as in the head"
    return dict(zip(head, cells, strict=True)) if all(map(_is_utf8, cells)) else _NO_RECORD


def _lines_of_whole_fields(lines: Sequence[str]) -> int:
    """Return how many lines of a record end before the field that is broken; the fields before it are whole."""
    text, place = "".join(lines), 0
    while whole := _FIELD.match(text, place):
        place = whole.end()
    return sum(end <= place for end in accumulate(map(len, lines)))


def _is_utf8(value: str) -> bool:
    """Tell whether no byte had to be escaped to read it as text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


MOST_BYTES = 256 * 2**20  # of one file, which is read whole
RESERVED = ("image_id", "stamp")
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


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
            raise ValueError(
                f"`root` is {root}, which is not a folder; expected a folder of images. Correct the path."
            )
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
        """Raises `OSError` for a link, for what is not a regular file, and for files above `MOST_BYTES`."""
        with open(self._open(image_id), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(f"{image_id} is not a regular file")
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
            yield Skipped(image_id, "not a regular file")
        else:
            yield Item(image_id, image_id, f"{facts.st_size} {facts.st_mtime_ns}")

    def _id(self, path: str) -> str:
        return Path(os.path.relpath(path, self.root)).as_posix()

    def _open(self, image_id: str) -> int:
        """Folder by folder, each relative to the one before, so that no link is followed on the way."""
        parts = image_id.split("/")
        if any(part in ("", ".", "..") or "\0" in part or os.sep in part for part in parts):
            raise OSError(f"{image_id!r} is not a path below the folder")
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
