# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Who ranks where: the order of candidates for each query, exactly, in bounded memory.

- Which candidate is correct for which query is a list of index pairs, so an image may own several texts and a text
  several images.
- Ties count against the model: an incorrect candidate that scores as high as a correct one ranks before it. A
  collapsed model, whose scores are all equal, has the worst ranks there are.
- Memory is bounded: a block of queries against a block of candidates, never the whole score matrix, in float64.

Axes: Q queries, K candidates, R pairs, D projection width.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
Score = Callable[[Tensor, Tensor], Tensor]

TEXT_TO_IMAGE = "text_to_image"
IMAGE_TO_TEXT = "image_to_text"
DIRECTIONS = (TEXT_TO_IMAGE, IMAGE_TO_TEXT)

# Of the product of the two vectors' lengths. Two encodings of one input differ by rounding, about 1e-7 in float32;
# winning by less than this is no preference.
TIE_TOLERANCE = 1e-6

CHUNK_SIZE = 256  # queries, and
FEW_CORRECT = 24  # up to which comparing one by one is faster than sorting
BLOCK_SIZE = 2_048  # candidates: 4 MB of float64 scores, which a core's cache still holds


class DirectionRanks(NamedTuple):
    """What a direction's queries got, with what is needed to read it.

    Shapes: `ranks` (Q,), 0 is best; `num_correct` (Q,), correct candidates per query; `precision` (Q,), the average
    precision of each. `num_left_out` counts the rows that were no query because nothing is correct for them; as
    candidates of the other direction they still count.
    """

    ranks: Tensor
    precision: Tensor
    num_correct: Tensor
    num_candidates: int
    num_left_out: int


def dot(queries: Tensor, candidates: Tensor) -> Tensor:
    """(q, D) and (k, D) to (q, k)."""
    return queries @ candidates.T


def swapped(score: Score) -> Score:
    """The same score, asked for texts and images instead of images and texts."""
    return score if score is dot else lambda texts, images: score(images, texts).T


def retrieval_ranks(
    query_embeds: Array, candidate_embeds: Array, pairs: Array, *, score: Score = dot, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Rank, counted from 0, of the best-ranked correct candidate of each query.

    Shapes: `query_embeds` (Q, D); `candidate_embeds` (K, D); `pairs` (R, 2), the query index and the index of a
    candidate that is correct for it. Returns (Q,) int64. The rank is the number of incorrect candidates that score at
    least as high, within `TIE_TOLERANCE`, as the best correct one. With a `score` of its own, which takes chunks of
    both and returns (q, k), the two may have further axes.

    Example: two images, four texts; texts 0 and 1 belong to image 0, texts 2 and 3 to image 1.

    >>> images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> texts = torch.tensor([[1.0, 0.0], [0.2, 0.8], [0.5, 0.5], [0.0, 1.0]])
    >>> pairs = torch.tensor([[0, 0], [1, 0], [2, 1], [3, 1]])  # text, image
    >>> retrieval_ranks(texts, images, pairs)  # text 1 prefers image 1; text 2 cannot decide
    tensor([0, 1, 1, 0])
    >>> retrieval_ranks(images, texts, pairs[:, [1, 0]])  # one correct text in front is enough
    tensor([0, 0])

    Raises `ValueError` for a query without a correct candidate and for embeddings that are not finite, which would
    otherwise win every comparison.
    """
    ranks = []
    for part in _parts(query_embeds, candidate_embeds, pairs, score, chunk_size):
        best = part.own.new_full((len(part.queries),), -torch.inf)
        best.scatter_reduce_(0, part.row, part.own, "amax")
        lowest = (best - part.tolerance)[:, None]
        ahead = sum(_count(scores >= lowest) for scores in part.blocks())
        correct_ahead = torch.zeros_like(best).index_add_(0, part.row, (part.own >= lowest[part.row, 0]).double())
        ranks.append(ahead - correct_ahead.long())
    return torch.cat(ranks)


def average_precision(
    query_embeds: Array, candidate_embeds: Array, pairs: Array, *, score: Score = dot, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Mean, over the correct candidates of each query, of the precision at the place where each stands; (Q,) float64.

    Shapes and ties as in `retrieval_ranks`. Where one candidate is correct it is 1 / (1 + rank); its mean over
    queries is the field's mAP (Manning et al., "Introduction to Information Retrieval", 2008, section 8.4).

    >>> scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    >>> average_precision(torch.ones(1, 1), scores.T, torch.tensor([[0, 0], [0, 2]]))  # (1/1 + 2/3) / 2
    tensor([0.8333], dtype=torch.float64)
    """
    parts = _parts(query_embeds, candidate_embeds, pairs, score, chunk_size)
    return torch.cat([_precision(*_incorrect_ahead(part)) for part in parts])


def rank_both_directions(
    image_embeds: Array, text_embeds: Array, pairs: Array, *, score: Score = dot, chunk_size: int = CHUNK_SIZE
) -> dict[str, DirectionRanks]:
    """Ranks of texts looking for images and of images looking for texts.

    Shapes: `image_embeds` (N, D); `text_embeds` (T, D); `pairs` (R, 2), image index and text index. `score` takes
    images and texts, in this order. All images and all texts are candidates; only those that own a counterpart are
    queries, the others are counted in `num_left_out`.
    """
    images, texts = torch.as_tensor(image_embeds), torch.as_tensor(text_embeds)
    image_text = torch.unique(_pairs(pairs, len(images), len(texts)), dim=0)
    if len(image_text) == 0:
        raise ValueError("No image owns a text, so there is nothing to retrieve. Pass at least one pair.")
    return {
        TEXT_TO_IMAGE: _rank_queries(texts, images, image_text[:, [1, 0]], swapped(score), chunk_size),
        IMAGE_TO_TEXT: _rank_queries(images, texts, image_text, score, chunk_size),
    }


def top_candidates(
    query_embeds: Array, candidate_embeds: Array, k: int, *, score: Score = dot, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Indices (Q, k) of the candidates with the highest scores, best first; equal scores keep their order."""
    queries, candidates = (
        _embeddings(name, embeds, flat=score is dot)
        for name, embeds in (("query_embeds", query_embeds), ("candidate_embeds", candidate_embeds))
    )
    if not 1 <= k <= len(candidates):
        raise ValueError(f"`k` is {k}. Valid: 1 to the number of candidates, {len(candidates)}.")
    return torch.cat([_first(chunk.double(), candidates, k, score) for chunk in queries.split(chunk_size)])


def _first(queries: Tensor, candidates: Tensor, k: int, score: Score) -> Tensor:
    scores, indices = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start, block in zip(range(0, len(candidates), BLOCK_SIZE), candidates.split(BLOCK_SIZE), strict=True):
        scores = torch.cat([scores, score(queries, block.double())], dim=1)
        here = torch.arange(start, start + len(block)).expand(len(queries), -1)
        # What was found before stands first, so that a stable order keeps that of the candidates.
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        scores, indices = scores.gather(1, best), torch.cat([indices, here], dim=1).gather(1, best)
    return indices


class _Part(NamedTuple):
    """Some queries, with the scores `own` (r,) of their correct candidates; `row` (r,) says whose each is."""

    queries: Tensor
    candidates: Tensor
    score: Score
    row: Tensor
    own: Tensor
    tolerance: Tensor

    def blocks(self) -> Iterator[Tensor]:
        """Scores against all candidates, some at a time."""
        for block in self.candidates.split(BLOCK_SIZE):
            yield self.score(self.queries, block.double())


def _parts(
    query_embeds: Array, candidate_embeds: Array, pairs: Array, score: Score, chunk_size: int
) -> Iterator[_Part]:
    queries, candidates = (
        _embeddings(name, embeds, flat=score is dot)
        for name, embeds in (("query_embeds", query_embeds), ("candidate_embeds", candidate_embeds))
    )
    if queries.shape[-1] != candidates.shape[-1]:
        raise ValueError(
            f"Queries have width {queries.shape[-1]}, candidates {candidates.shape[-1]}. Make them agree."
        )
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` is {chunk_size}. Valid: 1 or more.")
    pairs = _ordered_pairs(pairs, len(queries), len(candidates))
    longest = max(float(_lengths(block).max()) for block in candidates.split(BLOCK_SIZE))
    for start in range(0, len(queries), chunk_size):
        chunk = queries[start : start + chunk_size].double()
        first, last = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([start, start + len(chunk)])).tolist()
        row = pairs[first:last, 0] - start
        own = _own_scores(chunk, candidates, row, pairs[first:last, 1], score)
        yield _Part(chunk, candidates, score, row, own, TIE_TOLERANCE * _lengths(chunk) * longest)


def _own_scores(queries: Tensor, candidates: Tensor, row: Tensor, correct: Tensor, score: Score) -> Tensor:
    """(r,) of pairs: the query's row and the candidate's. Several queries share a candidate; each is scored once."""
    distinct, column = correct.unique(return_inverse=True)
    own = torch.empty(len(row), dtype=torch.float64)
    for start in range(0, len(distinct), BLOCK_SIZE):
        block = score(queries, candidates[distinct[start : start + BLOCK_SIZE]].double())
        inside = (column >= start) & (column < start + BLOCK_SIZE)
        own[inside] = block[row[inside], column[inside] - start]
    return own


def _lengths(embeds: Tensor) -> Tensor:
    return embeds.double().norm(dim=-1).reshape(len(embeds), -1).amax(dim=1)


def _rank_queries(queries: Tensor, candidates: Tensor, pairs: Tensor, score: Score, chunk_size: int) -> DirectionRanks:
    present, renumbered, num_correct = pairs[:, 0].unique(return_inverse=True, return_counts=True)
    asked = queries[present.to(queries.device)]
    pairs = torch.stack([renumbered, pairs[:, 1]], dim=1)
    ranks, precision = [], []
    for part in _parts(asked, candidates, pairs, score, chunk_size):
        incorrect, count = _incorrect_ahead(part)
        ranks.append(incorrect.gather(1, count[:, None] - 1)[:, 0].long())  # of the best correct one, the last
        precision.append(_precision(incorrect, count))
    left_out = len(queries) - len(present)
    return DirectionRanks(torch.cat(ranks), torch.cat(precision), num_correct, len(candidates), left_out)


def _incorrect_ahead(part: _Part) -> tuple[Tensor, Tensor]:
    """For each correct candidate of each query, how many incorrect ones are ahead; and how many are correct (q,).

    (q, most correct), the worst correct candidate first; what is beyond a query's own number of them means nothing.
    """
    count = part.row.bincount(minlength=len(part.queries))
    order = torch.from_numpy(np.lexsort((part.own.numpy(), part.row.numpy())))
    place = torch.arange(len(order)) - (count.cumsum(0) - count)[part.row[order]]
    own = torch.full((len(count), int(count.max())), torch.inf, dtype=torch.float64)
    own[part.row[order], place] = part.own[order]
    lowest = own - part.tolerance[:, None]
    ahead = torch.zeros_like(own)
    for scores in part.blocks():
        if own.shape[1] <= FEW_CORRECT:
            ahead += torch.stack([_count(scores >= each[:, None]) for each in lowest.unbind(dim=1)], dim=1)
        else:
            ahead += scores.shape[1] - torch.searchsorted(scores.contiguous().sort(dim=1).values, lowest)
    # Correct ones among them: at least those from its own place on, and those that tie with it before.
    correct_ahead = count[:, None] - torch.searchsorted(own, lowest)
    return ahead - correct_ahead, count


def _count(ahead: Tensor) -> Tensor:
    return ahead.sum(dim=1, dtype=torch.int32)  # of one block; half the time of int64


def _precision(incorrect: Tensor, count: Tensor) -> Tensor:
    number = (count[:, None] - torch.arange(incorrect.shape[1])).clamp(min=0)  # the j-th of the correct ones, from 1
    return torch.where(number > 0, number / (number + incorrect), 0.0).sum(dim=1) / count


def _embeddings(name: str, embeds: Array, *, flat: bool = True) -> Tensor:
    matrix = torch.as_tensor(embeds).detach().cpu()
    if matrix.ndim != 2 and (flat or matrix.ndim < 2):
        raise ValueError(f"`{name}` has shape {tuple(matrix.shape)}. Expected (rows, width): one branch at a time.")
    if len(matrix) == 0:
        raise ValueError(f"`{name}` has no rows. Pass at least one.")
    if not matrix.isfinite().all():
        raise ValueError(f"`{name}` holds values that are not finite. Check the model that made them.")
    return matrix


def _pairs(pairs: Array, *lengths: int) -> Tensor:
    pairs = torch.as_tensor(pairs).cpu()
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"`pairs` has shape {tuple(pairs.shape)}. Expected (pairs, 2), row indices.")
    if bool((pairs < 0).any()) or bool((pairs >= torch.tensor(lengths)).any()):
        found = " and ".join(str(length) for length in lengths)
        raise ValueError(f"`pairs` names rows that do not exist; there are {found}. Rows count from 0.")
    return pairs


def _ordered_pairs(pairs: Array, num_queries: int, num_candidates: int) -> Tensor:
    ordered = _pairs(pairs, num_queries, num_candidates).unique(dim=0)
    without = num_queries - len(ordered[:, 0].unique())
    if without:
        raise ValueError(
            f"{without} of {num_queries} queries have no correct candidate. Leave them out, or use "
            "`rank_both_directions`, which leaves them out and counts them."
        )
    return ordered
