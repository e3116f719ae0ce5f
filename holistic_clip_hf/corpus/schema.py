"""The corpus row: one image, and its captions by perspective and source."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Features, Image, List, Value

CAPTION_FIELDS = ("perspective", "text", "source")


def corpus_features(**extra: Any) -> Features:
    """The features of every corpus, followed by the `extra` columns of this one.

    Example: `corpus_features(artist=Value("string"))`.
    """
    captions = List({field: Value("string") for field in CAPTION_FIELDS})
    core = {"image_id": Value("string"), "image": Image(), "captions": captions}
    if taken := sorted(core.keys() & extra.keys()):
        raise ValueError(f"Got the extra columns {taken}; every corpus has {sorted(core)} already. Rename yours.")
    return Features({**core, **extra})


def validate_row(row: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless `row` has an image id, an image and well-formed captions."""
    if missing := [column for column in ("image_id", "image", "captions") if row.get(column) is None]:
        raise ValueError(f"Got a row without {missing}; expected image_id, image and captions. Add them.")
    image_id = row["image_id"]
    if not isinstance(image_id, str) or not image_id.strip():
        raise ValueError(f"Got image_id {image_id!r}; expected a string that is not empty. Name each image once.")
    seen = set()
    for caption in row["captions"]:
        _validate_caption(image_id, caption)
        key = (caption["perspective"], caption["source"])
        if key in seen:
            raise ValueError(
                f"Image {image_id!r}: got two captions with perspective {key[0]!r} and source {key[1]!r}; "
                "expected one. Drop one, or tell their sources apart."
            )
        seen.add(key)


def _validate_caption(image_id: str, caption: Mapping[str, Any]) -> None:
    if sorted(caption) != sorted(CAPTION_FIELDS):
        raise ValueError(
            f"Image {image_id!r}: got a caption with the fields {sorted(caption)}; expected {sorted(CAPTION_FIELDS)}. "
            "Add or remove fields."
        )
    for field, value in caption.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"Image {image_id!r}: got the caption {field} {value!r}; expected a string that is not empty. "
                "Leave a missing caption out of the list."
            )


def count_perspectives(dataset: Dataset) -> dict[str, int]:
    """The number of captions of each perspective, most frequent first; images are not read."""
    counts: Counter[str] = Counter()
    for table in dataset.select_columns("captions").with_format("arrow").iter(batch_size=10_000):
        perspectives = table["captions"].combine_chunks().flatten().field("perspective")
        counts.update({pair["values"]: pair["counts"] for pair in pc.value_counts(perspectives).to_pylist()})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def require_perspectives(dataset: Dataset, perspectives: Sequence[str], *, name: str) -> None:
    """Raise `ValueError` unless the dataset has captions of every perspective; `name` is what to call it."""
    found = count_perspectives(dataset)
    absent = [perspective for perspective in perspectives if perspective not in found]
    if absent:
        raise ValueError(
            f"`{name}` has no caption of {absent}. It has: {', '.join(sorted(found)) or 'none'}. Set `slots` to "
            f"perspectives of the corpus."
        )
