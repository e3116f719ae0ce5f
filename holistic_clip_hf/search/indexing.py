# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Indexing of images: what is new or changed is encoded, what is gone no longer counts, a killed run goes on."""

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Features
from tqdm.auto import tqdm

from ..evaluation.encoding import DualEncoder
from ..evaluation.fingerprints import fingerprint
from ..images.decoding import READING, open_image
from ..images.sources import Images, Item, Skipped
from ..sharding import Shard, hold_shard
from ..storage import require_apart, require_count, require_free_space, require_utf8
from .neighbours import (
    AUTO,
    Neighbours,
    build_neighbours,
    choose_lookup,
    choose_precision,
    estimate_bytes,
    measure_recall,
)
from .segments import SegmentRows, Writer, contents_of, find_loose, is_sound, stamps, take_up
from .store import (
    BRANCHES,
    EXACT,
    FLOAT32,
    FUSED_ONLY,
    VECTORS,
    Layout,
    LeftOut,
    Manifest,
    Segment,
    describe_file,
    find_index_manifest,
    folder_of,
    free_number,
    is_writable,
    lock,
    open_segment,
    remove_unlisted,
    require_index_folder,
    require_layout,
    write_index_manifest,
)

logger = logging.getLogger(__name__)

ROWS_PER_SEGMENT = 2_048


@dataclass(frozen=True)
class IndexReport:
    """Report of an indexing; as a string, all of it for people.

    Args:
        num_images: Number of images in the index now.
        added, changed, removed, kept: images that were new, encoded anew, gone, and as they were.
        left_out: images that are not in the index, and why.
        others: Counts of files that are not images, by ending.
        num_bytes: Size of the index on disk.
        lookup: Way in which vectors are looked up.
        precision: Form of the numbers that a look-up reads.
        recall: Share of the 10 nearest that it proposes, as measured on vectors of the index; `None` if it reads all.
        layout: Layout of the index, by which `SearchIndex` opens it without hashing the weights again.
    """

    num_images: int
    added: int
    changed: int
    removed: int
    kept: int
    left_out: Sequence[LeftOut]
    others: Mapping[str, int]
    num_bytes: int
    lookup: str
    precision: str = FLOAT32
    recall: float | None = None
    layout: Layout | None = None

    def __str__(self) -> str:
        told = "" if self.recall is None else f", {self.precision}, recall@10 {self.recall:.3f}"
        lines = [
            f"{self.num_images:,} images, {self.num_bytes / 1e6:,.1f} MB, {self.lookup}{told}: {self.added:,} new, "
            f"{self.changed:,} changed, {self.removed:,} gone, {self.kept:,} as before; "
            f"{len(self.left_out):,} left out"
        ]
        lines += [f"left out: {each.image_id}: {each.reason}" for each in self.left_out]
        if self.others:
            told = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in self.others.items())
            lines.append(f"ignored, not images: {told}")
        return "\n".join(lines)


def index_images(
    directory: str | Path,
    images: Images,
    model: DualEncoder,
    processor: Any,
    *,
    vectors: str = BRANCHES,
    lookup: str = AUTO,
    precision: str = AUTO,
    dimensions: int | None = None,
    batch_size: int = 64,
    rows_per_segment: int = ROWS_PER_SEGMENT,
    replace: bool = False,
    rebuild: bool = False,
    progress: bool = False,
) -> IndexReport:
    """Make the index in `directory` one of `images`, or bring it up to date.

    Args:
        vectors: Vectors of an image: `"branches"`, H of them, to search by perspective, or `"fused"`, one.
        lookup: Way to look vectors up: `"exact"`, approximate with faiss (`"ivf"`, `"hnsw"`), or `"auto"`, exact up to
            a million images.
        precision: Form of the numbers that a look-up reads and that memory has to hold: `"float32"`, `"float16"`,
            `"int8"` or `"binary"`. All but float32 need faiss, and propose rows; the float32 vectors of these, which
            stay on disk, decide. `"auto"` is what the index has, or float32 for exact look-up and float16 for others.
        dimensions: Number of leading dimensions of each vector to keep, made of unit length. Best those that the model
            was trained for (`config.matryoshka_dims`). Default: as many as the index has, or all.
        batch_size: Number of images that are encoded together.
        rows_per_segment: Number of rows that a killed run can lose; one that is interrupted loses a batch. Going on
            after a kill with the same number, it ends with the same bytes as a run that was never killed.
        replace: Permission to replace an index of other images, from another folder or corpus.
        rebuild: Permission to encode all images anew for another checkpoint, kind of vectors, columns or dimensions.
            Until the last is encoded the index stays as it is, and is searched; then it is replaced in one step. A
            run that was killed is taken up with the same arguments.

    Raises:
        ValueError: no image at all; an index of other images, inside the images, or in a folder with other files; an
            index of another checkpoint, kind of vectors, columns or dimensions; a fusion that has no vector of its
            own; more dimensions than the model has.
        TimeoutError: another process is indexing into the directory.
        OSError: a full disk.
        ImportError: an approximate look-up without faiss.

    Example: `index_images("photos.index", FolderImages("photos"), model, processor, progress=True)`.
    """
    directory = Path(directory)
    choose_precision(precision, choose_lookup(lookup, 0))
    require_count("batch_size", batch_size)
    require_count("rows_per_segment", rows_per_segment)
    layout = _layout_at(directory, images, model, processor, vectors, dimensions, rebuild=rebuild)
    writer = Writer(directory, layout, model, processor, rows_per_segment)
    with lock(directory):
        build = _Build(writer, images, lookup, precision, replace=replace, rebuild=rebuild)
        build.plan(find_loose(directory, build.before))
        build.encode(batch_size, progress)
        return build.commit()


def index_share(
    directory: str | Path,
    images: Images,
    model: DualEncoder,
    processor: Any,
    *,
    shard: Shard,
    vectors: str = BRANCHES,
    dimensions: int | None = None,
    batch_size: int = 64,
    rows_per_segment: int = ROWS_PER_SEGMENT,
    replace: bool = False,
    progress: bool = False,
) -> tuple[int, int]:
    """Encode one share of the segments of an index, beside processes and machines that encode the others.

    Once all shares are encoded, `index_images` takes their segments up, and the index has the bytes that it would have
    had without shares. Until then an earlier index stays as it is. The other arguments are those of `index_images`.

    Args:
        directory: Folder of the index, which all processes share, or which their segments are later copied into.
        shard: Share of this process.

    Returns:
        Number of segments of the share, and of all.

    Raises:
        ValueError: as `index_images`.
        InUseError: another process encodes this share.
        OSError: a full disk.
    """
    directory = Path(directory)
    require_count("batch_size", batch_size)
    require_count("rows_per_segment", rows_per_segment)
    layout = _layout_at(directory, images, model, processor, vectors, dimensions)
    writer = Writer(directory, layout, model, processor, rows_per_segment)
    with hold_shard(directory, shard):
        build = _Build(writer, images, EXACT, FLOAT32, replace=replace)
        build.plan([])  # what others have written by now must not decide how the rest is cut
        return build.encode_share(shard, batch_size, progress)


def _layout_at(
    directory: Path,
    images: Images,
    model: DualEncoder,
    processor: Any,
    vectors: str,
    dimensions: int | None,
    *,
    rebuild: bool = False,
) -> Layout:
    """Describe an index that is to be made, or brought up to date, in a place that may hold one of these images."""
    require_index_place(directory, images)
    width = choose_width(model.config, dimensions, None if rebuild else directory)
    return make_layout(model, processor, images.features, vectors, width)


def require_index_place(directory: Path, images: Images) -> None:
    """Refuse a folder in which no index of these images may be made.

    Raises:
        ValueError: it is, holds or lies in that of the images, holds files of somebody else, may not be written, or is
            not UTF-8.
    """
    require_utf8(directory, "index")
    if not is_writable(directory):
        raise ValueError(
            f"`index` is {directory}, which may not be written, as on a read-only disk; expected a place of yours. An "
            "index there can be searched as it is. Copy it, or name another folder."
        )
    if (folder := folder_of(images.origin)) is not None:
        require_apart(directory, folder, walked=True)
    require_index_folder(directory)


SAME = 0.5  # of the images of an index, found again unchanged elsewhere: their folder was moved, and is no other


def require_same_images(directory: Path, images: Images, items: Mapping[str, Item]) -> None:
    """Refuse to make an index of other images out of one that exists.

    Args:
        directory: Folder of the index; it need not exist.
        images: Images that are to be indexed.
        items: All of them, by their ids.

    Raises:
        ValueError: the images come from elsewhere, and few of those that were indexed are among them.
    """
    before = find_index_manifest(directory)
    if before is None or dict(before.origin) == dict(images.origin):
        return
    if folder_of(before.origin) is None and named(before.origin) == Path(named(images.origin)).name:
        return  # an index made by 0.1.0 of a corpus knows its name alone
    old = _stamps_of(directory, before)
    found = sum(name in items and images.recognises(items[name], stamp) for name, stamp in old.items())
    if found < SAME * len(old):
        raise ValueError(
            f"`index` is {directory}, which holds an index of {named(before.origin)}; expected a new folder for "
            f"{named(images.origin)}. Name another, or add --replace (`replace=True` in Python)."
        )


def _stamps_of(directory: Path, manifest: Manifest | None) -> dict[str, str]:
    """Return the stamps by image id of an index as it is."""
    found: dict[str, str] = {}
    for segment in manifest.segments if manifest else ():
        path = directory / segment.file
        opened = open_segment(path, manifest.layout) if manifest and path.is_file() else None
        dead = set(segment.dead)
        if opened is not None:
            found |= dict(pair for row, pair in enumerate(stamps(opened[0])) if row not in dead)
    return found


class _Build:
    """One run of indexing, under the lock: what is present and what is missing, encoding it, and the manifest."""

    def __init__(
        self,
        writer: Writer,
        images: Images,
        lookup: str,
        precision: str,
        *,
        replace: bool = False,
        rebuild: bool = False,
    ) -> None:
        self.directory, self.layout, self.config = writer.directory, writer.layout, writer.model.config
        self.writer, self.images = writer, images
        self.before = find_index_manifest(self.directory)
        if self.before is not None and not rebuild:
            require_layout(self.before, self.layout, self.directory)
        self.items, self.skipped = _list(images)
        if not replace:
            require_same_images(self.directory, images, self.items)
        self.lookup, self.precision = choose_form(lookup, precision, len(self.items), self.before)
        self.parts: list[SegmentRows] = []
        self.left_out: list[LeftOut] = []
        self.todo: list[Item] = []

    def plan(self, loose: Sequence[Path]) -> None:
        """Take up what the index has and `loose` segments, and list the images that are in neither."""
        # Vectors of another layout are searched until the end, and none of them is taken up.
        same = self.before if self.before is not None and self.before.layout == self.layout else None
        self.parts, self.left_out = take_up(self.directory, self.layout, same, loose, self.items, self.images)
        if same is not None and same.reading != READING:
            self._give_back()
        held = {image_id for part in self.parts for image_id in _ids(part)}
        held |= {each.image_id for each in self.left_out}
        self.todo = [item for image_id, item in self.items.items() if image_id not in held]
        about = {"vectors": self.layout.vectors, "lookup": self.lookup, "precision": self.precision}
        needed = estimate_bytes(self.config, len(self.todo), dimensions=self.layout.width, **about)
        require_free_space(self.directory, needed, "the index", "choose another disk, or index with vectors='fused'")

    def _give_back(self) -> None:
        """Give back, for encoding, what other rules of reading made: images left out, and those with other pixels."""
        self.left_out = []
        stale = {
            image_id
            for part in self.parts
            for image_id in _ids(part)
            if _had_other_pixels(self.images, self.items[image_id])
        }
        self.parts = [_without(part, stale) for part in self.parts]
        if stale:
            logger.warning("%s images of 32 bits, once white or black, are encoded anew.", f"{len(stale):,}")

    def encode(self, batch_size: int, progress: bool) -> None:
        """Write a segment after the other, and merge those that have become small."""
        self._take_over(progress)
        chunks = self.writer.chunks(self.todo, free_number(self.directory))
        for part, unread in self.writer.encoded(self.images, chunks, batch_size, progress):
            self.parts.append(part)
            self.left_out += unread
        alive = [part for part in self.parts if part.alive]
        self.parts = self.writer.merged([self.writer.restamped(part, self.items) for part in alive])
        if not self.parts:
            raise ValueError(
                f"None of {len(self.items):,} images can be indexed. The first is {self.left_out[0].image_id} "
                f"({self.left_out[0].reason}). Check the path."
            )

    def encode_share(self, shard: Shard, batch_size: int, progress: bool) -> tuple[int, int]:
        """Write the segments of a share that are not there, under numbers that the index as it was decides."""
        known = [int(Path(segment.file).stem) for segment in self.before.segments] if self.before else []
        chunks = self.writer.chunks(self.todo, max(known, default=-1) + 1)
        mine = {number: chunk for place, (number, chunk) in enumerate(chunks.items()) if shard.takes(place)}
        missing = {n: chunk for n, chunk in mine.items() if not self.writer.holds(n, chunk, self.images)}
        for _ in self.writer.encoded(self.images, missing, batch_size, progress):
            pass
        return len(mine), len(chunks)

    def _take_over(self, progress: bool) -> None:
        """Give new files the vectors of files of the same contents: they were moved, renamed or copied."""
        if self.before is None or self.before.reading != READING or not self.parts:
            return
        rows = [(part, row, stamp) for part in self.parts for row, (_, stamp) in enumerate(stamps(part.dataset))]
        known = {contents_of(stamp): (part, row) for part, row, stamp in rows}
        sizes = {stamp.split(" ")[0] for _, _, stamp in rows}
        moved: dict[Path, list[tuple[Item, int]]] = {}
        todo = []
        for item in tqdm(self.todo, desc="new files", disable=not progress):
            stamp = self._stamp(item) if item.stamp.split(" ")[0] in sizes else ""
            # Rows of early exports have no stamp, which says nothing of their contents.
            found = known.get(contents_of(stamp)) if stamp else None
            if found is None:
                todo.append(item)
            else:
                moved.setdefault(found[0].path, []).append((item._replace(stamp=stamp), found[1]))
        parts = {part.path: part for part in self.parts}
        self.parts += [written for path, rows in moved.items() for written in self.writer.renamed(parts[path], rows)]
        self.todo = todo

    def _stamp(self, item: Item) -> str:
        """Return the stamp of an image with its contents, or nothing if it cannot be read."""
        try:
            return self.images.stamp(item, self.images.read(item.place))
        except OSError:
            return ""

    def commit(self) -> IndexReport:
        """Make the index what was encoded, in one step, remove what it no longer needs, and report."""
        old = _stamps_of(self.directory, self.before)  # read before their segments are removed
        segments = self._segments()
        neighbours, recall = self._neighbours(segments)
        manifest = Manifest(
            layout=self.layout,
            model=_found_from_anywhere(self.config.name_or_path),
            origin=dict(self.images.origin),
            lookup=self.lookup,
            segments=segments,
            neighbours=neighbours,
            left_out=sorted([*self.left_out, *self.skipped]),
            precision=self.precision,
            recall=recall,
            reading=READING,
        )
        if manifest != self.before:
            write_index_manifest(self.directory, manifest)
        remove_unlisted(self.directory, manifest)
        return _report(manifest, old, self.parts, self.images.others)

    def _segments(self) -> list[Segment]:
        written = {self.directory / each.file: each for each in self.before.segments} if self.before else {}
        segments = []
        for part in self.parts:
            alive, rows = set(part.alive), len(part.dataset)
            dead = [row for row in range(rows) if row not in alive]
            known = written.get(part.path)
            segments.append(
                Segment(known.file, rows, known.bytes, known.sha256, dead)
                if known is not None
                else describe_file(self.directory, part.path, rows, dead)
            )
        return segments

    def _neighbours(self, segments: Sequence[Segment]) -> tuple[Mapping[str, Segment], float | None]:
        """Keep the files of faiss and their recall if they number the same rows, or build and measure them."""
        before, files = self.before, [each.file for each in segments]
        is_same = (
            before is not None
            and (before.lookup, before.precision) == (self.lookup, self.precision)
            and [each.file for each in before.segments] == files
        )
        if before and is_same and all(is_sound(self.directory, each) for each in before.neighbours.values()):
            return before.neighbours, before.recall
        about = (self.layout, self.writer.model, [part.dataset for part in self.parts])
        written = build_neighbours(self.directory, *about, self.lookup, self.precision)
        if not written:
            return written, None
        return written, measure_recall(*about, Neighbours(self.directory, self.lookup, self.precision, written))


def _found_from_anywhere(name: str | Path) -> str:
    """Return a checkpoint's name, or the whole path of its folder."""
    return str(Path(name).resolve()) if str(name) and Path(name).is_dir() else str(name)


def named(origin: Mapping[str, str]) -> str:
    """Return the folder or the name of what was indexed."""
    return origin["root"] if origin["kind"] == "folder" else origin["name"]


def choose_form(lookup: str, precision: str, num_images: int, before: Manifest | None) -> tuple[str, str]:
    """Turn `auto` into a look-up for so many images, and into the precision that an index has, if it is looked up so.

    Raises:
        ValueError: as `choose_lookup` and `choose_precision`.
    """
    lookup = choose_lookup(lookup, num_images)
    if precision == AUTO and before is not None and before.lookup == lookup:
        precision = before.precision
    return lookup, choose_precision(precision, lookup)


def choose_width(config: Any, dimensions: int | None, directory: Path | None = None) -> int:
    """Return how many dimensions of each vector are kept: as asked, as in the index at `directory` if any, or all.

    A prefix that the model was not trained for is told in the log.

    Raises:
        ValueError: more dimensions than the model has, or none.
    """
    whole = config.projection_dim
    if dimensions is None:
        before = None if directory is None else find_index_manifest(directory)
        return whole if before is None else min(before.layout.width, whole)
    if not 1 <= dimensions <= whole:
        raise ValueError(f"`dimensions` is {dimensions}; expected 1 to {whole}, the width of the model's vectors.")
    trained = sorted({*getattr(config, "matryoshka_dims", ()), whole})  # a model of an earlier version has none
    if dimensions not in trained:
        logger.warning(
            "`dimensions` is %d, which the model was not trained for, but for %s: the first dimensions of a vector "
            "then mean no more than any others. Expect less, or train with `matryoshka_dims`.",
            dimensions,
            " and ".join(map(str, trained)),
        )
    return dimensions


def make_layout(
    model: DualEncoder,
    processor: Any,
    features: Features,
    vectors: str,
    width: int | None = None,
    *,
    known: Layout | None = None,
) -> Layout:
    """Describe what an index of this model has in common with others.

    Args:
        model, processor: Parts of the checkpoint.
        features: Columns to filter by.
        vectors: Kind of vectors.
        width: Dimensions of a vector. Default: all.
        known: Layout of another index of this very model and processor, whose weights then need not be hashed again.

    Raises:
        ValueError: an unknown kind of vectors, or a fusion that has no vector of its own.
    """
    config = model.config
    if vectors not in VECTORS:
        raise ValueError(f"`vectors` is {vectors!r}; expected one of {', '.join(VECTORS)}.")
    if vectors == FUSED_ONLY and config.fusion not in ("centroid", "mean", "weighted"):
        raise ValueError(
            f"vectors='fused' with fusion={config.fusion!r}, which needs all {config.num_branches} vectors of an "
            f"image. Index with vectors='branches', or load the checkpoint with fusion='centroid'."
        )
    if FUSED_ONLY in config.perspectives:
        raise ValueError(f"The model calls a branch {FUSED_ONLY!r}, which here means all of them. Rename the branch.")
    if known is not None and known.vectors == vectors:
        checkpoint = known.checkpoint
    else:
        checkpoint = fingerprint(model, processor, with_fusion=vectors == FUSED_ONLY)
    return Layout(
        checkpoint=checkpoint,
        perspectives=list(config.perspectives),
        width=width or config.projection_dim,
        vectors=vectors,
        columns=features.to_dict(),
    )


def _list(images: Images) -> tuple[dict[str, Item], list[LeftOut]]:
    """Return all images, ordered by id, and what cannot be one."""
    found: list[Item | Skipped] = list(images.items())
    skipped = [LeftOut(each.item, "", each.reason, again=True) for each in found if isinstance(each, Skipped)]
    items = {each.image_id: each for each in found if isinstance(each, Item)}
    if not items:
        seen = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in images.others.items())
        first = f", the first {skipped[0].image_id} ({skipped[0].reason})" if skipped else ""
        raise ValueError(
            f"There are no images in {named(images.origin)}; {len(skipped)} left out{first}, "
            f"{'other files are ' + seen if seen else 'no other files'}. Check the path. An earlier index stays as it "
            "is. To empty it, delete its folder."
        )
    return dict(sorted(items.items())), skipped


def _ids(part: SegmentRows) -> dict[str, str]:
    rows = stamps(part.dataset)
    return dict(rows[row] for row in part.alive)


_DEEP_ENDINGS = ("", ".tif", ".tiff", ".pgm", ".pnm", ".ppm")  # of which whole files are read to see their modes


def _had_other_pixels(images: Images, item: Item) -> bool:
    """Tell whether an image was read otherwise before `READING` was written: whole numbers of 32 bits, and floats."""
    if Path(item.image_id).suffix.casefold() not in _DEEP_ENDINGS:
        return False
    try:
        return open_image(images.read(item.place)).mode in ("I", "F")
    except Exception:  # parsers raise whatever a damaged file leads them to; its vectors were of something
        return False


def _without(part: SegmentRows, image_ids: Set[str]) -> SegmentRows:
    rows = stamps(part.dataset)
    return part._replace(alive=[row for row in part.alive if rows[row][0] not in image_ids])


def _report(
    manifest: Manifest, old: Mapping[str, str], parts: Sequence[SegmentRows], others: Mapping[str, int]
) -> IndexReport:
    new = {image_id: contents_of(stamp) for part in parts for image_id, stamp in _ids(part).items()}
    old = {image_id: contents_of(stamp) for image_id, stamp in old.items()}
    files = [*manifest.segments, *manifest.neighbours.values()]
    return IndexReport(
        num_images=len(new),
        added=len(new.keys() - old.keys()),
        changed=sum(old[image_id] != stamp for image_id, stamp in new.items() if image_id in old),
        removed=len(old.keys() - new.keys()),
        kept=sum(old.get(image_id) == stamp for image_id, stamp in new.items()),
        left_out=manifest.left_out,
        others=dict(others),
        num_bytes=sum(each.bytes for each in files),
        lookup=manifest.lookup,
        precision=manifest.precision,
        recall=manifest.recall,
        layout=manifest.layout,
    )
