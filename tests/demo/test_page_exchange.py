"""A page goes on while its index is replaced: every answer is wholly of the index before or of the one after."""

import logging
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from datasets import Dataset

from conftest import draw
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation import fingerprints
from holistic_clip_hf.search import FolderImages, SearchIndex, index_images
from photo_index import NAMES, write_photos

pytest.importorskip("gradio")

from demo_pages import served  # noqa: E402
from holistic_clip_hf.demo.interface import Interface  # noqa: E402
from holistic_clip_hf.demo.page import Page  # noqa: E402
from holistic_clip_hf.demo.showcase import Showcase, open_showcase  # noqa: E402

QUERIES = ["a red square", "style: one circle", "main_object: blue; not short: yellow", "green^0.5; short: a square"]
WEIGHTS = (1.0, 0.0, 0.5, 0.0)


@pytest.fixture
def photos(corpus: Dataset, tmp_path: Path) -> Path:
    return write_photos(corpus, tmp_path / "photos")


@pytest.fixture
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=NAMES, matryoshka_dims=[8])


@pytest.fixture
def bring(photos: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path) -> Any:
    """`bring(model, rebuild=True)`: the index of the photos, as another process brings it up to date."""

    def bring(by: HolisticCLIPModel = model, **options: Any) -> None:
        index_images(tmp_path / "photos.index", FolderImages(photos), by, processor, **options)

    return bring


@pytest.fixture
def opened(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path) -> Showcase:
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    return open_showcase(str(tmp_path / "model"), photos)


def fresh(showcase: Showcase) -> Showcase:
    """A page's showcase that is started now, with the captions of now, whatever the given one has taken up."""
    index = SearchIndex(showcase.index.directory, showcase.model, showcase._processor)
    captions = {**showcase.captions, **showcase._reopen(showcase.index)[1]}
    return Showcase(index, showcase.model, showcase._processor, captions=captions)


@pytest.mark.parametrize("answered", [40, 200], ids=["during it", "before it"])
def test_two_hundred_questions_during_an_exchange_are_answered_wholly_by_one_index(
    opened: Showcase, bring: Any, photos: Path, answered: int
) -> None:
    """The index after has other images, and other scores of the same ones, by vectors of other dimensions."""
    page = Page(opened)
    with served(opened) as blocks, httpx.Client(base_url=blocks.local_url, timeout=60) as client:

        def ask(number: int) -> tuple[str, str]:
            query = QUERIES[number // 2 % len(QUERIES)]
            if number % 2:
                return query, page.search(query, *WEIGHTS)
            answer = client.post("/search", json={"query": query})
            while answer.status_code == 429:  # so many are at work
                answer = client.post("/search", json={"query": query})
            return query, str(answer.json()["images"])

        def expected() -> dict[str, set[str]]:
            page, interface = Page(fresh(opened)), Interface(fresh(opened))
            return {
                query: {page.search(query, *WEIGHTS), str(interface.search({"query": query})["images"])}
                for query in QUERIES
            }

        before = expected()
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(ask, number) for number in range(200)]
            for each in asked[:answered]:
                each.result()
            (photos / "red" / "red-square.png").unlink()
            draw("green", "circle", 40).save(photos / "new.png")
            bring(rebuild=True, dimensions=8)
            answers = [each.result() for each in asked]
        after = expected()
        assert all(answer in before[query] | after[query] for query, answer in answers)
        assert {answer in before[query] for query, answer in answers[:40]} == {True}
        assert all(ask(number)[1] in after[ask(number)[0]] for number in range(8))
        assert all(not before[query] & after[query] for query in QUERIES)


def test_new_images_are_shown_without_a_restart(
    opened: Showcase, bring: Any, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page, before = Page(opened), opened.index
    assert "yellow-circle" in page.search("", *WEIGHTS)
    page_of_changed = page.search(QUERIES[0], *WEIGHTS)
    draw("yellow", "circle").save(photos / "brand new thing.png")
    draw("blue", "square", 60).save(photos / "red" / "red-square.png")
    bring()
    found = page.search(QUERIES[0], *WEIGHTS)
    assert found == Page(fresh(opened)).search(QUERIES[0], *WEIGHTS) != page_of_changed
    assert 'data-image-id="brand new thing.png"' in found and "brand new thing" in opened.texts
    assert opened.notice == "" and opened.index is not before and len(before) + 1 == len(opened.index)
    assert opened.current() is opened.index, "it is taken up once"
    caplog.clear()
    bring()  # nothing is new
    assert opened.current() is opened.index and not caplog.records


@pytest.mark.parametrize(
    ("options", "notice"),
    [
        ({"seed": 1}, "one of another model; start again with"),
        ({}, "one with vectors='fused'; start again"),
    ],
    ids=["model", "vectors"],
)
def test_an_index_that_the_page_cannot_show_is_said_and_the_one_before_answers(
    opened: Showcase,
    bring: Any,
    make_model: Callable[..., HolisticCLIPModel],
    model: HolisticCLIPModel,
    options: dict[str, int],
    notice: str,
    tmp_path: Path,
) -> None:
    page = Page(opened)
    before, hits = page.search(QUERIES[0], *WEIGHTS), opened.search(QUERIES[1])
    if options:
        bring(make_model(perspectives=NAMES, **options), rebuild=True)
    else:
        bring(rebuild=True, vectors="fused")
    after = page.search(QUERIES[0], *WEIGHTS)
    told = re.findall('<p class="hc-said" role="status">(.*?)</p>', after)
    assert len(told) == 1 and notice in opened.notice and str(tmp_path) not in opened.notice
    assert re.sub('<p class="hc-said" role="status">.*?</p>', "", after) == before
    assert opened.search(QUERIES[1]) == hits
    with served(opened) as blocks:
        answer = httpx.post(f"{blocks.local_url}search", json={"query": QUERIES[1]}).json()
        embedded = httpx.post(f"{blocks.local_url}embed", json={"input": "a red square"})
    assert [each["id"] for each in answer["images"]] == [hit.image_id for hit in hits]
    assert answer["notice"] == opened.notice and embedded.status_code == 200
    bring(model, rebuild=True)
    assert page.search(QUERIES[0], *WEIGHTS) == before and opened.notice == ""


def test_a_damaged_index_is_said_and_the_one_before_answers(
    opened: Showcase, bring: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hits, manifest = opened.search(QUERIES[0]), opened.index.directory / "index.json"
    content = manifest.read_bytes()
    manifest.write_bytes(b"{")
    with caplog.at_level(logging.WARNING):
        assert opened.search(QUERIES[0]) == hits
    assert "cannot be opened" in opened.notice and "index.json is damaged" in caplog.text
    manifest.unlink()
    assert opened.search(QUERIES[0]) == hits
    manifest.write_bytes(content)
    assert opened.search(QUERIES[0]) == hits and opened.notice == ""


def test_weights_are_hashed_once_and_images_of_an_answer_decoded_once(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bring: Any,
) -> None:
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    hashed, read = Counter[str](), Counter[str]()
    hash_weights, read_file = fingerprints.hash_weights, FolderImages.read

    def note_hash(*about: Any) -> str:
        hashed["weights"] += 1
        return hash_weights(*about)

    def note_read(source: FolderImages, image_id: str) -> bytes:
        read[image_id] += 1
        return read_file(source, image_id)

    monkeypatch.setattr(fingerprints, "hash_weights", note_hash)
    opened = open_showcase(str(tmp_path / "model"), photos)
    assert hashed == {"weights": 1}
    monkeypatch.setattr(FolderImages, "read", note_read)
    page = Page(opened)
    assert page.search("", *WEIGHTS) and page.search(QUERIES[0], *WEIGHTS)
    assert read == dict.fromkeys(opened.index.image_ids, 1) and len(read) == 8
    bring(rebuild=True, dimensions=8)
    hashed.clear()
    assert opened.current() is opened.index and not hashed, "a model that was not loaded anew is not hashed again"
