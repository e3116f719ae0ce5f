# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The Open Clip Art Library: drawings with title, keywords, sometimes a description, and the folders they lie in."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from holistic_clip_hf.images.sources import Item, Skipped

NAME = "openclipart"


PERSPECTIVES = ("short", "nouns", "detail", "category")


_PICTURES = Path("usr/share/openclipart/png")


_DRAWINGS = Path("usr/share/openclipart/svg")


_DC = "{http://purl.org/dc/elements/1.1/}"


_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


# What scripts of the library left behind.
_NO_KEYWORD = re.compile(r"hash\(0x|^(hash|unsorted)$", re.IGNORECASE)


_NO_TITLE = re.compile(r"^Part of the .+ Collection")


_NO_DESCRIPTION = re.compile(r"@|https?:")  # addresses of the authors


_FEWEST_WORDS = 4  # of a description: below it repeats the title


class OpenClipArt:
    """A `Source` of the pictures; what is said of one is in the drawing that it was made from."""

    name = NAME

    def __init__(self, pictures: Path, drawings: Path, package: str) -> None:
        self._pictures = pictures / _PICTURES
        self._drawings = drawings / _DRAWINGS
        self._package = package

    def items(self) -> Iterator[Item | Skipped]:
        for path in sorted(self._pictures.rglob("*.png")):
            place = path.relative_to(self._pictures).as_posix()
            image_id = place.removesuffix(".png")
            if path.is_symlink():
                yield Skipped(image_id, f"another name of a picture: {path.readlink().as_posix()}")
                continue
            try:
                captions = self._captions(image_id)
            except (OSError, ElementTree.ParseError) as error:
                yield Skipped(image_id, f"its drawing does not say what it is: {type(error).__name__}")
                continue
            yield Item(image_id, place, self._package, captions)

    def read(self, place: str) -> bytes:
        return (self._pictures / place).read_bytes()

    def _captions(self, image_id: str) -> list[dict[str, str]]:
        work = ElementTree.parse(self._drawings / f"{image_id}.svg").find(f".//{_DC}title/..")
        title = description = ""
        keywords: list[str] = []
        if work is not None:
            title, description = (_words(work.findtext(f"{_DC}{field}")) for field in ("title", "description"))
            keywords = [_words(each.text) for each in work.iterfind(f"{_DC}subject/{_RDF}Bag/{_RDF}li")]
        if _NO_DESCRIPTION.search(description) or len(description.split()) < _FEWEST_WORDS or description == title:
            description = ""
        texts = {
            "short": "" if _NO_TITLE.search(title) else title,
            "nouns": ", ".join(dict.fromkeys(each for each in keywords if each and not _NO_KEYWORD.search(each))),
            "detail": description,
            "category": ", ".join(part.replace("_", " ") for part in image_id.split("/")[:-1]),
        }
        return [{"perspective": name, "text": text, "source": NAME} for name, text in texts.items() if text]


def _words(text: str | None) -> str:
    return " ".join((text or "").split())
