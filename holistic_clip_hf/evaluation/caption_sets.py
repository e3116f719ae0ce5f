# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Retrieval by several captions at once: an image is asked for by all that is said of it.

All images are candidates; those without captions own no set, and are counted as left out. Images of which the same
is said own one set, and each is correct for it. The score of an image and a set is the mean of its scores with each
caption (a text that stands under two perspectives counts twice): fused, or *by name*, where each caption is answered
by the branch that is called as its perspective. Ties count against the model, as in the other protocols.

Axes: N images, S sets, M captions in the largest set, T distinct texts, H branches, D projection width.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from .encoding import DualEncoder, FusedVectors, fuse
from .metrics import caption_pairs
from .protocols import Captions
from .ranking import Score, dot
from .records import BY_NAME, FUSED, Detail

CAPTION_SETS = "caption_sets"  # of `protocol`

CaptionSet = tuple[tuple[str, str], ...]  # perspective and text of each caption; none twice


def caption_sets(captions: Captions) -> tuple[list[CaptionSet], Tensor]:
    """The distinct sets (S) of N images, and pairs (R, 2) of image index and set index; `ValueError` without any.

    >>> caption_sets({"short": [["a cat"], ["a cat"], []], "style": [["flat"], ["flat"], []]})
    ([(('short', 'a cat'), ('style', 'flat'))], tensor([[0, 0],
            [1, 0]]))
    """
    num_images = len(next(iter(captions.values())))
    each = [
        tuple(sorted({(perspective, text) for perspective, owned in captions.items() for text in owned[image]}))
        for image in range(num_images)
    ]
    if not any(each):
        raise ValueError("No image has a caption, so there is nothing to ask for. Name perspectives of the corpus.")
    return caption_pairs([[one] if one else [] for one in each])


def vectors_of_sets(
    model: DualEncoder,
    branch_embeds: Tensor,
    sets: Sequence[CaptionSet],
    text_embeds: Mapping[str, Tensor],
    *,
    with_branches: bool = True,
) -> Iterator[tuple[dict[str, Detail], FusedVectors]]:
    """What compares images and sets: fused, then by name, where there are several branches, one for each perspective.

    Shapes: `branch_embeds` (N, H, D); `text_embeds` (D,) of each text; all of unit length.
    """
    texts = {text: row for row, text in enumerate(dict.fromkeys(text for one in sets for _, text in one))}
    embeds = torch.stack([text_embeds[text] for text in texts])  # (T, D) of the distinct ones
    rows = [torch.tensor([texts[text] for _, text in one]) for one in sets]
    fused = fuse(model, branch_embeds, embeds)
    if fused.score is dot:
        fused = fused._replace(texts=torch.stack([fused.texts[each].mean(dim=0) for each in rows]))
    else:
        # (S, M, D): a text of zeros adds nothing to a score.
        padded = nn.utils.rnn.pad_sequence([embeds[each] for each in rows], batch_first=True)
        fused = fused._replace(texts=padded, score=_mean_over_captions(fused.score))
    yield {"branch": FUSED, "fusion": model.config.fusion}, fused
    names = list(model.config.perspectives)
    if with_branches and len(names) > 1 and {perspective for one in sets for perspective, _ in one} <= set(names):
        by_branch = embeds.new_zeros(len(sets), len(names), embeds.shape[1])
        for place, (one, each) in enumerate(zip(sets, rows, strict=True)):
            branches = torch.tensor([names.index(perspective) for perspective, _ in one])
            by_branch[place].index_add_(0, branches, embeds[each] / len(one))
        yield {"branch": BY_NAME}, FusedVectors(branch_embeds.flatten(1), by_branch.flatten(1), dot)


def _mean_over_captions(score: Score) -> Score:
    def of_sets(images: Tensor, sets: Tensor) -> Tensor:
        count = sets.any(dim=2).sum(dim=1)
        return sum(score(images, texts) for texts in sets.unbind(dim=1)) / count

    return of_sets
