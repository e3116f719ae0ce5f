# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What a corpus is made from: the interface of sources."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from .build import Skipped


class Item(NamedTuple):
    """One image of a source and the captions that come with it; its bytes are read later, by `place`.

    Args:
        image_id: unique in its source.
        place: where the bytes are, in the words of the source's own `read`.
        stamp: changes when the bytes do, as far as that is known without reading them.
        captions: `perspective`, `text` and `source` of each; may be empty.
        num_bytes: of the image, where that is known without reading it; 0 where it is not.
        split: `train`, `validation` or `test`, where the source itself says so; otherwise the builder decides.
    """

    image_id: str
    place: str
    stamp: str
    captions: Sequence[Mapping[str, str]] = ()
    num_bytes: int = 0
    split: str = ""


class Source(Protocol):
    """Images in a fixed order, listed without reading them; `name` is for people.

    A source may say in `folders` which files and folders it reads, and in `is_walked` whether everything below them is
    an item: no corpus is built into these.
    """

    name: str

    def items(self) -> Iterator[Item | Skipped]:
        """All images, and what could not become one, with the reason; the same at every call."""
        ...

    def read(self, place: str) -> bytes:
        """The bytes of an image, as they were stored. Raises `OSError` where they cannot be read."""
        ...
