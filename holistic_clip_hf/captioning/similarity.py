# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""How alike captions are, by their words or by a text model, and leaving out those that say the same twice."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .repairs import split_words

Embed = Callable[[list[str]], np.ndarray]  # T texts → (T, D)
Compare = Callable[[list[str]], np.ndarray]  # M texts → (M, M), 1 for the same


class Dropped(NamedTuple):
    """A caption that was left out, and why, in words."""

    caption: Mapping[str, str]
    reason: str


def drop_similar(
    captions: Sequence[Mapping[str, str]], compare: Compare, threshold: float
) -> tuple[list[Mapping[str, str]], list[Dropped]]:
    """The captions of one image without those that are too close to an earlier one that is kept, and the others.

    Too close is a similarity of `threshold` or more, by `compare`: `word_similarity` or `embedding_similarity(embed)`.

    Raises:
        ValueError: `threshold` is not above 0 and at most 1, or `compare` gives something else than (M, M) numbers.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"Got threshold={threshold}; expected above 0, at most 1. 1 drops only what is the same.")
    matrix = np.asarray(compare([caption["text"] for caption in captions]))
    if matrix.shape != (len(captions),) * 2 or not np.isfinite(matrix).all():
        raise ValueError(
            f"Got similarities of shape {matrix.shape} for {len(captions)} captions; expected finite numbers, a row "
            "and a column for each. Correct `compare`."
        )
    kept: list[int] = []
    dropped = []
    for place, caption in enumerate(captions):
        nearest = max(kept, key=lambda other: matrix[place, other], default=None)
        if nearest is None or matrix[place, nearest] < threshold:
            kept.append(place)
        else:
            near = f"{captions[nearest]['perspective']!r} from {captions[nearest]['source']!r}"
            dropped.append(Dropped(caption, f"similarity {matrix[place, nearest]:.2f} to {near}, at most {threshold}"))
    return [captions[place] for place in kept], dropped


def word_similarity(texts: Sequence[str]) -> np.ndarray:
    """(M, M): words and pairs of neighbours that two texts share, of all that either has, whatever their case.

    This is the resemblance of https://doi.org/10.1109/SEQUEN.1997.666900 (Broder, 1997). Two texts without a word are
    as one.
    """
    shingles = [_shingles(text) for text in texts]
    return np.array(
        [[len(one & other) / len(one | other) if one | other else 1.0 for other in shingles] for one in shingles]
    ).reshape(len(texts), len(texts))


def embedding_similarity(embed: Embed) -> Compare:
    """The cosine of the texts' embeddings, (M, M)."""
    return lambda texts: cosines(embed(texts), len(texts)) if texts else np.zeros((0, 0))


def sentence_embedder(name: str) -> Embed:
    """A model of sentence-transformers, by its name on the Hub or its folder, as texts → (T, D).

    Raises:
        ImportError: sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "sentence-transformers is not installed. Run: pip install 'sentence-transformers>=6.2'"
        ) from error
    model = SentenceTransformer(name)
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_numpy=True)


def cosines(embeddings: np.ndarray, count: int) -> np.ndarray:
    """(M, D) → (M, M); `ValueError` unless there are `count` finite embeddings, none of them zero."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or len(embeddings) != count:
        raise ValueError(f"Got embeddings of shape {embeddings.shape} for {count} texts; expected a row for each.")
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ValueError("Got embeddings that are zero or not finite; expected none. Use another model or data type.")
    return (embeddings / norms) @ (embeddings / norms).T


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = split_words(text.casefold())
    return {(word,) for word in words} | set(zip(words, words[1:], strict=False))
