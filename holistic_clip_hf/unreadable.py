# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Images that do not decode: found where rows become tensors, then counted, named, and listed in a file."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from PIL import Image
from transformers import TrainerCallback

from .atomic import write_atomically
from .distributed import gather_objects, rank
from .images.decoding import open_image, upright

logger = logging.getLogger(__name__)

UNREADABLE_NAME = "unreadable_images.json"
MOST_WARNINGS = 20


class UnreadableImageError(ValueError):
    """An image that does not decode; its text is the reason."""


def decode_image(image: Any) -> Image.Image:
    """The image of a row: one with `decode=False`, of which there are `bytes` or a `path`, or one that is decoded.

    Raises:
        UnreadableImageError: truncated, not an image, more pixels than Pillow allows, no pixels, or no such file. Any
            other error of reading a file is raised as it is: next time the file may be readable.
    """
    if isinstance(image, str):
        image = {"bytes": None, "path": image}
    if isinstance(image, Mapping):
        image = _read(image)
    if image is None:
        raise UnreadableImageError("the row has no image")
    try:
        decoded = open_image(image) if isinstance(image, bytes) else image
        if isinstance(decoded, Image.Image):
            decoded.load()
        if isinstance(image, bytes):
            decoded = upright(decoded)  # as `datasets` does
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise UnreadableImageError(f"{type(error).__name__}: {error}".replace("\n", " ")) from error
    if isinstance(decoded, Image.Image) and 0 in decoded.size:
        raise UnreadableImageError(f"{decoded.width} x {decoded.height} pixels")
    return decoded


def _read(image: Mapping[str, Any]) -> bytes:
    if image["bytes"] is not None:
        return image["bytes"]
    if image["path"] is None:
        raise UnreadableImageError("the row has neither bytes nor a path")
    try:
        with fsspec.open(image["path"], "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise UnreadableImageError(f"no such file: {image['path']}") from error


class UnreadableImages(TrainerCallback):
    """What trainer and evaluation met: the reason of each image, by its id.

    The list is written at every save and at the end, for all ranks by the first, and goes on where a run is resumed.

    Args:
        folder: where the list is written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / UNREADABLE_NAME
        self.reasons: dict[str, str] = {}
        self.unshared: dict[str, str] = {}  # what other ranks do not know yet
        self.num_named = 0

    def note(self, found: Mapping[str, str]) -> None:
        """Take up what this rank met; the first of them are named in a warning each."""
        for image_id, reason in found.items():
            if image_id in self.unshared or image_id in self.reasons:
                continue
            self.unshared[image_id] = reason
            if self.num_named < MOST_WARNINGS:
                self.num_named += 1
                more = f" More are only counted; {self.path} lists all." if self.num_named == MOST_WARNINGS else ""
                logger.warning("Image %s is left out: %s.%s", image_id, reason.rstrip("."), more)

    def count(self) -> int:
        """Of different images that any rank met; to be called on all ranks."""
        for theirs in gather_objects(self.unshared):
            self.reasons |= theirs
        self.unshared = {}
        return len(self.reasons)

    def save(self) -> None:
        """Write the list; to be called on all ranks. Where all images are readable, nothing is written."""
        if (self.count() or self.path.is_file()) and rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(self.path) as file:
                file.write(json.dumps(self.reasons, indent=1, sort_keys=True, ensure_ascii=False).encode())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run knows what the interrupted one met."""
        if state.global_step > 0 and self.path.is_file():
            self.reasons |= json.loads(self.path.read_text(encoding="utf-8"))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.save()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.save()
