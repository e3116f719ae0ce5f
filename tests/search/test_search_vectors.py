"""Smaller vectors: what a look-up reads is small and proposes, whole vectors decide, and the index remembers both."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from torch import nn

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.search import FUSED, DatasetImages, SearchIndex, estimate_bytes
from holistic_clip_hf.search import index as index_module
from holistic_clip_hf.search import segments as segments_module
from holistic_clip_hf.search.neighbours import (
    EXPECTED_RECALL,
    Neighbours,
    build_neighbours,
    bytes_read,
    estimate_lookup_bytes,
    measure_recall,
)
from holistic_clip_hf.search.store import Layout, open_segment, read_index_manifest, write_segment
from photo_index import NAMES, Indexing, contents, indexing, write_photos

MakeModel = Callable[..., HolisticCLIPModel]
QUERIES = ["a red square", "style: one circle", "main object: a red square; short: blue^0.25; not style: all yellow"]
SMALLER = ["float16", "int8", "binary"]


@pytest.fixture
def model(make_model: MakeModel) -> HolisticCLIPModel:
    return make_model(perspectives=NAMES, matryoshka_dims=[8])


@pytest.fixture
def bring(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path) -> Indexing:
    return indexing(write_photos(corpus, tmp_path / "photos"), tmp_path, model, processor)


@pytest.mark.parametrize("precision", SMALLER)
def test_smaller_vectors_propose_and_whole_ones_decide(
    bring: Indexing,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(index_module, "FEW", 0)
    bring("whole")
    report = bring(precision=precision)
    assert f"exact, {precision}, recall@10 1.000: 8 new" in str(report)
    whole, small = (SearchIndex(tmp_path / name, model, processor) for name in ("whole", "index"))
    assert small.manifest.neighbours.keys() == {*NAMES, FUSED} and not whole.manifest.neighbours
    for query in QUERIES:
        assert small.search(query, k=4) == whole.search(query, k=4)
    before = contents(tmp_path / "index")
    assert bring().precision == precision  # as the index has it
    assert contents(tmp_path / "index") == before
    assert bring(precision="float32").precision == "float32"
    assert contents(tmp_path / "index").keys() == contents(tmp_path / "whole").keys()


def drawn(images: int, width: int, branches: int = 1) -> np.ndarray:
    """Vectors (N, H, D) of unit length around a common direction, as those of trained models lie."""
    vectors = np.random.default_rng(0).standard_normal((images, branches, width)) + 1.0
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def written(directory: Path, vectors: np.ndarray) -> tuple[Layout, list[Dataset]]:
    """The segment of these vectors (N, H, D)."""
    names = NAMES[: vectors.shape[1]]
    layout = Layout(checkpoint="none", perspectives=names, width=vectors.shape[-1], vectors="branches")
    ids = [f"{row:06d}" for row in range(len(vectors))]
    flat = {
        f"vector.{name}": pa.FixedSizeListArray.from_arrays(pa.array(vectors[:, place].ravel()), layout.width)
        for place, name in enumerate(names)
    }
    table = pa.table({"image_id": ids, "stamp": ids, **flat}, schema=layout.features.arrow_schema)
    opened = open_segment(write_segment(directory, 0, layout, table, []), layout)
    assert opened is not None
    return layout, [opened[0]]


@pytest.mark.parametrize("lookup", ["exact", "ivf", "hnsw"])
@pytest.mark.parametrize("precision", ["float32", *SMALLER])
def test_size_and_recall_are_told(tmp_path: Path, lookup: str, precision: str) -> None:
    """Recall against a full sort in numpy; the size on disk against the estimate."""
    pytest.importorskip("faiss")
    if (lookup, precision) in {("exact", "float32"), ("hnsw", "binary")}:
        return
    vectors = drawn(3_000, 64)
    layout, datasets = written(tmp_path, vectors)
    model: Any = SimpleNamespace()
    files = build_neighbours(tmp_path, layout, model, datasets, lookup, precision)
    size = sum(each.bytes for each in files.values())
    told = estimate_lookup_bytes(1, 64, 3_000, lookup=lookup, precision=precision)
    assert size == pytest.approx(told, rel=0.03)
    neighbours = Neighbours(tmp_path, lookup, precision, files)
    flat, everything = vectors[:, 0], np.ones(3_000, dtype=bool)
    asked = np.unique(np.linspace(0, 2_999, 25, dtype=np.int64))
    found = []
    for row in asked:
        nearest = [other for other in np.argsort(-(flat @ flat[row]), kind="stable") if other != row][:10]
        found.append(len(set(nearest) & set(neighbours.propose({NAMES[0]: flat[row]}, 10, everything).tolist())) / 10)
    assert measure_recall(layout, model, datasets, neighbours) == pytest.approx(np.mean(found), abs=0.003)
    assert lookup == "ivf" or np.mean(found) > 0.95


@pytest.mark.parametrize("precision", SMALLER)
def test_what_is_best_by_several_branches_need_not_be_near_to_any(tmp_path: Path, precision: str) -> None:
    """Each branch knows twenty kinds of image. Those of all kinds asked are a twentieth of the nearest of either."""
    pytest.importorskip("faiss")
    draws, centres = np.random.default_rng(1), drawn(20, 64, branches=3)
    kinds = draws.integers(20, size=(20_000, 3))
    vectors = centres[kinds, np.arange(3)] + 0.02 * draws.standard_normal((20_000, 3, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    layout, datasets = written(tmp_path, vectors)
    model: Any = SimpleNamespace(branch_fusion=SimpleNamespace(single_vectors=lambda branches: branches.mean(dim=1)))
    files = build_neighbours(tmp_path, layout, model, datasets, "exact", precision)
    neighbours = Neighbours(tmp_path, "exact", precision, files)
    by_sum, by_each, allowed = [], [], draws.random(20_000) < 0.8
    for wanted in kinds[:10]:
        signed = centres[wanted, np.arange(3)] * np.array([[1.0], [1.0], [-0.5]])
        asked = dict(zip(layout.perspectives, signed, strict=True))
        scores = sum(vectors[:, place] @ vector for place, vector in enumerate(asked.values()))
        best = sorted(np.flatnonzero(allowed), key=lambda row: -scores[row])[:10]
        rows = neighbours.propose_by_sum(asked, 10, allowed)
        assert allowed[rows].all()
        by_sum.append(np.isin(best, rows).mean())
        by_each.append(np.isin(best, neighbours.propose(asked, 10, allowed)).mean())
    assert np.mean(by_sum) > 0.95
    assert precision == "binary" or np.mean(by_each) < 0.9, np.mean(by_each)  # it proposes most of a kind


@pytest.mark.parametrize(
    ("precision", "width", "expected"),
    [("float32", 128, 512), ("float16", 128, 256), ("int8", 128, 128), ("binary", 128, 24), ("binary", 64, 16)],
)
def test_bytes_of_a_vector(precision: str, width: int, expected: int) -> None:
    """A quarter of float32 for int8, and no more than a sixteenth for binary from 64 dimensions on."""
    assert bytes_read(width, precision) == expected


def test_expected_recall_is_that_of_the_benchmark() -> None:
    record = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "vectors.json").read_text())
    for precision, told in EXPECTED_RECALL.items():
        assert told == pytest.approx(record["recall"][precision], abs=0.005)


def test_vectors_on_disk_are_not_read_on_opening(
    bring: Indexing,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("faiss")
    bring(precision="int8")
    read: list[str] = []
    monkeypatch.setattr("holistic_clip_hf.search.store.require_finite", lambda *about: read.append("all"))
    SearchIndex(tmp_path / "index", model, processor)
    assert not read


def test_what_cannot_be_asked_is_refused(bring: Indexing, tmp_path: Path) -> None:
    for about, message in (
        ({"precision": "int4"}, "`precision` is 'int4'; expected one of auto, float32"),
        ({"precision": "binary", "lookup": "hnsw"}, "'binary' and `lookup` 'hnsw'.*Choose 'ivf'"),
        ({"dimensions": 17}, "`dimensions` is 17; expected 1 to 16"),
        ({"dimensions": 0}, "`dimensions` is 0; expected 1 to 16"),
    ):
        with pytest.raises(ValueError, match=message):
            bring(**about)
    assert not (tmp_path / "index").exists()


def test_without_faiss_whole_vectors_are_searched(bring: Indexing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert bring().precision == "float32"
    with pytest.raises(ImportError, match=r"holistic-clip-hf\[search\].*precision='float32'"):
        bring(precision="int8")


FUSIONS: dict[str, dict[str, Any]] = {
    "centroid": {},
    "mean": {"fusion": "mean"},
    "routed": {"fusion": "routed"},
    "max": {"fusion": "max"},
}


@pytest.mark.parametrize("vectors", ["branches", "fused"])
@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_a_prefix_is_searched_as_vectors_of_its_width(
    make_model: MakeModel,
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    fusion: str,
    vectors: str,
) -> None:
    """Scores against whole vectors of the model, cut and made of unit length here."""
    if vectors == "fused" and fusion in ("routed", "max"):
        pytest.skip("no vector of its own")
    model = make_model(perspectives=NAMES, matryoshka_dims=[8], **FUSIONS[fusion])
    if model.branch_fusion.router is not None:
        nn.init.normal_(model.branch_fusion.router.weight, generator=torch.Generator().manual_seed(5))
    indexing(write_photos(corpus, tmp_path / "photos"), tmp_path, model, processor)(dimensions=8, vectors=vectors)
    index = SearchIndex(tmp_path / "index", model, processor)
    assert index.layout.width == 8 and len(index) == 8
    tokens = processor(text=["a red square"], return_tensors="pt", padding=True)
    with torch.inference_mode():
        text = model.get_text_features(**{name: tokens[name] for name in ("input_ids", "attention_mask")}).text_embeds
        shares = model.branch_fusion.routing(text) if fusion == "routed" else torch.full((1, 3), 1 / 3)
    for hit in index.search("a red square", k=8):
        pixels = processor(images=[index.image(hit.image_id)], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            branches = model.get_image_features(pixels).branch_embeds[0]
        cut = [(each[:8] / each[:8].norm()) for each in branches]
        asked = text[0, :8] / text[0, :8].norm()
        scores = [float(each @ asked) for each in cut]
        mean = sum(share * each for share, each in zip(shares[0], cut, strict=True))
        expected = {
            "centroid": float(mean @ asked / mean.norm()),
            "mean": sum(scores) / 3,
            "routed": float(mean @ asked),
            "max": max(scores),
        }[fusion]
        assert hit.score == pytest.approx(expected, abs=1e-5)


def test_a_prefix_is_remembered_and_one_that_was_not_trained_is_told(
    bring: Indexing,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bring(dimensions=8)
    assert "not trained for" not in caplog.text
    assert bring().num_images == 8 and read_index_manifest(tmp_path / "index").layout.width == 8
    size = estimate_bytes(model.config, 8, dimensions=8)
    assert size == 8 * (80 + 3 * 8 * 4) < estimate_bytes(model.config, 8)
    with pytest.raises(ValueError, match="made with dimensions=8, now 16 is asked for.*--rebuild"):
        bring(dimensions=16)
    with caplog.at_level(logging.WARNING):
        bring("other", dimensions=4)
    assert "`dimensions` is 4, which the model was not trained for, but for 8 and 16" in caplog.text


def test_an_index_is_rebuilt_while_it_answers(
    bring: Indexing,
    make_model: MakeModel,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The switch is the last step: until then a new process opens the old index, an open one answers beyond it."""
    bring()
    directory, better = tmp_path / "index", make_model(perspectives=NAMES, seed=1)
    opened = SearchIndex(directory, model, processor)
    expected = opened.search("a red square", k=8)
    again = indexing(tmp_path / "photos", tmp_path, better, processor)
    with pytest.raises(ValueError, match="made by another checkpoint.*--rebuild"):
        again()

    def build(*about: Any) -> Any:  # the last step before the manifest
        assert SearchIndex(directory, model, processor).search("a red square", k=8) == expected
        return build_neighbours(*about)

    with monkeypatch.context() as patch:
        patch.setattr("holistic_clip_hf.search.indexing.build_neighbours", build)
        report = again(rebuild=True)
    assert (report.num_images, len(report.left_out)) == (8, 0)
    assert opened.search("a red square", k=8) == expected
    again("fresh")
    fresh, rebuilt = (SearchIndex(tmp_path / name, better, processor) for name in ("fresh", "index"))
    assert rebuilt.search("a red square", k=8) == fresh.search("a red square", k=8) != expected
    assert len(list((directory / "segments").iterdir())) == len(list((tmp_path / "fresh" / "segments").iterdir()))
    with pytest.raises(ValueError, match="made by another checkpoint"):
        SearchIndex(directory, model, processor)


def test_what_one_model_could_not_encode_is_left_to_the_next(
    bring: Indexing,
    make_model: MakeModel,
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reason that one model gives for good says nothing of another model."""
    with monkeypatch.context() as patch:
        patch.setattr(
            segments_module,
            "embed_each",
            lambda model, processor, images, **about: (
                ["not finite"] + [np.ones((3, 16), np.float32) for _ in images[1:]]
            ),
        )
        assert len(bring(images=DatasetImages(corpus)).left_out) == 3  # the first of each batch
    assert bring(images=DatasetImages(corpus)).num_images == 5
    again = indexing(tmp_path / "photos", tmp_path, make_model(perspectives=NAMES, seed=1), processor)
    report = again(images=DatasetImages(corpus), rebuild=True)
    assert (report.num_images, len(report.left_out)) == (8, 0)


# Rebuilds slowly, one segment of three rows after the other, until it is killed.
REBUILD = """
import sys, time
from transformers import AutoModel, AutoProcessor
import holistic_clip_hf
from holistic_clip_hf.search import FolderImages, index_images

class Slow(FolderImages):
    def read(self, image_id):
        time.sleep(0.2)
        return super().read(image_id)

model, processor = AutoModel.from_pretrained(sys.argv[1]), AutoProcessor.from_pretrained(sys.argv[1])
index_images(sys.argv[3], Slow(sys.argv[2]), model, processor, rows_per_segment=3, batch_size=3, rebuild=True)
"""


@pytest.mark.slow
def test_a_killed_rebuild_goes_on(
    bring: Indexing,
    make_model: MakeModel,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
) -> None:
    bring()
    directory, better = tmp_path / "index", make_model(perspectives=NAMES, seed=1)
    expected = SearchIndex(directory, model, processor).search("a red square", k=8)
    for part in (better, processor):
        part.save_pretrained(tmp_path / "better")
    known = set((directory / "segments").iterdir())
    command = [sys.executable, "-c", REBUILD, *map(str, (tmp_path / "better", tmp_path / "photos", directory))]
    with subprocess.Popen(command) as process:
        while process.poll() is None and len(set((directory / "segments").glob("*.arrow")) - known) < 2:
            pass
        process.kill()
    begun = {path.name: path.read_bytes() for path in set((directory / "segments").glob("*.arrow")) - known}
    assert len(begun) == 2
    assert SearchIndex(directory, model, processor).search("a red square", k=8) == expected
    again = indexing(tmp_path / "photos", tmp_path, better, processor)
    again(rebuild=True)
    for name, content in begun.items():
        assert (directory / "segments" / name).read_bytes() == content  # taken up, not encoded anew
    again("fresh")
    fresh, rebuilt = (SearchIndex(tmp_path / name, better, processor) for name in ("fresh", "index"))
    assert rebuilt.search("a red square", k=8) == fresh.search("a red square", k=8)


@pytest.mark.parametrize("about", [{}, {"precision": "int8"}, {"lookup": "ivf"}], ids=str)
def test_the_sound_part_of_a_damaged_index_answers(
    bring: Indexing,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    about: dict[str, str],
) -> None:
    if about:
        pytest.importorskip("faiss")
    bring(**about)
    directory = tmp_path / "index"
    whole = SearchIndex(directory, model, processor)
    assert SearchIndex(directory, model, processor, skip_damaged=True).damaged == []
    expected, manifest = whole.search("a red square", k=8), read_index_manifest(directory)
    first = open_segment(directory / manifest.segments[0].file, manifest.layout)
    assert first is not None
    lost = set(first[0]["image_id"])
    path = directory / manifest.segments[0].file
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=f"{path.name} is .* bytes long"):
        SearchIndex(directory, model, processor)
    part = SearchIndex(directory, model, processor, skip_damaged=True)
    assert part.search("a red square", k=8) == [hit for hit in expected if hit.image_id not in lost]
    assert len(part.damaged) == 1 and path.name in part.damaged[0]
    assert f"{len(lost)} of the images" in caplog.text and path.name in caplog.text
    path.write_bytes(content)
    if about:  # a file of faiss, without which all is looked at
        faiss_file = directory / manifest.neighbours[NAMES[0]].file
        faiss_file.write_bytes(faiss_file.read_bytes()[:-1])
        part = SearchIndex(directory, model, processor, skip_damaged=True)
        assert part.search("a red square", k=8) == expected and faiss_file.name in part.damaged[0]
    for segment in manifest.segments:
        (directory / segment.file).write_bytes(b"")
    with pytest.raises(ValueError, match="is 0 bytes long.*Run the indexing again"):
        SearchIndex(directory, model, processor, skip_damaged=True)
