# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Prompts about images as a captioner's tokens, and what several prompts about one image have in common."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from .perspectives import Perspective

# Inputs with one entry per token, by their names in transformers' `prepare_inputs_for_generation` (5.23); all others
# describe the images and are used up by the first pass over them.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids", "labels")

PROBE_SIZE = (224, 224)  # any size would do: what follows an image does not depend on it


def prompt_of(perspective: Perspective) -> str:
    """What a captioner is asked.

    Raises:
        ValueError: nothing, as the text comes with the image.
    """
    if perspective.prompt is None:
        raise ValueError(
            f"Got the perspective {perspective.name!r}, which has no prompt; expected what a captioner can be asked. "
            "Leave it out, as `asked` does."
        )
    return perspective.prompt


def encode(processor: ProcessorMixin, images: Sequence[Image.Image], prompt: str) -> BatchFeature:
    """The inputs of a model that is asked the same about every image: (N, L), padded on the left.

    A model without a chat template gets the prompt as it is; its processor adds the image.
    """
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    if not processor.chat_template:
        return processor(images=[[image] for image in images], text=[prompt] * len(images), **options)
    turns = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
        for image in images
    ]
    return processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=options
    )


class Suffixes(NamedTuple):
    """How prompts go on after all they have in common: the per-token inputs (S,) of each, S being its own."""

    each: Sequence[Mapping[str, Tensor]]

    def cut(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The inputs of the first prompt (N, L) without its suffix: the prefix, with all that describes the images.

        `None` if they do not end with the suffix: then the prompt reads otherwise for these images.
        """
        suffix = self.each[0]["input_ids"]
        length = len(suffix)
        if not (inputs["input_ids"][:, -length:].cpu() == suffix).all():
            return None
        return {name: value[:, :-length] if name in PER_TOKEN else value for name, value in inputs.items()}

    def extend(self, prefix: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
        """The per-token inputs (N, L) of the prompt at `place`, of which the prefix is in a cache already."""
        return {
            name: torch.cat([value, self.each[place][name].to(value.device).expand(len(value), -1)], dim=1)
            for name, value in prefix.items()
            if name in PER_TOKEN
        }


def find_suffixes(processor: ProcessorMixin, prompts: Sequence[str]) -> Suffixes | None:
    """Where prompts about one image part; `None` if that is before the end of the image."""
    rows = [encode(processor, [Image.new("RGB", PROBE_SIZE)], prompt) for prompt in prompts]
    ids = [row["input_ids"][0] for row in rows]
    length = _common_length(ids)
    images = torch.isin(ids[0], torch.tensor([each for each in processor.image_token_ids if each is not None]))
    if not images.any() or images[length:].any():
        return None
    return Suffixes([{name: row[name][0, length:] for name in PER_TOKEN if name in row} for row in rows])


def _common_length(ids: Sequence[Tensor]) -> int:
    """Tokens up to the first difference, and less than any has: from nothing, nothing is generated."""
    most = min(len(row) for row in ids) - 1
    differs = torch.stack([row[:most] != ids[0][:most] for row in ids]).any(dim=0)
    return int(differs.int().argmax()) if differs.any() else most
