# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Debian packages as pinned, checksummed archives: fetched once, unpacked, never installed."""

import json
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from holistic_clip_hf.storage import checksum

logger = logging.getLogger(__name__)


_DOWNLOAD_SECONDS = 600


@dataclass(frozen=True)
class DebianPackage:
    """One pinned package, what it holds and under which licence."""

    name: str
    version: str
    sha256: str
    title: str
    license: str


def load_packages() -> dict[str, DebianPackage]:
    """Return the packages of `packages.json`, by name."""
    pinned = json.loads(Path(__file__).with_name("packages.json").read_text(encoding="utf-8"))
    return {facts["name"]: DebianPackage(**facts) for facts in pinned}


def unpack(package: DebianPackage, directory: Path) -> Path:
    """Return the folder below `directory` that holds the package's files, fetched with apt and unpacked unless there.

    Raises:
        ValueError: no apt and dpkg here, or a wrong checksum.
        OSError: the package could not be fetched or unpacked.
    """
    unpacked = directory / f"{package.name}-{package.sha256[:12]}"
    if unpacked.is_dir():
        return unpacked
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        raise ValueError(
            f"{' and '.join(missing)} cannot be found; expected a Debian system for the package {package.name}. Run "
            f"this on Debian or Ubuntu, or "
            f"unpack {package.name} {package.version} into {unpacked} yourself."
        )
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        archive = _download(package, Path(scratch))
        _run(["dpkg-deb", "-x", str(archive), str(Path(scratch) / "files")], Path(scratch))
        os.replace(Path(scratch) / "files", unpacked)
    return unpacked


def _download(package: DebianPackage, scratch: Path) -> Path:
    logger.info("Fetching %s %s", package.name, package.version)
    _run(["apt-get", "download", f"{package.name}={package.version}"], scratch)
    archives = list(scratch.glob("*.deb"))
    if len(archives) != 1:
        raise OSError(f"apt-get left {len(archives)} archives of {package.name}; expected one. Try again later.")
    if (got := checksum(archives[0])) != package.sha256:
        raise ValueError(
            f"{package.name} {package.version}: got an archive with sha256 {got}, expected {package.sha256}. The "
            "package was changed after it was pinned: look at what changed, then correct packages.json."
        )
    return archives[0]


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} was not done within {_DOWNLOAD_SECONDS} s. Try again later.") from error
    if done.returncode:
        raise OSError(
            f"`{' '.join(command[:3])}` ended with {done.returncode}. It said:\n{done.stderr}\n"
            "If the package is not known, run `apt-get update` first."
        )
