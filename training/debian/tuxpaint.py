# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Tux Paint stamps: cut-out photographs and drawings, each with a sentence and the folders it lies in."""

from collections.abc import Iterator
from pathlib import Path

import resvg_py

from holistic_clip_hf.images.sources import Item, Skipped

NAME = "tuxpaint"


PERSPECTIVES = ("short", "category")


_STAMPS = Path("usr/share/tuxpaint/stamps")


_SIDE = 256  # of vector stamps, in pixels; photographs are as they come


class TuxPaint:
    """A `Source` of the stamps below an unpacked package; where a stamp is there as photo and drawing, the photo."""

    name = NAME

    def __init__(self, unpacked: Path, package: str) -> None:
        self._folder = unpacked / _STAMPS
        self._package = package

    def items(self) -> Iterator[Item | Skipped]:
        for text_path in sorted(self._folder.rglob("*.txt")):
            stamp = text_path.relative_to(self._folder).with_suffix("")
            picture = self._picture(stamp)
            if picture is None:
                yield Skipped(stamp.as_posix(), "a text without a picture")
                continue
            sentence = text_path.read_text(encoding="utf-8").partition("\n")[0].strip()
            captions = [self._caption("short", sentence), self._caption("category", ", ".join(stamp.parts[:-1]))]
            yield Item(stamp.as_posix(), picture, self._package, [each for each in captions if each["text"]])

    def read(self, place: str) -> bytes:
        path = self._folder / place
        if path.suffix == ".png":
            return path.read_bytes()
        try:
            return bytes(resvg_py.svg_to_bytes(svg_string=path.read_text(encoding="utf-8"), width=_SIDE))
        except ValueError as error:
            raise OSError(f"does not draw: {error}") from error

    def _picture(self, stamp: Path) -> str | None:
        found = [stamp.as_posix() + suffix for suffix in (".png", ".svg")]
        return next((place for place in found if (self._folder / place).is_file()), None)

    def _caption(self, perspective: str, text: str) -> dict[str, str]:
        return {"perspective": perspective, "text": text, "source": NAME}
