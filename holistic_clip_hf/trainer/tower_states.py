# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""States of a frozen tower on disk: computed once, mapped into memory, and found again after a kill.

    about.json      what the states are of: tower, images, type of number, view; written first
    states.bin      one row (S, E) for each image, in the order of the rows; zeros for an image that cannot be read
    rows.bin        for each row whether it is finished and the CRC-32 of its states
    left_out.json   the reason of each row without an image

Rows are encoded in batches that always begin at the same row, and a batch counts once its states are on the disk. So a
run that was killed goes on at the first unfinished batch, and ends with the bytes of one that was not.

Axes: N rows, S states, E tower width.
"""

import hashlib
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..images.files import image_content
from ..images.tables import undecoded
from ..locks import LOCK
from ..storage import PARTIAL, field_names, parse_json, raise_if_disk_full, require_keys, write_json

logger = logging.getLogger(__name__)

FORMAT = 1
ABOUT, STATES, ROWS, LEFT_OUT = "about.json", "states.bin", "rows.bin", "left_out.json"
DTYPES = ("float16", "float32")
BATCH = 32  # rows that are encoded together; a constant, since other batches give other last digits
SECONDS_OF_LOSS = 5.0  # that a kill may cost
UNFINISHED, FINISHED, NO_IMAGE = range(3)
_ROW = np.dtype([("status", "u1"), ("crc", "<u4")])
_FILE = "|".join((ABOUT, STATES, ROWS, LEFT_OUT, PARTIAL.pattern))
_OWN = re.compile(rf"{re.escape(LOCK)}|(?:train|eval)(?:-\d+)?/(?:{_FILE})")
# What differs, for people, in the order in which it is told.
_TOLD = {
    "format": "of another version of this package",
    "tower": "of another tower or image processor",
    "precision": "computed in another precision",
    "images": "of other images",
    "view": "of another augmentation or seed",
    "dtype": "of another type of number",
    "rows": "of another number of images",
    "shape": "of another shape",
}


@dataclass(frozen=True, kw_only=True)
class About:
    """Facts that decide the states of one set of images, to the last bit on one machine.

    Args:
        tower: Hash of the tower's weights and configuration, and of the image processor.
        images: Hash of the ids and contents of all images, in their order.
        rows: N, their number.
        shape: S and E.
        dtype: `float16` or `float32`, as stored.
        precision: Precision of the forward pass, as accelerate calls it.
        view: Seed and number of an augmented view, and the augmentation; empty for images as they are.
        format: Version of the files.
    """

    tower: str
    images: str
    rows: int
    shape: Sequence[int]
    dtype: str
    precision: str = "no"
    view: str = ""
    format: int = FORMAT

    @property
    def bytes_of_row(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        return self.rows * self.bytes_of_row


def hash_images(rows: Dataset) -> str:
    """Hash the ids and contents of all images of a corpus, in their order; every byte is read once."""
    digest = hashlib.sha256()
    for row in undecoded(rows.select_columns(["image_id", "image"])):
        content = hashlib.sha256(image_content(row["image"])).digest()
        digest.update(json.dumps(row["image_id"], default=str).encode() + content)
    return digest.hexdigest()


class TowerStates:
    """States of one set of images in a folder, each row by its number.

    It may be pickled: each process that reads maps the file by itself.

    Args:
        folder: Folder of the files; it need not exist.
        about: Facts of the states that are wanted.
    """

    def __init__(self, folder: Path, about: About) -> None:
        self.folder = folder
        self.about = about
        self._opened: tuple[np.ndarray, np.ndarray, dict[str, str]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def require_same(self, name: str, root: Path) -> None:
        """Refuse a folder whose states are of something else.

        Args:
            name: Name of the option that named it.
            root: Folder that was named.

        Raises:
            ValueError: they are, or their description is damaged.
        """
        path = self.folder / ABOUT
        if not path.is_file():
            return
        remedy = "Name another folder, or delete it"
        try:
            found = require_keys(str(path), parse_json(path.read_bytes()), field_names(About), field_names(About))
        except ValueError as error:
            raise ValueError(
                f"`{name}` is {root}, where {self.folder.name}/{ABOUT} is damaged; expected what caching wrote. "
                f"{remedy}."
            ) from error
        wanted = parse_json(json.dumps(asdict(self.about)))
        if differing := [told for key, told in _TOLD.items() if found[key] != wanted[key]]:
            raise ValueError(
                f"`{name}` is {root}, whose {self.folder.name} holds states {differing[0]}; expected those of this "
                f"tower and corpus. {remedy}."
            )

    def unfinished(self) -> list[range]:
        """Return the batches of rows that are not on the disk yet."""
        status = self._rows()["status"]
        batches = [range(start, min(start + BATCH, self.about.rows)) for start in range(0, self.about.rows, BATCH)]
        return [batch for batch in batches if (status[batch.start : batch.stop] == UNFINISHED).any()]

    @property
    def is_whole(self) -> bool:
        return (self.folder / ABOUT).is_file() and not self.unfinished()

    @contextmanager
    def writer(self) -> Iterator["Writer"]:
        """Provide what writes rows. What was written counts, whatever ends the context.

        Raises:
            OSError: as writing does; of a full disk it says which.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ABOUT).is_file():
            write_json(self.folder / ABOUT, asdict(self.about))
        rows = self._rows()  # before its file is opened, which may lack rows
        with ExitStack() as stack:
            files = []
            for name in (STATES, ROWS):
                (self.folder / name).touch()
                files.append(stack.enter_context(open(self.folder / name, "r+b", buffering=0)))
            writer = Writer(self, rows, *files)
            try:
                writer.begin()
                yield writer
            except OSError as error:
                raise_if_disk_full(error, self.folder / STATES)
                raise
            finally:
                writer.flush()
        self._opened = None

    def _rows(self) -> np.ndarray:
        """Return status and checksum of each row, as far as the files bear them out."""
        path, found = self.folder / ROWS, np.zeros(self.about.rows, _ROW)
        if not path.is_file() or path.stat().st_size != found.nbytes:
            return found
        found[:] = np.fromfile(path, _ROW)
        states = self.folder / STATES
        size = states.stat().st_size if states.is_file() else 0
        cut = (np.arange(self.about.rows) >= size // self.about.bytes_of_row) & (found["status"] != UNFINISHED)
        if cut.any():
            logger.warning("%s ends too early: %d rows are encoded anew.", states, int(cut.sum()))
            found[cut] = 0
        return found

    def left_out(self) -> dict[str, str]:
        """Return the reason of each row without an image, by its number."""
        path = self.folder / LEFT_OUT
        try:
            found = parse_json(path.read_bytes()) if path.is_file() else {}
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    def __getitem__(self, row: int) -> Tensor | str:
        """Return the states (S, E) of a row, or the reason why it has none.

        Raises:
            ValueError: the row is not finished, or not as it was written.
        """
        if self._opened is None:
            shape, kind = (self.about.rows, *self.about.shape), np.dtype(self.about.dtype).newbyteorder("<")
            mapped = np.memmap(self.folder / STATES, kind, "r", shape=shape)
            self._opened = mapped, self._rows(), self.left_out()
        states, rows, reasons = self._opened
        status, crc = rows[row]
        if status == NO_IMAGE:
            return reasons.get(str(row), "it could not be read when the states were computed")
        found = np.array(states[row])
        if status != FINISHED or zlib.crc32(found.data) != crc:
            raise ValueError(
                f"{self.folder / STATES} is damaged in row {row}; expected the states that were written. Delete the "
                f"folder, and they are computed anew."
            )
        return torch.from_numpy(found)

    def blank(self) -> Tensor:
        """Return zeros in place of states (S, E)."""
        return torch.zeros(*self.about.shape, dtype=getattr(torch, self.about.dtype))


class Writer:
    """Writer of rows, which count a few seconds after they came, once they are on the disk.

    Args:
        states: Set of rows that is written.
        rows: Status and checksum of each.
        states_file, rows_file: Files, opened without a buffer.
    """

    def __init__(self, states: TowerStates, rows: np.ndarray, states_file: IO[bytes], rows_file: IO[bytes]) -> None:
        self.set, self.rows = states, rows
        self.states_file, self.rows_file = states_file, rows_file
        self.reasons = {
            row: reason for row, reason in states.left_out().items() if rows[int(row)]["status"] == NO_IMAGE
        }
        self.flushed = time.monotonic()

    def begin(self) -> None:
        """Write what is known of the rows, and give the file of states its size, of which nothing is allotted."""
        self.states_file.truncate(self.set.about.num_bytes)
        self._write_rows()

    def write(self, batch: range, found: Iterable[np.ndarray | str]) -> None:
        """Write the states (S, E) of a batch's rows, or the reason why a row has none.

        Raises:
            ValueError: a number that the type of number cannot hold.
        """
        about = self.set.about
        for row, states in zip(batch, found, strict=True):
            if isinstance(states, str):
                self.reasons[str(row)] = states
                self.rows[row] = NO_IMAGE, 0
                continue
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(states, np.dtype(about.dtype).newbyteorder("<"))
            if not np.isfinite(stored).all():
                largest = np.abs(states).max()
                wider = "Set `states_dtype` to float32." if np.isfinite(largest) else "Check the tower's weights."
                raise ValueError(
                    f"The states of row {row} go up to {largest:.3g}; expected numbers that {about.dtype} can hold. "
                    f"{wider}"
                )
            self.states_file.seek(row * about.bytes_of_row)
            _write_all(self.states_file, stored.data.cast("B"))
            self.rows[row] = FINISHED, zlib.crc32(stored.data)
        if time.monotonic() - self.flushed >= SECONDS_OF_LOSS:
            self.flush()

    def flush(self) -> None:
        """Make all that was written count."""
        os.fsync(self.states_file.fileno())
        if self.reasons:
            write_json(self.set.folder / LEFT_OUT, dict(sorted(self.reasons.items(), key=lambda item: int(item[0]))))
        self._write_rows()
        self.flushed = time.monotonic()

    def _write_rows(self) -> None:
        self.rows_file.seek(0)
        _write_all(self.rows_file, self.rows.view(np.uint8).data)
        os.fsync(self.rows_file.fileno())


def _write_all(file: IO[bytes], data: memoryview) -> None:
    """Write all of it: one call may write less, and of a disk that becomes full the next one says so."""
    while data:
        data = data[file.write(data) :]


def key_of(sets: Mapping[str, About]) -> str:
    """Return a short hash of all that decides the states of these sets of images."""
    facts = {name: asdict(about) for name, about in sets.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def is_states_file(path: str) -> bool:
    """Tell whether a path below a folder of states is one that caching writes."""
    return bool(_OWN.fullmatch(path))
