# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Index on disk: segments of rows that never change, and the manifest that says which of them count.

    index.json             checkpoint, columns, segments with their dead rows, what was left out
    segments/*.arrow       image ids, stamps, columns and vectors; `datasets.Dataset.from_file` opens one
    neighbours/*.faiss     one for each kind of vector, if the look-up is approximate or reads smaller vectors
    captions.safetensors   vectors of captions that the page keeps

The manifest is replaced in one step, so a reader sees the index before or after a change. Segments that no manifest
knows yet are what a killed run had finished, and the next run takes them up.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from ..locks import InUseError
from ..sharding import SHARD_LOCK, hold_whole
from ..storage import (
    PARTIAL,
    changed_files,
    checksum,
    parse_json,
    require_own_folder,
    shown,
    write_atomically,
    write_json,
)
from ..words import shorten

FORMAT = 1
MANIFEST, LOCK, SEGMENTS, NEIGHBOURS = "index.json", ".lock", "segments", "neighbours"
CAPTION_VECTORS = "captions.safetensors"  # the page's, in the folder of its index
VECTOR = "vector."  # before the name of a column of vectors
BRANCHES, FUSED_ONLY = "branches", "fused"
VECTORS = (BRANCHES, FUSED_ONLY)
EXACT = "exact"  # look-up that reads every vector
STORED_LOOKUPS = (EXACT, "ivf", "hnsw")
FLOAT32, FLOAT16, INT8, BINARY = PRECISIONS = ("float32", "float16", "int8", "binary")
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
    """Properties that all rows of an index share.

    Args:
        checkpoint: fingerprint of what made the vectors.
        perspectives: the names of the model's branches.
        width: Dimensions of a vector: D, or as many of the first as are kept.
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
        """Features of a segment."""
        vectors = {f"{VECTOR}{name}": List(Value("float32"), length=self.width) for name in self.vector_names}
        return Features({"image_id": Value("string"), "stamp": Value("string"), **self.further, **vectors})

    @property
    def further(self) -> Features:
        """Features of the columns by which to filter."""
        return Features.from_dict(dict(self.columns))

    @property
    def key(self) -> str:
        """Hash of the layout, shared by segments that may stand in one index."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The index as a whole; see `Layout`.

    Args:
        model: the checkpoint's name, for people.
        origin: Source of what was indexed.
        lookup: `exact`, `ivf` or `hnsw`.
        precision: Form of the numbers that a look-up reads; exact scores of the segments' own vectors decide.
        recall: Share of the 10 nearest that the look-up proposes, as it was measured when it was built.
        segments: Segments in the order in which rows are numbered.
        neighbours: File of the approximate index and its bytes, by kind of vector.
        left_out: images that did not decode or could not be read, and why.
        reading: Rules by which images were read (`READING`); earlier versions did not say.
    """

    layout: Layout
    model: str
    origin: Mapping[str, str]
    lookup: str
    segments: Sequence[Segment]
    neighbours: Mapping[str, Segment]
    left_out: Sequence[LeftOut]
    precision: str = FLOAT32
    recall: float | None = None
    reading: int = 0

    @property
    def num_images(self) -> int:
        return sum(segment.rows - len(segment.dead) for segment in self.segments)


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the lock by which one process at a time changes an index, and nobody encodes a share of it.

    Raises:
        InUseError: another one does.
    """
    try:
        with hold_whole(directory, wait=0.0):
            yield
    except InUseError as error:
        raise InUseError(f"Another process is indexing into {directory}: {error}") from error


def read_index_manifest(directory: str | Path) -> Manifest:
    """Read what the index holds.

    Raises:
        ValueError: no index, a damaged one, or one of another format.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        state = "a half-built index" if (path.parent / SEGMENTS).is_dir() else "no index"
        raise ValueError(f"{directory} holds {state}. Run the indexing (again): it goes on where it stopped.")
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
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


def find_index_manifest(directory: str | Path) -> Manifest | None:
    """Read what the index of a folder holds, if there is one.

    Raises:
        ValueError: a damaged one, or one of another format.
    """
    return read_index_manifest(directory) if (Path(directory) / MANIFEST).is_file() else None


def require_layout(manifest: Manifest, layout: Layout, directory: Path) -> None:
    """Raise `ValueError` where an index is not what this checkpoint, these vectors, columns and width would make."""
    found = manifest.layout
    for name, told in (("vectors", "vectors"), ("columns", "columns"), ("checkpoint", ""), ("width", "dimensions")):
        if getattr(found, name) == getattr(layout, name):
            continue
        if name == "checkpoint":
            raise ValueError(
                f"{directory} was made by another checkpoint ({manifest.model or 'without a name'}, "
                f"{found.checkpoint[:12]}; this one is {layout.checkpoint[:12]}): its vectors mean nothing to it. "
                f"Load that checkpoint with its own processor and dtype, or index into another directory. To encode "
                f"all images anew while the index answers, run `holistic-clip search index` with --rebuild "
                f"(`rebuild=True`)."
            )
        raise ValueError(
            f"{directory} was made with {told}={getattr(found, name)!r}, now {getattr(layout, name)!r} is asked for. "
            f"Ask for the same, index into another directory, or add --rebuild (`rebuild=True` in Python)."
        )


def write_index_manifest(directory: Path, manifest: Manifest) -> None:
    """Make the index what `manifest` says, in one step."""
    write_json(directory / MANIFEST, {"format": FORMAT, **asdict(manifest)}, indent=1)
    sync_directory(directory)


def _manifest_from(found: Mapping[str, Any]) -> Manifest:
    for each in [*found["segments"], *found["neighbours"].values()]:
        if not _FILE.fullmatch(each["file"]):
            raise ValueError(
                f"The manifest names {shown(each['file'])}, which is not a file of an index. Index again."
            )
        dead = each.get("dead", [])
        if not all(map(_is_count, (each["rows"], each["bytes"], *dead))) or max(dead, default=-1) >= each["rows"]:
            raise TypeError(f"{each['file']} has {shown(each)}")
    layout = found["layout"]
    if not _is_count(layout["width"]) or not layout["width"] or layout["vectors"] not in VECTORS:
        raise TypeError(f"the vectors are {shown(layout)}")
    if found["lookup"] not in STORED_LOOKUPS:
        raise TypeError(f"the look-up is {shown(found['lookup'])}")
    # Earlier versions kept half precision for every approximate look-up.
    precision = found.get("precision", FLOAT32 if found["lookup"] == EXACT else FLOAT16)
    recall = found.get("recall")
    if precision not in PRECISIONS or not (recall is None or (isinstance(recall, float) and 0 <= recall <= 1)):
        raise TypeError(f"the precision is {shown(precision)} and the recall {shown(recall)}")
    reasons = [text for each in found["left_out"] for text in each[:3]]
    if not all(isinstance(text, str) for text in (*layout["perspectives"], *found["origin"].values(), *reasons)):
        raise TypeError("a name is not a text")
    fields = {name: found[name] for name in ("model", "origin", "lookup")}
    folder_of(found["origin"])  # or what its kind needs is missing
    if not isinstance(found["layout"]["checkpoint"], str):
        raise TypeError("the checkpoint is not a text")
    return Manifest(
        layout=Layout(**found["layout"]),
        segments=[Segment(**each) for each in found["segments"]],
        neighbours={name: Segment(**each) for name, each in found["neighbours"].items()},
        left_out=[LeftOut(*each) for each in found["left_out"]],
        precision=precision,
        recall=recall,
        reading=found.get("reading", 0),
        **fields,
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def sync_directory(directory: Path) -> None:
    """Make the names in it last through a loss of power."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


logger = logging.getLogger(__name__)

_OPENINGS = 5
# All that indexing writes. Nothing else in its folder is ever removed.
_OWN = re.compile(
    rf"{re.escape(LOCK)}|{SHARD_LOCK.pattern}|{re.escape(MANIFEST)}|{re.escape(CAPTION_VECTORS)}"
    rf"|{SEGMENTS}/[0-9]{{8}}\.arrow|{NEIGHBOURS}/[0-9]{{8}}-[0-9]+\.faiss"
    rf"|(?:{SEGMENTS}/|{NEIGHBOURS}/)?{PARTIAL.pattern}"
)
_ABOUT = b"holistic_clip_index"


def free_number(directory: Path) -> int:
    """Return the number of the next segment. None is used twice: readers may have the files open."""
    stems = [path.stem for path in (directory / SEGMENTS).glob("*.arrow")]
    return max((int(stem) for stem in stems if stem.isdecimal()), default=-1) + 1


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
    """Return the size and hash that `open_segment` compares a file with."""
    name = path.relative_to(directory).as_posix()
    return Segment(name, rows, path.stat().st_size, checksum(path), list(dead))


def require_whole(directory: Path, segment: Segment, *, read: bool = False) -> Path:
    """Return the segment's file, whose contents are held against their hash: once on a machine, or with `read` anew.

    Raises:
        ValueError: it is missing, or not as it was written.
    """
    path = directory / segment.file
    size = path.stat().st_size if path.is_file() else None
    problem = "" if size == segment.bytes else "missing" if size is None else f"{size} bytes long, not {segment.bytes}"
    if not problem and (checksum(path) != segment.sha256 if read else changed_files({path: segment.sha256})):
        problem = "changed since it was written"
    if problem:
        raise ValueError(f"{path} is {problem}. Run the indexing again: what it held is encoded anew.")
    return path


def open_segment(path: Path, layout: Layout) -> tuple[Dataset, list[LeftOut]] | None:
    """Return the rows, memory-mapped, and what was left out between them; `None` if damaged or of another layout."""
    try:
        opened = _open_checked(path, layout)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged and is left aside: %s", path, shorten(str(error)))
        return None
    return opened


def _open_checked(path: Path, layout: Layout) -> tuple[Dataset, list[LeftOut]] | None:
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        schema = reader.schema
    about = json.loads((schema.metadata or {}).get(_ABOUT, b"{}"))
    if about.get("key") != layout.key:
        return None
    if not schema.equals(layout.features.arrow_schema, check_metadata=False):
        raise ValueError("its columns are not those of the index")
    dataset = Dataset.from_file(str(path))
    if dataset.features != layout.features:
        raise ValueError("its columns are described as others than they are")
    _require_sound(dataset.data.table, layout)
    return dataset, [LeftOut(*each) for each in about["left_out"]]


def _require_sound(table: pa.Table, layout: Layout) -> None:
    """Refuse columns that would be read beyond their end, or as other rows, if one number in the file is wrong."""
    names = {f"{VECTOR}{name}" for name in layout.vector_names}
    table.drop_columns(sorted(names)).validate(full=True)  # offsets within the data, in order, texts in UTF-8
    table.select(sorted(names)).validate()
    for name in ("image_id", "stamp", *names):
        for chunk in table.column(name).chunks:
            is_vector = name in names
            if chunk.null_count or (is_vector and chunk.flatten().null_count):
                raise ValueError(f"the column {name} has gaps")
            if is_vector and len(chunk.flatten()) != len(chunk) * layout.width:
                raise ValueError(f"the column {name} has vectors of another length")


def require_finite(directory: Path, segment: Segment, dataset: Dataset, layout: Layout) -> None:
    """Refuse a segment with a vector that is not finite; all of them are read.

    Raises:
        ValueError: one has a number that is NaN, infinite or absurdly large.
    """
    for name in layout.vector_names:
        for block in vectors_of(dataset, name):
            flat = block.reshape(-1)
            with np.errstate(over="ignore"):
                is_finite = np.isfinite(np.dot(flat, flat))
            if not is_finite:
                raise ValueError(_damage(directory, segment))


def _damage(directory: Path, segment: Segment) -> str:
    return (
        f"{directory / segment.file} is damaged. Run the indexing again: what it held is encoded anew, and the rest "
        "is taken up."
    )


def open_whole(directory: Path) -> tuple[Manifest, list[Dataset]]:
    """Return the index and the rows of each of its segments.

    Raises:
        ValueError: no index, or one that is torn.
    """
    for _ in range(_OPENINGS):
        manifest = read_index_manifest(directory)
        try:
            return manifest, [_open_listed(directory, manifest, segment) for segment in manifest.segments]
        except ValueError:
            # A run of indexing may have replaced manifest and segments in between.
            if read_index_manifest(directory) == manifest:
                raise
    raise ValueError(f"{directory} changed {_OPENINGS} times while it was opened. Try again when indexing is done.")


def open_sound(directory: Path) -> tuple[Manifest, list[Dataset], list[str]]:
    """Return of an index what is whole, and for each damaged file the sentence that it would be refused with.

    If anything is damaged, the look-up is exact, since files of faiss number the rows of all segments.

    Raises:
        ValueError: no index, a damaged manifest, or no segment that is whole.
    """
    manifest, damaged, sound = read_index_manifest(directory), list[str](), []
    try:
        for segment in manifest.neighbours.values():
            require_whole(directory, segment)
        return *open_whole(directory), damaged
    except ValueError as error:
        damaged += [str(error)] * bool(manifest.neighbours)
    manifest = replace(manifest, neighbours={}, lookup=EXACT, precision=FLOAT32)
    for segment in manifest.segments:
        try:
            sound.append((segment, _open_listed(directory, manifest, segment)))
        except ValueError as error:
            damaged.append(str(error))
    if not sound:
        raise ValueError(damaged[-1])
    segments, datasets = zip(*sound, strict=True)
    return replace(manifest, segments=list(segments)), list(datasets), list(dict.fromkeys(damaged))


def _open_listed(directory: Path, manifest: Manifest, segment: Segment) -> Dataset:
    """Open a segment of the manifest, or raise `ValueError` that names it."""
    opened = open_segment(require_whole(directory, segment), manifest.layout)
    if opened is None or len(opened[0]) != segment.rows:
        raise ValueError(_damage(directory, segment))
    if not manifest.neighbours:  # else only what is proposed is read
        require_finite(directory, segment, opened[0], manifest.layout)
    return opened[0]


def verify_index(directory: str | Path) -> int:
    """Read all files of an index and hold them against their hashes; how many these are.

    Raises:
        ValueError: no index, or a file that is missing or was changed.
    """
    manifest = read_index_manifest(Path(directory))
    files = [*manifest.segments, *manifest.neighbours.values()]
    for file in files:
        require_whole(Path(directory), file, read=True)
    return len(files)


def vectors_of(dataset: Dataset, name: str) -> list[np.ndarray]:
    """Return the blocks (rows, D) of one column of vectors, on the pages of the file itself."""
    chunks = dataset.data.column(f"{VECTOR}{name}").chunks
    width = dataset.features[f"{VECTOR}{name}"].length
    return [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, width) for chunk in chunks]


def folder_of(origin: Mapping[str, str]) -> Path | None:
    """Return the folder of what was indexed, if that is a folder of images or a corpus whose folder is known."""
    path = Path(origin["root"] if origin["kind"] == "folder" else origin["name"])
    return path if path.is_absolute() else None


def is_writable(directory: Path) -> bool:
    """Tell whether a folder may be written or, if it does not exist, made."""
    return os.access(next(each for each in (directory, *directory.absolute().parents) if each.exists()), os.W_OK)


def require_index_folder(directory: Path) -> None:
    """Refuse to index into a folder that holds anything but an index, finished or half-built.

    Raises:
        ValueError: somebody else's files lie there.
    """
    path = directory / MANIFEST
    if path.is_file():
        with suppress(UnicodeDecodeError, json.JSONDecodeError):
            found = parse_json(path.read_bytes())
            if isinstance(found, dict) and "format" in found:
                return
    # The manifest's name is anybody's. Of a damaged one, beside what indexing wrote, `read_index_manifest` says what
    # to do.
    has_begun = (directory / LOCK).is_file() or any(map(_is_segment, directory.glob(f"{SEGMENTS}/*.arrow")))

    def is_ours(name: str) -> bool:
        return bool(_OWN.fullmatch(name)) and (name != MANIFEST or has_begun)

    require_own_folder(directory, is_ours, holds="an index")


def _is_segment(path: Path) -> bool:
    """Tell a segment that indexing wrote, damaged ones apart, by what its file says of itself."""
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            return _ABOUT in (reader.schema.metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


def remove_unlisted(directory: Path, manifest: Manifest) -> None:
    """Delete files of ours that the manifest does not know, remains of killed processes among them."""
    listed = {each.file for each in [*manifest.segments, *manifest.neighbours.values()]}
    for folder in (SEGMENTS, NEIGHBOURS):
        for path in (directory / folder).glob("*"):
            name = f"{folder}/{path.name}"
            if name not in listed and _OWN.fullmatch(name) and path.is_file():
                path.unlink()
