"""The multi-to-multi loss once more, in loops over single numbers: the oracle of the tests.

It shares no code with the package. Numbers may be floats or 0-dimensional tensors; with the latter, gradients follow.

Axes: N images, H branches, M caption slots, D projection width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def dot(first: Sequence[Any], second: Sequence[Any]) -> Any:
    return sum(a * b for a, b in zip(first, second, strict=True))


def log_sum_exp(values: list[Any]) -> Tensor:
    largest = max(number(value) for value in values)
    return torch.log(sum(torch.exp(torch.as_tensor(value - largest)) for value in values)) + largest


def best_branch(branches: Any, text: Any) -> int:
    scores = [number(dot(branch, text)) for branch in branches]
    return scores.index(max(scores))


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
    branches: Any, texts: Any, scale: Any, branch_of_slot: list[int], mask: Any, ids: Any, duplicate_captions: str
) -> Any:
    """`branches[n][h][d]`, `texts[n][m][d]`; `branch_of_slot` has -1 for a free slot."""
    rows = []
    for slot, wanted in enumerate(branch_of_slot):
        for image in range(len(branches)):
            if not bool(mask[image][slot]):
                continue
            text = texts[image][slot]
            branch = best_branch(branches[image], text) if wanted < 0 else wanted
            positives, candidates = positives_and_candidates(image, slot, mask, ids, duplicate_captions)
            to_texts = {other: scale * dot(branches[image][branch], texts[other][slot]) for other in candidates}
            to_images = {other: scale * dot(text, branches[other][branch]) for other in candidates}
            rows.append((one_row(to_texts, positives) + one_row(to_images, positives)) / 2)
    return sum(rows) / len(rows)


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
