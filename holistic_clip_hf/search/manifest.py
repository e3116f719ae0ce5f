# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What an index says of itself: its layout, its files, what was left out; replaced in one step."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Features, List, Value
from filelock import FileLock, Timeout

from ..atomic import write_atomically

FORMAT = 1
MANIFEST, SEGMENTS, NEIGHBOURS = "index.json", "segments", "neighbours"
VECTOR = "vector."  # before the name of a column of vectors
BRANCHES, FUSED_ONLY = "branches", "fused"
VECTORS = (BRANCHES, FUSED_ONLY)
_FILE = re.compile(rf"({SEGMENTS}|{NEIGHBOURS})/[\w-]+\.(arrow|faiss)")


class LeftOut(NamedTuple):
    """An image that did not become a row: `again` if reading it may succeed another time."""

    image_id: str
    stamp: str
    reason: str
    again: bool


@dataclass(frozen=True)
class Segment:
    """A file of the index, and which of its rows no longer count."""

    file: str
    rows: int
    bytes: int
    sha256: str
    dead: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What all rows of an index have in common.

    Args:
        checkpoint: fingerprint of what made the vectors.
        perspectives: the names of the model's branches.
        width: D, of a vector.
        vectors: `"branches"`, H vectors for an image, or `"fused"`, one.
        columns: further columns, by which to filter, as `datasets` describes them.
    """

    checkpoint: str
    perspectives: Sequence[str]
    width: int
    vectors: str
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vector_names(self) -> list[str]:
        return list(self.perspectives) if self.vectors == BRANCHES else [FUSED_ONLY]

    @property
    def features(self) -> Features:
        """Of a segment."""
        vectors = {f"{VECTOR}{name}": List(Value("float32"), length=self.width) for name in self.vector_names}
        return Features({"image_id": Value("string"), "stamp": Value("string"), **self.further, **vectors})

    @property
    def further(self) -> Features:
        """Of the columns by which to filter."""
        return Features.from_dict(dict(self.columns))

    @property
    def key(self) -> str:
        """Of segments that may stand in one index."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The index as a whole; see `Layout`.

    Args:
        model: the checkpoint's name, for people.
        origin: what was indexed.
        lookup: `exact`, `ivf` or `hnsw`.
        segments: in the order in which rows are numbered.
        neighbours: by kind of vector, the file of its approximate index and its bytes.
        left_out: images that did not decode or could not be read, and why.
    """

    layout: Layout
    model: str
    origin: Mapping[str, str]
    lookup: str
    segments: Sequence[Segment]
    neighbours: Mapping[str, Segment]
    left_out: Sequence[LeftOut]

    @property
    def num_images(self) -> int:
        return sum(segment.rows - len(segment.dead) for segment in self.segments)


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """One process at a time changes an index.

    Raises:
        TimeoutError: another one does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise TimeoutError(
            f"Another process is indexing into {directory}. Wait until it has finished, or stop it, and run again."
        ) from error


def read_manifest(directory: Path) -> Manifest:
    """What the index holds.

    Raises:
        ValueError: no index, a damaged one, or one of another format.
    """
    path = directory / MANIFEST
    if not path.is_file():
        state = "a half-built index" if (directory / SEGMENTS).is_dir() else "no index"
        raise ValueError(f"{directory} holds {state}. Run the indexing (again): it goes on where it stopped.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("format") != FORMAT:
            raise ValueError(
                f"{directory} has format {found.get('format')}; this version reads {FORMAT}. Delete the directory and "
                f"index again."
            )
        return _manifest_from(found)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}). Delete it and run the indexing again: the vectors "
            f"in {SEGMENTS}/ are taken up."
        ) from error


def require_layout(manifest: Manifest, layout: Layout, directory: Path) -> None:
    """Raise `ValueError` where an index is not what this checkpoint, these vectors and columns would make."""
    found = manifest.layout
    for name in ("vectors", "columns"):
        if getattr(found, name) != getattr(layout, name):
            raise ValueError(
                f"{directory} was made with {name}={getattr(found, name)!r}, now {getattr(layout, name)!r} is asked "
                f"for. Ask for the same, or index into another directory."
            )
    if found.checkpoint != layout.checkpoint:
        raise ValueError(
            f"{directory} was made by another checkpoint ({manifest.model or 'without a name'}, "
            f"{found.checkpoint[:12]}; this one is {layout.checkpoint[:12]}): its vectors mean nothing to this one. "
            f"Load that checkpoint with its own processor and dtype, or index into another directory."
        )


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Make the index what `manifest` says, in one step."""
    with write_atomically(directory / MANIFEST) as file:
        file.write(json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1, ensure_ascii=False).encode())
    sync_directory(directory)


def _manifest_from(found: Mapping[str, Any]) -> Manifest:
    for each in [*found["segments"], *found["neighbours"].values()]:
        if not _FILE.fullmatch(each["file"]):
            raise ValueError(f"The manifest names {each['file']!r}, which is no file of an index. Index again.")
    fields = {name: found[name] for name in ("model", "origin", "lookup")}
    return Manifest(
        layout=Layout(**found["layout"]),
        segments=[Segment(**each) for each in found["segments"]],
        neighbours={name: Segment(**each) for name, each in found["neighbours"].items()},
        left_out=[LeftOut(*each) for each in found["left_out"]],
        **fields,
    )


def sync_directory(directory: Path) -> None:
    """Make the names in it last through a loss of power."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
