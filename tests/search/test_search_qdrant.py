"""Qdrant, in its local mode: the same images come first as in the index that was exported."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.search import DatasetImages, SearchIndex, Term, index_images
from holistic_clip_hf.search import qdrant as qdrant_module
from holistic_clip_hf.search.qdrant import CHECKPOINT, EXPORT, QdrantIndex, export_to_qdrant
from holistic_clip_hf.search.scoring import Hit

qdrant_client = pytest.importorskip("qdrant_client")
models = qdrant_client.models
MakeModel = Callable[..., HolisticCLIPModel]
NAMES = ["short", "main_object", "style"]
QUERIES: list[Any] = [
    "a red square",
    "style: one circle",
    "main object: a red square; short: blue^0.25; not style: all yellow^1.5; not a circle",
    Term(image=Image.new("RGB", (32, 32), "red"), perspective="style"),
]


@pytest.fixture
def client() -> Iterator[Any]:
    client = qdrant_client.QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def make_index(
    make_model: MakeModel, processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> Callable[..., tuple[SearchIndex, HolisticCLIPModel]]:
    def make(rows: int = 8, directory: str = "index", vectors: str = "branches", **options: Any) -> Any:
        model = make_model(perspectives=NAMES, **options)
        colours = [name.split("-")[0] for name in corpus["image_id"]]
        images = DatasetImages(corpus.add_column("colour", colours).select(range(rows)), columns=["colour"])
        index_images(tmp_path / directory, images, model, processor, vectors=vectors)
        return SearchIndex(tmp_path / directory, model, processor, images=images), model

    return make


def assert_alike(found: list[Hit], expected: list[Hit]) -> None:
    assert [hit.image_id for hit in found] == [hit.image_id for hit in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert one.columns == other.columns
        assert [part.term for part in one.parts] == [part.term for part in other.parts]


@pytest.mark.parametrize("fusion", ["centroid", "mean", "routed", "max"])
def test_the_same_results(
    make_index: Callable[..., Any], processor: HolisticCLIPProcessor, client: Any, fusion: str
) -> None:
    index, model = make_index(fusion=fusion)
    assert export_to_qdrant(index, client, "photos", batch_size=3) == 8
    kinds = client.get_collection("photos").config.params.vectors
    assert {name: (kind.size, kind.distance) for name, kind in kinds.items()} == dict.fromkeys(NAMES, (16, "Dot"))
    remote = QdrantIndex(client, "photos", model, processor)
    for query in QUERIES:
        assert_alike(remote.search(query, k=5), index.search(query, k=5))
    only_red = models.Filter(must=[models.FieldCondition(key="colour", match=models.MatchValue(value="red"))])
    found = remote.search("a circle", query_filter=only_red)
    assert {hit.image_id for hit in found} == {"red-square", "red-circle"}
    nowhere = models.Filter(must=[models.FieldCondition(key="colour", match=models.MatchValue(value="x"))])
    assert remote.search("a circle", query_filter=nowhere) == []
    with pytest.raises(ValueError, match="counts against.*Add one in favour"):
        remote.search("not a circle")
    with pytest.raises(ValueError, match="`k` is 0"):
        remote.search("a circle", k=0)


def test_fused_vectors(make_index: Callable[..., Any], processor: HolisticCLIPProcessor, client: Any) -> None:
    index, model = make_index(vectors="fused")
    export_to_qdrant(index, client, "photos")
    remote = QdrantIndex(client, "photos", model, processor)
    assert_alike(remote.search("a red square", k=5), index.search("a red square", k=5))


def test_an_export_follows_its_index(
    make_index: Callable[..., Any], processor: HolisticCLIPProcessor, client: Any
) -> None:
    index, model = make_index()
    export_to_qdrant(index, client, "photos")
    before = {point.payload["image_id"]: point.id for point in client.scroll("photos", limit=100)[0]}
    foreign = models.PointStruct(id=1, vector={name: [0.0] * 16 for name in NAMES}, payload={"whose": "theirs"})
    smaller, _ = make_index(rows=5)
    assert export_to_qdrant(smaller, client, "photos") == 5
    points = client.scroll("photos", limit=100)[0]
    assert {point.payload["image_id"]: point.id for point in points} == {
        image_id: before[image_id] for image_id in smaller.image_ids
    }
    assert {tuple(sorted(point.payload)) for point in points} == {(CHECKPOINT, "colour", EXPORT, "image_id")}
    client.upsert("photos", [foreign])
    export_to_qdrant(index, client, "photos")
    assert client.count("photos").count == 9  # what others put there stays
    assert len(QdrantIndex(client, "photos", model, processor).search("red", k=20)) == 8


def test_an_interrupted_export_is_repeated(
    make_index: Callable[..., Any], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = make_index()
    upsert, calls = client.upsert, []

    def fail(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise ConnectionError("the server is gone")
        return upsert(*args, **options)

    monkeypatch.setattr(client, "upsert", fail)
    with pytest.raises(ConnectionError):
        export_to_qdrant(index, client, "photos", batch_size=3)
    assert client.count("photos").count == 3
    assert export_to_qdrant(index, client, "photos", batch_size=3) == 8
    assert client.count("photos").count == 8


def test_another_checkpoint_or_collection(
    make_index: Callable[..., Any],
    make_model: MakeModel,
    processor: HolisticCLIPProcessor,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, model = make_index()
    with pytest.raises(ValueError, match="no collection 'photos'.*Export"):
        QdrantIndex(client, "photos", model, processor)
    export_to_qdrant(index, client, "photos")
    other = make_model(perspectives=NAMES, seed=1)
    with pytest.raises(ValueError, match="vectors of another checkpoint.*name another collection"):
        QdrantIndex(client, "photos", other, processor)
    different, _ = make_index(directory="other", seed=1)
    with pytest.raises(ValueError, match="vectors of another checkpoint"):
        export_to_qdrant(different, client, "photos")
    fused, _ = make_index(directory="fused", vectors="fused")
    with pytest.raises(ValueError, match="other vectors.*Name another collection"):
        export_to_qdrant(fused, client, "photos")
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ImportError, match=r"holistic-clip-hf\[qdrant\]"):
        qdrant_module.QdrantIndex(client, "photos", model, processor)
