# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""An index on disk: segments of rows that never change, and the manifest that says which of them count.

    index.json             checkpoint, columns, segments with their dead rows, what was left out
    segments/*.arrow       image ids, stamps, columns and vectors; `datasets.Dataset.from_file` opens one
    neighbours/*.faiss     one for each kind of vector, where the look-up is approximate

The manifest is replaced in one step, so a reader sees the index before or after a change. Segments that no manifest
knows yet are what a killed run had finished; the next run takes them up.
"""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..atomic import PARTIAL, require_own_folder, write_atomically
from .manifest import (
    MANIFEST,
    NEIGHBOURS,
    SEGMENTS,
    VECTOR,
    Layout,
    LeftOut,
    Manifest,
    Segment,
    read_manifest,
    sync_directory,
)

logger = logging.getLogger(__name__)

_OPENINGS = 5
# All that indexing writes. Nothing else in its folder is ever removed.
_OWN = re.compile(
    rf"\.lock|{re.escape(MANIFEST)}|{SEGMENTS}/[0-9]{{8}}\.arrow|{NEIGHBOURS}/[0-9]{{8}}-[0-9]+\.faiss"
    rf"|(?:{SEGMENTS}/|{NEIGHBOURS}/)?{PARTIAL.pattern}"
)
_ABOUT = b"holistic_clip_index"


def write_segment(directory: Path, number: int, layout: Layout, table: pa.Table, left_out: Sequence[LeftOut]) -> Path:
    """Write rows in one batch, and beside them what was left out between them."""
    about = {"key": layout.key, "left_out": left_out}
    schema = layout.features.arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), _ABOUT: json.dumps(about).encode()})
    path = directory / SEGMENTS / f"{number:08d}.arrow"
    path.parent.mkdir(exist_ok=True)
    with write_atomically(path) as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in table.cast(schema).combine_chunks().to_batches():
            writer.write_batch(batch)
    sync_directory(path.parent)
    return path


def describe_file(directory: Path, path: Path, rows: int, dead: Sequence[int] = ()) -> Segment:
    """With the size and hash that `open_segment` holds it against."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = path.relative_to(directory).as_posix()
    return Segment(name, rows, path.stat().st_size, digest, list(dead))


def require_whole(directory: Path, segment: Segment, *, read: bool = False) -> Path:
    """The segment's file; with `read`, its contents are held against their hash.

    Raises:
        ValueError: it is missing, or not as it was written.
    """
    path = directory / segment.file
    size = path.stat().st_size if path.is_file() else None
    problem = "" if size == segment.bytes else "missing" if size is None else f"{size} bytes long, not {segment.bytes}"
    if not problem and read and describe_file(directory, path, segment.rows).sha256 != segment.sha256:
        problem = "changed since it was written"
    if problem:
        raise ValueError(
            f"{path} is {problem}. Delete it if it is there, and run the indexing again: what it held is encoded anew."
        )
    return path


def open_segment(path: Path, layout: Layout) -> tuple[Dataset, list[LeftOut]] | None:
    """The rows, memory-mapped, and what was left out between them; `None` if damaged or of another layout."""
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            about = json.loads((reader.schema.metadata or {}).get(_ABOUT, b"{}"))
        if about.get("key") != layout.key:
            return None
        dataset = Dataset.from_file(str(path))
    except (pa.ArrowInvalid, OSError, json.JSONDecodeError) as error:
        logger.warning("%s is damaged and is left aside: %s", path, error)
        return None
    return dataset, [LeftOut(*each) for each in about["left_out"]]


def open_whole(directory: Path) -> tuple[Manifest, list[Dataset]]:
    """The index and the rows of each of its segments.

    Raises:
        ValueError: no index, or one that is torn.
    """
    for _ in range(_OPENINGS):
        manifest = read_manifest(directory)
        try:
            opened = [
                open_segment(require_whole(directory, segment), manifest.layout) for segment in manifest.segments
            ]
        except ValueError:
            # A run of indexing may have replaced manifest and segments in between.
            if read_manifest(directory) == manifest:
                raise
            continue
        datasets = [each[0] for each in opened if each is not None]
        if [len(each) for each in datasets] == [segment.rows for segment in manifest.segments]:
            return manifest, datasets
        raise ValueError(
            f"Segments of {directory} are damaged. Run the indexing again: what they held is encoded anew."
        )
    raise ValueError(f"{directory} changed {_OPENINGS} times while it was opened. Try again when indexing is done.")


def verify_index(directory: str | Path) -> int:
    """Read all files of an index and hold them against their hashes; how many these are.

    Raises:
        ValueError: no index, or a file that is missing or was changed.
    """
    manifest = read_manifest(Path(directory))
    files = [*manifest.segments, *manifest.neighbours.values()]
    for file in files:
        require_whole(Path(directory), file, read=True)
    return len(files)


def vectors_of(dataset: Dataset, name: str) -> list[np.ndarray]:
    """Blocks (rows, D) of one column of vectors, on the pages of the file itself."""
    chunks = dataset.data.column(f"{VECTOR}{name}").chunks
    width = dataset.features[f"{VECTOR}{name}"].length
    return [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, width) for chunk in chunks]


def require_index_folder(directory: Path) -> None:
    """Refuse to index into a folder that holds anything but an index, finished or half-built.

    Raises:
        ValueError: somebody else's files lie there.
    """
    if not (directory / MANIFEST).is_file():
        require_own_folder(directory, lambda path: bool(_OWN.fullmatch(path)), holds="an index")


def remove_unlisted(directory: Path, manifest: Manifest) -> None:
    """Delete files of ours that the manifest does not know, remains of killed processes among them."""
    listed = {each.file for each in [*manifest.segments, *manifest.neighbours.values()]}
    for folder in (SEGMENTS, NEIGHBOURS):
        for path in (directory / folder).glob("*"):
            name = f"{folder}/{path.name}"
            if name not in listed and _OWN.fullmatch(name) and path.is_file():
                path.unlink()
