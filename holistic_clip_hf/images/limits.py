# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Limits on the size and the shape of images; `decoding` holds them, this module loads in no time."""

from dataclasses import dataclass

from ..storage import require_count


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an image; one beyond them is left out.

    Args:
        min_side: Pixels of the shorter side. Below 8, no patch of a vision tower is filled.
        max_side: Pixels of the longer side, at most.
        max_pixels: Limit of width times height; Pillow's own limit against decompression bombs is the default.
        max_bytes: Bytes of the file, at most.
        max_ratio: Longer side over the shorter, at most. Resizing the shorter side to the model's blows the longer
            one up.
    """

    min_side: int = 8
    max_side: int = 20_000
    max_pixels: int = 89_478_485
    max_bytes: int = 100_000_000
    max_ratio: int = 100

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require_count(name, value)
        if self.max_side < self.min_side:
            raise ValueError(
                f"`max_side` is {self.max_side}; expected `min_side`, {self.min_side}, or more. Raise it."
            )

    def fault_of(self, size: tuple[int, int]) -> str:
        """Return why an image of this width and height is left out, or nothing if it is not."""
        width, height = size
        said = f"{width:,} x {height:,} pixels"
        if min(size) < self.min_side:
            return f"too small: {said}"
        if max(size) > self.max_side or width * height > self.max_pixels:
            return f"too many pixels: {said}"
        if max(size) > self.max_ratio * min(size):
            return f"too narrow: {said}; one side is over {self.max_ratio:,} times the other"
        return ""
