# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Probes of image vectors, whatever texts say: classes read off by a linear probe and by nearest neighbours.

Axes: N training rows, Q queries, C classes, H branches, D projection width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .classification import ACCURACY_KS, accuracy_records, checked_labels
from .encoding import DualEncoder, EncodedImages, Processor, encode_images
from .ranking import top_candidates
from .records import FUSED, Detail, Provenance, Record, Recorder

MOST_STEPS = 1_000  # as for CLIP's linear probes (https://arxiv.org/abs/2103.00020, appendix A.3)


def fit_logistic_regression(
    vectors: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    inverse_regularisation: float,
    balanced: bool = False,
    start: tuple[Tensor, Tensor] | None = None,
    most_steps: int = MOST_STEPS,
) -> tuple[Tensor, Tensor]:
    """Fit the weight (C, D) and bias (C,), in float64, from vectors (N, D) and labels (N,).

    The objective is scikit-learn's: cross entropy summed over rows, times `inverse_regularisation`, and half the
    square of the weight, not of the bias. With `balanced`, classes count alike, however many rows each has. A class
    without rows is given a bias so low that it is not predicted. A `start`, such as the solution for a little more
    regularisation, saves steps; the minimum is one.
    """
    rows, targets = vectors.double(), labels.long().to(vectors.device)
    counts = targets.bincount(minlength=num_classes).double()
    shares = torch.ones_like(counts)
    if balanced:
        shares = torch.where(counts > 0, len(targets) / (counts.clamp(min=1) * (counts > 0).sum()), 0.0)

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        errors = F.cross_entropy(F.linear(rows, weight, bias), targets, weight=shares, reduction="sum")
        return (errors + weight.square().sum() / (2 * inverse_regularisation)) / len(targets)

    weight, bias = start or (rows.new_zeros(num_classes, rows.shape[1]), rows.new_zeros(num_classes))
    weight, bias = minimise(loss, weight, bias, most_steps=most_steps)
    return weight, bias


def minimise(loss: Callable[..., Tensor], *start: Tensor, most_steps: int) -> list[Tensor]:
    """Return the arguments of a smooth `loss` at its minimum, by L-BFGS."""
    given = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(given, max_iter=most_steps, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(*given)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(step)
    return [value.detach() for value in given]


LINEAR_TASK, NEIGHBOURS_TASK = "linear_probe", "nearest_neighbours"
CONCATENATED = "concatenated"  # in `branch` of a record, as FUSED
INVERSE_REGULARISATIONS = tuple(10.0**power for power in range(-1, 7))  # of vectors of unit length
HELD_OUT = 0.1  # of the training rows, for choosing among them
CHOOSING_STEPS = 200  # of each, from where the last one ended
NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO's
IMAGES_AT_ONCE = 4_096


class LabelledImages(NamedTuple):
    """Images as one model sees them, `branch_embeds` (N, H, D) of unit length, and their classes `labels` (N,).

    `num_unusable` counts the rows that were left out, as their image cannot be used.
    """

    branch_embeds: Tensor
    labels: Tensor
    num_unusable: int = 0

    @classmethod
    def of(cls, encoded: EncodedImages, labels: Tensor) -> "LabelledImages":
        """Join images that were encoded and the labels (N,) of all rows of their data set."""
        return cls(encoded.branch_embeds, labels[encoded.rows], len(encoded.left_out))


def evaluate_probes(
    model: DualEncoder,
    processor: Processor,
    train: Dataset,
    test: Dataset,
    *,
    provenance: Provenance,
    class_names: Sequence[str],
    neighbours: int = NEIGHBOURS,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Record]:
    """Measure accuracy at 1 and 5 and mean accuracy per class, of the linear probe and of neighbours, for all kinds of
    vector.

    Args:
        train, test: N rows each, of `image` and `label`, a place in `class_names`.

    Raises:
        ValueError: no rows, a label without a class, fewer training rows than neighbours, all of one class.
    """
    seen, unseen = (checked_labels(rows, class_names) for rows in (train, test))
    _check_training(seen, neighbours)
    found = [
        LabelledImages.of(encode_images(model, processor, rows, batch_size=batch_size, progress=progress), labels)
        for rows, labels in ((train, seen), (test, unseen))
    ]
    return measure_probes(
        model,
        *found,
        provenance=provenance,
        num_classes=len(class_names),
        neighbours=neighbours,
        progress=progress,
    )


def measure_probes(
    model: DualEncoder,
    train: LabelledImages,
    test: LabelledImages,
    *,
    provenance: Provenance,
    num_classes: int,
    neighbours: int = NEIGHBOURS,
    ks: Sequence[int] = ACCURACY_KS,
    progress: bool = False,
) -> list[Record]:
    """Return the same of images that are encoded already. What is drawn at random is drawn by `provenance.seed`."""
    num_unusable = train.num_unusable + test.num_unusable
    linear, nearest = (Recorder(provenance, task, num_unusable) for task in (LINEAR_TASK, NEIGHBOURS_TASK))
    _check_training(train.labels, neighbours)
    counts = {"n_train": len(train.labels), "n_images": len(test.labels), "n_classes": num_classes}
    # What is known without looking at an image: which classes are frequent.
    by_frequency = train.labels.bincount(minlength=num_classes).argsort(descending=True, stable=True)
    chance = {k: torch.isin(test.labels, by_frequency[:k]).double().mean().item() for k in ks}
    records = []
    kinds = list(zip(_vectors_by_name(model, train), _vectors_by_name(model, test), strict=True))
    for (name, seen), (_, unseen) in tqdm(kinds, desc="probes", disable=not progress):
        branch: dict[str, Detail] = {"branch": name}
        strength, ranks = _linear_ranks(seen, train.labels, unseen, test.labels, num_classes, seed=provenance.seed)
        records.append(linear.record("inverse_regularisation", strength, branch, {"n_train": len(train.labels)}))
        records += accuracy_records(ranks, test.labels, linear, branch, counts, chance)
        votes = neighbour_votes(seen, train.labels, unseen, num_classes, neighbours=neighbours)
        told = {**branch, "neighbours": neighbours, "temperature": TEMPERATURE}
        records += accuracy_records(ranks_of_labels(votes, test.labels), test.labels, nearest, told, counts, chance)
    return records


def _linear_ranks(
    seen: Tensor, seen_labels: Tensor, unseen: Tensor, labels: Tensor, num_classes: int, *, seed: int
) -> tuple[float, Tensor]:
    """Fit on `seen` (N, D); return the regularisation chosen, and the rank of each of `labels` (Q,) by `unseen`."""
    strength, start = choose_regularisation(seen, seen_labels, num_classes, seed=seed)
    weight, bias = fit_logistic_regression(
        seen, seen_labels, num_classes, inverse_regularisation=strength, start=start
    )
    return strength, ranks_of_labels(F.linear(unseen.double(), weight, bias), labels)


def choose_regularisation(
    vectors: Tensor, labels: Tensor, num_classes: int, *, seed: int
) -> tuple[float, tuple[Tensor, Tensor]]:
    """Return the inverse regularisation that is right most often on held-out rows, and weight and bias of the other
    rows.

    Of several as good, the one in the middle. `vectors` is (N, D), `labels` (N,). The held-out part is drawn by
    `seed`.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    num_held_out = max(1, round(len(labels) * HELD_OUT))
    held_out, kept = order[:num_held_out], order[num_held_out:]
    hits: list[int] = []
    fits: list[tuple[Tensor, Tensor]] = []
    for strength in INVERSE_REGULARISATIONS:
        start = fits[-1] if fits else None
        fit = fit_logistic_regression(
            vectors[kept],
            labels[kept],
            num_classes,
            inverse_regularisation=strength,
            start=start,
            most_steps=CHOOSING_STEPS,
        )
        said = F.linear(vectors[held_out].double(), *fit).argmax(dim=1)
        hits.append(int((said == labels[held_out]).sum()))
        fits.append(fit)
    best = [place for place, number in enumerate(hits) if number == max(hits)]
    chosen = best[(len(best) - 1) // 2]
    return INVERSE_REGULARISATIONS[chosen], fits[chosen]


def neighbour_votes(
    vectors: Tensor, labels: Tensor, queries: Tensor, num_classes: int, *, neighbours: int = NEIGHBOURS
) -> Tensor:
    """Sum what the nearest of the vectors (N, D) with labels (N,) say of the queries (Q, D), all of unit length: (Q,
    C).

    Of equally near ones the first are taken.
    """
    votes = torch.zeros(len(queries), num_classes, dtype=torch.float64)
    nearest = top_candidates(queries, vectors, neighbours)
    for place, index in enumerate(nearest.split(IMAGES_AT_ONCE)):
        rows = slice(place * IMAGES_AT_ONCE, place * IMAGES_AT_ONCE + len(index))
        cosine = torch.einsum("qd,qkd->qk", queries[rows].double(), vectors[index].double())
        votes[rows].scatter_add_(1, labels[index], (cosine / TEMPERATURE).exp())
    return votes


def ranks_of_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """Count how many other classes score at least as high as the right one: (N,) of `scores` (N, C), `labels` (N,)."""
    return (scores >= scores.gather(1, labels[:, None])).sum(dim=1) - 1


def _check_training(labels: Tensor, neighbours: int) -> None:
    if not 1 <= neighbours <= len(labels):
        raise ValueError(
            f"`neighbours` is {neighbours} for {len(labels)} training rows; expected 1 to as many as rows."
        )
    if len(labels.unique()) < 2:
        raise ValueError("All training rows are of one class. A probe tells two or more apart: give it more rows.")


def _vectors_by_name(model: DualEncoder, images: LabelledImages) -> Iterator[tuple[str, Tensor]]:
    """Yield each kind of vector, of unit length: (N, D) of the fused one and of each branch, (N, H * D) of all of
    them.
    """
    names, branches = list(model.config.perspectives), images.branch_embeds
    if taken := {FUSED, CONCATENATED} & set(names):
        raise ValueError(f"A branch is called {taken.pop()!r}, which records keep for another vector. Rename it.")
    with torch.inference_mode():
        fused = model.branch_fusion.mean(branches)
    yield FUSED, F.normalize(fused.clone(), dim=-1)
    if len(names) > 1:
        yield from zip(names, branches.unbind(dim=1), strict=True)
        yield CONCATENATED, F.normalize(branches.flatten(1), dim=-1)
