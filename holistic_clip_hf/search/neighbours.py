# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Approximate look-up with faiss, and the size of an index before anything is encoded.

There is one faiss index for each kind of vector. It proposes, and exact scores decide.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..evaluation.encoding import DualEncoder
from ..evaluation.records import FUSED
from ..storage import import_extra, write_atomically
from .store import (
    BRANCHES,
    EXACT,
    NEIGHBOURS,
    STORED_LOOKUPS,
    VECTORS,
    Layout,
    Segment,
    describe_file,
    require_whole,
    vectors_of,
)

AUTO = "auto"
LOOKUPS = (AUTO, *STORED_LOOKUPS)
EXACT_UP_TO = 1_000_000  # images; beyond, reading every vector takes seconds
HNSW_NEIGHBOURS = 32  # of each vector; twice as many on the lowest level
_FLOAT, _HALF, _LINK = 4, 2, 4  # bytes
_ROW_BYTES = 80  # of an image id, a stamp and their places, about


def choose_lookup(lookup: str, num_images: int) -> str:
    """Turn `auto` into `exact` or, above a million images, `ivf`.

    Raises:
        ValueError: an unknown one.
    """
    if lookup not in LOOKUPS:
        raise ValueError(f"`lookup` is {lookup!r}; expected one of {', '.join(LOOKUPS)}.")
    if lookup != AUTO:
        return lookup
    return "exact" if num_images <= EXACT_UP_TO else "ivf"


def num_lists(num_images: int) -> int:
    """Choose the number of lists of an IVF index: 4 sqrt(N), but none so short that k-means could not place it."""
    return max(1, min(round(4 * math.sqrt(num_images)), num_images // 39))


def estimate_bytes(config: Any, num_images: int, *, vectors: str = BRANCHES, lookup: str = "auto") -> int:
    """Return the size on disk of an index of `num_images` images with a model of this configuration.

    Raises:
        ValueError: an unknown kind of vectors or look-up.

    Example: `estimate_bytes(model.config, 1_000_000) / 1e9`, in gigabytes.
    """
    if vectors not in VECTORS:
        raise ValueError(f"`vectors` is {vectors!r}; expected one of {', '.join(VECTORS)}.")
    lookup, width = choose_lookup(lookup, num_images), config.projection_dim
    num_kinds = config.num_branches if vectors == BRANCHES else 1
    rows = num_images * (_ROW_BYTES + num_kinds * width * _FLOAT)
    if lookup == "exact":
        return rows
    # The fused vector, too, has an approximate index of its own.
    num_indexes = num_kinds + 1 if vectors == BRANCHES and num_kinds > 1 else num_kinds
    if lookup == "ivf":
        each = num_images * (width * _HALF + 8) + num_lists(num_images) * width * _FLOAT
    else:
        each = num_images * (width * _HALF + 2 * HNSW_NEIGHBOURS * _LINK + 12)
    return rows + num_indexes * each


_TRAINING_ROWS = 256  # for each list, faiss's own limit
_CONSTRUCTION = 100  # candidates for the neighbours of a vector in HNSW
_SEED = 0


def import_faiss() -> Any:
    """Import faiss, or name the extra that brings it.

    Raises:
        ImportError: it is not installed.
    """
    return import_extra("faiss", "search", "Or index with lookup='exact'.")


def build_neighbours(
    directory: Path, layout: Layout, model: DualEncoder, datasets: Sequence[Dataset], lookup: str
) -> dict[str, Segment]:
    """Write files of faiss over all rows, also dead ones, so that rows keep their numbers; none for exact look-up."""
    if lookup == EXACT:
        return {}
    faiss, written = import_faiss(), {}
    (directory / NEIGHBOURS).mkdir(exist_ok=True)
    taken = [int(path.stem.split("-")[0]) for path in (directory / NEIGHBOURS).glob("*-*.faiss")]
    number, num_rows = max(taken, default=-1) + 1, sum(map(len, datasets))
    for place, name in enumerate(neighbour_names(layout)):
        index = _empty_index(faiss, lookup, layout.width, num_rows)
        if not index.is_trained:
            index.train(_sample(layout, model, datasets, name, num_lists(num_rows)))
        for block in _blocks(layout, model, datasets, name):
            index.add(block)
        path = directory / NEIGHBOURS / f"{number:08d}-{place}.faiss"
        with write_atomically(path) as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        written[name] = describe_file(directory, path, num_rows)
    return written


def neighbour_names(layout: Layout) -> list[str]:
    """Return the kinds of vectors that have an approximate index: each branch, and the fused vector."""
    several = layout.vectors == BRANCHES and len(layout.perspectives) > 1
    return [*layout.vector_names, FUSED] if several else layout.vector_names


class Neighbours:
    """The approximate indexes, on the pages of their files.

    Raises:
        ImportError: faiss is not installed.
        ValueError: a file is missing or was changed.
    """

    def __init__(self, directory: Path, lookup: str, files: Mapping[str, Segment]) -> None:
        self._faiss, self.lookup = import_faiss(), lookup
        flags = self._faiss.IO_FLAG_MMAP_IFC | self._faiss.IO_FLAG_READ_ONLY
        paths = {name: require_whole(directory, segment) for name, segment in files.items()}
        self._indexes = {name: self._faiss.read_index(str(path), flags) for name, path in paths.items()}

    def propose(self, vectors: Mapping[str, np.ndarray], count: int, allowed: np.ndarray) -> np.ndarray:
        """Return the row numbers, each once, of about `count` neighbours of each vector (D,) among `allowed` (rows,)
        bool.
        """
        selector = self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        found = []
        for name, vector in vectors.items():
            index = self._indexes[name]
            query = np.ascontiguousarray(vector[None], dtype=np.float32)
            _, rows = index.search(query, count, params=self._effort(index, count, selector))
            found.append(rows[0])
        rows = np.unique(np.concatenate(found))
        return rows[rows >= 0]  # fewer were found

    def _effort(self, index: Any, count: int, selector: Any) -> Any:
        if self.lookup == "hnsw":
            return self._faiss.SearchParametersHNSW(efSearch=max(2 * count, 256), sel=selector)
        return self._faiss.SearchParametersIVF(nprobe=max(1, math.ceil(index.nlist / 16)), sel=selector)


def _empty_index(faiss: Any, lookup: str, width: int, num_rows: int) -> Any:
    # Half precision: scores are computed anew from whole vectors.
    kind = f"IVF{num_lists(num_rows)}" if lookup == "ivf" else f"HNSW{HNSW_NEIGHBOURS}"
    index = faiss.index_factory(width, f"{kind},SQfp16", faiss.METRIC_INNER_PRODUCT)
    if lookup == "ivf":
        index.cp.seed = _SEED
        index.cp.min_points_per_centroid = 1  # or it prints what it thinks of fewer than 39
    else:
        index.hnsw.efConstruction = _CONSTRUCTION
    return index


def _sample(layout: Layout, model: DualEncoder, datasets: Sequence[Dataset], name: str, lists: int) -> np.ndarray:
    """Return rows to place the lists by, evenly spread."""
    step = max(1, sum(map(len, datasets)) // (lists * _TRAINING_ROWS))
    return np.concatenate([block[::step] for block in _blocks(layout, model, datasets, name)])


def _blocks(layout: Layout, model: DualEncoder, datasets: Sequence[Dataset], name: str) -> Iterator[np.ndarray]:
    for dataset in datasets:
        if name in layout.vector_names:
            yield from vectors_of(dataset, name)
            continue
        for branches in zip(*(vectors_of(dataset, each) for each in layout.vector_names), strict=True):
            fused = model.branch_fusion.single_vectors(torch.from_numpy(np.stack(branches, axis=1)))
            yield np.ascontiguousarray(fused.numpy())
