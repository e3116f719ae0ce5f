"""Evaluations whose images and texts several processes encode: the same vectors as without, and never stale ones."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation import encoded_folder
from holistic_clip_hf.evaluation.encoded_folder import EncodedFolder
from holistic_clip_hf.evaluation.encoding import encode_images, encode_share
from holistic_clip_hf.evaluation.fingerprints import fingerprint
from holistic_clip_hf.evaluation.retrieval import EmbeddedCorpus, embed_corpus, texts_to_encode
from holistic_clip_hf.locks import InUseError
from holistic_clip_hf.sharding import ALL, Shard

NAMES = ["short", "colour", "shape"]
SHARES, BATCH = 3, 2


@pytest.fixture
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=NAMES)


@pytest.fixture
def rows(corpus: Dataset) -> Dataset:
    """Eight drawings, of which one does not decode: four batches of two."""
    rows = corpus.cast_column("image", ImageFeature(decode=False)).to_list()
    rows[3]["image"] = {"bytes": b"<html>", "path": None}
    return Dataset.from_list(rows, features=corpus.features)


class Shared:
    """An evaluation whose vectors lie in a folder, by a model that counts its batches and may die of one."""

    def __init__(self, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, folder: Path) -> None:
        self.model, self.processor, self.folder = model, processor, folder
        self.calls, self.dies_at = 0, 1_000
        for name in ("get_image_features", "get_text_features"):
            setattr(self, name, self._counted(getattr(model, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _counted(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        def counted(**given: Any) -> Any:
            self.calls += 1
            if self.calls == self.dies_at:
                os._exit(9)
            return encode(**given)

        return counted

    def opened(self, shard: Shard = ALL) -> EncodedFolder:
        return EncodedFolder(self.folder, fingerprint(self.model, self.processor, with_fusion=False), shard)

    def share(self, index: int, rows: Dataset) -> tuple[int, int]:
        texts = texts_to_encode(self.processor, rows, perspectives=NAMES, batch_size=BATCH)
        folder = self.opened(Shard(index, SHARES))
        return encode_share(self, self.processor, [rows], texts, folder, batch_size=BATCH)

    def embed(self, rows: Dataset, encoded: EncodedFolder | None) -> EmbeddedCorpus:
        return embed_corpus(self, self.processor, rows, perspectives=NAMES, batch_size=BATCH, encoded=encoded)


@pytest.fixture
def shared(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path) -> Shared:
    return Shared(model, processor, tmp_path / "encoded")


def assert_same(found: EmbeddedCorpus, expected: EmbeddedCorpus) -> None:
    assert torch.equal(found.branch_embeds, expected.branch_embeds)
    assert (found.captions, found.left_out) == (expected.captions, expected.left_out)
    assert found.text_embeds.keys() == expected.text_embeds.keys()
    assert all(torch.equal(found.text_embeds[text], expected.text_embeds[text]) for text in expected.text_embeds)


def test_shares_make_the_vectors_of_an_evaluation_without(shared: Shared, rows: Dataset) -> None:
    expected = shared.embed(rows, None)
    assert len(expected.branch_embeds) == 7 and len(expected.left_out) == 1
    # Four batches of images; eight short texts, four colours and two shapes in seven.
    assert [shared.share(index, rows) for index in range(SHARES)] == [(4, 11), (4, 11), (3, 11)]
    shared.calls = 0
    assert_same(shared.embed(rows, shared.opened()), expected)
    assert shared.calls == 0, "what the shares encoded was encoded again"


def test_a_share_that_was_killed_goes_on(shared: Shared, rows: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = shared.embed(rows, None)
    monkeypatch.setattr(encoded_folder, "SECONDS_PER_FILE", 0.0)  # a file for each batch
    shared.calls, shared.dies_at = 0, 3
    process = multiprocessing.get_context("fork").Process(target=shared.share, args=(0, rows))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    shared.dies_at = 1_000
    shared.share(0, rows)
    assert shared.calls == 4 - 2  # two of its batches are kept
    for index in (1, 2):
        shared.share(index, rows)
    shared.calls = 0
    assert_same(shared.embed(rows, shared.opened()), expected)
    assert shared.calls == 0


def test_other_weights_and_other_images_are_encoded_anew(shared: Shared, rows: Dataset) -> None:
    for index in range(SHARES):
        shared.share(index, rows)
    other = rows.cast_column("image", ImageFeature(decode=False)).to_list()
    other[0]["image"], other[7]["image"] = other[7]["image"], other[0]["image"]
    swapped, shared.calls = Dataset.from_list(other, features=rows.features), 0
    assert_same(shared.embed(swapped, shared.opened()), shared.embed(swapped, None))
    assert shared.calls == 2 + 11  # the two batches with the swapped images, and then all of them

    with torch.no_grad():
        shared.model.visual_projection.weight.mul_(-1.0)
    shared.calls = 0
    assert_same(shared.embed(rows, shared.opened()), shared.embed(rows, None))
    assert shared.calls == 11 + 11


def test_a_batch_without_a_readable_image_is_kept_too(shared: Shared, rows: Dataset, tmp_path: Path) -> None:
    broken = rows.select([3, 3, 0])
    folder = shared.opened(Shard(0, 2))
    assert encode_share(shared, shared.processor, [broken], [], folder, batch_size=2) == (1, 2)
    found = encode_images(shared, shared.processor, broken, batch_size=2, encoded=shared.opened())
    assert found.rows.tolist() == [2] and len(found.left_out) == 2


def test_a_share_has_one_writer_and_a_folder_of_its_own(shared: Shared, rows: Dataset, tmp_path: Path) -> None:
    with shared.opened(Shard(0, SHARES)).writing():
        shared.share(1, rows)
        with pytest.raises(InUseError, match=f"process {os.getpid()}"):
            shared.share(0, rows)
    (tmp_path / "encoded" / "mine.txt").touch()
    with pytest.raises(ValueError, match="holds mine.txt; expected a new or empty folder, or vectors of an eval"):
        shared.opened()


def test_a_damaged_file_is_named(shared: Shared, rows: Dataset) -> None:
    shared.share(0, rows)
    [path] = shared.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"`encoded` has {path}, which is damaged .*; expected what a share wrote"):
        shared.opened()
