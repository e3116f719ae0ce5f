# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Files that appear whole or not at all, folders that are ours, checksums, keys of what others wrote, extras."""

import errno
import hashlib
import importlib
import json
import logging
import os
import re
import reprlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import yaml

from .words import MOST_SHOWN, closest, shorten

logger = logging.getLogger(__name__)

# What a process that was killed while it wrote leaves behind: the name, the process, an ending that nobody else uses.
PARTIAL = re.compile(r"\..+\.[0-9]+\.partial")
_MOST_KEYS = 20  # that are all named when one of them is misspelt


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Provide a binary file that appears at `path` complete, or, after any error, not at all.

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


@contextmanager
def write_folder(directory: Path, *, last: str, replaced: str) -> Iterator[Path]:
    """Provide a folder whose files come into `directory` once all of them are on disk; after any error none does.

    Other files in `directory` stay. One process at a time may write it: what a killed one left is removed.

    Args:
        directory: Folder that is to have the files; it need not exist.
        last: Name of the file by which others know that the folder is written. It comes last.
        replaced: Pattern of names that leave `directory` if they are not among the new files.

    Raises:
        OSError: as writing does; of a full disk it says which.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob(".*.partial"):
        if PARTIAL.fullmatch(stale.name) and stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale)
    # Inside, since the folder may be a disk of its own, onto which nothing can be renamed.
    partial = directory / f".folder.{os.getpid()}.partial"
    partial.mkdir()
    try:
        yield partial
        for path in partial.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        names = sorted(os.listdir(partial), key=lambda name: (name == last, name))
        for stale in directory.iterdir():
            if re.fullmatch(replaced, stale.name) and stale.name not in names:
                stale.unlink()
        for name in names:
            os.replace(partial / name, directory / name)
    except OSError as error:
        raise_if_disk_full(error, directory / last)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def new_folder(output: Path, *, holds: str) -> Iterator[Path]:
    """Give a folder that takes its place when the work in it has succeeded, and is removed if it fails.

    Args:
        output: Place of the folder, new or empty.
        holds: Name of what the folder is for, for the message: "an export".

    Raises:
        ValueError: `output` holds anything.
    """
    require_own_folder(output, lambda path: False, holds=holds)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        folder = Path(scratch) / "new"
        folder.mkdir()
        yield folder
        if output.exists():
            output.rmdir()
        os.replace(folder, output)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 that appears at `path` complete or not at all.

    Raises:
        OSError: as writing does.
    """
    with write_atomically(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Write `content` as JSON that appears at `path` complete or not at all, letters as they are.

    Raises:
        OSError: as writing does.
        ValueError: a number in it is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    with write_atomically(path) as file:
        # A lone surrogate, which UTF-8 has no bytes for, becomes what JSON calls it.
        file.write(text.encode("utf-8", "backslashreplace"))


class RepeatedKeyError(json.JSONDecodeError):
    """A JSON object with a key that stands twice, of which `json` itself would keep the last value.

    Args:
        key: The key.
        text: Whole text.
    """

    def __init__(self, key: str, text: str) -> None:
        self.key = key
        super().__init__(f"the key {shown(key)} stands twice", text, max(0, text.rfind(json.dumps(key))))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.doc)


def parse_json(text: str | bytes) -> Any:
    """Read JSON that somebody wrote, in which no key of an object stands twice.

    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    holistic_clip_hf.storage.RepeatedKeyError: the key 'a' stands twice: line 1 column 10 (char 9)

    Raises:
        json.JSONDecodeError: it is not JSON, or a key stands twice.
        UnicodeDecodeError: bytes that are not UTF-8.
    """
    decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise RepeatedKeyError(next(key for key in keys if keys.count(key) > 1), decoded)
        return found

    return json.loads(decoded, object_pairs_hook=once)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_root() -> Path:
    """Return the folder of downloads and example corpora: `$HOLISTIC_CLIP_CACHE`, or the user's cache."""
    if root := os.environ.get("HOLISTIC_CLIP_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holistic-clip-hf"


VERIFIED = "verified.txt"  # in the cache: states of files whose contents were read and found to be as written
_MOST_VERIFIED_BYTES = 20_000_000  # 300,000 states
# Clocks of file systems tick some milliseconds apart, so a change right after another may leave no trace.
_SETTLED_NANOSECONDS = 1_000_000_000


def changed_files(digests: Mapping[Path, str]) -> list[Path]:
    """Return the files whose contents are not those of their SHA-256.

    A file is read once on each machine, at some 1.5 GB/s, and again only after its size, its place or one of its times
    has changed. Until then it costs a look at these.

    Args:
        digests: SHA-256 in hexadecimal digits by path of a file.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    known: frozenset[str] = frozenset()
    with suppress(OSError, RuntimeError):  # there is none yet, or the user has no home
        kept = (cache_root() / VERIFIED).stat()
        known = _verified(cache_root() / VERIFIED, kept.st_mtime_ns, kept.st_size)
    changed, found = [], []
    for path, digest in digests.items():
        state = _state_of(path, digest)
        if state in known:
            continue
        if checksum(path) != digest:
            changed.append(path)
        elif time.time_ns() - path.stat().st_ctime_ns > _SETTLED_NANOSECONDS:
            found.append(state)
    if found:
        with suppress(OSError, RuntimeError):  # without a cache, all is read again
            _keep_verified(cache_root() / VERIFIED, found)
    return changed


@lru_cache(maxsize=1)
def _verified(path: Path, time_ns: int, size: int) -> frozenset[str]:
    return frozenset(path.read_text("ascii", "replace").splitlines())


def _state_of(path: Path, digest: str) -> str:
    facts = path.stat()
    state = (str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, digest)
    return hashlib.sha256(repr(state).encode("utf-8", "surrogatepass")).hexdigest()


def _keep_verified(path: Path, states: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_long = path.is_file() and path.stat().st_size > _MOST_VERIFIED_BYTES
    with open(path, "w" if is_long else "a", encoding="ascii") as file:
        file.write("".join(f"{state}\n" for state in states))


def stable_number(text: str) -> int:
    """Return a number from 0 to 2^64 - 1 that depends on the text alone, on every machine and in every version.

    >>> stable_number("a kitten") == stable_number("a kitten")
    True
    """
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def import_extra(name: str, extra: str, remedy: str = "") -> Any:
    """Import a module that only an extra of this package brings along.

    Args:
        name: Name of the module.
        extra: Extra of this package that brings it.
        remedy: Sentence with another way out.

    Raises:
        ImportError: it is not installed, with the command that installs it.
    """
    package = name.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(name)
    except ImportError as error:
        said = f"{package} is not installed. Run: pip install 'holistic-clip-hf[{extra}]'"
        raise ImportError(f"{said}. {remedy}" if remedy else said) from error


def shown(value: Any) -> str:
    """Write a value that somebody wrote, for a message, in bounded time and length.

    >>> shown({"a": [1, 2]}), len(shown("x" * 1_000_000)) < 250
    ("{'a': [1, 2]}", True)
    """
    return shorten(_SHOWN.repr(value))


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = MOST_SHOWN
_SHOWN.maxdict = _SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxset = 8
_SHOWN.maxlong = 40


def field_names(kind: type) -> set[str]:
    """Return the names of a dataclass's fields, for `require_keys`."""
    return {field.name for field in fields(kind)}


def require_keys(where: str, found: Any, valid: Collection[str], needed: Collection[str] = ()) -> dict[str, Any]:
    """Return a copy of a mapping that somebody wrote, if it has the keys that it should.

    Args:
        where: Name of the file and of the place in it, for the message.
        found: Content, of any type.
        valid: Keys that it may have.
        needed: Keys that it has to have.

    Raises:
        ValueError: it is not a mapping, or keys are unknown or missing, each by its name.
    """
    if not isinstance(found, dict):
        got = "nothing" if found is None else shown(found)
        raise ValueError(f"{where}: got {got}; expected keys and values, with the keys {_named(valid)}.")
    unknown = sorted(shorten(str(key)) for key in found.keys() - set(valid))
    missing = sorted(set(needed) - found.keys())
    if unknown or missing:
        problems = {"unknown keys": unknown, "missing keys": missing}
        got = "; ".join(f"{what} {_named(keys)}" for what, keys in problems.items() if keys)
        hint = " ".join(f"Did you mean {near}?" for key in unknown[:_MOST_KEYS] if (near := closest(key, valid)))
        listed = "" if hint and len(valid) > _MOST_KEYS else f"Valid keys: {_named(valid)}."
        raise ValueError(" ".join(filter(None, (f"{where}: {got}.", hint, listed))))
    return dict(found)


def _named(keys: Collection[str]) -> str:
    named, rest = sorted(keys)[:_MOST_KEYS], len(keys) - _MOST_KEYS
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


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


def is_utf8(text: str) -> bool:
    """Tell whether no byte had to be escaped to read it as text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_utf8(path: str | Path, name: str) -> Path:
    """Return a path whose name can stand in JSON, Arrow, cards and on a terminal; `name` is what to call it.

    Raises:
        ValueError: it has bytes that are not UTF-8.
    """
    if not is_utf8(str(path)):
        raise ValueError(
            f"`{name}` is {ascii(str(path))}, whose name is not UTF-8; expected one that is. Rename the folder."
        )
    return Path(path)


def require_own_folder(directory: Path, is_ours: Callable[[str], bool], *, holds: str) -> None:
    """Refuse a folder in which somebody else's files lie, before anything is written into it or removed from it.

    Args:
        directory: Folder that is to be written; it need not exist.
        is_ours: Test of a path below it, with slashes, for a name that the package itself writes.
        holds: Name of what the folder is for, for the message: "a corpus".

    Raises:
        ValueError: a file is not ours, or `directory` is a file or has a name that is not UTF-8.
    """
    require_utf8(directory, "output")
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"`output` is {directory}, which is a file; expected a folder for {holds}. Name another.")
    for folder, folders, names in os.walk(directory):
        below = Path(folder).relative_to(directory)
        # A link to a folder is not walked into, and is nobody's output.
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            if not is_ours((below / name).as_posix()):
                raise ValueError(
                    f"`output` is {directory}, which holds {(below / name).as_posix()}; expected a new or empty "
                    f"folder, or {holds} made earlier. Name another folder."
                )


def remove_own_files(directory: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove the files below a folder that are ours, and the folders that this leaves empty. All others stay.

    Args:
        directory: Folder to clear; it need not exist.
        is_ours: Test of a path below it, as for `require_own_folder`.
    """
    emptied: set[str] = set()
    for folder, folders, names in os.walk(directory, topdown=False):
        below = Path(folder).relative_to(directory)
        ours = [name for name in names if is_ours((below / name).as_posix())]
        for name in ours:
            os.unlink(os.path.join(folder, name))
        is_touched = ours or any(os.path.join(folder, each) in emptied for each in folders)
        if is_touched and not os.listdir(folder):
            os.rmdir(folder)
            emptied.add(folder)


def require_apart(directory: Path, source: Path, *, walked: bool) -> None:
    """Refuse an output that is a source of what is written, or holds it, or would be found in it.

    Args:
        directory: Folder that is to be written.
        source: File or folder that is read.
        walked: True if everything below `source` is read, an output too.

    Raises:
        ValueError: they are not apart.
    """
    output, given = directory.resolve(), source.resolve()
    relation = ""
    if output == given:
        relation = "the source itself"
    elif given.is_relative_to(output):
        relation = f"around the source {source}"
    elif walked and output.is_relative_to(given):
        relation = f"inside the source {source}"
    if relation:
        raise ValueError(
            f"`output` is {directory}, which is {relation}; expected a folder apart from it. Name another folder."
        )


def require_place(path: Path, name: str) -> None:
    """Refuse a file that cannot be written, before anything is computed for it.

    Args:
        path: File that is to be written; it need not exist.
        name: Name of the option or argument, for the message.

    Raises:
        ValueError: it is a folder, or below a file, or below a folder in which nothing may be written.
    """
    if path.is_dir():
        raise ValueError(f"`{name}` is {path}, which is a folder; expected a file. Name a file in it.")
    above = next(each for each in path.absolute().parents if each.exists())
    if not above.is_dir():
        raise ValueError(f"`{name}` is {path}, below {above}, which is a file; expected a folder there. Name another.")
    if not os.access(path if path.exists() else above, os.W_OK) or not os.access(above, os.W_OK):
        raise ValueError(f"`{name}` is {path}, which may not be written; expected a place of yours. Name another.")


def require_count(name: str, value: int | None) -> None:
    """Refuse a number of things that is below 1; a missing one is a default.

    Raises:
        ValueError: it is.
    """
    if value is not None and value < 1:
        raise ValueError(f"`{name}` is {value}; expected 1 or more. Raise it.")


@contextmanager
def scratch_database() -> Iterator[sqlite3.Connection]:
    """Provide a database that spills from memory into the folder for temporary files, where it has no name to be left
    behind.

    Raises:
        OSError: that folder is full.
    """
    # SQLite's own temporary database. A generator that holds it may end in another thread than it began in.
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
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


MOST_YAML_BYTES = 1_000_000
# Letters and values of a file, each counted as often as aliases (`*name`) repeat it.
_MOST_YAML_SIZE = 4_000_000
_DEEPEST_YAML = 50


class _YAMLLoader(yaml.SafeLoader):
    """YAML 1.1, whose numbers need a point, with `1e-5` as the number that YAML 1.2 and everybody takes it for, and
    without keys that stand twice, of which YAML 1.1 would take the last."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST_YAML:
            problem = f"it is nested more than {_DEEPEST_YAML} deep"
            raise yaml.composer.ComposerError(problem=problem, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in lines:
                problem = f"the key {shown(key.value)} stands in line {lines[key.value]}, too"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_YAMLLoader.yaml_implicit_resolvers = {
    first: [*resolvers] for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YAMLLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        ValueError: the file is not UTF-8 or not YAML, with the line; a key stands twice; it is too large, by itself or
            by what its aliases repeat.
    """
    if (size := path.stat().st_size) > MOST_YAML_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; expected at most {MOST_YAML_BYTES:,}. Name another file.")
    try:
        loader = _YAMLLoader(path.read_bytes())
        node = loader.get_single_node()
        is_large = node is not None and _expanded_size(node, {}) > _MOST_YAML_SIZE
        if not is_large:
            return None if node is None else loader.construct_document(node)
    except ValueError as error:  # a date that does not exist, or a number of thousands of digits
        raise ValueError(
            f"{path} has a value that cannot be read ({shorten(str(error))}); expected texts and numbers. Put it "
            "between quotes."
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}: line {mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or "it is not UTF-8"
        raise ValueError(
            f"{where} is not valid YAML ({shorten(problem)}); expected keys and values. Correct the file."
        ) from error
    raise ValueError(f"{path} repeats too much by aliases (`*name`); expected a small file. Write it out.")


def _expanded_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the size of a value with all that aliases repeat, in linear time; `known` has those of other nodes.

    Raises:
        yaml.YAMLError: an alias stands in what it names.
    """
    if id(node) in known:
        if known[id(node)] < 0:
            raise yaml.constructor.ConstructorError(
                problem="an alias stands in what it names", problem_mark=node.start_mark
            )
        return known[id(node)]
    known[id(node)] = -1
    if isinstance(node, yaml.ScalarNode):
        size = 1 + len(node.value)
    else:
        parts = [part for each in node.value for part in (each if isinstance(each, tuple) else [each])]
        size = 1 + sum(_expanded_size(part, known) for part in parts)
    known[id(node)] = size
    return size
