# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Corpus rows to one batch of tensors: captions are put into slots by the name of their perspective."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .augmentation import Augmentation
from .processing_holistic_clip import HolisticCLIPProcessor

Row = Mapping[str, Any]


class HolisticCLIPCollator:
    """Rows of a corpus to the arguments of `HolisticCLIPModel.forward`.

    What is random depends on the seed, the epoch and the image alone, so that a resumed run sees what the interrupted
    one would have seen, in whatever process. Where a row has several captions of one perspective (several
    captioners), one of them is drawn in each epoch; evaluation takes the first.

    Args:
        processor: of the model.
        slots: names of perspectives, in the order of the caption slots.
        augmentation: random changes to images while training.
        seed: of all that is random.

    Example: two rows, of which the second lacks a style.

    >>> collator = HolisticCLIPCollator(processor, ["short", "style"])
    >>> batch = collator([
    ...     {"image_id": "0", "image": red, "captions": [{"perspective": "short", "text": "a square"},
    ...                                                  {"perspective": "style", "text": "flat, red"}]},
    ...     {"image_id": "1", "image": blue, "captions": [{"perspective": "short", "text": "a circle"}]},
    ... ])
    >>> batch["caption_mask"]
    tensor([[ True,  True],
            [ True, False]])

    Shapes: `pixel_values` (N, 3, height, width); `input_ids`, `attention_mask` (N, M, L); `caption_mask`,
    `caption_ids` (N, M).
    """

    def __init__(
        self,
        processor: HolisticCLIPProcessor,
        slots: Sequence[str],
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if not slots or len(set(slots)) != len(slots):
            raise ValueError(f"`slots` must be distinct names of perspectives, at least one; got {list(slots)}.")
        self.processor = processor
        self.slots = list(slots)
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0
        self.is_training = True

    def for_evaluation(self) -> "HolisticCLIPCollator":
        """The same without anything random."""
        other = copy.copy(self)
        other.is_training, other.augmentation = False, None
        return other

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        seen, captions = [], []
        for row in rows:
            generator = self._generator(row)
            image = row["image"]
            seen.append(image if self.augmentation is None else self.augmentation(image, generator))
            captions.append([self._draw(row, slot, generator) for slot in self.slots])
        if not any(text for texts in captions for text in texts):
            present = sorted({caption["perspective"] for row in rows for caption in row["captions"]})
            raise ValueError(
                f"No image of the batch has a caption for any of the slots {self.slots}. The corpus has: "
                f"{', '.join(present) or 'none'}. Set `slots` to perspectives of the corpus."
            )
        pixel_values = self.processor(images=seen, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, **self.processor.nested_captions(captions)}

    def _generator(self, row: Row) -> torch.Generator:
        what = f"{self.seed} {self.epoch} {row['image_id']}".encode()
        seed = int.from_bytes(hashlib.blake2b(what, digest_size=8).digest(), "big") >> 1
        return torch.Generator().manual_seed(seed)

    def _draw(self, row: Row, slot: str, generator: torch.Generator) -> str | None:
        texts = [caption["text"] for caption in row["captions"] if caption["perspective"] == slot]
        if not texts:
            return None
        drawn = torch.randint(len(texts), (), generator=generator) if self.is_training and len(texts) > 1 else 0
        return texts[int(drawn)]
