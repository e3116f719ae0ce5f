# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Random changes to corpus rows while training. A change that makes a caption wrong takes the caption away with it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Augmentation:
    """A random window of the image, and, if asked for, random colours.

    Args:
        scale: smallest and largest share of the image's area that is shown; 0.9 to 1.0 in the paper's released code.
        ratio: smallest and largest width-to-height of the window, relative to the image's own.
        recolour: strength of a random linear mix of the colour channels; 0 leaves colours alone, as the paper does.
            Shape must then carry what colour cannot, which helps with drawings by an unknown hand.
        recolour_share: share of images that are recoloured.
        colour_perspectives: captions of these perspectives speak of colours; a recoloured image loses them.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    recolour: float = 0.0
    recolour_share: float = 1.0
    colour_perspectives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"`scale` must rise within (0, 1], `ratio` above 0; got {self.scale} and {self.ratio}.")
        if self.recolour < 0 or not 0 <= self.recolour_share <= 1:
            raise ValueError(
                f"`recolour` must be 0 or more and `recolour_share` within [0, 1]; got {self.recolour} and "
                f"{self.recolour_share}."
            )

    def __call__(self, row: Row, generator: torch.Generator) -> Row:
        """The row with another image, and without the captions that are no longer true."""
        image, captions = self.crop(row["image"], generator), row["captions"]
        if self.recolour > 0 and torch.rand((), generator=generator) < self.recolour_share:
            image = self.mix_colours(image, generator)
            captions = [caption for caption in captions if caption["perspective"] not in self.colour_perspectives]
        return {**row, "image": image, "captions": captions}

    def crop(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """A window of the image, stretched to the image's size."""
        area, stretch, left, top = torch.rand(4, generator=generator).tolist()
        area = self.scale[0] + area * (self.scale[1] - self.scale[0])
        stretch = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** stretch
        width = image.width * min(1.0, math.sqrt(area * stretch))
        height = image.height * min(1.0, math.sqrt(area / stretch))
        left, top = left * (image.width - width), top * (image.height - height)
        box = (left, top, left + width, top + height)
        return image.resize(image.size, Image.Resampling.BILINEAR, box=box)

    def mix_colours(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """Each channel becomes a random mix of all three, moved towards grey and darkened or lightened at random."""
        mix = torch.eye(3) + self.recolour * torch.randn(3, 3, generator=generator)
        mix = mix / mix.sum(dim=1, keepdim=True)  # white stays white
        grey = min(1.0, 2 * self.recolour * float(torch.rand((), generator=generator)))
        contrast = math.exp(self.recolour * float(torch.randn((), generator=generator)))
        matrix = contrast * ((1 - grey) * mix + grey / 3)
        offset = torch.full((3, 1), 255 * (1 - contrast))
        rows = torch.cat([matrix, offset], dim=1).flatten().tolist()
        drawn = image.convert("RGBA")
        recoloured = drawn.convert("RGB").convert("RGB", rows)
        recoloured.putalpha(drawn.getchannel("A"))
        return recoloured
