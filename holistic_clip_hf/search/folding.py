# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Folding of results: near-duplicates of a better image stand behind it, as web search engines do by default.

They are known by their pixels, since vectors of a burst of photos are as near to each other as those of copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from ..images.likeness import SIDE, are_alike, make_thumbnail
from .index import SearchIndex
from .last_used import LastUsed
from .scoring import Hit

MOST_REMEMBERED = 4_096  # thumbnails, 0.8 KB each


@dataclass(frozen=True)
class Fold:
    """An image that was found, and its near-duplicates among those that were found behind it.

    Args:
        hit: Best of them.
        alike: The others, best first.
    """

    hit: Hit
    alike: Sequence[Hit] = ()


class Folder:
    """Finder of near-duplicates among the images of an index; any number of threads may ask it.

    Args:
        index: Index of the images, whose source is read.
    """

    def __init__(self, index: SearchIndex) -> None:
        self._index = index
        self._thumbnails = LastUsed[np.ndarray | None](MOST_REMEMBERED)

    def fold(self, hits: Sequence[Hit]) -> list[Fold]:
        """Put each hit behind the first that it is a near-duplicate of. Images that cannot be read stand alone."""
        found: list[tuple[Hit, list[Hit]]] = []
        heads = np.empty((len(hits), SIDE, SIDE, 3), np.uint8)
        owners: list[int] = []  # of each head, its place in `found`
        for hit in hits:
            thumbnail = self._thumbnails.of(hit.image_id, partial(self._read, hit.image_id))
            if thumbnail is not None:
                known = heads[: len(owners)]
                alike = np.flatnonzero(are_alike(known, np.broadcast_to(thumbnail, known.shape)))
                if len(alike):
                    found[owners[alike[0]]][1].append(hit)
                    continue
                heads[len(owners)] = thumbnail
                owners.append(len(found))
            found.append((hit, []))
        return [Fold(hit, alike) for hit, alike in found]

    def remember(self, image_id: str, image: Image.Image) -> None:
        """Take the thumbnail of an image that has been read anyway, so that its file is not read again."""
        self._thumbnails.keep(image_id, make_thumbnail(image))

    def _read(self, image_id: str) -> np.ndarray | None:
        try:
            return self._index.thumbnail(image_id)
        except (KeyError, ValueError):
            return None
