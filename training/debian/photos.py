# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Write the photographs among the Tux Paint stamps as somebody would keep them: a folder and a table of captions.

    python -m training.debian.photos photos

The folder then holds some 330 pictures and `captions.csv` with the columns `image`, `title` and `kind`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import tyro
from tyro.conf import Positional

from holistic_clip_hf.cli.main import end_in_a_sentence
from holistic_clip_hf.images.decoding import read_image
from holistic_clip_hf.images.sources import Item, Source
from training.debian.corpora import open_debian
from training.debian.tuxpaint import NAME

TABLE = "captions.csv"
COLUMNS = ("image", "title", "kind")
DRAWN = {"symbols", "cartoon"}  # names of folders without photographs
# A drawing has a few hundred colours, however large it is, and a photograph of n pixels many times the root of n. By
# eye, the stamps part at 22: coins, flags and icons are below, animals and fruit above.
COLOURS_PER_ROOT = 22.0
OPAQUE = 250  # alpha of 255, since edges of drawings have as many shades as photographs


def is_photograph(picture: bytes) -> bool:
    """Tell a photograph from a drawing by the number of its colours.

    Args:
        picture: PNG file.
    """
    pixels = np.asarray(read_image(picture).convert("RGBA")).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > OPAQUE, :3].astype(np.int64)
    colours = np.unique(opaque @ np.array([65536, 256, 1]))
    return len(colours) >= COLOURS_PER_ROOT * max(1, len(opaque)) ** 0.5


def write_photos(stamps: Source, folder: Path) -> int:
    """Write the photographs and their table, and return their number.

    Args:
        stamps: Source of the stamps.
        folder: Folder for them, new or empty.

    Raises:
        ValueError: the folder holds something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; expected a new folder for the photos. Give another name.")
    rows = []
    for item in stamps.items():
        if not isinstance(item, Item):
            continue
        path = PurePosixPath(item.place)
        if path.suffix != ".png" or DRAWN & set(path.parts):
            continue
        picture = stamps.read(item.place)
        if is_photograph(picture):
            name = f"{path.parent.name}-{path.name}"
            (folder / name).write_bytes(picture)
            texts = {caption["perspective"]: caption["text"] for caption in item.captions}
            rows.append((name, texts["short"], texts["category"]))
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return len(rows)


@dataclass(frozen=True)
class Photos:
    """Write the photographs among the Tux Paint stamps into a folder, with a table of captions.

    Args:
        folder: Folder for them, new or empty.
        cache_dir: Folder of downloads. Default: $HOLISTIC_CLIP_CACHE, or the user's cache.
    """

    folder: Positional[Path]
    cache_dir: Path | None = None

    def __call__(self) -> None:
        """Fetch the package unless it is there, and print the number of photographs."""
        from holistic_clip_hf.corpus.build import cache_root

        stamps, _ = open_debian(NAME, self.cache_dir or cache_root())
        print(f"{write_photos(stamps, self.folder)} photos and {TABLE} in {self.folder}")


if __name__ == "__main__":
    with end_in_a_sentence("python -m training.debian.photos"):
        tyro.cli(Photos, prog="python -m training.debian.photos", description=__doc__)()
