"""What one image costs on the way from tar archives to an index, in processor time and bytes, for docs/scale.md.

    python tests/benchmarks/scale.py    some minutes on a core; writes results/scale.json

Images are JPEG files of 341 x 256 pixels, as img2dataset writes CC12M, with a web text each and five caption rows. The
towers are tiny, as their time belongs to the accelerator. Processor time is that of this process, all threads, which
others slow down by far less than a clock on the wall says. Peaks are those beyond what stood before the step.
`images_listed` have no pixels; the bytes of what is held of each are those of a fresh process.
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from _measure import MEBIBYTE, arguments, peak_bytes, peak_in_fresh_process, write_record
from datasets import Dataset
from PIL import Image
from transformers import CLIPImageProcessor

from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.captioning.captioner import caption_images
from holistic_clip_hf.captioning.perspectives import load_perspectives
from holistic_clip_hf.captioning.remote_backend import RemoteBackend
from holistic_clip_hf.captioning.store import CaptionRow, CaptionStore
from holistic_clip_hf.corpus.build import corpus_features, load_corpus, read_manifest
from holistic_clip_hf.corpus.card import CorpusFacts
from holistic_clip_hf.corpus.from_sources import JoinedSource, build_from_sources, captions_of_rows
from holistic_clip_hf.corpus.plan import BuildSettings, make_plan
from holistic_clip_hf.images.archives import TarShards
from holistic_clip_hf.images.sources import Item
from holistic_clip_hf.search import DatasetImages, index_images
from holistic_clip_hf.trainer.augmentation import Augmentation
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator
from holistic_clip_hf.trainer.tiny import train_tokenizer

IMAGES, LISTED, WIDTH, HEIGHT, SIDE = 1_000, 20_000, 341, 256, 224
PROMPTS = ["detail", "nouns", "background", "main_object", "style"]
NAMES = ["web", *PROMPTS]
PROJECTION, BATCH = 512, 50


def photos() -> Iterator[bytes]:
    """Colours that change slowly, with some noise, as of a camera."""
    generator = torch.Generator().manual_seed(0)
    noise = Image.effect_noise((WIDTH, HEIGHT), 20).convert("RGB")
    for _ in range(IMAGES):
        rough = (torch.rand(16, 21, 3, generator=generator) * 255).to(torch.uint8).numpy()
        image = Image.fromarray(rough).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        Image.blend(image, noise, 0.3).save(file, "JPEG", quality=95)
        yield file.getvalue()


def write_tars(folder: Path) -> int:
    """Write the images and their texts, and return the bytes of the images."""
    total = 0
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for number, data in enumerate(photos()):
            total += len(data)
            for ending, content in (("jpg", data), ("txt", f"a web text of photo number {number}".encode())):
                info = tarfile.TarInfo(f"{number:09}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return total


class Listing:
    """A source of images that are listed and not read."""

    name = "listing"

    def items(self) -> Iterator[Item]:
        return (Item(f"00000/{number:09}", str(number), "1") for number in range(LISTED))

    def read(self, place: str) -> bytes:
        raise OSError(place)


def row(image_id: str, perspective: str) -> CaptionRow:
    text = f"The photo of number {image_id} shows a dog that runs over a wide field of snow, beside a wooden fence."
    return CaptionRow(image_id, perspective, text, "Qwen/Qwen2.5-VL-7B-Instruct", "", "0" * 16, "ok")


def checkpoint() -> tuple[HolisticCLIPModel, HolisticCLIPProcessor]:
    tokenizer = train_tokenizer(["the photo shows a dog that runs over snow"], vocab_size=520, max_length=77)
    size = {"height": SIDE, "width": SIDE}
    processor = HolisticCLIPProcessor(CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size), tokenizer)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": SIDE, "patch_size": 32, "num_branches": len(NAMES)}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = HolisticCLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION, perspectives=NAMES)
    return HolisticCLIPModel(config).eval(), processor


Costs = dict[str, dict[str, float]]


def cost(costs: Costs, name: str, count: int, run: Callable[[], object]) -> None:
    """Note the milliseconds of processor time and the bytes of memory that one of `count` takes."""
    start = time.process_time()
    peak = peak_bytes(run)
    spent = (time.process_time() - start) / count
    costs[name] = {"milliseconds": round(1000 * spent, 3), "peak_mib": round(peak / MEBIBYTE, 1)}
    print(f"{name:18} {1000 * spent:9.3f} ms  {peak / MEBIBYTE:8.1f} MiB", flush=True)


def caption(tars: TarShards, folder: Path, costs: Costs) -> None:
    """Measure the client of a captioner's server, and a start over rows that are all there."""
    server = Path(__file__).parents[1] / "caption_server.py"
    with subprocess.Popen([sys.executable, str(server), "0"], stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        backend = RemoteBackend(serving.stdout.readline().strip(), "captioner", concurrency=16)
        perspectives = load_perspectives(names=PROMPTS)
        cost(costs, "caption_client", IMAGES, partial(caption_images, tars, perspectives, backend, folder))
        serving.kill()


def write_rows(folder: Path) -> CaptionStore:
    """Write the captions of all images that are listed."""
    store = CaptionStore(folder)
    with store.writer() as writer:
        for item in Listing().items():
            for name in PROMPTS:
                writer.add(row(item.image_id, name))
    return store


def remember(store: CaptionStore) -> dict[str, int]:
    """Read which perspectives of each image are answered, as a captioner does when it begins again."""
    settled: dict[str, int] = {}
    for each in store.rows():
        settled[each.image_id] = settled.get(each.image_id, 0) | 1 << PROMPTS.index(each.perspective)
    return settled


def listed_images() -> DatasetImages:
    rows = {
        "image_id": [item.image_id for item in Listing().items()],
        "image": [{"bytes": b"0", "path": None}] * LISTED,
    }
    return DatasetImages(Dataset.from_dict(rows).cast_column("image", corpus_features()["image"]), name="listed")


def list_images(images: DatasetImages) -> dict[str, object]:
    """List images as an index does, which holds all of them."""
    return dict(sorted((each.image_id, each) for each in images.items() if isinstance(each, Item)))


def peak_of(case: str) -> int:
    """Measure what grows with the number of images, in a fresh process."""
    if case == "index_listing":
        return peak_bytes(lambda: list_images(listed_images()))
    with tempfile.TemporaryDirectory() as name:
        store = write_rows(Path(name) / "rows")
        return peak_bytes(lambda: remember(store))


def main() -> None:
    options = arguments(__doc__, rounds=1)
    if options.memory:
        print(peak_of(options.memory))
        return
    costs: Costs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_bytes = write_tars(folder)
        tars = TarShards([folder / "00000.tar"], {"txt": "web"})
        caption(tars, folder / "captions", costs)
        rows = [row(item.image_id, name) for item in tars.items() for name in PROMPTS]
        source = JoinedSource(tars, lambda: captions_of_rows(iter(rows)))

        def plan() -> None:
            with make_plan([source], BuildSettings()):
                pass

        cost(costs, "corpus_plan", IMAGES, plan)
        cost(
            costs,
            "corpus_build",
            IMAGES,
            lambda: build_from_sources(
                folder / "corpus", [source], facts=CorpusFacts("Scale"), diversity=False, workers=1
            ),
        )
        corpus = load_corpus(folder / "corpus")
        size = sum(shard["bytes"] for shard in read_manifest(folder / "corpus")["shards"].values())
        model, processor = checkpoint()
        images = DatasetImages(corpus, name=str(folder / "corpus"))
        cost(costs, "index", IMAGES, lambda: index_images(folder / "index", images, model, processor))
        bytes_of_index = sum(path.stat().st_size for path in (folder / "index").rglob("*.arrow"))
        collator = HolisticCLIPCollator(processor, NAMES, augmentation=Augmentation(SIDE, scale=(0.9, 1.0)))
        undecoded = corpus.cast_column("image", corpus_features()["image"].__class__(decode=False))

        def collate() -> None:
            for start in range(0, IMAGES, BATCH):
                collator([undecoded[number] for number in range(start, min(start + BATCH, IMAGES))])

        cost(costs, "training_loader", IMAGES, collate)
        store = write_rows(folder / "rows")
        costs["caption_row"] = {
            "bytes": round(sum(path.stat().st_size for path in store.folder.glob("*.jsonl")) / LISTED / len(PROMPTS))
        }
        cost(costs, "caption_resumed", LISTED, partial(remember, store))
        listed = listed_images()
        cost(costs, "index_listing", LISTED, partial(list_images, listed))
        for case in ("caption_resumed", "index_listing"):
            costs[case]["bytes"] = round(peak_in_fresh_process(__file__, case) / LISTED)
            del costs[case]["peak_mib"]
    record = {
        "images": IMAGES,
        "images_listed": LISTED,
        "pixels": [WIDTH, HEIGHT],
        "captions_per_image": len(NAMES),
        "branches": len(NAMES),
        "projection_dim": PROJECTION,
        "bytes_per_image": {
            "file": round(num_bytes / IMAGES),
            "corpus": round(size / IMAGES),
            "index": round(bytes_of_index / IMAGES),
        },
        "costs": costs,
    }
    print(json.dumps(record["bytes_per_image"]))
    write_record("scale", record)


if __name__ == "__main__":
    main()
