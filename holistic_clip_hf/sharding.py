# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Shares of one piece of work for many processes and machines, and the locks by which these keep out of each other's
way."""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .locks import LOCK, hold_lock
from .storage import stable_number

SHARD_LOCK = re.compile(r"\.[0-9]+-of-[0-9]+\.lock")  # in the folder of an output that several processes write


@dataclass(frozen=True)
class Shard:
    """One of `count` parts, from 0 on, into which work is dealt."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `"2/8"` as the third of eight. Raises `ValueError` for anything but such a pair."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(
                f"`shard` is {text!r}; expected i/n with i from 0 to n - 1, where 0/1 is all and 7/8 the last of "
                f"eight."
            )
        return cls(int(index), int(count))

    def holds(self, name: str) -> bool:
        """Tell whether the image of this id belongs to it."""
        return self.takes(stable_number(name))

    def takes(self, number: int) -> bool:
        """Tell whether the piece of this number belongs to it; pieces are dealt in turn."""
        return number % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


ALL = Shard()


@contextmanager
def hold_shard(folder: Path, shard: Shard) -> Iterator[None]:
    """Hold the lock of one shard of an output. Others may write theirs at the same time, and nobody the whole.

    Raises:
        InUseError: another process writes this shard, and the message says which.
    """
    with ExitStack() as stack:
        with hold_lock(
            folder / LOCK, wait=math.inf
        ):  # held by others for a moment, or as long as they write the whole
            stack.enter_context(hold_lock(folder / f".{shard}{LOCK}"))
        yield


@contextmanager
def hold_whole(folder: Path, *, wait: float) -> Iterator[None]:
    """Hold the lock of a whole output, so that nobody writes it or a shard of it.

    Args:
        folder: Folder of the output; it need not exist.
        wait: Seconds to wait for each other process before it is refused; `math.inf` for no end.

    Raises:
        InUseError: another process writes it, and the message says which.
    """
    with ExitStack() as stack:
        stack.enter_context(hold_lock(folder / LOCK, wait=wait))
        for path in folder.glob(f".*{LOCK}"):
            if SHARD_LOCK.fullmatch(path.name):
                # Nobody waits for it: whoever begins a shard waits for the lock of the whole first.
                stack.enter_context(hold_lock(path, wait=wait, keep=False))
        yield
