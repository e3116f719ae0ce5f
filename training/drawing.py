"""The emoji corpus drawn on all processor cores, an artist at a time on each.

What decides the corpus is in training/emoji, whose source is part of its fingerprint. This is not: it writes the files
that `build_emoji_corpus` would have written, and leaves the rest to it.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from holistic_clip_hf.corpus.build import is_whole, write_share
from holistic_clip_hf.sharding import Shard
from training.emoji import build
from training.emoji.packages import cache_root


def build_on_all_cores(cache_dir: Path | None = None, *, image_size: int = 96, workers: int | None = None) -> Path:
    """Return the directory of the emoji corpus, drawn by several processes unless it is whole.

    Args:
        cache_dir: Folder of downloads and the corpus, as `build_emoji_corpus` takes it.
        image_size: Pixels of a side.
        workers: Number of processes. Default: one for each processor core.
    """
    root = Path(cache_dir) if cache_dir is not None else cache_root()
    artists, texts = build.load_packages()
    directory = root / "corpora" / f"emoji-{image_size}px"
    fingerprint = build._fingerprint(artists | texts, image_size)
    workers = min(workers or os.cpu_count() or 1, len(artists))
    if workers > 1 and not is_whole(directory, fingerprint):
        sources = build._read_sources(artists, texts, root / "packages")
        # Not forked, since threads of torch may run here.
        context, given = get_context("forkserver"), (directory, sources, image_size, fingerprint)
        with ProcessPoolExecutor(workers, context, initializer=_take, initargs=given) as pool:
            list(pool.map(_draw, range(len(artists))))
    return build.build_emoji_corpus(cache_dir, image_size=image_size)


_given: tuple[Path, build.Sources, int, str]  # of a process that draws, sent to it once


def _take(*given: Any) -> None:
    global _given
    _given = given


def _draw(number: int) -> None:
    directory, sources, image_size, fingerprint = _given
    artist = list(sources.sets)[number]
    write_share(
        directory,
        Shard(number, len(sources.sets)),
        {artist: partial(build._draw_artist, sources, artist, image_size)},
        build._features(),
        fingerprint=fingerprint,
        counted=("artist_split", "family_split"),
    )
