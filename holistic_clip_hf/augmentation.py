# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Random changes to the images of corpus rows while training."""

import math
from dataclasses import dataclass

import torch
from PIL import Image


@dataclass(frozen=True)
class Augmentation:
    """A random window of the image, stretched to fill a square.

    Args:
        size: side of the square; the processor's, so that it need not resize again.
        scale: smallest and largest share of the image's area that is shown; 0.9 to 1.0 in the paper's released code.
        ratio: smallest and largest width-to-height of the window; 3/4 to 4/3 is usual for random resized crops. A
            window that would stick out of the image is cut at its edge.
    """

    size: int
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"`size` is {self.size}. Valid: 1 or more, the processor's image size.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"`scale` must rise within (0, 1], `ratio` above 0; got {self.scale} and {self.ratio}.")

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """The window that `generator` draws."""
        area, stretch, left, top = torch.rand(4, generator=generator).tolist()
        pixels = image.width * image.height * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
        aspect = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** stretch
        width, height = min(image.width, math.sqrt(pixels * aspect)), min(image.height, math.sqrt(pixels / aspect))
        left, top = left * (image.width - width), top * (image.height - height)
        box = (left, top, left + width, top + height)
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
