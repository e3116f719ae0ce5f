# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Corpus rows to one batch of tensors: captions are put into slots by the name of their perspective."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .processing_holistic_clip import HolisticCLIPProcessor

Row = Mapping[str, Any]


class HolisticCLIPCollator:
    """Rows of a corpus to the arguments of `HolisticCLIPModel.forward`.

    Where a row has several captions of one perspective (several captioners), one is drawn at random.

    Example: two rows, of which the second lacks a style.

    >>> collator = HolisticCLIPCollator(processor, ["short", "style"])
    >>> batch = collator([
    ...     {"image": red, "captions": [{"perspective": "short", "text": "a square"},
    ...                                 {"perspective": "style", "text": "flat, red"}]},
    ...     {"image": blue, "captions": [{"perspective": "short", "text": "a circle"}]},
    ... ])
    >>> batch["caption_mask"]
    tensor([[ True,  True],
            [ True, False]])

    Shapes: `pixel_values` (N, 3, height, width); `input_ids`, `attention_mask` (N, M, L); `caption_mask`,
    `caption_ids` (N, M).
    """

    def __init__(self, processor: HolisticCLIPProcessor, slots: Sequence[str]) -> None:
        if not slots or len(set(slots)) != len(slots):
            raise ValueError(f"`slots` must be distinct names of perspectives, at least one; got {list(slots)}.")
        self.processor = processor
        self.slots = list(slots)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        captions = [[self._draw(row, slot) for slot in self.slots] for row in rows]
        if not any(text for row in captions for text in row):
            present = sorted({caption["perspective"] for row in rows for caption in row["captions"]})
            raise ValueError(
                f"No image of the batch has a caption for any of the slots {self.slots}. The corpus has: "
                f"{', '.join(present) or 'none'}. Set `slots` to perspectives of the corpus."
            )
        pixel_values = self.processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, **self.processor.nested_captions(captions)}

    def _draw(self, row: Row, slot: str) -> str | None:
        texts = [caption["text"] for caption in row["captions"] if caption["perspective"] == slot]
        if len(texts) < 2:
            return texts[0] if texts else None
        return texts[int(torch.randint(len(texts), ()))]


class RandomCrop:
    """A `Dataset.set_transform` that shows each image through a random window of about its own shape.

    Args:
        scale: smallest and largest share of the image's area; 0.9 to 1.0 in the paper's released code.
        ratio: smallest and largest width-to-height of the window, times the image's own; 3/4 to 4/3 as usual for
            random resized crops.
    """

    def __init__(self, scale: Sequence[float] = (0.9, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)) -> None:
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"`scale` must rise within (0, 1], `ratio` above 0; got {scale} and {ratio}.")
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**rows, "image": [self.crop(image) for image in rows["image"]]}

    def crop(self, image: Image.Image) -> Image.Image:
        """The window, at its own size: the processor resizes."""
        area, stretch, left, top = torch.rand(4).tolist()
        area = self.scale[0] + area * (self.scale[1] - self.scale[0])
        stretch = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** stretch
        width = image.width * min(1.0, (area * stretch) ** 0.5)
        height = image.height * min(1.0, (area / stretch) ** 0.5)
        left, top = left * (image.width - width), top * (image.height - height)
        size = (image.width, image.height)
        return image.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
