# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""How parts of an image agree with texts: words with patches, captions with branches. Tensors only, no model.

Axes: H branches, M captions, T texts, P patches, D projection width.
"""

import re
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

# They name nothing that could be seen.
FUNCTION_WORDS = frozenset(
    ["a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "have", "in", "into", "is", "it", "its"]
    + ["of", "on", "onto", "or", "over", "that", "the", "their", "there", "this", "to", "under", "was", "were"]
    + ["which", "while", "who", "with"]
)


def words_of(caption: str) -> list[str]:
    """The words of a caption that could name something in a picture, each once, in their order.

    >>> words_of("A dog and a dog's ball, on the grass")
    ['dog', "dog's", 'ball', 'grass']
    """
    words = re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", caption.lower())
    return [word for word in dict.fromkeys(words) if word not in FUNCTION_WORDS]


def patch_agreement(patch_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Cosine of each text with each patch: (..., P, D) and (T, D) to (..., T, P).

    Patches are `get_patch_features`' `patch_embeds` (N, P, D) or, where each branch has its own,
    `branch_patch_embeds` (N, H, P, D).
    """
    return F.normalize(text_embeds, dim=-1) @ F.normalize(patch_embeds, dim=-1).mT


def part_matching(branch_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Cosine of each branch of one image with each of its captions: (H, D) and (M, D) to (H, M)."""
    return F.normalize(branch_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T


def best_branches(similarity: Tensor, branches: Sequence[str]) -> list[str]:
    """The branch that agrees most with each caption: of (H, M), M names."""
    return [branches[index] for index in similarity.argmax(dim=0).tolist()]
