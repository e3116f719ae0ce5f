# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What is said of ranks: recall, median rank, chance and confidence; and which captions are one text.

Axes: N images, T texts, M caption slots, Q queries, K candidates, R pairs, D projection width.
"""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .ranking import DIRECTIONS, Array, rank_both_directions

Text = TypeVar("Text", bound=Hashable)

PAPER_KS = (1, 5, 10)  # of the recalls in the paper's Tables 1 and 2


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

    Of fewer than k candidates all are among the first k: recall is 1, and so is chance.

    >>> recall_at(torch.tensor([0, 4, 9, 30]), ks=(1, 5))
    {1: 0.25, 5: 0.5}
    """
    ranks = _non_empty("ranks", ranks)
    return {k: (ranks < k).double().mean().item() for k in _cutoffs(ks)}


def mean_per_class(hits: Array, labels: Array) -> float:
    """Mean over classes of the share of their rows that are hits, so that frequent classes count no more than rare.

    Shapes: `hits` (Q,), of zeros and ones; `labels` (Q,). Classes without rows are left out.

    >>> mean_per_class(torch.tensor([1, 1, 1, 0]), torch.tensor([7, 7, 7, 2]))
    0.5
    """
    hits, labels = _non_empty("hits", hits).double(), _non_empty("labels", labels)
    _, places, counts = labels.unique(return_inverse=True, return_counts=True)
    return (torch.zeros(len(counts), dtype=torch.float64).index_add_(0, places, hits) / counts).mean().item()


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


def chance_average_precision(num_correct: Array, num_candidates: int) -> float:
    """Expected mean average precision of a random order of the candidates, in closed form.

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


def _cutoffs(ks: Sequence[int]) -> Sequence[int]:
    if not ks or min(ks) < 1:
        raise ValueError(f"`ks` is {tuple(ks)}. Valid: one or more numbers, each 1 or more.")
    return ks


def _non_empty(name: str, values: Array) -> Tensor:
    tensor = torch.as_tensor(values).cpu()
    if tensor.ndim != 1 or len(tensor) == 0:
        raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}. Expected one value per query, at least one.")
    return tensor
