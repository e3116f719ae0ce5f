"""What an earlier version wrote is read by the current code, and says the same: index, corpus, caption rows, records.

`tests/data/artefacts/README.md` says what is stored. Expected values were written by that version, or are the texts
and colours of the pictures.
"""

import json
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.captioning.captioner import Reply, Work, caption_images
from holistic_clip_hf.captioning.perspectives import asked, load_perspectives
from holistic_clip_hf.captioning.store import CaptionStore
from holistic_clip_hf.corpus.build import load_corpus
from holistic_clip_hf.evaluation.fingerprints import fingerprint
from holistic_clip_hf.evaluation.records import capture_provenance, load_records, save_records
from holistic_clip_hf.evaluation.retrieval import evaluate_retrieval
from holistic_clip_hf.images.folders import FolderImages, ImageFolder
from holistic_clip_hf.search import SearchIndex, Term, index_images
from holistic_clip_hf.search.store import read_index_manifest

DATA = Path(__file__).parents[1] / "data"
NAMES = ["bar.png", "disc.png", "square.png"]
TEXTS = {"bar.png": "a green bar", "disc.png": "a blue disc", "square.png": "a red square"}
COLOURS = {"bar.png": (0, 128, 0), "disc.png": (0, 0, 255), "square.png": (255, 0, 0)}  # of each picture's middle


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A copy, since reading takes locks and indexing writes."""
    return Path(shutil.copytree(DATA / "artefacts" / "0.1.0", tmp_path / "stored"))


@pytest.fixture(scope="module")
def model() -> HolisticCLIPModel:
    return HolisticCLIPModel.from_pretrained(DATA / "checkpoints" / "0.1.0" / "mlp").eval()


@pytest.fixture(scope="module")
def processor() -> HolisticCLIPProcessor:
    return HolisticCLIPProcessor.from_pretrained(DATA / "checkpoints" / "0.1.0" / "mlp")


def test_an_index_opens_and_finds_the_same(
    stored: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor
) -> None:
    index = SearchIndex(stored / "photos.index", model, processor)
    queries = {
        "all": [Term("a red square")],
        "branch": [Term("a blue disc", perspective="short"), Term("a bar", weight=-0.5)],
    }
    for name, expected in json.loads((stored / "answers.json").read_text()).items():
        # Term by term, since that version subtracted all of a term against, and not what exceeds the usual.
        scores = [{hit.image_id: hit.score for hit in index.search(term, k=3)} for term in queries[name]]
        found = {image_id: sum(each[image_id] for each in scores) for image_id in NAMES}
        assert sorted(found, key=lambda image_id: -found[image_id]) == [image_id for image_id, _ in expected]
        assert sorted(found.values(), reverse=True) == pytest.approx([score for _, score in expected], abs=1e-5)


def test_an_index_goes_on_with_what_it_holds(
    stored: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor
) -> None:
    manifest = read_index_manifest(stored / "photos.index")
    assert manifest.layout.checkpoint == fingerprint(model, processor, with_fusion=False)
    report = index_images(stored / "photos.index", FolderImages(stored / "photos"), model, processor)
    assert (report.num_images, report.added, report.removed) == (3, 0, 0)


def test_a_corpus_loads(stored: Path) -> None:
    corpus = load_corpus(stored / "corpus")
    assert sorted(corpus["image_id"]) == NAMES
    for row in corpus:
        image_id, image = row["image_id"], row["image"].convert("RGB")
        assert [(each["perspective"], each["text"]) for each in row["captions"]] == [("short", TEXTS[image_id])]
        assert image.size == (40, 32) and image.getpixel((16, 16)) == COLOURS[image_id]
        assert row["split"] == "train"


class NotAsked:
    """A captioner that has answered everything already."""

    captioner, revision, weights, settings = "scripted", "1", "", {}

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        for each in work:
            if each.perspectives:
                raise AssertionError(f"{each.image_id} is asked again")
        yield from ()


def test_caption_rows_are_read_and_not_asked_again(stored: Path) -> None:
    rows = list(CaptionStore(stored / "captions").rows())
    words = {row.image_id: row.caption for row in rows}
    assert words == {name: f"A {name.removesuffix('.png')} stands on a plain white page." for name in NAMES}
    perspective = [each for each in asked(load_perspectives()) if each.name == rows[0].perspective]
    report = caption_images(ImageFolder(stored / "photos"), perspective, NotAsked(), stored / "captions")
    assert (report.images, report.kept) == (3, 3)


def test_records_are_read_and_written_back_alike(
    stored: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor
) -> None:
    path = stored / "results.json"
    before, records = path.read_bytes(), load_records(path)
    save_records(path, records)
    assert path.read_bytes() == before
    corpus = load_corpus(stored / "corpus")
    run = capture_provenance(model="shapes", dataset="shapes", split="train", seed=0)
    now = evaluate_retrieval(model, processor, corpus, provenance=run, perspectives=["short"], ks=(1,))
    assert {record.key: record.value for record in records} == pytest.approx(
        {record.key: record.value for record in now}, abs=1e-9
    )
