# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions that visitors of the page correct: a list of all images with their captions, as JSON lines.

    {"file_name": "animals/fox.jpg", "short": "a red fox", "style": ["a photo", "taken at dusk"]}

`holistic-clip corpus list FILE --root photos --caption short --caption style` builds a corpus of it, and `finetune
--captions` reads it. The file is replaced in one step, under a lock, and holds every image that has captions, so that
nothing has to be joined.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

from ..images.files import read_file
from ..locks import InUseError, hold_lock, lock_beside
from ..storage import parse_json, require_place, write_atomically
from .captions import FILE_NAME, Captions, CaptionsById

ENDING = ".jsonl"
IMAGE, SPLIT = "file_name", "split"  # columns that are not captions, as `corpus list` knows them
MOST_EDITED = 64  # captions of one image
LONGEST_EDITED = 2_000  # letters of a caption
_SECONDS = 10  # to wait for another process that saves
_UNSEEN = ("Cc", "Cs")  # categories of control characters, and of halves of letters
Known = dict[str, list[tuple[str, str]]]


class RefusedCaptionsError(ValueError):
    """Captions that are not saved; the text says why, to the visitor who wrote them."""


class CaptionFile:
    """The list of captions in a file, which need not exist yet; any number of threads and processes may save.

    Args:
        path: File of JSON lines.

    Raises:
        ValueError: a name with another ending, a place where nothing may be written, or a file of another form.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix.casefold() != ENDING:
            raise ValueError(
                f"`--edit-captions` is {self.path}; expected a name that ends in {ENDING}, for JSON lines. Rename it."
            )
        require_place(self.path, "--edit-captions")
        self.read()

    def read(self) -> Known:
        """Return the captions by image id; nothing of a file that does not exist.

        Raises:
            ValueError: a line that is not a record of an image with its captions.
            OSError: the file cannot be read.
        """
        return {image_id: _captions_in(record) for image_id, record in self._records().items()}

    def save(self, image_id: str, seen: str, captions: Captions, shown: CaptionsById) -> None:
        """Replace the captions of one image.

        Args:
            image_id: Id of the image.
            seen: `digest_of` the captions that the visitor began with.
            captions: Captions of the image from now on; none means that it has none.
            shown: Captions of all images as they are shown, which a new file begins with.

        Raises:
            RefusedCaptionsError: somebody else has saved other captions of this image since.
            OSError: the file cannot be written, and is as it was.
            ValueError: as `read`.
        """
        try:
            with hold_lock(lock_beside(self.path), wait=_SECONDS):
                records = self._records()
                if not self.path.exists():
                    own = {each: own_captions(pairs) for each, pairs in shown.items()}
                    records = {each: _record_of(each, pairs) for each, pairs in own.items() if pairs}
                before = records.get(image_id)
                current = own_captions(shown.get(image_id, ())) if before is None else _captions_in(before)
                if digest_of(current) != seen:
                    raise RefusedCaptionsError(
                        "Somebody else has saved other captions of this image in the meantime. Open the image again."
                    )
                kept = {SPLIT: before[SPLIT]} if before and SPLIT in before else {}
                records[image_id] = _record_of(image_id, captions) | kept
                with write_atomically(self.path) as file:
                    file.writelines(_line(record) for record in records.values())
        except InUseError as error:
            raise RefusedCaptionsError("Others are saving captions just now. Save again in a moment.") from error

    def _records(self) -> dict[str, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        found: dict[str, dict[str, Any]] = {}
        # By line feeds alone: JSON may hold other separators of lines.
        for number, line in enumerate(read_file(self.path).split(b"\n"), start=1):
            if not line.strip():
                continue
            record = _parsed(line)
            image_id = record.get(IMAGE) if record else None
            if record is None or not isinstance(image_id, str) or image_id in found:
                told = f"names {image_id!r} again" if isinstance(image_id, str) else "is not a record"
                raise ValueError(
                    f"`--edit-captions` is {self.path}, whose line {number} {told}; expected JSON with {IMAGE!r}, "
                    "once for each image, and a text or a list of texts for each perspective. Correct it, or name "
                    "another file."
                )
            found[image_id] = record
        return found


def own_captions(captions: Captions) -> list[tuple[str, str]]:
    """Return the captions that somebody wrote, without those made of a file's name."""
    return [(perspective, text) for perspective, text in captions if perspective != FILE_NAME]


def digest_of(captions: Captions) -> str:
    """Return what captions are known again by, in whatever order their perspectives come."""
    by_name = sorted(_by_perspective(captions).items())
    return hashlib.sha256(json.dumps(by_name).encode()).hexdigest()[:16]


def is_pairs(given: Any) -> bool:
    """Tell whether something that a visitor sent has the form of an image's captions."""
    return (
        isinstance(given, list)
        and len(given) <= MOST_EDITED
        and all(isinstance(pair, list) and len(pair) == 2 for pair in given)
        and all(isinstance(each, str) for pair in given for each in pair)
    )


def clean_edited(given: Any, perspectives: Sequence[str]) -> list[tuple[str, str]]:
    """Return captions as a visitor sent them, white space evened out, empty ones and repetitions left out.

    Raises:
        RefusedCaptionsError: not pairs of a known perspective and a text, too many, too long, or with control
            characters.
    """
    if not is_pairs(given):
        raise RefusedCaptionsError(f"Not saved: expected up to {MOST_EDITED} pairs of a perspective and a text.")
    found = []
    for pair in given:
        perspective, text = pair[0], " ".join(pair[1].split())
        if perspective not in perspectives or perspective in (IMAGE, SPLIT, FILE_NAME):
            raise RefusedCaptionsError(f"Not saved: there is no perspective {perspective[:60]!r} here.")
        if len(text) > LONGEST_EDITED or any(category(letter) in _UNSEEN for letter in text):
            raise RefusedCaptionsError(
                f"The caption {text[:40]!r} has {len(text):,} letters; expected up to {LONGEST_EDITED:,} without "
                "control characters. Nothing is saved."
            )
        if text:
            found.append((perspective, text))
    return list(dict.fromkeys(found))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and all(
        isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
        for value in record.values()
    )
    return record if is_record else None


def _captions_in(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, text)
        for name, value in record.items()
        if name not in (IMAGE, SPLIT)
        for text in ([value] if isinstance(value, str) else value)
        if text.strip()
    ]


def _record_of(image_id: str, captions: Captions) -> dict[str, Any]:
    by_name = _by_perspective(captions)
    return {IMAGE: image_id} | {name: texts[0] if len(texts) == 1 else texts for name, texts in by_name.items()}


def _by_perspective(captions: Captions) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for perspective, text in captions:
        found.setdefault(perspective, []).append(text)
    return found


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
