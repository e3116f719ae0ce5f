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
from holistic_clip_hf.search.qdrant import (
    CHECKPOINT,
    EXPORT,
    STAMP,
    QdrantIndex,
    export_to_qdrant,
    import_from_qdrant,
    layout_of,
)
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
    assert {tuple(sorted(point.payload)) for point in points} == {(CHECKPOINT, "colour", EXPORT, "image_id", STAMP)}
    client.upsert("photos", [foreign])
    export_to_qdrant(index, client, "photos")
    assert client.count("photos").count == 9  # what others put there stays
    assert len(QdrantIndex(client, "photos", model, processor).search("red", k=20)) == 8


def test_an_interrupted_export_goes_on_with_what_is_missing(
    make_index: Callable[..., Any], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = make_index()
    upsert, calls, sent = client.upsert, [], []

    def fail(collection: str, points: list[Any], **options: Any) -> Any:
        calls.append(points)
        if len(calls) == 2:
            raise ConnectionError("the server is gone")
        sent.extend(point.id for point in points)
        return upsert(collection, points, **options)

    monkeypatch.setattr(client, "upsert", fail)
    with pytest.raises(ConnectionError):
        export_to_qdrant(index, client, "photos", batch_size=3)
    assert client.count("photos").count == 3
    assert export_to_qdrant(index, client, "photos", batch_size=2) == 8
    assert client.count("photos").count == 8 and len(sent) == len(set(sent)) == 8
    assert export_to_qdrant(index, client, "photos") == 8 and len(sent) == 8  # nothing is sent twice


@pytest.mark.parametrize("precision", ["float16", "int8", "binary"])
def test_a_server_is_told_to_keep_smaller_vectors(
    make_index: Callable[..., Any], processor: HolisticCLIPProcessor, client: Any, precision: str
) -> None:
    """Local mode keeps whole vectors whatever it is told, so that only what it is told is looked at."""
    index, model = make_index()
    made: dict[str, Any] = {}
    create = client.create_collection
    client.create_collection = lambda *about, **options: (made.update(options), create(*about, **options))[1]
    export_to_qdrant(index, client, "photos", precision=precision)
    told = made["quantization_config"]
    assert {each.datatype for each in made["vectors_config"].values()} == {
        models.Datatype.FLOAT16 if precision == "float16" else None
    }
    assert {each.on_disk for each in made["vectors_config"].values()} == {None if precision == "float16" else True}
    if precision == "float16":
        assert told is None
    else:
        kept = told.scalar if precision == "int8" else told.binary
        assert kept.always_ram and isinstance(
            kept, models.ScalarQuantizationConfig if precision == "int8" else models.BinaryQuantizationConfig
        )
    remote = QdrantIndex(client, "photos", model, processor)
    for query in QUERIES:
        assert_alike(remote.search(query, k=5), index.search(query, k=5))
    export_to_qdrant(index, client, "photos")  # one that is there keeps what it was made with
    with pytest.raises(ValueError, match="`precision` is 'int4'"):
        export_to_qdrant(index, client, "others", precision="int4")
    assert not client.collection_exists("others")


def test_an_import_is_an_index_without_encoding(
    make_index: Callable[..., Any],
    processor: HolisticCLIPProcessor,
    client: Any,
    corpus: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between two segments, it fetches the rest; indexing then takes all up and encodes what is not there."""
    index, model = make_index()
    export_to_qdrant(index, client, "photos")
    client.delete("photos", [next(point.id for point in client.scroll("photos", limit=1)[0])])
    layout = layout_of(client, "photos", model, processor, index.layout.further)
    assert layout == index.layout
    monkeypatch.setattr(qdrant_module, "ROWS_PER_SEGMENT", 3)
    write, calls = qdrant_module.write_segment, []

    def killed(*about: Any) -> Any:
        calls.append(about)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*about)

    monkeypatch.setattr(qdrant_module, "write_segment", killed)
    with pytest.raises(KeyboardInterrupt):
        import_from_qdrant(client, "photos", tmp_path / "copy", layout)
    with pytest.raises(ValueError, match="half-built index"):
        SearchIndex(tmp_path / "copy", model, processor)
    assert import_from_qdrant(client, "photos", tmp_path / "copy", layout, batch_size=2) == 4
    assert import_from_qdrant(client, "photos", tmp_path / "copy", layout) == 0
    encoded: list[int] = []
    encode = type(model).get_image_features
    monkeypatch.setattr(
        type(model),
        "get_image_features",
        lambda self, pixel_values, **about: (
            encoded.append(len(pixel_values)) or encode(self, pixel_values=pixel_values, **about)
        ),
    )
    report = index_images(tmp_path / "copy", index._source, model, processor)
    assert (report.num_images, sum(encoded)) == (8, 1)
    copy = SearchIndex(tmp_path / "copy", model, processor, images=index._source)
    for query in QUERIES:
        assert_alike(copy.search(query, k=8), index.search(query, k=8))
    with pytest.raises(ValueError, match="no collection 'nowhere'"):
        layout_of(client, "nowhere", model, processor, index.layout.further)


def test_vectors_that_are_not_finite_are_not_imported(
    make_index: Callable[..., Any],
    processor: HolisticCLIPProcessor,
    client: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    index, model = make_index()
    export_to_qdrant(index, client, "photos")
    first = client.scroll("photos", limit=1, with_vectors=True)[0][0]
    broken = {name: [float("inf")] * 16 if name == "style" else vector for name, vector in first.vector.items()}
    client.upsert("photos", [models.PointStruct(id=first.id, vector=broken, payload=first.payload)])
    import_from_qdrant(client, "photos", tmp_path / "copy", index.layout)
    assert f"{first.payload['image_id']!r} has vectors in photos that are not finite" in caplog.text
    report = index_images(tmp_path / "copy", index._source, model, processor)
    assert report.num_images == 8
    copy = SearchIndex(tmp_path / "copy", model, processor, images=index._source)
    assert_alike(copy.search("a red square", k=8), index.search("a red square", k=8))


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
