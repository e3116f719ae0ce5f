"""A million images in smaller vectors: recall against exact float32, time of a query, bytes, and resident memory.

    holistic-clip search index emoji --model runs/emoji/holistic --index emoji.index
    python tests/benchmarks/vectors.py emoji.index --directory million    writes results/vectors.json

Of an index made with `--vectors fused`, it writes results/vectors_fused.json.

The vectors of a real index are repeated, each copy with noise of its own, as long as the median distance of a vector
to its nearest neighbour. The index of them is made of the package's own files, is opened as any index, and is kept in
`--directory` for the next run. Queries are captions that the corpus has, each asked by one branch, by all (`fused`),
or two in favour and one against (`mixed`). Recall is the share of the 10 best by exact float32 that are found.

Memory is that of a fresh process for each precision, after all queries: `anonymous` is its own, `mapped` are pages of
files, which the system takes back when it needs them. Peers are faiss's `IndexFlatIP` over one branch, and Qdrant's
local mode, which holds and compares everything in Python, so it is asked with fewer images.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import qdrant_client
import torch
from _measure import interleaved, ratio, write_record
from datasets import Dataset

from holistic_clip_hf.corpus.build import load_corpus
from holistic_clip_hf.evaluation.encoding import load_checkpoint
from holistic_clip_hf.search import FUSED, SearchIndex, Term, estimate_bytes
from holistic_clip_hf.search.neighbours import (
    Neighbours,
    build_neighbours,
    bytes_read,
    estimate_lookup_bytes,
    measure_recall,
)
from holistic_clip_hf.search.qdrant import QdrantIndex, export_to_qdrant
from holistic_clip_hf.search.store import (
    BRANCHES,
    MANIFEST,
    PRECISIONS,
    SEGMENTS,
    VECTOR,
    describe_file,
    open_whole,
    read_index_manifest,
    vectors_of,
    write_index_manifest,
    write_segment,
)

QUERIES, K, ROWS, OF_QDRANT = 20, 10, 50_000, 5_000
KINDS = ("branch", "fused", "mixed")


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def nearest_distance(vectors: np.ndarray) -> float:
    """Median over a thousand rows, of all (N, D), of the distance to the nearest other."""
    some = np.ascontiguousarray(vectors[:: max(1, len(vectors) // 1_000)])
    products, _ = faiss.knn(some, vectors, 2, metric=faiss.METRIC_INNER_PRODUCT)
    return float(np.median(np.sqrt(np.maximum(2 - 2 * products[:, 1], 0))))


def copies(real: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """`count` rows (ROWS, H, D) in turn, each a real one with noise."""
    draws, width = np.random.default_rng(0), real.shape[-1]
    noise = [nearest_distance(np.ascontiguousarray(real[:, place])) for place in range(real.shape[1])]
    lengths = (np.array(noise)[:, None] / np.sqrt(width)).astype(np.float32)
    for start in range(0, count, ROWS):
        rows = np.arange(start, min(start + ROWS, count)) % len(real)
        yield unit(real[rows] + lengths * draws.standard_normal((len(rows), *real.shape[1:]), dtype=np.float32))


def make_index(source: Path, directory: Path, count: int) -> None:
    """Files of an index of `count` images, without look-ups."""
    manifest, datasets = open_whole(source)
    names = manifest.layout.vector_names
    real = np.stack([np.concatenate([b for each in datasets for b in vectors_of(each, n)]) for n in names], axis=1)
    layout, segments, start = replace(manifest.layout, columns={}), [], 0
    directory.mkdir(parents=True, exist_ok=True)
    for number, block in enumerate(copies(real, count)):
        ids = [f"{start + row:07d}" for row in range(len(block))]
        flat = {
            f"{VECTOR}{name}": pa.FixedSizeListArray.from_arrays(pa.array(block[:, place].ravel()), layout.width)
            for place, name in enumerate(names)
        }
        table = pa.table({"image_id": ids, "stamp": ids, **flat}, schema=layout.features.arrow_schema)
        path = write_segment(directory, number, layout, table, [])
        segments.append(describe_file(directory, path, len(block)))
        start += len(block)
    write_index_manifest(directory, replace(manifest, layout=layout, segments=segments, left_out=[]))


def link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def with_precision(whole: Path, precision: str, model: Any) -> tuple[Path, dict[str, Any]]:
    """The index of that precision, and what is known of its look-up."""
    if precision == "float32":
        return whole, {}
    directory = whole.with_name(f"{whole.name}-{precision}")
    record = directory / "built.json"
    if not record.is_file():
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(whole / SEGMENTS, directory / SEGMENTS, copy_function=link)
        manifest, datasets = open_whole(whole)
        begun = time.perf_counter()
        files = build_neighbours(directory, manifest.layout, model, datasets, "exact", precision)
        built = time.perf_counter()
        neighbours = Neighbours(directory, "exact", precision, files)
        recall = measure_recall(manifest.layout, model, datasets, neighbours)
        about = {
            "build_seconds": round(built - begun, 1),
            "recall_on_its_own_vectors": round(recall, 4),
            "measure_seconds": round(time.perf_counter() - built, 1),
        }
        write_index_manifest(directory, replace(manifest, precision=precision, neighbours=files, recall=recall))
        record.write_text(json.dumps(about))
    return directory, json.loads(record.read_text())


def queries(index: SearchIndex, texts: list[str], kind: str) -> list[list[Term]]:
    names = index.perspectives or [FUSED]
    asked = []
    for number, text in enumerate(texts):
        other = texts[(number + 1) % len(texts)]
        asked.append(
            {
                "branch": [Term(text, perspective=names[number % len(names)])],
                "fused": [Term(text)],
                "mixed": [
                    Term(text, perspective=names[0]),
                    Term(other, perspective=names[-1]),
                    Term(texts[number - 1], weight=-0.5),
                ],
            }[kind]
        )
    return asked


def texts_of(corpus: Dataset) -> list[str]:
    """Captions, evenly spread over all of them in order, each once."""
    captions = sorted({each["text"] for row in corpus.select_columns("captions") for each in row["captions"]})
    return captions[:: len(captions) // QUERIES][:QUERIES]


def resident() -> dict[str, int]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"anonymous": "RssAnon", "mapped": "RssFile"}
    return {name: int(lines[field].split()[0]) * 1024 for name, field in fields.items()}


def answers(index: SearchIndex, texts: list[str]) -> dict[str, Any]:
    """Ids of the best for each kind of query, and the median and the most milliseconds."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        ids, spent = [], []
        for query in queries(index, texts, kind):
            start = time.perf_counter()
            ids.append([hit.image_id for hit in index.search(query, k=K)])
            spent.append(1_000 * (time.perf_counter() - start))
        found[kind] = {"ids": ids, "ms": round(statistics.median(spent), 1), "slowest_ms": round(max(spent), 1)}
    return found


def in_fresh_process(directory: Path, texts: list[str], threads: int) -> dict[str, Any]:
    """What `--memory` prints; a run that was stopped has kept it."""
    record = directory / "answers.json"
    if not record.is_file():
        command = [sys.executable, __file__, str(directory), "--memory", "--threads", str(threads)]
        ran = subprocess.run(command, check=True, input=json.dumps(texts), capture_output=True, text=True)
        record.write_text(ran.stdout.splitlines()[-1])
    return json.loads(record.read_text())


def print_memory(directory: Path) -> None:
    texts = json.loads(sys.stdin.read())
    model, processor = load_checkpoint(read_index_manifest(directory).model)
    model.get_text_features(**processor(text=texts[:1], return_tensors="pt"))
    before = resident()
    index = SearchIndex(directory, model, processor)
    index.search(texts[0])
    after_one = resident()
    found = answers(index, texts)
    after = resident()
    memory = {
        name: {"after_opening_and_one_query": after_one[name] - before[name], "after_all": after[name] - before[name]}
        for name in before
    }
    print(json.dumps({"answers": found, "memory": memory}))


def sizes(directory: Path, count: int, config: Any) -> dict[str, int]:
    """Bytes of a vector, of all that queries read and on disk, and the last two as told beforehand."""
    manifest = read_index_manifest(directory)
    width, kinds, precision = manifest.layout.width, len(manifest.layout.vector_names), manifest.precision
    files = [each.bytes for each in manifest.neighbours.values()]
    told = {"lookup": "exact", "precision": precision}
    vectors = manifest.layout.vectors
    return {
        "bytes_of_a_vector": bytes_read(width, precision),
        "bytes_read": sum(files) or count * kinds * width * 4,
        "bytes_read_told": estimate_lookup_bytes(kinds, width, count, **told) or count * kinds * width * 4,
        "bytes_on_disk": sum(files) + sum(each.bytes for each in manifest.segments),
        "bytes_on_disk_told": estimate_bytes(config, count, vectors=vectors, **told),
    }


def shared(found: list[list[str]], truth: list[list[str]]) -> float:
    return round(statistics.fmean(len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)), 4)


def against_peers(indexes: dict[str, SearchIndex], texts: list[str], rounds: int) -> dict[str, Any]:
    """One branch, asked in turn: our precisions, and faiss's flat index, whose answers are compared."""
    whole = indexes["float32"]
    name = (whole.perspectives or [FUSED])[0]
    flat = faiss.IndexFlatIP(whole.layout.width)
    for block in whole._vectors[name]:
        flat.add(block)
    asked = [[Term(text, perspective=name)] for text in texts[:10]]
    vectors = [whole._asker.ask(query)[0].vectors[name][None] for query in asked]
    for query, vector in zip(asked, vectors, strict=True):
        theirs = [f"{row:07d}" for row in flat.search(vector, K)[1][0]]
        assert [hit.image_id for hit in whole.search(query, k=K)] == theirs
    cases: dict[str, Any] = {"faiss": lambda: [flat.search(vector, K) for vector in vectors]}
    for precision, index in indexes.items():
        cases[precision] = lambda index=index: [index.search(query, k=K) for query in asked]
    seconds = interleaved(cases, rounds)
    return {precision: round(ratio(seconds, precision, "faiss"), 2) for precision in indexes}


def against_qdrant(source: Path, texts: list[str], model: Any, processor: Any, rounds: int) -> dict[str, Any]:
    """Share of our answers that it gives, and how many times our time Qdrant's local mode takes, over fewer images."""
    with tempfile.TemporaryDirectory() as folder:
        make_index(source, Path(folder), OF_QDRANT)
        index, client = SearchIndex(folder, model, processor), qdrant_client.QdrantClient(":memory:")
        export_to_qdrant(index, client, "images")
        remote = QdrantIndex(client, "images", model, processor)
        asked = [query for kind in KINDS for query in queries(index, texts[:5], kind)]

        def ids(searched: Any) -> list[list[str]]:
            return [[hit.image_id for hit in searched.search(query, k=K)] for query in asked]

        cases = {"ours": lambda: ids(index), "qdrant": lambda: ids(remote)}
        seconds = interleaved(cases, rounds)
        return {
            "images": OF_QDRANT,
            "same_answers": shared(ids(remote), ids(index)),
            "time_of_ours": round(ratio(seconds, "qdrant", "ours"), 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path, help="index of a corpus")
    parser.add_argument("--directory", type=Path, help="where the million is kept")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true", help="print answers and memory of this index alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    if options.memory:
        print_memory(options.index)
        return
    manifest = read_index_manifest(options.index)
    model, processor = load_checkpoint(manifest.model)
    texts = texts_of(load_corpus(Path(manifest.origin["name"])))
    whole = options.directory
    if not (whole / MANIFEST).is_file():
        make_index(options.index, whole, options.images)
    about = {precision: with_precision(whole, precision, model) for precision in PRECISIONS}
    layout, results, recall = manifest.layout, {}, {}
    truth: dict[str, Any] = {}
    for precision, (directory, built) in about.items():
        found = in_fresh_process(directory, texts, options.threads)
        truth = truth or found["answers"]
        by_kind = {kind: shared(found["answers"][kind]["ids"], truth[kind]["ids"]) for kind in KINDS}
        recall[precision] = min(by_kind.values())
        results[precision] = {
            **sizes(directory, options.images, model.config),
            "recall": by_kind,
            **{field: {kind: found["answers"][kind][field] for kind in KINDS} for field in ("ms", "slowest_ms")},
            "resident": found["memory"],
            **built,
        }
        sys.stdout.write(f"{precision}: {json.dumps(results[precision])}\n")
    indexes = {precision: SearchIndex(directory, model, processor) for precision, (directory, _) in about.items()}
    write_record(
        "vectors" if layout.vectors == BRANCHES else "vectors_fused",
        {
            "rounds": options.rounds,
            "images": options.images,
            "branches": len(layout.vector_names),
            "width": layout.width,
            "queries": QUERIES,
            "k": K,
            "recall": recall,
            "precisions": results,
            "time_of_flat_faiss": against_peers(indexes, texts, options.rounds),
            "qdrant": against_qdrant(options.index, texts, model, processor, options.rounds),
        },
    )


if __name__ == "__main__":
    main()
