# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows to a corpus directory: parquet shards that a killed build keeps, then the manifest that makes it whole."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features
from datasets.table import embed_table_storage
from filelock import FileLock

from ..atomic import PARTIAL, require_free_space, require_own_folder, write_atomically
from .schema import validate_row

logger = logging.getLogger(__name__)

MANIFEST = "corpus.json"
_SHARD_KEY = b"holistic_clip_shard"
# Small row groups, so that streaming readers can skip through images, and so that writing takes little memory.
_ROWS_PER_GROUP, _BYTES_PER_GROUP = 100, 64_000_000
SKIPPED = "skipped.jsonl"
CARD, _LOCK = "README.md", ".lock"
# By these names a build knows what earlier builds wrote; nothing else in its folder is ever removed.
SHARD_NAME = re.compile(r".+-[0-9a-f]{8}\.parquet")
_OWN = re.compile(r"\.lock|corpus\.json|skipped\.jsonl|diversity\.(?:png|json)")
MOST_LISTED = 10_000  # skipped items in the manifest, which is read at every load; more are in a file of their own


class Skipped(NamedTuple):
    """Yielded by a shard in place of a row that could not be made."""

    item: str
    reason: str


Shard = Callable[[], Iterable[Mapping[str, Any] | Skipped]]


def build_corpus(directory: Path, shards: Mapping[str, Shard], features: Features, **options: Any) -> Dataset:
    """`write_corpus`, then the corpus, loaded.

    Example: `build_corpus(path, {"part-0": lambda: rows}, corpus_features(), fingerprint="v1")`.
    """
    write_corpus(directory, shards, features, **options)
    return load_corpus(directory)


def write_corpus(
    directory: Path,
    shards: Mapping[str, Shard],
    features: Features,
    *,
    fingerprint: str,
    about: Mapping[str, Any] | None = None,
    card: Callable[[dict[str, Any]], str] | None = None,
    counted: Sequence[str] = (),
    skipped: Callable[[], Iterable[Skipped]] = tuple,
    required_bytes: int = 0,
) -> None:
    """Write each shard, then `README.md` (from `card`, given the manifest), then the manifest.

    A shard is a function that yields rows and `Skipped` items; `fingerprint` stands for all that decides its rows.
    Finished shards of the same fingerprint are kept. A corpus of another fingerprint stays whole and loadable until
    the new manifest replaces its own. The manifest counts the values of the `counted` columns and lists what was
    skipped by the shards and, as `skipped` says, before; long lists are in `skipped.jsonl`. Raises `ValueError` for a
    malformed row, `OSError` when the disk is full.
    """
    require_corpus_folder(directory)
    (directory / "data").mkdir(parents=True, exist_ok=True)
    with FileLock(directory / _LOCK):
        if not is_whole(directory, fingerprint):
            require_free_space(directory, required_bytes, "the corpus", "choose a directory on another disk")
            records = {}
            for name, shard in shards.items():
                path = directory / "data" / f"{name}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:8]}.parquet"
                if _read_shard_facts(path, fingerprint) is None:
                    _write_shard(path, shard, features, fingerprint, counted)
                records[name] = _describe_shard(path, fingerprint)
            _finish(directory, records, {"fingerprint": fingerprint, "about": dict(about or {})}, skipped, card)


def require_corpus_folder(directory: Path) -> None:
    """Refuse to build into a folder that holds anything but a corpus, finished or half-built.

    Raises:
        ValueError: somebody else's files lie there.
    """
    manifest = directory / MANIFEST
    if manifest.is_file():
        try:
            found = json.loads(manifest.read_bytes())
        except (UnicodeDecodeError, json.JSONDecodeError):
            found = None  # a damaged one is made anew, but not among files that are not ours
        if isinstance(found, dict) and {"fingerprint", "shards"} <= found.keys():
            return
    has_begun = (directory / _LOCK).is_file()  # a build writes it before the card

    def is_ours(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder == "data":
            return bool(PARTIAL.fullmatch(name)) or _is_shard(directory / path)
        return not folder and bool(_OWN.fullmatch(name) or PARTIAL.fullmatch(name) or (has_begun and name == CARD))

    require_own_folder(directory, is_ours, holds="a corpus")


def _is_shard(path: Path) -> bool:
    """Tell a shard that a build wrote, damaged ones apart, by its name and by what its file says of itself."""
    if not SHARD_NAME.fullmatch(path.name) or not path.is_file() or path.is_symlink():
        return False
    try:
        return _SHARD_KEY in (pq.read_metadata(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


def load_corpus(directory: Path) -> Dataset:
    """The corpus, memory-mapped; `ValueError` for a directory that is not finished or was changed since."""
    manifest = read_manifest(directory)
    paths = []
    for name, record in manifest["shards"].items():
        path = directory / record["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != record["bytes"]:
            got = "no file" if size is None else f"{size} bytes"
            raise ValueError(
                f"Shard {name!r} of {directory}: got {got} at {record['file']}, expected {record['bytes']} bytes as "
                f"{MANIFEST} says. Delete {MANIFEST} and build the corpus again."
            )
        paths.append(str(path))
    return Dataset.from_parquet(paths)


def read_manifest(directory: Path) -> dict[str, Any]:
    """What `build_corpus` recorded: fingerprint, shards, perspectives, skipped items, and `about`."""
    path = directory / MANIFEST
    if not path.is_file():
        state = "a half-built corpus" if (directory / "data").is_dir() else "no corpus"
        raise ValueError(f"Got {directory}, which holds {state}; expected {MANIFEST} in it. Build the corpus again.")
    return json.loads(path.read_text(encoding="utf-8"))


def is_whole(directory: Path, fingerprint: str) -> bool:
    """Whether `directory` holds a finished corpus of this fingerprint with all its shards in place."""
    if not (directory / MANIFEST).is_file():
        return False
    manifest = read_manifest(directory)
    sizes = {directory / record["file"]: record["bytes"] for record in manifest["shards"].values()}
    in_place = all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())
    return in_place and manifest["fingerprint"] == fingerprint


def _write_shard(path: Path, shard: Shard, features: Features, fingerprint: str, counted: Sequence[str]) -> None:
    tally = _Tally(counted)
    rows = (features.encode_example(row) for row in tally.count(shard()))
    schema = features.arrow_schema
    with write_atomically(path) as file, pq.ParquetWriter(file, schema) as writer:
        while group := _take_group(rows):
            writer.write_table(embed_table_storage(pa.Table.from_pylist(group, schema=schema)))
        writer.add_key_value_metadata({_SHARD_KEY: json.dumps({"fingerprint": fingerprint, **tally.facts()}).encode()})
    logger.info("Wrote %s, skipped %d items", path, len(tally.skipped))


def _take_group(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    group, num_bytes = [], 0
    for row in islice(rows, _ROWS_PER_GROUP):
        group.append(row)
        num_bytes += len(row["image"]["bytes"] or b"")
        if num_bytes >= _BYTES_PER_GROUP:
            break
    return group


class _Tally:
    """What the manifest says of the rows that have passed."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.skipped: list[Skipped] = []
        self.perspectives: Counter[str] = Counter()
        self.columns: dict[str, Counter[str]] = {column: Counter() for column in columns}

    def count(self, items: Iterable[Mapping[str, Any] | Skipped]) -> Iterator[Mapping[str, Any]]:
        """The rows among `items`, each checked and counted."""
        for item in items:
            if isinstance(item, Skipped):
                self.skipped.append(item)
                continue
            validate_row(item)
            self.perspectives.update(caption["perspective"] for caption in item["captions"])
            for column, counts in self.columns.items():
                counts[item[column]] += 1
            yield item

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {"perspectives": self.perspectives, "columns": self.columns, "skipped": self.skipped}


def _read_shard_facts(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """What the shard says of itself, or None where it is not finished or of another fingerprint."""
    if not path.is_file():
        return None
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowInvalid:
        logger.warning("%s is damaged and will be written again", path)
        return None
    facts = json.loads((metadata.metadata or {}).get(_SHARD_KEY, b"{}"))
    return {**facts, "rows": metadata.num_rows} if facts.get("fingerprint") == fingerprint else None


def _describe_shard(path: Path, fingerprint: str) -> dict[str, Any]:
    facts = _read_shard_facts(path, fingerprint)
    assert facts is not None
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": path.relative_to(path.parents[1]).as_posix(),
        "rows": facts["rows"],
        "bytes": path.stat().st_size,
        "sha256": digest,
        "perspectives": facts["perspectives"],
        "columns": facts["columns"],
        "num_skipped": len(facts["skipped"]),
    }


def _finish(
    directory: Path,
    records: dict[str, dict[str, Any]],
    facts: dict[str, Any],
    skipped: Callable[[], Iterable[Skipped]],
    card: Callable[[dict[str, Any]], str] | None,
) -> None:
    columns = {column for record in records.values() for column in record["columns"]}
    manifest = {
        "fingerprint": facts["fingerprint"],
        "rows": sum(record["rows"] for record in records.values()),
        "perspectives": _add_up(record["perspectives"] for record in records.values()),
        "columns": {
            column: _add_up(record["columns"][column] for record in records.values()) for column in sorted(columns)
        },
        "about": facts["about"],
        **_list_skipped(directory, records, facts["fingerprint"], skipped),
        "shards": records,
    }
    if card is not None:
        with write_atomically(directory / CARD) as file:
            file.write(card(manifest).encode())
    with write_atomically(directory / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    kept = {directory / record["file"] for record in records.values()}
    for path in {*(directory / "data").iterdir(), *directory.glob(".*.partial")} - kept:
        if PARTIAL.fullmatch(path.name) or _is_shard(path):
            path.unlink()
    if "skipped_file" not in manifest:
        (directory / SKIPPED).unlink(missing_ok=True)


def _list_skipped(
    directory: Path,
    records: dict[str, dict[str, Any]],
    fingerprint: str,
    before: Callable[[], Iterable[Skipped]],
) -> dict[str, Any]:
    """What the manifest says of skipped items; few are listed in it, many in a file beside it, a line each."""

    def listed() -> Iterator[tuple[str | None, dict[str, str]]]:
        yield from ((None, item._asdict()) for item in before())
        for name, record in records.items():
            shard = _read_shard_facts(directory / record["file"], fingerprint) or {"skipped": ()}
            yield from ((name, Skipped(*item)._asdict()) for item in shard["skipped"])

    reasons = Counter(item["reason"].partition(":")[0] for _, item in listed())
    facts: dict[str, Any] = {"num_skipped": reasons.total(), "reasons": dict(reasons.most_common())}
    if reasons.total() > MOST_LISTED:
        with write_atomically(directory / SKIPPED) as file:
            file.writelines(json.dumps(item, ensure_ascii=False).encode() + b"\n" for _, item in listed())
        return {**facts, "skipped_file": SKIPPED}
    by_shard: dict[str | None, list[dict[str, str]]] = {name: [] for name in (None, *records)}
    for name, item in listed():
        by_shard[name].append(item)
    for name, record in records.items():
        record["skipped"] = by_shard[name]
    return {**facts, "skipped": by_shard[None]}


def _add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
