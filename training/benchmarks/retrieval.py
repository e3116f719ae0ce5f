"""The field's retrieval benchmarks, from the files that their authors publish: each a corpus of images and captions.

- `coco`: `dataset_coco.json` (of cs.stanford.edu/people/karpathy/deepimagesent), `train2014/`, `val2014/`
- `flickr30k`: `dataset_flickr30k.json` (from the same place), `flickr30k-images/`
- `urban1k`: `image/*.jpg`, `caption/*.txt` (github.com/beichenzbc/Long-CLIP)
- `docci`: `docci_descriptions.jsonlines`, `images/` (google.github.io/docci)
- `sharegpt4v`: `share-captioner_coco_lcs_sam_1246k_1107.json` and the folders it names (sharegpt4v.github.io)

Published numbers on COCO and Flickr30k are of the test split and five captions of each image. Long-CLIP tests
on the first 1,000 images of ShareGPT4V, which are then not to be trained on (https://arxiv.org/abs/2403.15378).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from holistic_clip_hf.corpus.schema import corpus_features, validate_row

CAPTIONS_OF_KARPATHY = 5
IMAGES_OF_SHAREGPT4V = 1_000
SHAREGPT4V_FILE = "share-captioner_coco_lcs_sam_1246k_1107.json"


def open_retrieval(name: str, root: Path, *, split: str = "test") -> Dataset:
    """A corpus of one benchmark: rows of `image_id`, `image` and `captions`.

    Short captions are called `short`, paragraphs `detail`; several of an image differ in their source. Raises
    `ValueError` for a name, a file, a split or an image that is not there.
    """
    if name not in RETRIEVAL:
        raise ValueError(f"Got the benchmark {name!r}. Valid: {', '.join(RETRIEVAL)}.")
    rows = list(RETRIEVAL[name](root, split))
    if not rows:
        raise ValueError(f"{root} holds no image of the split {split!r} of {name}.")
    if missing := [row["image"]["path"] for row in rows if not Path(row["image"]["path"]).is_file()]:
        raise ValueError(f"{len(missing)} of {len(rows)} images of {name} are missing, such as {missing[0]}.")
    for row in rows:
        validate_row(row)
    return Dataset.from_list(rows, features=corpus_features())


def _karpathy(root: Path, split: str, file: str, folder: str | None, source: str) -> Iterator[dict[str, Any]]:
    for image in json.loads(_text(root / file))["images"]:
        if image["split"] == split:
            path = root / (folder or image["filepath"]) / image["filename"]
            texts = [sentence["raw"].strip() for sentence in image["sentences"][:CAPTIONS_OF_KARPATHY]]
            yield _row(Path(image["filename"]).stem, path, "short", texts, source)


def _coco(root: Path, split: str) -> Iterator[dict[str, Any]]:
    return _karpathy(root, split, "dataset_coco.json", None, "coco")


def _flickr30k(root: Path, split: str) -> Iterator[dict[str, Any]]:
    return _karpathy(root, split, "dataset_flickr30k.json", "flickr30k-images", "flickr30k")


def _urban1k(root: Path, split: str) -> Iterator[dict[str, Any]]:
    if split == "test":
        for caption in sorted((root / "caption").glob("*.txt")):
            image = (root / "image" / caption.name).with_suffix(".jpg")
            yield _row(caption.stem, image, "detail", [_text(caption).strip()], "urban1k")


def _docci(root: Path, split: str) -> Iterator[dict[str, Any]]:
    for line in _text(root / "docci_descriptions.jsonlines").strip().split("\n"):
        entry = json.loads(line)
        if entry["split"] == split:
            path = root / "images" / entry["image_file"]
            yield _row(entry["example_id"], path, "detail", [entry["description"].strip()], "docci")


def _sharegpt4v(root: Path, split: str) -> Iterator[dict[str, Any]]:
    entries = json.loads(_text(root / SHAREGPT4V_FILE))
    tested = {"test": entries[:IMAGES_OF_SHAREGPT4V], "train": entries[IMAGES_OF_SHAREGPT4V:]}
    for entry in tested.get(split, []):
        answer = next((turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"), None)
        if answer is None:
            raise ValueError(f"{SHAREGPT4V_FILE}: {entry['image']} has no turn from 'gpt'. Fetch the file again.")
        yield _row(entry["image"], root / entry["image"], "detail", [answer.strip()], "sharegpt4v")


def _row(image_id: str, path: Path, perspective: str, texts: list[str], source: str) -> dict[str, Any]:
    sources = [source] if len(texts) == 1 else [f"{source}-{number}" for number in range(len(texts))]
    captions = [
        {"perspective": perspective, "text": text, "source": name} for text, name in zip(texts, sources, strict=True)
    ]
    return {"image_id": image_id, "image": {"bytes": None, "path": str(path)}, "captions": captions}


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"Got no file {path}. See training/benchmarks/ for what a benchmark's root holds.")
    return path.read_text(encoding="utf-8")


RETRIEVAL: dict[str, Callable[[Path, str], Iterator[dict[str, Any]]]] = {
    "coco": _coco,
    "flickr30k": _flickr30k,
    "urban1k": _urban1k,
    "docci": _docci,
    "sharegpt4v": _sharegpt4v,
}
