# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Protocols of retrieval: which texts ask, which images are candidates, and what is correct for what.

- `per_perspective`: the distinct captions of one perspective at a time. Two images with the same caption are both
  correct for it. All images are candidates; only those that own such a caption ask, and the others are counted.
- `standard`, the field's: all captions of all perspectives in one set, each a text of its own, for which only the
  image that it came with is correct; one correct text in front is enough for an image (CLIP_benchmark's definition,
  https://github.com/LAION-AI/CLIP_benchmark).
- `paper`: of each perspective the first caption of each image, in a one-to-one set; images without one, and further
  captions, are left out and counted. So the released code scores (its Tables 1 and 2): image to text reads far too
  low beside the standard protocol, and the numbers of the two must not be compared.

Ties count against the model in all of them: of two images with an equal caption, `standard` and `paper` take one for
wrong, so that neither of their texts finds its image first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from ..processing_holistic_clip import clean_caption
from .metrics import caption_pairs
from .records import PER_PERSPECTIVE

STANDARD = "standard"
PAPER = "paper"
ALL_PERSPECTIVES = "all"

Captions = Mapping[str, Sequence[Sequence[str]]]


class Question(NamedTuple):
    """One set of texts against images.

    Shapes: `texts` (T); `images` (N',), the rows of the corpus that are candidates; `pairs` (R, 2), an index into
    `images` and one into `texts`. `perspective` names the texts. What the protocol itself leaves out is counted in
    `num_images_out` and `num_texts_out`.
    """

    perspective: str
    texts: Sequence[str]
    images: Tensor
    pairs: Tensor
    num_images_out: int = 0
    num_texts_out: int = 0


def per_perspective(captions: Captions) -> list[Question]:
    questions = []
    for perspective, owned in captions.items():
        texts, pairs = caption_pairs(owned)
        questions.append(Question(perspective, texts, torch.arange(len(owned)), pairs))
    return questions


def standard(captions: Captions) -> list[Question]:
    owners = [(image, text) for owned in captions.values() for image, texts in enumerate(owned) for text in texts]
    pairs = torch.tensor([(image, index) for index, (image, _) in enumerate(owners)])
    num_images = len(next(iter(captions.values())))
    return [Question(ALL_PERSPECTIVES, [text for _, text in owners], torch.arange(num_images), pairs)]


def paper(captions: Captions) -> list[Question]:
    questions = []
    for perspective, owned in captions.items():
        images = [image for image, texts in enumerate(owned) if texts]
        both = torch.arange(len(images))[:, None].expand(-1, 2)
        first, further = [owned[image][0] for image in images], sum(map(len, owned)) - len(images)
        images_out = len(owned) - len(images)
        questions.append(Question(perspective, first, torch.tensor(images), both, images_out, further))
    return questions


PROTOCOLS: dict[str, Callable[[Captions], list[Question]]] = {
    PER_PERSPECTIVE: per_perspective,
    STANDARD: standard,
    PAPER: paper,
}


def captions_by_perspective(dataset: Dataset, perspectives: Sequence[str]) -> dict[str, list[list[str]]]:
    """For each perspective the texts of N images, cleaned as the processor does; an empty list where there is none."""
    if not perspectives:
        raise ValueError("`perspectives` is empty. Name at least one perspective of the corpus.")
    rows = list(dataset["captions"])
    found: dict[str, list[list[str]]] = {perspective: [[] for _ in rows] for perspective in perspectives}
    for index, row in enumerate(rows):
        for caption in row:
            if caption["perspective"] in found:
                text = clean_caption(caption["text"])
                if not text:
                    raise ValueError(
                        f"Row {index}: the caption of {caption['perspective']} is empty once cleaned; it was "
                        f"{caption['text']!r}. Leave a missing caption out of the list."
                    )
                found[caption["perspective"]][index].append(text)
    absent = [perspective for perspective, texts in found.items() if not any(texts)]
    if absent:
        present = sorted({caption["perspective"] for row in rows for caption in row})
        raise ValueError(
            f"No image here has a caption of {', '.join(absent)}. It has {', '.join(present) or 'no captions'}."
        )
    return found
