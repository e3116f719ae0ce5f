# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Captioner: images times perspectives to caption rows, and the interface of the backends that answer.

Each perspective of each image is asked once, however often the run is killed and started again.
"""

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from PIL import Image
from tqdm.auto import tqdm

from ..images.decoding import UnreadableImageError, map_ahead, read_image, verify_image
from ..images.sources import Item, Skipped, Source, require_apart_from
from ..processing_holistic_clip import on_background
from ..sharding import ALL, Shard
from ..storage import write_json
from .cleaning import clean_answer
from .perspectives import Perspective, question_hash
from .store import FAILED, SECONDS_PER_FILE, USABLE, CaptionRow, CaptionStore, RowWriter


class Work(NamedTuple):
    """One image and what is still to be asked about it; `image` is upright and RGB."""

    image_id: str
    image: Image.Image
    perspectives: Sequence[Perspective]


class Reply(NamedTuple):
    """One answer as it came, with its `text` and whether it is `finished` or hit its budget, or else an `error`."""

    image_id: str
    perspective: Perspective
    text: str = ""
    finished: bool = True
    error: str = ""


class Backend(Protocol):
    """Backend that answers perspectives of images.

    For the rows, `captioner`, `revision` and `weights` say who does, and `settings` what it is told beside.
    """

    captioner: str
    revision: str
    weights: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        """Yield one reply per image and perspective, in any order; a failure is a reply too, and never ends the
        others.

        `work` is taken as it is needed, a bounded number of images ahead, by the thread that takes the replies.
        Closing the iterator stops cleanly.
        """
        ...


logger = logging.getLogger(__name__)

_READERS = 4  # threads that read and decode images while others are asked about
_IMAGES_AHEAD = 8  # decoded and waiting, of up to 270 MB each
_MOST_REASONS = 1_000  # that are counted apart; some name a file


@dataclass
class CaptioningReport:
    """Report of a run.

    Args:
        images: Number of images of the shard, those that were left out excepted.
        kept: Number of earlier rows, which were not asked again.
        statuses: Counts by status of the rows that were added.
        skipped: Entries that are not images, with the reason. They are also in `skipped.<shard>.json` beside the rows.
        reasons: Counts by status and reason of the rows that are not usable, earlier failures included.
        has_answers: True if the captioner answered anything that was asked, in this run or before.
    """

    images: int = 0
    kept: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    has_answers: bool = False

    @property
    def has_failed(self) -> bool:
        """Tell whether images were asked about and nothing was ever answered."""
        return not self.has_answers and bool(self.kept or self.statuses)

    def add(self, status: str, reason: str) -> None:
        """Note a row of this run or of an earlier one."""
        self.has_answers |= status != FAILED
        if status not in USABLE and (len(self.reasons) < _MOST_REASONS or (status, reason) in self.reasons):
            self.reasons[status, reason] += 1


class _Task(NamedTuple):
    """An image, and what is still to be asked about it."""

    item: Item
    perspectives: tuple[Perspective, ...]


def caption_images(
    source: Source,
    perspectives: Sequence[Perspective],
    backend: Backend,
    folder: str | Path,
    *,
    shard: Shard = ALL,
    retry_failed: bool = False,
    progress: bool = False,
    seconds_per_file: float = SECONDS_PER_FILE,
) -> CaptioningReport:
    """Ask every perspective about every image of the shard that `folder` has no row of yet, and add the rows there.

    An image that cannot be read, and an answer that did not come, become rows of the status `failed`, which are asked
    again with `retry_failed` only. Killed at any moment and called again, it ends with the same rows.

    Raises:
        ValueError: no perspectives, two of one name, one without a prompt, a shard that another process works on, or a
            folder among the images.
        OSError: rows cannot be written; what was written stays.

    Example: `caption_images(ImageFolder("photos"), asked(load_perspectives()), backend, "captions", progress=True)`.
    """
    require_askable(perspectives)
    store = CaptionStore(folder)
    require_apart_from(source, store.folder)
    with store.writer(shard, seconds_per_file) as writer:
        run = _Run(source, perspectives, backend, shard, writer)
        run.look_up(store, retry_failed)
        asked = run.list_items(store.folder / f"skipped.{shard}.json")
        with tqdm(total=asked, disable=not progress, unit="caption", desc=backend.captioner) as run.bar:
            run.ask()
    return run.report


class _Run:
    def __init__(
        self,
        source: Source,
        perspectives: Sequence[Perspective],
        backend: Backend,
        shard: Shard,
        writer: RowWriter,
    ) -> None:
        self.source = source
        self.perspectives = perspectives
        self.backend = backend
        self.shard = shard
        self.writer = writer
        self.report = CaptioningReport()
        self.bar = tqdm(disable=True)
        self._hashes = {each.name: question_hash(each, backend.settings) for each in perspectives}
        self._settled: dict[str, int] = {}  # image id → a bit for each perspective: of millions of images

    def look_up(self, store: CaptionStore, retry_failed: bool) -> None:
        """Note what need not be asked any more."""
        bits = {key: 1 << place for place, key in enumerate(self._hashes.items())}
        others: Counter[str] = Counter()
        for row in store.rows(self.shard):
            bit = bits.get((row.perspective, row.prompt_hash), 0)
            if not bit or row.captioner != self.backend.captioner:
                continue
            others[(difference := _difference(row, self.backend))] += 1
            if difference in _SAME and not (retry_failed and row.status == FAILED):
                self._settled[row.image_id] = self._settled.get(row.image_id, 0) | bit
                self.report.add(row.status, row.error)
        for difference, count in others.items():
            if difference:
                logger.info("%s: %s rows %s.", self.backend.captioner, f"{count:,}", difference)

    def list_items(self, path: Path) -> int:
        """Count what is to be asked, and write into `path` what is left out."""
        asked = 0
        for each in self._tasks():
            if isinstance(each, Skipped):
                self.report.skipped.append(each)
            else:
                self.report.images += 1
                asked += len(each.perspectives)
        self.report.kept = self.report.images * len(self.perspectives) - asked
        if self.report.skipped or path.exists():
            write_json(path, [each._asdict() for each in self.report.skipped], indent=1)
        return asked

    def ask(self) -> None:
        with closing(self._work()) as work, closing(self.backend.answer(work)) as replies:
            for reply in replies:
                self._add(reply)

    def _tasks(self) -> Iterator[_Task | Skipped]:
        seen: set[str] = set()
        for each in self.source.items():
            if isinstance(each, Skipped):
                if self.shard.holds(each.item):
                    yield each
            elif self.shard.holds(each.image_id):
                if each.image_id in seen:
                    yield Skipped(each.image_id, "another image has this id and came before")
                    continue
                seen.add(each.image_id)
                settled = self._settled.get(each.image_id, 0)
                yield _Task(each, tuple(p for place, p in enumerate(self.perspectives) if not settled >> place & 1))

    def _work(self) -> Generator[Work, None, None]:
        asked = (task for task in self._tasks() if isinstance(task, _Task) and task.perspectives)
        pool = ThreadPoolExecutor(_READERS)
        try:
            for task, image in map_ahead(pool, _IMAGES_AHEAD, lambda task: (task, self._open(task.item)), asked):
                if isinstance(image, Image.Image):
                    yield Work(task.item.image_id, image, task.perspectives)
                    continue
                for perspective in task.perspectives:
                    self._add(Reply(task.item.image_id, perspective, error=image))
        finally:
            pool.shutdown(cancel_futures=True)

    def _open(self, item: Item) -> Image.Image | str:
        """Return the image, or why it cannot be read."""
        try:
            data, _ = verify_image(self.source.read(item.place))
            return on_background(read_image(data))
        except UnreadableImageError as error:
            return " ".join(str(error).split())
        except (OSError, ValueError) as error:  # also of pixels that cannot be made RGB
            return f"{type(error).__name__}: {error}"

    def _add(self, reply: Reply) -> None:
        perspective, captioner = reply.perspective, self.backend.captioner
        text = reply.text.encode("utf-8", "replace").decode()  # half a character cannot be stored
        caption, status, error = (
            ("", FAILED, reply.error) if reply.error else clean_answer(text, reply.finished, perspective)
        )
        self.writer.add(
            CaptionRow(
                image_id=reply.image_id,
                perspective=perspective.name,
                caption=caption,
                captioner=captioner,
                revision=self.backend.revision,
                prompt_hash=self._hashes[perspective.name],
                status=status,
                error=error,
                weights=self.backend.weights,
            )
        )
        self.report.statuses[status] += 1
        self.report.add(status, error)
        self.bar.update()
        if status == FAILED:
            self.bar.set_postfix(failed=self.report.statuses[FAILED], refresh=False)


_UNKNOWN = "do not say which weights answered; they are kept"
_SAME = ("", _UNKNOWN)


def _difference(row: CaptionRow, backend: Backend) -> str:
    """Say how a captioner of the same name that answered before differs; nothing if it is the same."""
    if row.weights and backend.weights:
        return "" if row.weights == backend.weights else "are of other weights; these are asked beside them"
    if row.revision and backend.revision and row.revision != backend.revision:
        return f"are of the revision {row.revision[:12]}; this one is asked beside it"
    return _UNKNOWN if backend.weights else ""


def require_images(source: Source) -> None:
    """Refuse a source of which nothing can be captioned, before minutes of loading a model.

    Raises:
        ValueError: no image, or the source itself cannot be read.
    """
    reasons: Counter[str] = Counter()
    for each in source.items():
        if isinstance(each, Item):
            return
        reasons[each.reason.partition(":")[0]] += 1
    told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(5))
    raise ValueError(
        f"`source` is {source.name}, which has no image; expected one or more. Correct the path."
        + (f" Left out are {told}." if told else "")
    )


def require_askable(perspectives: Sequence[Perspective]) -> None:
    """Refuse what a captioner cannot be asked.

    Raises:
        ValueError: no perspectives, two of one name, or one without a prompt.
    """
    names = [perspective.name for perspective in perspectives]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`perspectives` is {names}; expected one or more, each name once. Correct the list.")
    if mute := [perspective.name for perspective in perspectives if perspective.prompt is None]:
        raise ValueError(
            f"`perspectives` has {mute}, which have no prompt; expected what a captioner can be asked. Leave them out."
        )
