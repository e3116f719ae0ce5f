# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Images and captions that a run leaves out: what makes a caption unusable, what each is called, and the log of them.

One bad row never ends a run. Trainer, encoder and evaluation leave it out, name it by its image id, and list it at
their end, as corpus builder, captioner and index do with `Skipped` items.
"""

import logging
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from datasets import Dataset

from ..processing_holistic_clip import is_blank

logger = logging.getLogger(__name__)

MOST_NAMED = 20  # in a warning each
MOST_TOLD = 3  # in a message that ends a run


class UsableCaption(NamedTuple):
    """Caption of a row that has a perspective and a text."""

    perspective: str
    text: str


def usable_captions(image: str, captions: Any, faults: dict[str, str]) -> list[UsableCaption]:
    """Return the captions of an image that can be read, in their order.

    Args:
        image: Name of the image, its id.
        captions: List of what should have a `perspective` and a `text`, as a row of a corpus has it.
        faults: Reasons by name, to which those of the other captions are added.
    """
    if not isinstance(captions, Iterable) or isinstance(captions, (str, Mapping)):
        faults[name_caption(image, "captions")] = f"they are {type(captions).__name__}, not a list"
        return []
    return list(_usable(image, captions, faults))


def _usable(image: str, captions: Iterable[Any], faults: dict[str, str]) -> Iterator[UsableCaption]:
    named: set[str] = set()
    for place, caption in enumerate(captions):
        perspective = caption.get("perspective") if isinstance(caption, Mapping) else None
        if not isinstance(perspective, str):
            faults[name_caption(image, f"caption {place}")] = f"it has no perspective: {reprlib.repr(caption)}"
        elif reason := caption_fault(caption.get("text")):
            # Several captions of one perspective are counted each.
            of_several = f"{perspective}, caption {place}" if perspective in named else perspective
            named.add(perspective)
            faults[name_caption(image, of_several)] = reason
        else:
            yield UsableCaption(perspective, caption["text"])


def caption_fault(text: Any) -> str:
    """Say why a text cannot be a caption; nothing if it can.

    >>> caption_fault("a dog"), caption_fault("&nbsp;"), caption_fault(7)
    ('', "its text is blank: '&nbsp;'", 'its text is int, not a string')
    """
    if not isinstance(text, str):
        return f"its text is {type(text).__name__}, not a string"
    if is_missing_value(text):
        return f"its text is {text.strip()!r}, as tables spell a missing value"
    return f"its text is blank: {reprlib.repr(text)}" if is_blank(text) else ""


# NumPy and pandas; SQL and JSON; pandas again. None is a word that describes a picture.
_MISSING = re.compile(r"\s*(?:nan|null|<na>)\s*", re.IGNORECASE)


def is_missing_value(text: str) -> bool:
    """Tell whether a text is what programs write into a table where there is nothing.

    >>> is_missing_value("NaN"), is_missing_value("null"), is_missing_value("a naan")
    (True, True, False)
    """
    return _MISSING.fullmatch(text) is not None


def name_caption(image: str, perspective: str) -> str:
    """Return what a caption is called in lists of what is left out."""
    return f"{image}, {perspective}"


def row_names(dataset: Dataset) -> list[str]:
    """Return what N rows are called, each otherwise: their image ids, with the number of the row where an id came
    before, or their numbers if the data set has none.
    """
    if "image_id" not in dataset.column_names:
        return [f"row {row}" for row in range(len(dataset))]
    names: dict[str, None] = {}
    for row, image_id in enumerate(dataset["image_id"]):
        name = str(image_id)
        names[f"{name} (row {row})" if name in names else name] = None
    return list(names)


class LeftOutLog:
    """Log of the images and captions that a run leaves out: the reason of each, by its name.

    Args:
        where: Sentence that is said where warnings end, such as which file lists all.
    """

    def __init__(self, where: str = "") -> None:
        self.reasons: dict[str, str] = {}
        self._where = where

    def note(self, found: Mapping[str, str]) -> None:
        """Take up what was met; the first of them are named in a warning each."""
        for name, reason in found.items():
            if name in self.reasons:
                continue
            self.reasons[name] = reason
            if len(self.reasons) > MOST_NAMED:
                continue
            more = f" More are only counted.{self._where}" if len(self.reasons) == MOST_NAMED else ""
            logger.warning("%s is left out: %s.%s", name, reason.rstrip("."), more)


def first_reasons(left_out: Mapping[str, str]) -> str:
    """Return the first things left out, each with its reason, and the number of others.

    >>> first_reasons({"a": "it is gone", "b": "it is empty.", "c": "it is gone", "d": "it is gone"})
    'a: it is gone; b: it is empty; c: it is gone; and 1 more'
    """
    told = [f"{name}: {reason.rstrip('.')}" for name, reason in list(left_out.items())[:MOST_TOLD]]
    more = len(left_out) - MOST_TOLD
    return "; ".join([*told, f"and {more} more"] if more > 0 else told)


def warn_of_all(count: int, where: str = "") -> None:
    """Say at the end of a run how many images and captions were left out, if any.

    Args:
        count: Number of them.
        where: Sentence that says where they are listed.
    """
    if count:
        logger.warning("Images and captions left out: %d.%s", count, where)
