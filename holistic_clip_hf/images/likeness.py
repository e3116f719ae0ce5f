# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Near-duplicates: images that are one picture in another size, compressed anew, or mirrored.

They are known by thumbnails in colour. Hashes of bits (phash, PDQ) keep the signs of a thumbnail's cosine transform,
many of which are chance where a drawing is symmetrical or flat; `docs/decisions.md` has numbers. All near pairs are
found, most others never looked at: thumbnails that differ little differ little in their first cosines, by which they
are sorted into leaves, and only leaves that touch are compared.

Axes: N images, S side of a thumbnail, K cosines, P pairs.
"""

import hashlib
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..processing_holistic_clip import on_background
from .decoding import UnreadableImageError, open_image, read_image

SIDE = 16
RULES = 1  # to be raised when other images are to be alike
_DRAFT = 8 * SIDE  # pixels of a side above which a JPEG is decoded at a part of its size
_COSINES = 4  # for each axis and channel
_LEAF = 256  # images
_LEAVES_AT_ONCE = 64
_WIDEST = 8  # cosines by which rows are left out before all are looked at
_AT_ONCE = 4_096  # thumbnails
_ROUND_OFF = 1.0  # of squares of differences, in float32


class Thumbnails(Protocol):
    """Thumbnails (N, S, S, 3) of 8 bits, in memory or in files."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


def read_thumbnail(contents: bytes) -> np.ndarray:
    """Return the thumbnail of a file; a large JPEG is decoded at a half, a quarter or an eighth of its side.

    Raises:
        UnreadableImageError: as `read_image`.
    """
    try:
        image = open_image(contents)
        image.draft(None, (_DRAFT, _DRAFT))
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
    return make_thumbnail(read_image(image))


def make_thumbnail(image: Image.Image) -> np.ndarray:
    """Return an image as a model sees it, on white, in brightness and colour (YCbCr): (S, S, 3) of 8 bits."""
    return np.asarray(on_background(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("YCbCr"))


def are_alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Tell of pairs of thumbnails (P, S, S, 3) whether they show one picture, as it is or mirrored: (P,) of truth."""
    return _differ_little(first, second) | _differ_little(first[:, :, ::-1], second)


def find_groups(thumbnails: Thumbnails, *, progress: bool = False) -> list[np.ndarray]:
    """Find the groups of images that are alike, directly or over others: the rows of each, two or more, in order.

    Memory is some 200 bytes for each of N images, beside the thumbnails.
    """
    groups = _Groups(len(thumbnails))
    if not len(thumbnails):
        return []
    cosines, firsts = _cosines_of(thumbnails, groups)
    leaves = _leaves(cosines, firsts)
    bounds = np.stack([np.stack([cosines[leaf].min(axis=0), cosines[leaf].max(axis=0)]) for leaf in leaves])
    widest = np.argsort(cosines.var(axis=0))[-_WIDEST:]
    wide = np.ascontiguousarray(cosines[:, widest])
    for number, leaf in enumerate(tqdm(leaves, desc="near-duplicates", disable=not progress)):
        for mirror in (np.ones(len(_MIRROR), np.float32), _MIRROR):
            points = cosines[leaf] * mirror
            box = points.min(axis=0), points.max(axis=0)
            touching = np.flatnonzero(_are_near(box, bounds[number:, 0], bounds[number:, 1])) + number
            for start in range(0, len(touching), _LEAVES_AT_ONCE):
                others = np.concatenate([leaves[each] for each in touching[start : start + _LEAVES_AT_ONCE]])
                # Most of them lie far from the box; to see that costs little beside comparing them with all in it.
                others = others[_are_near((box[0][widest], box[1][widest]), wide[others], wide[others])]
                others = others[_are_near(box, cosines[others], cosines[others])]
                _join_alike(thumbnails, groups, leaf, others, points, cosines[others])
    return groups.found()


def _are_near(box: tuple[np.ndarray, np.ndarray], lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """Tell of other boxes, given by their corners (N, K), whether anything in them may be alike in this one: (N,)."""
    gaps = np.maximum(np.maximum(lowest - box[1], box[0] - highest), 0)
    return np.einsum("nk,nk->n", gaps, gaps) <= MOST_DIFFERENCE**2 + _ROUND_OFF


MOST_DIFFERENCE = 6.0  # of all pixels, root mean square
MOST_OF_A_PART = 13.5  # likewise of the part in which they differ most
_PART = 2  # pixels of a side
_WEIGHTS = np.array([1.0, 0.5, 0.5], np.float32)  # JPEG keeps colour at half the side of brightness


def _differ_little(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squares = (((first.astype(np.float32) - second) * _WEIGHTS) ** 2).sum(axis=-1)
    parts = squares.reshape(-1, SIDE // _PART, _PART, SIDE // _PART, _PART).mean(axis=(2, 4))
    return (parts.mean(axis=(1, 2)) <= MOST_DIFFERENCE**2) & (parts.max(axis=(1, 2)) <= MOST_OF_A_PART**2)


def _basis() -> tuple[np.ndarray, np.ndarray]:
    """Return the first cosines of a thumbnail, (S * S * 3, K), and what a mirror makes of each, 1 or -1: (K,).

    Products of two thumbnails with them differ by no more than the root mean square of their pixels' differences.
    """
    orders = np.arange(_COSINES)[:, None]
    waves = np.cos(np.pi * orders * (2 * np.arange(SIDE) + 1) / (2 * SIDE)) * np.where(orders, np.sqrt(2), 1) / SIDE
    basis = np.einsum("ux,vy,ab->xyauvb", waves, waves, np.diag(_WEIGHTS)).reshape(SIDE * SIDE * 3, -1)
    signs = np.broadcast_to((-1.0) ** np.arange(_COSINES)[None, :, None], (_COSINES, _COSINES, 3)).reshape(-1)
    return basis.astype(np.float32), signs.astype(np.float32)


_BASIS, _MIRROR = _basis()


def _cosines_of(thumbnails: Thumbnails, groups: "_Groups") -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines (N, K), and the rows that are the first of their pixels, to which the others are joined."""
    cosines = np.empty((len(thumbnails), _BASIS.shape[1]), np.float32)
    digests = np.empty(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), _AT_ONCE):
        some = np.asarray(thumbnails[np.arange(start, min(start + _AT_ONCE, len(thumbnails)))])
        flat = some.reshape(len(some), -1)
        cosines[start : start + len(some)] = (flat.astype(np.float32) - 128) @ _BASIS
        digests[start : start + len(some)] = [
            int.from_bytes(hashlib.blake2b(each.tobytes(), digest_size=8).digest(), "big") for each in flat
        ]
    _, firsts, same = np.unique(digests, return_index=True, return_inverse=True)
    for row in np.flatnonzero(firsts[same] != np.arange(len(digests))):
        groups.join(int(firsts[same[row]]), int(row))
    return cosines, firsts


def _leaves(cosines: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Split the rows in halves, by the cosine in which they lie farthest apart, until few are left in each part."""
    waiting, leaves = [rows], []
    while waiting:
        some = waiting.pop()
        if len(some) <= _LEAF:
            leaves.append(some)
            continue
        widest = np.ptp(cosines[some], axis=0).argmax()
        order = np.argpartition(cosines[some, widest], len(some) // 2)
        waiting += [some[order[len(some) // 2 :]], some[order[: len(some) // 2]]]
    return leaves


def _join_alike(
    thumbnails: Thumbnails, groups: "_Groups", rows: np.ndarray, others: np.ndarray, *cosines: np.ndarray
) -> None:
    """Join the rows of two leaves that are alike; `cosines` are those of each leaf."""
    first, second = cosines
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    near = np.nonzero(squares <= MOST_DIFFERENCE**2 + _ROUND_OFF)
    pairs = np.stack([rows[near[0]], others[near[1]]])
    for start in range(0, pairs.shape[1], _AT_ONCE):
        some = pairs[:, start : start + _AT_ONCE]
        some = some[:, groups.firsts(some[0]) != groups.firsts(some[1])]
        if some.size:
            for one, other in some[:, are_alike(thumbnails[some[0]], thumbnails[some[1]])].T.tolist():
                groups.join(one, other)


class _Groups:
    """Sets of rows that are joined, each known by one of its rows."""

    def __init__(self, count: int) -> None:
        self._next = np.arange(count)

    def firsts(self, rows: np.ndarray) -> np.ndarray:
        """Return the row by which the set of each row is known."""
        found = self._next[rows]
        while not np.array_equal(deeper := self._next[found], found):
            found = deeper
        self._next[rows] = found
        return found

    def join(self, one: int, other: int) -> None:
        """Make one set of the sets of two rows."""
        first, second = self.firsts(np.array([one, other]))
        self._next[max(first, second)] = min(first, second)

    def found(self) -> list[np.ndarray]:
        """Return the sets of two or more rows, by their first."""
        firsts = self.firsts(np.arange(len(self._next)))
        order = np.argsort(firsts, kind="stable")
        sets = np.split(order, np.flatnonzero(np.diff(firsts[order])) + 1)
        return [each for each in sets if len(each) > 1]
