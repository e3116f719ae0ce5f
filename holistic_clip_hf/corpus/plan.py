# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Plan of a corpus, made before any image is read: which captions, which split, and which shard."""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..images.left_out import is_missing_value
from ..images.limits import ImageLimits
from ..images.sources import SPLITS, Item, Skipped, Source
from ..processing_holistic_clip import is_blank
from ..storage import require_count, scratch_database, shown, stable_number

_RULES = 1  # to be raised when the same sources and settings are to give other rows
_TABLE = """CREATE TABLE entries (
    image_id TEXT UNIQUE, source INTEGER, place TEXT, captions TEXT, split TEXT, shard INTEGER,
    num_bytes INTEGER, is_given INTEGER
)"""
GROUP, REPORT, IGNORE = "group", "report", "ignore"  # near-duplicates
NEAR_DUPLICATES = (GROUP, REPORT, IGNORE)
_AT_ONCE = 10_000  # entries
_BY_CARE = ("test", "validation", "train")  # splits by the harm that a copy in another does


@dataclass(frozen=True)
class BuildSettings:
    """Settings that decide, beside the sources, what is in a corpus.

    Args:
        perspectives: the ones to keep, in this order. Empty: all, as the sources give them.
        validation, test: shares of the images, drawn by a hash of their ids: an image stays where it is, whatever is
            added, and whatever the other share is.
        max_caption_bytes: Bytes in UTF-8 above which a caption is left out; 10,000 are some 2,000 words.
        limits: Limits of images.
        rows_per_shard, bytes_per_shard: Most that a shard has; its bytes as far as sources know them.
        near_duplicates: Treatment of images that are one picture: `"group"` puts them into one split, `"report"`
            leaves them where they are and lists them, as CLIP's authors did with the overlap of their data, `"ignore"`
            does not look for them. Splits that a source gives stay.

    Raises:
        ValueError: shares that are not between 0 and 1 or leave nothing to train on, sizes below 1, or an unknown
            treatment of near-duplicates.
    """

    perspectives: tuple[str, ...] = ()
    validation: float = 0.05
    test: float = 0.05
    max_caption_bytes: int = 10_000
    limits: ImageLimits = field(default_factory=ImageLimits)
    rows_per_shard: int = 5_000
    bytes_per_shard: int = 500_000_000
    near_duplicates: str = REPORT

    def __post_init__(self) -> None:
        # NaN is neither.
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise ValueError(
                f"`validation` is {self.validation} and `test` is {self.test}; expected shares from 0, below 1 "
                "together. Correct them."
            )
        for name in ("max_caption_bytes", "rows_per_shard", "bytes_per_shard"):
            require_count(name, getattr(self, name))
        if self.near_duplicates not in NEAR_DUPLICATES:
            raise ValueError(
                f"`near_duplicates` is {self.near_duplicates!r}; expected one of {', '.join(NEAR_DUPLICATES)}. Choose "
                "one."
            )

    def told(self) -> dict[str, Any]:
        """Return the settings for a fingerprint, which a setting that changes no row is not part of."""
        told = asdict(self)
        if self.near_duplicates != GROUP:
            del told["near_duplicates"]
        return told


def split_of(image_id: str, *, validation: float, test: float) -> str:
    """Choose `train`, `validation` or `test` by the first 8 bytes of the id's SHA-256, as a number from 0 to 1.

    Below `test` it is test, at `1 - validation` or above validation, between them train.
    """
    number = stable_number(image_id) / 2**64
    return "test" if number < test else "validation" if number >= 1 - validation else "train"


class Entry(NamedTuple):
    """One image that is to become a row, if it can be read."""

    image_id: str
    source: int
    place: str
    captions: list[dict[str, str]]
    split: str


class Plan(NamedTuple):
    """Plan of a build: `shards` in their order, and `fingerprint`, which stands for all that decides the rows.

    `slots` are the pairs of a perspective and a source that captions have, as far as the first thousand.
    """

    database: sqlite3.Connection
    shards: list[str]
    rows: list[int]
    fingerprint: str
    slots: tuple[tuple[str, str], ...]

    def entries(self, shard: int) -> Iterator[Entry]:
        """Yield the entries of a shard, by its position in `shards`."""
        yield from self._entries("WHERE shard = ? ORDER BY rowid", shard)

    def all_entries(self, start: int = 0) -> Iterator[Entry]:
        """Yield all entries in the order in which they were listed, from the one of a number."""
        yield from self._entries("WHERE rowid > ? ORDER BY rowid", start)

    def image_id(self, number: int) -> str:
        """Return the image id of the entry of a number, as `all_entries` counts them."""
        return self.database.execute("SELECT image_id FROM entries WHERE rowid = ?", (number + 1,)).fetchone()[0]

    def _entries(self, which: str, value: int) -> Iterator[Entry]:
        columns = "image_id, source, place, captions, split"
        found = self.database.execute(f"SELECT {columns} FROM entries {which}", (value,))
        for image_id, source, place, captions, split in found:
            yield Entry(image_id, source, place, json.loads(captions), split)

    def skipped(self) -> Iterator[Skipped]:
        """Yield what will not become a row or a caption, whatever the images are."""
        yield from map(Skipped._make, self.database.execute("SELECT item, reason FROM skipped ORDER BY rowid"))

    def group(self, groups: Iterable[Sequence[int]], settings: BuildSettings) -> "Plan":
        """Put near-duplicates into one split, and return the plan of the shards that this makes.

        A group goes where a source puts one of it, rather to be tested or validated on than to be trained on. If none
        does, it goes where one of it is that another hash chooses, so that splits keep their shares.

        Args:
            groups: Numbers of the entries of each group, as `all_entries` counts them.
            settings: Settings of the build.
        """
        for group in groups:
            members = [self._split_of(number) for number in group]
            given = [split for _, split, is_given in members if is_given]
            home = min(given, key=_BY_CARE.index) if given else min(members)[1]
            moved = [(home, number + 1) for number, member in zip(group, members, strict=True) if not member[2]]
            self.database.executemany("UPDATE entries SET split = ? WHERE rowid = ?", moved)
        shards = _Shards(settings)
        for start in range(0, sum(self.rows), _AT_ONCE):
            span = "SELECT rowid, split, num_bytes FROM entries WHERE rowid > ? ORDER BY rowid LIMIT ?"
            found = self.database.execute(span, (start, _AT_ONCE)).fetchall()
            put = [(shards.put(split, num_bytes), number) for number, split, num_bytes in found]
            self.database.executemany("UPDATE entries SET shard = ? WHERE rowid = ?", put)
        return self._replace(shards=shards.names(), rows=shards.rows)

    def _split_of(self, number: int) -> tuple[int, str, bool]:
        """Return a hash of an entry's id, its split, and whether its source gave that."""
        found = self.database.execute("SELECT image_id, split, is_given FROM entries WHERE rowid = ?", (number + 1,))
        image_id, split, is_given = found.fetchone()
        return stable_number(f"near-duplicates {image_id}"), split, bool(is_given)


@contextmanager
def make_plan(sources: Sequence[Source], settings: BuildSettings, options: str = "") -> Iterator[Plan]:
    """Provide the plan for the images of `sources`, without reading them; `options` is what else decides the rows.

    Raises:
        ValueError: no image with a caption, or a perspective asked for that no caption has.
    """
    with scratch_database() as database:
        database.execute(_TABLE)
        database.execute("CREATE TABLE skipped (item TEXT, reason TEXT)")
        database.execute("BEGIN")
        planner = _Planner(database, settings, options)
        for place, source in enumerate(sources):
            for item in source.items():
                planner.add(place, item)
        database.execute("CREATE INDEX by_shard ON entries (shard)")
        planner.require_captions(sources)
        yield planner.plan()


class _Shards:
    """Shards that are being filled, one for each split."""

    def __init__(self, settings: BuildSettings) -> None:
        self.rows: list[int] = []
        self._settings = settings
        self._open: dict[str, int] = {}  # by split, the shard that is being filled
        self._splits: list[str] = []  # by shard
        self._bytes: list[int] = []

    def put(self, split: str, num_bytes: int) -> int:
        """Return the shard that a row goes into."""
        shard = self._open.get(split)
        is_full = shard is not None and (
            self.rows[shard] >= self._settings.rows_per_shard
            or (self.rows[shard] and self._bytes[shard] + num_bytes > self._settings.bytes_per_shard)
        )
        if shard is None or is_full:
            shard = self._open[split] = len(self._splits)
            self._splits.append(split)
            self.rows.append(0)
            self._bytes.append(0)
        self.rows[shard] += 1
        self._bytes[shard] += num_bytes
        return shard

    def names(self) -> list[str]:
        """Return their names, numbered within their split, as `datasets` finds them."""
        totals, numbers, names = Counter(self._splits), Counter[str](), []
        for split in self._splits:
            names.append(f"{split}-{numbers[split]:05}-of-{totals[split]:05}")
            numbers[split] += 1
        return names


class _Planner:
    def __init__(self, database: sqlite3.Connection, settings: BuildSettings, options: str) -> None:
        self._database = database
        self._settings = settings
        self._digest = hashlib.sha256(json.dumps([_RULES, settings.told(), options]).encode())
        self._perspectives: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._slots: dict[tuple[str, str], None] = {}
        self._shards = _Shards(settings)

    def add(self, source: int, item: Item | Skipped) -> None:
        if isinstance(item, Skipped):
            self._skip(*item)
            return
        captions = self._choose(item)
        split = item.split or split_of(item.image_id, validation=self._settings.validation, test=self._settings.test)
        if split not in SPLITS:
            raise ValueError(f"Image {item.image_id!r} says it is of split {shown(split)}; expected one of {SPLITS}.")
        if not item.image_id.strip() or not _is_utf8(item.image_id):
            self._skip(item.image_id, "image id is empty or not UTF-8")
        elif not captions:
            self._skip(item.image_id, "no caption")
        else:
            self._insert(source, item, captions, split)

    def require_captions(self, sources: Sequence[Source]) -> None:
        absent = [name for name in self._settings.perspectives if not self._perspectives[name]]
        if absent and self._perspectives:
            raise ValueError(
                f"`perspectives` has {absent}, which no caption has; expected among "
                f"{', '.join(sorted(self._perspectives))}. Correct the names."
            )
        if not self._shards.rows:
            reasons = ", ".join(f"{count} left out: {reason}" for reason, count in self._reasons.most_common(5))
            names = ", ".join(source.name for source in sources)
            hints = " ".join(dict.fromkeys(str(getattr(source, "hint", "")) for source in sources)).strip()
            raise ValueError(
                f"No image of {names} has a caption; {reasons or 'it is empty'}. "
                f"{hints or 'Give captions: a text beside each image, a list, or caption rows.'}"
            )

    def plan(self) -> Plan:
        shards = self._shards
        return Plan(self._database, shards.names(), shards.rows, self._digest.hexdigest(), tuple(self._slots))

    def _insert(self, source: int, item: Item, captions: list[Mapping[str, str]], split: str) -> None:
        if self._database.execute("SELECT 1 FROM entries WHERE image_id = ?", (item.image_id,)).fetchone():
            self._skip(item.image_id, "image id came before")
            return
        shard = self._shards.put(split, item.num_bytes)
        values = (item.image_id, source, item.place, json.dumps(captions), split)
        more = (shard, item.num_bytes, bool(item.split))
        self._database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, *more))
        self._digest.update(json.dumps([*values, item.stamp]).encode())

    def _choose(self, item: Item) -> list[Mapping[str, str]]:
        """Return the captions to keep, in the order asked for."""
        kept: dict[tuple[str, str], Mapping[str, str]] = {}
        for caption in item.captions:
            perspective, text = caption["perspective"], caption["text"]
            self._perspectives[perspective] += 1
            if self._settings.perspectives and perspective not in self._settings.perspectives:
                continue
            if reason := self._fault(text):
                self._skip(f"{item.image_id}, {perspective}", reason)
            elif (perspective, caption["source"]) in kept:
                self._skip(f"{item.image_id}, {perspective}", "second caption of this perspective from one source")
            else:
                kept[perspective, caption["source"]] = caption
        if len(self._slots) < 1_000:
            self._slots |= dict.fromkeys(kept)
        order = self._settings.perspectives
        return sorted(kept.values(), key=lambda each: order.index(each["perspective"])) if order else [*kept.values()]

    def _fault(self, text: str) -> str:
        if not _is_utf8(text):
            return "caption is not UTF-8"
        if is_blank(text):
            return "caption is empty"
        if is_missing_value(text):
            return f"caption is a missing value of a table: {text.strip()}"
        length = len(text.encode())
        return f"caption too long: {length:,} bytes" if length > self._settings.max_caption_bytes else ""

    def _skip(self, item: str, reason: str) -> None:
        self._reasons[reason.partition(":")[0]] += 1
        texts = (text if _is_utf8(text) else ascii(text) for text in (item, reason))
        self._database.execute("INSERT INTO skipped VALUES (?, ?)", tuple(texts))


def _is_utf8(text: str) -> bool:
    """Tell whether UTF-8 can spell a text: lone halves of a pair, which JSON can, have no bytes in it."""
    return text.isascii() or not any("\ud800" <= one <= "\udfff" for one in text)
