# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Ranks, exact and in bounded memory, and the metrics of ranks: recall, median rank, chance, confidence.

Ties count against the model. No matrix of images by texts is ever held.

Axes: N images, T texts, q queries and k candidates of a chunk, r pairs, D projection width.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, TypeVar

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
    """Ranks of a direction's queries, with what is needed to read them.

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
    """Multiply (q, D) and (k, D) to (q, k)."""
    return queries @ candidates.T


def swapped(score: Score) -> Score:
    """Return the same score, asked for texts and images instead of images and texts."""
    return score if score is dot else lambda texts, images: score(images, texts).T


def retrieval_ranks(
    query_embeds: Array, candidate_embeds: Array, pairs: Array, *, score: Score = dot, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """Rank, counted from 0, of the best-ranked correct candidate of each query.

    Shapes: `query_embeds` (Q, D); `candidate_embeds` (K, D); `pairs` (R, 2), the query index and the index of a
    candidate that is correct for it. Returns (Q,) int64. The rank is the number of incorrect candidates that score at
    least as high, within `TIE_TOLERANCE`, as the best correct one. With a `score` of its own, which takes chunks of
    both and returns (q, k), the two may have further axes.

    Example: two images, four texts. Texts 0 and 1 belong to image 0, texts 2 and 3 to image 1.

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
    """Return the mean, over the correct candidates of each query, of the precision at the place where each stands;
    (Q,) float64.

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
    """Return the ranks of texts looking for images and of images looking for texts.

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
    """Return the indices (Q, k) of the candidates that score highest, best first; equal scores keep their order."""
    queries, candidates = (
        _embeddings(name, embeds, flat=score is dot)
        for name, embeds in (("query_embeds", query_embeds), ("candidate_embeds", candidate_embeds))
    )
    if not 1 <= k <= len(candidates):
        raise ValueError(f"`k` is {k}; expected 1 to the number of candidates, {len(candidates)}.")
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
        """Yield scores against all candidates, some at a time."""
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
        raise ValueError(f"`chunk_size` is {chunk_size}; expected 1 or more.")
    pairs = _ordered_pairs(pairs, len(queries), len(candidates))
    longest = max(float(_lengths(block).max()) for block in candidates.split(BLOCK_SIZE))
    for start in range(0, len(queries), chunk_size):
        chunk = queries[start : start + chunk_size].double()
        first, last = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([start, start + len(chunk)])).tolist()
        row = pairs[first:last, 0] - start
        own = _own_scores(chunk, candidates, row, pairs[first:last, 1], score)
        yield _Part(chunk, candidates, score, row, own, TIE_TOLERANCE * _lengths(chunk) * longest)


def _own_scores(queries: Tensor, candidates: Tensor, row: Tensor, correct: Tensor, score: Score) -> Tensor:
    """Score pairs of a query's row and a candidate's: (r,). Several queries share a candidate, and each is scored
    once.
    """
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
    """Count the incorrect candidates ahead of each correct one of each query, and the correct ones (q,).

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


Text = TypeVar("Text", bound=Hashable)
PAPER_KS = (1, 5, 10)  # of the recalls in the paper's Tables 1 and 2


def caption_pairs(captions: Sequence[Sequence[Text]]) -> tuple[list[Text], Tensor]:
    """Return the distinct texts (T) of N images, and who owns which: pairs (R, 2) of image index and text index.

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
    """Return the same for captions that are already numbers, as a training batch has them.

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


def retrieval_recalls(
    image_embeds: Array, text_embeds: Array, pairs: Array, *, ks: Sequence[int] = PAPER_KS, score: Score = dot
) -> dict[str, float]:
    """Return recalls of both directions under flat names, as a `Trainer` logs them.

    Shapes as in `rank_both_directions`.

    >>> embeds = torch.eye(2)
    >>> retrieval_recalls(embeds, embeds, torch.tensor([[0, 0], [1, 1]]), ks=(1,))
    {'text_to_image_recall@1': 1.0, 'image_to_text_recall@1': 1.0}
    """
    both = rank_both_directions(image_embeds, text_embeds, pairs, score=score)
    return {f"{name}_recall@{k}": value for name in DIRECTIONS for k, value in recall_at(both[name].ranks, ks).items()}


def recall_at(ranks: Array, ks: Sequence[int] = PAPER_KS) -> dict[int, float]:
    """Return the share of queries with a correct candidate among their first k; `ranks` (Q,) count from 0.

    Of fewer than k candidates all are among the first k: recall is 1, and so is chance.

    >>> recall_at(torch.tensor([0, 4, 9, 30]), ks=(1, 5))
    {1: 0.25, 5: 0.5}
    """
    ranks = _non_empty("ranks", ranks)
    return {k: (ranks < k).double().mean().item() for k in _cutoffs(ks)}


def mean_per_class(hits: Array, labels: Array) -> float:
    """Return the mean over classes of the share of their rows that are hits, so that frequent classes count no more
    than rare.

    Shapes: `hits` (Q,), of zeros and ones; `labels` (Q,). Classes without rows are left out.

    >>> mean_per_class(torch.tensor([1, 1, 1, 0]), torch.tensor([7, 7, 7, 2]))
    0.5
    """
    hits, labels = _non_empty("hits", hits).double(), _non_empty("labels", labels)
    _, places, counts = labels.unique(return_inverse=True, return_counts=True)
    return (torch.zeros(len(counts), dtype=torch.float64).index_add_(0, places, hits) / counts).mean().item()


def median_rank(ranks: Array) -> float:
    """Return the median over queries of the rank *counted from 1*, as papers print it; `ranks` (Q,) count from 0.

    >>> median_rank(torch.tensor([0, 1, 1, 8]))
    2.0
    """
    return float(np.median(_non_empty("ranks", ranks).cpu().numpy()) + 1)


def chance_recall_at(num_correct: Array, num_candidates: int, ks: Sequence[int] = PAPER_KS) -> dict[int, float]:
    """Return the expected recall of a random order of the candidates, in closed form.

    A query with r correct among K candidates misses with probability C(K - r, k) / C(K, k) (hypergeometric). Shapes:
    `num_correct` (Q,), r of each query.

    >>> chance_recall_at(torch.tensor([1, 2]), num_candidates=4, ks=(1, 2))  # (1/4 + 2/4) / 2, (1/2 + 5/6) / 2
    {1: 0.375, 2: 0.6666666666666667}
    """
    num_correct = _non_empty("num_correct", num_correct)
    if num_correct.min() < 1 or num_correct.max() > num_candidates:
        raise ValueError(
            f"Queries have {int(num_correct.min())} to {int(num_correct.max())} correct candidates of "
            f"{num_candidates}; expected 1 to the number of candidates. Leave other queries out."
        )
    correct, queries = num_correct.double().unique(return_counts=True)
    chance = {}
    for k in _cutoffs(ks):
        drawn = torch.arange(min(k, num_candidates), dtype=torch.float64)
        # Where k exceeds the K - r wrong ones, one factor is exactly zero.
        misses = (num_candidates - correct[:, None] - drawn) / (num_candidates - drawn)
        chance[k] = ((1 - misses.prod(dim=1)) * queries).sum().item() / len(num_correct)
    return chance


def chance_average_precision(num_correct: Array, num_candidates: int) -> float:
    """Return the expected mean average precision of a random order of the candidates, in closed form.

    A candidate at place k is correct with probability r / K, and then one of 1 + (k - 1)(r - 1) / (K - 1) correct ones
    among the first k, on average. Shapes: `num_correct` (Q,), r of each query.

    >>> chance_average_precision(torch.tensor([1]), num_candidates=4)  # (1 + 1/2 + 1/3 + 1/4) / 4
    0.5208333333333333
    """
    correct = _non_empty("num_correct", num_correct).double()
    harmonic = (1 / torch.arange(1, num_candidates + 1, dtype=torch.float64)).sum()
    others = (correct - 1) / max(num_candidates - 1, 1)
    return ((harmonic + (num_candidates - harmonic) * others) / num_candidates).mean().item()


def chance_median_rank(num_correct: Array, num_candidates: int) -> float:
    """Return the median rank, counted from 1, of a random order: the smallest k at which the chance recall reaches one
    half.
    """
    low, high = 1, num_candidates
    while low < high:
        middle = (low + high) // 2
        reached = chance_recall_at(num_correct, num_candidates, (middle,))[middle] >= 0.5
        low, high = (low, middle) if reached else (middle + 1, high)
    return float(low)


def bootstrap_interval(
    values: Array, *, seed: int, confidence: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values` (Q,), one per query, such as hits.

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


def _cutoffs(ks: Sequence[int]) -> Sequence[int]:
    if not ks or min(ks) < 1:
        raise ValueError(f"`ks` is {tuple(ks)}; expected one or more numbers, each 1 or more.")
    return ks


def _non_empty(name: str, values: Array) -> Tensor:
    tensor = torch.as_tensor(values).cpu()
    if tensor.ndim != 1 or len(tensor) == 0:
        raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}. Expected one value per query, at least one.")
    return tensor
