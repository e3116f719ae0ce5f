# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Retrieval metrics as pure functions of embeddings: ranks, recall, median rank, chance and confidence.

- Which candidate is correct for which query is a list of index pairs, so an image may own several texts and a text
  several images.
- Ties count against the model: an incorrect candidate that scores as high as the best correct one ranks before it.
  A collapsed model, whose scores are all equal, has the worst ranks there are.
- Memory is bounded: one chunk of queries against all candidates, never the whole score matrix.

Axes: N images, T texts, Q queries, K candidates, R pairs, D projection width.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
Text = TypeVar("Text", bound=Hashable)

TEXT_TO_IMAGE = "text_to_image"
IMAGE_TO_TEXT = "image_to_text"
DIRECTIONS = (TEXT_TO_IMAGE, IMAGE_TO_TEXT)

# Of the product of the two vectors' lengths. Two encodings of one input differ by rounding, about 1e-7 in float32;
# winning by less than this is no preference.
TIE_TOLERANCE = 1e-6

PAPER_KS = (1, 5, 10)  # of the recalls in the paper's Tables 1 and 2

# 256 queries against 25,000 candidates (COCO's test captions) hold 51 MB of float64 scores.
CHUNK_SIZE = 256


class DirectionRanks(NamedTuple):
    """Ranks of one direction, with what is needed to read them.

    Shapes: `ranks` (Q,), 0 is best; `num_correct` (Q,), correct candidates per query. `num_left_out` counts the rows
    that were no query because nothing is correct for them; as candidates of the other direction they still count.
    """

    ranks: Tensor
    num_correct: Tensor
    num_candidates: int
    num_left_out: int


def caption_pairs(captions: Sequence[Sequence[Text]]) -> tuple[list[Text], Tensor]:
    """Distinct texts (T) of N images, and who owns which: pairs (R, 2) of image index and text index.

    Two captions are one text exactly where they are equal: then both images are correct for it.

    >>> caption_pairs([["a cat"], [], ["a dog", "a cat"]])
    (['a cat', 'a dog'], tensor([[0, 0],
            [2, 1],
            [2, 0]]))
    """
    text_index: dict[Text, int] = {}
    pairs = [
        (image, text_index.setdefault(text, len(text_index))) for image, texts in enumerate(captions) for text in texts
    ]
    return list(text_index), torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def distinct_captions(caption_ids: Array, caption_mask: Array | None = None) -> tuple[Tensor, Tensor]:
    """The same for captions that are already numbers, as a training batch has them.

    Shapes: `caption_ids` (N, M), equal exactly where two captions are the same text; `caption_mask` (N, M), true where
    there is a caption. Returns rows (T, 2), the image and slot where each distinct text stands first, and pairs
    (R, 2) of image index and text index: `text_embeds[rows[:, 0], rows[:, 1]]` are the texts.

    >>> rows, pairs = distinct_captions(torch.tensor([[7, 8], [9, 7]]))
    >>> rows.tolist(), pairs.tolist()
    ([[0, 0], [0, 1], [1, 0]], [[0, 0], [0, 1], [1, 2], [1, 0]])
    """
    ids = torch.as_tensor(caption_ids)
    mask = torch.ones_like(ids, dtype=torch.bool) if caption_mask is None else torch.as_tensor(caption_mask).bool()
    if ids.ndim != 2 or mask.shape != ids.shape:
        raise ValueError(
            f"`caption_ids` {tuple(ids.shape)} and `caption_mask` {tuple(mask.shape)} must both be "
            "(images, caption slots). For a single slot pass `ids[:, None]`."
        )
    places = mask.nonzero().cpu()  # (R, 2) image, slot
    _, pairs = caption_pairs([row[present].tolist() for row, present in zip(ids, mask, strict=True)])
    _, first = np.unique(pairs[:, 1].numpy(), return_index=True)
    return places[torch.from_numpy(first)], pairs


def retrieval_ranks(
    query_embeds: Array, candidate_embeds: Array, pairs: Array, *, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Rank, counted from 0, of the best-ranked correct candidate of each query by dot product.

    Shapes: `query_embeds` (Q, D); `candidate_embeds` (K, D); `pairs` (R, 2), the query index and the index of a
    candidate that is correct for it. Returns (Q,) int64. The rank is the number of incorrect candidates that score at
    least as high, within `TIE_TOLERANCE`, as the best correct one.

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
    queries, candidates = _embeddings("query_embeds", query_embeds), _embeddings("candidate_embeds", candidate_embeds)
    if queries.shape[1] != candidates.shape[1]:
        raise ValueError(f"Queries have width {queries.shape[1]}, candidates {candidates.shape[1]}. Make them agree.")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` is {chunk_size}. Valid: 1 or more.")
    pairs = _ordered_pairs(pairs, len(queries), len(candidates))
    longest = candidates.norm(dim=1).max() if len(candidates) else 0.0
    ranks = torch.empty(len(queries), dtype=torch.int64)
    for start in range(0, len(queries), chunk_size):
        chunk = queries[start : start + chunk_size]
        scores = chunk @ candidates.T  # (chunk, K)
        first, last = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([start, start + len(chunk)])).tolist()
        is_correct = torch.zeros_like(scores, dtype=torch.bool)
        is_correct[pairs[first:last, 0] - start, pairs[first:last, 1]] = True
        best = scores.masked_fill(~is_correct, -torch.inf).amax(dim=1, keepdim=True)
        tolerance = TIE_TOLERANCE * chunk.norm(dim=1, keepdim=True) * longest
        ranks[start : start + len(chunk)] = ((scores >= best - tolerance) & ~is_correct).sum(dim=1)
    return ranks


def rank_both_directions(
    image_embeds: Array, text_embeds: Array, pairs: Array, *, chunk_size: int = CHUNK_SIZE
) -> dict[str, DirectionRanks]:
    """Ranks of texts looking for images and of images looking for texts.

    Shapes: `image_embeds` (N, D); `text_embeds` (T, D); `pairs` (R, 2), image index and text index. All images and all
    texts are candidates; only those that own a counterpart are queries, the others are counted in `num_left_out`.
    """
    images, texts = torch.as_tensor(image_embeds), torch.as_tensor(text_embeds)
    image_text = torch.unique(_pairs(pairs, len(images), len(texts)), dim=0)
    if len(image_text) == 0:
        raise ValueError("No image owns a text, so there is nothing to retrieve. Pass at least one pair.")
    return {
        TEXT_TO_IMAGE: _rank_queries(texts, images, image_text[:, [1, 0]], chunk_size),
        IMAGE_TO_TEXT: _rank_queries(images, texts, image_text, chunk_size),
    }


def _rank_queries(queries: Tensor, candidates: Tensor, pairs: Tensor, chunk_size: int) -> DirectionRanks:
    present, renumbered, num_correct = pairs[:, 0].unique(return_inverse=True, return_counts=True)
    pairs = torch.stack([renumbered, pairs[:, 1]], dim=1)
    ranks = retrieval_ranks(queries[present.to(queries.device)], candidates, pairs, chunk_size=chunk_size)
    return DirectionRanks(ranks, num_correct, len(candidates), len(queries) - len(present))


def retrieval_recalls(
    image_embeds: Array, text_embeds: Array, pairs: Array, *, ks: Sequence[int] = PAPER_KS
) -> dict[str, float]:
    """Recalls of both directions under flat names, as a `Trainer` logs them.

    Shapes as in `rank_both_directions`.

    >>> embeds = torch.eye(2)
    >>> retrieval_recalls(embeds, embeds, torch.tensor([[0, 0], [1, 1]]), ks=(1,))
    {'text_to_image_recall@1': 1.0, 'image_to_text_recall@1': 1.0}
    """
    both = rank_both_directions(image_embeds, text_embeds, pairs)
    return {f"{name}_recall@{k}": value for name in DIRECTIONS for k, value in recall_at(both[name].ranks, ks).items()}


def recall_at(ranks: Array, ks: Sequence[int] = PAPER_KS) -> dict[int, float]:
    """Share of queries with a correct candidate among their first k; `ranks` (Q,) count from 0.

    >>> recall_at(torch.tensor([0, 4, 9, 30]), ks=(1, 5))
    {1: 0.25, 5: 0.5}
    """
    ranks = _non_empty("ranks", ranks)
    return {k: (ranks < k).double().mean().item() for k in _cutoffs(ks)}


def median_rank(ranks: Array) -> float:
    """Median over queries of the rank *counted from 1*, as papers print it; `ranks` (Q,) count from 0.

    >>> median_rank(torch.tensor([0, 1, 1, 8]))
    2.0
    """
    return float(np.median(_non_empty("ranks", ranks).cpu().numpy()) + 1)


def chance_recall_at(num_correct: Array, num_candidates: int, ks: Sequence[int] = PAPER_KS) -> dict[int, float]:
    """Expected recall of a random order of the candidates, in closed form.

    A query with r correct among K candidates misses with probability C(K - r, k) / C(K, k) (hypergeometric). Shapes:
    `num_correct` (Q,), r of each query.

    >>> chance_recall_at(torch.tensor([1, 2]), num_candidates=4, ks=(1, 2))  # (1/4 + 2/4) / 2, (1/2 + 5/6) / 2
    {1: 0.375, 2: 0.6666666666666667}
    """
    num_correct = _non_empty("num_correct", num_correct)
    if num_correct.min() < 1 or num_correct.max() > num_candidates:
        raise ValueError(
            f"Queries have {int(num_correct.min())} to {int(num_correct.max())} correct candidates of "
            f"{num_candidates}. Valid: 1 to the number of candidates; leave other queries out."
        )
    correct, queries = num_correct.double().unique(return_counts=True)
    chance = {}
    for k in _cutoffs(ks):
        drawn = torch.arange(min(k, num_candidates), dtype=torch.float64)
        # Where k exceeds the K - r wrong ones, one factor is exactly zero.
        misses = (num_candidates - correct[:, None] - drawn) / (num_candidates - drawn)
        chance[k] = ((1 - misses.prod(dim=1)) * queries).sum().item() / len(num_correct)
    return chance


def chance_median_rank(num_correct: Array, num_candidates: int) -> float:
    """Median rank, counted from 1, of a random order: the smallest k at which the chance recall reaches one half."""
    low, high = 1, num_candidates
    while low < high:
        middle = (low + high) // 2
        reached = chance_recall_at(num_correct, num_candidates, (middle,))[middle] >= 0.5
        low, high = (low, middle) if reached else (middle + 1, high)
    return float(low)


def bootstrap_interval(
    values: Array, *, seed: int, confidence: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Q,), one per query, such as hits.

    Queries are taken as independent; several captions of one image are not quite, so their interval is somewhat too
    narrow. The default number of resamples is that of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    values = _non_empty("values", values).double()
    distinct, counts = values.unique(return_counts=True)
    # Drawing Q values with replacement is one multinomial draw over the distinct ones: hits need two, not Q.
    draws = np.random.default_rng(seed).multinomial(len(values), (counts.double() / len(values)).numpy(), resamples)
    means = draws @ distinct.numpy() / len(values)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def top_candidates(query_embeds: Array, candidate_embeds: Array, k: int, *, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """Indices (Q, k) of the candidates with the highest dot products, best first; equal scores keep their order."""
    queries, candidates = _embeddings("query_embeds", query_embeds), _embeddings("candidate_embeds", candidate_embeds)
    if not 1 <= k <= len(candidates):
        raise ValueError(f"`k` is {k}. Valid: 1 to the number of candidates, {len(candidates)}.")
    found = [
        (chunk @ candidates.T).argsort(dim=1, descending=True, stable=True)[:, :k]
        for chunk in queries.split(chunk_size)
    ]
    return torch.cat(found)


def _embeddings(name: str, embeds: Array) -> Tensor:
    # float64 on the CPU: exact enough that ties do not depend on chunking, and free of TF32.
    matrix = torch.as_tensor(embeds).detach().cpu().double()
    if matrix.ndim != 2:
        raise ValueError(f"`{name}` has shape {tuple(matrix.shape)}. Expected (rows, width): one branch at a time.")
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
    pairs = _pairs(pairs, num_queries, num_candidates)
    without = num_queries - len(pairs[:, 0].unique())
    if without:
        raise ValueError(
            f"{without} of {num_queries} queries have no correct candidate. Leave them out, or use "
            "`rank_both_directions`, which leaves them out and counts them."
        )
    return pairs[pairs[:, 0].argsort()]


def _cutoffs(ks: Sequence[int]) -> Sequence[int]:
    if not ks or min(ks) < 1:
        raise ValueError(f"`ks` is {tuple(ks)}. Valid: one or more numbers, each 1 or more.")
    return ks


def _non_empty(name: str, values: Array) -> Tensor:
    tensor = torch.as_tensor(values).cpu()
    if tensor.ndim != 1 or len(tensor) == 0:
        raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}. Expected one value per query, at least one.")
    return tensor
