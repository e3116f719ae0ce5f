# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Near-duplicates of a corpus: which images are one picture, and which of them lie on both sides of a split."""

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Image
from tqdm.auto import tqdm

from ..images.decoding import UnreadableImageError, map_ahead
from ..images.files import read_image_column
from ..images.likeness import RULES, SIDE, find_groups, read_thumbnail
from ..locks import LOCK, hold_lock
from ..storage import parse_json, write_atomically, write_json
from .build import NEAR_DUPLICATES, THUMBNAILS, digest_of, load_corpus, read_manifest

_AT_ONCE = 10_000  # thumbnails of a file: what a killed run can lose


@dataclass(frozen=True)
class NearDuplicates:
    """Images of a corpus that are one picture, in groups.

    Args:
        groups: Ids of the images of each group, two or more.
        sides: Side of each image that counts for leaks, such as its split, by image id.
    """

    groups: Sequence[Sequence[str]]
    sides: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_ids(self) -> set[str]:
        """Ids of all images that have a near-duplicate."""
        return {image_id for group in self.groups for image_id in group}

    def among(self, sides: Mapping[str, str]) -> "NearDuplicates":
        """Return the groups as far as they are made of these images, with the side of each."""
        kept = ([image_id for image_id in group if image_id in sides] for group in self.groups)
        return NearDuplicates([group for group in kept if len(group) > 1], sides)

    def beside(self, image_ids: Iterable[str]) -> set[str]:
        """Return the near-duplicates of some images, without these themselves."""
        given = set(image_ids)
        return {each for group in self.groups if not given.isdisjoint(group) for each in group} - given

    def largest(self) -> dict[str, int]:
        """Return the number of images that the largest group has on each side.

        Likeness is handed on from picture to picture, so that a chain of small changes can make one group of most of
        a corpus.
        """
        counts: Counter[str] = Counter()
        for group in self.groups:
            counts |= Counter(self.sides[image_id] for image_id in group)  # the larger of both counts
        return dict(sorted(counts.items()))

    def leaks(self) -> dict[tuple[str, str], int]:
        """Count by two sides the images of the first that have a near-duplicate on the second."""
        counts: Counter[tuple[str, str]] = Counter()
        for group in self.groups:
            found = Counter(self.sides[image_id] for image_id in group)
            counts.update({(here, there): found[here] for here in found for there in found if here != there})
        return dict(sorted(counts.items()))


def sides_of(
    directory: Path, manifest: Mapping[str, Any], column: str, image_ids: Set[str] | None = None
) -> dict[str, str]:
    """Return what a column says of some images or all, as far as a corpus has rows of them; images are not read.

    Raises:
        ValueError: no such column.
    """
    found: dict[str, str] = {}
    for record in manifest["shards"].values():
        with pq.ParquetFile(directory / record["file"]) as file:
            if column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise ValueError(f"`column` is {column!r}; expected one of {names}. Correct it.")
            for batch in file.iter_batches(columns=["image_id", column]):
                pairs = zip(*(batch.column(name).to_pylist() for name in ("image_id", column)), strict=True)
                found.update(pair for pair in pairs if image_ids is None or pair[0] in image_ids)
    return found


class StoredThumbnails:
    """Thumbnails in files, as many as could be made.

    Args:
        paths: Files, each of `_AT_ONCE` images but the last.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [np.load(path, mmap_mode="r") for path in paths]
        self.rows = np.flatnonzero(np.concatenate([file[:, -1] for file in self._files]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        images = self.rows[rows]
        found = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
        for number in np.unique(images // _AT_ONCE):
            here = images // _AT_ONCE == number
            found[here] = self._files[number][images[here] % _AT_ONCE, :-1].reshape(-1, SIDE, SIDE, 3)
        return found


def group_images(
    folder: Path,
    key: str,
    count: int,
    contents: Callable[[int], Iterator[bytes | None]],
    *,
    workers: int | None = None,
    progress: bool = False,
) -> list[np.ndarray]:
    """Find the images that are one picture, and return the numbers of each group in order. A killed run goes on.

    Args:
        folder: Folder for thumbnails until `remove_thumbnails`, 0.8 KB for each image.
        key: Text that stands for all images and their order.
        count: Number of images.
        contents: Function that gives the files of all images from one on, None for those that cannot be read.
        workers: Number of threads that decode images. Default: one for each processor.
        progress: Show how far it is.
    """
    digest, workers = digest_of(f"{key} {RULES}"), workers or os.cpu_count() or 1
    paths = [folder / f"thumbnails-{number:05}-{digest}.npy" for number in range(-(-count // _AT_ONCE))]
    done = next((number for number, path in enumerate(paths) if not path.is_file()), len(paths)) * _AT_ONCE
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc="thumbnails", total=count, initial=min(done, count), disable=not progress) as bar,
    ):
        made = map_ahead(pool, 2 * workers, _thumbnail_row, contents(done))
        for path in paths[done // _AT_ONCE :]:
            rows = []
            for row in islice(made, _AT_ONCE):
                rows.append(row)
                bar.update()
            with write_atomically(path) as file:
                np.save(file, np.stack(rows))
    stored = StoredThumbnails(paths)
    return [stored.rows[group] for group in find_groups(stored, progress=progress)]


def remove_thumbnails(folder: Path) -> None:
    """Remove the thumbnails of any images that `group_images` left."""
    for path in folder.glob("thumbnails-*"):
        if THUMBNAILS.fullmatch(path.name):
            path.unlink()


def _thumbnail_row(contents: bytes | None) -> np.ndarray:
    """Return a thumbnail and, behind it, 1, or zeros for what cannot be read."""
    row = np.zeros(SIDE * SIDE * 3 + 1, np.uint8)
    try:
        if contents is not None:
            row[:-1], row[-1] = read_thumbnail(contents).reshape(-1), 1
    except UnreadableImageError:
        pass
    return row


def write_near_duplicates(directory: Path, fingerprint: str, found: NearDuplicates) -> None:
    """Keep the near-duplicates of a corpus of this fingerprint beside it."""
    write_json(directory / NEAR_DUPLICATES, {"rules": RULES, "fingerprint": fingerprint, "groups": found.groups})


def find_near_duplicates(
    directory: str | Path, *, workers: int | None = None, progress: bool = False
) -> NearDuplicates:
    """Return the near-duplicates of a corpus; they are found once and kept beside it, if it may be written.

    Args:
        directory: Folder of the corpus.
        workers: Number of threads that decode images. Default: one for each processor.
        progress: Show how far it is.

    Raises:
        ValueError: as `load_corpus`.
    """
    directory = Path(directory)
    if (known := _read_known(directory)) is not None:
        return known
    corpus = load_corpus(directory).select_columns(["image_id", "image"]).cast_column("image", Image(decode=False))
    fingerprint = read_manifest(directory)["fingerprint"]
    find = partial(_find, corpus, fingerprint, workers=workers, progress=progress)
    if not os.access(directory, os.W_OK):
        with tempfile.TemporaryDirectory() as scratch:
            return find(Path(scratch))
    with hold_lock(directory / LOCK, wait=math.inf):
        if (known := _read_known(directory)) is None:
            known = find(directory)
            write_near_duplicates(directory, fingerprint, known)
            remove_thumbnails(directory)
        return known


def _find(corpus: Dataset, fingerprint: str, folder: Path, **options: Any) -> NearDuplicates:
    def contents(start: int) -> Iterator[bytes | None]:
        for number in range(start, len(corpus)):
            try:
                yield read_image_column(corpus[number]["image"])
            except OSError:
                yield None

    groups = group_images(folder, fingerprint, len(corpus), contents, **options)
    return NearDuplicates([corpus[group.tolist()]["image_id"] for group in groups])


def _read_known(directory: Path) -> NearDuplicates | None:
    """Read what was found of this very corpus by these very rules, or None."""
    try:
        found = parse_json((directory / NEAR_DUPLICATES).read_bytes())
        fits = found["rules"] == RULES and found["fingerprint"] == read_manifest(directory)["fingerprint"]
        groups = [[str(image_id) for image_id in group] for group in found["groups"]]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        return None
    return NearDuplicates(groups) if fits else None
