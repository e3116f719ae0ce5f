"""Rivals of named branches that need no training: tricks on one vector, on patches, and on captions.

Pure functions over embeddings and texts, each written after its paper. Numbers that a paper leaves to the user are
chosen by `training.attribute_study`.

Axes: N images, T texts, P patches, S texts of a perspective, D projection width.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from holistic_clip_hf.words import words_of

DEO_RATE, DEO_WANTED, DEO_ORIGINAL, DEO_UNWANTED = 0.001, 1.0, 0.2, 1.0  # of its released code
# Ways to ask a checkpoint for attributes, by what they need of it. `training.attribute_study` says how each scores.
OF_ANY = ("vector", "patches", "patches_narrow", "own_caption_words")
OF_ONE_VECTOR = ("conditional", "optimised", "caption_words", "caption_vectors")
OF_BRANCHES = ("routed", "by_name")
WAYS = (*OF_ANY, *OF_ONE_VECTOR, *OF_BRANCHES)


def require_ways(where: str, ways: Sequence[str], branches: Sequence[str], perspectives: Sequence[str]) -> None:
    """Refuse ways to ask that a method does not have.

    Args:
        where: Place that names them, for messages.
        ways: Ways of the method.
        branches: Names of its branches.
        perspectives: Perspectives of the texts that ask.

    Raises:
        ValueError: an unknown way, or one whose prerequisite is missing.
    """
    if unknown := [way for way in ways if way not in WAYS]:
        raise ValueError(f"{where}: `ways` has {unknown}; expected some of {', '.join(WAYS)}.")
    lacking = [name for name in perspectives if name not in branches]
    for way in ways:
        if way in OF_BRANCHES and lacking:
            raise ValueError(
                f"{where}: `ways` has {way!r}; expected a branch for each perspective, and {', '.join(lacking)} has "
                "none. Leave it out."
            )
        if way in OF_ONE_VECTOR and len(branches) > 1:
            raise ValueError(f"{where}: `ways` has {way!r}; expected one vector, not {len(branches)}. Leave it out.")


def conditional_scores(images: Tensor, texts: Tensor, of_perspective: Tensor, rank: int) -> Tensor:
    """Compare images and texts within the subspace in which texts of one perspective differ, (T, N).

    After CLAY (https://arxiv.org/abs/2604.11539), which compares two images so. Vectors become tangents of the sphere
    at the mean text, where the leading directions of the perspective's texts span the subspace. Images, which lie
    elsewhere than texts, are first reflected so that their mean is that of the texts.

    Args:
        images: Vectors of unit length, (N, D).
        texts: Texts that ask, of unit length, (T, D).
        of_perspective: Texts of the perspective, of unit length, (S, D).
        rank: Number of directions.
    """
    centre = F.normalize(of_perspective.mean(dim=0), dim=0)
    directions = torch.linalg.svd(tangents(of_perspective, centre), full_matrices=False).Vh[:rank]
    seen = tangents(reflect(images, F.normalize(images.mean(dim=0), dim=0), centre), centre)
    asked = tangents(texts, centre)
    return F.normalize(asked @ directions.T, dim=1) @ F.normalize(seen @ directions.T, dim=1).T


def tangents(vectors: Tensor, centre: Tensor) -> Tensor:
    """Return the logarithmic map of unit vectors (N, D) at a unit `centre` (D,): as long as the angle between them."""
    cosine = (vectors @ centre).clamp(-1, 1)
    across = vectors - cosine[:, None] * centre
    return F.normalize(across, dim=1) * torch.arccos(cosine)[:, None]


def reflect(vectors: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Move vectors (N, D) by the mirror that puts the unit vector `start` (D,) on the unit vector `end` (D,)."""
    normal = F.normalize(start - end, dim=0)
    return vectors - 2 * (vectors @ normal)[:, None] * normal


def optimised_queries(wanted: Tensor, unwanted: Tensor, steps: int) -> Tensor:
    """Move queries towards what is wanted and away from what is not, by gradient descent on the queries alone.

    DEO (https://arxiv.org/abs/2603.09185), with the weights and the optimiser of its released code, of 500 steps there
    and 20 in the paper. The query that begins is what is wanted, since no caption of the corpora says "not".

    Args:
        wanted: Texts that are wanted, of unit length, (Q, D).
        unwanted: Text that each query does not want, of unit length, (Q, D).
        steps: Number of steps.

    Returns:
        Queries of unit length, (Q, D).
    """
    queries = wanted.clone().requires_grad_()
    optimizer = torch.optim.Adam([queries], lr=DEO_RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        near, far = (_distances(queries, each) for each in (wanted, unwanted))
        ((DEO_WANTED + DEO_ORIGINAL) * near - DEO_UNWANTED * far).sum().backward()
        optimizer.step()
        with torch.no_grad():
            queries.copy_(F.normalize(queries, dim=1))
    return queries.detach()


def _distances(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().sum(dim=1).add(1e-12).sqrt()  # the gradient of zero is not a number


def patch_scores(patches: Tensor, texts: Tensor) -> Tensor:
    """Return the similarity (T, N) of texts (T, D) and the patch that is most like each, of (N, P, D).

    Late interaction, as ColBERT's MaxSim with one vector per text (https://arxiv.org/abs/2004.12832).
    """
    return torch.einsum("npd,td->tnp", patches, texts).amax(dim=2)


def leading_directions(vectors: Tensor, width: int) -> Tensor:
    """Return the directions (width, D) that keep most of the length of vectors (N, D)."""
    return torch.linalg.svd(vectors, full_matrices=False).Vh[:width]


class WordSearch:
    """Search over captions by words: BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009).

    Args:
        captions: Texts of N images; an empty one is found by nothing.
        saturation: Parameter k1, by default 1.2, as Lucene's.
        length_weight: Parameter b, by default 0.75, as Lucene's.
    """

    def __init__(self, captions: Sequence[str], *, saturation: float = 1.2, length_weight: float = 0.75) -> None:
        counts = [Counter(_words(caption)) for caption in captions]
        lengths = torch.tensor([float(each.total()) for each in counts])
        relative = lengths / lengths.mean().clamp(min=1)
        self._penalty = saturation * (1 - length_weight + length_weight * relative)
        self._saturation = saturation
        self._counts: dict[str, Tensor] = {}
        for row, each in enumerate(counts):
            for word, count in each.items():
                self._counts.setdefault(word, torch.zeros(len(captions)))[row] = count

    def scores(self, query: str) -> Tensor:
        """Score the images for a query, (N,)."""
        found = torch.zeros(len(self._penalty))
        for word in _words(query):
            if (counts := self._counts.get(word)) is not None:
                having = int((counts > 0).sum())
                rarity = math.log(1 + (len(counts) - having + 0.5) / (having + 0.5))
                found += rarity * counts * (self._saturation + 1) / (counts + self._penalty)
        return found


def _words(text: str) -> list[str]:
    """Return the words of a text that name something; a word that is said twice counts twice."""
    return [word for part in text.split() for word in words_of(part)]
