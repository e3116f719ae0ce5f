# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""From sources to a corpus: a plan, then shards of verified images with their captions, then the card."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datasets import Value
from tqdm.auto import tqdm

from ..atomic import require_apart
from ..captioning.similarity import Compare, Embed, drop_similar
from ..unreadable import UnreadableImageError
from .build import Skipped, require_corpus_folder, write_corpus
from .card import CorpusFacts, write_card
from .images import verify_image
from .plan import BuildSettings, Entry, Plan, make_plan
from .schema import corpus_features
from .source import Source

SPLIT_COLUMN = "split"
Given = TypeVar("Given")
Made = TypeVar("Made")


class SimilarCaptions(NamedTuple):
    """Drops captions with a similarity of `threshold` or more to an earlier one of the image; see `drop_similar`.

    `name` says what `compare` is: captions dropped by another comparison make another corpus.
    """

    threshold: float
    compare: Compare
    name: str


def build_from_sources(
    directory: Path,
    sources: Sequence[Source],
    settings: BuildSettings | None = None,
    *,
    facts: CorpusFacts,
    similar: SimilarCaptions | None = None,
    diversity: bool = True,
    embed: Embed | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Build the corpus of all images of `sources` that have a caption and are readable; read it with `load_corpus`.

    A row has `image_id`, `image`, `captions` and `split`; the shards of a split are `data/<split>-*.parquet`. What is
    left out is listed with its reason. A killed build goes on after the last finished shard, to the same bytes;
    memory holds a few images at a time. With `diversity`, the card has the diversity report, measured with `embed` too
    if it is given. `workers` threads decode images (default: one for each processor).

    Raises:
        ValueError: no image with a caption, or a perspective asked for that no caption has.
        OSError: a disk is full, or a file is there and cannot be read.
        ImportError: the diversity report needs packages that are not installed.
    """
    if diversity:
        _require_report_packages()
    settings = settings or BuildSettings()
    for source in sources:
        for folder in getattr(source, "folders", ()):  # a source from elsewhere need not say where it lies
            require_apart(directory, folder, walked=bool(getattr(source, "is_walked", False)))
    require_corpus_folder(directory)
    workers = workers or os.cpu_count() or 1
    options = f"{similar.name} {similar.threshold}" if similar else ""
    with (
        make_plan(sources, settings, options) as plan,
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=sum(plan.rows), unit=" images", disable=not progress) as bar,
    ):
        decode = partial(_map_ahead, pool, 2 * workers)
        maker = _RowMaker(plan, sources, settings, similar, decode, bar)
        write_corpus(
            directory,
            {name: partial(maker.rows, shard) for shard, name in enumerate(plan.shards)},
            corpus_features(**{SPLIT_COLUMN: Value("string")}),
            fingerprint=plan.fingerprint,
            about=facts.about(sources, settings, options),
            card=lambda manifest: write_card(directory, manifest, facts, diversity=diversity, embed=embed),
            counted=(SPLIT_COLUMN,),
            skipped=plan.skipped,
        )


class _RowMaker:
    def __init__(
        self,
        plan: Plan,
        sources: Sequence[Source],
        settings: BuildSettings,
        similar: SimilarCaptions | None,
        decode: Callable[..., Iterator[Any]],
        bar: Any,
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._limits = settings.limits
        self._similar = similar
        self._decode = decode
        self._bar = bar

    def rows(self, shard: int) -> Iterator[dict[str, Any] | Skipped]:
        self._bar.update(sum(self._plan.rows[:shard]) - self._bar.n)  # finished before this call
        read = ((entry, self._read(entry)) for entry in self._plan.entries(shard))
        for entry, found in self._decode(self._verify, read):
            self._bar.update()
            if isinstance(found, str):
                yield Skipped(entry.image_id, found)
                continue
            captions = entry.captions
            if self._similar is not None:
                kept, dropped = drop_similar(captions, self._similar.compare, self._similar.threshold)
                captions = [dict(caption) for caption in kept]
                for each in dropped:
                    reason = f"caption says the same as another: {each.reason}"
                    yield Skipped(f"{entry.image_id}, {each.caption['perspective']}", reason)
            data, ending = found
            image = {"bytes": data, "path": f"{entry.image_id.replace('/', '-')}.{ending}"}
            yield {"image_id": entry.image_id, "image": image, "captions": captions, SPLIT_COLUMN: entry.split}

    def _read(self, entry: Entry) -> bytes | str:
        """The bytes, or the reason why there are none and never will be."""
        try:
            return self._sources[entry.source].read(entry.place)
        except FileNotFoundError:
            return "no such file"
        except OSError as error:
            if error.errno is not None:  # of the system, not of the source: next time the file may be readable
                raise
            return str(error)

    def _verify(self, given: tuple[Entry, bytes | str]) -> tuple[Entry, tuple[bytes, str] | str]:
        entry, data = given
        if isinstance(data, str):
            return entry, data
        try:
            return entry, verify_image(data, self._limits)
        except UnreadableImageError as error:
            return entry, str(error)


def _map_ahead(
    pool: ThreadPoolExecutor, most: int, make: Callable[[Given], Made], given: Iterable[Given]
) -> Iterator[Made]:
    """As `map`, with at most so many waiting or at work; `given` is read in this thread."""
    waiting: deque[Future[Made]] = deque()
    for each in given:
        waiting.append(pool.submit(make, each))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _require_report_packages() -> None:
    if find_spec("matplotlib") is None:
        raise ImportError(
            "The diversity report needs matplotlib. Run: pip install 'holistic-clip-hf[captions]', or build without "
            "the report: `diversity=False`."
        )
