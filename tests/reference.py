"""The multi-to-multi loss once more, in loops over single numbers: the oracle of the tests.

It shares no code with the package; Sinkhorn's algorithm multiplies here where the package adds logarithms. Numbers
may be floats or 0-dimensional tensors; with the latter, gradients follow.

Axes: N images, H branches, M caption slots, D projection width.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holistic_clip_hf import LossOptions, MultiToMultiLoss, multi_to_multi_loss


def number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def dot(first: Sequence[Any], second: Sequence[Any]) -> Any:
    return sum(a * b for a, b in zip(first, second, strict=True))


def log_sum_exp(values: list[Any]) -> Tensor:
    largest = max(number(value) for value in values)
    return torch.log(sum(torch.exp(torch.as_tensor(value - largest)) for value in values)) + largest


def best(scores: Sequence[float]) -> int:
    return list(scores).index(max(scores))


def similarities(branches: Any, text: Any) -> list[float]:
    return [number(dot(branch, text)) for branch in branches]


def transport_plan(scores: list[list[float]]) -> list[list[float]]:
    """Sinkhorn as in SwAV: three times, equal shares of all branches, then equal shares of all captions."""
    plan = [[math.exp(score / 0.05) for score in row] for row in scores]
    for _ in range(3):
        totals = [sum(column) for column in zip(*plan, strict=True)]
        plan = [[value / total for value, total in zip(row, totals, strict=True)] for row in plan]
        plan = [[value / sum(row) for value in row] for row in plan]
    return plan


def balanced(scores: list[list[float]]) -> list[int]:
    """For each caption a branch; each branch gets at least its whole share."""
    plan = transport_plan(scores)
    chosen = [best(row) for row in plan]
    waiting, is_open = list(range(len(plan))), list(range(len(scores[0])))
    for _ in range(len(scores[0])):
        asking: dict[int, list[int]] = {branch: [] for branch in is_open}
        for caption in waiting:
            asking[max(is_open, key=lambda branch, row=plan[caption]: row[branch])].append(caption)
        branch = max(is_open, key=lambda each: len(asking[each]))
        kept = sorted(asking[branch], key=lambda caption: -plan[caption][branch])[: len(plan) // len(scores[0])]
        for caption in kept:
            chosen[caption] = branch
            waiting.remove(caption)
        is_open.remove(branch)
    return chosen


def met_branches(branches: Any, texts: Any, branch_of_slot: list[int], mask: Any, matching: str) -> list[list[int]]:
    """`branch_of_slot` has -1 for a free slot; what a missing caption meets does not matter."""
    met = [
        [best(similarities(image, text)) if wanted < 0 else wanted for text, wanted in zip(row, slots, strict=True)]
        for image, row, slots in zip(branches, texts, [branch_of_slot] * len(branches), strict=True)
    ]
    if matching == "balanced":
        pairs = [(i, m) for i, row in enumerate(mask) for m, there in enumerate(row) if bool(there)]
        chosen = balanced([similarities(branches[image], texts[image][slot]) for image, slot in pairs])
        for (image, slot), branch in zip(pairs, chosen, strict=True):
            met[image][slot] = branch
    return met


def one_row(logits: dict[int, Any], positives: list[int]) -> Any:
    """Cross entropy of one query against its candidates, the target shared between its positives."""
    total = log_sum_exp(list(logits.values()))
    return sum(total - logits[image] for image in positives) / len(positives)


def positives_and_candidates(
    image: int, slot: int, mask: Any, ids: Any, duplicate_captions: str
) -> tuple[list[int], list[int]]:
    present = [other for other in range(len(mask)) if bool(mask[other][slot])]
    same = [other for other in present if int(ids[other][slot]) == int(ids[image][slot])]
    if duplicate_captions == "positive":
        return same, present
    if duplicate_captions == "ignore":
        return [image], [other for other in present if other == image or other not in same]
    return [image], present


def contrastive(
    branches: Any, texts: Any, scale: Any, met: list[list[int]], mask: Any, ids: Any, duplicate_captions: str
) -> Any:
    """`branches[n][h][d]`, `texts[n][m][d]`, `met[n][m]`: the branch of each caption."""
    rows = []
    for image, slot in ((i, m) for i in range(len(met)) for m in range(len(met[0])) if bool(mask[i][m])):
        text, branch = texts[image][slot], met[image][slot]
        positives, candidates = positives_and_candidates(image, slot, mask, ids, duplicate_captions)
        to_texts = {other: scale * dot(branches[image][branch], texts[other][slot]) for other in candidates}
        to_images = {other: scale * dot(text, branches[other][branch]) for other in candidates}
        rows.append((one_row(to_texts, positives) + one_row(to_images, positives)) / 2)
    return sum(rows) / len(rows)


def sigmoid_contrastive(
    branches: Any,
    texts: Any,
    scale: Any,
    bias: Any,
    met: list[list[int]],
    mask: Any,
    ids: Any,
    duplicate_captions: str,
) -> Any:
    """Of each caption and each image, through the caption's branch: do they belong together?"""
    rows = []
    for image, slot in ((i, m) for i in range(len(met)) for m in range(len(met[0])) if bool(mask[i][m])):
        positives, candidates = positives_and_candidates(image, slot, mask, ids, duplicate_captions)
        for other in candidates:
            logit = scale * dot(texts[image][slot], branches[other][met[image][slot]]) + bias
            rows.append(-torch.log(1 / (1 + torch.exp(-logit if other in positives else logit))))
    return sum(rows) / sum(bool(there) for row in mask for there in row)


def diversity(branches: Any, threshold: float, form: str) -> Any:
    num_branches = len(branches[0])
    pairs = [
        sum(dot(image[first], image[second]) for image in branches) / len(branches)
        for first in range(num_branches)
        for second in range(first + 1, num_branches)
    ]
    if not pairs:
        return 0.0
    if form == "official":
        return hinge(sum(pairs) / len(pairs) - threshold)
    return sum(hinge(pair - threshold) for pair in pairs) / len(pairs)


def hinge(value: Any) -> Any:
    return value if number(value) > 0 else 0.0 * value


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def random_pairs(queries: int, candidates: int, seed: int, most: int = 3) -> torch.Tensor:
    """One to `most` correct candidates for each query."""
    rng = np.random.default_rng(seed)
    drawn = [(q, c) for q in range(queries) for c in rng.choice(candidates, rng.integers(1, most + 1), replace=False)]
    return torch.tensor(drawn)


def clip_benchmark_recall(scores: list[list[float]], is_right: list[list[bool]], k: int) -> float:
    """Recall@k of image-text retrieval as CLIP_benchmark has it: the share of queries with a right one among k.

    Its definition, in loops: of each query, how many of its right candidates are among the first k, as a share of all
    that are right for it; a query counts where that is above zero
    (https://github.com/LAION-AI/CLIP_benchmark/blob/main/clip_benchmark/metrics/zeroshot_retrieval.py).
    """
    counted = 0
    for row, right in zip(scores, is_right, strict=True):
        first = sorted(range(len(row)), key=lambda candidate: -row[candidate])[:k]
        counted += sum(right[candidate] for candidate in first) / sum(right) > 0
    return counted / len(scores)


# Four images, eight texts: texts 2i and 2i + 1 belong to image i. Scores are read off: with the identity as text
# embeddings, row i of the matrix is image i's score for each text.
RETRIEVAL_SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.0, 0.0, 0.0],  # best correct 0.9: nothing ahead
        [0.8, 0.7, 0.6, 0.5, 0.0, 0.0, 0.0, 0.0],  # best correct 0.6: two ahead
        [0.5, 0.5, 0.5, 0.5, 0.1, 0.5, 0.5, 0.5],  # best correct 0.5: tied with six others
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1, 0.2],  # best correct 0.2: six ahead
    ]
)
RETRIEVAL_PAIRS = torch.tensor([[image, 2 * image + half] for image in range(4) for half in range(2)])


def loss_of(*tensors: Tensor, **about: Any) -> MultiToMultiLoss:
    """`multi_to_multi_loss`, with the fields of its options among the keywords."""
    names = {field.name for field in dataclasses.fields(LossOptions)}
    options = LossOptions(**{name: about.pop(name) for name in names & about.keys()})
    return multi_to_multi_loss(*tensors, options=options, **about)
