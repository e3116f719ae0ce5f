# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Interfaces of sources of images, and the columns of a record that hold captions."""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datasets import Features

from ..storage import require_apart, scratch_database, shown


class Skipped(NamedTuple):
    """Entry that a shard yields in place of a row that could not be made."""

    item: str
    reason: str


class Item(NamedTuple):
    """One image of a source and the captions that come with it; its bytes are read later, by `place`.

    Args:
        image_id: unique in its source.
        place: Position of the bytes, in the words of the source's own `read`.
        stamp: changes when the bytes do, as far as that is known without reading them.
        captions: `perspective`, `text` and `source` of each; may be empty.
        num_bytes: Size of the image if it is known without reading it, else 0.
        split: `train`, `validation` or `test`, where the source itself says so; otherwise the builder decides.
    """

    image_id: str
    place: str
    stamp: str
    captions: Sequence[Mapping[str, str]] = ()
    num_bytes: int = 0
    split: str = ""


class Source(Protocol):
    """Images in a fixed order, listed without reading them; `name` is for people.

    A source may say in `folders` which files and folders it reads, and in `is_walked` whether everything below them is
    an item: no corpus is built into these. In `origins` it may say by what it is known again, in place of its folders.
    In `hint` it may say, once its items were listed, how to name captions.
    """

    name: str

    def items(self) -> Iterator[Item | Skipped]:
        """Yield all images, and what could not become one, with the reason; the same at every call."""
        ...

    def read(self, place: str) -> bytes:
        """Return the bytes of an image, as they were stored. Raises `OSError` where they cannot be read."""
        ...


def origins_of(source: Source) -> list[str]:
    """Return by what a source is known again: what it says, or its files and folders, or its name."""
    folders = [str(Path(each).resolve()) for each in getattr(source, "folders", ())]
    return [*getattr(source, "origins", ())] or folders or [source.name]


SPLITS = ("train", "validation", "test")
Columns = Mapping[str, str | Sequence[str]]


class MalformedRecordError(ValueError):
    """A record without usable captions or image; its text is the reason."""


class CaptionColumns:
    """Reader of the captions of records.

    Args:
        columns: Perspective, for each column that holds captions, of its text or of each text of its list. A list
            of perspectives instead names the texts of a list by their position.
        source: Origin of the captions. If several texts of an image have one perspective, their column or
            their number in the list follows.

    Raises:
        ValueError: an empty name.

    Example: `CaptionColumns({"alt": "web", "caption": ["detail", "short"]}, "cc3m")`.
    """

    def __init__(self, columns: Columns, source: str) -> None:
        named = {column: [names] if isinstance(names, str) else list(names) for column, names in columns.items()}
        if not source.strip() or not all(name.strip() for names in named.values() for name in names):
            raise ValueError(f"`columns` is {dict(columns)} of {source!r}; expected no empty name. Name them all.")
        shared = Counter(name for names in named.values() for name in set(names))
        self._columns = dict(columns)
        self._sources = {
            column: f"{source}-{column}" if any(shared[name] > 1 for name in names) else source
            for column, names in named.items()
        }
        self._unseen = set(columns)
        self._seen: dict[str, None] = {}

    def read(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return the captions of one record; `None` and blanks are left out.

        Raises:
            MalformedRecordError: something else than text in a column.
            ValueError: a list that is longer than its list of perspectives.
        """
        self.note(record)
        return [caption for column in self._columns for caption in self._read_column(record, column)]

    def note(self, record: Mapping[str, Any]) -> None:
        """Note which columns a record has, for `require_all_seen`."""
        self._unseen -= record.keys()
        if len(self._seen) < 100:  # enough for the error message
            self._seen |= dict.fromkeys(record)

    def require_all_seen(self, place: str) -> None:
        """Raise `ValueError` if a column was in no record so far; `place` is where they came from."""
        if self._unseen:
            raise ValueError(
                f"`columns` has {sorted(self._unseen)}, which no record of {place} has; expected some of "
                f"{', '.join(self._seen) or 'its columns, but it is empty'}. Correct the names."
            )

    def _read_column(self, record: Mapping[str, Any], column: str) -> Iterable[dict[str, str]]:
        value, names, source = list_in(record.get(column)), self._columns[column], self._sources[column]
        texts = value if isinstance(value, list) else [value]
        if not isinstance(names, str) and len(texts) > len(names):
            raise ValueError(
                f"Column {column!r} has {len(texts)} captions; expected {len(names)}, one for each of "
                f"{', '.join(names)}. "
                f"The captions begin with {shown(texts[:1])}. Name a perspective for each position."
            )
        captions = []
        for place, text in enumerate(texts):
            if text is None:
                continue
            if not isinstance(text, str):
                raise MalformedRecordError(f"{column!r} holds {type(text).__name__}, not text")
            name = names if isinstance(names, str) else names[place]
            is_numbered = len(texts) > 1 and (isinstance(names, str) or names.count(name) > 1)
            captions.append((name, text.strip(), f"{source}-{place}" if is_numbered else source))
        return [{"perspective": name, "text": text, "source": by} for name, text, by in captions if text]


_MOST_IN_CELL = 1_000_000  # letters of a list in a cell
_LIST = re.compile(r"\[\s*+[\"']")


def list_in(value: Any) -> Any:
    """Return the texts of a list that is written into a text, as JSON or as Python; any other value as it is.

    >>> list_in('["a dog", "a cat"]'), list_in("['a dog']"), list_in("[sic] a dog")
    (['a dog', 'a cat'], ['a dog'], '[sic] a dog')
    """
    if not isinstance(value, str) or not _LIST.match(text := value.strip()) or len(text) > _MOST_IN_CELL:
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a backslash that Python does not know
                found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and found and all(each is None or isinstance(each, str) for each in found):
            return found
    return value


_TABLES = """
CREATE TABLE images (image INTEGER PRIMARY KEY, image_id TEXT UNIQUE, item TEXT);
CREATE TABLE captions (image INTEGER, listed TEXT);
"""


def join_captions(items: Iterable[Item | Skipped]) -> Iterator[Item | Skipped]:
    """Make one item of all that have one image id, in the order of their first, with the captions of all of them.

    Captions of one perspective and source are told apart by their number behind the source. The bytes, the stamp and
    the split are those of the first item. What is left out comes before the images. Memory does not grow with them.
    """
    with scratch_database() as database:
        database.executescript(_TABLES)
        database.execute("BEGIN")
        for item in items:
            if isinstance(item, Skipped):
                yield item
                continue
            values = (item.image_id, json.dumps(item._replace(captions=())))
            database.execute("INSERT OR IGNORE INTO images (image_id, item) VALUES (?, ?)", values)
            number = database.execute("SELECT image FROM images WHERE image_id = ?", (item.image_id,)).fetchone()
            database.execute("INSERT INTO captions VALUES (?, ?)", (*number, json.dumps(item.captions)))
        database.execute("CREATE INDEX by_image ON captions (image)")
        for number, stored in database.execute("SELECT image, item FROM images ORDER BY image"):
            rows = database.execute("SELECT listed FROM captions WHERE image = ? ORDER BY rowid", (number,))
            captions = [caption for (listed,) in rows for caption in json.loads(listed)]
            yield Item(*json.loads(stored))._replace(captions=_told_apart(captions))


def _told_apart(captions: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    counts = Counter((each["perspective"], each["source"]) for each in captions)
    numbers: Counter[tuple[str, str]] = Counter()
    told: list[Mapping[str, str]] = []
    for each in captions:
        key = (each["perspective"], each["source"])
        if counts[key] > 1:
            told.append({**each, "source": f"{each['source']}-{numbers[key]}"})
            numbers[key] += 1
        else:
            told.append(each)
    return told


def require_apart_from(source: Source, directory: Path) -> None:
    """Refuse an output where what a source reads lies, or around it; a source from elsewhere need not say where.

    Raises:
        ValueError: as `require_apart`.
    """
    for folder in getattr(source, "folders", ()):
        require_apart(directory, folder, walked=bool(getattr(source, "is_walked", False)))


class Images(Protocol):
    """Images with their ids and, for filters, further columns.

    Attributes:
        origin: what they are, for the index to tell.
        features: of the further columns.
        others: Counts of files that are not images, by file ending.
    """

    @property
    def origin(self) -> Mapping[str, str]: ...

    @property
    def features(self) -> Features: ...

    @property
    def others(self) -> Mapping[str, int]: ...

    def items(self) -> Iterator[Item | Skipped]:
        """Yield all images by id, and what cannot be one, with the reason."""
        ...

    def read(self, image_id: str) -> bytes:
        """Return the image's file. Raises `OSError` where it cannot be read, `KeyError` for an unknown id."""
        ...

    def stamp(self, item: Item, contents: bytes) -> str:
        """Return what an index keeps, to know the image by again: the stamp of its item, or more of its contents."""
        ...

    def recognises(self, item: Item, stamp: str) -> bool:
        """Tell whether an image is the one of which an index has kept this stamp."""
        ...

    def columns(self, image_id: str) -> dict[str, Any]:
        """Return the image's values of `features`."""
        ...
