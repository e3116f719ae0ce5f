# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Verification of what was written: images and texts that it is run on, and how far from the checkpoint it may be."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..images.decoding import read_image
from ..images.folders import FolderImages
from ..images.left_out import LeftOutLog, warn_of_all
from ..images.sources import Skipped
from ..processing_holistic_clip import HolisticCLIPProcessor
from ..publishing.stranger import probe_pictures

TOGETHER = 8  # images of a batch, of which a large photo takes 36 MB


class ExportError(RuntimeError):
    """An export that does not give the numbers of the checkpoint that it was made of."""


class ProbeImages:
    """Images that an export is run on: two drawn ones, or all of a folder that can be read.

    Args:
        processor: Processor of the model, which turns images upright and puts them on its background.
        folder: Folder of images. Default: the drawn ones.

    Raises:
        ValueError: no such folder, or no image in it that can be read.
    """

    def __init__(self, processor: HolisticCLIPProcessor, folder: str | Path | None = None) -> None:
        self._processor = processor
        self._source = None if folder is None else _open_folder(folder)
        self._names = [] if self._source is None else self._readable(self._source)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._names) if self._source else len(probe_pictures())

    def batches(self) -> Iterator[list[Image.Image]]:
        """Yield all images, a few at a time, upright and in RGB."""
        if self._source is None:
            yield probe_pictures()
            return
        for start in tqdm(
            range(0, len(self._names), TOGETHER), desc="verified", unit="batch", leave=False, disable=None
        ):
            yield [self._read(self._source, name) for name in self._names[start : start + TOGETHER]]

    def _read(self, source: FolderImages, name: str) -> Image.Image:
        return self._processor.to_rgb(read_image(source.read(name)))

    def _readable(self, source: FolderImages) -> list[str]:
        """Return the names of the images that can be read; others are named in a warning."""
        names, log = [], LeftOutLog()
        for each in source.items():
            if isinstance(each, Skipped):
                log.note({each.item: each.reason})
                continue
            try:
                self._read(source, each.image_id)
            except (OSError, ValueError) as error:
                log.note({each.image_id: str(error)})
            else:
                names.append(each.image_id)
        warn_of_all(len(log.reasons))
        if not names:
            raise ValueError(
                f"`verify_images` is {source.root}, in which no image can be read; expected one or more. Name another "
                "folder, or leave it out."
            )
        return names


def _open_folder(folder: str | Path) -> FolderImages:
    try:
        return FolderImages(folder)
    except ValueError as error:
        raise ValueError(str(error).replace("`root`", "`verify_images`")) from error


def require_close(differences: dict[str, float], tolerance: float) -> None:
    """Raise `ExportError` where a difference is above the tolerance, or is not a number."""
    for what, difference in differences.items():
        if not difference <= tolerance:
            raise ExportError(
                f"What was written differs from the checkpoint in {what} by {difference:.1e}; expected at most "
                f"{tolerance:.0e}. Nothing was kept. Report it with the checkpoint's config.json."
            )


def furthest(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors' numbers."""
    return float((found - expected).abs().max())
