# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The field's benchmarks, from the files that their authors publish.

Retrieval, as a corpus of images and captions:

- `coco`: `dataset_coco.json` (of cs.stanford.edu/people/karpathy/deepimagesent), `train2014/`, `val2014/`
- `flickr30k`: `dataset_flickr30k.json` (from the same place), `flickr30k-images/`
- `urban1k`: `image/*.jpg`, `caption/*.txt` (github.com/beichenzbc/Long-CLIP)
- `docci`: `docci_descriptions.jsonlines`, `images/` (google.github.io/docci)
- `sharegpt4v`: `share-captioner_coco_lcs_sam_1246k_1107.json` and the folders it names (sharegpt4v.github.io)
- `negbench`: `COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv`, `val2017/` (github.com/m1k2zoo/negbench)

Published numbers on COCO and Flickr30k are of the test split and five captions of each image. Long-CLIP tests
on the first 1,000 images of ShareGPT4V, which are then not to be trained on (https://arxiv.org/abs/2403.15378).

Classification, from folders of classes or by a column or a perspective of a corpus:

- `imagenet`: `val/n01440764/*.JPEG` ..., and `train/` likewise (image-net.org)
- `imagenet-v2`: `imagenetv2-matched-frequency-format-val/0/*.jpeg` ... (github.com/modestyachts/ImageNetV2)
- `imagenet-sketch`: `sketch/n01440764/*.JPEG` ... (github.com/HaohanWang/ImageNet-Sketch)
- `imagenet-a`, `imagenet-r`: `imagenet-a/n01498041/*.jpg` ..., of 200 classes (github.com/hendrycks)

Classes are in the order of ImageNet's synset names, which is that of every published list of 1,000 class names.

Cases, each with candidates of its own, of which one is right:

- `coco-facet`, a text and 100 images: `COCO_object_retrieval.json` and the others, `val2014/`, `val2017/`
  (github.com/lst627/COCO-Facet)
- `sugar-crepe`, an image and two texts: `add_att.json` and the others, `val2017/` (github.com/RAIVNLab/sugar-crepe)
- `negbench-coco`, an image and four texts: `COCO_val_mcq_llama3.1_rephrased.csv`, `val2017/`
- `negbench-voc`, likewise: `VOC2007_mcq_llama3.1_rephrased.csv`, `JPEGImages/`

Segmentation, as rows of `image` and `mask`:

- `voc20`, `voc21` (and background): `JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/val.txt` of VOC2012
- `ade20k`, 150 classes: `images/validation/`, `annotations/validation/`, `objectInfo150.txt` of ADEChallengeData2016
- `coco-stuff`, 171 classes: `val2017/`, `stuffthingmaps/val2017/`, `labels.txt` of COCO-Stuff 164k

Masks are brought to one form: positions in the list of class names, and 255 for what does not count.
"""

import ast
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from ..corpus.build import corpus_features, count_perspectives, validate_row
from ..images.decoding import open_image
from ..images.files import allow_folder
from ..images.left_out import LeftOutLog, row_names, usable_captions
from ..storage import parse_json
from .ranking import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from .segmentation import IGNORED

CAPTIONS_OF_KARPATHY = 5
IMAGES_OF_SHAREGPT4V = 1_000
SHAREGPT4V_FILE = "share-captioner_coco_lcs_sam_1246k_1107.json"


def open_retrieval(name: str, root: Path, *, split: str = "test") -> Dataset:
    """Return a corpus of one benchmark: rows of `image_id`, `image` and `captions`.

    Short captions are called `short`, paragraphs `detail`; several of an image differ in their source. Raises
    `ValueError` for a name, a file, a split or an image that is not there.
    """
    if name not in RETRIEVAL:
        raise ValueError(f"The benchmark is {name!r}; expected one of {', '.join(RETRIEVAL)}.")
    allow_folder(root)
    rows = list(RETRIEVAL[name](root, split))
    if not rows:
        raise ValueError(f"{root} holds no image of the split {split!r} of {name}.")
    if missing := [row["image"]["path"] for row in rows if not Path(row["image"]["path"]).is_file()]:
        raise ValueError(f"{len(missing)} of {len(rows)} images of {name} are missing, such as {missing[0]}.")
    for row in rows:
        validate_row(row)
    return Dataset.from_list(rows, features=corpus_features())


def _karpathy(root: Path, split: str, file: str, folder: str | None, source: str) -> Iterator[dict[str, Any]]:
    for image in parse_json(_text(root / file))["images"]:
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
        entry = parse_json(line)
        if entry["split"] == split:
            path = root / "images" / entry["image_file"]
            yield _row(entry["example_id"], path, "detail", [entry["description"].strip()], "docci")


def _sharegpt4v(root: Path, split: str) -> Iterator[dict[str, Any]]:
    entries = parse_json(_text(root / SHAREGPT4V_FILE))
    tested = {"test": entries[:IMAGES_OF_SHAREGPT4V], "train": entries[IMAGES_OF_SHAREGPT4V:]}
    for entry in tested.get(split, []):
        answer = next((turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"), None)
        if answer is None:
            raise ValueError(f"{SHAREGPT4V_FILE}: {entry['image']} has no turn from 'gpt'. Fetch the file again.")
        yield _row(entry["image"], root / entry["image"], "detail", [answer.strip()], "sharegpt4v")


def _negbench(root: Path, split: str) -> Iterator[dict[str, Any]]:
    name = "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv"
    for number, entry in enumerate(_table(root / name) if split == "test" else ()):
        try:
            texts = ast.literal_eval(entry["captions"])
        except (KeyError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{name}, row {number}: `captions` is not a list of texts. Fetch the file again."
            ) from error
        path = root / "val2017" / Path(entry["filepath"]).name
        yield _row(path.stem, path, "short", [text.strip() for text in texts], "negbench")


def _table(path: Path) -> Iterator[dict[str, str]]:
    return csv.DictReader(io.StringIO(_text(path), newline=""))


def _row(image_id: str, path: Path, perspective: str, texts: list[str], source: str) -> dict[str, Any]:
    sources = [source] if len(texts) == 1 else [f"{source}-{number}" for number in range(len(texts))]
    captions = [
        {"perspective": perspective, "text": text, "source": name} for text, name in zip(texts, sources, strict=True)
    ]
    return {"image_id": image_id, "image": {"bytes": None, "path": str(path)}, "captions": captions}


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is missing; docs/evaluation.md says what a benchmark's folder holds.")
    return path.read_text(encoding="utf-8")


RETRIEVAL: dict[str, Callable[[Path, str], Iterator[dict[str, Any]]]] = {
    "coco": _coco,
    "flickr30k": _flickr30k,
    "urban1k": _urban1k,
    "docci": _docci,
    "sharegpt4v": _sharegpt4v,
    "negbench": _negbench,
}


class Case(NamedTuple):
    """Question with candidates of its own, of which the first is right.

    Args:
        kind: Part of the benchmark that it belongs to.
        query: Place of the text or image that asks.
        candidates: Places of the images or texts that are compared.
    """

    kind: str
    query: int
    candidates: tuple[int, ...]


class CaseBenchmark(NamedTuple):
    """Rows of `image`, texts, and cases; `direction` says which of the two asks."""

    dataset: Dataset
    texts: list[str]
    cases: list[Case]
    direction: str


# A kind, and the text and images, or the image and texts, of a case; what is right comes first.
Told = Iterator[tuple[str, str, Sequence[str]]]
SUGAR_CREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


def open_cases(name: str, root: Path) -> CaseBenchmark:
    """Return the cases of one benchmark. Raises `ValueError` for a name, a file or an image that is not there."""
    if name not in CASES:
        raise ValueError(f"The benchmark is {name!r}; expected one of {', '.join(CASES)}.")
    allow_folder(root)
    direction, told = CASES[name]
    images: dict[str, int] = {}
    texts: dict[str, int] = {}
    of_query, of_candidates = (texts, images) if direction == TEXT_TO_IMAGE else (images, texts)
    cases = [
        Case(
            kind,
            of_query.setdefault(query, len(of_query)),
            tuple(of_candidates.setdefault(each, len(of_candidates)) for each in candidates),
        )
        for kind, query, candidates in told(root)
    ]
    if missing := [path for path in images if not (root / path).is_file()]:
        raise ValueError(f"{len(missing)} of {len(images)} images of {name} are missing, such as {root / missing[0]}.")
    rows = [{"image": {"bytes": None, "path": str(root / path)}} for path in images]
    return CaseBenchmark(
        Dataset.from_list(rows, features=Features({"image": ImageFeature()})), list(texts), cases, direction
    )


def _coco_facet(root: Path) -> Told:
    """Read every facet that lies in the folder; its authors' files name the right image first."""
    files = sorted(root.glob("*_retrieval.json"))
    if not files:
        raise ValueError(f"{root} has no *_retrieval.json; docs/evaluation.md says what a benchmark's folder holds.")
    for file in files:
        for entry in parse_json(_text(file)):
            yield file.stem.removesuffix("_retrieval"), entry["qry_text"].strip(), entry["tgt_img_path"]


def _sugar_crepe(root: Path) -> Told:
    for kind in SUGAR_CREPE:
        for entry in parse_json(_text(root / f"{kind}.json")).values():
            yield kind, f"val2017/{entry['filename']}", (entry["caption"], entry["negative_caption"])


def _negbench_cases(root: Path, file: str, folder: str) -> Told:
    for entry in _table(root / file):
        texts = [entry[f"caption_{number}"] for number in range(4)]
        right = texts.pop(int(entry["correct_answer"]))
        yield entry["correct_answer_template"], f"{folder}/{Path(entry['image_path']).name}", (right, *texts)


CASES: dict[str, tuple[str, Callable[[Path], Told]]] = {
    "coco-facet": (TEXT_TO_IMAGE, _coco_facet),
    "sugar-crepe": (IMAGE_TO_TEXT, _sugar_crepe),
    "negbench-coco": (
        IMAGE_TO_TEXT,
        lambda root: _negbench_cases(root, "COCO_val_mcq_llama3.1_rephrased.csv", "val2017"),
    ),
    "negbench-voc": (
        IMAGE_TO_TEXT,
        lambda root: _negbench_cases(root, "VOC2007_mcq_llama3.1_rephrased.csv", "JPEGImages"),
    ),
}
FOLDERS = {
    "imagenet": {"test": "val", "train": "train"},
    "imagenet-v2": {"test": "imagenetv2-matched-frequency-format-val"},
    "imagenet-sketch": {"test": "sketch"},
    "imagenet-a": {"test": "imagenet-a"},
    "imagenet-r": {"test": "imagenet-r"},
}
NUMBERED = ("imagenet-v2",)
SUFFIXES = (".jpeg", ".jpg", ".png")
IMAGENET_CLASSES = Path(__file__).with_name("imagenet_classes.tsv")


class ClassifiedImages(NamedTuple):
    """Rows of `image` and `label`, a place in the names; `num_left_out` counts the rows that had no class."""

    dataset: Dataset
    class_names: list[str]
    num_left_out: int = 0


def imagenet_classes() -> dict[str, str]:
    """Return the synset and OpenAI's name of each of the 1,000 classes, in order."""
    lines = IMAGENET_CLASSES.read_text(encoding="utf-8").split("\n")
    return dict(line.split("\t") for line in lines if line and not line.startswith("#"))


def open_classification(
    name: str, root: Path, *, split: str = "test", classes: Mapping[str, str] | None = None
) -> ClassifiedImages:
    """Return the images of one benchmark, and the names of its classes.

    `classes` are the names by synset, in order, by default `imagenet_classes()`. Accuracy on a variant of 200 classes
    is among those 200, as its authors measure it. Raises `ValueError` for a name, a split, a folder or a class that is
    not known, and for a class without images.
    """
    if name not in FOLDERS:
        raise ValueError(f"The benchmark is {name!r}; expected one of {', '.join(FOLDERS)}.")
    if split not in FOLDERS[name]:
        raise ValueError(f"`split` is {split!r}; expected one of {', '.join(FOLDERS[name])}, which {name} has.")
    classes, folder = imagenet_classes() if classes is None else classes, root / FOLDERS[name][split]
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not folders:
        raise ValueError(
            f"{folder} has no folders of classes; expected one for each. Unpack the images of {name} there."
        )
    keys = [str(index) for index in range(len(classes))] if name in NUMBERED else list(classes)
    if unknown := set(folders) - set(keys):
        raise ValueError(f"{folder} has the folder {min(unknown)!r}, which is not one of the {len(classes)} classes.")
    there = [(key, text) for key, text in zip(keys, classes.values(), strict=True) if key in set(folders)]
    allow_folder(root)
    rows = []
    for label, (key, _) in enumerate(there):
        paths = [path for path in sorted((folder / key).iterdir()) if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise ValueError(f"{folder / key} holds no image. Unpack it again, or remove the folder.")
        rows += [{"image": {"bytes": None, "path": str(path)}, "label": label} for path in paths]
    dataset = Dataset.from_list(rows, features=Features({"image": ImageFeature(), "label": Value("int64")}))
    return ClassifiedImages(dataset, [text for _, text in there])


def classify_by(kind: str, *splits: Dataset) -> list[ClassifiedImages]:
    """Return the splits of a corpus, with the classes that a column of strings or a perspective called `kind` tells
    apart.

    The classes of all splits together are those of each, in the order of the alphabet. Of a perspective, a class is a
    caption; images without one are left out, and counted.

    Raises:
        ValueError: neither a column of strings nor a perspective, or an image with two different captions of it.
    """
    told = [_classes_of(kind, split) for split in splits]
    names = sorted({name for each in told for name in each if name is not None})
    place = {name: index for index, name in enumerate(names)}
    found = []
    for split, each in zip(splits, told, strict=True):
        kept = [row for row, name in enumerate(each) if name is not None]
        labels = [place[each[row]] for row in kept]  # type: ignore[index]
        rows = split.select(kept).select_columns("image").add_column("label", labels)
        found.append(ClassifiedImages(rows, [_readable(name) for name in names], len(split) - len(kept)))
    return found


def _classes_of(kind: str, split: Dataset) -> Sequence[str | None]:
    feature = split.features.get(kind)
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return list(split[kind])
    known = count_perspectives(split)
    if kind not in known:
        columns = [name for name, value in split.features.items() if isinstance(value, Value)]
        raise ValueError(
            f"`classes` is {kind!r}; expected a perspective of the corpus ({', '.join(known)}), or a column of "
            f"strings ({', '.join(columns)})."
        )
    found: list[str | None] = []
    faults: dict[str, str] = {}
    for name, captions in zip(row_names(split), split["captions"], strict=True):
        texts = {text for perspective, text in usable_captions(name, captions, faults) if perspective == kind}
        if len(texts) > 1:
            raise ValueError(f"{name} has {len(texts)} different captions of {kind!r}; expected one, its class.")
        found.append(texts.pop() if texts else None)
    LeftOutLog().note(faults)
    return found


def _readable(name: str) -> str:
    return name.replace("_", " ").replace("-", " ") if " " not in name else name


# Of the development kit's own documentation, in the order of its indices.
VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
]
# Indices of `labels.txt` that COCO-Stuff's own documentation lists as never annotated.
COCO_STUFF_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


class SegmentationBenchmark(NamedTuple):
    """Rows of `image` and `mask`, the names of the classes, and the index of the background among them, if any."""

    dataset: Dataset
    class_names: list[str]
    background: int | None


def open_segmentation(name: str, root: Path) -> SegmentationBenchmark:
    """Return the validation split of one benchmark. Raises `ValueError` for a name or a file that is not there."""
    if name not in SEGMENTATION:
        raise ValueError(f"The benchmark is {name!r}; expected one of {', '.join(SEGMENTATION)}.")
    allow_folder(root)
    return SEGMENTATION[name](root)


def _voc(root: Path, *, with_background: bool) -> SegmentationBenchmark:
    names = _read_text(root / "ImageSets/Segmentation/val.txt").split()
    pairs = ((root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png") for name in names)
    first = 0 if with_background else 1
    places = {index: index - first for index in range(first, len(VOC_CLASSES))}
    return SegmentationBenchmark(_dataset(pairs, places), VOC_CLASSES[first:], 0 if with_background else None)


def _ade20k(root: Path) -> SegmentationBenchmark:
    lines = _read_text(root / "objectInfo150.txt").split("\n")[1:]  # index, ratio, train, val, names
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
    images = _images_in(root / "images/validation")
    pairs = ((image, root / f"annotations/validation/{image.stem}.png") for image in images)
    places = {index + 1: index for index in range(len(names))}  # 0 is what nobody labelled
    return SegmentationBenchmark(_dataset(pairs, places), names, None)


def _coco_stuff(root: Path) -> SegmentationBenchmark:
    told = (line.split(":", 1) for line in _read_text(root / "labels.txt").split("\n") if ":" in line)
    # Index k of the list, of which 0 is "unlabeled", is the value k - 1 of the maps.
    labels = {int(index): label.strip() for index, label in told}
    used = sorted(labels.keys() - COCO_STUFF_UNUSED - {0})
    images = _images_in(root / "val2017")
    pairs = ((image, root / f"stuffthingmaps/val2017/{image.stem}.png") for image in images)
    places = {index - 1: place for place, index in enumerate(used)}
    return SegmentationBenchmark(_dataset(pairs, places), [labels[index] for index in used], None)


def _images_in(folder: Path) -> list[Path]:
    images = sorted(folder.glob("*.jpg"))
    if not images:
        raise ValueError(f"{folder} has no images; docs/evaluation.md says what a benchmark's folder holds.")
    return images


def _dataset(pairs: Iterable[tuple[Path, Path]], places: Mapping[int, int]) -> Dataset:
    table = np.full(256, IGNORED, dtype=np.uint8)
    table[list(places)] = list(places.values())

    def rows() -> Iterator[dict[str, Any]]:
        for image, mask in pairs:
            if not image.is_file():
                raise ValueError(f"{image} is missing; docs/evaluation.md says what a benchmark's folder holds.")
            file = io.BytesIO()  # thousands of masks fit into memory as PNG
            Image.fromarray(table[_read_mask(mask)]).save(file, "PNG")
            yield {"image": str(image), "mask": {"bytes": file.getvalue(), "path": None}}

    return Dataset.from_list(list(rows()), features=Features({"image": ImageFeature(), "mask": ImageFeature()}))


def _read_mask(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is missing; docs/evaluation.md says what a benchmark's folder holds.")
    return np.asarray(open_image(path))  # of a palette image, the indices


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is missing; docs/evaluation.md says what a benchmark's folder holds.")
    return path.read_text(encoding="utf-8")


SEGMENTATION: dict[str, Callable[[Path], SegmentationBenchmark]] = {
    "voc20": lambda root: _voc(root, with_background=False),
    "voc21": lambda root: _voc(root, with_background=True),
    "ade20k": _ade20k,
    "coco-stuff": _coco_stuff,
}
