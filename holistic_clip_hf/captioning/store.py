# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Store of caption rows: a folder of JSON lines, in which files appear whole and are never changed.

A row is what one captioner answered about one image from one perspective, failures included.

- Any number of processes and machines write one folder side by side, and it can be read all the while. File names are
  times of writing, and whoever dies leaves nothing but whole files.
- A key may have several rows, such as a failure before the answer that a second run got, or the same answer of two
  runs that overlapped. The earliest answer counts or, without one, the latest failure.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..locks import InUseError, hold_lock
from ..sharding import ALL, Shard
from ..storage import parse_json, require_own_folder, write_atomically


class Key(NamedTuple):
    """Subject of a caption row. One row of each key counts."""

    image_id: str
    perspective: str
    captioner: str
    prompt_hash: str
    weights: str


class CaptionRow(NamedTuple):
    """One answer, or the failure to get one.

    Args:
        image_id: Id of the image.
        perspective: Name of what was asked.
        caption: Answer, cleaned, or as it came if it is rejected. Empty without an answer.
        captioner: Name of the model on the Hub or on the server, or of its folder.
        revision: Version of the captioner, as a commit hash, or empty if the server does not tell.
        prompt_hash: Hash of prompt, budget, sampling and what else the captioner is told (`question_hash`).
        status: `ok`, `cut` (good, after an unfinished end was removed), `failed` (no answer, and `error` says why), or
            one of `REJECTED`, which says why the answer is not a caption.
        error: the reason, in words; empty where all is well.
        weights: Hash of the captioner's weights, by which two of one name are two. Empty if it is not known: of a
            server, and in rows that were written before there was one.
    """

    image_id: str
    perspective: str
    caption: str
    captioner: str
    revision: str
    prompt_hash: str
    status: str
    error: str = ""
    weights: str = ""

    @property
    def key(self) -> Key:
        return Key(self.image_id, self.perspective, self.captioner, self.prompt_hash, self.weights)

    @property
    def usable(self) -> bool:
        """Tell whether the caption may go into a corpus."""
        return self.status in USABLE


FAILED = "failed"
USABLE = ("ok", "cut")
REJECTED = ("empty", "refusal", "echo", "repetition", "language", "unfinished", "too_short", "too_long")
STATUSES = (*USABLE, *REJECTED, FAILED)
logger = logging.getLogger(__name__)

# A kill costs what was answered since the last file; a run of ten days at this pace leaves 14,400 files.
SECONDS_PER_FILE = 60.0
MOST_ROWS_PER_FILE = 10_000
# All that writers leave in a folder, killed ones too: rows, lists of what was left out, locks.
_OWN = re.compile(
    r"\d+\.\d+-of-\d+\.jsonl|skipped\.\d+-of-\d+\.json|\.\d+-of-\d+\.lock"
    r"|\.(?:\d+|skipped)\.\d+-of-\d+\.jsonl?\.\d+\.partial"
)


class RowWriter:
    """Writer of rows into a folder, a file at a time; see `CaptionStore.writer`."""

    def __init__(self, folder: Path, shard: Shard, seconds_per_file: float) -> None:
        self._folder = folder
        self._shard = shard
        self._seconds = seconds_per_file
        self._waiting: list[CaptionRow] = []
        self._last = time.monotonic()

    def add(self, row: CaptionRow) -> None:
        """Keep a row, and write those that wait when it is time. Raises `OSError` as writing does."""
        self._waiting.append(row)
        is_time = time.monotonic() - self._last >= self._seconds
        if is_time or len(self._waiting) >= MOST_ROWS_PER_FILE:
            self.commit()

    def commit(self) -> None:
        """Write the rows that wait into a new file, all or none. After an `OSError` they still wait."""
        if self._waiting:
            with write_atomically(self._free_path()) as file:
                file.writelines(map(_to_line, self._waiting))
            self._waiting = []
        self._last = time.monotonic()

    def _free_path(self) -> Path:
        moment = time.time_ns()
        while (path := self._folder / f"{moment:020d}.{self._shard}.jsonl").exists():
            moment += 1  # clocks are set back, and files never replaced
        return path


class CaptionStore:
    """The caption rows of a folder, which the first writer makes.

    Raises:
        ValueError: something else than a folder is there.

    Example: `[row.caption for row in CaptionStore("captions").rows() if row.usable]`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"`folder` is {self.folder}, which is not a folder; expected one for caption rows. Correct the path."
            )

    def rows(self, shard: Shard = ALL) -> Iterator[CaptionRow]:
        """Yield the row that counts of each key, failures last.

        A line that is not a row is named in a warning and left out.
        """
        answered: set[bytes] = set()
        failed: dict[bytes, CaptionRow] = {}
        for row in self._all_rows():
            if not shard.holds(row.image_id):
                continue
            key = _digest(row.key)
            if row.status == FAILED:
                failed[key] = row
            elif key not in answered:
                # An answer also counts before a failure or answer of weights that are not known.
                answered |= {key, _digest(row.key._replace(weights=""))}
                yield row
        yield from (row for key, row in failed.items() if key not in answered)

    @contextmanager
    def writer(self, shard: Shard = ALL, seconds_per_file: float = SECONDS_PER_FILE) -> Iterator[RowWriter]:
        """Open the store for adding rows of one shard, which nobody else may do at the same time. At the end all are
        written.

        Raises:
            ValueError: another process adds rows of this shard, or the folder holds files of others and no rows.
            OSError: the rows cannot be written; all earlier files are as they were.
        """
        self.require_own()
        with ExitStack() as stack:
            try:
                stack.enter_context(hold_lock(self.folder / f".{shard}.lock"))
            except InUseError as error:
                raise ValueError(
                    f"`shard` is {shard} of {self.folder}, which another process is writing; expected a shard of its "
                    f"own for each. Wait for its end, or divide the work into more shards. ({error})"
                ) from error
            for partial in self.folder.glob(f".*.{shard}.json*.partial"):
                if _OWN.fullmatch(partial.name):
                    partial.unlink(missing_ok=True)  # of a process that was killed while it wrote
            writer = RowWriter(self.folder, shard, seconds_per_file)
            try:
                yield writer
            finally:
                writer.commit()

    def require_own(self) -> None:
        """Refuse to write into a folder that has files of others, and none with rows.

        Raises:
            ValueError: it does.
        """
        for path in self.folder.glob("*.jsonl"):
            with open(path, "rb") as file:
                if _from_line(file.readline()) is not None:
                    return
        require_own_folder(self.folder, lambda path: bool(_OWN.fullmatch(path)), holds="caption rows")

    def _all_rows(self) -> Iterator[CaptionRow]:
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    row = _from_line(line)
                    if row is None:
                        logger.warning("%s, line %d is not a caption row and is left out.", path, number)
                    else:
                        yield row


def _digest(key: Key) -> bytes:
    """Hash a key to 16 bytes, since the keys of a hundred million captions have to be remembered."""
    text = json.dumps(key, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _to_line(row: CaptionRow) -> bytes:
    # A lone surrogate, which UTF-8 has no bytes for, becomes \udc80: what JSON calls it, too.
    return json.dumps(row._asdict(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _from_line(line: bytes) -> CaptionRow | None:
    try:
        fields: Any = parse_json(line)
    except (ValueError, RecursionError):
        return None
    is_row = (
        isinstance(fields, dict)
        and fields.keys() | {"weights"} == set(CaptionRow._fields)  # which earlier versions did not write
        and all(isinstance(value, str) for value in fields.values())
        and fields["status"] in STATUSES
    )
    return CaptionRow(**fields) if is_row else None
