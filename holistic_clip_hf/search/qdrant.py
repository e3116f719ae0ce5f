# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The same vectors in Qdrant, for an index that must leave one machine: one named vector for each branch.

The client is the caller's: `QdrantClient(url)`, or `QdrantClient(path=folder)` in the process itself.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features
from tqdm.auto import tqdm

from ..evaluation.encoding import DualEncoder
from ..images.sources import Item
from ..storage import import_extra, shown
from .index import Asker, SearchIndex
from .indexing import ROWS_PER_SEGMENT, make_layout
from .neighbours import choose_precision, num_proposed
from .query import Query, as_terms
from .scoring import (
    MOST_SAMPLED,
    Hit,
    best_places,
    contributions,
    explained,
    proposals_by,
    usual,
    with_floors,
)
from .segments import EncodedRow, make_table, stamps
from .store import (
    BINARY,
    BRANCHES,
    EXACT,
    FLOAT16,
    FLOAT32,
    FUSED_ONLY,
    INT8,
    SEGMENTS,
    Layout,
    free_number,
    lock,
    open_segment,
    require_index_folder,
    write_segment,
)

logger = logging.getLogger(__name__)

OVERSAMPLING = 2.0  # of a server's smaller vectors, before whole ones decide; the example of Qdrant's documentation

CHECKPOINT, EXPORT, STAMP = "checkpoint", "export", "stamp"  # beside an image's id and columns
_OF_EXPORT = (CHECKPOINT, EXPORT, STAMP)
_OURS = uuid.UUID("6d0f4f5c-3f0e-4c57-9a3a-0b6c2f8f5a11")  # under which ids of points are made from image ids


def export_to_qdrant(
    index: SearchIndex,
    client: Any,
    collection: str,
    *,
    precision: str = FLOAT32,
    batch_size: int = 256,
    progress: bool = False,
) -> int:
    """Make `collection` hold the images of `index`, and no others of ours; how many these are.

    Points have the same ids in every export. One that was interrupted goes on with what is not there yet.

    Args:
        index: Index to copy.
        client: Client of Qdrant.
        collection: Name of the collection, which is made if it is new.
        precision: Form in which a server keeps vectors in memory, if the collection is new: `"float32"`, `"float16"`,
            `"int8"` or `"binary"`. Of the last two it keeps the whole vectors too, on disk, and they decide.
        batch_size: Number of points that are sent together.
        progress: True for a bar.

    Raises:
        ImportError: qdrant-client is not installed.
        ValueError: a collection with other vectors, or of another checkpoint; an unknown precision.
    """
    models, layout = _import_models(), index.layout
    choose_precision(precision, EXACT)
    kinds = _kinds_of_vectors(layout, precision)
    if not client.collection_exists(collection):
        client.create_collection(
            collection, vectors_config=kinds, quantization_config=_quantization(precision), on_disk_payload=True
        )
    _require_collection(client, collection, kinds, layout.checkpoint)
    export, total = _state_of(index), 0
    now = models.FieldCondition(key=EXPORT, match=models.MatchValue(value=export))
    is_new = client.count(collection, count_filter=models.Filter(must=[now])).count == 0
    with tqdm(total=len(index), desc="points", disable=not progress) as bar:
        for facts, vectors in index.rows(batch_size):
            points = [
                models.PointStruct(
                    id=str(uuid.uuid5(_OURS, fact["image_id"])),
                    vector={name: each.tolist() for name, each in zip(layout.vector_names, kinds_of, strict=True)},
                    payload={**fact, CHECKPOINT: layout.checkpoint, EXPORT: export},
                )
                for fact, kinds_of in zip(facts, vectors, strict=True)
            ]
            done = set() if is_new else _exported(client, collection, [point.id for point in points], export)
            if missing := [point for point in points if point.id not in done]:
                client.upsert(collection, missing, wait=True)
            total += len(points)
            bar.update(len(points))
    stale = models.Filter(must=[_of_checkpoint(layout.checkpoint)], must_not=[now])
    client.delete(collection, models.FilterSelector(filter=stale), wait=True)
    return total


def _state_of(index: SearchIndex) -> str:
    """Return a hash of all rows of an index that count, by which an export of it is known again."""
    segments = [[each.sha256, list(each.dead)] for each in index.manifest.segments]
    return hashlib.sha256(json.dumps([index.layout.key, segments]).encode()).hexdigest()


def _exported(client: Any, collection: str, ids: list[str], export: str) -> set[str]:
    """Return those of the points that this export has sent already."""
    found = client.retrieve(collection, ids, with_payload=[EXPORT], with_vectors=False)
    return {point.id for point in found if point.payload.get(EXPORT) == export}


def _kinds_of_vectors(layout: Layout, precision: str = FLOAT32) -> dict[str, Any]:
    models = _import_models()
    about = {"size": layout.width, "distance": models.Distance.DOT}
    if precision == FLOAT16:
        about["datatype"] = models.Datatype.FLOAT16
    if precision in (INT8, BINARY):
        about["on_disk"] = True
    return {name: models.VectorParams(**about) for name in layout.vector_names}


def _quantization(precision: str) -> Any:
    models = _import_models()
    if precision == INT8:
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        return models.ScalarQuantization(scalar=scalar)
    if precision == BINARY:
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    return None


def layout_of(client: Any, collection: str, model: DualEncoder, processor: Any, features: Features) -> Layout:
    """Describe what an index of this model has in common with others, with the vectors that a collection holds.

    Raises:
        ValueError: no such collection.
    """
    if not client.collection_exists(collection):
        raise ValueError(f"Qdrant has no collection {collection!r}. Export the index first.")
    kinds = client.get_collection(collection).config.params.vectors
    vectors = FUSED_ONLY if set(kinds) == {FUSED_ONLY} else BRANCHES
    width = min([model.config.projection_dim, *(kind.size for kind in kinds.values())])
    return make_layout(model, processor, features, vectors, width)


def import_from_qdrant(
    client: Any,
    collection: str,
    directory: str | Path,
    layout: Layout,
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> int:
    """Write the vectors of a collection into a folder as segments, which `index_images` takes up; how many were new.

    The index is whole once `index_images` was called on the same images: it encodes what the collection does not
    hold, or holds of an image that has changed since. An import that was killed goes on where it stopped.

    Args:
        client: Client of Qdrant.
        collection: Name of the collection, made by an export.
        directory: Folder of the index.
        layout: Layout of the index (`make_layout`), with the columns that the images have.
        batch_size: Number of points that are fetched together.
        progress: True for a bar.

    Raises:
        ImportError: qdrant-client is not installed.
        ValueError: no such collection, other vectors, or another checkpoint.
    """
    directory = Path(directory)
    _require_collection(client, collection, _kinds_of_vectors(layout), layout.checkpoint)
    require_index_folder(directory)
    with lock(directory):
        known, number = set[str](), free_number(directory) - 1
        for path in sorted((directory / SEGMENTS).glob("*.arrow")):
            if (opened := open_segment(path, layout)) is not None:
                known |= {image_id for image_id, _ in stamps(opened[0])}
        missing = [point for point, image_id in _points(client, collection, layout) if image_id not in known]
        with tqdm(total=len(missing), desc="points", disable=not progress) as bar:
            for start in range(0, len(missing), ROWS_PER_SEGMENT):
                ids, number = missing[start : start + ROWS_PER_SEGMENT], number + 1
                rows = [row for few in _batches(ids, batch_size) for row in _fetched(client, collection, few, layout)]
                write_segment(directory, number, layout, make_table(layout, rows), [])
                bar.update(len(ids))
    return len(missing)


def _batches(ids: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _points(client: Any, collection: str, layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield the points of this checkpoint, with the ids of their images."""
    models, offset = _import_models(), None
    ours = models.Filter(must=[_of_checkpoint(layout.checkpoint)])
    while True:
        found, offset = client.scroll(
            collection, scroll_filter=ours, limit=10_000, offset=offset, with_payload=["image_id"], with_vectors=False
        )
        yield from ((point.id, point.payload["image_id"]) for point in found)
        if offset is None:
            return


def _fetched(client: Any, collection: str, ids: list[str], layout: Layout) -> Iterator[EncodedRow]:
    """Yield rows of points whose vectors are finite; others are left for encoding, and told."""
    for point in client.retrieve(collection, ids, with_payload=True, with_vectors=True):
        vectors = np.array([point.vector[name] for name in layout.vector_names], np.float32)
        image_id = point.payload["image_id"]
        if not np.isfinite(vectors).all():
            logger.warning(
                "%s has vectors in %s that are not finite; it is encoded anew.", shown(image_id), collection
            )
            continue
        item = Item(image_id, image_id, point.payload.get(STAMP, ""))  # earlier exports have no stamps
        yield item, vectors, {name: point.payload.get(name) for name in layout.columns}


class QdrantIndex:
    """An exported collection, asked as `SearchIndex` is; needs the checkpoint, and no file of the index.

    Args:
        client: Client of Qdrant.
        collection: Collection as exported.
        model, processor: the checkpoint that made the vectors.

    Raises:
        ImportError: qdrant-client is not installed.
        ValueError: no such collection, an empty one, or one of another checkpoint.
    """

    def __init__(self, client: Any, collection: str, model: DualEncoder, processor: Any) -> None:
        models = _import_models()
        self.client, self.collection = client, collection
        self.layout = layout_of(client, collection, model, processor, Features({}))
        _require_collection(client, collection, _kinds_of_vectors(self.layout), self.layout.checkpoint)
        self._ours = _of_checkpoint(self.layout.checkpoint)  # a collection may hold points of others
        if client.count(collection, count_filter=models.Filter(must=[self._ours])).count == 0:
            raise ValueError(f"The collection {collection!r} is empty. Export the index first.")
        self._asker = Asker(model, processor, self.layout)

    def search(self, query: Query, *, k: int = 20, query_filter: Any = None, exact: bool = False) -> list[Hit]:
        """Return the best `k` images; see `SearchIndex.search`.

        Each term in favour proposes its neighbours, by one branch or by each; their scores are then computed whole.

        Args:
            query_filter: Filter in Qdrant's own terms, on the columns of the index.
            exact: Qdrant compares with every vector instead of using its graph.

        Raises:
            ValueError: as `SearchIndex.search`; a query in which everything counts against.
        """
        if k < 1:
            raise ValueError(f"`k` is {k}; expected 1 or more.")
        names = self.layout.vector_names
        questions = self._asker.ask(as_terms(query, self.layout.perspectives))
        wanted = {name: vector for name, vector in proposals_by(questions).items() if name in names}
        if not wanted:
            raise ValueError("Every term counts against, which Qdrant cannot look up. Add one in favour.")
        if any(question.term.weight < 0 for question in questions):
            vectors = self._sample(query_filter)
            if not len(vectors):
                return []
            questions = with_floors(questions, [usual(each, names, vectors, len(vectors)) for each in questions])
        found: dict[str, tuple[dict[str, Any], np.ndarray]] = {}
        for name, vector in wanted.items():
            points = self._neighbours(name, vector, num_proposed(k, FLOAT32), query_filter, exact)
            for point in points:
                found[point.id] = (dict(point.payload), np.array([point.vector[each] for each in names], np.float32))
        if not found:
            return []
        facts = [
            {name: value for name, value in payload.items() if name not in _OF_EXPORT} for payload, _ in found.values()
        ]
        vectors = np.stack([each for _, each in found.values()])
        scores = contributions(questions, names, vectors).sum(axis=(1, 2))
        best = best_places(scores, [fact["image_id"] for fact in facts], k)
        return explained(questions, names, [facts[place] for place in best], vectors[best])

    def _sample(self, query_filter: Any) -> np.ndarray:
        """Return vectors (N, H, D) by which to judge what is usual; ids are hashes, so the first are any."""
        points, _ = self.client.scroll(
            self.collection,
            scroll_filter=self._filter(query_filter),
            limit=MOST_SAMPLED,
            with_payload=False,
            with_vectors=True,
        )
        return np.array([[point.vector[name] for name in self.layout.vector_names] for point in points], np.float32)

    def _filter(self, query_filter: Any) -> Any:
        return _import_models().Filter(must=[self._ours, *([query_filter] if query_filter else [])])

    def _neighbours(self, name: str, vector: np.ndarray, count: int, query_filter: Any, exact: bool) -> list[Any]:
        models = _import_models()
        return self.client.query_points(
            self.collection,
            query=vector.astype(np.float32).tolist(),
            using=name,
            limit=count,
            query_filter=self._filter(query_filter),
            # Ignored unless the server keeps smaller vectors.
            search_params=models.SearchParams(
                exact=exact, quantization=models.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
            ),
            with_payload=True,
            with_vectors=True,
        ).points


def _require_collection(client: Any, collection: str, kinds: dict[str, Any], checkpoint: str) -> None:
    found = client.get_collection(collection).config.params.vectors
    shapes = [{name: (each.size, each.distance) for name, each in some.items()} for some in (found, kinds)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The collection {collection!r} has other vectors: {shapes[0]}, not {shapes[1]}. Name another collection."
        )
    models = _import_models()
    not_exported = models.IsEmptyCondition(is_empty=models.PayloadField(key=CHECKPOINT))
    others = models.Filter(must_not=[_of_checkpoint(checkpoint), not_exported])
    if client.count(collection, count_filter=others).count:
        raise ValueError(
            f"The collection {collection!r} holds vectors of another checkpoint, which mean nothing to this one. Load "
            f"that checkpoint, or name another collection."
        )


def _of_checkpoint(checkpoint: str) -> Any:
    models = _import_models()
    return models.FieldCondition(key=CHECKPOINT, match=models.MatchValue(value=checkpoint))


def _import_models() -> Any:
    return import_extra("qdrant_client.models", "qdrant")


def open_client(address: str) -> Any:
    """Open Qdrant at an address of http or https, or in a folder, by its local mode.

    Raises:
        ImportError: qdrant-client is not installed.
    """
    client = import_extra("qdrant_client", "qdrant").QdrantClient
    return client(url=address) if "://" in address else client(path=address)
