"""The one door for images: every room that opens one refuses what would start another program."""

import ast
import base64
import importlib
import io
import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch.nn import functional as F
from transformers import image_utils

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor, processing_holistic_clip
from holistic_clip_hf.captioning.captioner import Reply, Work, caption_images
from holistic_clip_hf.captioning.perspectives import load_perspectives
from holistic_clip_hf.corpus.build import corpus_features
from holistic_clip_hf.evaluation.encoding import EncodedImages, encode_images
from holistic_clip_hf.evaluation.records import Record, capture_provenance
from holistic_clip_hf.evaluation.segmentation import PixelClasses, evaluate_segmentation
from holistic_clip_hf.images.decoding import FORMATS, UnreadableImageError, decode_image, open_image, verify_image
from holistic_clip_hf.images.folders import ImageFolder
from holistic_clip_hf.images.tables import undecoded
from holistic_clip_hf.search import FolderImages, index_images
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator

ROOT = Path(__file__).resolve().parents[2]
result_grid = importlib.import_module("holistic_clip_hf.visualization.result_grid")


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
    for given in (eps(), kittens / "kitten.png", str(kittens / "kitten.png"), io.BytesIO(eps())):
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
    assert list(batch["left_out"]) == ["k"]
    model = make_model(perspectives=["short", "main_object", "style"])
    encoded = encode_images(model, processor, corpus, batch_size=2)
    assert list(encoded.left_out) == ["k"] and encoded.rows.tolist() == [1]
    report = index_images(tmp_path / "index", FolderImages(kittens), model, processor)
    assert report.num_images == 1 and [each.image_id for each in report.left_out] == ["kitten.png"]

    asked = []

    class Backend:
        captioner, revision, weights, settings = "listener", "1", "", {}

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


@pytest.mark.parametrize("column", ["image", "mask"])
def test_segmentation_leaves_it_out_by_its_row(
    ghostscript: Path,
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    column: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    features = Features({"image": ImageFeature(), "mask": ImageFeature()})
    row = {"image": {"bytes": png(), "path": None}, "mask": {"bytes": grey(), "path": None}}
    dataset = Dataset.from_list([row, {**row, column: {"bytes": eps(), "path": "kitten.png"}}], features=features)
    model = make_model(perspectives=["short", "main_object", "style"])
    embeds = F.normalize(torch.ones(2, model.config.projection_dim), dim=-1)
    provenance = capture_provenance(model="tiny", dataset="kittens", split="test", seed=0)

    def measure(rows: Dataset) -> list[Record]:
        classes = PixelClasses(["sky", "dog"], embeds)
        return evaluate_segmentation(model, processor, rows, classes=classes, provenance=provenance)

    found, expected = measure(dataset), measure(dataset.select([0]))
    assert [record.value for record in found] == [record.value for record in expected]
    assert [dict(record.counts) for record in found] == [{**each.counts, "n_unusable": 1} for each in expected]
    said = "its mask: " if column == "mask" else ""
    assert f"row 1 is left out: {said}the format PostScript is not read; " in caplog.text
    with pytest.raises(ValueError, match="None of 1 rows can be used, such as row 0: .*PostScript is not read"):
        measure(dataset.select([1]))
    assert not ghostscript.exists()


def grey() -> bytes:
    file = io.BytesIO()
    Image.new("L", (40, 40), 1).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_rows_that_stay_decoded_go_through_the_door(ghostscript: Path, kittens: Path, kind: str) -> None:
    stored = {"bytes": {"bytes": eps(), "path": None}, "path": {"bytes": None, "path": str(kittens / "kitten.png")}}
    corpus = Dataset.from_list([{"image": stored[kind]}], features=Features({"image": ImageFeature()}))
    for dataset in (
        corpus.with_format("numpy"),
        corpus.with_transform(lambda rows: rows),
        corpus.cast_column("image", ImageFeature(mode="RGB")),
        corpus.to_iterable_dataset().cast_column("image", ImageFeature(mode="RGB")),
    ):
        with pytest.raises(UnreadableImageError):
            next(iter(undecoded(dataset)))
    assert not ghostscript.exists()


def test_the_picture_of_results_goes_through_the_door(
    ghostscript: Path,
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The images are encoded before they are drawn, which is refused already; what draws them alone is looked at."""
    caption = {"perspective": "short", "text": "a kitten", "source": "test"}
    row = {"image_id": "k", "image": {"bytes": eps(), "path": None}, "captions": [caption]}
    model = make_model(perspectives=["short", "main_object", "style"])
    encoded = EncodedImages(F.normalize(torch.ones(1, 3, model.config.projection_dim), dim=-1), torch.tensor([0]))
    monkeypatch.setattr(result_grid, "encode_images", lambda *args, **options: encoded)
    with pytest.raises(UnreadableImageError):
        result_grid.draw_results(
            model,
            processor,
            Dataset.from_list([row], features=corpus_features()),
            tmp_path / "grid.png",
            perspectives=["short"],
            seed=0,
        )
    assert not ghostscript.exists()


def test_the_processor_refuses_it(
    ghostscript: Path, kittens: Path, processor: HolisticCLIPProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kittens / "kitten.eps").write_bytes(eps())
    monkeypatch.setattr(image_utils.httpx, "get", lambda *args, **options: SimpleNamespace(content=eps()))
    encoded = base64.b64encode(eps()).decode()
    for given in (
        str(kittens / "kitten.png"),
        str(kittens / "kitten.eps"),
        encoded,
        f"data:image/png;base64,{encoded}",
    ):
        for images in (given, [given], [[given]]):
            with pytest.raises(ValueError, match="`images` has .* which is not an image; expected the path"):
                processor(images=images)
    with pytest.raises(ValueError, match="which is not an image"):
        processor(images="https://example.org/kitten.png")
    assert not ghostscript.exists()


def test_the_processor_takes_paths_addresses_and_base64_as_before(
    kittens: Path, processor: HolisticCLIPProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = kittens / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    monkeypatch.setattr(image_utils.httpx, "get", lambda *args, **options: SimpleNamespace(content=path.read_bytes()))
    encoded = base64.b64encode(path.read_bytes()).decode()
    for given in (str(path), encoded, f"data:image/png;base64,{encoded}", "https://example.org/turned.png"):
        expected = processor(images=[image_utils.load_image(given)], return_tensors="pt")["pixel_values"]
        assert processor(images=given, return_tensors="pt")["pixel_values"].equal(expected)


def test_the_page_refuses_it_as_an_upload(ghostscript: Path, kittens: Path) -> None:
    pytest.importorskip("gradio")
    uploads = importlib.import_module("holistic_clip_hf.demo.uploads")
    with pytest.raises(uploads.RefusedUploadError, match="not an image that can be read here"):
        uploads.read_upload(str(kittens / "kitten.png"))
    assert not ghostscript.exists()


def test_one_list_of_formats_holds_for_what_travels_too() -> None:
    assert processing_holistic_clip.FORMATS == FORMATS


def test_no_other_file_opens_images() -> None:
    """Pillow's `open` outside the door, and transformers' `load_image` on what is not open yet."""
    found = set()
    for path in [*ROOT.glob("holistic_clip_hf/**/*.py"), *ROOT.glob("training/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and opens(node.func):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"holistic_clip_hf/images/decoding.py", "holistic_clip_hf/processing_holistic_clip.py"}


def opens(called: Any) -> bool:
    text = ast.unparse(called)
    return text.endswith(("Image.open", "pillow.open", "load_image", "load_images", "imread"))
