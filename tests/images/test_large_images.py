"""Large images are made small at once, exactly as the image processor would do it, and never held as a batch."""

import io
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTokenizer, SiglipImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.captioning.captioner import Reply, Work, caption_images
from holistic_clip_hf.captioning.perspectives import load_perspectives
from holistic_clip_hf.corpus.build import corpus_features
from holistic_clip_hf.evaluation.encoding import encode_images
from holistic_clip_hf.images.decoding import BeyondLimitsError, read_image
from holistic_clip_hf.images.folders import ImageFolder
from holistic_clip_hf.images.limits import ImageLimits
from holistic_clip_hf.search import FolderImages, index_images
from holistic_clip_hf.trainer.augmentation import Augmentation
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator

SQUARE = {"height": 32, "width": 32}
PROCESSORS: dict[str, Callable[[], Any]] = {
    "shortest edge": lambda: CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
    "square": lambda: CLIPImageProcessor(size=SQUARE, crop_size=SQUARE),
    "no crop, bilinear": lambda: CLIPImageProcessor(
        size={"height": 24, "width": 40}, do_center_crop=False, resample=2
    ),
    "no resizing": lambda: CLIPImageProcessor(do_resize=False, crop_size=SQUARE),
    "longest edge": lambda: CLIPImageProcessor(size={"shortest_edge": 32, "longest_edge": 50}, crop_size=SQUARE),
    "of SigLIP": lambda: SiglipImageProcessor(size=SQUARE),
}


def noise(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(width)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_image_processor_alone(name: str, tokenizer: CLIPTokenizer) -> None:
    """Bit for bit, so an index made earlier holds the vectors that one made now would."""
    image_processor = PROCESSORS[name]()
    processor = HolisticCLIPProcessor(image_processor, tokenizer)
    for width, height in ((321, 97), (97, 321), (64, 64), (31, 20), (333, 332)):
        image = noise(width, height)
        expected = image_processor(images=[image], return_tensors="pt")["pixel_values"]
        for given in (image, processor.resized(image)):
            assert processor(images=given, return_tensors="pt")["pixel_values"].equal(expected)


@pytest.mark.parametrize("options", [{"size": {"height": 20, "width": 20}}, {"resample": 0}, {"do_resize": False}])
def test_options_of_a_call_stand(processor: HolisticCLIPProcessor, options: dict[str, Any]) -> None:
    image = noise(90, 70)
    expected = processor.image_processor(images=[image], return_tensors="pt", **options)["pixel_values"]
    assert processor(images=image, return_tensors="pt", **options)["pixel_values"].equal(expected)


class Careful(CLIPImageProcessorPil):
    """An image processor with a rule of its own: what is wide is resized otherwise."""

    def resize(self, image: Any, size: Any, **options: Any) -> Any:
        return super().resize(image[:, :, ::2] if image.shape[2] > 60 else image, size, **options)


def test_an_image_processor_with_its_own_rules_gets_the_image_whole(tokenizer: CLIPTokenizer) -> None:
    image_processor, image = Careful(size=SQUARE, crop_size=SQUARE), noise(90, 70)
    processor = HolisticCLIPProcessor(image_processor, tokenizer)
    expected = image_processor(images=[image], return_tensors="pt")["pixel_values"]
    assert processor(images=image, return_tensors="pt")["pixel_values"].equal(expected)
    assert processor.resized(image).size == (90, 70)


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_bytes(run: Callable[[], object]) -> int:
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


COUNT, WIDTH, HEIGHT = 16, 3000, 2000


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "photos"
    folder.mkdir()
    file = io.BytesIO()
    Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB").save(file, "JPEG")
    for number in range(COUNT):
        (folder / f"{number:02}.jpg").write_bytes(file.getvalue())
    return folder


class Listener:
    captioner, revision, weights, settings = "listener", "1", "", {}

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        for each in work:
            yield Reply(each.image_id, each.perspectives[0], "A grey gradient, lighter below.")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read as Linux gives it")
@pytest.mark.parametrize("reader", ["index", "evaluation", "collator", "augmented", "captioner"])
def test_a_batch_of_large_photos_is_not_held_in_full_size(
    reader: str,
    photos: Path,
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
) -> None:
    """All of them are 384 MB, at the four bytes a pixel of Pillow; a few are at work at a time."""
    model = make_model(perspectives=["short", "main_object", "style"])
    captions = [{"perspective": "short", "text": "a gradient", "source": "drawn"}]
    rows = [
        {"image_id": path.stem, "image": {"bytes": path.read_bytes(), "path": None}, "captions": captions}
        for path in sorted(photos.iterdir())
    ]
    dataset = Dataset.from_list(rows, features=corpus_features())
    augmented = HolisticCLIPCollator(processor, ["short"], augmentation=Augmentation(32))
    asked = load_perspectives(None, ["short"])
    runs: dict[str, Callable[[], object]] = {
        "index": lambda: index_images(tmp_path / "index", FolderImages(photos), model, processor),
        "evaluation": lambda: encode_images(model, processor, dataset, batch_size=COUNT),
        "collator": lambda: HolisticCLIPCollator(processor, ["short"])(rows),
        "augmented": lambda: augmented(rows),
        "captioner": lambda: caption_images(ImageFolder(photos), asked, Listener(), tmp_path / "rows"),
    }
    runs[reader]()  # what is loaded once
    if reader == "index":
        runs["index"] = lambda: index_images(tmp_path / "again", FolderImages(photos), model, processor)
    if reader == "captioner":
        runs["captioner"] = lambda: caption_images(ImageFolder(photos), asked, Listener(), tmp_path / "again")
    whole = COUNT * WIDTH * HEIGHT * 4
    assert peak_bytes(runs[reader]) < (0.8 if reader == "captioner" else 0.5) * whole


def test_an_elongated_image_is_left_out_before_it_is_blown_up(processor: HolisticCLIPProcessor) -> None:
    captions = [{"perspective": "short", "text": "a thread"}]
    rows: list[dict[str, Any]] = [
        {"image_id": "thread", "image": Image.new("L", (3_000, 1)), "captions": captions},
        {"image_id": "square", "image": noise(40, 40), "captions": captions},
        {"image_id": "ribbon", "image": noise(3_000, 30), "captions": captions},
    ]
    batch = HolisticCLIPCollator(processor, ["short"])(rows)
    assert batch["left_out"] == {"thread": "too narrow: 3,000 x 1 pixels; one side is over 100 times the other"}
    assert batch["caption_mask"].tolist() == [[False], [True], [True]]


def test_limits_hold_at_their_edge() -> None:
    file = io.BytesIO()
    noise(200, 2).save(file, "PNG")
    data = file.getvalue()
    exact = ImageLimits(min_side=2, max_side=200, max_pixels=400, max_bytes=len(data), max_ratio=100)
    assert read_image(data, limits=exact).size == (200, 2)
    for change in (
        {"min_side": 3},
        {"max_side": 199},
        {"max_pixels": 399},
        {"max_bytes": len(data) - 1},
        {"max_ratio": 99},
    ):
        with pytest.raises(BeyondLimitsError, match="too"):
            read_image(data, limits=ImageLimits(**{**vars(exact), **change}))


def test_the_background_of_the_processor_is_that_of_training(tokenizer: CLIPTokenizer) -> None:
    image_processor = CLIPImageProcessor(size=SQUARE, crop_size=SQUARE)
    processor = HolisticCLIPProcessor(image_processor, tokenizer, background=(10, 200, 30))
    glass = {
        "image_id": "g",
        "image": Image.new("RGBA", (40, 40)),
        "captions": [{"perspective": "s", "text": "glass"}],
    }
    expected: Tensor = processor(images=Image.new("RGB", (40, 40), (10, 200, 30)), return_tensors="pt")["pixel_values"]
    for augmentation in (None, Augmentation(32)):
        batch = HolisticCLIPCollator(processor, ["s"], augmentation=augmentation)([glass])
        assert batch["pixel_values"].equal(expected)
