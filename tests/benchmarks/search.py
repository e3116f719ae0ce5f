"""Approximate look-up against exact: recall, time of a query and bytes, and exact look-up against faiss's own.

    python tests/benchmarks/search.py    some minutes on two cores; writes results/search.json

100,000 images of three branches of width 64. `clustered`: images around 1,000 centres and each query near an image, as
the vectors of a trained model lie; `random`: no structure at all, the worst case of any approximate index. Recall is
the share of the 10 best by exact look-up that are found. `branch` asks one branch, `fused` all, `mixed` two in favour
and one against. The peer of exact look-up is faiss's `IndexFlatIP` over one branch.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch
from _measure import arguments, find_peer, interleaved, ratio, write_record

from holistic_clip_hf.search import Term
from holistic_clip_hf.search.neighbours import Neighbours, build_neighbours
from holistic_clip_hf.search.scoring import (
    EmbeddedTerm,
    best_places,
    candidates,
    contributions,
    margin,
    proposals_by,
    rough_scores,
)
from holistic_clip_hf.search.store import VECTOR, Layout, open_segment, vectors_of, write_segment

NAMES, WIDTH, IMAGES, ROWS, QUERIES, K = ["a", "b", "c"], 64, 100_000, 2_000, 50, 10
FAISS = find_peer("faiss")
CENTRES, SPREAD = 1_000, 0.6
Vectors = np.ndarray  # (N, H, D)


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def draw(kind: str, draws: np.random.Generator) -> tuple[Vectors, np.ndarray]:
    """Images (N, H, D) and queries (Q, D)."""
    noise = unit(draws.standard_normal((IMAGES, len(NAMES), WIDTH)))
    if kind == "random":
        return noise, unit(draws.standard_normal((QUERIES, WIDTH)))
    centres = unit(draws.standard_normal((CENTRES, WIDTH)))
    own = centres[draws.integers(CENTRES, size=(IMAGES, len(NAMES)))]
    images = unit(own + SPREAD * noise)
    near = images[draws.integers(IMAGES, size=QUERIES), 0]
    return images, unit(near + SPREAD * unit(draws.standard_normal((QUERIES, WIDTH))))


def questions(kind: str, texts: np.ndarray, number: int) -> list[EmbeddedTerm]:
    """As the terms of a query become them, the text standing for itself."""
    text, other = texts[number], texts[(number + 1) % len(texts)]
    if kind == "branch":
        return [EmbeddedTerm(Term("x", perspective="a"), {"a": text})]
    if kind == "fused":
        return [EmbeddedTerm(Term("x"), dict.fromkeys(NAMES, text / len(NAMES)))]
    against = EmbeddedTerm(Term("z", perspective="c", weight=-0.5), {"c": other})
    return [
        EmbeddedTerm(Term("x", perspective="a"), {"a": text}),
        EmbeddedTerm(Term("y", perspective="b"), {"b": other}),
        against,
    ]


class Look:
    """Rows by exact and by approximate look-up, decided alike."""

    def __init__(self, directory: Path, images: Vectors) -> None:
        self.layout = Layout(checkpoint="none", perspectives=NAMES, width=WIDTH, vectors="branches")
        self.directory, self.images = directory, images
        self.datasets = []
        for number, start in enumerate(range(0, len(images), ROWS)):
            part = images[start : start + ROWS]
            ids = [f"{start + row:07d}" for row in range(len(part))]
            flat = {
                f"{VECTOR}{name}": pa.FixedSizeListArray.from_arrays(pa.array(part[:, place].ravel()), WIDTH)
                for place, name in enumerate(NAMES)
            }
            table = pa.table({"image_id": ids, "stamp": ids, **flat}, schema=self.layout.features.arrow_schema)
            opened = open_segment(write_segment(directory, number, self.layout, table, []), self.layout)
            assert opened is not None
            self.datasets.append(opened[0])
        self.blocks = {name: [b for each in self.datasets for b in vectors_of(each, name)] for name in NAMES}
        self.allowed = np.ones(len(images), dtype=bool)

    def build(self, lookup: str) -> tuple[Neighbours, float, int]:
        """The index, seconds to build it, and its bytes."""
        fusion = SimpleNamespace(single_vectors=lambda branches: branches.mean(dim=1))
        start = time.perf_counter()
        files = build_neighbours(
            self.directory, self.layout, SimpleNamespace(branch_fusion=fusion), self.datasets, lookup, "float16"
        )
        seconds = time.perf_counter() - start
        size = sum(each.bytes for each in files.values())
        return Neighbours(self.directory, lookup, "float16", files), seconds, size

    def exact(self, asked: Sequence[EmbeddedTerm]) -> list[int]:
        return self._best(asked, candidates(rough_scores(asked, self.blocks), self.allowed, K, margin(asked)))

    def approximate(self, neighbours: Neighbours, asked: Sequence[EmbeddedTerm]) -> list[int]:
        return self._best(asked, neighbours.propose(proposals_by(asked), K, self.allowed))

    def _best(self, asked: Sequence[EmbeddedTerm], rows: np.ndarray) -> list[int]:
        scores = contributions(asked, NAMES, self.images[rows]).sum(axis=(1, 2))
        return [int(rows[place]) for place in best_places(scores, [f"{row:07d}" for row in rows], K)]


def timed(run: Callable[[int], list[int]]) -> tuple[list[list[int]], float]:
    """What each query finds, and the median of milliseconds."""
    found, spent = [], []
    for number in range(QUERIES):
        start = time.perf_counter()
        found.append(run(number))
        spent.append(1_000 * (time.perf_counter() - start))
    return found, round(statistics.median(spent), 2)


def measure(look: Look, texts: np.ndarray) -> dict[str, object]:
    """Recall, milliseconds and bytes for each look-up and kind of query."""
    results: dict[str, object] = {}
    truth = {}
    for kind in ("branch", "fused", "mixed"):
        truth[kind], milliseconds = timed(lambda n, kind=kind: look.exact(questions(kind, texts, n)))
        results[f"exact, {kind}"] = {"recall": 1.0, "ms": milliseconds}
    for lookup in ("ivf", "hnsw") if FAISS else ():
        neighbours, seconds, size = look.build(lookup)
        results[lookup] = {"build_seconds": round(seconds, 1), "bytes_per_image": round(size / IMAGES)}
        for kind, best in truth.items():
            found, milliseconds = timed(lambda n, k=kind, i=neighbours: look.approximate(i, questions(k, texts, n)))
            shared = [len(set(a) & set(b)) / K for a, b in zip(found, best, strict=True)]
            results[f"{lookup}, {kind}"] = {"recall": round(statistics.fmean(shared), 3), "ms": milliseconds}
    return results


def against_faiss(look: Look, texts: np.ndarray, rounds: int) -> float:
    """Time of our exact look-up in one branch over that of `IndexFlatIP`; the images found are compared."""
    assert FAISS is not None
    flat = FAISS.IndexFlatIP(WIDTH)
    flat.add(np.ascontiguousarray(look.images[:, 0]))
    for number in range(QUERIES):
        assert look.exact(questions("branch", texts, number)) == flat.search(texts[number][None], K)[1][0].tolist()
    cases = {
        "ours": lambda: [look.exact(questions("branch", texts, number)) for number in range(QUERIES)],
        "faiss": lambda: [flat.search(texts[number][None], K) for number in range(QUERIES)],
    }
    return round(ratio(interleaved(cases, rounds), "ours", "faiss"), 2)


def main() -> None:
    options = arguments(__doc__, rounds=5)
    if FAISS:
        FAISS.omp_set_num_threads(torch.get_num_threads())
    results: dict[str, object] = {}
    for kind in ("clustered", "random"):
        images, texts = draw(kind, np.random.default_rng(0))
        with tempfile.TemporaryDirectory() as directory:
            look = Look(Path(directory), images)
            results[kind] = measure(look, texts)
            if kind == "clustered" and FAISS:
                results["time_of_flat_faiss"] = against_faiss(look, texts, options.rounds)
        sys.stdout.write(f"{kind}: {results[kind]}\n")
    write_record(
        "search",
        {"rounds": options.rounds, "images": IMAGES, "width": WIDTH, "queries": QUERIES, "k": K, **results},
    )


if __name__ == "__main__":
    main()
