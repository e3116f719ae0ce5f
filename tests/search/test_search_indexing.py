"""An index follows its images; it survives what kills it, and refuses what would spoil it."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf import storage as atomic
from holistic_clip_hf.search import FolderImages, SearchIndex, estimate_bytes
from holistic_clip_hf.search import segments as segments_module
from holistic_clip_hf.search.store import read_index_manifest
from photo_index import NAMES, Indexing, contents, counts, indexing, rows, write_photos

MakeModel = Callable[..., HolisticCLIPModel]


@pytest.fixture
def photos(corpus: Dataset, tmp_path: Path) -> Path:
    return write_photos(corpus, tmp_path / "photos")


@pytest.fixture
def model(make_model: MakeModel) -> HolisticCLIPModel:
    return make_model(perspectives=NAMES)


@pytest.fixture
def bring(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path) -> Indexing:
    return indexing(photos, tmp_path, model, processor)


def test_an_index_follows_its_folder(bring: Indexing, photos: Path, tmp_path: Path) -> None:
    assert counts(bring()) == (8, 8, 0, 0, 0)
    first = contents(tmp_path / "index")
    assert counts(bring()) == (8, 0, 0, 0, 8)
    assert contents(tmp_path / "index") == first  # not a byte is written
    before = rows(tmp_path / "index")

    (photos / "red" / "red-square.png").unlink()
    (photos / "green" / "new.png").write_bytes((photos / "green" / "green-circle.png").read_bytes())
    Image.new("RGB", (32, 32), "purple").save(photos / "blue" / "blue-square.png")
    os.rename(photos / "yellow", photos / "gold")
    report = bring()
    assert counts(report) == (8, 3, 1, 3, 4)
    after = rows(tmp_path / "index")
    assert after.keys() == {path.relative_to(photos).as_posix() for path in photos.rglob("*.png")}
    assert after["red/red-circle.png"] == before["red/red-circle.png"]
    assert after["blue/blue-square.png"][1] != before["blue/blue-square.png"][1]
    np.testing.assert_allclose(after["gold/yellow-circle.png"][1], before["yellow/yellow-circle.png"][1], atol=1e-6)

    bring("fresh")
    fresh = rows(tmp_path / "fresh")
    assert {name: stamp for name, (stamp, _) in fresh.items()} == {name: stamp for name, (stamp, _) in after.items()}
    for name, (_, vectors) in fresh.items():
        np.testing.assert_allclose(vectors, after[name][1], atol=1e-6)


def test_many_small_changes_leave_few_segments(
    bring: Indexing, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "MOST_SMALL", 3)
    for number in range(9):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(photos / f"new-{number}.png")
        report = bring(rows_per_segment=4)
    assert report.num_images == 17 and len(read_index_manifest(tmp_path / "index").segments) <= 7
    assert rows(tmp_path / "index").keys() == {path.relative_to(photos).as_posix() for path in photos.rglob("*.png")}
    assert {name.split("/")[0] for name in contents(tmp_path / "index")} == {"index.json", "segments"}
    assert len(contents(tmp_path / "index")) == 1 + len(read_index_manifest(tmp_path / "index").segments)


def test_what_cannot_be_read_is_told(bring: Indexing, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "empty.png").touch()
    (photos / "text.jpg").write_text("no image")
    (photos / "cut.png").write_bytes((photos / "red" / "red-square.png").read_bytes()[:60])
    Image.new("RGB", (2_000, 1)).save(photos / "thread.png")
    Image.new("L", (1, 1)).save(photos / "dot.png")
    Image.new("CMYK", (9, 9)).save(photos / "print.jpg")
    Image.new("I;16", (9, 9)).save(photos / "deep.png")
    (photos / "link.png").symlink_to(photos / "dot.png")
    (photos / "notes.txt").write_text("x")
    report = bring()
    reasons = {each.image_id: each.reason for each in report.left_out}
    assert reasons.keys() == {"empty.png", "text.jpg", "cut.png", "thread.png", "link.png"}
    assert reasons["text.jpg"] == "UnidentifiedImageError: cannot identify image file"
    assert reasons["thread.png"].startswith("too narrow: 2,000 x 1 pixels; one side is over 100 times the other")
    assert report.others == {".txt": 1} and report.num_images == 11
    for line in ("11 images", "5 left out", "left out: cut.png: ", "ignored, not images: 1 .txt"):
        assert line in str(report)
    read = FolderImages.read
    asked: list[str] = []
    monkeypatch.setattr(FolderImages, "read", lambda self, image_id: asked.append(image_id) or read(self, image_id))
    assert bring().left_out == report.left_out and not asked  # what does not decode is not tried again
    shutil.copy(photos / "red" / "red-circle.png", photos / "cut.png")
    assert counts(bring()) == (12, 1, 0, 0, 11)


def test_an_index_by_earlier_rules_is_brought_up_to_date(bring: Indexing, photos: Path, tmp_path: Path) -> None:
    """What was left out is read again, and what was white or black is encoded anew; all else is kept."""
    levels = np.arange(81, dtype=np.int32).reshape(9, 9) * 700
    Image.fromarray(levels).save(photos / "deep.tif")
    (photos / "cut.png").write_bytes((photos / "red" / "red-square.png").read_bytes()[:60])
    bring()
    path = tmp_path / "index" / "index.json"
    fresh, manifest = rows(tmp_path / "index"), json.loads(path.read_text())
    assert manifest.pop("reading") == 1
    path.write_text(json.dumps(manifest))
    asked: list[str] = []
    read = FolderImages.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderImages, "read", lambda self, place: asked.append(place) or read(self, place))
        report = bring()
        assert sorted(asked) == ["cut.png", "deep.tif", "deep.tif"]  # its mode is looked at, then it is encoded
        asked.clear()
        assert bring().left_out == report.left_out and not asked
    assert rows(tmp_path / "index") == fresh and [each.image_id for each in report.left_out] == ["cut.png"]


def test_a_file_that_could_not_be_read_is_tried_again(bring: Indexing, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FolderImages.read

    def fail(self: FolderImages, image_id: str) -> bytes:
        if "circle" in image_id:
            raise PermissionError(13, "Permission denied")
        return read(self, image_id)

    with monkeypatch.context() as patch:
        patch.setattr(FolderImages, "read", fail)
        report = bring()
    assert (report.num_images, len(report.left_out)) == (4, 4)
    assert "PermissionError" in report.left_out[0].reason
    assert counts(bring()) == (8, 4, 0, 0, 4)


def test_images_that_a_model_cannot_see(bring: Indexing, model: HolisticCLIPModel, tmp_path: Path) -> None:
    model.visual_projection.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="None of 8 images can be indexed.*blue-circle.png .*not finite"):
        bring()
    with pytest.raises(ValueError, match="a half-built index.*Run the indexing"):
        SearchIndex(tmp_path / "index", model, None)


def test_an_empty_folder_changes_nothing(bring: Indexing, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "a.txt").touch()
    with pytest.raises(ValueError, match=r"in /.*nothing; 0 left out, other files are 1 \.txt\. Check the path"):
        bring(images=FolderImages(tmp_path / "nothing"))
    bring()
    before = contents(tmp_path / "index")
    shutil.rmtree(photos)
    photos.mkdir()  # as a disk that is not mounted looks
    with pytest.raises(ValueError, match="stays as it is"):
        bring()
    assert contents(tmp_path / "index") == before


def test_an_index_of_other_images_is_not_replaced_by_mistake(
    bring: Indexing, photos: Path, corpus: Dataset, tmp_path: Path
) -> None:
    bring()
    before = contents(tmp_path / "index")
    others = write_photos(corpus, tmp_path / "others")  # the same names, other pictures
    for number, path in enumerate(sorted(others.rglob("*.png"))):
        Image.new("RGB", (32, 32), (number, 20, 30)).save(path)
    with pytest.raises(ValueError, match=r"holds an index of .*photos; expected .* for .*others.*add --replace"):
        bring(images=FolderImages(others))
    assert contents(tmp_path / "index") == before
    assert counts(bring(images=FolderImages(others), replace=True)) == (8, 0, 8, 0, 0)
    others.rename(tmp_path / "moved")  # the same images elsewhere
    assert counts(bring(images=FolderImages(tmp_path / "moved"))) == (8, 0, 0, 0, 8)
    assert read_index_manifest(tmp_path / "index").origin["root"] == str(tmp_path / "moved")


def test_files_that_were_copied_are_known_by_their_contents(
    bring: Indexing, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As git checks files out: at other times. One of them has other pixels and the size that it had."""
    bring()
    before = rows(tmp_path / "index")
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        os.utime(path, (number, number))
    assert counts(bring()) == (8, 0, 0, 0, 8)
    after = rows(tmp_path / "index")
    assert {name: vectors for name, (_, vectors) in after.items()} == {name: row[1] for name, row in before.items()}
    with monkeypatch.context() as patched:
        patched.setattr(FolderImages, "read", None)  # nothing is read a second time
        assert counts(bring()) == (8, 0, 0, 0, 8)
    assert rows(tmp_path / "index") == after
    clone = Path(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-clone", copy_function=shutil.copyfile))
    with monkeypatch.context() as patched:
        patched.setattr("holistic_clip_hf.search.segments.embed_each", None)  # nor is anything encoded
        assert counts(bring(clone / "index", images=FolderImages(clone / "photos"))) == (8, 0, 0, 0, 8)
    target = photos / "red" / "red-square.png"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1  # behind the pixels
    target.write_bytes(content)
    assert counts(bring()) == (8, 0, 1, 0, 7)


def test_an_index_lies_apart_from_its_images(bring: Indexing, photos: Path) -> None:
    for place in ("photos", "photos/red/index", "."):
        with pytest.raises(ValueError, match="`output` is .*; expected a folder apart from it"):
            bring(place)
    assert not (photos / "red" / "index").exists()


@pytest.mark.parametrize("option", ["batch_size", "rows_per_segment"])
def test_numbers_of_images_are_positive(bring: Indexing, tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"`{option}` is -2; expected 1 or more"):
        bring(**{option: -2})
    assert not (tmp_path / "index").exists()


def test_an_interrupted_run_keeps_what_it_encoded(
    bring: Indexing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = FolderImages.read, list[str]()

    def stop(self: FolderImages, image_id: str) -> bytes:
        asked.append(image_id)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return read(self, image_id)

    with monkeypatch.context() as patch:
        patch.setattr(FolderImages, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            bring(rows_per_segment=100, batch_size=2)
    encoded: list[str] = []
    monkeypatch.setattr(FolderImages, "read", lambda self, image_id: encoded.append(image_id) or read(self, image_id))
    assert counts(bring(rows_per_segment=100, batch_size=2))[0] == 8
    assert len(encoded) == 4, "two batches of two were kept"


def test_names_that_are_not_utf8_are_told_at_once(bring: Indexing, corpus: Dataset, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_photos(corpus, folder)
    with pytest.raises(ValueError, match=r"`images` is '.*caf\\udce9', whose name is not UTF-8"):
        FolderImages(folder)
    with pytest.raises(ValueError, match=r"`index` is '.*caf\\udce9-index', whose name is not UTF-8"):
        bring(f"{folder.name}-index")


def test_sizes_are_told_beforehand(bring: Indexing, model: HolisticCLIPModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert estimate_bytes(model.config, 1_000) == 1_000 * (80 + 3 * 16 * 4)
    assert estimate_bytes(model.config, 1_000, vectors="fused") == 1_000 * (80 + 16 * 4)
    million = [estimate_bytes(model.config, number) / number for number in (1_000_000, 1_000_001)]
    assert million[0] == 272 and million[1] > 272 + 4 * 16 * 2
    with pytest.raises(ValueError, match="`vectors` is 'both'"):
        estimate_bytes(model.config, 1, vectors="both")
    full = shutil.disk_usage("/")._replace(free=1_000)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match="0 MB free; the index needs"):
        bring()
