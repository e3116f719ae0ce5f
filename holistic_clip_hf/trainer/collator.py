# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Collator: corpus rows to one batch of tensors, with captions put into slots by the name of their perspective.

While training, images are augmented and captions drawn. Long captions begin with a summary, which a model learns to
read alone. Sampling sentences, and leaving the first out half of the time, makes it read the rest (COSMOS,
https://arxiv.org/abs/2412.01814; DeBias-CLIP). It is the largest single gain among the ablations of 2024 to 2026.
"""

import copy
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from ..evaluation.encoding import Pixels, image_or_reason, readable_pixels, stack_pixels
from ..images.left_out import UsableCaption, first_reasons, usable_captions
from ..processing_holistic_clip import HolisticCLIPProcessor, is_blank
from ..words import split_sentences
from .augmentation import Augmentation, Change
from .streams import PLACE

_DROP_FIRST = 0.5


def sample_sentences(text: str, most: int, generator: torch.Generator) -> str:
    """Draw 1 to `most` of a caption's sentences in random order, without the first half of the time.

    A caption of one sentence is returned as it is.
    """
    sentences = [sentence for sentence in split_sentences(text) if not is_blank(sentence)]
    if len(sentences) < 2:
        return text
    if torch.rand((), generator=generator) < _DROP_FIRST:
        sentences = sentences[1:]
    count = int(torch.randint(1, min(most, len(sentences)) + 1, (), generator=generator))
    order = torch.randperm(len(sentences), generator=generator)[:count].tolist()
    return " ".join(sentences[place] for place in order)


Row = Mapping[str, Any]


def _names_of(rows: Sequence[Row]) -> list[str]:
    """Return what rows are called if they are left out: their ids, numbered from the second of an id on."""
    seen: Counter[str] = Counter()
    names = []
    for row in rows:
        image_id = row["image_id"]
        seen[image_id] += 1
        names.append(image_id if seen[image_id] == 1 else f"{image_id} (row {seen[image_id]} of this id)")
    return names


class HolisticCLIPCollator:
    """Rows of a corpus to the arguments of `HolisticCLIPModel.forward`.

    What is random depends on the seed, the epoch and the image alone, so that a resumed run sees what the interrupted
    one would have seen, in whatever process. Where a row has several captions of one perspective (several
    captioners), one of them is drawn in each epoch; evaluation takes the first.

    What cannot be used of a row is left out and named, and never ends a run. A caption that is blank or not a string
    counts as missing. An image that does not decode keeps its row, since all ranks bring equally many: its captions
    are masked, and its pixels are a copy of the first readable image. Nothing of it is in the loss.

    Args:
        processor: Processor of the model.
        slots: names of perspectives, in the order of the caption slots.
        augmentation: random changes to images while training.
        captions_per_image: while training, so many of an image's captions are drawn in each epoch. Default: all.
        sentences_per_caption: while training, of captions of several sentences 1 to this many are drawn
            (`corpus.sampling`). Default: captions as they are.
        seed: Seed of all that is random.
        takes_empty: while training, take a batch without any caption or readable image, as one of several ranks may
            draw it. Default: refuse it.

    Raises:
        ValueError: slots that are not distinct, a batch without any caption for them, or without any readable image.

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

    Besides, the trainer and not the model gets `image_ids`, a list of N strings, `image_mask`, false for an image that
    does not decode, and `left_out`, the reasons of what is left out, by image id, or image id and perspective. A
    further row of an id in the batch has its number behind the id. Of a stream also `place`, the `streams.Place` of
    the last row.

    Shapes: `pixel_values` (N, 3, height, width), or what a NaFlex tower's processor makes, or `tower_states`
    (N, S, E); `input_ids`, `attention_mask` (N, M, L); `caption_mask`, `caption_ids` (N, M); `image_mask` (N,).
    """

    def __init__(
        self,
        processor: HolisticCLIPProcessor,
        slots: Sequence[str],
        *,
        augmentation: Augmentation | None = None,
        captions_per_image: int | None = None,
        sentences_per_caption: int | None = None,
        seed: int = 0,
        takes_empty: bool = False,
    ) -> None:
        if not slots or len(set(slots)) != len(slots):
            raise ValueError(f"`slots` must be distinct names of perspectives, at least one; got {list(slots)}.")
        self.processor = processor
        self.slots = list(slots)
        self.augmentation = augmentation
        self.captions_per_image = captions_per_image
        self.sentences_per_caption = sentences_per_caption
        self.seed = seed
        self.takes_empty = takes_empty
        self.epoch = 0
        self.is_training = True

    def for_evaluation(self) -> "HolisticCLIPCollator":
        """Return the same without anything random."""
        other = copy.copy(self)
        other.is_training, other.augmentation = False, None
        return other

    def __call__(self, rows: Sequence[Row | None]) -> dict[str, Any]:
        """Return a batch; nothing where rows are None, which stands for those that a resumed run has seen."""
        present = [row for row in rows if row is not None]
        if not present:
            return {}
        worker = get_worker_info()
        if worker is not None and (worker.id > 0 or self.epoch > 0):
            # Each epoch has new workers, which do not know what was said by others.
            self.processor.tells_of_cuts = False
        left_out: dict[str, str] = {}
        names = _names_of(present)
        drawn = [self._draw_row(row, name, left_out) for row, name in zip(present, names, strict=True)]
        images = self._read_pixels(names, [image for image, _ in drawn], left_out)
        missing: list[str | None] = [None] * len(self.slots)
        captions = [missing if pixels is None else texts for pixels, (_, texts) in zip(images, drawn, strict=True)]
        has_captions = any(text for texts in captions for text in texts)
        readable = [pixels for pixels in images if pixels is not None]
        if self.is_training and not self.takes_empty:
            self._require_something(present, bool(readable), has_captions, left_out)
        # Behind the pixels of another image, without captions: each rank has to bring equally many rows.
        stand_in = readable[0] if readable else self._pixels_of_nothing(present[0])
        return {
            **stack_pixels([stand_in if pixels is None else pixels for pixels in images]),
            **(self.processor.nested_captions(captions) if has_captions else self._no_captions(len(present))),
            "image_ids": [row["image_id"] for row in present],
            "image_mask": torch.tensor([pixels is not None for pixels in images]),
            "left_out": left_out,
            **({"place": tuple(present[-1][PLACE])} if PLACE in present[-1] else {}),
        }

    def _draw_row(self, row: Row, name: str, left_out: dict[str, str]) -> tuple[Any, list[str | None]]:
        """Return the image, augmented, or None if it does not decode, and a text or None for each slot."""
        generator = self._generator(row)
        change = self._draw_change(row, generator)
        image = self._read_image(row.get("image"), change)
        if isinstance(image, str):
            left_out[name] = image
            return None, []
        captions = usable_captions(name, row.get("captions"), left_out)
        if change is not None:
            captions = [each for each in captions if each.perspective not in change.hidden]
        return image, self._draw_captions(captions, generator)

    def _draw_change(self, row: Row, generator: torch.Generator) -> Change | None:
        """Draw how the image is augmented, if it is."""
        return None if self.augmentation is None else self.augmentation.draw(generator)

    def _read_image(self, image: Any, change: Change | None) -> Any:
        """Return the image, augmented, or the reason why it cannot be read.

        It is made small at once, so that a batch of large photos is never held in full size.
        """
        image = image_or_reason(image)
        if isinstance(image, str):
            return image
        try:
            if self.augmentation is None or change is None:
                return self.processor.resized(image)
            return self.augmentation.apply(self.processor.to_rgb(image), change)
        except ValueError as error:
            return f"the processor refuses it: {error}"

    def _read_pixels(
        self, names: Sequence[str], images: Sequence[Any], left_out: dict[str, str]
    ) -> list[Pixels | None]:
        """Return the pixels of each image; None for one that did not decode, or that the processor refuses."""
        read = iter(readable_pixels(self.processor, [image for image in images if image is not None]))
        pixels: list[Pixels | None] = []
        for name, image in zip(names, images, strict=True):
            found = None if image is None else next(read)
            if isinstance(found, str):
                left_out[name] = found
            pixels.append(None if isinstance(found, str) else found)
        return pixels

    def read_images(self, rows: Sequence[Row]) -> list[Pixels | str]:
        """Return the pixels of each row's image, augmented as in a batch, or the reason why it has none."""
        images = [self._read_image(row.get("image"), self._draw_change(row, self._generator(row))) for row in rows]
        return [image if isinstance(image, str) else readable_pixels(self.processor, [image])[0] for image in images]

    def _pixels_of_nothing(self, row: Row) -> Pixels:
        """Stand in for the images of a batch of which none is readable."""
        made = self.processor(images=Image.new("RGB", (1, 1)), return_tensors="pt")
        return {name: value[0] for name, value in made.items()}

    def _no_captions(self, num_images: int) -> dict[str, Tensor]:
        """Stand in for the captions of a last, small batch of evaluation: something to encode, of which nothing
        counts.
        """
        tokens = self.processor.nested_captions([["-"] * len(self.slots)] * num_images)
        return {**tokens, "caption_mask": torch.zeros_like(tokens["caption_mask"])}

    def _require_something(
        self, rows: Sequence[Row], has_image: bool, has_captions: bool, left_out: Mapping[str, str]
    ) -> None:
        reasons = first_reasons(left_out)
        if not has_image:
            raise ValueError(f"No image of the batch is readable. {reasons}. Check where the images are stored.")
        if not has_captions:
            faults: dict[str, str] = {}
            captions = [each for row in rows for each in usable_captions(row["image_id"], row.get("captions"), faults)]
            present = sorted({caption.perspective for caption in captions})
            raise ValueError(
                f"No readable image of the batch has a caption for any of the slots {self.slots}. The corpus has: "
                f"{', '.join(present) or 'none'}. Set `slots` to perspectives of the corpus."
                f"{f' Left out are {reasons}.' if reasons else ''}"
            )

    def _generator(self, row: Row, epoch: int | None = None) -> torch.Generator:
        """Return the source of what is random about a row in an epoch, by default in this one."""
        if epoch is None:
            epoch = row[PLACE].number if PLACE in row else self.epoch
        what = f"{self.seed} {epoch} {row['image_id']}".encode()
        seed = int.from_bytes(hashlib.blake2b(what, digest_size=8).digest(), "big") >> 1
        return torch.Generator().manual_seed(seed)

    def _draw_captions(self, captions: Sequence[UsableCaption], generator: torch.Generator) -> list[str | None]:
        texts = [self._draw(captions, slot, generator) for slot in self.slots]
        if not self.is_training:
            return texts
        present = [place for place, text in enumerate(texts) if text is not None]
        if self.captions_per_image is not None and len(present) > self.captions_per_image:
            for left_out in torch.randperm(len(present), generator=generator)[self.captions_per_image :].tolist():
                texts[present[left_out]] = None
        if self.sentences_per_caption is not None:
            most = self.sentences_per_caption
            texts = [text if text is None else sample_sentences(text, most, generator) for text in texts]
        return texts

    def _draw(self, captions: Sequence[UsableCaption], slot: str, generator: torch.Generator) -> str | None:
        texts = [caption.text for caption in captions if caption.perspective == slot]
        if not texts:
            return None
        drawn = torch.randint(len(texts), (), generator=generator) if self.is_training and len(texts) > 1 else 0
        return texts[int(drawn)]
