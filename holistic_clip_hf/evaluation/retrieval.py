# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Retrieval: encode a corpus once, then measure it by every protocol, perspective, direction, branch and fusion.

Axes: N images, T texts, M caption slots, H branches, D projection width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from datasets import Dataset
from torch import Tensor

from .caption_sets import CAPTION_SETS, caption_sets, vectors_of_sets
from .encoding import DualEncoder, FusedVectors, Processor, encode_images, encode_texts, vectors_by_name
from .metrics import (
    PAPER_KS,
    bootstrap_interval,
    chance_average_precision,
    chance_median_rank,
    chance_recall_at,
    distinct_captions,
    median_rank,
    recall_at,
    retrieval_recalls,
)
from .protocols import ALL_PERSPECTIVES, PROTOCOLS, Captions, captions_by_perspective
from .ranking import TEXT_TO_IMAGE, DirectionRanks, rank_both_directions
from .records import PER_PERSPECTIVE, Detail, Provenance, Record

TASK = "retrieval"
RETRIEVAL_PROTOCOLS = (*PROTOCOLS, CAPTION_SETS)


@dataclass(frozen=True)
class EmbeddedCorpus:
    """A corpus as one model sees it; what fusion makes of it is decided later.

    Args:
        branch_embeds: (N, H, D), unit length.
        captions: texts of the N images by perspective.
        text_embeds: (D,) of each text, unit length.
    """

    branch_embeds: Tensor
    captions: Captions
    text_embeds: Mapping[str, Tensor]

    def embeds_of(self, texts: Sequence[str]) -> Tensor:
        """(T, D)."""
        return torch.stack([self.text_embeds[text] for text in texts])

    def require_images(self) -> None:
        """Raise `ValueError` where the corpus was encoded without its images."""
        if len(self.branch_embeds) == 0:
            raise ValueError("The corpus was encoded without images, which this needs. Encode it `with_images=True`.")


def embed_corpus(
    model: DualEncoder,
    processor: Processor,
    dataset: Dataset,
    *,
    perspectives: Sequence[str],
    with_images: bool = True,
    batch_size: int = 64,
    progress: bool = False,
) -> EmbeddedCorpus:
    """Encode the images of a corpus and its captions of these perspectives; `batch_size` changes speed, not results.

    Without images (a router is fitted to captions alone) there are no rows in `branch_embeds`. Raises `ValueError`
    where the corpus has no caption of a perspective.
    """
    captions = captions_by_perspective(dataset, perspectives)
    images = torch.empty(0, len(model.config.perspectives), model.config.projection_dim)
    if with_images:
        images = encode_images(model, processor, dataset, batch_size=batch_size, progress=progress)
    texts = list(dict.fromkeys(text for owned in captions.values() for each in owned for text in each))
    encoded = encode_texts(model, processor, texts, batch_size=batch_size, progress=progress)
    return EmbeddedCorpus(images, captions, dict(zip(texts, encoded, strict=True)))


def evaluate_retrieval(
    model: DualEncoder,
    processor: Processor,
    dataset: Dataset,
    *,
    provenance: Provenance,
    perspectives: Sequence[str],
    protocols: Sequence[str] = (PER_PERSPECTIVE,),
    ks: Sequence[int] = PAPER_KS,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Record]:
    """Recall@k, median rank and mean average precision, in both directions, fused and by each branch.

    `protocols` are those of `protocols.py`, and `caption_sets`: all captions of an image at once, fused and by name.
    A branch is measured on all perspectives, not only on its own: the records hold the whole branch x perspective
    matrix. With one branch only the fused vector is measured, which is the same. Raises `ValueError` as
    `embed_corpus` does, and for an unknown protocol.

    >>> provenance = capture_provenance(model="tiny", dataset="squares", split="test", seed=0)
    >>> records = evaluate_retrieval(model, processor, corpus, provenance=provenance, perspectives=["style"])
    >>> records[0].label, dict(records[0].details)
    ('recall@1', {'protocol': 'per_perspective', 'perspective': 'style', 'direction': 'text_to_image', ...})
    """
    corpus = embed_corpus(
        model, processor, dataset, perspectives=perspectives, batch_size=batch_size, progress=progress
    )
    return measure_retrieval(model, corpus, provenance=provenance, protocols=protocols, ks=ks)


def measure_retrieval(
    model: DualEncoder,
    corpus: EmbeddedCorpus,
    *,
    provenance: Provenance,
    protocols: Sequence[str] = (PER_PERSPECTIVE,),
    ks: Sequence[int] = PAPER_KS,
    with_branches: bool = True,
) -> list[Record]:
    """The same of a corpus that is encoded already, with branches or fused alone."""
    if unknown := [protocol for protocol in protocols if protocol not in RETRIEVAL_PROTOCOLS]:
        raise ValueError(f"Got the protocols {unknown}. Valid: {', '.join(RETRIEVAL_PROTOCOLS)}.")
    corpus.require_images()
    records = []
    for protocol in protocols:
        asked = _asked_at_once if protocol == CAPTION_SETS else partial(_asked_one_by_one, protocol)
        for details, ranks in asked(model, corpus, with_branches):
            records += _records_of_ranks(ranks, provenance, {"protocol": protocol, **details}, ks)
    return records


def _asked_one_by_one(
    protocol: str, model: DualEncoder, corpus: EmbeddedCorpus, with_branches: bool
) -> Iterator[tuple[dict[str, Detail], DirectionRanks]]:
    for question in PROTOCOLS[protocol](corpus.captions):
        images, texts = corpus.branch_embeds[question.images], corpus.embeds_of(question.texts)
        for details, vectors in vectors_by_name(model, images, texts, with_branches=with_branches):
            for direction, ranks in _ranked(vectors, question.pairs):
                out = question.num_texts_out if direction == TEXT_TO_IMAGE else question.num_images_out
                told = {"perspective": question.perspective, **details, "direction": direction}
                yield told, ranks._replace(num_left_out=ranks.num_left_out + out)


def _asked_at_once(
    model: DualEncoder, corpus: EmbeddedCorpus, with_branches: bool
) -> Iterator[tuple[dict[str, Detail], DirectionRanks]]:
    sets, pairs = caption_sets(corpus.captions)
    compared = vectors_of_sets(model, corpus.branch_embeds, sets, corpus.text_embeds, with_branches=with_branches)
    for details, vectors in compared:
        for direction, ranks in _ranked(vectors, pairs):
            yield {"perspective": ALL_PERSPECTIVES, **details, "direction": direction}, ranks


def _ranked(vectors: FusedVectors, pairs: Tensor) -> Iterator[tuple[str, DirectionRanks]]:
    yield from rank_both_directions(vectors.images, vectors.texts, pairs, score=vectors.score).items()


def _records_of_ranks(
    result: DirectionRanks, provenance: Provenance, details: dict[str, Detail], ks: Sequence[int]
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
    precision = Record(
        **vars(provenance),
        metric="mean_average_precision",
        value=result.precision.mean().item(),
        task=TASK,
        details=details,
        counts=counts,
        chance=chance_average_precision(result.num_correct, result.num_candidates),
        confidence_interval=bootstrap_interval(result.precision, seed=provenance.seed),
    )
    median = Record(
        **vars(provenance),
        metric="median_rank",
        value=median_rank(result.ranks),
        task=TASK,
        details=details,
        counts=counts,
        chance=chance_median_rank(result.num_correct, result.num_candidates),
    )
    return [*records, median, precision]


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
