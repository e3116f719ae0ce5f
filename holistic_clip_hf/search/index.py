# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""An index that is open: texts and example images to the images that answer them best, and why."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ..evaluation.encoding import DualEncoder
from ..unreadable import UnreadableImageError
from .asking import Asker
from .embedding import decode
from .filters import Filter
from .hits import Hit, best_places, explained
from .images import FolderImages, Images
from .indexing import make_layout
from .manifest import BRANCHES, Manifest, require_layout
from .neighbours import EXACT, Neighbours
from .query import Query, Term, as_terms
from .scoring import Question, candidates, chunked, contributions, margin, proposals_by, rough_scores
from .store import open_whole, vectors_of

MOST_RESULTS = 10_000
FEW = 50_000  # images that pass a filter, up to which looking at each is faster than an approximate index
PROPOSED = 10  # by an approximate index, for each result that is asked for, and at least
LEAST_PROPOSED = 200


class SearchIndex:
    """The index as it was when it was opened; made by `index_images`. Any number of threads may search it.

    Args:
        directory: of the index.
        model, processor: the checkpoint that made it.
        images: what was indexed, to show images. Default: the folder that the index remembers.

    Raises:
        ValueError: no index, a torn one, or one of another checkpoint.
        ImportError: an approximate look-up without faiss.

    Example:

    >>> index = SearchIndex("photos.index", model, processor)
    >>> for hit in index.search("main object: a dog; background: snow; not style: drawing", k=5):
    ...     print(hit.image_id, hit.score, [part.by_branch for part in hit.parts])
    """

    def __init__(
        self, directory: str | Path, model: DualEncoder, processor: Any, *, images: Images | None = None
    ) -> None:
        self.directory = Path(directory)
        self.manifest, self._datasets = open_whole(self.directory)
        self.layout = self.manifest.layout
        asked = make_layout(model, processor, self.layout.further, self.layout.vectors)
        require_layout(self.manifest, asked, self.directory)
        self._vectors = {
            name: [block for dataset in self._datasets for block in vectors_of(dataset, name)]
            for name in self.layout.vector_names
        }
        self._starts = np.cumsum([0, *(len(block) for block in self._vectors[self.layout.vector_names[0]])])
        self._alive = _alive(self.manifest)
        self._neighbours = None
        if self.manifest.lookup != EXACT:
            self._neighbours = Neighbours(self.directory, self.manifest.lookup, self.manifest.neighbours)
        self._asker = Asker(model, processor, self.layout)
        self._images = images

    def __len__(self) -> int:
        """The number of images that can be found."""
        return int(self._alive.sum())

    @property
    def perspectives(self) -> list[str]:
        """That can be asked one by one; none where the index holds fused vectors only."""
        return list(self.layout.perspectives) if self.layout.vectors == BRANCHES else []

    @property
    def columns(self) -> list[str]:
        """To filter by."""
        return list(self.layout.columns)

    @cached_property
    def image_ids(self) -> list[str]:
        """Of all images, ordered."""
        return sorted(self._row_of)

    def parse(self, query: Query) -> list[Term]:
        """The terms of a query, as `search` understands it.

        Raises:
            ValueError: as `parse_query`.
        """
        return as_terms(query, self.perspectives)

    def search(self, query: Query, *, k: int = 20, where: Filter | None = None, exact: bool = False) -> list[Hit]:
        """The best `k` images, best first, or all where there are fewer; equal scores in the order of image ids.

        Args:
            query: one line in the language of `parse_query`, a `Term`, or several.
            where: which images may answer.
            exact: look at every image, even where an approximate index is there.

        Raises:
            ValueError: as `parse_query`; a perspective, where the index holds fused vectors only; an unknown column
                in the filter; `k` out of range.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST_RESULTS:
            raise ValueError(f"`k` is {k}. Valid: 1 to {MOST_RESULTS:,}.")
        questions = self._asker.ask(self.parse(query))
        allowed = self._alive if where is None else self._alive & where.mask(self._table, self.columns)
        rows = self._candidates(questions, allowed, k, exact)
        scores = np.concatenate([self._scores(questions, some) for some in chunked(rows)] or [np.zeros(0)])
        best = best_places(scores, self._table["image_id"].take(rows).to_pylist(), k)
        return self._hits(questions, rows[best])

    def explain(self, query: Query, image_id: str) -> Hit:
        """The score of one image, as `search` would give it.

        Raises:
            ValueError: as `search`.
            KeyError: it is not in the index.
        """
        return self._hits(self._asker.ask(self.parse(query)), np.array([self._row(image_id)]))[0]

    def image(self, image_id: str) -> Image.Image:
        """The image itself, right way up.

        Raises:
            KeyError: it is not in the index.
            ValueError: it cannot be read any more, or the index does not know where its images are.
        """
        self._row(image_id)
        try:
            return decode(self._source.read(image_id))
        except (OSError, KeyError, UnreadableImageError) as error:
            raise ValueError(
                f"{image_id} cannot be read any more ({error}). Bring the index up to date: run the indexing again."
            ) from error

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """(rows,) of row numbers to (rows, H, D): branches in the order of `layout.vector_names`."""
        found = np.empty((len(rows), len(self._vectors), self.layout.width), dtype=np.float32)
        block_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(block_of):
            here = block_of == number
            for place, blocks in enumerate(self._vectors.values()):
                found[here, place] = blocks[number][rows[here] - self._starts[number]]
        return found

    def rows(self, batch_size: int) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
        """All images in batches: their ids and columns, and their vectors (N, H, D)."""
        alive = np.flatnonzero(self._alive)
        for start in range(0, len(alive), batch_size):
            some = alive[start : start + batch_size]
            yield self._table.take(some).to_pylist(), self.vectors(some)

    def _candidates(self, questions: Sequence[Question], allowed: np.ndarray, k: int, exact: bool) -> np.ndarray:
        if self._neighbours is not None and not exact:
            wanted = proposals_by(questions)
            if allowed.sum() <= FEW:
                return np.flatnonzero(allowed)
            if wanted:
                return self._neighbours.propose(wanted, max(PROPOSED * k, LEAST_PROPOSED), allowed)
        return candidates(rough_scores(questions, self._vectors), allowed, k, margin(questions))

    def _scores(self, questions: Sequence[Question], rows: np.ndarray) -> np.ndarray:
        return contributions(questions, self.layout.vector_names, self.vectors(rows)).sum(axis=(1, 2))

    def _hits(self, questions: Sequence[Question], rows: np.ndarray) -> list[Hit]:
        facts = self._table.take(rows).to_pylist()
        return explained(questions, self.layout.vector_names, facts, self.vectors(rows))

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
        return FolderImages(origin["root"])


def _alive(manifest: Manifest) -> np.ndarray:
    alive = np.ones(sum(segment.rows for segment in manifest.segments), dtype=bool)
    start = 0
    for segment in manifest.segments:
        alive[start + np.asarray(segment.dead, dtype=np.int64)] = False
        start += segment.rows
    return alive
