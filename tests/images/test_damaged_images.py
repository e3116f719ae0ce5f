"""400 damaged images: no traceback and no hang, and each that does not decode is left out by its id, by every reader.

Bits are flipped, spans are zeroed or missing, and ends are cut, in files of each format.
"""

import importlib
import io
import random
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image, features

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.captioning.captioner import Reply, Work, caption_images
from holistic_clip_hf.captioning.perspectives import load_perspectives
from holistic_clip_hf.captioning.store import CaptionStore
from holistic_clip_hf.corpus.build import corpus_features, load_corpus, read_manifest
from holistic_clip_hf.corpus.card import CorpusFacts
from holistic_clip_hf.corpus.from_sources import build_from_sources
from holistic_clip_hf.evaluation.encoding import encode_images
from holistic_clip_hf.images.decoding import UnreadableImageError, read_image
from holistic_clip_hf.images.folders import ImageFolder
from holistic_clip_hf.processing_holistic_clip import on_background
from holistic_clip_hf.search import FolderImages, index_images
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator

COUNT, MOST_SECONDS = 400, 5.0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


def sources() -> dict[str, bytes]:
    """A file of each format, those in several modes and with notes among them."""
    noise = np.random.default_rng(0).integers(0, 256, (36, 48, 3), dtype=np.uint8)
    image, exif = Image.fromarray(noise), Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    drawn: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("JPEG", image, {"exif": exif}),
        ("PNG", image.convert("RGBA"), {"exif": exif}),
        ("PNG", image.quantize(16), {}),
        ("PNG", deep, {}),
        ("GIF", image.quantize(64), {"save_all": True, "append_images": [image.quantize(8)]}),
        ("WEBP", image, {"exif": exif}),
        ("BMP", image, {}),
        ("TIFF", image, {"compression": "tiff_lzw"}),
        ("TIFF", Image.fromarray(noise[..., 0].astype(np.float32)), {}),
        ("PPM", image, {}),
        ("MPO", image, {"save_all": True, "append_images": [image]}),
    ]
    optional = {"JPEG2000": "jpg_2000", "AVIF": "avif"}
    drawn += [(name, image, {}) for name, needed in optional.items() if features.check(needed)]
    found = {}
    for number, (name, each, options) in enumerate(drawn):
        file = io.BytesIO()
        each.save(file, name, **options)
        found[f"{name.lower()}{number}"] = file.getvalue()
    return found


def flip(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.choice((1, 3, 20))):
        # Half of the flips are in the head, where sizes and tables are.
        place = draw.randrange(len(data) if draw.random() < 0.5 else min(len(data), 64))
        data[place] ^= 1 << draw.randrange(8)
    return data


def cut(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data))]


def blank(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(data))
    data[start : start + 40] = bytes(len(data[start : start + 40]))
    return data


def without_a_span(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.randrange(1, 60) :]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of them, and one sound image, so that there is something to read."""
    folder = tmp_path_factory.mktemp("damaged") / "photos"
    folder.mkdir()
    draw, whole = random.Random(0), list(sources().items())
    ways = (flip, flip, cut, blank, without_a_span)
    for number in range(COUNT):
        name, data = whole[number % len(whole)]
        (folder / f"{number:03}-{name}.png").write_bytes(ways[number % len(ways)](bytearray(data), draw))
    Image.new("RGB", (40, 40), "red").save(folder / "sound.png")
    return folder


@pytest.fixture(scope="module")
def unreadable(damaged: Path) -> set[str]:
    """Ids of those that do not decode; nothing else than one error with a reason comes of any, in seconds."""
    found = set()
    for path in sorted(damaged.iterdir()):
        start = time.perf_counter()
        try:
            on_background(read_image(path.read_bytes()))
        except UnreadableImageError as error:
            assert str(error) and "\n" not in str(error)
            found.add(path.name)
        assert time.perf_counter() - start < MOST_SECONDS, path.name
    return found


def test_many_do_not_decode_and_some_do(unreadable: set[str]) -> None:
    assert COUNT // 4 < len(unreadable) < COUNT


def test_the_processor_refuses_the_same_in_a_sentence(
    damaged: Path, unreadable: set[str], processor: HolisticCLIPProcessor
) -> None:
    refused = set()
    for path in sorted(damaged.iterdir()):
        try:
            processor(images=str(path))
        except ValueError as error:
            assert str(error).startswith(("`images` has", "The image has", "Image 0 has"))
            refused.add(path.name)
    assert refused == unreadable


def test_the_page_refuses_the_same_in_a_sentence(damaged: Path, unreadable: set[str]) -> None:
    pytest.importorskip("gradio")
    uploads = importlib.import_module("holistic_clip_hf.demo.uploads")
    refused = set()
    for path in sorted(damaged.iterdir()):
        try:
            uploads.read_upload(str(path))
        except uploads.RefusedUploadError:
            refused.add(path.name)
    assert refused == unreadable


def test_evaluation_leaves_them_out(
    damaged: Path,
    unreadable: set[str],
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
) -> None:
    paths = sorted(damaged.iterdir())
    rows = [
        {"image_id": path.name, "image": {"bytes": path.read_bytes(), "path": None}, "captions": []} for path in paths
    ]
    model = make_model(perspectives=["short", "main_object", "style"])
    dataset = Dataset.from_list(rows, features=corpus_features())
    found = encode_images(model, processor, dataset, batch_size=64)
    assert found.left_out.keys() == unreadable
    assert len(found.branch_embeds) == COUNT + 1 - len(unreadable)


def test_training_leaves_them_out(damaged: Path, unreadable: set[str], processor: HolisticCLIPProcessor) -> None:
    captions = [{"perspective": "short", "text": "a photo"}]
    rows = [
        {"image_id": path.name, "image": {"bytes": path.read_bytes(), "path": None}, "captions": captions}
        for path in sorted(damaged.iterdir())
    ]
    batch = HolisticCLIPCollator(processor, ["short"])(rows)
    assert batch["left_out"].keys() == unreadable
    assert batch["pixel_values"].isfinite().all()
    assert int(batch["caption_mask"].sum()) == COUNT + 1 - len(unreadable)


def test_the_index_leaves_them_out(
    damaged: Path,
    unreadable: set[str],
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
) -> None:
    model = make_model(perspectives=["short", "main_object", "style"])
    report = index_images(tmp_path / "index", FolderImages(damaged), model, processor)
    assert {each.image_id for each in report.left_out} == unreadable
    assert all(each.reason for each in report.left_out)
    assert report.num_images == COUNT + 1 - len(unreadable)


def test_the_captioner_leaves_them_out(damaged: Path, unreadable: set[str], tmp_path: Path) -> None:
    class Backend:
        captioner, revision, weights, settings = "listener", "1", "", {}

        def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
            for each in work:
                yield Reply(each.image_id, each.perspectives[0], "A photo of a dog in snow.")

    caption_images(ImageFolder(damaged), load_perspectives(None, ["short"]), Backend(), tmp_path / "rows")
    failed = {row.image_id for row in CaptionStore(tmp_path / "rows").rows() if row.status == "failed"}
    assert failed >= unreadable and len(failed) < COUNT


def test_the_builder_leaves_them_out(damaged: Path, unreadable: set[str], tmp_path: Path) -> None:
    """What it takes is read by everybody, other readers of `datasets` among them."""
    captions = [{"perspective": "short", "text": "a photo", "source": "drawn"}]

    class Photos:
        name = "photos"

        def items(self) -> Iterable[object]:
            for item in ImageFolder(damaged).items():
                yield item._replace(captions=captions) if hasattr(item, "captions") else item

        def read(self, place: str) -> bytes:
            return ImageFolder(damaged).read(place)

    build_from_sources(tmp_path / "corpus", [Photos()], facts=CorpusFacts("Damaged"), diversity=False)
    corpus = load_corpus(tmp_path / "corpus")
    kept = {row["image_id"] for row in corpus}  # decoded by `datasets`
    assert kept.isdisjoint(unreadable) and "sound.png" in kept
    assert read_manifest(tmp_path / "corpus")["num_skipped"] == COUNT + 1 - len(kept)


def test_a_sound_row_with_a_damaged_neighbour_is_unchanged(
    damaged: Path, unreadable: set[str], processor: HolisticCLIPProcessor
) -> None:
    captions = [{"perspective": "short", "text": "a photo"}]
    broken = damaged / min(unreadable)
    rows = [
        {"image_id": path.name, "image": {"bytes": path.read_bytes(), "path": None}, "captions": captions}
        for path in (broken, damaged / "sound.png")
    ]
    together, alone = (HolisticCLIPCollator(processor, ["short"])(some) for some in (rows, rows[1:]))
    assert together["pixel_values"][1].equal(alone["pixel_values"][0])
    assert Dataset.from_list(rows[1:], features=corpus_features())["image"][0].size == (40, 40)
