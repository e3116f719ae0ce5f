"""Peak memory and seconds of reading large photos: 64 JPEG files of 24 megapixels, a batch of 64.

    python tests/benchmarks/photos.py    some minutes on two cores; writes results/photos.json

`index` and `evaluation` encode them with a tiny model, `collator` makes the batch of a training step, with and without
augmentation, `captioner` hands the images to a backend that answers at once. Peaks are of a fresh process each, beyond
what the imports take. All 64 photos in full size would be 6.1 GB. Target: at most 1 GB each.
"""

import io
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path

import torch
from _measure import MEBIBYTE, arguments, peak_bytes, peak_in_fresh_process, write_record
from datasets import Dataset
from PIL import Image
from transformers import CLIPImageProcessor

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.captioning.captioner import Reply, Work, caption_images
from holistic_clip_hf.captioning.perspectives import load_perspectives
from holistic_clip_hf.corpus.build import corpus_features
from holistic_clip_hf.evaluation.encoding import encode_images
from holistic_clip_hf.images.folders import ImageFolder
from holistic_clip_hf.search import FolderImages, index_images
from holistic_clip_hf.trainer.augmentation import Augmentation
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator
from holistic_clip_hf.trainer.tiny import train_tokenizer

PHOTOS, WIDTH, HEIGHT, SIDE = 64, 6000, 4000, 224
TARGET = 1024  # MiB


def photo() -> bytes:
    """Colours that change slowly, with some noise, as of a camera."""
    torch.manual_seed(0)
    rough = (torch.rand(40, 60, 3) * 255).to(torch.uint8).numpy()
    image = Image.fromarray(rough).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    noise = Image.effect_noise((WIDTH, HEIGHT), 20).convert("RGB")
    file = io.BytesIO()
    Image.blend(image, noise, 0.1).save(file, "JPEG", quality=85)
    return file.getvalue()


def checkpoint() -> tuple[HolisticCLIPModel, HolisticCLIPProcessor]:
    tokenizer = train_tokenizer(["a photo of a dog in snow"], vocab_size=520, max_length=16)
    size = {"height": SIDE, "width": SIDE}
    processor = HolisticCLIPProcessor(CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size), tokenizer)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": SIDE, "patch_size": 32, "num_branches": 2}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = HolisticCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return HolisticCLIPModel(config).eval(), processor


class Listener:
    """A backend that answers at once."""

    captioner, revision, weights, settings = "listener", "1", "", {}

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        for each in work:
            yield Reply(each.image_id, each.perspectives[0], "A photo of a dog in snow.")


def rows(folder: Path) -> list[dict[str, object]]:
    captions = [{"perspective": "short", "text": "a dog", "source": "drawn"}]
    return [
        {"image_id": path.stem, "image": {"bytes": path.read_bytes(), "path": None}, "captions": captions}
        for path in sorted(folder.iterdir())
    ]


def cases(folder: Path) -> dict[str, Callable[[], object]]:
    model, processor = checkpoint()
    given = rows(folder)
    dataset = Dataset.from_list(given, features=corpus_features())
    augmentation, ask = Augmentation(SIDE), load_perspectives(None, ["short"])
    scratch = folder.parent
    return {
        "index": partial(index_images, scratch / "index", FolderImages(folder), model, processor, batch_size=PHOTOS),
        "evaluation": partial(encode_images, model, processor, dataset, batch_size=PHOTOS),
        "collator": partial(HolisticCLIPCollator(processor, ["short"]), given),
        "collator, augmented": partial(HolisticCLIPCollator(processor, ["short"], augmentation=augmentation), given),
        "captioner": partial(caption_images, ImageFolder(folder), ask, Listener(), scratch / "rows"),
    }


NAMES = ("index", "evaluation", "collator", "collator, augmented", "captioner")


def measure(case: str) -> tuple[int, float]:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "photos"
        folder.mkdir()
        data = photo()
        for number in range(PHOTOS):
            (folder / f"{number:03}.jpg").write_bytes(data)
        run = cases(folder)[case]
        start = time.perf_counter()
        return peak_bytes(run), time.perf_counter() - start


def main() -> None:
    options = arguments(__doc__, rounds=1)
    if options.memory:
        peak, seconds = measure(options.memory)
        sys.stderr.write(f"{seconds:.1f}\n")
        sys.stdout.write(f"{peak}\n")
        return
    found = {}
    for name in NAMES:
        start = time.perf_counter()
        peak = peak_in_fresh_process(__file__, name) // MEBIBYTE
        found[name] = {"peak_mib": peak, "seconds": round(time.perf_counter() - start, 1), "target_mib": TARGET}
        sys.stdout.write(f"{name}: {found[name]}\n")
    write_record("photos", {"photos": PHOTOS, "pixels": [WIDTH, HEIGHT], "peaks": found})


if __name__ == "__main__":
    main()
