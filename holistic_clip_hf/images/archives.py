# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Source of webdataset shards: tar archives in which the files of one image follow each other and share a key."""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from ..storage import RepeatedKeyError, parse_json, require_utf8, shown
from .files import MOST_BYTES
from .records import IMAGE_ENDINGS
from .sources import CaptionColumns, Columns, Item, MalformedRecordError, Skipped

_MOST_TEXT = 2**20  # bytes of a text or of a record
_UNSORTED = "its files do not follow each other; sort the archive, e.g. with `tar --sort=name`"


class _Member(NamedTuple):
    key: str
    ending: str  # without the dot
    offset: int
    size: int


class TarShards:
    """A `Source` of tar archives as webdataset and img2dataset write them: `000.jpg`, `000.txt`, `000.json` and so on.

    An image id is the name of the archive, a slash and the key. Archives are read in place, and never unpacked.

    Args:
        paths: the archives, not compressed.
        captions: which endings, or which fields of the `json` member, are captions; see `CaptionColumns`. Default:
            `txt`, which img2dataset writes, as `web`.
        name: Name of the source, and of the captions' source.

    Raises:
        ValueError: no archives, two of one name, one that is not a file or is compressed; by `items`, a caption column
            that no image has.

    Example: `TarShards(sorted(Path("cc3m").glob("*.tar")), {"txt": "web", "long_caption": "detail"}, name="cc3m")`.
    """

    def __init__(self, paths: Sequence[str | Path], captions: Columns | None = None, *, name: str = "") -> None:
        self.paths = {Path(path).stem: Path(path) for path in paths}
        if not self.paths or len(self.paths) < len(paths):
            raise ValueError(
                f"`paths` has {len(paths)} archives with {len(self.paths)} names; expected at least one, each of its "
                f"own name."
            )
        for path in self.paths.values():
            _require_plain_tar(require_utf8(path, "paths"))
        self.folders, self.is_walked = tuple(self.paths.values()), False
        self.name = name or next(iter(self.paths.values())).resolve().parent.name
        self.captions = captions or {"txt": "web"}
        self._is_told = bool(captions)  # archives of images alone are as good, for a captioner
        self.hint = "Name the endings, or fields of the .json member, that hold them, as `--caption txt=web`."
        CaptionColumns(self.captions, self.name)

    def items(self) -> Iterator[Item | Skipped]:
        columns = CaptionColumns(self.captions, self.name)
        for stem, path in self.paths.items():
            with open(path, "rb") as file:
                damage: list[str] = []
                parted: set[str] = set()  # keys whose files are not all in one place, so far as is known
                for key, members in groupby(_members(file, damage), key=lambda member: member.key):
                    item = self._item(stem, f"{stem}/{key}", list(members), file, columns)
                    if key in parted:
                        item = Skipped(f"{stem}/{key}", _UNSORTED)
                    elif isinstance(item, Skipped) or not item.captions:
                        parted.add(key)
                    yield item
                yield from (
                    Skipped(stem, f"damaged or cut, what follows in it is left out: {each}") for each in damage
                )
        if self._is_told:
            columns.require_all_seen(str(next(iter(self.paths.values())).parent))

    def read(self, place: str) -> bytes:
        stem, offset, size = place.rsplit(":", 2)
        with open(self.paths[stem], "rb") as file:
            file.seek(int(offset))
            return file.read(int(size))

    def _item(
        self, stem: str, image_id: str, members: list[_Member], file: IO[bytes], columns: CaptionColumns
    ) -> Item | Skipped:
        images = [member for member in members if f".{member.ending.casefold()}" in IMAGE_ENDINGS]
        if len(images) != 1:
            return Skipped(image_id, f"{len(images) or 'no'} images of one key")
        record: dict[str, Any] = {}
        try:
            for member in members:
                if member.ending == "json" or member.ending in self.captions:
                    record |= _read_text(file, member)
            captions = columns.read(record)
        except MalformedRecordError as error:
            return Skipped(image_id, str(error))
        (image,) = images
        if image.size > MOST_BYTES:
            return Skipped(image_id, f"file too large: {image.size:,} bytes")
        stamp = f"{image.size} {os.fstat(file.fileno()).st_mtime_ns}"
        return Item(image_id, f"{stem}:{image.offset}:{image.size}", stamp, captions, image.size)


def _members(file: IO[bytes], damage: list[str]) -> Iterator[_Member]:
    """Yield the files that are whole; where the archive is damaged it ends, and `damage` says how."""
    length = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would remember them all
                if info.offset_data + info.size > length:
                    raise tarfile.ReadError(f"{info.name} is cut")
                name = PurePosixPath(info.name)
                if info.isfile() and not name.name.startswith("."):
                    key, _, ending = name.name.partition(".")
                    yield _Member((name.parent / key).as_posix(), ending, info.offset_data, info.size)
            _require_end(file, archive.offset)
    except tarfile.ReadError as error:
        damage.append(str(error))


def _require_end(file: IO[bytes], offset: int) -> None:
    """Require an end mark: tarfile takes a damaged head, and the end of the file, for the end of the archive."""
    file.seek(offset)
    if not file.read(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it has no end mark")
    file.seek(offset)
    while block := file.read(2**20):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"no file begins at byte {offset:,}, and it is not the end")


def _read_text(file: IO[bytes], member: _Member) -> dict[str, Any]:
    """Return the text under its ending, or the fields of a record."""
    if member.size > _MOST_TEXT:
        raise MalformedRecordError(f"its {member.ending} has {member.size:,} bytes, the most is {_MOST_TEXT:,}")
    file.seek(member.offset)
    data = file.read(member.size)
    try:
        text = data.decode("utf-8-sig")
        record = parse_json(text) if member.ending == "json" else {member.ending: text}
    except UnicodeDecodeError as error:
        raise MalformedRecordError(f"its {member.ending} is not UTF-8") from error
    except RepeatedKeyError as error:
        raise MalformedRecordError(f"in its .json member, a key stands twice: {shown(error.key)}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise MalformedRecordError("its .json member is not valid JSON") from error
    if not isinstance(record, dict):
        raise MalformedRecordError("its .json member is not an object")
    return record


def _require_plain_tar(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"`paths` has {path}, which is not a file; expected a tar archive. Correct the path.")
    try:
        with tarfile.open(path, "r:"):
            pass
    except tarfile.ReadError as error:
        raise ValueError(
            f"{path} is not a plain tar archive ({error}); expected one that can be read in place. Unpack it to a "
            ".tar, e.g. with `gunzip`."
        ) from error
