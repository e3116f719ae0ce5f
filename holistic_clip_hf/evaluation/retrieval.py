# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Retrieval: encode a corpus once, then measure every perspective, direction and branch of it.

Protocol `per_perspective`: the texts are the distinct captions of one perspective. All images are candidates of
text-to-image; only images that own such a caption ask in image-to-text, and the others are counted in each record.

Axes: N images, T texts, H branches, D projection width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..processing_holistic_clip import clean_caption
from .metrics import (
    PAPER_KS,
    bootstrap_interval,
    caption_pairs,
    chance_median_rank,
    chance_recall_at,
    distinct_captions,
    median_rank,
    recall_at,
    retrieval_recalls,
)
from .ranking import DirectionRanks, rank_both_directions
from .records import FUSED, PER_PERSPECTIVE, Provenance, Record

TASK = "retrieval"
LINEAR_FUSIONS = ("mean", "weighted")

Processor = Callable[..., Mapping[str, Tensor]]


class DualEncoder(Protocol):
    """What is asked of a model: `HolisticCLIPModel`, from the package or from the Hub."""

    config: Any
    training: bool

    @property
    def device(self) -> torch.device: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> Any: ...

    def get_image_features(self, pixel_values: Tensor) -> Any: ...

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Any: ...


class ImageEmbeddings(NamedTuple):
    """`fused` (N, D), not of unit length, and `branches` (N, H, D) of unit length; float32 on the CPU."""

    fused: Tensor
    branches: Tensor


@contextmanager
def evaluation_mode(model: DualEncoder) -> Iterator[None]:
    """No dropout and no gradients inside; afterwards each module trains or not as before."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in before:
            module.training = training


def encode_images(
    model: DualEncoder, processor: Processor, dataset: Dataset, *, batch_size: int, progress: bool = False
) -> ImageEmbeddings:
    """Embed the column `image` of N rows, in their order."""
    images, fused, branches = dataset.select_columns("image"), [], []
    with evaluation_mode(model):
        for start in tqdm(range(0, len(images), batch_size), desc="images", disable=not progress):
            batch = images[start : start + batch_size]["image"]
            pixel_values = processor(images=batch, return_tensors="pt")["pixel_values"]
            output = model.get_image_features(pixel_values=pixel_values.to(model.device))
            fused.append(output.pooler_output.float().cpu())
            branches.append(output.branch_embeds.float().cpu())
    if not fused:
        raise ValueError("The dataset has no rows. Evaluate on a split that holds images.")
    return ImageEmbeddings(torch.cat(fused), torch.cat(branches))


def encode_texts(
    model: DualEncoder, processor: Processor, texts: Sequence[str], *, batch_size: int, progress: bool = False
) -> Tensor:
    """Embed T texts, in their order, as (T, D) of unit length, float32 on the CPU; equal texts are encoded once."""
    if not texts:
        raise ValueError("There are no texts to encode. Pass at least one.")
    # Neighbours in length share a batch, so little is padded.
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    found = []
    with evaluation_mode(model):
        for start in tqdm(range(0, len(distinct), batch_size), desc="texts", disable=not progress):
            batch = distinct[start : start + batch_size]
            tokens = processor(text=batch, return_tensors="pt", padding=True, truncation=True)
            output = model.get_text_features(
                input_ids=tokens["input_ids"].to(model.device),
                attention_mask=tokens["attention_mask"].to(model.device),
            )
            found.append(F.normalize(output.pooler_output.float(), dim=-1).cpu())
    place = {text: row for row, text in enumerate(distinct)}
    return torch.cat(found)[[place[text] for text in texts]]


def evaluate_retrieval(
    model: DualEncoder,
    processor: Processor,
    dataset: Dataset,
    *,
    provenance: Provenance,
    perspectives: Sequence[str],
    ks: Sequence[int] = PAPER_KS,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Record]:
    """Recall@k and median rank of each perspective, in both directions, fused and by each branch.

    A branch is measured on all perspectives, not only on its own: the records hold the whole branch x perspective
    matrix. With one branch only the fused vector is measured, which is the same.
    `batch_size` changes speed, not results.

    Raises `ValueError` where the corpus has no caption of a perspective, and for a model whose fusion is not a single
    vector.

    >>> provenance = capture_provenance(model="tiny", dataset="squares", split="test", seed=0)
    >>> records = evaluate_retrieval(model, processor, corpus, provenance=provenance, perspectives=["style"])
    >>> records[0].label, dict(records[0].details)
    ('recall@1', {'protocol': 'per_perspective', 'perspective': 'style', 'direction': 'text_to_image', ...})
    """
    if model.config.fusion not in LINEAR_FUSIONS:
        raise ValueError(
            f"The model's fusion is {model.config.fusion!r}, which one vector per image cannot express. Valid here: "
            f"{', '.join(LINEAR_FUSIONS)}. Set `model.config.fusion`."
        )
    captions = captions_by_perspective(dataset, perspectives)
    images = encode_images(model, processor, dataset, batch_size=batch_size, progress=progress)
    owned = {perspective: caption_pairs(captions[perspective]) for perspective in perspectives}
    every_text = list(dict.fromkeys(text for texts, _ in owned.values() for text in texts))
    encoded = encode_texts(model, processor, every_text, batch_size=batch_size, progress=progress)
    row = {text: index for index, text in enumerate(every_text)}

    records = []
    for perspective, (texts, pairs) in owned.items():
        text_embeds = encoded[[row[text] for text in texts]]
        for name, image_embeds in _vectors_by_name(model, images).items():
            common: dict[str, str] = {"protocol": PER_PERSPECTIVE, "perspective": perspective, "branch": name}
            if name == FUSED:
                common["fusion"] = model.config.fusion
            for direction, ranks in rank_both_directions(image_embeds, text_embeds, pairs).items():
                records += _records_of_ranks(ranks, provenance, {**common, "direction": direction}, ks)
    return records


def captions_by_perspective(dataset: Dataset, perspectives: Sequence[str]) -> dict[str, list[list[str]]]:
    """For each perspective the texts of N images, cleaned as the processor does; an empty list where there is none."""
    if not perspectives:
        raise ValueError("`perspectives` is empty. Name at least one perspective of the corpus.")
    rows = list(dataset["captions"])
    found: dict[str, list[list[str]]] = {perspective: [[] for _ in rows] for perspective in perspectives}
    for index, row in enumerate(rows):
        for caption in row:
            if caption["perspective"] in found:
                text = clean_caption(caption["text"])
                if not text:
                    raise ValueError(
                        f"Row {index}: the caption of {caption['perspective']} is empty once cleaned; it was "
                        f"{caption['text']!r}. Leave a missing caption out of the list."
                    )
                found[caption["perspective"]][index].append(text)
    absent = [perspective for perspective, texts in found.items() if not any(texts)]
    if absent:
        present = sorted({caption["perspective"] for row in rows for caption in row})
        raise ValueError(
            f"No image here has a caption of {', '.join(absent)}. It has {', '.join(present) or 'no captions'}."
        )
    return found


def _vectors_by_name(model: DualEncoder, images: ImageEmbeddings) -> dict[str, Tensor]:
    names = list(model.config.perspectives)
    if FUSED in names:
        raise ValueError(f"A branch is called {FUSED!r}, the name of the fused vector in records. Rename the branch.")
    if len(names) == 1:
        return {FUSED: images.fused}
    return {FUSED: images.fused, **dict(zip(names, images.branches.unbind(dim=1), strict=True))}


def _records_of_ranks(
    result: DirectionRanks, provenance: Provenance, details: dict[str, str], ks: Sequence[int]
) -> list[Record]:
    counts = {
        "n_queries": len(result.ranks),
        "n_candidates": result.num_candidates,
        "n_left_out": result.num_left_out,
    }
    chances = chance_recall_at(result.num_correct, result.num_candidates, ks)
    records = [
        Record(
            **vars(provenance),
            metric="recall",
            value=recall,
            task=TASK,
            details={**details, "k": k},
            counts=counts,
            chance=chances[k],
            confidence_interval=bootstrap_interval(result.ranks < k, seed=provenance.seed),
        )
        for k, recall in recall_at(result.ranks, ks).items()
    ]
    median = Record(
        **vars(provenance),
        metric="median_rank",
        value=median_rank(result.ranks),
        task=TASK,
        details=details,
        counts=counts,
        chance=chance_median_rank(result.num_correct, result.num_candidates),
    )
    return [*records, median]


def recall_by_slot(
    slots: Sequence[str], image_embeds: Tensor, text_embeds: Tensor, caption_ids: Tensor, caption_mask: Tensor
) -> dict[str, float]:
    """Recall of one vector per image, in both directions: of each slot by itself, and the mean over slots.

    Images without any caption are no candidates.

    Args:
        slots: M names.
        image_embeds: (N, D), fused.
        text_embeds: (N, M, D).
        caption_ids, caption_mask: (N, M), as the collator makes them.

    Raises:
        ValueError: a slot without any caption.
    """
    # The collator leaves an image that does not decode without captions, and puts another's pixels in its place.
    seen = caption_mask.any(dim=1)
    image_embeds, text_embeds = image_embeds[seen], text_embeds[seen]
    caption_ids, caption_mask = caption_ids[seen], caption_mask[seen]
    metrics: dict[str, float] = {}
    for index, slot in enumerate(slots):
        if not caption_mask[:, index].any():
            raise ValueError(f"No row of the evaluation set has a caption for the slot {slot!r}.")
        rows, pairs = distinct_captions(caption_ids[:, index : index + 1], caption_mask[:, index : index + 1])
        recalls = retrieval_recalls(image_embeds, text_embeds[rows[:, 0], index], pairs)
        metrics.update({f"{slot}_{name}": value for name, value in recalls.items()})
    for name in recalls:
        metrics[name] = sum(metrics[f"{slot}_{name}"] for slot in slots) / len(slots)
    return metrics
