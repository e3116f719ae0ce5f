"""Indexes encoded in shares: the same bytes as without, whoever was killed."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.locks import InUseError
from holistic_clip_hf.search import FolderImages, SearchIndex
from holistic_clip_hf.search.indexing import index_share
from holistic_clip_hf.search.store import read_index_manifest
from holistic_clip_hf.sharding import Shard, hold_shard
from photo_index import NAMES, Indexing, contents, indexing, write_photos

SHARES, ROWS = 3, 2


@pytest.fixture
def photos(corpus: Dataset, tmp_path: Path) -> Path:
    """Eight drawings, two more, and a file that cannot be decoded. Six segments of two."""
    folder = write_photos(corpus, tmp_path / "photos")
    for number in range(2):
        Image.new("RGB", (32, 32), (90, number * 90, 30)).save(folder / f"more-{number}.png")
    (folder / "broken.png").write_bytes(b"<html>")
    return folder


@pytest.fixture
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=NAMES)


@pytest.fixture
def bring(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path) -> Indexing:
    whole = indexing(photos, tmp_path, model, processor)
    return lambda directory, **options: whole(directory, rows_per_segment=ROWS, batch_size=2, **options)


@pytest.fixture
def share(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path
) -> Callable[..., tuple[int, int]]:
    def encode(index: int, images: FolderImages | None = None, directory: str = "shared") -> tuple[int, int]:
        options = {"shard": Shard(index, SHARES), "rows_per_segment": ROWS, "batch_size": 2}
        return index_share(tmp_path / directory, images or FolderImages(photos), model, processor, **options)

    return encode


class Counting(FolderImages):
    """A folder that counts what is read of it, or dies of it."""

    reads = 0
    dies_after = 1_000

    def read(self, place: str) -> bytes:
        self.reads += 1
        if self.reads > self.dies_after:
            os._exit(9)
        return super().read(place)


def test_shares_make_the_bytes_of_an_index_without(
    bring: Indexing, share: Callable[..., tuple[int, int]], photos: Path, tmp_path: Path
) -> None:
    report = bring("whole")
    assert [share(index) for index in (2, 0, 1)] == [(2, 6)] * 3
    with pytest.raises(ValueError, match="half-built index"):
        read_index_manifest(tmp_path / "shared")
    images = Counting(photos)
    assert str(bring("shared", images=images)) == str(report) and report.num_images == 10
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    assert images.reads == 0, "what the shares encoded was encoded again"


def test_new_images_of_an_index_are_encoded_in_shares(
    bring: Indexing,
    share: Callable[..., tuple[int, int]],
    photos: Path,
    tmp_path: Path,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
) -> None:
    for directory in ("whole", "shared"):
        bring(directory)
    (photos / "red" / "red-square.png").unlink()
    for number in range(5):
        Image.new("RGB", (32, 32), (number * 40, 0, 90)).save(photos / f"new-{number}.png")
    bring("whole")
    for index in range(SHARES):
        share(index)
        # What is being encoded is not found yet, and what was removed still is.
        assert len(SearchIndex(tmp_path / "shared", model, processor)) == 10
    bring("shared")
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_a_share_that_was_killed_goes_on(
    bring: Indexing, share: Callable[..., tuple[int, int]], photos: Path, tmp_path: Path
) -> None:
    bring("whole")
    dying, again = Counting(photos), Counting(photos)
    dying.dies_after = 3  # in its second segment
    process = multiprocessing.get_context("fork").Process(target=share, args=(0, dying))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    share(0, again)
    assert again.reads == ROWS  # the first is kept
    share(1)
    share(2)
    bring("shared")
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_what_changed_since_a_share_was_encoded_is_encoded_again(
    bring: Indexing, share: Callable[..., tuple[int, int]], photos: Path, tmp_path: Path
) -> None:
    share(0)
    changed = min(photos.rglob("*.png"))
    assert changed.parent.name == "blue"
    Image.new("RGB", (32, 32), "purple").save(changed)
    images = Counting(photos)
    share(0, images)
    assert images.reads >= ROWS
    for index in (1, 2):
        share(index)
    bring("shared")
    bring("whole")
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_an_index_is_not_finished_while_a_share_is_encoded(bring: Indexing, tmp_path: Path) -> None:
    with hold_shard(tmp_path / "shared", Shard(1, 2)), pytest.raises(InUseError, match="Another process is indexing"):
        bring("shared")
