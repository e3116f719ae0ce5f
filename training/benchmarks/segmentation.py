"""The field's segmentation benchmarks, from the files that their authors publish: rows of `image` and `mask`.

- `voc20`, `voc21` (and background): `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/val.txt` of VOC2012
- `ade20k`, 150 classes: `images/validation/`, `annotations/validation/`, `objectInfo150.txt` of ADEChallengeData2016
- `coco-stuff`, 171 classes: `val2017/`, `stuffthingmaps/val2017/`, `labels.txt` of COCO-Stuff 164k

Masks are brought to one form: the places of classes in the list of names, 255 for what does not count.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from holistic_clip_hf.evaluation.segmentation import IGNORED
from holistic_clip_hf.images.decoding import open_image

# Of the development kit's own documentation, in the order of its indices.
VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
]
# Indices of `labels.txt` that COCO-Stuff's own documentation lists as never annotated.
COCO_STUFF_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


class SegmentationBenchmark(NamedTuple):
    """Rows of `image` and `mask`, the names of the classes, and the index of the background among them, if any."""

    dataset: Dataset
    class_names: list[str]
    background: int | None


def open_segmentation(name: str, root: Path) -> SegmentationBenchmark:
    """The validation split of one benchmark. Raises `ValueError` for a name or a file that is not there."""
    if name not in SEGMENTATION:
        raise ValueError(f"Got the benchmark {name!r}. Valid: {', '.join(SEGMENTATION)}.")
    return SEGMENTATION[name](root)


def _voc(root: Path, *, with_background: bool) -> SegmentationBenchmark:
    names = _text(root / "ImageSets/Segmentation/val.txt").split()
    pairs = ((root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png") for name in names)
    first = 0 if with_background else 1
    places = {index: index - first for index in range(first, len(VOC_CLASSES))}
    return SegmentationBenchmark(_dataset(pairs, places), VOC_CLASSES[first:], 0 if with_background else None)


def _ade20k(root: Path) -> SegmentationBenchmark:
    lines = _text(root / "objectInfo150.txt").splitlines()[1:]  # index, ratio, train, val, names
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
    images = _images_in(root / "images/validation")
    pairs = ((image, root / f"annotations/validation/{image.stem}.png") for image in images)
    places = {index + 1: index for index in range(len(names))}  # 0 is what nobody labelled
    return SegmentationBenchmark(_dataset(pairs, places), names, None)


def _coco_stuff(root: Path) -> SegmentationBenchmark:
    told = (line.split(":", 1) for line in _text(root / "labels.txt").splitlines() if ":" in line)
    # Index k of the list, of which 0 is "unlabeled", is the value k - 1 of the maps.
    labels = {int(index): label.strip() for index, label in told}
    used = sorted(labels.keys() - COCO_STUFF_UNUSED - {0})
    images = _images_in(root / "val2017")
    pairs = ((image, root / f"stuffthingmaps/val2017/{image.stem}.png") for image in images)
    places = {index - 1: place for place, index in enumerate(used)}
    return SegmentationBenchmark(_dataset(pairs, places), [labels[index] for index in used], None)


def _images_in(folder: Path) -> list[Path]:
    images = sorted(folder.glob("*.jpg"))
    if not images:
        raise ValueError(f"Got no images in {folder}. See training/benchmarks/ for what a benchmark's root holds.")
    return images


def _dataset(pairs: Iterable[tuple[Path, Path]], places: Mapping[int, int]) -> Dataset:
    table = np.full(256, IGNORED, dtype=np.uint8)
    table[list(places)] = list(places.values())

    def rows() -> Iterator[dict[str, Any]]:
        for image, mask in pairs:
            if not image.is_file():
                raise ValueError(f"Got no image {image}. See training/benchmarks/ for what a benchmark's root holds.")
            file = io.BytesIO()  # thousands of masks fit into memory as PNG
            Image.fromarray(table[_read_mask(mask)]).save(file, "PNG")
            yield {"image": str(image), "mask": {"bytes": file.getvalue(), "path": None}}

    return Dataset.from_list(list(rows()), features=Features({"image": ImageFeature(), "mask": ImageFeature()}))


def _read_mask(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"Got no mask {path}. See training/benchmarks/ for what a benchmark's root holds.")
    return np.asarray(open_image(path))  # of a palette image, the indices


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"Got no file {path}. See training/benchmarks/ for what a benchmark's root holds.")
    return path.read_text(encoding="utf-8")


SEGMENTATION: dict[str, Callable[[Path], SegmentationBenchmark]] = {
    "voc20": lambda root: _voc(root, with_background=False),
    "voc21": lambda root: _voc(root, with_background=True),
    "ade20k": _ade20k,
    "coco-stuff": _coco_stuff,
}
