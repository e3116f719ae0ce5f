# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Layouts of published datasets: by which columns each is recognised, and what a value of such a column holds.

A layout is a row of `LAYOUTS`. A column whose values are more than texts has a reader in `VALUES`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..storage import shown
from .files import is_address
from .records import Record, first_line
from .sources import Columns, MalformedRecordError, list_in


class Layout(NamedTuple):
    """Names of the columns of a published dataset.

    Args:
        name: Name of the datasets that have it.
        image: Column with the path of the image.
        captions: Columns with captions, each with its perspective.
    """

    name: str
    image: str
    captions: Columns


# In order: the first whose columns a record has is taken. Captions of one sentence by people are `short`, long ones
# `detail`, texts that came with the image from the web `web`; `--caption` says otherwise.
LAYOUTS = (
    Layout("Flickr30k, results.csv", "image_name", {"comment": "short"}),
    Layout("Flickr30k, annotations of the Hub", "filename", {"raw": "short"}),
    Layout("Karpathy's splits", "filename", {"sentences": "short"}),
    Layout("COCO, captions", "file_name", {"captions": "short"}),
    Layout("DOCCI", "image_file", {"description": "detail"}),
    Layout("LLaVA, ShareGPT4V", "image", {"conversations": "detail"}),
    Layout("Flickr8k, ALBEF", "image", {"caption": "short"}),
    Layout("lists of image and text", "image", {"text": "short"}),
    Layout("open_clip's CSV", "filepath", {"title": "web"}),
    Layout("imagefolder", "file_name", {"caption": "short"}),
    Layout("imagefolder", "file_name", {"text": "short"}),
    Layout("PixelProse", "url", {"vlm_caption": "detail"}),
    Layout("LAION", "url", {"text": "web"}),
    Layout("Conceptual Captions, img2dataset", "url", {"caption": "web"}),
)
# Also `caption_0` ... `caption_4`, as many repackaged datasets have them.
_NUMBERED = re.compile(r"(?:caption|comment|sentence|text)_?[0-9]{1,3}")
_WORD = re.compile(r"[^\W\d_]{2}")
# Of lists that people write themselves; Kaggle's tables often have the names of files as ids.
_USUAL = ("path", "file", "file_path", "image_path", "img_path", "img", "image_filename", "img_name", "image_id")
_ENDING = "_file_name"  # of columns that imagefolder of `datasets` takes for files, whatever stands before
IMAGE_COLUMNS = tuple(dict.fromkeys([*(layout.image for layout in LAYOUTS), *_USUAL]))
SPLIT_COLUMN = "split"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),  # Karpathy's restval is trained on
    **dict.fromkeys(("validation", "valid", "val", "dev", "qual_dev"), "validation"),
    **dict.fromkeys(("test", "testing", "qual_test"), "test"),
}


def recognise(columns: Iterable[str], image_column: str | None = None) -> Layout | None:
    """Return the layout of records with these columns, in their own spelling of capitals.

    With `image_column`, that of other columns beside it.
    """
    names = {name.casefold(): name for name in columns}
    if image_column is not None and image_column not in names.values():
        return None
    told = [each for each in LAYOUTS if each.captions.keys() <= names.keys() and (image_column or each.image in names)]
    if told:
        best = next((each for each in told if names.get(each.image) == image_column), told[0])
        captions = {names[column]: perspective for column, perspective in best.captions.items()}
        return best._replace(image=image_column or names[best.image], captions=captions)
    image = image_column or find_image_column(names.values())
    numbered = {name: "short" for folded, name in names.items() if _NUMBERED.fullmatch(folded)}
    return Layout("numbered captions", image, numbered) if image and numbered else None


_OTHER_FACTS = {
    "id",
    "url",
    "license",
    "licence",
    "author",
    "credit",
    "source",
    "date",
    "filename",
    "hash",
    SPLIT_COLUMN,
}
_LOOKED_AT = 100  # records


def propose_captions(records: Iterable[Record], image_column: str) -> dict[str, str]:
    """Find the columns that hold texts about the images, each with a perspective of its own name.

    Such a column has words in at least half of the records, and they differ, unless those of all columns are alike.
    Names of files, addresses and what is usually kept beside a caption, such as a licence, are left out.

    Args:
        records: Records of a list; the first hundred are looked at.
        image_column: Column with the path of the image.

    >>> rows = [{"image": "1.png", "Title": "A frog.", "stars": 5}, {"image": "2.png", "Title": "A cat."}]
    >>> propose_captions(rows, "image")
    {'Title': 'title'}
    """
    looked = list(islice(records, _LOOKED_AT))
    proposed: dict[str, str] = {}
    alike: dict[str, str] = {}
    for column in dict.fromkeys(name for record in looked for name in record):
        if column == image_column or column.casefold() in {*_OTHER_FACTS, *IMAGE_COLUMNS}:
            continue
        texts = [value for record in looked if _is_text(value := record.get(column))]
        if 2 * len(texts) >= len(looked):
            differ = len(set(map(str, texts))) > min(1, len(looked) - 1)
            (proposed if differ else alike)[column] = "_".join(column.casefold().split())
    return proposed or alike  # which of them was meant, a refusal can say


def _is_text(value: Any) -> bool:
    texts = list_in(value)
    words = " ".join(str(each) for each in texts) if isinstance(texts, list) else texts
    return isinstance(words, str) and bool(_WORD.search(words)) and not is_address(words)


def find_image_column(columns: Iterable[str]) -> str | None:
    """Return the column that is known to hold paths or addresses of images."""
    names = {name.casefold(): name for name in columns}
    known = [*IMAGE_COLUMNS, *(name for name in names if name.endswith(_ENDING))]
    return next((names[name] for name in known if name in names), None)


def _answers(value: Any) -> Any:
    """Return the one answer of a LLaVA conversation; answers to further questions are not captions."""
    if not isinstance(value, list):
        return value
    answers = [each.get("value") for each in value if isinstance(each, dict) and each.get("from") == "gpt"]
    if len(answers) > 1:
        raise MalformedRecordError(f"a conversation of several answers, which are not captions: {len(answers)}")
    return answers


def _sentences(value: Any) -> Any:
    """Return the texts of Karpathy's sentences."""
    if not isinstance(value, list):
        return value
    return [each.get("raw") if isinstance(each, dict) else each for each in value]


VALUES: Mapping[str, Callable[[Any], Any]] = {"conversations": _answers, "sentences": _sentences}
_PREFIXES = {"filename": "filepath"}  # Karpathy's COCO has the folder in a column of its own


def caption_values(record: Record, columns: Iterable[str]) -> dict[str, Any]:
    """Return the columns of a record with plain texts or lists of texts.

    Raises:
        MalformedRecordError: a value that holds something else than captions.
    """
    names = [column for column in columns if column in record]
    return {column: VALUES[column](record[column]) if column in VALUES else record[column] for column in names}


def path_value(record: Record, image_column: str) -> str:
    """Return the path of a record's image.

    Raises:
        MalformedRecordError: no path, or one that is not a text.
    """
    place = record.get(image_column)
    if not isinstance(place, str) or not place.strip():
        told = "" if place is None or place == "" else f", but {type(place).__name__}"
        raise MalformedRecordError(f"no path in {image_column!r}{told}")
    folder = record.get(_PREFIXES.get(image_column, ""))
    return f"{folder}/{place.strip()}" if isinstance(folder, str) and folder else place.strip()


def split_value(record: Record) -> str:
    """Return the split that a record names, or nothing if it names none.

    Raises:
        ValueError: a name that is not that of a split.
    """
    value = record.get(SPLIT_COLUMN)
    if value is None or value == "":
        return ""
    if isinstance(value, str) and (split := SPLIT_NAMES.get(value.casefold())):
        return split
    raise ValueError(
        f"Column {SPLIT_COLUMN!r} has {shown(value)}; expected one of {', '.join(SPLIT_NAMES)}. Correct it, or let a "
        "hash of the image id decide (`--no-splits`, with `list` and `dataset`)."
    )


_LIST_FORMS = {".parquet": "parquet", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl"}  # as img2dataset calls them


def download_advice(path: Path, image_column: str, columns: Iterable[str]) -> str:
    """Return the commands that download a list of addresses and open what they leave."""
    layout = recognise(columns, image_column)
    caption, perspective = next(iter(layout.captions.items())) if layout else ("CAPTION", "web")
    return (
        f"Download them with `img2dataset --url_list {path} --input_format {_LIST_FORMS.get(path.suffix, 'csv')} "
        f"--url_col {image_column} --caption_col {caption} --output_format webdataset --output_folder shards`, then "
        f"use `tar shards --caption txt={perspective}`."
    )


def refuse_addresses(path: Path, place: str, image_column: str, columns: Iterable[str]) -> None:
    """Refuse a list of addresses with the command that downloads them.

    Raises:
        ValueError: `place` is an address.
    """
    if is_address(place):
        raise ValueError(
            f"Column {image_column!r} of {path} has addresses, which are not fetched; expected paths of files. "
            f"{download_advice(path, image_column, columns)}"
        )


def name_columns(others: Iterable[str]) -> str:
    """Return how to name the columns with captions, among those that do not name the image."""
    names = list(others)
    if not names:
        return "There is no other column than that of the images; add one with captions, or caption rows."
    return f"Name the columns that hold them, among {', '.join(names)}, as `--caption {names[0]}=short`."


def refuse_unknown(path: Path, columns: Iterable[str]) -> None:
    """Refuse a list in which no column is known to name images.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"No column of {path} is known to name images; expected one of {', '.join(IMAGE_COLUMNS)}, *{_ENDING}. It has "
        f"{', '.join(map(str, columns)) or 'no record'}, and begins with {first_line(path)!r}. Name the column of the "
        "images, with `--image-column`. If it holds the images themselves, use `holistic-clip corpus dataset`."
    )
