# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Images from one source, with its own captions and those that others have for them, joined by image id."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..captioning.rows import CaptionRow
from .build import Skipped
from .scratch import scratch_database
from .source import Item, Source

Added = tuple[str, Mapping[str, str]]  # image id, and a caption of it


class JoinedSource:
    """A `Source` of the images of one, each with its own captions and then those added, in the order they come in.

    Added captions of images that the source does not have are listed as left out. Memory does not grow with them.

    Args:
        images: the source of the images.
        added: at each call the same: captions by image id, and what could not become one; `captions_of_rows` and
            `captions_of_source` give them.

    Example: `JoinedSource(folder, lambda: captions_of_rows(CaptionStore("captions").rows()))`.
    """

    def __init__(self, images: Source, added: Callable[[], Iterable[Added | Skipped]]) -> None:
        self.name = images.name
        self.folders = getattr(images, "folders", ())
        self.is_walked = bool(getattr(images, "is_walked", False))
        self._images = images
        self._added = added

    def items(self) -> Iterator[Item | Skipped]:
        with scratch_database() as database:
            database.execute("CREATE TABLE captions (image_id TEXT, perspective TEXT, text TEXT, source TEXT)")
            database.execute("BEGIN")
            yield from self._load(database)
            database.execute("CREATE INDEX by_image ON captions (image_id)")
            for item in self._images.items():
                yield item if isinstance(item, Skipped) else _extend(item, database)
            unknown = database.execute("SELECT image_id, COUNT(*) FROM captions GROUP BY image_id ORDER BY image_id")
            yield from (Skipped(image_id, f"captions without an image: {count}") for image_id, count in unknown)

    def read(self, place: str) -> bytes:
        return self._images.read(place)

    def _load(self, database: sqlite3.Connection) -> Iterator[Skipped]:
        for entry in self._added():
            if isinstance(entry, Skipped):
                yield entry
                continue
            image_id, caption = entry
            try:
                values = (image_id, caption["perspective"], caption["text"], caption["source"])
                database.execute("INSERT INTO captions VALUES (?, ?, ?, ?)", values)
            except UnicodeEncodeError:
                yield Skipped(ascii(image_id), "a caption that is not UTF-8")


def captions_of_rows(rows: Iterable[CaptionRow]) -> Iterator[Added | Skipped]:
    """The usable captions among caption rows, with their captioner as source; of the others, why they are none."""
    for row in rows:
        if row.usable:
            yield row.image_id, {"perspective": row.perspective, "text": row.caption, "source": row.captioner}
        else:
            yield Skipped(f"{row.image_id}, {row.perspective}", f"caption row is {row.status}: {row.error}")


def captions_of_source(source: Source) -> Iterator[Added | Skipped]:
    """The captions of another source of the same image ids; its images are not read."""
    for item in source.items():
        if isinstance(item, Skipped):
            yield item
        else:
            yield from ((item.image_id, caption) for caption in item.captions)


def _extend(item: Item, database: sqlite3.Connection) -> Item:
    of_image = (item.image_id,)
    found = database.execute(
        "SELECT perspective, text, source FROM captions WHERE image_id = ? ORDER BY rowid", of_image
    ).fetchall()
    if not found:
        return item
    database.execute("DELETE FROM captions WHERE image_id = ?", of_image)
    added = [{"perspective": perspective, "text": text, "source": source} for perspective, text, source in found]
    return item._replace(captions=[*item.captions, *added])
