# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Look-up with faiss, approximate or in smaller numbers, and the size of an index before anything is encoded.

There is one faiss index for each kind of vector, in memory as far as it is read. It proposes, and exact scores decide,
of the float32 vectors of the few rows proposed, which stay on disk.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..evaluation.encoding import DualEncoder
from ..evaluation.records import FUSED
from ..storage import import_extra, write_atomically
from .store import (
    BINARY,
    BRANCHES,
    EXACT,
    FLOAT16,
    FLOAT32,
    INT8,
    NEIGHBOURS,
    PRECISIONS,
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
_CODES = {FLOAT32: "Flat", FLOAT16: "SQfp16", INT8: "SQ8", BINARY: "RaBitQ"}  # in faiss's words
_FLOAT, _LINK = 4, 4  # bytes
# Share of the 10 nearest that `exact` found among a million of five vectors each, for
# the worst of three kinds of query (tests/benchmarks/results/vectors.json).
EXPECTED_RECALL = {FLOAT32: 1.0, FLOAT16: 1.0, INT8: 1.0, BINARY: 0.965}
# Rows that are proposed for each result that is asked for, and at least; binary vectors order neighbours coarsely.
PROPOSED, LEAST_PROPOSED = 10, 200
_BINARY_PROPOSED = 400  # 200 find 94.5 % of the 10 nearest of a million, and 400 find 98.5 %
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


def choose_precision(precision: str, lookup: str) -> str:
    """Turn `auto` into float32 for exact look-up, which then needs no faiss, and float16 for others.

    Raises:
        ValueError: an unknown one, or one that faiss does not have for this look-up.
    """
    if precision not in (AUTO, *PRECISIONS):
        raise ValueError(f"`precision` is {precision!r}; expected one of {', '.join((AUTO, *PRECISIONS))}.")
    if precision == BINARY and lookup == "hnsw":
        raise ValueError("`precision` is 'binary' and `lookup` 'hnsw'; faiss links no such vectors. Choose 'ivf'.")
    if precision != AUTO:
        return precision
    return FLOAT32 if lookup == EXACT else FLOAT16


def num_proposed(k: int, precision: str) -> int:
    """Return how many rows a look-up proposes for the best `k`."""
    return max((_BINARY_PROPOSED if precision == BINARY else PROPOSED) * k, LEAST_PROPOSED)


def bytes_read(width: int, precision: str) -> int:
    """Return the bytes of one vector of D numbers in a look-up."""
    if precision == BINARY:
        return math.ceil(width / 8) + 2 * _FLOAT  # two numbers about each vector correct its products
    return width * {FLOAT32: 4, FLOAT16: 2, INT8: 1}[precision]


def num_lists(num_images: int) -> int:
    """Choose the number of lists of an IVF index: 4 sqrt(N), but none so short that k-means could not place it."""
    return max(1, min(round(4 * math.sqrt(num_images)), num_images // 39))


def estimate_bytes(
    config: Any,
    num_images: int,
    *,
    vectors: str = BRANCHES,
    lookup: str = AUTO,
    precision: str = AUTO,
    dimensions: int | None = None,
) -> int:
    """Return the size on disk of an index of `num_images` images with a model of this configuration.

    Raises:
        ValueError: an unknown kind of vectors, look-up or precision.

    Example: `estimate_bytes(model.config, 1_000_000) / 1e9`, in gigabytes.
    """
    if vectors not in VECTORS:
        raise ValueError(f"`vectors` is {vectors!r}; expected one of {', '.join(VECTORS)}.")
    num_kinds, width = config.num_branches if vectors == BRANCHES else 1, dimensions or config.projection_dim
    of_lookup = estimate_lookup_bytes(num_kinds, width, num_images, lookup=lookup, precision=precision)
    return num_images * (_ROW_BYTES + num_kinds * width * _FLOAT) + of_lookup


def estimate_lookup_bytes(num_kinds: int, width: int, num_images: int, *, lookup: str, precision: str) -> int:
    """Return the bytes of the files of faiss of an index, which are in memory as far as queries read them.

    Args:
        num_kinds: Number of vectors of an image.
        width: Dimensions of a vector.
        num_images: Number of images.
        lookup, precision: Options as of `index_images`.

    Raises:
        ValueError: an unknown look-up or precision.
    """
    lookup = choose_lookup(lookup, num_images)
    precision = choose_precision(precision, lookup)
    if not needs_faiss(lookup, precision):
        return 0
    each = num_images * bytes_read(width, precision)
    if precision == BINARY:
        each += width * width * _FLOAT  # a rotation
    if lookup == "ivf":
        each += num_images * 8 + num_lists(num_images) * width * _FLOAT
    elif lookup == "hnsw":
        each += num_images * (2 * HNSW_NEIGHBOURS * _LINK + 12)
    return each * (num_kinds + 1 if num_kinds > 1 else 1)  # the fused vector, too, has a look-up of its own


def needs_faiss(lookup: str, precision: str) -> bool:
    """Tell whether a look-up reads anything but the vectors of the segments."""
    return lookup != EXACT or precision != FLOAT32


_TRAINING_ROWS = 256  # for each list, faiss's own limit
_FEWEST_LISTS = 256  # by which the rows are counted that place no lists, but tell how far numbers reach
_ASKED = 25  # vectors of a kind, to measure recall
_CONSTRUCTION = 100  # candidates for the neighbours of a vector in HNSW
_SEED = 0
_DECODED = 16_384  # rows at a time, which a processor's cache holds


def import_faiss() -> Any:
    """Import faiss, or name the extra that brings it.

    Raises:
        ImportError: it is not installed.
    """
    return import_extra("faiss", "search", "Or index with lookup='exact' and precision='float32'.")


def build_neighbours(
    directory: Path, layout: Layout, model: DualEncoder, datasets: Sequence[Dataset], lookup: str, precision: str
) -> dict[str, Segment]:
    """Write files of faiss over all rows, also dead ones, so that rows keep their numbers; none if none is needed."""
    if not needs_faiss(lookup, precision):
        return {}
    faiss, written = import_faiss(), {}
    (directory / NEIGHBOURS).mkdir(exist_ok=True)
    taken = [int(path.stem.split("-")[0]) for path in (directory / NEIGHBOURS).glob("*-*.faiss")]
    number, num_rows = max(taken, default=-1) + 1, sum(map(len, datasets))
    for place, name in enumerate(neighbour_names(layout)):
        index = _empty_index(faiss, lookup, precision, layout.width, num_rows)
        if not index.is_trained:
            index.train(_sample(layout, model, datasets, name, max(num_lists(num_rows), _FEWEST_LISTS)))
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

    def __init__(self, directory: Path, lookup: str, precision: str, files: Mapping[str, Segment]) -> None:
        self._faiss, self.lookup, self.precision = import_faiss(), lookup, precision
        flags = self._faiss.IO_FLAG_MMAP_IFC | self._faiss.IO_FLAG_READ_ONLY
        paths = {name: require_whole(directory, segment) for name, segment in files.items()}
        self._indexes = {name: self._faiss.read_index(str(path), flags) for name, path in paths.items()}
        self._pool = ThreadPoolExecutor(torch.get_num_threads())  # faiss itself gives a query one thread

    def propose(self, vectors: Mapping[str, np.ndarray], k: int, allowed: np.ndarray) -> np.ndarray:
        """Return the row numbers, each once, of neighbours of each vector (D,) among `allowed` (rows,) bool: so many
        that the best `k` are among them.
        """
        selector = self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        count = num_proposed(k, self.precision)

        def nearest(name: str, vector: np.ndarray) -> np.ndarray:
            index, query = self._indexes[name], np.ascontiguousarray(vector[None], dtype=np.float32)
            return index.search(query, count, params=self._effort(index, count, selector))[1][0]

        rows = np.unique(np.concatenate(list(self._pool.map(nearest, vectors, vectors.values()))))
        return rows[rows >= 0]  # fewer were found

    def propose_by_sum(self, vectors: Mapping[str, np.ndarray], k: int, allowed: np.ndarray) -> np.ndarray:
        """Return row numbers as `propose`, of rows whose products with all vectors add up to the most.

        A row that is best by the sum need not be near to any of the vectors, so the products of all rows are made.
        """
        if len(vectors) == 1:
            return self.propose(vectors, k, allowed)
        scores = np.sum(list(self._pool.map(self._products, vectors, vectors.values())), axis=0)
        rows, count = np.flatnonzero(allowed), num_proposed(k, self.precision)
        if len(rows) <= count:
            return rows
        return np.sort(rows[np.argpartition(-scores[rows], count)[:count]])

    def _products(self, name: str, vector: np.ndarray) -> np.ndarray:
        """Multiply all vectors of a kind, as they are kept, by one (D,): (rows,) float32."""
        index, query = self._indexes[name], np.ascontiguousarray(vector, dtype=np.float32)
        found = np.empty(index.ntotal, dtype=np.float32)
        if self.precision == BINARY:  # whose products are estimated by more than the bits
            _, scores, rows = index.range_search(query[None], -np.finfo(np.float32).max)
            found[rows] = scores
            return found
        for start in range(0, index.ntotal, _DECODED):
            stop = min(start + _DECODED, index.ntotal)
            found[start:stop] = index.reconstruct_n(start, stop - start) @ query
        return found

    def _effort(self, index: Any, count: int, selector: Any) -> Any:
        if self.lookup == EXACT:
            return self._faiss.SearchParameters(sel=selector)
        if self.lookup == "hnsw":
            return self._faiss.SearchParametersHNSW(efSearch=max(2 * count, 256), sel=selector)
        lists = self._faiss.extract_index_ivf(index).nlist
        return self._faiss.SearchParametersIVF(nprobe=max(1, math.ceil(lists / 16)), sel=selector)


def measure_recall(
    layout: Layout, model: DualEncoder, datasets: Sequence[Dataset], neighbours: Neighbours, k: int = 10
) -> float:
    """Return the share of the `k` nearest that is proposed, of the kind of vector with the least.

    Queries are vectors of the index, evenly spread, each left out of its own answer. A text lies further from all
    images than they do from each other, and may find less.
    """
    faiss, num_rows, least = neighbours._faiss, sum(map(len, datasets)), 1.0
    k = min(k, num_rows - 1)
    rows = np.unique(np.linspace(0, num_rows - 1, min(_ASKED, num_rows), dtype=np.int64))
    allowed = np.ones(num_rows, dtype=bool)
    for name in neighbour_names(layout) if k else ():
        asked = np.concatenate(list(_rows(layout, model, datasets, name, rows)))
        nearest, start = faiss.ResultHeap(len(asked), k + 1, keep_max=True), 0
        for block in _blocks(layout, model, datasets, name):
            scores, places = faiss.knn(asked, block, min(k + 1, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            nearest.add_result(scores, places + start)
            start += len(block)
        nearest.finalize()
        found = 0
        for row, vector, places in zip(rows, asked, nearest.I, strict=True):
            wanted = places[places != row][:k]
            found += np.isin(wanted, neighbours.propose({name: vector}, k, allowed)).sum()
        least = min(least, float(found) / (k * len(rows)))
    return least


def _empty_index(faiss: Any, lookup: str, precision: str, width: int, num_rows: int) -> Any:
    kind = {"ivf": f"IVF{num_lists(num_rows)},", "hnsw": f"HNSW{HNSW_NEIGHBOURS},"}.get(lookup, "")
    # One bit a number is worth most where no direction has more than others.
    turned = f"RR{width}," if precision == BINARY else ""
    index = faiss.index_factory(width, f"{turned}{kind}{_CODES[precision]}", faiss.METRIC_INNER_PRODUCT)
    if lookup == "ivf":
        lists = faiss.extract_index_ivf(index)
        lists.cp.seed = _SEED
        lists.cp.min_points_per_centroid = 1  # or it prints what it thinks of fewer than 39
    elif lookup == "hnsw":
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


def _rows(
    layout: Layout, model: DualEncoder, datasets: Sequence[Dataset], name: str, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield chosen rows (any, D), by their numbers in order."""
    start = 0
    for block in _blocks(layout, model, datasets, name):
        here = rows[(rows >= start) & (rows < start + len(block))]
        yield block[here - start]
        start += len(block)
