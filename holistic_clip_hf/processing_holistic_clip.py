# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The processor of Holistic CLIP: images and texts, and nested captions (several per image, some missing).

- Transparent images are composed on a background; dropping the alpha channel would show what was painted beneath.
- A special token written out inside a caption stays plain text.
- The same text has the same caption id in every process and every batch.
"""

import hashlib
import html
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin, logging

logger = logging.get_logger(__name__)


def caption_id(text: str) -> int:
    """A 63-bit number that two captions share exactly if they are the same text (up to hash collision, 1 in 2^63)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def clean_caption(text: str) -> str:
    """HTML entities resolved twice (web captions are often escaped twice) and white space folded, as CLIP does."""
    return " ".join(html.unescape(html.unescape(text)).split())


class HolisticCLIPProcessor(ProcessorMixin):
    """CLIP's image processor and tokenizer, joined.

    Args:
        image_processor: CLIP's.
        tokenizer: CLIP's.
        background: RGB, 0 to 255, on which transparent images are composed; white, like the page an image stands on.

    Example:

    >>> batch = processor(images=[image], text=["a red square"], return_tensors="pt")
    >>> captions = processor.nested_captions([["a red square", None], ["a blue circle", "circle, blue"]])
    >>> captions["caption_mask"]
    tensor([[ True, False],
            [ True,  True]])
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        background: Sequence[int] = (255, 255, 255),
        **kwargs: Any,
    ) -> None:
        if len(background) != 3 or not all(0 <= channel <= 255 for channel in background):
            raise ValueError(f"`background` must be three numbers from 0 to 255 (RGB); got {list(background)}.")
        self.background = list(background)
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images: Any = None, text: str | list[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Images to `pixel_values` (N, 3, height, width), texts to `input_ids` and `attention_mask` (T, L).

        Unless told otherwise, texts are padded to the longest and cut at the tokenizer's `model_max_length`.
        """
        if images is not None:
            images = self._compose(self.image_processor.fetch_images(images))
        if text is not None:
            text = clean_caption(text) if isinstance(text, str) else [clean_caption(one) for one in text]
            kwargs["text_kwargs"] = {"split_special_tokens": True, **kwargs.get("text_kwargs", {})}
            for option in {"padding", "truncation"} - kwargs["text_kwargs"].keys():
                kwargs.setdefault(option, True)
        return super().__call__(images=images, text=text, **kwargs)

    def nested_captions(self, captions: Sequence[Sequence[str | None]]) -> dict[str, Tensor]:
        """Tokenise M captions for each of N images; `None` stands for a missing one.

        Returns:
            `input_ids`, `attention_mask` (N, M, L), L the longest caption there; `caption_mask` (N, M) bool;
            `caption_ids` (N, M) int64.

        Raises:
            ValueError: rows of different length, no caption at all, or an empty caption.
        """
        num_images, num_slots = len(captions), len(captions[0]) if captions else 0
        if num_slots == 0 or any(len(row) != num_slots for row in captions):
            raise ValueError(
                f"Every image needs the same number of caption slots, at least one; got "
                f"{[len(row) for row in captions]}. Put None where a caption is missing."
            )
        mask = torch.tensor([[text is not None for text in row] for row in captions])
        present = [clean_caption(text) for row in captions for text in row if text is not None]
        if not present or not all(present):
            raise ValueError("A caption is empty, or none is given. Put None where a caption is missing.")
        unique = list(dict.fromkeys(present))
        encoded = self.tokenizer(unique, padding="longest", truncation=True, split_special_tokens=True)
        tokens = {name: torch.tensor(encoded[name]) for name in ("input_ids", "attention_mask")}
        row_of_text = {text: row for row, text in enumerate(unique)}
        rows = torch.tensor([row_of_text[text] for text in present])
        length = tokens["input_ids"].shape[1]
        input_ids = torch.full((num_images, num_slots, length), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros((num_images, num_slots, length), dtype=torch.long)
        caption_ids = torch.zeros((num_images, num_slots), dtype=torch.long)
        input_ids[mask], attention_mask[mask] = tokens["input_ids"][rows], tokens["attention_mask"][rows]
        caption_ids[mask] = torch.tensor([caption_id(text) for text in present])
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "caption_mask": mask,
            "caption_ids": caption_ids,
        }

    def _compose(self, images: Any) -> Any:
        if isinstance(images, (list, tuple)):
            return [self._compose(image) for image in images]
        if getattr(images, "mode", "").startswith("I;16"):
            return images.point(lambda value: value * (1 / 257)).convert("L")  # Pillow would clip 16 bits to white
        if not getattr(images, "has_transparency_data", False):  # arrays, tensors and opaque images
            return images
        drawn = images.convert("RGBA")
        page = drawn.convert("RGB")
        page.paste(tuple(self.background), (0, 0, *page.size))
        page.paste(drawn, mask=drawn.getchannel("A"))
        return page


__all__ = ["HolisticCLIPProcessor", "caption_id", "clean_caption"]
