# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Images to an index: what is new or changed is encoded, what is gone no longer counts, a killed run goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Features

from ..atomic import require_apart, require_free_space
from ..corpus.build import Skipped
from ..corpus.source import Item
from ..evaluation.encoding import DualEncoder
from .checkpoint import fingerprint
from .images import Images
from .manifest import (
    BRANCHES,
    FUSED_ONLY,
    MANIFEST,
    VECTORS,
    Layout,
    LeftOut,
    Manifest,
    Segment,
    lock,
    read_manifest,
    require_layout,
    write_manifest,
)
from .neighbours import build_neighbours
from .segments import Part, Writer, stamps, take_up
from .sizes import choose_lookup, estimate_bytes
from .store import describe_file, open_segment, remove_unlisted, require_index_folder

ROWS_PER_SEGMENT = 2_048


@dataclass(frozen=True)
class IndexReport:
    """What an indexing did; as a string, all of it for people.

    Args:
        num_images: in the index now.
        added, changed, removed, kept: images that were new, encoded anew, gone, and as they were.
        left_out: images that are not in the index, and why.
        others: by ending, how many files were seen that are no images.
        num_bytes: of the index on disk.
        lookup: how vectors are looked up.
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

    def __str__(self) -> str:
        lines = [
            f"{self.num_images:,} images, {self.num_bytes / 1e6:,.1f} MB, {self.lookup}: {self.added:,} new, "
            f"{self.changed:,} changed, {self.removed:,} gone, {self.kept:,} as before; "
            f"{len(self.left_out):,} left out"
        ]
        lines += [f"left out: {each.image_id}: {each.reason}" for each in self.left_out]
        if self.others:
            named = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in self.others.items())
            lines.append(f"no images by their names: {named}")
        return "\n".join(lines)


def index_images(
    directory: str | Path,
    images: Images,
    model: DualEncoder,
    processor: Any,
    *,
    vectors: str = BRANCHES,
    lookup: str = "auto",
    batch_size: int = 64,
    rows_per_segment: int = ROWS_PER_SEGMENT,
    progress: bool = False,
) -> IndexReport:
    """Make the index in `directory` one of `images`, or bring it up to date.

    Args:
        vectors: `"branches"`, H vectors for an image, to search by perspective; `"fused"`, one, an H-th of the size.
        lookup: `"exact"`; `"ivf"` or `"hnsw"`, approximate, from faiss; `"auto"`, exact up to a million images.
        batch_size: images that are encoded together.
        rows_per_segment: how many a killed run can lose; going on with the same number, it ends with the same bytes
            as a run that was never killed.

    Raises:
        ValueError: no image at all; an index of another checkpoint, kind of vectors or columns; a fusion that has no
            vector of its own.
        TimeoutError: another process is indexing into the directory.
        OSError: a full disk.
        ImportError: an approximate look-up without faiss.

    Example: `index_images("photos.index", FolderImages("photos"), model, processor, progress=True)`.
    """
    directory, layout = Path(directory), make_layout(model, processor, images.features, vectors)
    choose_lookup(lookup, 0)
    if images.origin["kind"] == "folder":
        require_apart(directory, Path(images.origin["root"]), walked=False)  # an index holds nothing that is an image
    require_index_folder(directory)
    with lock(directory):
        before = read_manifest(directory) if (directory / MANIFEST).is_file() else None
        if before is not None:
            require_layout(before, layout, directory)
        items, skipped = _list(images)
        old = _rows_of(directory, layout, before)
        parts, left_out = take_up(directory, layout, before, items)
        held = {image_id for part in parts for image_id in _ids(part)} | {each.image_id for each in left_out}
        todo = [item for image_id, item in items.items() if image_id not in held]
        chosen = choose_lookup(lookup, len(items))
        needed = estimate_bytes(model.config, len(todo), vectors=vectors, lookup=chosen)
        require_free_space(directory, needed, "the index", "choose another disk, or index with vectors='fused'")
        writer = Writer(directory, layout, model, processor, rows_per_segment)
        for part, unread in writer.encoded(images, todo, batch_size, progress):
            parts.append(part)
            left_out += unread
        parts = writer.merged([part for part in parts if part.alive])
        if not parts:
            raise ValueError(
                f"None of {len(items):,} images can be indexed. The first: {left_out[0].image_id}: "
                f"{left_out[0].reason}."
            )
        left_out = sorted([*left_out, *skipped])
        manifest = _manifest(directory, layout, model, images, parts, left_out, chosen, before)
        if manifest != before:
            write_manifest(directory, manifest)
        remove_unlisted(directory, manifest)
    return _report(manifest, old, parts, images.others)


def make_layout(model: DualEncoder, processor: Any, features: Features, vectors: str) -> Layout:
    """What an index of this model has in common with others.

    Raises:
        ValueError: an unknown kind of vectors, or a fusion that has no vector of its own.
    """
    config = model.config
    if vectors not in VECTORS:
        raise ValueError(f"`vectors` is {vectors!r}. Valid: {', '.join(VECTORS)}.")
    if vectors == FUSED_ONLY and config.fusion not in ("mean", "weighted"):
        raise ValueError(
            f"vectors='fused' with fusion={config.fusion!r}, which needs all {config.num_branches} vectors of an "
            f"image. Index with vectors='branches', or load the checkpoint with fusion='mean'."
        )
    if FUSED_ONLY in config.perspectives:
        raise ValueError(f"The model calls a branch {FUSED_ONLY!r}, which here means all of them. Rename the branch.")
    return Layout(
        checkpoint=fingerprint(model, processor, with_fusion=vectors == FUSED_ONLY),
        perspectives=list(config.perspectives),
        width=config.projection_dim,
        vectors=vectors,
        columns=features.to_dict(),
    )


def _list(images: Images) -> tuple[dict[str, Item], list[LeftOut]]:
    """All images, ordered by id, and what cannot be one."""
    found: list[Item | Skipped] = list(images.items())
    skipped = [LeftOut(each.item, "", each.reason, again=True) for each in found if isinstance(each, Skipped)]
    items = {each.image_id: each for each in found if isinstance(each, Item)}
    if not items:
        seen = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in images.others.items())
        raise ValueError(
            f"There are no images in {dict(images.origin)}: {len(skipped)} left out, other files: {seen or 'none'}. "
            f"Check the path. An index that is there already stays as it is; to empty it, delete its directory."
        )
    return dict(sorted(items.items())), skipped


def _rows_of(directory: Path, layout: Layout, before: Manifest | None) -> dict[str, str]:
    """Stamps by image id of the index as it was."""
    found: dict[str, str] = {}
    for segment in before.segments if before else ():
        opened = open_segment(directory / segment.file, layout) if (directory / segment.file).is_file() else None
        dead = set(segment.dead)
        if opened is not None:
            found |= dict(pair for row, pair in enumerate(stamps(opened[0])) if row not in dead)
    return found


def _ids(part: Part) -> dict[str, str]:
    rows = stamps(part.dataset)
    return dict(rows[row] for row in part.alive)


def _manifest(
    directory: Path,
    layout: Layout,
    model: DualEncoder,
    images: Images,
    parts: Sequence[Part],
    left_out: Sequence[LeftOut],
    lookup: str,
    before: Manifest | None,
) -> Manifest:
    written = {directory / each.file: each for each in before.segments} if before else {}
    segments = []
    for part in parts:
        alive, rows = set(part.alive), len(part.dataset)
        dead = [row for row in range(rows) if row not in alive]
        known = written.get(part.path)
        segments.append(
            Segment(known.file, rows, known.bytes, known.sha256, dead)
            if known is not None
            else describe_file(directory, part.path, rows, dead)
        )
    is_built = before is not None and before.lookup == lookup
    if before is not None and is_built and [each.file for each in before.segments] == [e.file for e in segments]:
        neighbours: Mapping[str, Segment] = before.neighbours
    else:
        neighbours = build_neighbours(directory, layout, model, [part.dataset for part in parts], lookup)
    return Manifest(
        layout=layout,
        model=str(model.config.name_or_path),
        origin=dict(images.origin),
        lookup=lookup,
        segments=segments,
        neighbours=neighbours,
        left_out=left_out,
    )


def _report(
    manifest: Manifest, old: Mapping[str, str], parts: Sequence[Part], others: Mapping[str, int]
) -> IndexReport:
    new = {image_id: stamp for part in parts for image_id, stamp in _ids(part).items()}
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
    )
