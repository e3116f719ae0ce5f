"""Images with classes: ImageNet-1k and its variants from folders, and corpora by a column or a perspective.

- `imagenet`: `val/n01440764/*.JPEG` ..., and `train/` likewise (image-net.org)
- `imagenet-v2`: `imagenetv2-matched-frequency-format-val/0/*.jpeg` ... (github.com/modestyachts/ImageNetV2)
- `imagenet-sketch`: `sketch/n01440764/*.JPEG` ... (github.com/HaohanWang/ImageNet-Sketch)
- `imagenet-a`, `imagenet-r`: `imagenet-a/n01498041/*.jpg` ..., of 200 classes (github.com/hendrycks)

Classes are in the order of ImageNet's synset names, which is that of every published list of 1,000 class names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, Features, Image, Value

from holistic_clip_hf.corpus.schema import count_perspectives

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
    """Synset and OpenAI's name of each of the 1,000 classes, in order."""
    lines = IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def open_classification(
    name: str, root: Path, *, split: str = "test", classes: Mapping[str, str] | None = None
) -> ClassifiedImages:
    """The images of one benchmark, and the names of the classes that are there.

    `classes` are the names by synset, in order; default: `imagenet_classes()`. Accuracy on a variant of 200 classes is
    among those 200, as its authors measure it. Raises `ValueError` for a name, a split, a folder or a class that is
    not known, and for a class without images.
    """
    if name not in FOLDERS:
        raise ValueError(f"Got the benchmark {name!r}. Valid: {', '.join(FOLDERS)}.")
    if split not in FOLDERS[name]:
        raise ValueError(f"Got the split {split!r} of {name}. Valid: {', '.join(FOLDERS[name])}.")
    classes, folder = imagenet_classes() if classes is None else classes, root / FOLDERS[name][split]
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not folders:
        raise ValueError(f"Got no folders of classes in {folder}. Unpack the images of {name} there.")
    keys = [str(index) for index in range(len(classes))] if name in NUMBERED else list(classes)
    if unknown := set(folders) - set(keys):
        raise ValueError(f"{folder} has the folder {min(unknown)!r}, which is none of the {len(classes)} classes.")
    there = [(key, text) for key, text in zip(keys, classes.values(), strict=True) if key in set(folders)]
    rows = []
    for label, (key, _) in enumerate(there):
        paths = [path for path in sorted((folder / key).iterdir()) if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise ValueError(f"{folder / key} holds no image. Unpack it again, or remove the folder.")
        rows += [{"image": {"bytes": None, "path": str(path)}, "label": label} for path in paths]
    dataset = Dataset.from_list(rows, features=Features({"image": Image(), "label": Value("int64")}))
    return ClassifiedImages(dataset, [text for _, text in there])


def classify_by(kind: str, *splits: Dataset) -> list[ClassifiedImages]:
    """Splits of a corpus, with the classes that a column of strings or a perspective called `kind` tells apart.

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
            f"Got the classes {kind!r}. Valid: a perspective of the corpus ({', '.join(known)}), or a column of "
            f"strings ({', '.join(columns)})."
        )
    found: list[str | None] = []
    for row, captions in enumerate(split["captions"]):
        texts = {caption["text"] for caption in captions if caption["perspective"] == kind}
        if len(texts) > 1:
            raise ValueError(f"Row {row} has {len(texts)} different captions of {kind!r}; expected one, its class.")
        found.append(texts.pop() if texts else None)
    return found


def _readable(name: str) -> str:
    return name.replace("_", " ").replace("-", " ") if " " not in name else name
