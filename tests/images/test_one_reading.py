"""One reading of images: for each row of the table in docs/images.md, all readers see the same pixels, or refuse."""

import base64
import importlib
import io
import re
import struct
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.captioning.captioner import Reply, Work, caption_images
from holistic_clip_hf.captioning.perspectives import load_perspectives
from holistic_clip_hf.cli.search import read_example
from holistic_clip_hf.corpus.build import corpus_features
from holistic_clip_hf.evaluation.encoding import encode_images
from holistic_clip_hf.images.decoding import UnreadableImageError, read_image, verify_image
from holistic_clip_hf.images.folders import ImageFolder
from holistic_clip_hf.images.tables import undecoded
from holistic_clip_hf.processing_holistic_clip import on_background
from holistic_clip_hf.search import FolderImages, index_images
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "images.md"
WIDE, HIGH = 48, 36
ROWS, COLUMNS = np.mgrid[:HIGH, :WIDE]
RED, GREEN, BLUE = 5 * COLUMNS, 7 * ROWS, 255 - 5 * COLUMNS
COLOURS = np.stack([RED, GREEN, BLUE], axis=-1).astype(np.uint8)
GREY = (3 * COLUMNS + 3 * ROWS).astype(np.uint8)
ALPHA = np.where(COLUMNS < 20, 0, np.where(COLUMNS < 30, 51, 255)).astype(np.uint8)
DEEP = (257 * GREY.astype(np.int64) + ROWS).astype(np.uint16)


def grey_rgb(values: np.ndarray) -> np.ndarray:
    return np.stack([values.astype(np.uint8)] * 3, axis=-1)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(share * colours + (1 - share) * 255).astype(np.uint8)


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def palette(colours: np.ndarray = COLOURS) -> Image.Image:
    return Image.fromarray(colours).quantize(16)


def noted(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def floats(values: Any) -> bytes:
    return saved(Image.fromarray(np.asarray(values, dtype=np.float32)), "TIFF")


def big_endian() -> bytes:
    """A TIFF of big-endian 16 bits, which Pillow does not write: one strip behind its tags, by the standard."""
    tags = {256: WIDE, 257: HIGH, 258: 16, 259: 1, 262: 1, 273: 200, 277: 1, 278: HIGH, 279: 2 * WIDE * HIGH}
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    head = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + DEEP.astype(">u2").tobytes()


class Case(NamedTuple):
    """One kind of image; `given` is a file's bytes or, where no format has it, a Pillow image."""

    row: str
    given: bytes | Image.Image
    expected: np.ndarray | str  # RGB, or the reason why it is refused


def cases() -> dict[str, Case]:
    plain, bits = "RGB, grey or palette of 8 bits", np.where(GREY > 127, 255, 0).astype(np.uint8)
    alpha = "with an alpha channel (RGBA, LA, PA), a transparent colour or shade"
    premultiplied, printed = "premultiplied alpha (RGBa, La)", "CMYK, YCbCr, HSV, LAB"
    deep = "16 bits for each channel (`I;16`, `I;16B`, PNG, TIFF, PPM)"
    rgba = Image.fromarray(np.dstack([COLOURS, ALPHA]))
    la = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))
    see_through = palette()
    shown = np.asarray(see_through.convert("RGB"))
    first = see_through.getpixel((0, 0))
    hole = np.where(np.asarray(see_through)[..., None] == first, 255, shown).astype(np.uint8)
    pa = Image.new("PA", (WIDE, HIGH))
    pa.putpalette([*range(256)] * 3)
    frames = [Image.new("RGB", (WIDE, HIGH), colour) for colour in ("red", "blue")]
    turned = np.rot90(COLOURS, -1)
    wrong = "whole numbers below 0 or above 65,535"
    outside = "floats below 0 or above 255"
    return {
        "RGB": Case(plain, saved(Image.fromarray(COLOURS)), COLOURS),
        "L": Case(plain, saved(Image.fromarray(GREY)), grey_rgb(GREY)),
        "P": Case(plain, saved(palette()), np.asarray(palette().convert("RGB"))),
        "1": Case("1 bit", saved(Image.fromarray(bits).convert("1")), grey_rgb(bits)),
        "RGBA": Case(alpha, saved(rgba), on_white(COLOURS, ALPHA)),
        "LA": Case(alpha, saved(la), on_white(grey_rgb(GREY), ALPHA)),
        "PA": Case(alpha, pa, np.full((HIGH, WIDE, 3), 255, dtype=np.uint8)),
        "P, transparent": Case(alpha, saved(see_through, transparency=first), hole),
        "RGB, transparent": Case(
            alpha,
            saved(Image.fromarray(COLOURS), transparency=tuple(map(int, COLOURS[0, 0]))),
            np.where((COLOURS[0, 0] == COLOURS).all(-1)[..., None], 255, COLOURS),
        ),
        "L, transparent": Case(
            alpha, saved(Image.fromarray(GREY), transparency=9), grey_rgb(np.where(GREY == 9, 255, GREY))
        ),
        "RGBa": Case(premultiplied, rgba.convert("RGBa"), on_white(COLOURS, ALPHA)),
        "La": Case(premultiplied, la.convert("La"), on_white(grey_rgb(GREY), ALPHA)),
        "CMYK": Case(printed, saved(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
        "YCbCr": Case(printed, Image.fromarray(COLOURS).convert("YCbCr"), COLOURS),
        "HSV": Case(printed, Image.new("HSV", (WIDE, HIGH), (0, 255, 255)), solid(255, 0, 0)),
        "LAB": Case(printed, saved(Image.new("LAB", (WIDE, HIGH), (255, 128, 128)), "TIFF"), solid(255, 255, 255)),
        "I;16": Case(deep, saved(Image.fromarray(DEEP)), grey_rgb(DEEP // 257)),
        "I;16B": Case(deep, big_endian(), grey_rgb(DEEP // 257)),
        "I;16, TIFF": Case(deep, saved(Image.fromarray(DEEP), "TIFF"), grey_rgb(DEEP // 257)),
        "PPM": Case(
            deep,
            f"P5 {WIDE} {HIGH} 65535\n".encode() + (DEEP // 300).astype(">u2").tobytes(),
            grey_rgb(DEEP // 300 // 257),
        ),
        "I, 8": Case("whole numbers of 32 bits (`I`), none above 255", saved(ints(GREY), "TIFF"), grey_rgb(GREY)),
        "I, 16": Case("whole numbers of 32 bits, up to 65,535", saved(ints(DEEP), "TIFF"), grey_rgb(DEEP // 257)),
        "I, above": Case(wrong, saved(ints(DEEP.astype(int) + 9_999), "TIFF"), "whole numbers from 9,999 to"),
        "I, below": Case(wrong, saved(ints(DEEP.astype(int) - 1), "TIFF"), "whole numbers from -1 to"),
        "F": Case("floats (`F`) from 0 to 255", floats(GREY + 0.75), grey_rgb(GREY)),
        "F, shares": Case("floats from 0 to 1", floats(GREY / 255), "floats from 0 to 0.*which may be shares of 1"),
        "F, above": Case(outside, floats(DEEP), "floats from 0 to .*; expected 0 to 255"),
        "F, below": Case(outside, floats(GREY - 1.0), "floats from -1 to .*; expected 0 to 255"),
        "NaN": Case("NaN or infinite", floats(np.where(GREY == 9, np.nan, GREY)), "NaN or infinite"),
        "infinite": Case("NaN or infinite", floats(np.where(GREY == 9, np.inf, GREY)), "NaN or infinite"),
        "animation": Case(
            "animation, or several pages",
            saved(Image.fromarray(COLOURS), "TIFF", save_all=True, append_images=frames),
            COLOURS,
        ),
        "turned": Case(
            "turned by its camera's note (EXIF, XMP)", saved(Image.fromarray(COLOURS), exif=noted(6)), turned
        ),
        "damaged EXIF": Case("damaged EXIF block", saved(Image.fromarray(COLOURS), exif=b"Exif\0\0damaged"), COLOURS),
        "narrow": Case("one side over 100 times the other", saved(Image.new("L", (3_030, 30))), "3,030 x 30 pixels"),
        "EPS": Case(
            "EPS and other formats that start programs",
            saved(Image.fromarray(COLOURS), "EPS"),
            "the format PostScript is not read|not an image",
        ),
    }


def solid(*colour: int) -> np.ndarray:
    return np.full((HIGH, WIDE, 3), colour, dtype=np.uint8)


def ints(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.int32))


CASES = cases()
FILES = [name for name, case in CASES.items() if isinstance(case.given, bytes)]


class RefusedError(Exception):
    """Refused, with the reason."""


class Bench(NamedTuple):
    """What readers need: a checkpoint, a folder with one image in it, and the image itself."""

    model: HolisticCLIPModel
    processor: HolisticCLIPProcessor
    path: Path
    data: bytes

    def seen(self, run: Callable[[], Any]) -> Tensor:
        """The pixels (3, height, width) that the vision tower was given."""
        caught: list[Tensor] = []
        tower = self.model.vision_model
        hook = tower.register_forward_pre_hook(
            lambda module, given, named: caught.append(given[0] if given else named["pixel_values"]), with_kwargs=True
        )
        try:
            run()
        finally:
            hook.remove()
        return caught[0][0]

    def processed(self, image: Any) -> Tensor:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


def by_path(bench: Bench) -> Tensor:
    return bench.processed(str(bench.path))


def by_bytes(bench: Bench) -> Tensor:
    return bench.processed([bench.data])


def by_base64(bench: Bench) -> Tensor:
    return bench.processed(base64.b64encode(bench.data).decode())


def by_collator(bench: Bench) -> Tensor:
    captions = [{"perspective": "short", "text": "a kitten"}]
    readable = {"image_id": "r", "image": Image.new("RGB", (9, 9)), "captions": captions}
    row = {"image_id": "k", "image": {"bytes": bench.data, "path": None}, "captions": captions}
    batch = HolisticCLIPCollator(bench.processor, ["short"])([row, readable])
    if batch["left_out"]:
        assert batch["caption_mask"].tolist() == [[False], [True]]
        raise RefusedError(batch["left_out"]["k"])
    return batch["pixel_values"][0]


def by_evaluation(bench: Bench) -> Tensor:
    rows = [{"image_id": "k", "image": {"bytes": bench.data, "path": None}, "captions": []}]
    dataset = Dataset.from_list(rows, features=corpus_features())
    return bench.seen(lambda: encode_images(bench.model, bench.processor, dataset, batch_size=2))


def by_index(bench: Bench) -> Tensor:
    index = bench.path.parent.parent / "index"
    return bench.seen(lambda: index_images(index, FolderImages(bench.path.parent), bench.model, bench.processor))


def by_find(bench: Bench) -> Tensor:
    return bench.processed(read_example(bench.path))


def by_page(bench: Bench) -> Tensor:
    pytest.importorskip("gradio")
    uploads = importlib.import_module("holistic_clip_hf.demo.uploads")
    try:
        return bench.processed(uploads.read_upload(str(bench.path)))
    except uploads.RefusedUploadError as error:
        cause = error.__cause__ or error
        raise RefusedError(str(cause)) from error


def by_captioner(bench: Bench) -> Tensor:
    given: list[Image.Image] = []

    class Backend:
        captioner, revision, weights, settings = "listener", "1", "", {}

        def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
            for each in work:
                given.append(each.image)
                yield Reply(each.image_id, each.perspectives[0], "A kitten on a sofa.")

    folder = bench.path.parent
    report = caption_images(ImageFolder(folder), load_perspectives(None, ["short"]), Backend(), folder.parent / "rows")
    if not given:
        raise RefusedError(str(report.reasons))
    assert given[0].mode == "RGB"
    return bench.processed(given[0])


def by_corpus(bench: Bench) -> Tensor:
    data, _ = verify_image(bench.data)
    return bench.processed(data)


READERS = [by_path, by_bytes, by_base64, by_collator, by_evaluation, by_index, by_find, by_page, by_captioner]
READERS += [by_corpus]


@pytest.fixture(scope="module")
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=["short", "main_object", "style"])


def test_the_table_has_a_case_for_each_row() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## What becomes of it")[2].partition("\n\nArrays")[0]
    rows = re.findall(r"^\| (.+?) \| .+ \|$", table, re.MULTILINE)
    assert rows[0] == "image"
    assert set(rows[1:]) == {case.row for case in CASES.values()}
    refused = set(re.findall(r"^\| (.+?) \| refused: .+ \|$", table, re.MULTILINE)) | {
        row for row in rows if row.startswith("EPS")
    }
    assert refused == {case.row for case in CASES.values() if isinstance(case.expected, str)}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_it(name: str) -> None:
    """The pixels are those that numpy computes by the rule."""
    given, expected = CASES[name].given, CASES[name].expected
    if isinstance(expected, str):
        with pytest.raises(UnreadableImageError, match=expected):
            on_background(read_image(given))
        return
    found = on_background(read_image(given))
    assert found.mode == "RGB"
    tolerance = {"YCbCr": 3, "RGBa": 3, "La": 3, "LAB": 1}.get(name, 1 if name in ("RGBA", "LA") else 0)
    assert np.abs(np.asarray(found).astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("name", FILES)
def test_every_reader_sees_the_same_pixels(
    name: str,
    reader: Callable[[Bench], Tensor],
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
) -> None:
    case = CASES[name]
    assert isinstance(case.given, bytes)
    folder = tmp_path / "photos"
    folder.mkdir()
    path = folder / "kitten.png"  # what the name says does not count
    path.write_bytes(case.given)
    bench = Bench(model, processor, path, case.given)
    if isinstance(case.expected, str):
        expected = case.expected
        if reader is by_page and name == "narrow":
            expected = "too large or too narrow"  # visitors get constant sentences
        with pytest.raises((ValueError, RefusedError), match=expected):
            reader(bench)
        return
    seen = np.asarray(on_background(read_image(case.given)))
    assert reader(bench).equal(bench.processed(seen))


@pytest.mark.parametrize("name", [name for name in CASES if name != "EPS"])
def test_pillow_images_are_read_as_files_are(name: str, processor: HolisticCLIPProcessor) -> None:
    case = CASES[name]
    image = case.given if isinstance(case.given, Image.Image) else Image.open(io.BytesIO(case.given))
    if isinstance(case.expected, str):
        with pytest.raises(ValueError, match=f"Image 0 has .*{case.expected}"):
            processor(images=image)
        return
    expected = processor(images=np.asarray(on_background(read_image(case.given))), return_tensors="pt")
    assert processor(images=image, return_tensors="pt")["pixel_values"].equal(expected["pixel_values"])
    assert processor.to_rgb(image).tobytes() == on_background(read_image(case.given)).tobytes()


ARRAYS: dict[str, tuple[Any, np.ndarray]] = {
    "uint8": (COLOURS, COLOURS),
    "uint8, channels first": (COLOURS.transpose(2, 0, 1), COLOURS),
    "uint8, mirrored": (COLOURS[:, ::-1], COLOURS[:, ::-1]),
    "uint8, two axes": (GREY, grey_rgb(GREY)),
    "uint8, one channel": (GREY[..., None], grey_rgb(GREY)),
    "uint8, alpha": (np.dstack([COLOURS, ALPHA]), on_white(COLOURS, ALPHA)),
    "bool": (GREY > 127, grey_rgb(np.where(GREY > 127, 255, 0))),
    "uint16": (DEEP, grey_rgb(DEEP // 257)),
    "uint16, big-endian": (DEEP.astype(">u2"), grey_rgb(DEEP // 257)),
    "uint16, colours": (COLOURS.astype(np.uint16) * 257, COLOURS),
    "uint16, alpha": (np.dstack([COLOURS, ALPHA]).astype(np.uint16) * 257, on_white(COLOURS, ALPHA)),
    "int32 of 8 bits": (COLOURS.astype(np.int32), COLOURS),
    "int64 of 16 bits": (DEEP.astype(np.int64), grey_rgb(DEEP // 257)),
    "float32": (COLOURS.astype(np.float32), COLOURS),
    "float64 with fractions": (np.minimum(COLOURS + 0.9, 255), COLOURS),
    "black floats": (np.zeros((HIGH, WIDE, 3)), solid(0, 0, 0)),
    "tensor": (torch.from_numpy(COLOURS).permute(2, 0, 1), COLOURS),
    "tensor of uint16": (torch.from_numpy(DEEP), grey_rgb(DEEP // 257)),
    "tensor of bfloat16": (torch.from_numpy(GREY).to(torch.bfloat16), grey_rgb(GREY)),
    "tensor with gradient": (torch.from_numpy(COLOURS).float().permute(2, 0, 1).requires_grad_(), COLOURS),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_and_tensors_are_read_as_files_are(name: str, processor: HolisticCLIPProcessor) -> None:
    given, expected = ARRAYS[name]
    found = np.asarray(processor.to_rgb(given)).astype(int)
    assert np.abs(found - expected.astype(int)).max() <= (1 if "alpha" in name else 0)
    pixels = processor(images=[given], return_tensors="pt")["pixel_values"]
    row = {"image_id": "a", "image": given, "captions": [{"perspective": "short", "text": "colours"}]}
    assert HolisticCLIPCollator(processor, ["short"])([row])["pixel_values"].equal(pixels)
    assert pixels.equal(processor(images=Image.fromarray(found.astype(np.uint8)), return_tensors="pt")["pixel_values"])


def test_turning_twice_is_turning_once(processor: HolisticCLIPProcessor) -> None:
    """The note is taken off with the turn, whichever of Pillow's places it stands in."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    for image in (
        Image.open(io.BytesIO(saved(Image.fromarray(COLOURS), exif=noted(6)))),
        Image.open(io.BytesIO(saved(Image.fromarray(COLOURS), "WEBP", lossless=True, xmp=xmp))),
    ):
        once = processor.to_rgb(image)
        assert once.size == (HIGH, WIDE)
        assert processor.to_rgb(once).tobytes() == once.tobytes()
        np.testing.assert_array_equal(np.asarray(once), np.rot90(COLOURS, -1))


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_rows_of_arrays_are_read(form: str, model: HolisticCLIPModel, processor: HolisticCLIPProcessor) -> None:
    """As `datasets` gives images in a format, with one among them that is left out."""
    rows = [
        {"image_id": name, "image": {"bytes": saved(image, "TIFF"), "path": None}, "captions": []}
        for name, image in (("good", Image.fromarray(COLOURS)), ("shares", Image.fromarray(GREY / np.float32(255))))
    ]
    for row in rows:
        row["captions"] = [{"perspective": "short", "text": "colours", "source": "drawn"}]
    dataset = Dataset.from_list(rows, features=corpus_features())
    formatted = undecoded(dataset.with_format(form))
    batch = HolisticCLIPCollator(processor, ["short"])([formatted[0], formatted[1]])
    assert list(batch["left_out"]) == ["shares"] and "shares of 1" in batch["left_out"]["shares"]
    expected = processor(images=COLOURS, return_tensors="pt")["pixel_values"]
    assert batch["pixel_values"][:1].equal(expected)
    found = encode_images(model, processor, dataset.select([0]).with_format(form), batch_size=1)
    plain = encode_images(model, processor, dataset.select([0]), batch_size=1)
    assert found.branch_embeds.equal(plain.branch_embeds) and not found.left_out


@pytest.mark.parametrize("form", ["channels_first", "channels_last"])
def test_channels_stand_where_the_caller_says(form: str, processor: HolisticCLIPProcessor) -> None:
    """A shape that could be read both ways."""
    ambiguous = np.ascontiguousarray(COLOURS[:3, :3])
    shown = ambiguous if form == "channels_last" else ambiguous.transpose(1, 2, 0)
    found = processor(images=ambiguous, input_data_format=form, return_tensors="pt")["pixel_values"]
    assert found.equal(processor(images=Image.fromarray(shown.copy()), return_tensors="pt")["pixel_values"])
    plain = processor(images=Image.fromarray(COLOURS), input_data_format=form, return_tensors="pt")["pixel_values"]
    assert plain.equal(processor(images=Image.fromarray(COLOURS), return_tensors="pt")["pixel_values"])
