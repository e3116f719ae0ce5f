"""ImageNet-1k and its variants, from folders of classes: rows of `image` and `label`.

- `imagenet`: `val/n01440764/*.JPEG` ... (image-net.org)
- `imagenet-v2`: `imagenetv2-matched-frequency-format-val/0/*.jpeg` ... (github.com/modestyachts/ImageNetV2)
- `imagenet-sketch`: `sketch/n01440764/*.JPEG` ... (github.com/HaohanWang/ImageNet-Sketch)
- `imagenet-a`, `imagenet-r`: `imagenet-a/n01498041/*.jpg` ..., of 200 classes (github.com/hendrycks)

Classes are in the order of ImageNet's synset names, which is that of every published list of 1,000 class names.
"""

from pathlib import Path

from datasets import Dataset, Features, Image, Value

FOLDERS = {
    "imagenet": "val",
    "imagenet-v2": "imagenetv2-matched-frequency-format-val",
    "imagenet-sketch": "sketch",
    "imagenet-a": "imagenet-a",
    "imagenet-r": "imagenet-r",
}
NUMBERED = ("imagenet-v2",)
SUFFIXES = (".jpeg", ".jpg", ".png")


def open_classification(name: str, root: Path, synsets: list[str]) -> tuple[Dataset, list[int]]:
    """Rows of `image` and `label`, and which of the classes are there.

    `synsets` are the 1,000 names in order, such as `n01440764`. A label is a place in what is returned: accuracy on a
    variant of 200 classes is among those 200, as its authors measure it. Raises `ValueError` for a name, a folder or
    a class that is not known.
    """
    if name not in FOLDERS:
        raise ValueError(f"Got the benchmark {name!r}. Valid: {', '.join(FOLDERS)}.")
    folder = root / FOLDERS[name]
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not classes:
        raise ValueError(f"Got no folders of classes in {folder}. Unpack the images of {name} there.")
    known = {str(index): index for index in range(len(synsets))} if name in NUMBERED else _places(synsets)
    if unknown := [label for label in classes if label not in known]:
        raise ValueError(f"{folder} has the folder {unknown[0]!r}, which is none of the {len(synsets)} classes.")
    there = sorted(known[label] for label in classes)
    place = {index: position for position, index in enumerate(there)}
    rows = [
        {"image": {"bytes": None, "path": str(path)}, "label": place[known[label]]}
        for label in classes
        for path in sorted((folder / label).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    return Dataset.from_list(rows, features=Features({"image": Image(), "label": Value("int64")})), there


def _places(synsets: list[str]) -> dict[str, int]:
    return {synset: index for index, synset in enumerate(synsets)}
