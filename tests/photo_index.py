"""What the tests of search share: a folder of drawings, its index, and how to look into one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.search import FolderImages, index_images
from holistic_clip_hf.search.indexing import IndexReport
from holistic_clip_hf.search.store import open_whole

Indexing = Callable[..., IndexReport]
NAMES = ["short", "main_object", "style"]


def write_photos(corpus: Dataset, folder: Path) -> Path:
    """Each drawing in a folder of its colour."""
    for row in corpus:
        place = folder / row["image_id"].split("-")[0]
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{row['image_id']}.png")
    return folder


def indexing(photos: Path, base: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor) -> Indexing:
    """`indexing(...)("index", **options)`: the index of `photos`, below `base`, up to date, in segments of three."""

    def bring(directory: str = "index", **options: Any) -> IndexReport:
        options = {"rows_per_segment": 3, "batch_size": 3} | options
        images = options.pop("images", None) or FolderImages(photos)
        return index_images(base / directory, images, model, processor, **options)

    return bring


def counts(report: IndexReport) -> tuple[int, int, int, int, int]:
    return report.num_images, report.added, report.changed, report.removed, report.kept


def contents(directory: Path) -> dict[str, bytes]:
    """All files of an index but the lock."""
    found = [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def rows(directory: Path) -> dict[str, tuple[str, list[list[float]]]]:
    """By image id, of the rows that count: the stamp, and the vectors as `datasets` gives them."""
    manifest, datasets = open_whole(directory)
    found = {}
    for segment, dataset in zip(manifest.segments, datasets, strict=True):
        for number, row in enumerate(dataset):
            if number not in segment.dead:
                assert row["image_id"] not in found
                found[row["image_id"]] = (row["stamp"], [row[f"vector.{name}"] for name in NAMES])
    return found
