# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Sources of images that are files: with a text beside each, with a list that names them, or without captions."""

import hashlib
import logging
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Features

from ..storage import is_utf8, require_utf8
from .decoding import CONVERT
from .files import MOST_BYTES, NamedFiles, fault_of, is_address, read_file, require_folder, walk
from .layouts import (
    SPLIT_NAMES,
    Layout,
    caption_values,
    find_image_column,
    name_columns,
    path_value,
    propose_captions,
    recognise,
    refuse_addresses,
    refuse_unknown,
    split_value,
)
from .records import IMAGE_ENDINGS, PLAIN, UNREAD_ENDINGS, Record, TextForm, first_line, read_records
from .sources import CaptionColumns, Columns, Item, MalformedRecordError, Skipped, join_captions

logger = logging.getLogger(__name__)

LISTINGS = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as the imagefolder of `datasets` has them
_MOST_TEXT = 2**20  # bytes of the text beside an image
# Folders beside each other, in which an image and its text have one name, as Urban1k's.
_PAIRS = [(image, text) for image in ("image", "images") for text in ("caption", "captions", "text", "texts")]


# For a folder of which nothing else is read.
_OTHER_SOURCES = {
    ".tar": "Read archives with `tar` and the folder's name.",
    ".parquet": "Read parquet with `dataset` and the folder's name.",
}


class ImageFolder:
    """A `Source` of the images below a folder; the text beside `a/cat.jpg` is in `a/cat.txt`, as one caption.

    If the folder holds `image` and `caption`, the text of `image/1.jpg` is in `caption/1.txt`. Hidden files and
    folders are not looked at. Folders that are links, and files that are neither images nor beside one, are listed as
    left out. An image id is the path below the folder.

    Args:
        root: the folder.
        perspective: Perspective of the texts.
        name: Name of the source, and of the captions' source.

    Raises:
        ValueError: no such folder.
    """

    def __init__(self, root: str | Path, *, perspective: str = "short", name: str = "") -> None:
        self.root = require_folder(Path(root))
        self.folders, self.is_walked = (self.root,), True
        self.perspective = perspective
        self.name = name or self.root.resolve().name
        self._unread = ""  # what reads the files that were met and not read

    @property
    def hint(self) -> str:
        """Advice on how to give captions."""
        if self._unread:
            return self._unread
        if listing := _metadata_of(self.root):
            return f"{listing} is not read here. Open it as `ListedImages`, or with `holistic-clip corpus folder`."
        return "Put a text beside each image, such as cat.txt beside cat.jpg."

    def items(self) -> Iterator[Item | Skipped]:
        pair = next(((a, b) for a, b in _PAIRS if (self.root / a).is_dir() and (self.root / b).is_dir()), ())
        for folder, names in walk(self.root):
            first, *below = folder.relative_to(self.root).parts or ("",)
            partner = self.root.joinpath(*(each for each in pair if each != first), *below)
            has_partner = first in pair and partner.is_dir()
            yield from self._items(folder, names, partner, sorted(os.listdir(partner)) if has_partner else ())

    def read(self, place: str) -> bytes:
        return read_file(self.root / place)

    def _items(
        self, folder: Path, names: Sequence[str], partner: Path, others: Sequence[str]
    ) -> Iterator[Item | Skipped]:
        """Yield what a folder holds; the texts of its images, or the images of its texts, may lie in its partner."""
        texts = _texts_in(partner, others) | _texts_in(folder, names)
        images = {_stem(name) for name in names if _is_image(name)}
        anywhere = images | {_stem(name) for name in others if _is_image(name)}
        for name in names:
            path, ending = folder / name, os.path.splitext(name)[1].casefold()
            if _is_image(name):
                yield self.item(path, texts.get(_stem(name)))
            elif path.is_dir():
                yield self._skipped(path, "a link to a folder")
            elif ending == ".txt":
                if _stem(name) not in anywhere:
                    yield self._skipped(path, "a text without an image")
            elif _stem(name) not in images:
                told = f"the ending {ending}" if ending else "a name without an ending"
                self._unread = _OTHER_SOURCES.get(ending, self._unread)
                remedy = f"; {CONVERT}" if ending in UNREAD_ENDINGS else ""
                yield self._skipped(path, f"{told} is not read{remedy}")

    def item(self, path: Path, text_path: Path | None = None) -> Item | Skipped:
        """Return the item of an image below the folder, with the text of a file."""
        place = path.relative_to(self.root).as_posix()
        if not is_utf8(place):
            return _skipped(place, "its name is not UTF-8")
        try:
            facts = path.stat()
            data = b"" if text_path is None else read_file(text_path, _MOST_TEXT)
            text = " ".join(data.decode("utf-8-sig").split())
        except UnicodeDecodeError:
            return Skipped(place, "its text is not UTF-8")
        except FileNotFoundError:  # a link that leads nowhere
            return Skipped(place, "no such file")
        except OSError as error:
            return Skipped(place, f"its text cannot be read: {error}")
        if fault := fault_of(facts):
            return Skipped(place, fault)
        captions = [{"perspective": self.perspective, "text": text, "source": self.name}] if text else []
        return Item(place, place, f"{facts.st_size} {facts.st_mtime_ns}", captions, facts.st_size)

    def _skipped(self, path: Path, reason: str) -> Skipped:
        return _skipped(path.relative_to(self.root).as_posix(), reason)


class ListedImages:
    """A `Source` of the images that a list names: a table, JSON lines, JSON or parquet, told from its contents.

    Several records of one image are one image with several captions. An image id is the path below the folder.

    Args:
        listing: the list; see `records.read_records`.
        captions: which columns are captions; see `CaptionColumns`. By default those of a known layout (`layouts`).
        root: the folder that paths are relative to, and that they may not leave; the images may lie in its
            sub-folders. Default: the folder of the list.
        image_column: Column that has the path of the image. Default: one with a known name.
        name: Name of the source, and of the captions' source.
        form: Encoding and quoting of the list.
        has_splits: Take an image's split from the column `split`, if the list has it.

    Raises:
        ValueError: no such list or folder; by `items`, a list that cannot be read, a column that no record has, or
            captions without a perspective.
    """

    def __init__(
        self,
        listing: str | Path,
        captions: Columns | None = None,
        *,
        root: str | Path | None = None,
        image_column: str | None = None,
        name: str = "",
        form: TextForm = PLAIN,
        has_splits: bool = True,
    ) -> None:
        self.listing = require_utf8(Path(listing), "listing")
        if not self.listing.is_file():
            raise ValueError(
                f"`listing` is {self.listing}, which is not a file; expected a list of images. Correct the path."
            )
        self.root = require_folder(Path(root) if root is not None else self.listing.parent)
        self.folders, self.is_walked = (self.root, self.listing), False
        self.image_column = image_column
        self.name = name or self.listing.resolve().parent.name
        self.captions = captions or {}
        self.form = form
        self.has_splits = has_splits
        self.hint = ""
        CaptionColumns(self.captions, self.name)

    def items(self) -> Iterator[Item | Skipped]:
        return join_captions(self._rows())

    def read(self, place: str) -> bytes:
        return read_file(self.root / place)

    def propose(self) -> dict[str, str]:
        """Return columns that may hold captions, with a perspective for each, if no layout says which do.

        See `layouts.propose_captions`.
        """
        records = (record for _, record in read_records(self.listing, self.form) if not isinstance(record, str))
        first = next(records, {})
        image_column = self.image_column or find_image_column(first)
        if self.captions or image_column is None or recognise(first, self.image_column):
            return {}
        return propose_captions(chain([first], records), image_column)

    def _rows(self) -> Iterator[Item | Skipped]:
        reader, fault = None, ""
        for number, record in read_records(self.listing, self.form):
            place = f"{self.listing.name}:{number}"
            if isinstance(record, str):
                yield Skipped(place, record)
                fault = fault or f" {place}: {record}."
                continue
            reader = reader or self._reader(record)
            try:
                yield reader.item(record)
            except MalformedRecordError as error:
                yield Skipped(place, str(error))
        if reader is None:
            raise ValueError(
                f"{self.listing} has no record; expected a table, JSON or parquet with one for each image. It begins "
                f"with {first_line(self.listing)!r}.{fault} Correct the path."
            )
        reader.columns.require_all_seen(str(self.listing))

    def _reader(self, record: Record) -> "_RecordReader":
        """Decide by the first record which columns are read."""
        layout = _layout_of(record, self.image_column)
        captions = self.captions or (layout.captions if layout else {})
        image_column = self.image_column or (layout.image if layout and not self.captions else None)
        image_column = image_column or find_image_column(name for name in record if name not in captions)
        if image_column is None:
            refuse_unknown(self.listing, record)
        assert image_column is not None
        if isinstance(place := record.get(image_column), str):
            refuse_addresses(self.listing, place, image_column, record)
        if layout is not None and not self.captions:
            logger.info("%s: captions are in %s, as in %s.", self.listing, ", ".join(captions), layout.name)
        self.hint = (
            f"The images are looked for below {self.root}, the first as {str(record.get(image_column))[:200]!r}. Name "
            "their folder, as `holistic-clip corpus list --root images`."
            if captions
            else name_columns(str(name) for name in record if name != image_column)
        )
        return _RecordReader(self, image_column, captions)


class _RecordReader:
    def __init__(self, source: ListedImages, image_column: str, captions: Columns) -> None:
        self.columns = CaptionColumns(captions, source.name)
        self._captions = captions
        self._image_column = image_column
        self._files = NamedFiles(source.root)
        self._has_splits = source.has_splits

    def item(self, record: Record) -> Item | Skipped:
        self.columns.note(record)
        place = path_value(record, self._image_column)
        captions = self.columns.read(caption_values(record, self._captions))
        split = split_value(record) if self._has_splits else ""
        if not is_utf8(place):
            return _skipped(place, "its name is not UTF-8")
        if is_address(place):
            return Skipped(place, "its path is an address, which is not fetched")
        found = self._files.find(place)
        if isinstance(found, str):
            return Skipped(place, found)
        within, facts = found
        if fault := fault_of(facts):
            return Skipped(within, fault)
        return Item(within, within, f"{facts.st_size} {facts.st_mtime_ns}", captions, facts.st_size, split)


class ListedFolder:
    """A `Source` of a folder with its own lists: `metadata.csv`, one in each sub-folder, or a list of a known layout.

    Images below the folder that no list names come last, without captions, for a captioner or for caption rows.

    Args:
        root: the folder.
        lists: Its lists, as `find_lists` returns them.
        captions: Columns that are captions; see `ListedImages`.
        name: Name of the source, and of the captions' source.

    Raises:
        ValueError: as `ListedImages`.
    """

    def __init__(
        self, root: str | Path, lists: Sequence[Path], captions: Columns | None = None, *, name: str = ""
    ) -> None:
        self.root = require_folder(Path(root))
        self.folders, self.is_walked = (self.root,), True
        self.name = name or self.root.resolve().name
        self._lists = [ListedImages(each, captions, name=self.name) for each in lists]

    @property
    def hint(self) -> str:
        """Advice of the first list that gives any."""
        return next((each.hint for each in self._lists if each.hint), "")

    def items(self) -> Iterator[Item | Skipped]:
        seen: set[int] = set()
        for listed in self._lists:
            below = listed.root.relative_to(self.root).parts
            for item in listed.items():
                place = "/".join((*below, item.item if isinstance(item, Skipped) else item.image_id))
                seen.add(hash(place))
                if isinstance(item, Skipped):
                    yield Skipped(place, item.reason)
                else:
                    yield item._replace(image_id=place, place=place, split=item.split or self._split(below))
        rest = ImageFolder(self.root)
        for folder, names in walk(self.root):
            below = folder.relative_to(self.root).parts
            for name in filter(_is_image, names):
                if hash("/".join((*below, name))) not in seen:
                    item = rest.item(folder / name)
                    yield item if isinstance(item, Skipped) else item._replace(split=self._split(below[:1]))

    def read(self, place: str) -> bytes:
        return read_file(self.root / place)

    def propose(self) -> dict[str, str]:
        """Return columns of its first list that may hold captions; see `ListedImages.propose`."""
        return self._lists[0].propose()

    def _split(self, below: tuple[str, ...]) -> str:
        """Return the split that a folder with a list of its own stands for by its name."""
        own = {listed.root.relative_to(self.root).parts for listed in self._lists}
        return SPLIT_NAMES.get(below[0].casefold(), "") if below and below in own else ""


def official_json_lines(
    path: str | Path, perspectives: Sequence[str], *, root: str | Path, name: str = ""
) -> ListedImages:
    """Return the paper's own format, `{"image": path, "caption": [text, ...]}`: captions named by their position.

    Example: `official_json_lines("cc3m.jsonl", ["web", "detail", "short"], root="cc3m")`.
    """
    return ListedImages(path, {"caption": list(perspectives)}, root=root, image_column="image", name=name)


def _layout_of(record: Record, image_column: str | None = None) -> Layout | None:
    """Return the layout of a list by its first record; two columns alone leave no doubt which is the caption."""
    layout = recognise(record, image_column)
    if layout is None and image_column is None and len(record) == 2:
        layout = recognise(record, find_image_column(record))
    return layout


_MOST_LISTS = 20  # files of a folder that are looked into for a list; more are texts of images
_LIST_ENDINGS = (".csv", ".tsv", ".txt", ".token", ".json", ".jsonl", ".jsonlines", ".parquet")


def find_lists(root: str | Path) -> list[Path]:
    """Return a folder's lists of images: its metadata file, those of its sub-folders, or any of a known layout."""
    root = Path(root)
    if listing := _metadata_of(root):
        return [listing]
    with os.scandir(root) as entries:
        seen = sorted((each.name, each.is_dir()) for each in entries if not each.name.startswith("."))
    images = {_stem(name) for name, _ in seen if _is_image(name)}
    listed = [_metadata_of(root / name) for name, is_folder in seen if is_folder]
    if not images and all(listed):  # otherwise there are images that have no list, which must not be lost
        found = [each for each in listed if each is not None]
        if found:
            return found
    lists = [root / name for name, is_folder in seen if name.casefold().endswith(_LIST_ENDINGS) and not is_folder]
    lists = [each for each in lists if _stem(each.name) not in images and each.is_file()]
    return [each for each in lists if _is_of_known_layout(each)] if len(lists) <= _MOST_LISTS else []


def _metadata_of(folder: Path) -> Path | None:
    return next((folder / name for name in LISTINGS if (folder / name).is_file()), None)


def _is_of_known_layout(path: Path) -> bool:
    try:
        record = next((each for _, each in read_records(path) if not isinstance(each, str)), {})
    except ValueError:  # notes of somebody; a list by that name is opened by its name
        return False
    layout = _layout_of(record)
    return layout is not None and not is_address(str(record[layout.image]))


def _texts_in(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    return {_stem(name): folder / name for name in names if name.casefold().endswith(".txt") and name[0] != "."}


def _stem(name: str) -> str:
    """Return a name without its ending, in the one of Unicode's forms that compares equal on all systems."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].casefold() in IMAGE_ENDINGS


def _skipped(place: str, reason: str) -> Skipped:
    return Skipped(place if is_utf8(place) else ascii(place), reason)


RESERVED = ("image_id", "stamp")
FOLLOWED = {"links": "followed"}  # of an origin
_FOLDER_LINK = "a link to a folder; links are not followed"
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class FolderImages:
    """The images below a folder; an image id is the path below it, with slashes.

    Links are listed as left out and never followed: neither when the folder is walked nor when an image is opened,
    should a link have taken its place by then. Hidden files and folders are not looked at.

    Args:
        root: the folder; it may be a link itself.
        follow_links: Follow links, wherever they lead, each folder once.

    Raises:
        ValueError: no such folder.
    """

    def __init__(self, root: str | Path, *, follow_links: bool = False) -> None:
        if not Path(root).is_dir():
            raise ValueError(
                f"`root` is {root}, which is not a folder; expected a folder of images. Correct the path."
            )
        self.root, self.follow_links = Path(root).resolve(), follow_links
        require_utf8(self.root, "images")
        self.origin: Mapping[str, str] = {"kind": "folder", "root": str(self.root)} | (
            FOLLOWED if follow_links else {}
        )
        self.features = Features({})
        self.others: Mapping[str, int] = {}

    def items(self) -> Iterator[Item | Skipped]:
        self.others = others = Counter[str]()
        closed: list[Skipped] = []

        def note(error: OSError) -> None:
            closed.append(Skipped(self._id(str(error.filename)), f"{type(error).__name__}: {error.strerror}"))

        seen = {os.path.realpath(self.root)}
        for folder, folders, names in os.walk(self.root, onerror=note, followlinks=self.follow_links):
            links = [name for name in folders if self._is_closed(os.path.join(folder, name), seen)]
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
            for name in sorted(each for each in [*names, *links] if not each.startswith(".")):
                if name in links:
                    told = "a folder that came before" if self.follow_links else _FOLDER_LINK
                    yield Skipped(self._id(os.path.join(folder, name)), told)
                else:
                    yield from self._items(os.path.join(folder, name), others)
        yield from closed

    def read(self, image_id: str) -> bytes:
        """Return the file of an image. Raises `OSError` for a link, for what is not a regular file, and for files
        above `MOST_BYTES`.
        """
        if self.follow_links:
            return read_file(self.root / image_id)
        with open(self._open(image_id), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(f"{image_id} is not a regular file")
            if facts.st_size > MOST_BYTES:
                raise OSError(f"{image_id} has {facts.st_size:,} bytes; the limit is {MOST_BYTES:,}")
            return file.read(MOST_BYTES)

    def stamp(self, item: Item, contents: bytes) -> str:
        """Return size and time of the file and the SHA-256 of its contents."""
        return f"{item.stamp} {hashlib.sha256(contents).hexdigest()}"

    def recognises(self, item: Item, stamp: str) -> bool:
        """Tell whether a file is the one with this stamp: by its size and time or, as after a copy, by its contents.

        Earlier versions kept no hash of the contents.
        """
        facts, _, digest = stamp.rpartition(" ")
        if stamp == item.stamp or facts == item.stamp:
            return True
        if facts.split(" ")[0] != item.stamp.split(" ")[0] or len(digest) != 64:
            return False
        try:
            return hashlib.sha256(self.read(item.place)).hexdigest() == digest
        except OSError:
            return False

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
            facts = os.stat(path) if self.follow_links else os.lstat(path)
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

    def _is_closed(self, path: str, seen: set[str]) -> bool:
        """Tell a folder that is not walked: a link or, where links are followed, one that was walked before."""
        if not self.follow_links:
            return os.path.islink(path)
        real = os.path.realpath(path)
        is_known = real in seen
        seen.add(real)
        return is_known

    def _id(self, path: str) -> str:
        return Path(os.path.relpath(path, self.root)).as_posix()

    def _open(self, image_id: str) -> int:
        """Open folder by folder, each relative to the one before, so that no link is followed on the way."""
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
