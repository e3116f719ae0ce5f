# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Random changes to training images: a window, a turn, and other colours.

Other colours make captions about colour untrue, so that the perspectives that speak of it lose their captions for such
an image.
"""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from PIL import Image

from ..processing_holistic_clip import on_background

# Spread of the numbers by which channels are mixed, and share of the recoloured images that are made grey. Tried on
# drawings: training/LOG.md.
COLOUR_SPREAD, GREY = 0.3, 0.3
_ALWAYS_TOLD = ("size", "scale", "ratio")  # in the name of cached states, since before there were others
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as Pillow's


class Change(NamedTuple):
    """Change that was drawn for one image.

    Args:
        window: Four shares that place the window.
        degrees: Turn, counterclockwise.
        mix: Red, green and blue (3, 3), as sums of the image's; None leaves colours as they are.
        hidden: Perspectives whose captions are no longer true of it.
    """

    window: list[float]
    degrees: float = 0.0
    mix: torch.Tensor | None = None
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Augmentation:
    """A random window of the image, stretched to fill a square, and turned or recoloured if asked for.

    Args:
        size: side of the square; the processor's, so that it need not resize again.
        scale: smallest and largest share of the image's area that is shown; 0.9 to 1.0 in the paper's released code.
        ratio: smallest and largest width-to-height of the window; 3/4 to 4/3 is usual for random resized crops. A
            window that would stick out of the image is cut at its edge.
        rotation: smallest and largest turn, in degrees. The corners take the colour of the image's first pixel.
        recolouring: share of the images whose red, green and blue are mixed anew; white, black and greys stay.
        colour_perspectives: perspectives whose captions speak of colour. A recoloured image has none of them.
    """

    size: int
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation: tuple[float, float] = (0.0, 0.0)
    recolouring: float = 0.0
    colour_perspectives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"`size` is {self.size}; expected 1 or more, the processor's image size.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"`scale` must rise within (0, 1], `ratio` above 0; got {self.scale} and {self.ratio}.")
        if not -180 <= self.rotation[0] <= self.rotation[1] <= 180:
            raise ValueError(f"`rotation` is {self.rotation}; expected degrees that rise within [-180, 180].")
        if not 0 <= self.recolouring <= 1:
            raise ValueError(f"`recolouring` is {self.recolouring}; expected a share of the images, 0 to 1.")
        if self.colour_perspectives and not self.recolouring:
            raise ValueError(
                f"`colour_perspectives` is {list(self.colour_perspectives)} without `recolouring`; expected both. "
                "Give the share of images that are recoloured, or leave it out."
            )

    def __repr__(self) -> str:
        """Return what was asked for. It names cached states, so that a field that came later is told only if set."""
        told = [
            f"{field.name}={value!r}"
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default or field.name in _ALWAYS_TOLD
        ]
        return f"{type(self).__name__}({', '.join(told)})"

    def draw(self, generator: torch.Generator) -> Change:
        """Draw what is done to an image. What is not asked for draws nothing."""
        window, degrees = torch.rand(4, generator=generator).tolist(), 0.0
        if self.rotation != (0.0, 0.0):
            least, most = self.rotation
            degrees = least + (most - least) * torch.rand((), generator=generator).item()
        if self.recolouring and torch.rand((), generator=generator).item() < self.recolouring:
            return Change(window, degrees, draw_mix(generator), self.colour_perspectives)
        return Change(window, degrees)

    def apply(self, image: Image.Image, change: Change) -> Image.Image:
        """Return the changed image, in RGB: palettes and single bits cannot be interpolated."""
        image = on_background(image)
        if change.degrees:
            image = image.rotate(change.degrees, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0)))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=self._box(image, change.window))
        if change.mix is not None:
            image = image.convert("RGB", tuple(torch.cat([change.mix, torch.zeros(3, 1)], dim=1).flatten().tolist()))
        return image

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """Return the image, changed as `generator` draws."""
        return self.apply(image, self.draw(generator))

    def _box(self, image: Image.Image, window: list[float]) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of a window, in pixels of the image."""
        area, stretch, left, top = window
        pixels = image.width * image.height * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
        aspect = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** stretch
        width, height = min(image.width, math.sqrt(pixels * aspect)), min(image.height, math.sqrt(pixels / aspect))
        left, top = left * (image.width - width), top * (image.height - height)
        return left, top, left + width, top + height


def draw_mix(generator: torch.Generator) -> torch.Tensor:
    """Draw a mix of channels (3, 3), or that of grey. Its rows sum to one, so that white, black and greys stay."""
    if torch.rand((), generator=generator).item() < GREY:
        return torch.tensor(LUMINANCE).expand(3, 3)
    noise = COLOUR_SPREAD * torch.randn(3, 3, generator=generator)
    return torch.eye(3) + noise - noise.mean(dim=1, keepdim=True)
