# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Segments of an index: what is present of some images is taken up, and what is missing is encoded and written."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from ..evaluation.encoding import DualEncoder
from ..images.decoding import UnreadableImageError, read_image
from ..images.sources import Images, Item
from .encoding import embed_each
from .store import (
    FUSED_ONLY,
    SEGMENTS,
    VECTOR,
    Layout,
    LeftOut,
    Manifest,
    Segment,
    free_number,
    open_segment,
    require_whole,
    write_segment,
)

logger = logging.getLogger(__name__)

MOST_SMALL = 16  # segments not half full, before they are merged
DECODERS = 4  # threads
EncodedRow = tuple[Item, np.ndarray, Mapping[str, Any]]  # vectors (H, D), and the further columns


class SegmentRows(NamedTuple):
    """A segment's rows, and which of them count."""

    path: Path
    dataset: Dataset
    alive: Sequence[int]


def stamps(dataset: Dataset) -> list[tuple[str, str]]:
    """Return image id and stamp of each row."""
    table = dataset.select_columns(["image_id", "stamp"]).with_format("arrow")[:]
    return list(zip(table["image_id"].to_pylist(), table["stamp"].to_pylist(), strict=True))


def find_loose(directory: Path, before: Manifest | None) -> list[Path]:
    """Find the segments that no manifest knows: what shares wrote, and a run that was killed."""
    known = [directory / segment.file for segment in before.segments] if before else []
    return sorted(set((directory / SEGMENTS).glob("*.arrow")) - set(known))


def take_up(
    directory: Path,
    layout: Layout,
    before: Manifest | None,
    loose: Sequence[Path],
    items: Mapping[str, Item],
    images: Images,
) -> tuple[list[SegmentRows], list[LeftOut]]:
    """Take up what is present already of `items`, first of the index as it was, then of `loose` segments.

    Where a row or a reason is there twice, the first counts. Reasons that may pass are not taken up.
    """
    sound = [directory / each.file for each in (before.segments if before else ()) if is_sound(directory, each)]
    taken: set[str] = set()
    parts, left_out = [], list(before.left_out) if before else []
    for path in [*sound, *loose]:
        opened = open_segment(path, layout)
        if opened is None:
            continue
        dataset, reasons = opened
        alive = []
        for row, (image_id, stamp) in enumerate(stamps(dataset)):
            if image_id not in taken and image_id in items and images.recognises(items[image_id], stamp):
                taken.add(image_id)
                alive.append(row)
        parts.append(SegmentRows(path, dataset, alive))
        left_out += reasons
    kept = {
        each.image_id: each
        for each in left_out
        if not each.again and each.image_id in items and items[each.image_id].stamp == each.stamp
    }
    return parts, [each for image_id, each in kept.items() if image_id not in taken]


def is_sound(directory: Path, segment: Segment) -> bool:
    """Tell whether a file of the index is as it was written; what is wrong with it is told in the log."""
    try:
        require_whole(directory, segment)
    except ValueError as error:
        logger.warning("%s", error)
        return False
    return True


@dataclass(frozen=True)
class Writer:
    """Writer of segments, by a model, into an index of one layout."""

    directory: Path
    layout: Layout
    model: DualEncoder
    processor: Any
    rows_per_segment: int

    def encoded(
        self, images: Images, chunks: Mapping[int, Sequence[Item]], batch_size: int, progress: bool
    ) -> Iterator[tuple[SegmentRows, list[LeftOut]]]:
        """Yield segment by segment, by their numbers, each written before it is given, with what is left out of it.

        An interrupted one is written as far as it was encoded, for the next run to take up.
        """
        total = sum(map(len, chunks.values()))
        with tqdm(total=total, desc="images", disable=not progress) as bar, ThreadPoolExecutor(DECODERS) as pool:
            for number, chunk in chunks.items():
                rows: list[EncodedRow] = []
                left_out: list[LeftOut] = []
                try:
                    for first in range(0, len(chunk), batch_size):
                        batch = chunk[first : first + batch_size]
                        loaded = list(pool.map(lambda item: self._load(images, item), batch))
                        done, unread = self._encode([item for item, _ in loaded], [image for _, image in loaded])
                        rows += [(item, vectors, images.columns(item.image_id)) for item, vectors in done]
                        left_out += unread
                        bar.update(len(batch))
                except KeyboardInterrupt:
                    if rows:
                        self._written(make_table(self.layout, rows), left_out, number)
                    raise
                yield self._written(make_table(self.layout, rows), left_out, number), left_out

    def chunks(self, todo: Sequence[Item], first: int) -> dict[int, Sequence[Item]]:
        """Cut what is to be encoded into segments, by their numbers from `first` on."""
        size = self.rows_per_segment
        return {first + start // size: todo[start : start + size] for start in range(0, len(todo), size)}

    def holds(self, number: int, chunk: Sequence[Item], images: Images) -> bool:
        """Tell whether a segment of this number has these images, as they are now."""
        path, items = self.directory / SEGMENTS / f"{number:08d}.arrow", {item.image_id: item for item in chunk}
        opened = open_segment(path, self.layout) if path.is_file() else None
        if opened is None:
            return False
        found = dict(stamps(opened[0]))
        return {*found, *(each.image_id for each in opened[1])} == items.keys() and all(
            images.recognises(items[image_id], stamp) for image_id, stamp in found.items()
        )

    def merged(self, parts: Sequence[SegmentRows]) -> list[SegmentRows]:
        """Return the same rows in fewer segments, once too many are not half full; only vectors are copied."""
        small = [part for part in parts if 2 * len(part.alive) < self.rows_per_segment]
        if len(small) <= MOST_SMALL:
            return list(parts)
        table = pa.concat_tables(part.dataset.with_format("arrow")[:].take(part.alive) for part in small)
        size = self.rows_per_segment
        pieces = [table.slice(start, size) for start in range(0, table.num_rows, size)]
        kept = [part for part in parts if not any(part is each for each in small)]
        return kept + [self._written(piece, []) for piece in pieces]

    def restamped(self, part: SegmentRows, items: Mapping[str, Item]) -> SegmentRows:
        """Return the same rows under the present times of their files, so that their contents need not be read again;
        only vectors are copied.
        """
        before = stamps(part.dataset)
        now = [_with_time(stamp, items.get(image_id)) for image_id, stamp in before]
        if all(now[row] == before[row][1] for row in part.alive):
            return part
        moved = _with_column(part.dataset.with_format("arrow")[:], "stamp", now)
        return self._written(moved.take(part.alive), [])

    def renamed(self, part: SegmentRows, rows: Sequence[tuple[Item, int]]) -> Iterator[SegmentRows]:
        """Write rows once more under other names; only vectors are copied."""
        size = self.rows_per_segment
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            table = part.dataset.with_format("arrow")[:].take([row for _, row in some])
            table = _with_column(table, "image_id", [item.image_id for item, _ in some])
            yield self._written(_with_column(table, "stamp", [item.stamp for item, _ in some]), [])

    def _load(self, images: Images, item: Item) -> tuple[Item, Image.Image | LeftOut]:
        """Return an image, and its item with the stamp that the index is to keep."""
        try:
            contents = images.read(item.place)
            # Made small at once, so that a batch of large photos is never held in full size.
            image = self.processor.resized(read_image(contents))
        except UnreadableImageError as error:
            return item, LeftOut(item.image_id, item.stamp, str(error), again=False)
        except OSError as error:
            return item, LeftOut(item.image_id, item.stamp, f"{type(error).__name__}: {error}", again=True)
        return item._replace(stamp=images.stamp(item, contents)), image

    def _encode(
        self, batch: Sequence[Item], loaded: Sequence[Image.Image | LeftOut]
    ) -> tuple[list[tuple[Item, np.ndarray]], list[LeftOut]]:
        readable = [(item, image) for item, image in zip(batch, loaded, strict=True) if not isinstance(image, LeftOut)]
        left_out = [each for each in loaded if isinstance(each, LeftOut)]
        done = []
        if readable:
            fused = self.layout.vectors == FUSED_ONLY
            loaded_images = [image for _, image in readable]
            found = embed_each(self.model, self.processor, loaded_images, fused=fused, width=self.layout.width)
            for (item, _), vectors in zip(readable, found, strict=True):
                if isinstance(vectors, str):
                    left_out.append(LeftOut(item.image_id, item.stamp, vectors, again=False))
                else:
                    done.append((item, vectors))
        return done, left_out

    def _written(self, table: pa.Table, left_out: Sequence[LeftOut], number: int | None = None) -> SegmentRows:
        number = free_number(self.directory) if number is None else number
        path = write_segment(self.directory, number, self.layout, table, left_out)
        opened = open_segment(path, self.layout)
        assert opened is not None
        return SegmentRows(path, opened[0], list(range(table.num_rows)))


def _with_time(stamp: str, item: Item | None) -> str:
    """Return a stamp of a file, its size and time and the hash of its contents, with the file's present time."""
    facts, _, digest = stamp.rpartition(" ")
    return stamp if item is None or not facts or item.stamp == stamp else f"{item.stamp} {digest}"


def contents_of(stamp: str) -> str:
    """Return the hash of the contents, of stamps that have one."""
    return stamp.rpartition(" ")[2] if stamp.count(" ") > 1 else stamp


def _with_column(table: pa.Table, name: str, values: Sequence[str]) -> pa.Table:
    """Return a table with other values in a column."""
    place = table.column_names.index(name)
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(values, field.type))


def make_table(layout: Layout, rows: Sequence[EncodedRow]) -> pa.Table:
    """Return encoded rows as a segment holds them."""
    schema = layout.features.arrow_schema
    columns: dict[str, pa.Array] = {
        "image_id": pa.array([item.image_id for item, _, _ in rows], pa.string()),
        "stamp": pa.array([item.stamp for item, _, _ in rows], pa.string()),
    }
    for name in layout.columns:
        columns[name] = pa.array([further[name] for _, _, further in rows], schema.field(name).type)
    for place, name in enumerate(layout.vector_names):
        flat = np.concatenate([vectors[place] for _, vectors, _ in rows]) if rows else np.zeros(0, np.float32)
        columns[f"{VECTOR}{name}"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), layout.width)
    return pa.table(columns, schema=schema)
