# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Diversity of captions: how alike those of one image are, and a report on a corpus from one pass over it.

Captions are compared by their words (BLEU, shared words) or by a text model. Those that say the same as an earlier one
can be dropped.
"""

import hashlib
import heapq
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, islice
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from ..storage import import_extra
from ..words import markdown_table, split_words

Words = Sequence[str]
_Runs = list[Counter[Words]]  # of 1 to 4 words in a row, how often each occurs
_ORDERS = (1, 2, 3, 4)
_INSTEAD_OF_NONE = 0.1  # matches, where no run of an order matches: "smoothing 1" of Chen and Cherry, 2014 (W14-3346)


def sentence_bleu(words: Words, references: Sequence[Words]) -> float:
    """Return BLEU-4, 0 to 1, of a text against one reference or more (https://aclanthology.org/P02-1040), smoothed.

    Of a text that is shorter than 4 words only the runs that it has are counted; one without a word has 0.

    >>> round(sentence_bleu("a dog on a lawn".split(), ["a cat on a lawn".split()]), 3)
    0.286
    """
    return _bleu(_runs(words), [_runs(reference) for reference in references])


def self_bleu(texts: Sequence[Words]) -> list[float]:
    """Return for each of two texts or more its BLEU against all others (https://arxiv.org/abs/1802.01886)."""
    runs = [_runs(words) for words in texts]
    return [_bleu(each, [*runs[:place], *runs[place + 1 :]]) for place, each in enumerate(runs)]


def _bleu(text: _Runs, references: Sequence[_Runs]) -> float:
    logs = []
    for order, found in enumerate(text):
        others = [reference[order] for reference in references]
        matches = sum(min(many, max([other.get(run, 0) for other in others])) for run, many in found.items())
        if not matches and order == 0:
            return 0.0
        if found:
            logs.append(math.log((matches or _INSTEAD_OF_NONE) / found.total()))
    length = text[0].total()
    lengths = [reference[0].total() for reference in references]
    nearest = min(lengths, key=lambda other: (abs(other - length), other))
    return math.exp(min(0.0, 1 - nearest / length) + sum(logs) / len(logs))


def _runs(words: Words) -> _Runs:
    return [Counter(zip(*(words[start:] for start in range(order)), strict=False)) for order in _ORDERS]


Embed = Callable[[list[str]], np.ndarray]  # T texts → (T, D)
Compare = Callable[[list[str]], np.ndarray]  # M texts → (M, M), 1 for the same


class Dropped(NamedTuple):
    """A caption that was left out, and why, in words."""

    caption: Mapping[str, str]
    reason: str


def require_threshold(threshold: float) -> None:
    """Raise `ValueError` for a similarity that no two captions have, or all."""
    if not 0 < threshold <= 1:
        raise ValueError(
            f"`threshold` is {threshold}; expected a number above 0, at most 1. Correct it; 1 drops only what is the "
            "same."
        )


def drop_similar(
    captions: Sequence[Mapping[str, str]], compare: Compare, threshold: float
) -> tuple[list[Mapping[str, str]], list[Dropped]]:
    """Return the captions of one image without those that are too close to an earlier one that is kept, and the
    others.

    Too close is a similarity of `threshold` or more, by `compare`: `word_similarity` or `embedding_similarity(embed)`.

    Raises:
        ValueError: `threshold` is not above 0 and at most 1, or `compare` gives something else than (M, M) numbers.
    """
    require_threshold(threshold)
    matrix = np.asarray(compare([caption["text"] for caption in captions]))
    if matrix.shape != (len(captions),) * 2 or not np.isfinite(matrix).all():
        raise ValueError(
            f"`compare` gave similarities of shape {matrix.shape} for {len(captions)} captions; expected finite "
            f"numbers, a row "
            "and a column for each. Correct `compare`."
        )
    kept: list[int] = []
    dropped = []
    for place, caption in enumerate(captions):
        nearest = max(kept, key=lambda other: matrix[place, other], default=None)
        if nearest is None or matrix[place, nearest] < threshold:
            kept.append(place)
        else:
            near = f"{captions[nearest]['perspective']!r} from {captions[nearest]['source']!r}"
            dropped.append(Dropped(caption, f"similarity {matrix[place, nearest]:.2f} to {near}, at most {threshold}"))
    return [captions[place] for place in kept], dropped


def word_similarity(texts: Sequence[str]) -> np.ndarray:
    """Compare M texts by the words and pairs of neighbours that two share, of all that either has, whatever their
    case: (M, M).

    This is the resemblance of https://doi.org/10.1109/SEQUEN.1997.666900 (Broder, 1997). Two texts without a word are
    as one.
    """
    shingles = [_shingles(text) for text in texts]
    return np.array(
        [[len(one & other) / len(one | other) if one | other else 1.0 for other in shingles] for one in shingles]
    ).reshape(len(texts), len(texts))


def embedding_similarity(embed: Embed) -> Compare:
    """Return the cosine of the texts' embeddings, (M, M)."""
    return lambda texts: cosines(embed(texts), len(texts)) if texts else np.zeros((0, 0))


def sentence_embedder(name: str) -> Embed:
    """Return a model of sentence-transformers, by its name on the Hub or its folder, as texts → (T, D).

    Raises:
        ImportError: sentence-transformers is not installed.
    """
    model = import_extra("sentence_transformers", "peers").SentenceTransformer(name)
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_numpy=True)


def cosines(embeddings: np.ndarray, count: int) -> np.ndarray:
    """Compare embeddings (M, D): (M, M). Raises `ValueError` unless `count` of them are finite and not zero."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or len(embeddings) != count:
        raise ValueError(
            f"`embed` gave embeddings of shape {embeddings.shape} for {count} texts; expected a row for each."
        )
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ValueError(
            "`embed` gave embeddings that are zero or not finite; expected finite ones. Use another model or data "
            "type."
        )
    return (embeddings / norms) @ (embeddings / norms).T


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = split_words(text.casefold())
    return {(word,) for word in words} | set(zip(words, words[1:], strict=False))


Caption = Mapping[str, str]
# A share measured over 10,000 images has a standard error of at most 0.5 / sqrt(10,000) = 0.005: two decimals hold.
SAMPLE = 10_000
MOST_SLOTS = 64  # perspectives times captioners; more, and `source` is not the name of a captioner
_IMAGES_AT_ONCE = 1_000  # whose captions are embedded together


class Slot(NamedTuple):
    """Captions of one perspective from one source."""

    perspective: str
    source: str


@dataclass(frozen=True)
class SlotReport:
    """Report on the captions of one slot.

    Args:
        name: the perspective, and the source where the perspective has several.
        duplicates: share of the captions whose text another image has too in this slot.
        lengths: words → captions of that many words.
        distinct: share of the runs of 1, 2 and 3 words in the sample that are different, whatever their case
            (distinct-n, https://arxiv.org/abs/1510.03055). It falls as a sample grows: compare equal ones.
    """

    name: str
    perspective: str
    source: str
    count: int
    duplicates: float
    mean_words: float
    median_words: float
    lengths: dict[int, int]
    distinct: tuple[float, float, float]


@dataclass(frozen=True)
class Similarity:
    """Similarity of the captions of one image.

    Args:
        mean: over the images with two captions or more, of the mean over their pairs of captions.
        between: mean over the images that have both, for each pair of slots; `None` where no image has.
    """

    mean: float | None
    between: list[list[float | None]]


@dataclass(frozen=True)
class DiversityReport:
    """Report on a corpus; see `measure_diversity`. `words` and `embeddings` say by what captions were compared.

    Args:
        self_bleu: mean BLEU-4, 0 to 1, of a caption against the other captions of its image (`bleu.self_bleu`); `None`
            where no image has two.
    """

    images: int
    captions: int
    sampled: int
    seed: int
    self_bleu: float | None
    words: Similarity
    embeddings: Similarity | None
    slots: list[SlotReport]

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return Markdown: a row for each slot, then how alike the captions of an image are."""
        head = ["slot", "captions", "words, mean", "median", "duplicates", "distinct-1", "distinct-2", "distinct-3"]
        rows = [
            [slot.name, f"{slot.count:,}", f"{slot.mean_words:.1f}", f"{slot.median_words:g}"]
            + [f"{slot.duplicates:.1%}", *(f"{share:.2f}" for share in slot.distinct)]
            for slot in self.slots
        ]
        found = {"shared words (Jaccard)": self.words.mean, "self-BLEU": self.self_bleu}
        if self.embeddings is not None:
            found["text similarity (cosine)"] = self.embeddings.mean
        sentence = "; ".join(f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in found.items())
        return (
            f"{markdown_table(head, rows, align='l' + 'r' * (len(head) - 1))}\n\n"
            f"Captions of one image among each other, lower is more diverse: {sentence}. {self.images:,} images with "
            f"{self.captions:,} captions; distinct-n and these from {self.sampled:,} of the images."
        )


@dataclass
class _Tally:
    """Memory of every caption of a slot: 8 bytes, and how many have each length."""

    hashes: array = field(default_factory=lambda: array("Q"))
    lengths: Counter[int] = field(default_factory=Counter)
    places: int = 0  # sum over its captions of their places among those of their image

    def add(self, text: str, place: int) -> None:
        self.hashes.append(_hash(text))
        self.lengths[len(split_words(text))] += 1
        self.places += place

    @property
    def duplicates(self) -> float:
        counts = np.unique(np.frombuffer(self.hashes, dtype=np.uint64), return_counts=True)[1]
        return float(counts[counts > 1].sum() / len(self.hashes))

    @property
    def median(self) -> float:
        lengths, counts = zip(*sorted(self.lengths.items()), strict=True)
        ends = np.cumsum(counts)
        middle = [lengths[int(np.searchsorted(ends, (ends[-1] + odd) // 2))] for odd in (1, 2)]
        return sum(middle) / 2


def measure_diversity(
    images: Iterable[tuple[str, Sequence[Caption]]], *, embed: Embed | None = None, sample: int = SAMPLE, seed: int = 0
) -> DiversityReport:
    """Return the report on a corpus, given as (image id, captions), each with `perspective`, `text` and `source`.

    Counts, lengths and duplicates are of all captions; what needs more time or memory is of `sample` images, the same
    ones in whatever order they come. `embed` turns T texts into (T, D), as `sentence_embedder` does; with it, text
    similarity is measured too. Memory: 8 bytes per caption, and the captions of the sample.

    Example: `measure_diversity((row["image_id"], row["captions"]) for row in corpus.remove_columns("image"))`.

    Raises:
        ValueError: no captions, a sample below 1, or more slots than can be told apart.
    """
    if sample < 1:
        raise ValueError(f"`sample` is {sample}; expected 1 or more images. The default is {SAMPLE}.")
    tallies: dict[Slot, _Tally] = {}
    chosen: list[tuple[int, str, list[tuple[Slot, str]]]] = []
    count = 0
    for image_id, captions in images:
        count += 1
        texts = [(Slot(caption["perspective"], caption["source"]), caption["text"]) for caption in captions]
        for place, (slot, text) in enumerate(texts):
            tallies.setdefault(slot, _Tally()).add(text, place)
        _require_few(tallies)
        # A heap whose first entry has the highest hash: the next to go.
        entry = (-_hash(f"{seed} {image_id}"), image_id, texts)
        if len(chosen) < sample:
            heapq.heappush(chosen, entry)
        else:
            heapq.heappushpop(chosen, entry)
    if not tallies:
        raise ValueError(f"The corpus has {count} images and no caption of them; expected captions. Check the corpus.")
    return _report(count, tallies, [texts for _, _, texts in sorted(chosen)], seed, embed)


def _report(
    count: int, tallies: dict[Slot, _Tally], sampled: list[list[tuple[Slot, str]]], seed: int, embed: Embed | None
) -> DiversityReport:
    # In the order in which images have them, whichever image lacks some and comes first.
    slots = sorted(tallies, key=lambda slot: (tallies[slot].places / len(tallies[slot].hashes), slot))
    return DiversityReport(
        images=count,
        captions=sum(len(tally.hashes) for tally in tallies.values()),
        sampled=len(sampled),
        seed=seed,
        self_bleu=_self_bleu(sampled),
        words=_similarity(sampled, slots, _by_words),
        embeddings=None if embed is None else _similarity(sampled, slots, lambda some: _by_embedding(some, embed)),
        slots=[_slot_report(slot, tallies, [t for texts in sampled for s, t in texts if s == slot]) for slot in slots],
    )


def _slot_report(slot: Slot, tallies: dict[Slot, _Tally], sampled: list[str]) -> SlotReport:
    tally = tallies[slot]
    is_only = sum(other.perspective == slot.perspective for other in tallies) == 1
    words = [split_words(text.casefold()) for text in sampled]
    return SlotReport(
        name=slot.perspective if is_only else f"{slot.perspective} ({slot.source})",
        perspective=slot.perspective,
        source=slot.source,
        count=len(tally.hashes),
        duplicates=tally.duplicates,
        mean_words=sum(length * many for length, many in tally.lengths.items()) / len(tally.hashes),
        median_words=tally.median,
        lengths=dict(sorted(tally.lengths.items())),
        distinct=(_distinct(words, 1), _distinct(words, 2), _distinct(words, 3)),
    )


def _distinct(texts: Sequence[Sequence[str]], length: int) -> float:
    seen, total = set(), 0
    for words in texts:
        for start in range(len(words) - length + 1):
            seen.add(tuple(words[start : start + length]))
            total += 1
    return len(seen) / total if total else 0.0


def _self_bleu(images: Iterable[Sequence[tuple[Slot, str]]]) -> float | None:
    scores = []
    for captions in images:
        if len(captions) > 1:
            scores += self_bleu([split_words(text.casefold()) for _, text in captions])
    return fmean(scores) if scores else None


def _similarity(
    images: Sequence[Sequence[tuple[Slot, str]]],
    slots: list[Slot],
    compare: Callable[[Sequence[list[str]]], Iterator[np.ndarray]],
) -> Similarity:
    places = {slot: place for place, slot in enumerate(slots)}
    sums, counts = np.zeros((len(slots), len(slots))), np.zeros((len(slots), len(slots)), dtype=int)
    means = []
    several = [captions for captions in images if len(captions) > 1]
    for captions, matrix in zip(
        several, compare([[text for _, text in captions] for captions in several]), strict=True
    ):
        pairs = list(combinations(range(len(captions)), 2))
        means.append(fmean(float(matrix[one, other]) for one, other in pairs))
        for one, other in pairs:
            row, column = places[captions[one][0]], places[captions[other][0]]
            for cell in {(row, column), (column, row)}:
                sums[cell] += matrix[one, other]
                counts[cell] += 1
    between = [
        [float(total / many) if many else None for total, many in zip(*line, strict=True)]
        for line in zip(sums, counts, strict=True)
    ]
    return Similarity(fmean(means) if means else None, between)


def _by_words(images: Sequence[list[str]]) -> Iterator[np.ndarray]:
    return map(word_similarity, images)


def _by_embedding(images: Sequence[list[str]], embed: Embed) -> Iterator[np.ndarray]:
    rest = iter(images)
    while batch := list(islice(rest, _IMAGES_AT_ONCE)):
        matrix, start = embed([text for texts in batch for text in texts]), 0
        for texts in batch:
            yield cosines(matrix[start : start + len(texts)], len(texts))
            start += len(texts)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _require_few(slots: Mapping[Slot, Any]) -> None:
    if len(slots) > MOST_SLOTS:
        raise ValueError(
            f"The corpus has more than {MOST_SLOTS} pairs of perspective and source, such as {list(slots)[-1]}; "
            f"expected "
            "`source` to name a captioner or a kind of text, not the image. Name sources alike."
        )
