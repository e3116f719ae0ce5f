# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Drawings of a held-out artist that are nearly a drawing trained on: `python -m training.emoji.duplicates`.

Alike are two drawings whose thumbnails, each less its mean, have a high cosine. It is told for several limits.
"""

import argparse
from collections.abc import Iterable

import numpy as np
from PIL import Image

from holistic_clip_hf.corpus.build import find_corpus, load_corpus
from holistic_clip_hf.processing_holistic_clip import on_background

SIDE = 16  # pixels of a thumbnail
COSINES = (0.9, 0.95, 0.98)


def thumbnails(images: Iterable[Image.Image]) -> np.ndarray:
    """Return images as vectors of unit length, less their mean, (N, 3 * SIDE²); one of a single colour is zero."""
    small = [np.asarray(on_background(image).resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images]
    vectors = np.stack(small).reshape(len(small), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artist", default="openmoji", help="the one that is held out")
    options = parser.parse_args()
    corpus = load_corpus(find_corpus("emoji"))
    artists = np.array(corpus["artist"])
    if options.artist not in artists:
        raise ValueError(f"`--artist` is {options.artist}; expected one of {', '.join(sorted(set(artists)))}.")
    vectors = thumbnails(row["image"] for row in corpus.select_columns("image"))
    tested, trained = (vectors[rows] for rows in (artists == options.artist, artists != options.artist))
    nearest = (tested @ trained.T).max(axis=1)
    for least in COSINES:
        found = int((nearest >= least).sum())
        print(f"{found:,} of {len(tested):,} drawings by {options.artist} have one by another artist from {least} on")


if __name__ == "__main__":
    main()
