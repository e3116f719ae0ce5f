# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Files that appear whole or not at all."""

import errno
import os
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
