"""The one door for images: every room that opens one refuses what would start another program."""

import io
import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.captioning.captioner import Reply, Work, caption_images
from holistic_clip_hf.captioning.perspectives import load_perspectives
from holistic_clip_hf.corpus.build import corpus_features
from holistic_clip_hf.evaluation.encoding import encode_images
from holistic_clip_hf.images.decoding import FORMATS, UnreadableImageError, decode_image, open_image, verify_image
from holistic_clip_hf.images.folders import ImageFolder
from holistic_clip_hf.search import FolderImages, index_images
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator


def eps() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "EPS")
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `gs` that comes first and leaves a mark where it is run."""
    mark, folder = tmp_path / "was-run", tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin64c", "gswin32c"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return mark


@pytest.fixture
def kittens(tmp_path: Path) -> Path:
    folder = tmp_path / "kittens"
    folder.mkdir()
    (folder / "kitten.png").write_bytes(eps())
    (folder / "square.png").write_bytes(png())
    return folder


def test_the_mark_is_made_without_the_door(ghostscript: Path) -> None:
    with pytest.raises(OSError):
        Image.open(io.BytesIO(eps())).load()
    assert ghostscript.exists()


def test_an_eps_by_another_name_is_not_opened(ghostscript: Path, kittens: Path) -> None:
    for given in (eps(), kittens / "kitten.png", str(kittens / "kitten.png")):
        with pytest.raises(Image.UnidentifiedImageError):
            open_image(given)
    for row in ({"bytes": eps(), "path": None}, {"bytes": None, "path": str(kittens / "kitten.png")}):
        with pytest.raises(UnreadableImageError):
            decode_image(row)
    with pytest.raises(UnreadableImageError):
        verify_image(eps())
    assert not ghostscript.exists()


def test_training_evaluation_captioner_and_index_leave_it_out(
    ghostscript: Path,
    kittens: Path,
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
) -> None:
    caption = {"perspective": "short", "text": "a kitten", "source": "test"}
    rows = [{"image_id": name, "image": data, "captions": [caption]} for name, data in (("k", eps()), ("s", png()))]
    rows = [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows]
    corpus = Dataset.from_list(rows, features=corpus_features())
    batch = HolisticCLIPCollator(processor, ["short"])(rows)
    assert list(batch["unreadable"]) == ["k"]
    model = make_model(perspectives=["short", "main_object", "style"])
    with pytest.raises(ValueError, match="Row 0: "):
        encode_images(model, processor, corpus, batch_size=2)
    report = index_images(tmp_path / "index", FolderImages(kittens), model, processor)
    assert report.num_images == 1 and [each.image_id for each in report.left_out] == ["kitten.png"]

    asked = []

    class Backend:
        captioner, revision = "listener", "1"

        def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
            for each in work:
                asked.append(each.image_id)
                yield Reply(each.image_id, each.perspectives[0], "A red square.")

    caption_images(ImageFolder(kittens), load_perspectives(None, ["short"]), Backend(), tmp_path / "rows")
    assert asked == ["square.png"]
    assert not ghostscript.exists()


def test_every_format_that_is_taken_is_read() -> None:
    for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"):
        assert name in FORMATS
        file = io.BytesIO()
        Image.new("RGB", (9, 9), "red").save(file, name)
        assert open_image(file.getvalue()).format == name
