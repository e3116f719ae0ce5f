# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Files that appear whole or not at all, on disks that have space for them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` complete, or, after any error, not at all.

    What was at `path` stays until then. Two processes may write the same path: the later one wins.

    Raises:
        OSError: as writing does; of a full disk it says which.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise_if_disk_full(error, path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def raise_if_disk_full(error: OSError, path: Path) -> None:
    """Raise an `OSError` that says so, where `error` means that the disk of `path` is full."""
    if error.errno == errno.ENOSPC:
        raise OSError(
            errno.ENOSPC, f"The disk of {path.parent} is full while writing {path.name}. Free space and run again"
        ) from error


def require_free_space(directory: Path, num_bytes: int, purpose: str, remedy: str) -> None:
    """Raise an `OSError`, before minutes of work, where the disk of `directory` has less than `num_bytes` free."""
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{directory} has {free / 1e6:,.0f} MB free; {purpose} needs about {num_bytes / 1e6:,.0f} MB. Free space, "
            f"or {remedy}",
        )
