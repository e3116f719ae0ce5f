# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 pixels square, each with the name of its class, and with captions
made of it and of its pixels.
"""

import gzip
import io
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from holistic_clip_hf.images.sources import Item, Skipped

NAME = "fashion_mnist"


PERSPECTIVES = ("class", "category", "style")


# As the data set's own README names them.
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


CATEGORIES = {
    "tops": ("t-shirt", "pullover", "coat", "shirt"),
    "trousers": ("trouser",),
    "dresses": ("dress",),
    "footwear": ("sandal", "sneaker", "ankle boot"),
    "bags": ("bag",),
}


_BRIGHTNESS = ("dark", "grey", "bright")  # thirds of the training images, by the mean of what is not background
_BRIGHTNESS_FROM = (128.0, 171.0)
_PATTERNED_FROM = 61.0  # standard deviation of the same; the median of the training images


_FOLDER = Path("usr/share/datasets/fashion-mnist")


_FILES = {"train": "train", "test": "t10k"}


_PIXELS_AT, _LABELS_AT, _SIDE = 16, 8, 28  # of the IDX format: the length of its heads, in bytes


class FashionMNIST:
    """A `Source` of both of the data set's own splits; an image id begins with the name of its split."""

    name = NAME

    def __init__(self, unpacked: Path, package: str) -> None:
        self._folder = unpacked / _FOLDER
        self._package = package

    def items(self) -> Iterator[Item | Skipped]:
        for split in _FILES:
            for row, label in enumerate(self._labels(split)):
                captions = captions_of(CLASSES[label], self._pixels[split][row])
                own = "test" if split == "test" else ""  # of its training images some are for validation
                yield Item(f"{split}/{row:05}", f"{split}/{row}", self._package, captions, split=own)

    def read(self, place: str) -> bytes:
        split, row = place.split("/")
        file = io.BytesIO()
        Image.fromarray(self._pixels[split][int(row)]).save(file, "PNG")
        return file.getvalue()

    def _labels(self, split: str) -> bytes:
        return self._unzip(f"{_FILES[split]}-labels-idx1-ubyte.gz")[_LABELS_AT:]

    @cached_property
    def _pixels(self) -> dict[str, np.ndarray]:
        read = {split: self._unzip(f"{stem}-images-idx3-ubyte.gz")[_PIXELS_AT:] for split, stem in _FILES.items()}
        return {split: np.frombuffer(data, np.uint8).reshape(-1, _SIDE, _SIDE) for split, data in read.items()}

    def _unzip(self, name: str) -> bytes:
        return gzip.decompress((self._folder / name).read_bytes())


def captions_of(name: str, pixels: np.ndarray) -> list[dict[str, str]]:
    """Return the captions of an image by its class and its pixels, (28, 28)."""
    category = next(category for category, members in CATEGORIES.items() if name in members)
    texts = (name, category, style_of(pixels))
    return [
        {"perspective": perspective, "text": text, "source": NAME}
        for perspective, text in zip(PERSPECTIVES, texts, strict=True)
    ]


def style_of(pixels: np.ndarray) -> str:
    """Describe how bright what is drawn is, on its black background, and how much that varies.

    >>> style_of(np.array([[0, 200], [0, 210]]))
    'bright and plain'
    """
    drawn = pixels[pixels > 0] if pixels.any() else pixels
    brightness = _BRIGHTNESS[int(np.searchsorted(_BRIGHTNESS_FROM, drawn.mean(), side="right"))]
    return f"{brightness} and {'patterned' if drawn.std() >= _PATTERNED_FROM else 'plain'}"
