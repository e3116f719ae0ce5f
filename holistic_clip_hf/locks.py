# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Locks of outputs, so that one process at a time writes them, on disks without locks, too."""

import errno
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK = ".lock"  # in the folder of an output
# What a killed process had forked, such as the workers of a data loader, notices its end within seconds.
_SECONDS_OF_ORPHANS = 20.0


def lock_beside(path: Path) -> Path:
    """Return the file of the lock of a single file."""
    return path.with_name(f".{path.name}{LOCK}")


class InUseError(TimeoutError):
    """An output that another process is writing."""


@contextmanager
def hold_lock(path: Path, *, wait: float = 0.0, keep: bool = True) -> Iterator[None]:
    """Hold the lock at `path`, so that one process at a time writes what lies beside it.

    A folder that was made for the lock alone is removed with it.

    Args:
        path: File of the lock, which is made.
        wait: Seconds to wait for the other process before it is refused; `math.inf` for no end.
        keep: Leave the file there.

    Raises:
        InUseError: another process holds it, and the message says which.
    """
    folder, is_new, lock = path.parent, not path.parent.exists(), FileLock(path)
    if not _acquired(lock, path, wait):
        holder = _read_holder(path)
        if _is_alive(holder) or not _acquired(lock, path, _SECONDS_OF_ORPHANS):
            raise InUseError(
                f"{folder} is being written by {_describe_holder(holder)}; expected one process at a time. Wait for "
                "its end, or name another output."
            )
    try:
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError):  # a full disk is told by what is written next
            path.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": moment}))
        yield
    finally:
        with suppress(FileNotFoundError):  # its holder may have removed the folder
            if is_new and os.listdir(folder) == [path.name]:
                path.unlink()
                folder.rmdir()
            elif keep:
                os.truncate(path, 0)
            else:
                path.unlink()  # those who wait make it anew
        lock.release()


# What file systems without locks answer: NFS without its lock service, some FUSE and SMB mounts.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP}
_SECONDS_BETWEEN_LOOKS = 0.2


def _acquired(lock: FileLock, path: Path, seconds: float) -> bool:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if math.isinf(seconds) else seconds)
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            return _outlived(path, seconds)
        return True


def _outlived(path: Path, seconds: float) -> bool:
    """Wait for the end of the process that wrote itself into a lock's file: all that there is without locks."""
    _warn_of_no_locks(path)
    last = time.monotonic() + seconds
    while (holder := _read_holder(path)) and _is_alive(holder):
        if time.monotonic() >= last:
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return True


@lru_cache
def _warn_of_no_locks(path: Path) -> None:
    logger.warning(
        "The disk of %s knows no locks. Commands that write there are told apart by the file %s alone, so two that "
        "begin in the same moment may disturb each other. Start one at a time.",
        path.parent,
        path.name,
    )


def _read_holder(path: Path) -> dict[str, Any]:
    """Read who holds a lock; nothing if its file does not say, as those of earlier versions."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("process"), int) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Tell whether the process that took a lock may still run. Of other machines that cannot be known."""
    if not holder or holder.get("host") != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _describe_holder(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    where = "" if holder.get("host") == socket.gethostname() else f" on {str(holder.get('host'))[:80]}"
    return f"process {holder['process']}{where} since {str(holder.get('since'))[:40]}"
