"""One process at a time writes into a folder, on disks without locks too."""

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from holistic_clip_hf.locks import LOCK, InUseError, hold_lock


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP])
def lockless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk as NFS without its lock service: files are written, and no lock is given."""

    def flock(*_: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def process_that_holds(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    path.write_text(json.dumps({"process": process.pid, "host": socket.gethostname(), "since": "now"}))
    return process


@pytest.mark.usefixtures("lockless")
def test_without_locks_the_file_tells_who_writes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), hold_lock(tmp_path / LOCK):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    with hold_lock(tmp_path / LOCK):
        pass
    assert [record.getMessage().partition(" knows")[0] for record in caplog.records] == [f"The disk of {tmp_path}"]


@pytest.mark.usefixtures("lockless")
def test_without_locks_a_process_that_runs_is_waited_for_and_a_dead_one_is_not(tmp_path: Path) -> None:
    process = process_that_holds(tmp_path / LOCK)
    try:
        for wait in (0.0, 0.3):
            with (
                pytest.raises(InUseError, match=f"is being written by process {process.pid} since now; expected one"),
                hold_lock(tmp_path / LOCK, wait=wait),
            ):
                pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with hold_lock(tmp_path / LOCK):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_other_faults_of_a_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), hold_lock(tmp_path / LOCK):
        pass
