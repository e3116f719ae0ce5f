# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The segments of an index while it is brought up to date: taken up, added to, merged."""

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

from ..corpus.source import Item
from ..evaluation.encoding import DualEncoder
from ..unreadable import UnreadableImageError
from .embedding import decode, embed_each
from .images import Images
from .manifest import FUSED_ONLY, SEGMENTS, VECTOR, Layout, LeftOut, Manifest
from .store import open_segment, require_whole, write_segment

logger = logging.getLogger(__name__)

MOST_SMALL = 16  # segments not half full, before they are merged
DECODERS = 4  # threads


class Part(NamedTuple):
    """A segment's rows, and which of them count."""

    path: Path
    dataset: Dataset
    alive: Sequence[int]


def stamps(dataset: Dataset) -> list[tuple[str, str]]:
    """Image id and stamp of each row."""
    table = dataset.select_columns(["image_id", "stamp"]).with_format("arrow")[:]
    return list(zip(table["image_id"].to_pylist(), table["stamp"].to_pylist(), strict=True))


def take_up(
    directory: Path, layout: Layout, before: Manifest | None, items: Mapping[str, Item]
) -> tuple[list[Part], list[LeftOut]]:
    """What is there already of `items`: of the index as it was, then of a run that was killed.

    Where a row or a reason is there twice, the first counts. Reasons that may pass are not taken up.
    """
    known = [directory / segment.file for segment in before.segments] if before else []
    loose = sorted(set((directory / SEGMENTS).glob("*.arrow")) - set(known))
    sound = [path for path in known if _is_sound(directory, before, path)]
    taken: set[str] = set()
    parts, left_out = [], list(before.left_out) if before else []
    for path in [*sound, *loose]:
        opened = open_segment(path, layout)
        if opened is None:
            continue
        dataset, reasons = opened
        alive = []
        for row, (image_id, stamp) in enumerate(stamps(dataset)):
            if image_id not in taken and image_id in items and items[image_id].stamp == stamp:
                taken.add(image_id)
                alive.append(row)
        parts.append(Part(path, dataset, alive))
        left_out += reasons
    kept = {
        each.image_id: each
        for each in left_out
        if not each.again and each.image_id in items and items[each.image_id].stamp == each.stamp
    }
    return parts, [each for image_id, each in kept.items() if image_id not in taken]


def _is_sound(directory: Path, before: Manifest | None, path: Path) -> bool:
    segment = next(each for each in (before.segments if before else ()) if directory / each.file == path)
    try:
        require_whole(directory, segment)
    except ValueError as error:
        logger.warning("%s", error)
        return False
    return True


@dataclass(frozen=True)
class Writer:
    """Adds segments, by a model, to an index of one layout."""

    directory: Path
    layout: Layout
    model: DualEncoder
    processor: Any
    rows_per_segment: int

    def encoded(
        self, images: Images, todo: Sequence[Item], batch_size: int, progress: bool
    ) -> Iterator[tuple[Part, list[LeftOut]]]:
        """Segment by segment, each written before it is given, with what is left out of it."""
        with tqdm(total=len(todo), desc="images", disable=not progress) as bar, ThreadPoolExecutor(DECODERS) as pool:
            for start in range(0, len(todo), self.rows_per_segment):
                rows, left_out = [], []
                chunk = todo[start : start + self.rows_per_segment]
                for first in range(0, len(chunk), batch_size):
                    batch = chunk[first : first + batch_size]
                    done, unread = self._encode(batch, list(pool.map(lambda item: _load(images, item), batch)))
                    rows += [(item, vectors, images.columns(item.image_id)) for item, vectors in done]
                    left_out += unread
                    bar.update(len(batch))
                yield self._written(_table(self.layout, rows), left_out), left_out

    def merged(self, parts: Sequence[Part]) -> list[Part]:
        """The same rows in fewer segments, once too many are not half full; only vectors are copied."""
        small = [part for part in parts if 2 * len(part.alive) < self.rows_per_segment]
        if len(small) <= MOST_SMALL:
            return list(parts)
        table = pa.concat_tables(part.dataset.with_format("arrow")[:].take(part.alive) for part in small)
        size = self.rows_per_segment
        pieces = [table.slice(start, size) for start in range(0, table.num_rows, size)]
        kept = [part for part in parts if not any(part is each for each in small)]
        return kept + [self._written(piece, []) for piece in pieces]

    def _encode(
        self, batch: Sequence[Item], loaded: Sequence[Image.Image | LeftOut]
    ) -> tuple[list[tuple[Item, np.ndarray]], list[LeftOut]]:
        readable = [(item, image) for item, image in zip(batch, loaded, strict=True) if not isinstance(image, LeftOut)]
        left_out = [each for each in loaded if isinstance(each, LeftOut)]
        done = []
        if readable:
            fused = self.layout.vectors == FUSED_ONLY
            found = embed_each(self.model, self.processor, [image for _, image in readable], fused=fused)
            for (item, _), vectors in zip(readable, found, strict=True):
                if isinstance(vectors, str):
                    left_out.append(LeftOut(item.image_id, item.stamp, vectors, again=False))
                else:
                    done.append((item, vectors))
        return done, left_out

    def _written(self, table: pa.Table, left_out: Sequence[LeftOut]) -> Part:
        # Names are never used twice: readers of the index as it was may have files open.
        taken = [int(path.stem) for path in (self.directory / SEGMENTS).glob("*.arrow")]
        path = write_segment(self.directory, max(taken, default=-1) + 1, self.layout, table, left_out)
        opened = open_segment(path, self.layout)
        assert opened is not None
        return Part(path, opened[0], list(range(table.num_rows)))


def _load(images: Images, item: Item) -> Image.Image | LeftOut:
    try:
        return decode(images.read(item.place))
    except UnreadableImageError as error:
        return LeftOut(item.image_id, item.stamp, str(error), again=False)
    except OSError as error:
        return LeftOut(item.image_id, item.stamp, f"{type(error).__name__}: {error}", again=True)


def _table(layout: Layout, rows: Sequence[tuple[Item, np.ndarray, Mapping[str, Any]]]) -> pa.Table:
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
