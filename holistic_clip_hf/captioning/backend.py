# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""What a captioner asks of whatever answers: the interface of backends."""

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple, Protocol

from PIL import Image

from .perspectives import Perspective


class Work(NamedTuple):
    """One image and what is still to be asked about it; `image` is upright and RGB."""

    image_id: str
    image: Image.Image
    perspectives: Sequence[Perspective]


class Reply(NamedTuple):
    """One answer as it came: `text`, and whether it is `finished` or hit its budget; or else the `error`."""

    image_id: str
    perspective: Perspective
    text: str = ""
    finished: bool = True
    error: str = ""


class Backend(Protocol):
    """Answers perspectives of images; `captioner` and `revision` say who does, for the rows."""

    captioner: str
    revision: str

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        """One reply per image and perspective, in any order; a failure is a reply too, and never ends the others.

        `work` is taken as it is needed, a bounded number of images ahead, by the thread that takes the replies.
        Closing the iterator stops cleanly.
        """
        ...
