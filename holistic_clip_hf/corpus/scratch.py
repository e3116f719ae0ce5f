# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""A place for tables that may not fit into memory, gone when its process is."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def scratch_database() -> Iterator[sqlite3.Connection]:
    """A database that spills from memory into the folder for temporary files, where it has no name to be left behind.

    Raises:
        OSError: that folder is full.
    """
    connection = sqlite3.connect("", isolation_level=None)  # SQLite's own temporary database
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        yield connection
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_FULL":
            raise
        raise OSError(
            errno.ENOSPC,
            "The disk for temporary files is full. Free space on it, or set TMPDIR to another",
        ) from error
    finally:
        connection.close()
