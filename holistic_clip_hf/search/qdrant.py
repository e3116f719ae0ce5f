# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The same vectors in Qdrant, for an index that must leave one machine: one named vector for each branch.

The client is the caller's: `QdrantClient(url)`, or `QdrantClient(path=folder)` in the process itself.
"""

import uuid
from typing import Any

import numpy as np
from datasets import Features
from tqdm.auto import tqdm

from ..evaluation.encoding import DualEncoder
from ..storage import import_extra
from .index import LEAST_PROPOSED, PROPOSED, Asker, SearchIndex
from .indexing import make_layout
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
from .store import BRANCHES, FUSED_ONLY

CHECKPOINT, EXPORT = "checkpoint", "export"  # beside an image's id and columns
_OF_EXPORT = (CHECKPOINT, EXPORT)
_OURS = uuid.UUID("6d0f4f5c-3f0e-4c57-9a3a-0b6c2f8f5a11")  # under which ids of points are made from image ids


def export_to_qdrant(
    index: SearchIndex, client: Any, collection: str, *, batch_size: int = 256, progress: bool = False
) -> int:
    """Make `collection` hold the images of `index`, and no others of ours; how many these are.

    Points have the same ids in every export, so one that was interrupted is simply repeated.

    Raises:
        ImportError: qdrant-client is not installed.
        ValueError: a collection with other vectors, or of another checkpoint.
    """
    models, layout = _import_models(), index.layout
    kinds = {
        name: models.VectorParams(size=layout.width, distance=models.Distance.DOT) for name in layout.vector_names
    }
    if not client.collection_exists(collection):
        client.create_collection(collection, vectors_config=kinds)
    _require_collection(client, collection, kinds, layout.checkpoint)
    export, total = uuid.uuid4().hex, 0
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
            client.upsert(collection, points, wait=True)
            total += len(points)
            bar.update(len(points))
    now = models.FieldCondition(key=EXPORT, match=models.MatchValue(value=export))
    stale = models.Filter(must=[_of_checkpoint(layout.checkpoint)], must_not=[now])
    client.delete(collection, models.FilterSelector(filter=stale), wait=True)
    return total


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
        if not client.collection_exists(collection):
            raise ValueError(f"Qdrant has no collection {collection!r}. Export the index first.")
        self.client, self.collection = client, collection
        kinds = client.get_collection(collection).config.params.vectors
        vectors = FUSED_ONLY if set(kinds) == {FUSED_ONLY} else BRANCHES
        self.layout = make_layout(model, processor, Features({}), vectors)
        expected = {
            name: models.VectorParams(size=self.layout.width, distance=models.Distance.DOT)
            for name in self.layout.vector_names
        }
        _require_collection(client, collection, expected, self.layout.checkpoint)
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
            points = self._neighbours(name, vector, max(PROPOSED * k, LEAST_PROPOSED), query_filter, exact)
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
            search_params=models.SearchParams(exact=exact),
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
