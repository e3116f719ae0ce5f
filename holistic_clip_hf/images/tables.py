# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Sources of images that are rows of a dataset of `datasets`, from the Hub or from disk."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value, load_dataset, load_from_disk
from datasets import Image as ImageFeature
from datasets import IterableDataset as DatasetsStream

from ..processing_holistic_clip import eight_bits
from .decoding import decode_image
from .files import is_address, read_image_column
from .folders import RESERVED
from .layouts import (
    SPLIT_COLUMN,
    caption_values,
    download_advice,
    find_image_column,
    name_columns,
    recognise,
    split_value,
)
from .sources import CaptionColumns, Columns, Item, MalformedRecordError, Skipped, join_captions


class DatasetImages:
    """The rows of a map-style data set, such as a built corpus.

    Args:
        dataset: with a column of the feature `Image`.
        id_column: names each row, once.
        image_column: Column of the images.
        columns: further ones to filter by, of strings, numbers or truth values.
        name: Name of the dataset, for the index to tell.

    Raises:
        ValueError: a column that the data set lacks or that holds something else.

    Example: `DatasetImages(load_corpus(directory), columns=["artist"])`.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        id_column: str = "image_id",
        image_column: str = "image",
        columns: Sequence[str] = (),
        name: str = "dataset",
    ) -> None:
        wanted = [id_column, image_column, *columns]
        if absent := [column for column in wanted if column not in dataset.column_names]:
            raise ValueError(
                f"The columns {absent} are missing; expected some of {', '.join(dataset.column_names)}, which {name} "
                f"has. "
                "Correct them."
            )
        if not isinstance(dataset.features[image_column], Image):
            raise ValueError(
                f"Column {image_column!r} holds {dataset.features[image_column]}; expected images. Cast it: "
                f"`dataset.cast_column({image_column!r}, datasets.Image())`."
            )
        for column in columns:
            feature = dataset.features[column]
            if column in RESERVED or column.startswith("vector.") or not isinstance(feature, Value):
                raise ValueError(
                    f"Column {column!r} of {feature} is nothing to filter by; expected strings, numbers and truth "
                    f"values under another name than {', '.join(RESERVED)} and vector."
                )
        self.origin: Mapping[str, str] = {"kind": "dataset", "name": name}
        self.features = Features({column: dataset.features[column] for column in columns})
        self.others: Mapping[str, int] = {}
        ids = [str(value) for value in dataset.with_format(None)[id_column]]
        self._images = dataset.with_format(None).select_columns(image_column)
        self._images = self._images.cast_column(image_column, Image(decode=False))
        self._facts = dataset.with_format(None).select_columns(list(columns)) if columns else None
        self._image_column = image_column
        self._ids = ids
        self._rows = {image_id: row for row, image_id in reversed(list(enumerate(ids)))}  # the first of equal ones

    def items(self) -> Iterator[Item | Skipped]:
        """Yield the items; an image's stamp is a hash of its bytes and columns, so all bytes are read."""
        for row, image_id in enumerate(self._ids):
            if self._rows[image_id] != row:
                yield Skipped(image_id, f"row {row} has the image id of row {self._rows[image_id]}")
                continue
            try:
                contents = self.read(image_id)
            except OSError as error:
                yield Skipped(image_id, f"{type(error).__name__}: {error}")
                continue
            facts = json.dumps(self.columns(image_id), sort_keys=True, default=str).encode()
            yield Item(image_id, image_id, hashlib.blake2b(contents + facts, digest_size=16).hexdigest())

    def read(self, image_id: str) -> bytes:
        """Return the file of an image. Raises `OSError` for a row that has neither bytes nor a path that may be read;
        see `files.read_named`.
        """
        return read_image_column(self._images[self._rows[image_id]][self._image_column])

    def stamp(self, item: Item, contents: bytes) -> str:
        return item.stamp

    def recognises(self, item: Item, stamp: str) -> bool:
        return item.stamp == stamp

    def columns(self, image_id: str) -> dict[str, Any]:
        return {} if self._facts is None else self._facts[self._rows[image_id]]


class TableSource:
    """A `Source` of the rows of a map-style data set.

    Rows with one id are one image with several captions. A row that names a file by its path is read if the file lies
    below one of `folders`; see `files.read_named`. Addresses are not fetched.

    Args:
        dataset: with a column of images: of the feature `Image`, or the bytes of image files.
        captions: which columns are captions; see `CaptionColumns`. A column of lists of captions is one, too. Default:
            those of a known layout; see `layouts`.
        name: Name of the source, and of the captions' source, such as the dataset's name on the Hub.
        image_column, id_column: Columns of images and their ids. Without ids, the number of the row is the id.
        split: Split that all its rows belong to (`train`, `validation` or `test`). Default: what the column `split`
            says, or else the builder.
        folders: Folders that hold the data set, into which no corpus is built.

    Raises:
        ValueError: a column that the data set lacks, or an image column that holds no images.

    Example: `TableSource(load_dataset("me/birds", split="train"), {"caption": "short"}, name="me/birds")`.
    """

    def __init__(
        self,
        dataset: Dataset,
        captions: Columns | None = None,
        *,
        name: str,
        image_column: str = "image",
        id_column: str | None = None,
        split: str = "",
        folders: Sequence[Path] = (),
    ) -> None:
        known = recognise(dataset.column_names, image_column)
        captions = captions or (known.captions if known else {})
        wanted = [image_column, *captions, *([id_column] if id_column else [])]
        if absent := [column for column in wanted if column not in dataset.column_names]:
            addresses = find_image_column(dataset.column_names)
            if image_column in absent and addresses:  # said of what the column holds
                _with_encoded_images(dataset, addresses)
            raise ValueError(
                f"The columns {absent} are missing; expected some of {', '.join(dataset.column_names)}, which {name} "
                f"has. "
                "Correct them."
            )
        dataset = _with_encoded_images(dataset, image_column)
        self.name = name
        self.captions = captions
        self.split = split
        self.hint = name_columns(name for name in dataset.column_names if name not in (image_column, id_column))
        self._roots = tuple(folders)
        # Of rows that `datasets` maps into memory it says itself where they lie.
        self.folders, self.is_walked = (*folders, *(Path(each["filename"]) for each in dataset.cache_files)), False
        self.origins = (*map(str, folders), *([] if folders else [name]))  # a cache lies now here, now there
        self._images = dataset.select_columns(image_column).with_format(None)
        read = [*captions, *([id_column] if id_column else []), SPLIT_COLUMN]
        self._texts = dataset.select_columns([name for name in dict.fromkeys(read) if name in dataset.column_names])
        self._texts = self._texts.with_format(None)
        self._image_column = image_column
        self._id_column = id_column
        self._stamp = str(dataset._fingerprint)  # `datasets` offers no other way to tell whether rows changed
        CaptionColumns(captions, name)

    def items(self) -> Iterator[Item | Skipped]:
        return self._rows() if self._id_column is None else join_captions(self._rows())

    def read(self, place: str) -> bytes:
        return read_image_column(self._images[int(place)][self._image_column], self._roots)

    def _rows(self) -> Iterator[Item | Skipped]:
        columns = CaptionColumns(self.captions, self.name)
        rows: Any = self._texts if self._texts.column_names else ({} for _ in range(len(self._images)))
        for number, row in enumerate(rows):
            image_id = str(number if self._id_column is None else row[self._id_column])
            try:
                captions = columns.read(caption_values(row, self.captions))
                yield Item(image_id, str(number), self._stamp, captions, split=self.split or split_value(row))
            except MalformedRecordError as error:
                yield Skipped(image_id, str(error))


def _with_encoded_images(dataset: Dataset, column: str) -> Dataset:
    """Return the rows with the files of their images.

    Raises:
        ValueError: the column holds something else.
    """
    feature = dataset.features[column]
    if isinstance(feature, Image):
        return dataset.cast_column(column, Image(decode=False))
    if isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"):
        return dataset
    first = dataset.with_format(None)[0][column] if len(dataset) else None
    if isinstance(first, str) and is_address(first):
        advice = download_advice(Path("urls.parquet"), column, dataset.column_names)
        remedy = f"Save the rows with `dataset.to_parquet('urls.parquet')`. {advice}"
    elif isinstance(first, str):
        remedy = "Save the rows as CSV or JSON lines, and give them to `list` with the folder of the files."
    else:
        remedy = f"Cast it: `dataset.cast_column({column!r}, datasets.Image())`."
    raise ValueError(f"`image_column` is {column!r} of {feature}; expected images, or bytes of image files. {remedy}")


class OpenedImage(ImageFeature):
    """Feature `Image` of `datasets` that decodes through `open_image`; by itself it would start Ghostscript on EPS.

    It is written into files as an `Image`.
    """

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        """Return the image, in the mode that is asked for.

        Raises:
            UnreadableImageError: as `decode_image`.
        """
        if not isinstance(value, (dict, str)):
            return value
        image = decode_image(value)
        return eight_bits(image).convert(self.mode) if self.mode and self.mode != image.mode else image


def undecoded(dataset: Any, column: str = "image") -> Any:
    """Return the same rows with the bytes of their images: their reader decodes them, and can leave one out that it
    cannot.

    Images stay decoded, but by `OpenedImage`, if the rows have a format or go through a transform, and if a mode is
    asked for. Objects from outside `datasets` are returned unchanged. A dict is converted entry by entry.
    """
    if isinstance(dataset, dict):
        return {name: undecoded(each, column) for name, each in dataset.items()}
    if not isinstance(dataset, (Dataset, DatasetsStream)):
        return dataset
    feature = (dataset.features or {}).get(column)
    if not isinstance(feature, ImageFeature) or not feature.decode:
        return dataset
    is_formatted = isinstance(dataset, Dataset) and dataset.format["type"] is not None
    stays_decoded = is_formatted or feature.mode is not None
    return dataset.cast_column(column, OpenedImage(mode=feature.mode) if stays_decoded else ImageFeature(decode=False))


def load_table(name: str, config: str | None = None, split: str = "train") -> Dataset:
    """Load a split of a dataset, from a folder that `datasets` saved, a file in parquet, or the Hub.

    Raises:
        ValueError: the folder has no such split.
    """
    if Path(name).is_file():
        return load_dataset("parquet", data_files=name, split="train")
    if not Path(name, "state.json").is_file() and not Path(name, "dataset_dict.json").is_file():
        return load_dataset(name, config, split=split)
    loaded = load_from_disk(name)
    if isinstance(loaded, Dataset):
        return loaded
    if split not in loaded:
        raise ValueError(f"`from_split` is {split!r}; expected one of {', '.join(loaded)}, which {name} has.")
    return loaded[split]
