# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""From a record of somebody's data set to captions: which of its columns is which perspective."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Columns = Mapping[str, str | Sequence[str]]


class MalformedRecordError(ValueError):
    """A record without usable captions or image; its text is the reason."""


class CaptionColumns:
    """Reads the captions of records.

    Args:
        columns: of each column that holds captions, the perspective of its text, or of each text of its list. A list
            of perspectives instead names the texts of a list by their position.
        source: whom the captions are from. Where several texts of an image have one perspective, their column or
            their number in the list follows.

    Raises:
        ValueError: an empty name.

    Example: `CaptionColumns({"alt": "web", "caption": ["detail", "short"]}, "cc3m")`.
    """

    def __init__(self, columns: Columns, source: str) -> None:
        named = {column: [names] if isinstance(names, str) else list(names) for column, names in columns.items()}
        if not source.strip() or not all(name.strip() for names in named.values() for name in names):
            raise ValueError(f"Got the columns {dict(columns)} of {source!r}; expected no empty name. Name them all.")
        shared = Counter(name for names in named.values() for name in set(names))
        self._columns = dict(columns)
        self._sources = {
            column: f"{source}-{column}" if any(shared[name] > 1 for name in names) else source
            for column, names in named.items()
        }
        self._unseen = set(columns)
        self._seen: dict[str, None] = {}

    def read(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        """The captions of one record; what is `None` or blank is none.

        Raises:
            MalformedRecordError: something else than text in a column.
            ValueError: a list that is longer than its list of perspectives.
        """
        self._unseen -= record.keys()
        if len(self._seen) < 100:  # enough for the error message
            self._seen |= dict.fromkeys(record)
        return [caption for column in self._columns for caption in self._read_column(record, column)]

    def require_all_seen(self, place: str) -> None:
        """Raise `ValueError` if a column was in no record so far; `place` is where they came from."""
        if self._unseen:
            raise ValueError(
                f"Got the caption columns {sorted(self._unseen)}, which no record of {place} has. It has: "
                f"{', '.join(self._seen) or 'no records'}. Correct the names."
            )

    def _read_column(self, record: Mapping[str, Any], column: str) -> Iterable[dict[str, str]]:
        value, names, source = record.get(column), self._columns[column], self._sources[column]
        texts = value if isinstance(value, list) else [value]
        if not isinstance(names, str) and len(texts) > len(names):
            raise ValueError(
                f"Got {len(texts)} captions in {column!r} and {len(names)} perspectives for them: {', '.join(names)}. "
                f"The captions begin with {texts[:1]}. Name a perspective for each position."
            )
        captions = []
        for place, text in enumerate(texts):
            if text is None:
                continue
            if not isinstance(text, str):
                raise MalformedRecordError(f"{column!r} holds {type(text).__name__}, not text")
            name = names if isinstance(names, str) else names[place]
            is_numbered = len(texts) > 1 and (isinstance(names, str) or names.count(name) > 1)
            captions.append((name, text.strip(), f"{source}-{place}" if is_numbered else source))
        return [{"perspective": name, "text": text, "source": by} for name, text, by in captions if text]
