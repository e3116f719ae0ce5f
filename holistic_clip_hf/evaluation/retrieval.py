# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Retrieval of images by texts and of texts by images, as records.

A protocol says what is asked: one perspective at a time, the field's standard (all captions), the paper's (one text
per image), or all captions of an image at once, fused or by name.

Axes: N images, T texts, H branches, D projection width.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn

from ..images.left_out import LeftOutLog, row_names, usable_captions
from ..processing_holistic_clip import clean_caption
from .encoded_folder import EncodedFolder
from .encoding import (
    DualEncoder,
    FusedVectors,
    Processor,
    encode_images,
    encode_texts,
    first_read_alike,
    fuse,
    vectors_by_name,
    written_caption,
)
from .ranking import (
    PAPER_KS,
    TEXT_TO_IMAGE,
    DirectionRanks,
    Score,
    bootstrap_interval,
    caption_pairs,
    chance_average_precision,
    chance_median_rank,
    chance_recall_at,
    distinct_captions,
    dot,
    median_rank,
    rank_both_directions,
    recall_at,
    retrieval_recalls,
)
from .records import BY_NAME, FUSED, PER_PERSPECTIVE, Detail, Provenance, Record, Recorder

logger = logging.getLogger(__name__)

STANDARD = "standard"
PAPER = "paper"
ALL_PERSPECTIVES = "all"
FEWEST_IMAGES = 10  # with less, one image more or less moves recall by over ten points
Captions = Mapping[str, Sequence[Sequence[str]]]


class TextSet(NamedTuple):
    """One set of texts against images.

    Shapes: `texts` (T); `images` (N',), the rows of the corpus that are candidates; `pairs` (R, 2), an index into
    `images` and one into `texts`. `perspective` names the texts. What the protocol itself leaves out is counted in
    `num_images_out` and `num_texts_out`.
    """

    perspective: str
    texts: Sequence[str]
    images: Tensor
    pairs: Tensor
    num_images_out: int = 0
    num_texts_out: int = 0

    @property
    def right(self) -> Tensor:
        """Truth of whether an image is right for a text: (T, N')."""
        right = torch.zeros(len(self.texts), len(self.images), dtype=torch.bool)
        right[self.pairs[:, 1], self.pairs[:, 0]] = True
        return right


def per_perspective(captions: Captions) -> list[TextSet]:
    questions = []
    for perspective, owned in captions.items():
        texts, pairs = caption_pairs(owned)
        questions.append(TextSet(perspective, texts, torch.arange(len(owned)), pairs))
    return questions


def standard(captions: Captions) -> list[TextSet]:
    owners = [(image, text) for owned in captions.values() for image, texts in enumerate(owned) for text in texts]
    pairs = torch.tensor([(image, index) for index, (image, _) in enumerate(owners)])
    num_images = len(next(iter(captions.values())))
    return [TextSet(ALL_PERSPECTIVES, [text for _, text in owners], torch.arange(num_images), pairs)]


def paper(captions: Captions) -> list[TextSet]:
    questions = []
    for perspective, owned in captions.items():
        images = [image for image, texts in enumerate(owned) if texts]
        both = torch.arange(len(images))[:, None].expand(-1, 2)
        first, further = [owned[image][0] for image in images], sum(map(len, owned)) - len(images)
        images_out = len(owned) - len(images)
        questions.append(TextSet(perspective, first, torch.tensor(images), both, images_out, further))
    return questions


PROTOCOLS: dict[str, Callable[[Captions], list[TextSet]]] = {
    PER_PERSPECTIVE: per_perspective,
    STANDARD: standard,
    PAPER: paper,
}


def captions_by_perspective(
    dataset: Dataset, perspectives: Sequence[str], log: LeftOutLog | None = None
) -> dict[str, list[list[str]]]:
    """Collect for each perspective the texts of N images, cleaned as the processor does; an empty list for an image
    without.

    Args:
        dataset: Corpus of N rows.
        perspectives: Names of those to collect.
        log: Log of the captions that are left out, which are blank or not strings. Default: one of its own.

    Raises:
        ValueError: no perspective, or one without any caption.
    """
    if not perspectives:
        raise ValueError("`perspectives` is empty. Name at least one perspective of the corpus.")
    names, faults, present = row_names(dataset), dict[str, str](), set[str]()
    found: dict[str, list[list[str]]] = {perspective: [[] for _ in names] for perspective in perspectives}
    for index, captions in enumerate(dataset["captions"]):
        for perspective, text in usable_captions(names[index], captions, faults):
            present.add(perspective)
            if perspective in found:
                found[perspective][index].append(clean_caption(text))
    (LeftOutLog() if log is None else log).note(faults)
    _require_captions(found, present)
    return found


def _require_captions(captions: Captions, present: Iterable[str]) -> None:
    if absent := [perspective for perspective, texts in captions.items() if not any(texts)]:
        raise ValueError(
            f"No image here has a caption of {', '.join(absent)}. "
            f"It has {', '.join(sorted(present)) or 'no captions'}."
        )


CAPTION_SETS = "caption_sets"  # of `protocol`
CaptionSet = tuple[tuple[str, str], ...]  # perspective and text of each caption; none twice


def caption_sets(captions: Captions) -> tuple[list[CaptionSet], Tensor]:
    """Return the distinct sets (S) of N images, and pairs (R, 2) of image index and set index; `ValueError` without
    any.

    >>> caption_sets({"short": [["a cat"], ["a cat"], []], "style": [["flat"], ["flat"], []]})
    ([(('short', 'a cat'), ('style', 'flat'))], tensor([[0, 0],
            [1, 0]]))
    """
    num_images = len(next(iter(captions.values())))
    each = [
        tuple(sorted({(perspective, text) for perspective, owned in captions.items() for text in owned[image]}))
        for image in range(num_images)
    ]
    if not any(each):
        raise ValueError("No image has a caption, so there is nothing to ask for. Name perspectives of the corpus.")
    return caption_pairs([[one] if one else [] for one in each])


def vectors_of_sets(
    model: DualEncoder,
    branch_embeds: Tensor,
    sets: Sequence[CaptionSet],
    text_embeds: Mapping[str, Tensor],
    *,
    with_branches: bool = True,
) -> Iterator[tuple[dict[str, Detail], FusedVectors]]:
    """Return what compares images and sets: the fused vectors, then, if there are several branches, by name, one for
    each perspective.

    Shapes: `branch_embeds` (N, H, D); `text_embeds` (D,) of each text; all of unit length.
    """
    texts = {text: row for row, text in enumerate(dict.fromkeys(text for one in sets for _, text in one))}
    embeds = torch.stack([text_embeds[text] for text in texts])  # (T, D) of the distinct ones
    rows = [torch.tensor([texts[text] for _, text in one]) for one in sets]
    fused = fuse(model, branch_embeds, embeds)
    if fused.score is dot:
        fused = fused._replace(texts=torch.stack([fused.texts[each].mean(dim=0) for each in rows]))
    else:
        # (S, M, D): a text of zeros adds nothing to a score.
        padded = nn.utils.rnn.pad_sequence([embeds[each] for each in rows], batch_first=True)
        fused = fused._replace(texts=padded, score=_mean_over_captions(fused.score))
    yield {"branch": FUSED, "fusion": model.config.fusion}, fused
    names = list(model.config.perspectives)
    if with_branches and len(names) > 1 and {perspective for one in sets for perspective, _ in one} <= set(names):
        by_branch = embeds.new_zeros(len(sets), len(names), embeds.shape[1])
        for place, (one, each) in enumerate(zip(sets, rows, strict=True)):
            branches = torch.tensor([names.index(perspective) for perspective, _ in one])
            by_branch[place].index_add_(0, branches, embeds[each] / len(one))
        yield {"branch": BY_NAME}, FusedVectors(branch_embeds.flatten(1), by_branch.flatten(1), dot)


def _mean_over_captions(score: Score) -> Score:
    def of_sets(images: Tensor, sets: Tensor) -> Tensor:
        count = sets.any(dim=2).sum(dim=1)
        return sum(score(images, texts) for texts in sets.unbind(dim=1)) / count

    return of_sets


TASK = "retrieval"
RETRIEVAL_PROTOCOLS = (*PROTOCOLS, CAPTION_SETS)


@dataclass(frozen=True)
class EmbeddedCorpus:
    """A corpus as one model sees it; what fusion makes of it is decided later.

    Args:
        branch_embeds: (N, H, D), unit length.
        captions: Texts of the N images by perspective, in the form that the model learned them in. Of texts with the
            same tokens, the first stands for all.
        text_embeds: (D,) of each text, unit length.
        left_out: Reasons by name of the images and captions of the corpus that cannot be used, and are not here.
        plain: Text of the corpus behind each that the form changed, by perspective and text.
    """

    branch_embeds: Tensor
    captions: Captions
    text_embeds: Mapping[str, Tensor]
    left_out: Mapping[str, str] = field(default_factory=dict)
    plain: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def plain_captions(self) -> Captions:
        """Texts by perspective as the corpus has them, by which two models are asked the same."""
        return _each_text(self.captions, lambda name, text: self.plain.get((name, text), text))

    def embeds_of(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of texts, (T, D)."""
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
    encoded: EncodedFolder | None = None,
) -> EmbeddedCorpus:
    """Encode the images of a corpus and its captions of these perspectives; `batch_size` changes speed, not results.

    Captions are written in the form that the processor says. Images that do not decode are left out with their
    captions, and captions that are blank or not strings. Each is named in a warning. Without images (a router is
    fitted to captions alone) there are no rows in `branch_embeds`. Batches that `encoded` has are not encoded again.
    Raises `ValueError` where the corpus has no caption of a perspective.
    """
    log = LeftOutLog()
    plain = captions_by_perspective(dataset, perspectives, log)
    written = captions = _written(processor, plain)
    images = torch.empty(0, len(model.config.perspectives), model.config.projection_dim)
    left_out = dict(log.reasons)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "encoded": encoded}
    if with_images:
        found = encode_images(model, processor, dataset, **options)
        images, rows = found.branch_embeds, found.rows.tolist()
        read = {perspective: [owned[row] for row in rows] for perspective, owned in captions.items()}
        _require_captions(read, [name for name, owned in read.items() if any(owned)])
        left_out |= found.left_out
    # Texts of images that cannot be read are encoded, too: which these are is not known to those who encode a share.
    first = first_read_alike(processor, _texts_of(captions), batch_size=batch_size)
    texts = list(dict.fromkeys(first.values()))
    vectors = dict(zip(texts, encode_texts(model, processor, texts, **options), strict=True))
    captions = _each_text(read if with_images else captions, lambda _, text: first[text])
    return EmbeddedCorpus(images, captions, vectors, left_out, _plain_texts(plain, written, first))


def _each_text(captions: Captions, change: Callable[[str, str], str]) -> Captions:
    """Return captions with each text changed by a function of its perspective and itself."""
    return {name: [[change(name, text) for text in each] for each in owned] for name, owned in captions.items()}


def _written(processor: Processor, captions: Captions) -> Captions:
    """Write captions in the form of a processor."""
    return _each_text(captions, lambda name, text: written_caption(processor, text, name))


def _plain_texts(plain: Captions, written: Captions, first: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Return the first plain text behind each that stands for a written one, by perspective."""
    found: dict[tuple[str, str], str] = {}
    for name, owned in plain.items():
        for old, new in zip(_flat(owned), _flat(written[name]), strict=True):
            if new != old:
                found.setdefault((name, first[new]), old)
    return found


def texts_to_encode(
    processor: Processor, dataset: Dataset, *, perspectives: Sequence[str], batch_size: int = 64
) -> list[str]:
    """Return the texts that `embed_corpus` encodes: of those with the same tokens, the first."""
    texts = _texts_of(_written(processor, captions_by_perspective(dataset, perspectives)))
    return list(dict.fromkeys(first_read_alike(processor, texts, batch_size=batch_size).values()))


def _texts_of(captions: Captions) -> list[str]:
    return list(dict.fromkeys(text for owned in captions.values() for text in _flat(owned)))


def _flat(owned: Sequence[Sequence[str]]) -> Iterator[str]:
    return (text for texts in owned for text in texts)


def embed_alike(
    model: DualEncoder, processor: Processor, dataset: Dataset, corpus: EmbeddedCorpus, *, batch_size: int = 64
) -> EmbeddedCorpus:
    """Encode by another model what `embed_corpus` encoded: the same images, and the very same texts.

    Its own processor may read fewer tokens; a text is then cut, and still the same question. A text is written in the
    form that this processor says, whatever the first model's is.

    Args:
        model: the other model.
        processor: Processor of the other model.
        dataset: Rows that the corpus was encoded from.
        corpus: Corpus as the first model sees it.
        batch_size: Number of images or texts that are encoded together.
    """
    encoded = encode_images(model, processor, dataset, batch_size=batch_size)
    captions = _written(processor, corpus.plain_captions)
    texts = _texts_of(captions)
    vectors = encode_texts(model, processor, texts, batch_size=batch_size)
    text_embeds = dict(zip(texts, vectors, strict=True))
    plain = _plain_texts(corpus.plain_captions, captions, {text: text for text in texts})
    return EmbeddedCorpus(encoded.branch_embeds, captions, text_embeds, corpus.left_out, plain)


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
    """Measure recall@k, median rank and mean average precision, in both directions, fused and by each branch.

    `protocols` are those of `protocols.py`, and `caption_sets`: all captions of an image at once, fused and by name.
    A branch is measured on all perspectives, not only on its own: the records hold the whole branch x perspective
    matrix. With one branch only the fused vector is measured, which is the same. Raises `ValueError` as
    `embed_corpus` does, and for an unknown protocol.

    >>> provenance = capture_provenance(model="tiny", dataset="squares", split="test", seed=0)
    >>> records = evaluate_retrieval(model, processor, corpus, provenance=provenance, perspectives=["style"])
    >>> records[0].label, dict(records[0].details)
    ('recall@1', {'protocol': 'per_perspective', 'perspective': 'style', 'branch': 'fused', ...})
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
    """Return the same of a corpus that is encoded already, with branches or fused alone."""
    if unknown := [protocol for protocol in protocols if protocol not in RETRIEVAL_PROTOCOLS]:
        raise ValueError(f"`protocols` has {unknown}; expected some of {', '.join(RETRIEVAL_PROTOCOLS)}.")
    corpus.require_images()
    recorder, records = Recorder(provenance, TASK, len(corpus.left_out)), []
    for protocol in protocols:
        asked = _asked_at_once if protocol == CAPTION_SETS else partial(ranks_by_question, protocol)
        for details, ranks in asked(model, corpus, with_branches):
            records += _records_of_ranks(ranks, recorder, {"protocol": protocol, **details}, ks)
    return records


def ranks_by_question(
    protocol: str, model: DualEncoder, corpus: EmbeddedCorpus, with_branches: bool
) -> Iterator[tuple[dict[str, Detail], DirectionRanks]]:
    """Yield the ranks of a protocol's queries, perspective by perspective, with what a record says of them."""
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
    result: DirectionRanks, recorder: Recorder, details: Mapping[str, Detail], ks: Sequence[int]
) -> list[Record]:
    counts = {
        "n_queries": len(result.ranks),
        "n_candidates": result.num_candidates,
        "n_left_out": result.num_left_out,
    }
    seed, chances = recorder.provenance.seed, chance_recall_at(result.num_correct, result.num_candidates, ks)
    recalls = [
        recorder.record(
            "recall",
            recall,
            {**details, "k": k},
            counts,
            chance=chances[k],
            confidence_interval=bootstrap_interval(result.ranks < k, seed=seed),
        )
        for k, recall in recall_at(result.ranks, ks).items()
    ]
    median_chance = chance_median_rank(result.num_correct, result.num_candidates)
    median = recorder.record("median_rank", median_rank(result.ranks), details, counts, chance=median_chance)
    precision = recorder.record(
        "mean_average_precision",
        result.precision.mean().item(),
        details,
        counts,
        chance=chance_average_precision(result.num_correct, result.num_candidates),
        confidence_interval=bootstrap_interval(result.precision, seed=seed),
    )
    return [*recalls, median, precision]


def note_of_few_images(records: Iterable[Record]) -> str:
    """Say that recall on a handful of images means little; nothing if there were more.

    Args:
        records: Records of retrieval, and any others.
    """
    found = [
        record.counts["n_candidates"]
        for record in records
        if record.metric == "recall" and record.details.get("direction") == TEXT_TO_IMAGE
    ]
    if min(found, default=FEWEST_IMAGES) >= FEWEST_IMAGES:
        return ""
    images = f"{min(found)} images" if min(found) > 1 else "one image"
    return f"Recall was measured on {images}, too few to mean much: one more or less moves it by {1 / min(found):.0%}."


def recall_by_slot(
    slots: Sequence[str],
    image_embeds: Tensor,
    text_embeds: Tensor,
    caption_ids: Tensor,
    caption_mask: Tensor,
    *,
    score: Score = dot,
) -> dict[str, float]:
    """Return recall in both directions by one score: of each slot by itself, and the mean over slots.

    Images without any caption are not candidates.

    Args:
        slots: M names.
        image_embeds: (N, D), fused, or whatever `score` takes, such as (N, H, D).
        text_embeds: (N, M, D).
        caption_ids, caption_mask: (N, M), as the collator makes them.
        score: Score of images and texts.

    A slot without any caption has no recall, which is told in a warning.

    Raises:
        ValueError: no slot with a caption.
    """
    # The collator leaves an image that does not decode without captions, and puts another's pixels in its place.
    seen = caption_mask.any(dim=1)
    image_embeds, text_embeds = image_embeds[seen], text_embeds[seen]
    caption_ids, caption_mask = caption_ids[seen], caption_mask[seen]
    metrics: dict[str, float] = {}
    measured: dict[str, dict[str, float]] = {}
    for index, slot in enumerate(slots):
        if not caption_mask[:, index].any():
            logger.warning("No row evaluated has a usable caption for the slot %s: it has no recall.", slot)
            continue
        rows, pairs = distinct_captions(caption_ids[:, index : index + 1], caption_mask[:, index : index + 1])
        recalls = retrieval_recalls(image_embeds, text_embeds[rows[:, 0], index], pairs, score=score)
        metrics.update({f"{slot}_{name}": value for name, value in recalls.items()})
        measured[slot] = recalls
    if not measured:
        raise ValueError(f"No row of the evaluation set has a readable image and a caption for any of {list(slots)}.")
    for name in recalls:
        metrics[name] = sum(each[name] for each in measured.values()) / len(measured)
    return metrics
