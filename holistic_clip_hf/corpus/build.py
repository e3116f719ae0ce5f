# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Corpus on disk: parquet shards that a killed build keeps, then the manifest that makes it whole.

A row is one image and its captions, each with its perspective and source.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, List, Value
from datasets.exceptions import DatasetGenerationError
from datasets.table import embed_table_storage

from ..field_types import fits
from ..images.files import read_named
from ..images.sources import SPLITS, Skipped
from ..locks import LOCK
from ..sharding import SHARD_LOCK, Shard, hold_shard, hold_whole
from ..storage import (
    PARTIAL,
    cache_root,
    changed_files,
    checksum,
    parse_json,
    remove_own_files,
    require_free_space,
    require_own_folder,
    shown,
    write_atomically,
    write_json,
    write_text,
)

CAPTION_FIELDS = ("perspective", "text", "source")


def corpus_features(**extra: Any) -> Features:
    """Return the features of every corpus, followed by the `extra` columns of this one.

    Example: `corpus_features(artist=Value("string"))`.
    """
    captions = List({field: Value("string") for field in CAPTION_FIELDS})
    core = {"image_id": Value("string"), "image": Image(), "captions": captions}
    if taken := sorted(core.keys() & extra.keys()):
        raise ValueError(
            f"`extra` has the columns {taken}; expected others than {sorted(core)}, which every corpus has. Rename "
            f"yours."
        )
    return Features({**core, **extra})


def validate_row(row: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless `row` has an image id, an image and well-formed captions."""
    if missing := [column for column in ("image_id", "image", "captions") if row.get(column) is None]:
        raise ValueError(f"A row has no {', '.join(missing)}; expected image_id, image and captions. Add them.")
    image_id = row["image_id"]
    if not isinstance(image_id, str) or not image_id.strip():
        raise ValueError(
            f"`image_id` is {shown(image_id)}; expected a string that is not empty. Name each image once."
        )
    seen = set()
    for caption in row["captions"]:
        _validate_caption(image_id, caption)
        key = (caption["perspective"], caption["source"])
        if key in seen:
            raise ValueError(
                f"Image {image_id!r}: got two captions with perspective {key[0]!r} and source {key[1]!r}; "
                "expected one. Drop one, or tell their sources apart."
            )
        seen.add(key)


def _validate_caption(image_id: str, caption: Mapping[str, Any]) -> None:
    if sorted(caption) != sorted(CAPTION_FIELDS):
        raise ValueError(
            f"Image {image_id!r}: got a caption with the fields {sorted(caption)}; expected {sorted(CAPTION_FIELDS)}. "
            "Add or remove fields."
        )
    for field, value in caption.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"Image {image_id!r}: got the caption {field} {shown(value)}; expected a string that is not empty. "
                "Leave a missing caption out of the list."
            )


def count_perspectives(dataset: Dataset) -> dict[str, int]:
    """Return the number of captions of each perspective, most frequent first; images are not read."""
    counts: Counter[str] = Counter()
    for table in dataset.select_columns("captions").with_format("arrow").iter(batch_size=10_000):
        perspectives = table["captions"].combine_chunks().flatten().field("perspective").drop_null()
        counts.update({pair["values"]: pair["counts"] for pair in pc.value_counts(perspectives).to_pylist()})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def require_perspectives(dataset: Dataset, perspectives: Sequence[str], *, name: str) -> None:
    """Raise `ValueError` unless the dataset has captions of every perspective; `name` is what to call it."""
    found = count_perspectives(dataset)
    absent = [perspective for perspective in perspectives if perspective not in found]
    if absent:
        raise ValueError(
            f"`{name}` has no caption of {absent}; expected some of {', '.join(sorted(found)) or 'none'}. Set `slots` "
            f"to "
            f"perspectives of the corpus."
        )


EXAMPLES = {"emoji": "emoji-96px"}  # corpora of the examples, and their folders in the cache


def find_corpus(name: str | Path) -> Path:
    """Find a corpus by its folder, or by its name in the cache.

    Raises:
        ValueError: neither exists.
    """
    if Path(name).is_dir():
        return Path(name)
    cached = cache_root() / "corpora" / EXAMPLES.get(str(name), str(name))
    if (cached / MANIFEST).is_file():
        return cached
    raise ValueError(
        f"`corpus` is {name}; expected the folder of a corpus, or the name of one in {cache_root() / 'corpora'}. "
        "Build it with `holistic-clip corpus`, or, for an example, with `python -m training.emoji` in a checkout."
    )


def corpus_name(directory: str | Path) -> str:
    """Return what records call a corpus: the name that its build was given, or that of its folder.

    Raises:
        ValueError: as `read_manifest`.
    """
    return (read_manifest(directory).get("about") or {}).get("name") or Path(directory).resolve().name


def read_skipped(directory: str | Path) -> Iterator[Skipped]:
    """Yield what a build left out, with the reason of each.

    Raises:
        ValueError: as `read_manifest`.
    """
    manifest = read_manifest(directory)
    if "skipped_file" in manifest:
        with (Path(directory) / SKIPPED).open(encoding="utf-8") as lines:
            yield from (Skipped(**json.loads(line)) for line in lines)
        return
    for part in (manifest, *manifest["shards"].values()):
        yield from (Skipped(**item) for item in part.get("skipped", ()))


def remove_corpus(directory: Path) -> None:
    """Remove what a build wrote into a folder that was new, and nothing else that lies there."""
    remove_own_files(directory, lambda path: path == CARD or is_corpus_file(directory, path))


class EmptyCorpusError(ValueError):
    """A corpus of which no image can be a row."""


class EmptySplitError(ValueError):
    """A split that a corpus has no row of."""


def open_split(
    directory: str | Path,
    split: str,
    *,
    split_column: str | None = None,
    held_out: Mapping[str, str] | None = None,
) -> Dataset:
    """Return the rows of a corpus whose `split_column` says `split`.

    With `held_out`, a column and the value of it that is never trained on, the rows of that value are the test split
    instead; what the corpus itself would test on is trained on.

    Raises:
        ValueError: no such column, or no such rows.
    """
    corpus = load_corpus(directory)
    split_column = split_column or _split_column(directory)
    texts = [name for name, feature in corpus.features.items() if feature in (Value("string"), Value("large_string"))]
    for column in (split_column, *(held_out or {})):
        if column not in texts:
            name = "split_column" if column == split_column else "held_out"
            got = "does not hold texts" if column in corpus.column_names else "it does not have"
            raise ValueError(
                f"`{name}` of {directory} is {column!r}, which {got}; expected one of {', '.join(texts)}. "
                "Name another."
            )
    splits = list(corpus[split_column])
    for column, value in (held_out or {}).items():
        values = corpus[column]
        if value not in values:
            raise ValueError(f"No row of {directory} has {value!r} in {column!r}, so it cannot be held out.")
        splits = [
            "test" if held == value else "train" if told == "test" else told
            for told, held in zip(splits, values, strict=True)
        ]
    rows = [index for index, value in enumerate(splits) if value == split]
    if not rows:
        valid = ", ".join(sorted(each for each in set(splits) if each is not None)) or "rows"
        raise EmptySplitError(
            f"No row of {directory} has {split!r} in {split_column!r}; expected {valid}. Name another split, as with "
            f"`--split`, or build the corpus with a larger share, such as `--{split} 0.2`."
        )
    return corpus.select(rows)


logger = logging.getLogger(__name__)

MANIFEST = "corpus.json"
_SHARD_KEY = b"holistic_clip_shard"
# Small row groups, so that streaming readers can skip through images, and so that writing takes little memory.
_ROWS_PER_GROUP, _BYTES_PER_GROUP = 100, 64_000_000
SKIPPED, NEAR_DUPLICATES = "skipped.jsonl", "near_duplicates.json"
CARD, _LOCK = "README.md", LOCK
# By these names a build knows what earlier builds wrote; nothing else in its folder is ever removed.
SHARD_NAME = re.compile(r".+-[0-9a-f]{8}\.parquet")
THUMBNAILS = re.compile(r"thumbnails-\d+-[0-9a-f]{8}\.npy")
BESIDE = re.compile(rf"skipped\.jsonl|diversity\.(?:png|json)|near_duplicates\.json|{THUMBNAILS.pattern}")
MOST_LISTED = 10_000  # skipped items in the manifest, which is read at every load; more are in a file of their own
ShardRows = Callable[[], Iterable[Mapping[str, Any] | Skipped]]


def build_corpus(
    directory: str | Path, shards: Mapping[str, ShardRows], features: Features, **options: Any
) -> Dataset:
    """Run `write_corpus`, then load the corpus.

    Example: `build_corpus(path, {"part-0": lambda: rows}, corpus_features(), fingerprint="v1")`.
    """
    write_corpus(directory, shards, features, **options)
    return load_corpus(directory)


def _split_column(directory: str | Path) -> str:
    """Find the column that says train, validation or test: the first that the build counted."""
    counted = read_manifest(directory)["columns"]
    found = [column for column, counts in counted.items() if counts and counts.keys() <= set(SPLITS)]
    if not found:
        raise ValueError(
            f"`split_column` is missing, and no column of {directory} says train, validation or test; expected the "
            f"name of one of {', '.join(load_corpus(directory).column_names)}."
        )
    return found[0]


def write_corpus(
    directory: str | Path,
    shards: Mapping[str, ShardRows] | Callable[[], Mapping[str, ShardRows]],
    features: Features,
    *,
    fingerprint: str,
    about: Mapping[str, Any] | None = None,
    card: Callable[[dict[str, Any]], str] | None = None,
    counted: Sequence[str] = (),
    skipped: Callable[[], Iterable[Skipped]] = tuple,
    required_bytes: int = 0,
    check: Callable[[], None] | None = None,
) -> None:
    """Write each shard, then `README.md` (from `card`, given the manifest), then the manifest.

    A shard is a function that yields rows and `Skipped` items; `fingerprint` stands for all that decides its rows.
    Shards whose plan takes work come from a function, which is called only if they are to be written. Finished shards
    of the same fingerprint are kept. A corpus of another fingerprint stays whole and loadable until the new manifest
    replaces its own. The manifest counts the values of the `counted` columns and lists what was skipped by the shards
    and, as `skipped` says, before; long lists are in `skipped.jsonl`. Processes that build into one folder wait for
    each other; `check` is asked once the folder is this one's. Raises `ValueError` for a malformed row and for a
    corpus without rows, `OSError` when the disk is full.
    """
    directory, is_new = Path(directory), not Path(directory).exists()
    require_corpus_folder(directory)
    try:
        with hold_whole(directory, wait=math.inf):
            if check is not None:
                check()
            (directory / "data").mkdir(exist_ok=True)
            if not is_whole(directory, fingerprint):
                require_free_space(directory, required_bytes, "the corpus", "choose a directory on another disk")
                records = {}
                for name, shard in (shards() if callable(shards) else shards).items():
                    path = _complete_shard(directory, name, shard, features, fingerprint, counted)
                    records[name] = _describe_shard(path, fingerprint)
                _finish(directory, records, {"fingerprint": fingerprint, "about": dict(about or {})}, skipped, card)
    except EmptyCorpusError:
        if is_new:  # nothing in it is worth to go on from
            remove_own_files(directory, partial(is_corpus_file, directory))
        raise


def write_share(
    directory: str | Path,
    shard: Shard,
    shards: Mapping[str, ShardRows],
    features: Features,
    *,
    fingerprint: str,
    counted: Sequence[str] = (),
    check: Callable[[], None] | None = None,
) -> None:
    """Write these shards of a corpus alone, which `write_corpus` with the same fingerprint then keeps.

    The other arguments are those of `write_corpus`.

    Args:
        directory: Folder of the corpus, into which other processes may write other shards at the same time.
        shard: Share of the work that these shards are.
        shards: Shards of this share.

    Raises:
        ValueError: a malformed row.
        InUseError: another process writes this share.
        OSError: the disk is full.
    """
    directory = Path(directory)
    require_corpus_folder(directory)
    with hold_shard(directory, shard):
        if check is not None:
            check()
        (directory / "data").mkdir(exist_ok=True)
        for name, rows in shards.items():
            _complete_shard(directory, name, rows, features, fingerprint, counted)


def digest_of(fingerprint: str) -> str:
    """Return the end of the names of shards of this fingerprint."""
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:8]


def require_corpus_folder(directory: str | Path) -> None:
    """Refuse to build into a folder that holds anything but a corpus, finished or half-built.

    Raises:
        ValueError: somebody else's files lie there.
    """
    directory = Path(directory)
    manifest, is_damaged = directory / MANIFEST, False
    if manifest.is_file():
        try:
            found = parse_json(manifest.read_bytes())
        except (UnicodeDecodeError, json.JSONDecodeError):
            is_damaged = True  # it is made anew, but not among files that are not ours
        else:
            if isinstance(found, dict) and {"fingerprint", "shards"} <= found.keys():
                return
    # The names beside the shards are anybody's. A build writes its lock before them, and some have been without one.
    has_shards = any(map(_is_shard, directory.glob("data/*.parquet")))
    has_begun = has_shards or (directory / _LOCK).is_file()

    def is_ours(path: str) -> bool:
        if path in (CARD, MANIFEST) or BESIDE.fullmatch(path):
            return has_begun and (path != MANIFEST or is_damaged or has_shards)
        return is_corpus_file(directory, path)

    require_own_folder(directory, is_ours, holds="a corpus")


def is_corpus_file(directory: str | Path, path: str) -> bool:
    """Tell whether a path below a corpus is of a file that a build writes there, the card apart."""
    folder, _, name = path.rpartition("/")
    if folder == "data":
        return bool(PARTIAL.fullmatch(name)) or _is_shard(Path(directory) / path)
    beside = (BESIDE, PARTIAL, SHARD_LOCK)
    return not folder and (name in (_LOCK, MANIFEST) or any(kind.fullmatch(name) for kind in beside))


def _is_shard(path: Path) -> bool:
    """Tell a shard that a build wrote, damaged ones apart, by its name and by what its file says of itself."""
    if not SHARD_NAME.fullmatch(path.name) or not path.is_file() or path.is_symlink():
        return False
    try:
        return _SHARD_KEY in (pq.read_metadata(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


def load_corpus(directory: str | Path) -> Dataset:
    """Return the corpus, memory-mapped.

    Raises:
        ValueError: it is not finished or was changed since.
        DamagedCorpusError: a shard has other contents than a build wrote, although it is as long as it was. All are
            read at the first opening on a machine, and those that changed at later ones.
    """
    directory, manifest = Path(directory), read_manifest(directory)
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
    if changed := changed_files(_digests(directory, manifest)):
        names = ", ".join(path.relative_to(directory).as_posix() for path in changed[:3])
        more = f" and {len(changed) - 3:,} more" if len(changed) > 3 else ""
        raise DamagedCorpusError(
            f"`corpus` is {directory}, of which {names}{more} changed since the build; expected what it wrote. Build "
            "the corpus again, or get these files again."
        )
    try:
        return Dataset.from_parquet(paths)
    except (DatasetGenerationError, pa.ArrowInvalid, OSError) as error:
        raise DamagedCorpusError(
            f"`corpus` is {directory}, of which a shard cannot be read ({_cause(error)}); expected what a build "
            f"wrote. Delete what is damaged with {MANIFEST}, and build the corpus again."
        ) from error


def _digests(directory: Path, manifest: Mapping[str, Any]) -> dict[Path, str]:
    """Return the SHA-256 of each shard by its path."""
    return {directory / shard["file"]: shard["sha256"] for shard in manifest["shards"].values() if "sha256" in shard}


def _cause(error: BaseException) -> str:
    """Return what `datasets` wraps in an error that says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).rstrip(".")


class DamagedCorpusError(ValueError):
    """A manifest or shard that no build wrote, or that was cut or changed since."""


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """Read what `build_corpus` recorded: fingerprint, shards, perspectives, skipped items, and `about`.

    Raises:
        ValueError: a folder without a finished corpus.
        DamagedCorpusError: a manifest that cannot be read.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        is_begun = any(map(_is_shard, path.parent.glob("data/*.parquet")))
        state, remedy = (
            ("a half-built corpus", "Build the corpus again.")
            if is_begun
            else ("no corpus", f"Build one: `holistic-clip corpus folder {directory} --output corpus`.")
        )
        raise ValueError(f"`corpus` is {directory}, which holds {state}; expected {MANIFEST} in it. {remedy}")
    try:
        found = parse_json(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        found = None
    if not _is_manifest(found):
        raise DamagedCorpusError(
            f"`corpus` is {directory}, whose {MANIFEST} is damaged; expected what a build wrote. Delete {path} and "
            "build the corpus again."
        )
    return found


_COUNTS = dict[str, int]
_OF_ALL = {"rows": int, "num_skipped": int, "skipped": list, "reasons": _COUNTS}
_OF_MANIFEST = {
    **_OF_ALL,
    **{"fingerprint": str, "shards": dict[str, dict], "columns": dict[str, _COUNTS], "perspectives": _COUNTS},
    **{"about": dict | None, "skipped_file": str},
}
_OF_SHARD = {**_OF_ALL, "file": str, "bytes": int, "sha256": str}


def _is_manifest(found: Any) -> bool:
    """Tell whether all that is read of a manifest is as a build writes it; earlier ones wrote less."""
    return (
        _is_of(found, _OF_MANIFEST, ("fingerprint", "rows", "shards", "columns", "perspectives"))
        and all(_is_of(shard, _OF_SHARD, ("file", "bytes")) for shard in found["shards"].values())
        and fits((found.get("about") or {}).get("name", ""), str)
    )


def _is_of(found: Any, kinds: Mapping[str, Any], needed: Collection[str]) -> bool:
    """Tell whether an object has the keys that it needs, and values of their types."""
    return (
        isinstance(found, dict)
        and set(needed) <= found.keys()
        and all(fits(found[name], kind) for name, kind in kinds.items() if name in found)
    )


def is_whole(directory: str | Path, fingerprint: str) -> bool:
    """Tell whether `directory` holds a finished corpus of this fingerprint with all its shards in place."""
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        return False
    try:
        manifest = read_manifest(directory)
    except DamagedCorpusError:
        logger.warning("%s is damaged and will be written again", directory / MANIFEST)
        return False
    sizes = {directory / record["file"]: record["bytes"] for record in manifest["shards"].values()}
    in_place = all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())
    if not in_place or manifest["fingerprint"] != fingerprint:
        return False
    for path in (changed := changed_files(_digests(directory, manifest))):
        logger.warning("%s changed since it was written, and will be written again", path)
        if path.parent == directory / "data" and _is_shard(path):
            path.unlink()  # or it would be taken up for what an earlier build had finished
    return not changed


def _complete_shard(
    directory: Path, name: str, rows: ShardRows, features: Features, fingerprint: str, counted: Sequence[str]
) -> Path:
    """Return the file of a shard, which is written unless an earlier build finished it."""
    path = directory / "data" / f"{name}-{digest_of(fingerprint)}.parquet"
    if _read_shard_facts(path, fingerprint) is None:
        _write_shard(path, rows, features, fingerprint, counted)
    return path


def _write_shard(path: Path, shard: ShardRows, features: Features, fingerprint: str, counted: Sequence[str]) -> None:
    tally = _Tally(counted)
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    rows = (_embed(features.encode_example(row), columns) for row in tally.count(shard()))
    schema = features.arrow_schema
    with write_atomically(path) as file, pq.ParquetWriter(file, schema) as writer:
        while group := _take_group(rows):
            writer.write_table(embed_table_storage(pa.Table.from_pylist(group, schema=schema)))
        writer.add_key_value_metadata({_SHARD_KEY: json.dumps({"fingerprint": fingerprint, **tally.facts()}).encode()})
    logger.info("Wrote %s, skipped %d items", path, len(tally.skipped))


def _embed(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Put the files that a row names into it; `datasets` itself would fetch any address and read any file."""
    for column in columns:
        image = row[column]
        if image is not None and image["bytes"] is None and image["path"] is not None:
            row[column] = {"bytes": read_named(image["path"]), "path": os.path.basename(image["path"])}
    return row


def _take_group(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    group, num_bytes = [], 0
    for row in islice(rows, _ROWS_PER_GROUP):
        group.append(row)
        num_bytes += len(row["image"]["bytes"] or b"")
        if num_bytes >= _BYTES_PER_GROUP:
            break
    return group


class _Tally:
    """Tally, for the manifest, of the rows that have passed."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.skipped: list[Skipped] = []
        self.perspectives: Counter[str] = Counter()
        self.columns: dict[str, Counter[str]] = {column: Counter() for column in columns}

    def count(self, items: Iterable[Mapping[str, Any] | Skipped]) -> Iterator[Mapping[str, Any]]:
        """Yield the rows among `items`, each checked and counted."""
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
        """Return the counts as JSON values."""
        return {"perspectives": self.perspectives, "columns": self.columns, "skipped": self.skipped}


def _read_shard_facts(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read what the shard says of itself, or None if it is unfinished or of another fingerprint."""
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
    return {
        "file": path.relative_to(path.parents[1]).as_posix(),
        "rows": facts["rows"],
        "bytes": path.stat().st_size,
        "sha256": checksum(path),
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
    if not manifest["rows"]:
        told = "; ".join(f"{reason} ({count})" for reason, count in list(manifest["reasons"].items())[:5])
        raise EmptyCorpusError(
            f"The corpus in {directory} would have no rows; expected at least one image that can be read. Left out "
            f"are {told or 'none, there was nothing to build'}. Correct the source."
        )
    if card is not None:
        write_text(directory / CARD, card(manifest))
    write_json(directory / MANIFEST, manifest, indent=1)
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
    """List skipped items for the manifest. Few stand in it, many in a file beside it, a line each."""

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
