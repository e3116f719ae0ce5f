"""An index on disks as they are: read-only, copied, with files that move, links, and clocks that are wrong."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.images.sources import Item
from holistic_clip_hf.search import FolderImages, SearchIndex
from holistic_clip_hf.search.segments import make_table
from holistic_clip_hf.search.store import read_index_manifest, write_segment
from photo_index import NAMES, Indexing, counts, indexing, rows, write_photos


@pytest.fixture
def photos(corpus: Dataset, tmp_path: Path) -> Path:
    return write_photos(corpus, tmp_path / "photos")


@pytest.fixture
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=NAMES)


@pytest.fixture
def bring(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path) -> Indexing:
    return indexing(photos, tmp_path, model, processor)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mount a folder over itself so that nobody may write there, or take the right from us."""
    if os.geteuid() != 0:
        modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
        for path in modes:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            yield
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        return
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def encodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holistic_clip_hf.search.segments.embed_each", None)


def test_a_read_only_index_answers_and_is_not_written(
    bring: Indexing, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    bring()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    index = SearchIndex(tmp_path / "index", model, processor)
    expected = [(hit.image_id, hit.score) for hit in index.search("a red square")]
    names = ["--model", str(tmp_path / "model"), "--index", str(tmp_path / "index")]
    with read_only(tmp_path / "index"):
        found = SearchIndex(tmp_path / "index", model, processor).search("a red square")
        assert [(hit.image_id, hit.score) for hit in found] == expected
        with pytest.raises(ValueError, match="`index` is .*, which may not be written, as on a read-only disk"):
            bring()
        with pytest.raises(ValueError, match="which may not be written"):
            parse("search", ["index", str(tmp_path / "photos"), *names])()
        with pytest.raises(ValueError, match="which may not be written"):
            bring("index/another")


def test_the_page_shows_a_read_only_index(
    bring: Indexing,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("gradio")
    from holistic_clip_hf.demo.showcase import open_showcase

    bring()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "photos" / "new.png").write_bytes((tmp_path / "photos" / "red" / "red-square.png").read_bytes())
    with read_only(tmp_path / "index"):
        showcase = open_showcase(str(tmp_path / "model"), tmp_path / "photos", index=tmp_path / "index")
        assert len(showcase.search("a red square")) == 8 and "shown as it is" in caplog.text
        with pytest.raises(ValueError, match="may not be written"):
            open_showcase(str(tmp_path / "model"), tmp_path / "photos", index=tmp_path / "index" / "below")


@pytest.mark.usefixtures("photos")
def test_images_beside_a_copied_index_are_found(
    bring: Indexing, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path
) -> None:
    bring()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("photos", "index"):
        (tmp_path / name).rename(elsewhere / name)
    index = SearchIndex(elsewhere / "index", model, processor)
    assert index.image("red/red-square.png").size == (32, 32)
    (elsewhere / "photos").rename(elsewhere / "other")
    with pytest.raises(ValueError, match=f"{photos}, which is not a folder"):
        SearchIndex(elsewhere / "index", model, processor).image("red/red-square.png")


def test_files_that_are_moved_renamed_or_copied_are_known_by_their_contents(
    bring: Indexing, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bring()
    before = rows(tmp_path / "index")
    request.getfixturevalue("encodes_nothing")
    (photos / "red").rename(photos / "crimson")
    (photos / "blue" / "blue-square.png").rename(photos / "box.png")
    shutil.copyfile(photos / "green" / "green-circle.png", photos / "copy.png")
    os.utime(photos / "copy.png", (1, 1))
    assert counts(bring()) == (9, 4, 0, 3, 5)
    after = rows(tmp_path / "index")
    origins = {"box.png": "blue/blue-square.png", "copy.png": "green/green-circle.png"}
    for name, (_, vectors) in after.items():
        assert vectors == before[origins.get(name, name.replace("crimson", "red"))][1]
    assert counts(bring()) == (9, 0, 0, 0, 9)
    (photos / "copy.png").unlink()
    (photos / "green" / "green-circle.png").unlink()
    assert counts(bring()) == (7, 0, 0, 2, 7)
    (photos / "copy.png").write_bytes((photos / "box.png").read_bytes())
    assert counts(bring()) == (8, 1, 0, 0, 7)


def test_a_file_of_the_same_size_and_other_contents_is_encoded(bring: Indexing, photos: Path, tmp_path: Path) -> None:
    """Under a new name, and under its own with a time before that of the old one."""
    bring()
    contents = bytearray((photos / "red" / "red-square.png").read_bytes())
    contents[-1] ^= 1  # behind the pixels
    (photos / "twin.png").write_bytes(contents)
    (photos / "red" / "red-square.png").write_bytes(contents)
    os.utime(photos / "red" / "red-square.png", (5, 5))
    for path in photos.glob("green/*"):  # a clock that went wrong
        os.utime(path, (4_000_000_000, 4_000_000_000))
    assert counts(bring()) == (9, 1, 1, 0, 7)
    assert counts(bring()) == (9, 0, 0, 0, 9)


def test_links_are_followed_if_that_is_wanted(
    bring: Indexing, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (photos / "red").rename(outside)
    (photos / "linked").symlink_to(outside)
    (photos / "one.png").symlink_to(outside / "red-square.png")
    (photos / "gone.png").symlink_to(tmp_path / "nothing.png")
    (photos / "blue" / "up").symlink_to(photos)  # a circle
    report = bring()
    assert counts(report)[0] == 6 and len(report.left_out) == 4
    report = bring(images=FolderImages(photos, follow_links=True))
    assert report.num_images == 9
    assert {each.image_id: each.reason for each in report.left_out} == {
        "blue/up": "a folder that came before",
        "gone.png": "FileNotFoundError: No such file or directory",
    }
    assert read_index_manifest(tmp_path / "index").origin["links"] == "followed"
    index = SearchIndex(tmp_path / "index", model, processor)
    assert index.image("linked/red-circle.png").size == index.image("one.png").size == (32, 32)
    assert counts(bring())[0] == 6, "the guard stays the default"


def test_rows_without_a_stamp_are_not_taken_for_other_files(bring: Indexing, photos: Path, tmp_path: Path) -> None:
    bring()
    layout = read_index_manifest(tmp_path / "index").layout
    early = np.zeros((len(layout.vector_names), layout.width), np.float32)
    early[:, 0] = 1.0
    table = make_table(layout, [(Item("gone.png", "gone.png", ""), early, {})])  # as early exports to Qdrant had them
    write_segment(tmp_path / "index", 90, layout, table, [])
    Image.new("RGB", (57, 41), (9, 99, 30)).save(photos / "new.png")
    assert counts(bring()) == (9, 1, 0, 0, 8)
    bring("fresh")
    found, expected = (rows(tmp_path / name)["new.png"] for name in ("index", "fresh"))
    assert found[0] == expected[0] != ""
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)  # rounded alone otherwise than in a batch
