# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Source of a data set of `datasets`, from the Hub or from disk, with one or several columns of captions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, Value

from .build import Skipped
from .columns import CaptionColumns, Columns, MalformedRecordError
from .source import Item


class TableSource:
    """A `Source` of the rows of a map-style data set.

    Args:
        dataset: with a column of images: of the feature `Image`, or the bytes of image files.
        captions: which columns are captions; see `CaptionColumns`. A column of lists of captions is one, too.
        name: of the source, and of the captions' source: the name of the data set on the Hub, say.
        image_column, id_column: where images and their ids are. Without ids, the number of the row is the id.
        split: what all its rows belong to: `train`, `validation` or `test`. Default: the builder decides.

    Raises:
        ValueError: a column that the data set lacks, or an image column that holds no images.

    Example: `TableSource(load_dataset("me/birds", split="train"), {"caption": "short"}, name="me/birds")`.
    """

    def __init__(
        self,
        dataset: Dataset,
        captions: Columns,
        *,
        name: str,
        image_column: str = "image",
        id_column: str | None = None,
        split: str = "",
    ) -> None:
        wanted = [image_column, *captions, *([id_column] if id_column else [])]
        if absent := [column for column in wanted if column not in dataset.column_names]:
            raise ValueError(f"Got the columns {absent}; {name} has {', '.join(dataset.column_names)}. Correct them.")
        feature = dataset.features[image_column]
        if isinstance(feature, Image):
            dataset = dataset.cast_column(image_column, Image(decode=False))
        elif not (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")):
            raise ValueError(
                f"Got the image column {image_column!r} of {feature}; expected images, or bytes of image files. "
                f"Cast it: `dataset.cast_column({image_column!r}, datasets.Image())`."
            )
        self.name = name
        self.captions = captions
        self.split = split
        self._images = dataset.select_columns(image_column).with_format(None)
        self._texts = dataset.select_columns([*captions, *([id_column] if id_column else [])]).with_format(None)
        self._image_column = image_column
        self._id_column = id_column
        self._stamp = str(dataset._fingerprint)  # `datasets` offers no other way to tell whether rows changed
        CaptionColumns(captions, name)

    def items(self) -> Iterator[Item | Skipped]:
        columns = CaptionColumns(self.captions, self.name)
        rows: Any = self._texts if self._texts.column_names else ({} for _ in range(len(self._images)))
        for number, row in enumerate(rows):
            image_id = str(number if self._id_column is None else row[self._id_column])
            try:
                yield Item(image_id, str(number), self._stamp, columns.read(row), split=self.split)
            except MalformedRecordError as error:
                yield Skipped(image_id, str(error))

    def read(self, place: str) -> bytes:
        image = self._images[int(place)][self._image_column]
        if isinstance(image, dict):
            if image["bytes"] is None and image["path"] is not None:
                return Path(image["path"]).read_bytes()
            image = image["bytes"]
        if image is None:
            raise OSError("the row has no image")
        return image
