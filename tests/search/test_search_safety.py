"""An index refuses what would spoil it, and is whole after whatever killed the making of it."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.search import DatasetImages, FolderImages, SearchIndex, index_images, verify_index
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


def test_an_index_keeps_to_its_checkpoint(
    bring: Indexing,
    make_model: MakeModel,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    photos: Path,
    tmp_path: Path,
) -> None:
    bring()
    other = make_model(perspectives=NAMES, seed=1)
    renamed = make_model(perspectives=["short", "style", "main_object"])
    background = HolisticCLIPProcessor(processor.image_processor, processor.tokenizer, background=(0, 0, 0))
    half = make_model(perspectives=NAMES).to(torch.bfloat16)
    for one, its_processor in ((other, processor), (renamed, processor), (model, background), (half, processor)):
        with pytest.raises(ValueError, match="made by another checkpoint.*Load that checkpoint.*another directory"):
            SearchIndex(tmp_path / "index", one, its_processor)
        with pytest.raises(ValueError, match="made by another checkpoint"):
            index_images(tmp_path / "index", FolderImages(photos), one, its_processor)
    processor(text=["some words", "a"], padding="max_length", return_tensors="pt")  # leaves its mark on a tokenizer
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = HolisticCLIPModel.from_pretrained(tmp_path / "saved", fusion="routed", attn_implementation="eager")
    loaded = HolisticCLIPProcessor.from_pretrained(tmp_path / "saved")
    assert len(SearchIndex(tmp_path / "index", again, loaded)) == 8  # branches do not depend on the fusion
    assert counts(bring()) == (8, 0, 0, 0, 8)
    bring("fused", vectors="fused")
    with pytest.raises(ValueError, match="made by another checkpoint"):
        weighted = make_model(perspectives=NAMES, fusion="weighted", branch_weights=[1.0, 2.0, 3.0])
        SearchIndex(tmp_path / "fused", weighted, processor)


def test_an_index_keeps_to_its_layout(bring: Indexing, corpus: Dataset, make_model: MakeModel) -> None:
    bring()
    with pytest.raises(ValueError, match="made with vectors='branches', now 'fused'"):
        bring(vectors="fused")
    years = corpus.add_column("year", list(range(8)))
    with pytest.raises(ValueError, match=r"made with columns=\{\}, now \{'year'"):
        bring(images=DatasetImages(years, columns=["year"]))
    with pytest.raises(ValueError, match="`vectors` is 'all'; expected one of branches, fused"):
        bring(vectors="all")
    with pytest.raises(ValueError, match="`lookup` is 'fast'; expected one of auto, exact, ivf, hnsw"):
        bring(lookup="fast")


@pytest.mark.parametrize("fusion", ["routed", "max", "softmax"])
def test_fusions_without_a_vector(
    make_model: MakeModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path, fusion: str
) -> None:
    model = make_model(perspectives=NAMES, fusion=fusion)
    with pytest.raises(ValueError, match=f"fusion='{fusion}', which needs all 3 vectors.*vectors='branches'"):
        index_images(tmp_path / "index", FolderImages(photos), model, processor, vectors="fused")
    with pytest.raises(ValueError, match="calls a branch 'fused'"):
        named = make_model(perspectives=["fused", "b", "c"])
        index_images(tmp_path / "index", FolderImages(photos), named, processor)


def test_a_torn_index_is_refused_and_mended(
    bring: Indexing, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    directory = tmp_path / "index"
    bring()
    whole, victim = rows(directory), "segments/00000001.arrow"
    for damage in (lambda good: good[: len(good) // 2], lambda good: b"", None):
        path = directory / victim
        path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=f"{path.name} is .*Run the indexing again"):
            SearchIndex(directory, model, processor)
        before = {each.file for each in read_index_manifest(directory).segments}
        assert counts(bring()) == (8, 3, 0, 0, 5)
        assert rows(directory) == whole
        (victim,) = {each.file for each in read_index_manifest(directory).segments} - before
    assert verify_index(directory) == 3
    path, good = directory / victim, (directory / victim).read_bytes()
    path.write_bytes(good[:-40] + bytes([good[-40] ^ 1]) + good[-39:])
    for opened in (lambda: SearchIndex(directory, model, processor), lambda: verify_index(directory)):
        with pytest.raises(ValueError, match="changed since it was written. Run the indexing again"):
            opened()


def test_one_at_a_time(bring: Indexing, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    with FileLock(tmp_path / "index" / ".lock"), pytest.raises(TimeoutError, match="Another process is indexing"):
        bring()
    assert bring().num_images == 8


def test_the_image_behind_a_result(
    bring: Indexing, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path
) -> None:
    bring()
    index = SearchIndex(tmp_path / "index", model, processor)
    assert index.image_ids == sorted(index.image_ids) and len(index.image_ids) == 8
    assert np.array_equal(index.image("red/red-square.png"), Image.open(photos / "red" / "red-square.png"))
    secret = tmp_path / "secret.png"
    Image.new("RGB", (1, 1)).save(secret)
    for image_id in ("../secret.png", str(secret), "nothing.png"):
        with pytest.raises(KeyError, match="no image"):
            index.image(image_id)
    (photos / "red" / "red-square.png").unlink()
    (photos / "red" / "red-square.png").symlink_to(secret)
    with pytest.raises(ValueError, match="cannot be read any more"):
        index.image("red/red-square.png")
    found = json.loads((tmp_path / "index" / "index.json").read_text())
    assert found["origin"] == {"kind": "folder", "root": str(photos)}


SLOWLY = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from transformers import AutoModel, AutoProcessor
import holistic_clip_hf
from holistic_clip_hf.search import FolderImages, index_images

class Slow(FolderImages):
    def read(self, image_id):
        time.sleep(float(sys.argv[4]))
        return super().read(image_id)

checkpoint, photos, index = map(Path, sys.argv[1:4])
model, processor = AutoModel.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
print("ready", flush=True)
index_images(index, Slow(photos), model, processor, rows_per_segment=3, batch_size=3, lookup="ivf")
"""


def killed(checkpoint: Path, photos: Path, index: Path, ready: Callable[[], bool], seconds: float) -> bool:
    """Index in another process and kill it with -9 as soon as it is `ready`; whether it was still at work."""
    command = [sys.executable, "-c", SLOWLY, *map(str, (checkpoint, photos, index)), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        limit = time.monotonic() + 120
        while process.poll() is None and not ready() and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


@pytest.fixture
def checkpoint(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def segments(index: Path) -> list[Path]:
    return sorted((index / "segments").glob("*.arrow"))


def test_kill_while_indexing(bring: Indexing, photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    (photos / "red" / "broken.png").write_bytes(b"no image")
    bring("never_killed", lookup="ivf")
    index = tmp_path / "index"
    assert killed(checkpoint, photos, index, lambda: len(segments(index)) == 2, seconds=0.3)
    assert len(segments(index)) == 2 and not (index / "index.json").exists()
    report = bring(lookup="ivf")
    assert (report.num_images, report.added, len(report.left_out)) == (8, 8, 1)
    expected = contents(tmp_path / "never_killed")
    found = contents(index)
    assert found.keys() == expected.keys() and found == expected


# Forks once everything is imported and loaded, for each line a process that is killed after so many seconds.
AGAIN_AND_AGAIN = (
    SLOWLY.replace("index_images(", "run = lambda: index_images(")
    + """
import os, signal
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    print(os.WIFSIGNALED(os.waitpid(child, 0)[1]), flush=True)
"""
)


@pytest.mark.slow
def test_kills_at_random_moments(bring: Indexing, photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Also while an existing index is brought up to date: it can be opened at any moment."""
    draw, index, num_killed = random.Random(0), tmp_path / "index", 0
    bring(lookup="ivf")
    for number in range(40):
        Image.new("RGB", (32, 32), (number, 200, 90)).save(photos / f"new-{number}.png")
    (photos / "red" / "red-square.png").unlink()
    command = [sys.executable, "-c", AGAIN_AND_AGAIN, *map(str, (checkpoint, photos, index)), "0.05"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(20):
            print(draw.uniform(0, 0.8), file=process.stdin, flush=True)
            num_killed += process.stdout.readline() == "True\n"
            assert len(rows(index)) in (8, 47) and verify_index(index)
        process.stdin.close()
    assert num_killed > 3
    bring(lookup="ivf")
    bring("never_killed", lookup="ivf")
    assert rows(index).keys() == rows(tmp_path / "never_killed").keys()
    for name, (stamp, vectors) in rows(tmp_path / "never_killed").items():
        assert rows(index)[name][0] == stamp
        np.testing.assert_allclose(rows(index)[name][1], vectors, atol=1e-6)
    assert not list(index.rglob("*.partial"))


def test_pictures_of_others_are_never_removed(bring: Indexing, photos: Path, tmp_path: Path) -> None:
    for folder, name in (("segments", "mine.png"), ("neighbours", "mine.png"), ("segments", "mine.arrow")):
        (photos / folder).mkdir(exist_ok=True)
        (photos / folder / name).write_bytes(b"mine")
    before = contents(photos)
    with pytest.raises(ValueError, match="`output` is .*photos, which is the source itself"):
        bring("photos")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "segments").mkdir()
    (tmp_path / "other" / "segments" / "cat.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="which holds segments/cat.png; expected a new or empty folder, or an index"):
        bring("other")
    bring()
    for name in ("segments/mine.arrow", "segments/00000001.png", "neighbours/mine.faiss", "notes.txt"):
        (tmp_path / "index" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "index" / name).write_bytes(b"mine")
    (tmp_path / "index" / "segments" / "00000099.arrow").write_bytes(b"of a killed run")
    next(photos.rglob("*.png")).unlink()
    bring()
    kept = [name for name, content in contents(tmp_path / "index").items() if content == b"mine"]
    assert len(kept) == 4 and not (tmp_path / "index" / "segments" / "00000099.arrow").exists()
    assert contents(photos).keys() < before.keys() and len(contents(photos)) == len(before) - 1


@pytest.mark.parametrize("content", ['{"title": "my gallery"}', "[1]", "{"])
def test_a_gallery_is_not_an_index(bring: Indexing, tmp_path: Path, content: str) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "index.json").write_text(content)
    with pytest.raises(ValueError, match="`output` is .*gallery, which holds index.json; expected a new or empty"):
        bring("gallery")
    assert contents(tmp_path / "gallery") == {"index.json": content.encode()}


def test_a_damaged_manifest_of_an_index_is_still_told(bring: Indexing, tmp_path: Path) -> None:
    bring()
    (tmp_path / "index" / "index.json").write_text("{")
    (tmp_path / "index" / ".lock").unlink()  # as a copy of the folder may lack it
    with pytest.raises(ValueError, match="index.json is damaged.*Delete it and run the indexing again"):
        bring()
    (tmp_path / "index" / "index.json").unlink()
    assert counts(bring())[0] == 8
