"""Exact ranks of 500,000 texts against 100,000 images in both directions, with random vectors: time and peak memory.

    python tests/benchmarks/ranking.py    20 minutes of one core; writes results/ranking.json

The score matrix would hold 400 GB in float64. Peak memory is that of a fresh process beyond the vectors themselves.
The peer is the plain form (all scores, `argsort`), side by side where it fits: 10,000 texts against 2,000 images.
"""

import sys
import time
from functools import partial

import torch
from _measure import MEBIBYTE, arguments, interleaved, peak_bytes, peak_in_fresh_process, ratio, write_record
from torch import Tensor

from holistic_clip_hf.evaluation.ranking import rank_both_directions

WIDTH, TEXTS_PER_IMAGE = 64, 5
LARGE, SMALL = 100_000, 2_000
TARGET_MIB = 1_024


def vectors(num_images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, D), texts (5 N, D), and pairs (5 N, 2)."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator), dim=-1)
        for rows in (num_images, num_images * TEXTS_PER_IMAGE)
    )
    index = torch.arange(len(texts))
    return images, texts, torch.stack([index // TEXTS_PER_IMAGE, index], dim=1)


def ours(images: Tensor, texts: Tensor, pairs: Tensor) -> None:
    rank_both_directions(images, texts, pairs)


def plain(images: Tensor, texts: Tensor, pairs: Tensor) -> None:
    scores = images.double() @ texts.double().T
    for matrix, queries, correct in ((scores.T, pairs[:, 1], pairs[:, 0]), (scores, pairs[:, 0], pairs[:, 1])):
        order = matrix.argsort(dim=1, descending=True)
        places = order.argsort(dim=1)
        places[queries, correct]


def main() -> None:
    options = arguments(__doc__, rounds=3)
    if options.memory:
        given = vectors(int(options.memory))
        print(peak_bytes(partial(ours, *given)))
        return
    small = vectors(SMALL)
    seconds = interleaved({"ours": partial(ours, *small), "plain": partial(plain, *small)}, options.rounds)
    start = time.perf_counter()
    peak = peak_in_fresh_process(__file__, str(LARGE)) / MEBIBYTE
    large_seconds = time.perf_counter() - start
    results = {
        "width": WIDTH,
        "small": {"images": SMALL, "texts": SMALL * TEXTS_PER_IMAGE, "time_of_plain": ratio(seconds, "ours", "plain")},
        "large": {
            "images": LARGE,
            "texts": LARGE * TEXTS_PER_IMAGE,
            "seconds": round(large_seconds, 1),
            "peak_mib": round(peak),
            "target_mib": TARGET_MIB,
        },
    }
    sys.stdout.write(f"{results}\n")
    write_record("ranking", {"rounds": options.rounds, **results})


if __name__ == "__main__":
    main()
