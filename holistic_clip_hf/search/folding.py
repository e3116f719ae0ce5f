# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Folding of results: near-duplicates of a better image stand behind it, as web search engines do by default.

They are known by their pixels, since vectors of a burst of photos are as near to each other as those of copies.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..images.likeness import SIDE, are_alike, make_thumbnail
from .index import SearchIndex
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
        self._remembered: OrderedDict[str, np.ndarray | None] = OrderedDict()
        self._lock = threading.Lock()

    def fold(self, hits: Sequence[Hit]) -> list[Fold]:
        """Put each hit behind the first that it is a near-duplicate of. Images that cannot be read stand alone."""
        found: list[tuple[Hit, list[Hit]]] = []
        heads = np.empty((len(hits), SIDE, SIDE, 3), np.uint8)
        owners: list[int] = []  # of each head, its place in `found`
        for hit in hits:
            thumbnail = self._thumbnail(hit.image_id)
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
        self._keep(image_id, make_thumbnail(image))

    def _thumbnail(self, image_id: str) -> np.ndarray | None:
        with self._lock:
            if image_id in self._remembered:
                self._remembered.move_to_end(image_id)
                return self._remembered[image_id]
        try:
            found: np.ndarray | None = self._index.thumbnail(image_id)
        except (KeyError, ValueError):
            found = None
        self._keep(image_id, found)
        return found

    def _keep(self, image_id: str, thumbnail: np.ndarray | None) -> None:
        with self._lock:
            self._remembered[image_id] = thumbnail
            if len(self._remembered) > MOST_REMEMBERED:
                self._remembered.popitem(last=False)
