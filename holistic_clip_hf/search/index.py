# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Open index: texts and example images to the images that answer them best, and why."""

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from ..evaluation.calibration import Calibration, ScoreCalibration, Usual
from ..evaluation.encoding import DualEncoder, encode_texts, written_caption
from ..evaluation.fingerprints import fingerprint
from ..evaluation.records import FUSED
from ..images.decoding import UnreadableImageError, read_image
from ..images.folders import FolderImages
from ..images.likeness import read_thumbnail
from ..images.sources import Images
from ..loss_holistic_clip import prefix_of, route
from ..storage import shown
from .encoding import embed_images
from .indexing import make_layout
from .judging import SEEN, Answer, judge, sound_scores
from .neighbours import Neighbours
from .query import Filter, Query, Term, as_terms, parse_query
from .scoring import (
    CENTROID,
    MAX,
    SOFTMAX,
    SUM,
    EmbeddedTerm,
    Hit,
    best_places,
    candidates,
    chunked,
    contributions,
    explained,
    linear_totals,
    margin,
    mean_lengths,
    proposals_by,
    require_finite_terms,
    rough_scores,
    sampled,
    usual,
    with_floors,
)
from .store import (
    BRANCHES,
    EXACT,
    FUSED_ONLY,
    Layout,
    Manifest,
    open_sound,
    open_whole,
    read_index_manifest,
    require_layout,
    vectors_of,
)

logger = logging.getLogger(__name__)

MOST_REMEMBERED = 1_024  # texts; moving a slider asks the same ones again


class Asker:
    """Encoder of the terms of queries, those of one thread at a time.

    Args:
        model, processor: Parts of the checkpoint that made the index.
        layout: Layout of the index.
    """

    def __init__(self, model: DualEncoder, processor: Any, layout: Layout) -> None:
        self.model, self.processor, self.layout = model, processor, layout
        self.fusion = copy.deepcopy(model.branch_fusion).float().cpu()
        scale = model.config.fusion_scale
        self.scale = float(model.logit_scale.detach().float().exp()) if scale is None else float(scale)
        self._remembered: OrderedDict[str, np.ndarray] = OrderedDict()
        # A tokenizer of the fast kind refuses two threads at once, and a model has one mode for all.
        self._lock = threading.Lock()

    def of_layout(self, layout: Layout) -> "Asker":
        """Return an encoder for another index of the model; the two take turns, and remember the same texts."""
        found = copy.copy(self)
        found.layout = layout
        return found

    @property
    def combine(self) -> str:
        """Way in which the products of a text with all branches become one number."""
        return {"centroid": CENTROID, "max": MAX, "softmax": SOFTMAX}.get(self.fusion.config.fusion, SUM)

    def ask(self, terms: Sequence[Term]) -> list[EmbeddedTerm]:
        """Return each term as vectors, in the space of the index; a text in the form of the perspective that it asks.

        Raises:
            ValueError: a term by perspective where the index has fused vectors only; an image that the processor
                refuses; values that are not finite.
        """
        if self.layout.vectors == FUSED_ONLY:
            for term in terms:
                if term.perspective != FUSED or term.without:
                    raise ValueError(
                        f"{shown(str(term))} asks one branch, but the index holds one fused vector for an image. Ask "
                        f"without a perspective, or index with vectors='branches'."
                    )
        with self._lock:
            written = [
                None if term.text is None else written_caption(self.processor, term.text, term.perspective)
                for term in terms
            ]
            vectors = self._encode([text for text in dict.fromkeys(written) if text is not None])
            questions = [
                self._of_image(term) if text is None else self._of_text(term, vectors[text])
                for term, text in zip(terms, written, strict=True)
            ]
        require_finite_terms(questions)
        return questions

    def _encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        new = [text for text in texts if text not in self._remembered]
        if new:
            vectors = encode_texts(self.model, self.processor, new, batch_size=32).numpy()
            self._remembered.update(zip(new, vectors, strict=True))
        found = {text: self._remembered[text] for text in texts}
        for text in texts:
            self._remembered.move_to_end(text)
        while len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return found

    def _of_text(self, term: Term, vector: np.ndarray) -> EmbeddedTerm:
        whole = torch.from_numpy(vector)
        text = prefix_of(whole, self.layout.width)
        if self.layout.vectors == FUSED_ONLY:
            return EmbeddedTerm(term, {FUSED: text.numpy()})
        if term.perspective != FUSED:
            return EmbeddedTerm(term, {term.perspective: text.numpy()})
        names = self.layout.perspectives
        if self.fusion.is_linear:
            split = self._split(text, whole).numpy()
            return EmbeddedTerm(term, dict(zip(names, split, strict=True)), self.combine)
        return EmbeddedTerm(term, dict.fromkeys(names, text.numpy()), self.combine, self.scale)

    def _split(self, text: Tensor, whole: Tensor) -> Tensor:
        """Repeat a text, cut as the index is, once for each branch, times its share in the fused similarity: (H, D).

        A router reads the text as a whole.
        """
        with torch.inference_mode():
            routing = self.fusion.routing(whole)
            return route(text, self.shares() if routing is None else routing).unflatten(0, (-1, len(text)))

    def shares(self) -> Tensor:
        """Return how much each branch counts in the mean: (H,)."""
        return self.fusion.mean(torch.eye(len(self.layout.perspectives))[:, :, None])[:, 0]

    def _of_image(self, term: Term) -> EmbeddedTerm:
        """Compare branch with branch; fused, the mean of that over branches, however texts are fused.

        What the term leaves out, the other branches share.
        """
        assert term.image is not None
        is_fused_only = self.layout.vectors == FUSED_ONLY
        width = self.layout.width
        found = embed_images(self.model, self.processor, [term.image], fused=is_fused_only, width=width)[0]
        if is_fused_only:
            return EmbeddedTerm(term, {FUSED: found[0]})
        by_name = dict(zip(self.layout.perspectives, found, strict=True))
        if term.perspective != FUSED:
            return EmbeddedTerm(term, {term.perspective: by_name[term.perspective]})
        shares = dict(zip(by_name, self.shares().tolist(), strict=True))
        kept = {name: share for name, share in shares.items() if name not in term.without}
        total = sum(kept.values())
        if not total:  # of branches that the fusion gives no weight
            kept, total = dict.fromkeys(kept, 1.0), float(len(kept))
        return EmbeddedTerm(term, {name: by_name[name] * (share / total) for name, share in kept.items()})


Decoded = TypeVar("Decoded")
MOST_RESULTS = 10_000
FEW = 50_000  # images of an index, or of its approximate part that pass a filter, up to which each is looked at


class SearchIndex:
    """The index as it was when it was opened; made by `index_images`. Any number of threads may search it.

    Args:
        directory: Folder of the index.
        model, processor: the checkpoint that made it.
        images: Source of what was indexed, to show images. Default: the folder that the index remembers.
        skip_damaged: True to search the rest of an index of which files are damaged. They are named in the log and in
            `damaged`, and their images are not found.
        calibration: Calibration of the checkpoint, by which images have probabilities. What of it is that of another
            checkpoint or fusion is named in a warning, and left out.
        known: Layout that `index_images` has just reported for this model and processor, whose weights then need not
            be hashed again.

    Raises:
        ValueError: no index, a torn one, or one of another checkpoint.
        ImportError: an approximate look-up without faiss.

    Example:

    >>> index = SearchIndex("photos.index", model, processor)
    >>> for hit in index.search("main object: a dog; background: snow; not style: drawing", k=5):
    ...     print(hit.image_id, hit.score, [part.by_branch for part in hit.parts])
    """

    def __init__(
        self,
        directory: str | Path,
        model: DualEncoder,
        processor: Any,
        *,
        images: Images | None = None,
        skip_damaged: bool = False,
        calibration: Calibration | None = None,
        known: Layout | None = None,
    ) -> None:
        self.directory, self.damaged = Path(directory), list[str]()
        self._options: dict[str, Any] = {"skip_damaged": skip_damaged, "calibration": calibration}
        if skip_damaged:
            self.manifest, self._datasets, self.damaged = open_sound(self.directory)
        else:
            self.manifest, self._datasets = open_whole(self.directory)
        self.layout = self.manifest.layout
        width = min(self.layout.width, model.config.projection_dim)
        asked = make_layout(model, processor, self.layout.further, self.layout.vectors, width, known=known)
        require_layout(self.manifest, asked, self.directory)
        self._vectors = {
            name: [block for dataset in self._datasets for block in vectors_of(dataset, name)]
            for name in self.layout.vector_names
        }
        self._starts = np.cumsum([0, *(len(block) for block in self._vectors[self.layout.vector_names[0]])])
        self._alive = _alive(self.manifest)
        self._neighbours = None
        if self.manifest.neighbours:
            about = self.manifest.lookup, self.manifest.precision, self.manifest.neighbours
            self._neighbours = Neighbours(self.directory, *about)
        self._asker = Asker(model, processor, self.layout)
        self._images = images
        if self.damaged:
            missing = read_index_manifest(self.directory).num_images - len(self)
            told = " ".join(self.damaged)
            logger.warning("%s of the images of %s are not searched. %s", f"{missing:,}", self.directory, told)
        self._calibrated = self._sound(calibration)

    def reopened(self, images: Images | None = None) -> "SearchIndex":
        """Open what the folder holds now, for the same model; this one goes on answering as before.

        Args:
            images: Source of what was indexed. Default: the source of this index.

        Raises:
            ValueError, ImportError: as for `SearchIndex`.
        """
        model, processor, options = self._asker.model, self._asker.processor, self._options
        found = SearchIndex(
            self.directory, model, processor, images=images or self._images, known=self.layout, **options
        )
        found._asker = self._asker.of_layout(found.layout)
        return found

    def __len__(self) -> int:
        """Return the number of images that can be found."""
        return int(self._alive.sum())

    def __contains__(self, image_id: str) -> bool:
        """Tell whether an image can be found."""
        return image_id in self._row_of

    @property
    def perspectives(self) -> list[str]:
        """Perspectives that can be queried one by one; none where the index holds fused vectors only."""
        return list(self.layout.perspectives) if self.layout.vectors == BRANCHES else []

    @property
    def is_calibrated(self) -> bool:
        """Truth of whether texts are answered with probabilities; examples never are."""
        return bool(self._calibrated)

    @property
    def columns(self) -> list[str]:
        """Columns to filter by."""
        return list(self.layout.columns)

    @cached_property
    def image_ids(self) -> list[str]:
        """Ids of all images, ordered."""
        return sorted(self._row_of)

    def parse(self, query: Query, *, like: Image.Image | None = None) -> list[Term]:
        """Return the terms of a query, as `search` understands it.

        Args:
            query: Query; a text that goes with an example may be empty.
            like: Example image that a query in the one-line language is about, see `parse_query`.

        Raises:
            ValueError: as `parse_query`.
        """
        if isinstance(query, str):
            return parse_query(query, self.perspectives, like=like)
        return as_terms(query, self.perspectives)

    def search(self, query: Query, *, k: int = 20, where: Filter | None = None, exact: bool = False) -> list[Hit]:
        """Return the best `k` images, best first, or all where there are fewer; equal scores in the order of image
        ids.

        Args:
            query: one line in the language of `parse_query`, a `Term`, or several.
            where: which images may answer.
            exact: look at every image, even where an approximate index is there.

        Raises:
            ValueError: as `parse_query`; a perspective, where the index holds fused vectors only; an unknown column
                in the filter; `k` out of range.
        """
        return list(self.answer(query, k=k, where=where, exact=exact).hits)

    def answer(self, query: Query, *, k: int = 20, where: Filter | None = None, exact: bool = False) -> Answer:
        """Return what `search` does, and whether any of it seems to fit.

        Args:
            query: Query, as for `search`.
            k: Number of images.
            where: Filter of the images that may answer; they are the gallery that probabilities depend on.
            exact: Look at every image, as for `search`.

        Raises:
            ValueError: as `search`.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST_RESULTS:
            raise ValueError(f"`k` is {k}; expected 1 to {MOST_RESULTS:,}.")
        allowed = self._alive if where is None else self._alive & where.mask(self._table, self.columns)
        questions, gallery = self._ask(query, allowed)
        seen = max(k, SEEN) if gallery else k
        rows = self._candidates(questions, allowed, seen, exact)
        scores = np.concatenate([self._scores(questions, some) for some in chunked(rows)] or [np.zeros(0)])
        best = best_places(scores, self._table["image_id"].take(rows).to_pylist(), seen)
        answer = self._judged(questions, gallery, rows[best])
        return replace(answer, hits=answer.hits[:k])

    def explain(self, query: Query, image_id: str) -> Hit:
        """Return the score of one image, as `search` would give it.

        Raises:
            ValueError: as `search`.
            KeyError: it is not in the index.
        """
        row = np.array([self._row(image_id)])
        return self._judged(*self._ask(query, self._alive), row).hits[0]

    def image(self, image_id: str) -> Image.Image:
        """Return the image itself, right way up.

        Raises:
            KeyError: it is not in the index.
            ValueError: it cannot be read any more, or the index does not know where its images are.
        """
        return self._read(image_id, read_image)

    def thumbnail(self, image_id: str) -> np.ndarray:
        """Return the thumbnail by which near-duplicates are known: (S, S, 3).

        Raises:
            KeyError, ValueError: as `image`.
        """
        return self._read(image_id, read_thumbnail)

    def _read(self, image_id: str, decode: Callable[[bytes], Decoded]) -> Decoded:
        self._row(image_id)
        try:
            return decode(self._source.read(image_id))
        except (OSError, KeyError, UnreadableImageError) as error:
            raise ValueError(
                f"{image_id} cannot be read any more ({error}). Bring the index up to date: run the indexing again."
            ) from error

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Read rows by their numbers (rows,): (rows, H, D), branches in the order of `layout.vector_names`."""
        found = np.empty((len(rows), len(self._vectors), self.layout.width), dtype=np.float32)
        block_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(block_of):
            here = block_of == number
            for place, blocks in enumerate(self._vectors.values()):
                found[here, place] = blocks[number][rows[here] - self._starts[number]]
        return found

    def rows(self, batch_size: int) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
        """Yield all images in batches: their ids, columns and stamps, and their vectors (N, H, D)."""
        alive = np.flatnonzero(self._alive)
        names = [*self._table.column_names, "stamp"]
        table = pa.concat_tables(each.select_columns(names).with_format("arrow")[:] for each in self._datasets)
        for start in range(0, len(alive), batch_size):
            some = alive[start : start + batch_size]
            yield table.take(some).to_pylist(), self.vectors(some)

    def _ask(self, query: Query, allowed: np.ndarray) -> tuple[list[EmbeddedTerm], list[Usual]]:
        """Return the terms of a query as vectors, and what is usual for each among the rows that are allowed (N,).

        The latter only where something depends on it: floors of terms against, and probabilities.
        """
        questions, rows = self._asker.ask(self.parse(query)), np.flatnonzero(allowed)
        is_against = any(question.term.weight < 0 for question in questions)
        if not len(rows) or not (is_against or self._calibrated):
            return questions, []
        vectors = self._sample if allowed is self._alive else self.vectors(sampled(rows))
        gallery = [usual(question, self.layout.vector_names, vectors, len(rows)) for question in questions]
        return with_floors(questions, gallery), gallery

    @cached_property
    def _sample(self) -> np.ndarray:
        """Vectors of some of all images (N, H, D), which every query without a filter asks for."""
        return self.vectors(sampled(np.flatnonzero(self._alive)))

    def _judged(self, questions: Sequence[EmbeddedTerm], gallery: Sequence[Usual], rows: np.ndarray) -> Answer:
        names, vectors = self.layout.vector_names, self.vectors(rows)
        hits = explained(questions, names, self._table.take(rows).to_pylist(), vectors)
        judged = judge(questions, gallery, self._calibrated, names, vectors) if hits and gallery else None
        if judged is None:
            return Answer(hits)
        likely = zip(hits, judged.probabilities.tolist(), strict=True)
        return Answer([replace(hit, probability=each) for hit, each in likely], judged.found)

    def _sound(self, calibration: Calibration | None) -> dict[str, ScoreCalibration]:
        """Return what of a calibration holds for this index."""
        if calibration is None:
            return {}
        asker, checkpoint = self._asker, self.layout.checkpoint
        if self.layout.vectors == FUSED_ONLY:  # whose fingerprint counts fusion in
            checkpoint = fingerprint(asker.model, asker.processor, with_fusion=False)
        scores = sound_scores(calibration, asker.model, checkpoint)
        if FUSED in scores and len(self.layout.perspectives) == 1:  # of one branch, both are the same
            scores.setdefault(self.layout.perspectives[0], scores[FUSED])
        return scores

    def _candidates(self, questions: Sequence[EmbeddedTerm], allowed: np.ndarray, k: int, exact: bool) -> np.ndarray:
        if self._neighbours is not None and not exact and len(allowed) > FEW:
            # A look-up that reads all rows misses none that pass a filter, and adds up what all terms say of each.
            if self.manifest.lookup == EXACT and (total := linear_totals(questions)) is not None:
                return self._neighbours.propose_by_sum(total, k, allowed)
            if self.manifest.lookup != EXACT and allowed.sum() <= FEW:
                return np.flatnonzero(allowed)
            wanted = proposals_by(questions)
            if wanted:
                return self._neighbours.propose(wanted, k, allowed)
        if any(question.combine == CENTROID for question in questions):
            lengths, shortest = self._lengths
            rough = rough_scores(questions, self._vectors, lengths)
            return candidates(rough, allowed, k, margin(questions, shortest))
        return candidates(rough_scores(questions, self._vectors), allowed, k, margin(questions))

    def _scores(self, questions: Sequence[EmbeddedTerm], rows: np.ndarray) -> np.ndarray:
        return contributions(questions, self.layout.vector_names, self.vectors(rows)).sum(axis=(1, 2))

    def _row(self, image_id: str) -> int:
        if image_id not in self._row_of:
            raise KeyError(f"The index has no image {image_id!r}.")
        return self._row_of[image_id]

    @cached_property
    def _table(self) -> pa.Table:
        """All rows, without their vectors."""
        names = ["image_id", *self.columns]
        return pa.concat_tables(each.select_columns(names).with_format("arrow")[:] for each in self._datasets)

    @cached_property
    def _lengths(self) -> tuple[list[np.ndarray], float]:
        """Lengths of the mean of each image's branches, block by block, and the shortest: 8 bytes an image."""
        found = []
        for block in zip(*self._vectors.values(), strict=True):
            chunks = chunked(np.arange(len(block[0])))
            lengths = [mean_lengths(np.stack([each[some] for each in block], axis=1)) for some in chunks]
            found.append(np.concatenate(lengths))
        return found, min((float(each.min()) for each in found), default=1.0)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        ids = self._table["image_id"].to_pylist()
        return {ids[row]: row for row in np.flatnonzero(self._alive).tolist()}

    @cached_property
    def _source(self) -> Images:
        if self._images is not None:
            return self._images
        origin = self.manifest.origin
        if origin["kind"] != "folder":
            raise ValueError(
                f"The images are those of {dict(origin)}, which the index does not hold. Open it with "
                f"`images=DatasetImages(...)` to see them."
            )
        root, here = Path(origin["root"]), self.directory.resolve().parent / Path(origin["root"]).name
        # An index that was copied or cloned has its images beside it, or they are where they were.
        return FolderImages(here if here.is_dir() and not root.is_dir() else root, follow_links="links" in origin)


def _alive(manifest: Manifest) -> np.ndarray:
    alive = np.ones(sum(segment.rows for segment in manifest.segments), dtype=bool)
    start = 0
    for segment in manifest.segments:
        alive[start + np.asarray(segment.dead, dtype=np.int64)] = False
        start += segment.rows
    return alive
