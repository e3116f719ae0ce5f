# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Corpora from sources of images: a plan, then shards of verified images with their captions, then the card.

Captions may come from elsewhere than the images, and are joined with them by image id.
"""

import logging
import os
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Value
from tqdm.auto import tqdm

from ..captioning.store import CaptionRow
from ..images.decoding import UnreadableImageError, map_ahead, verify_image
from ..images.sources import Item, Skipped, Source, origins_of, require_apart_from
from ..sharding import ALL, Shard
from ..storage import import_extra, require_count, scratch_database
from .build import (
    NEAR_DUPLICATES,
    ShardRows,
    corpus_features,
    read_manifest,
    require_corpus_folder,
    write_corpus,
    write_share,
)
from .card import CorpusFacts, require_same_origins, write_card
from .diversity import MOST_SLOTS, Compare, Embed, drop_similar, require_threshold
from .near_duplicates import NearDuplicates, group_images, remove_thumbnails, sides_of, write_near_duplicates
from .plan import GROUP, IGNORE, BuildSettings, Entry, Plan, make_plan

logger = logging.getLogger(__name__)

Added = tuple[str, Mapping[str, str]]  # image id, and a caption of it


class JoinedSource:
    """A `Source` of the images of one, each with its own captions and then those added, in the order they come in.

    Added captions of images that the source does not have are listed as left out. Memory does not grow with them.

    Args:
        images: the source of the images.
        added: Function that gives, at each call the same, captions by image id and what could not become one, such as
            `captions_of_rows` and `captions_of_source`.
        folders: Files and folders that these are read from.

    Example: `JoinedSource(folder, lambda: captions_of_rows(CaptionStore("captions").rows()))`.
    """

    def __init__(
        self, images: Source, added: Callable[[], Iterable[Added | Skipped]], *, folders: Sequence[Path] = ()
    ) -> None:
        self.name = images.name
        self.folders = (*getattr(images, "folders", ()), *folders)
        self.origins = (*origins_of(images), *(str(each.resolve()) for each in folders))
        self.is_walked = bool(getattr(images, "is_walked", False))
        self._images = images
        self._added = added

    def items(self) -> Iterator[Item | Skipped]:
        with scratch_database() as database:
            database.execute("CREATE TABLE captions (image_id TEXT, perspective TEXT, text TEXT, source TEXT)")
            database.execute("BEGIN")
            yield from self._load(database)
            database.execute("CREATE INDEX by_image ON captions (image_id)")
            for item in self._images.items():
                yield item if isinstance(item, Skipped) else _extend(item, database)
            unknown = database.execute("SELECT image_id, COUNT(*) FROM captions GROUP BY image_id ORDER BY image_id")
            yield from (Skipped(image_id, f"captions without an image: {count}") for image_id, count in unknown)

    @property
    def hint(self) -> str:
        """Advice of the images' source on how to name captions."""
        return str(getattr(self._images, "hint", ""))

    def read(self, place: str) -> bytes:
        return self._images.read(place)

    def _load(self, database: sqlite3.Connection) -> Iterator[Skipped]:
        for entry in self._added():
            if isinstance(entry, Skipped):
                yield entry
                continue
            image_id, caption = entry
            try:
                values = (_key(image_id), caption["perspective"], caption["text"], caption["source"])
                database.execute("INSERT INTO captions VALUES (?, ?, ?, ?)", values)
            except UnicodeEncodeError:
                yield Skipped(ascii(image_id), "a caption that is not UTF-8")


def captions_of_rows(
    rows: Iterable[CaptionRow], known: dict[str, list[str]] | None = None
) -> Iterator[Added | Skipped]:
    """Yield the usable captions among caption rows, with their captioner as source, and why the others are not.

    Of several captioners of one name, the first keeps it, and the others have a part of the hash of their weights
    behind it, as `checkpoint-1000@0123abc`.

    Args:
        known: Weights of each captioner so far, by its name. Give one dict for rows in several places.
    """
    known = {} if known is None else known
    for row in rows:
        if row.usable:
            yield row.image_id, {"perspective": row.perspective, "text": row.caption, "source": _source(row, known)}
        else:
            yield Skipped(f"{row.image_id}, {row.perspective}", f"caption row is {row.status}: {row.error}")


def _source(row: CaptionRow, known: dict[str, list[str]]) -> str:
    weights = known.setdefault(row.captioner, [])
    if row.weights and row.weights not in weights:
        weights.append(row.weights)
    is_first = not row.weights or row.weights == weights[0]
    return row.captioner if is_first else f"{row.captioner}@{row.weights[:7]}"


def captions_of_source(source: Source) -> Iterator[Added | Skipped]:
    """Yield the captions of another source of the same image ids; its images are not read."""
    for item in source.items():
        if isinstance(item, Skipped):
            yield item
        else:
            yield from ((item.image_id, caption) for caption in item.captions)


def _key(image_id: str) -> str:
    """Return the form in which ids are compared: one system stores names in NFC, another in NFD."""
    return unicodedata.normalize("NFC", image_id)


def _extend(item: Item, database: sqlite3.Connection) -> Item:
    of_image = (_key(item.image_id),)
    found = database.execute(
        "SELECT perspective, text, source FROM captions WHERE image_id = ? ORDER BY rowid", of_image
    ).fetchall()
    if not found:
        return item
    database.execute("DELETE FROM captions WHERE image_id = ?", of_image)
    added = [{"perspective": perspective, "text": text, "source": source} for perspective, text, source in found]
    return item._replace(captions=[*item.captions, *added])


SPLIT_COLUMN = "split"
_LEAKS = (("test", "train"), ("test", "validation"), ("validation", "train"))  # what is measured on, and trained on
_FEATURES = corpus_features(**{SPLIT_COLUMN: Value("string")})


class SimilarCaptions(NamedTuple):
    """Filter that drops captions with a similarity of `threshold` or more to an earlier one of the image; see
    `drop_similar`.

    `name` says what `compare` is: captions dropped by another comparison make another corpus.
    """

    threshold: float
    compare: Compare
    name: str


def build_from_sources(
    directory: str | Path,
    sources: Sequence[Source],
    settings: BuildSettings | None = None,
    *,
    facts: CorpusFacts,
    similar: SimilarCaptions | None = None,
    diversity: bool = True,
    embed: Embed | None = None,
    workers: int | None = None,
    progress: bool = False,
    replace: bool = False,
) -> None:
    """Build the corpus of all images of `sources` that have a caption and are readable; read it with `load_corpus`.

    A row has `image_id`, `image`, `captions` and `split`; the shards of a split are `data/<split>-*.parquet`. What is
    left out is listed with its reason, near-duplicates in `near_duplicates.json`. A killed build goes on after the
    last finished shard, to the same bytes; memory holds a few images at a time. With `diversity`, the card has the
    diversity report, measured with `embed` too if it is given. `workers` threads decode images (default: one for each
    processor). Only with `replace` does a corpus of other sources give way.

    Raises:
        ValueError: no image with a caption, a perspective asked for that no caption has, or a corpus of other sources.
        OSError: a disk is full, or a file is there and cannot be read.
        ImportError: the diversity report needs packages that are not installed.
    """
    if diversity:
        import_extra("matplotlib", "captions", "Or build without the report (`diversity=False`, `--no-report`).")
    directory, settings = Path(directory), settings or BuildSettings()
    with _prepared(directory, sources, settings, similar, ALL, workers, progress) as (plan, make_rows):
        if diversity:
            _require_few_slots(plan)
        alike = _Alike(directory, settings, plan, make_rows, {"workers": workers, "progress": progress})
        write_corpus(
            directory,
            alike.shards,
            _FEATURES,
            fingerprint=plan.fingerprint,
            about=facts.about(sources, settings, _options(similar)),
            card=lambda manifest: write_card(
                directory, manifest, facts, diversity=diversity, embed=embed, alike=alike.keep(manifest)
            ),
            counted=(SPLIT_COLUMN,),
            skipped=plan.skipped,
            check=None if replace else partial(require_same_origins, directory, plan.fingerprint, sources),
        )
    _warn_of_empty_splits(directory, settings)


def build_share(
    directory: str | Path,
    sources: Sequence[Source],
    settings: BuildSettings | None = None,
    *,
    shard: Shard,
    similar: SimilarCaptions | None = None,
    workers: int | None = None,
    progress: bool = False,
    replace: bool = False,
) -> tuple[int, int]:
    """Write one share of the files of a corpus, beside processes and machines that write the others.

    Once all shares are written, `build_from_sources` with the same sources and settings finds the files and adds card
    and manifest. The corpus then has the bytes that it would have had without shares. The other arguments are those of
    `build_from_sources`, too.

    Args:
        directory: Folder of the corpus, which all processes share, or which their files are later copied into.
        shard: Share of this process.

    Returns:
        Number of files of the share, and of all.

    Raises:
        ValueError: as `build_from_sources`, or near-duplicates that are to be grouped.
        InUseError: another process writes this share.
        OSError: a disk is full, or a file exists and cannot be read.
    """
    directory, settings = Path(directory), settings or BuildSettings()
    if settings.near_duplicates == GROUP:
        raise ValueError(
            f"`near_duplicates` is {GROUP!r}; expected 'report' or 'ignore' for a share, since splits of groups "
            "depend on all images. Build without shares, or choose another."
        )
    with _prepared(directory, sources, settings, similar, shard, workers, progress) as (plan, make_rows):
        shards = make_rows(plan).shards(shard)
        write_share(
            directory,
            shard,
            shards,
            _FEATURES,
            fingerprint=plan.fingerprint,
            counted=(SPLIT_COLUMN,),
            check=None if replace else partial(require_same_origins, directory, plan.fingerprint, sources),
        )
        return len(shards), len(plan.shards)


def _options(similar: SimilarCaptions | None) -> str:
    return f"{similar.name} {similar.threshold}" if similar else ""


@contextmanager
def _prepared(
    directory: Path,
    sources: Sequence[Source],
    settings: BuildSettings,
    similar: SimilarCaptions | None,
    shard: Shard,
    workers: int | None,
    progress: bool,
) -> Iterator[tuple[Plan, Callable[[Plan], "_RowMaker"]]]:
    """Provide the plan of a build and what makes the rows of a plan, once it is known that they can be written."""
    _require_buildable(directory, sources, similar, workers)
    workers = workers or os.cpu_count() or 1
    with make_plan(sources, settings, _options(similar)) as plan, ThreadPoolExecutor(workers) as pool:
        total = sum(rows for number, rows in enumerate(plan.rows) if shard.takes(number))
        with tqdm(total=total, unit=" images", disable=not progress) as bar:
            decode = partial(map_ahead, pool, 2 * workers)
            yield plan, partial(_RowMaker, sources, settings, similar, decode, bar)


def _require_buildable(
    directory: Path, sources: Sequence[Source], similar: SimilarCaptions | None, workers: int | None
) -> None:
    """Refuse what needs no look at the images."""
    for source in sources:
        require_apart_from(source, directory)
    require_corpus_folder(directory)
    if similar is not None:
        require_threshold(similar.threshold)
    require_count("workers", workers)


def _require_few_slots(plan: Plan) -> None:
    if len(plan.slots) > MOST_SLOTS:
        raise ValueError(
            f"The captions have {len(plan.slots)} pairs of perspective and source, such as {plan.slots[-1]}; "
            f"expected at most {MOST_SLOTS} for the diversity report. Keep fewer perspectives, or build without "
            "the report (`diversity=False`, `--no-report`)."
        )


def _warn_of_empty_splits(directory: Path, settings: BuildSettings) -> None:
    """Tell at once what training, fitting or evaluation would miss later."""
    counts = read_manifest(directory)["columns"][SPLIT_COLUMN]
    for split, share in (("validation", settings.validation), ("test", settings.test)):
        if share and not counts.get(split):
            logger.warning(
                "No row is in the split %s, by its share of %g. Raise `--%s`, such as to 0.2, to have some.",
                split,
                share,
                split,
            )


class _Alike:
    """Near-duplicates of a build: found before its shards are written, kept once they are."""

    def __init__(
        self,
        directory: Path,
        settings: BuildSettings,
        plan: Plan,
        make_rows: Callable[[Plan], "_RowMaker"],
        options: Mapping[str, Any],
    ) -> None:
        self._directory, self._settings, self._plan = directory, settings, plan
        self._make_rows, self._options = make_rows, options
        self._found = NearDuplicates(())

    def shards(self) -> dict[str, ShardRows]:
        """Find the near-duplicates, if they are wanted, and return the shards, each split with all of a group."""
        plan, treatment = self._plan, self._settings.near_duplicates
        if treatment != IGNORE:
            contents = self._make_rows(plan).contents
            groups = group_images(self._directory, plan.fingerprint, sum(plan.rows), contents, **self._options)
            self._found = NearDuplicates([[plan.image_id(int(number)) for number in group] for group in groups])
            if treatment == GROUP:
                plan = plan.group([group.tolist() for group in groups], self._settings)
        return self._make_rows(plan).shards()

    def keep(self, manifest: Mapping[str, Any]) -> NearDuplicates | None:
        """Write the groups that the rows of a corpus make, and return them with their splits."""
        remove_thumbnails(self._directory)
        if self._settings.near_duplicates == IGNORE:
            (self._directory / NEAR_DUPLICATES).unlink(missing_ok=True)
            return None
        found = self._found.among(sides_of(self._directory, manifest, SPLIT_COLUMN, self._found.image_ids))
        write_near_duplicates(self._directory, manifest["fingerprint"], found)
        for (split, other), count in found.leaks().items():
            if (split, other) in _LEAKS:
                logger.warning(
                    "%s of %s are near-duplicates of images of %s, listed in %s. `holistic-clip corpus` with "
                    "`--near-duplicates group` (`near_duplicates='group'` in Python) puts them into one split.",
                    *(f"{count:,} images", split, other, self._directory / NEAR_DUPLICATES),
                )
        for split, count in found.largest().items():
            if 2 * count > (rows := manifest["columns"][SPLIT_COLUMN][split]):
                logger.warning(
                    "%s of the %s images of %s are one chain of near-duplicates, listed in %s. Look at some of them: "
                    "what is measured or learned there is hardly more than one picture.",
                    *(f"{count:,}", f"{rows:,}", split, self._directory / NEAR_DUPLICATES),
                )
        return found


class _RowMaker:
    def __init__(
        self,
        sources: Sequence[Source],
        settings: BuildSettings,
        similar: SimilarCaptions | None,
        decode: Callable[..., Iterator[Any]],
        bar: Any,
        plan: Plan,
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._limits = settings.limits
        self._similar = similar
        self._decode = decode
        self._bar = bar

    def contents(self, start: int) -> Iterator[bytes | None]:
        """Yield the files of all images from the one of a number, None for those that cannot be read."""
        for entry in self._plan.all_entries(start):
            found = self._read(entry)
            yield None if isinstance(found, str) else found

    def shards(self, shard: Shard = ALL) -> dict[str, ShardRows]:
        """Return the shards of a corpus that a share of the work has, by name."""
        mine = [number for number in range(len(self._plan.shards)) if shard.takes(number)]
        before = accumulate((self._plan.rows[number] for number in mine), initial=0)
        return {
            self._plan.shards[number]: partial(self.rows, number, done)
            for number, done in zip(mine, before, strict=False)
        }

    def rows(self, shard: int, done: int) -> Iterator[dict[str, Any] | Skipped]:
        self._bar.update(done - self._bar.n)  # finished before this call
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
        """Return the bytes, or the reason why they never can be read."""
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
