# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Corpora to the Hub and back: the parquet shards, the manifest that makes them whole, and the card."""

import hashlib
import re
import tempfile
from pathlib import Path

from datasets import Dataset
from huggingface_hub import DatasetCard, snapshot_download

from ..corpus.build import MANIFEST, load_corpus, read_manifest
from .hub import Publication
from .push import push
from .remote import (
    HUB_ERRORS,
    MAIN,
    Destination,
    PublishingError,
    look,
    reason_of,
    require_replaceable,
)

CARD = "README.md"
SHARD = re.compile(r"data/[^/\\]+\.parquet")
# Beside the shards: the manifest, the card and its pictures and reports, licences.
BESIDE = re.compile(r"(corpus|diversity|skipped)\.jsonl?|[A-Za-z0-9_-]+\.png|README\.md|LICENSE|NOTICE")
PULLED = ["data/*.parquet", "*.json", "*.jsonl", "*.png", "README.md", "LICENSE", "NOTICE"]


def publish_corpus(directory: str | Path, destination: Destination, *, dry_run: bool = False) -> Publication:
    """Push a built corpus in one commit, so that `load_dataset` finds its rows and `pull_corpus` all of it.

    Where the card does not say which files are which split, all shards are the split `train`. `dry_run` asks nobody.

    Raises:
        ValueError: a corpus that is not finished, has no card or was changed since it was built; no token that may
            write; a repository of something else.
        PublishingError: the Hub or the network; the message says what is on the Hub now.

    Example: `publish_corpus("corpora/emoji", Destination("someone/emoji-captions", kind="dataset"))`.
    """
    directory = Path(directory)
    files = _files_of(directory)
    with tempfile.TemporaryDirectory(prefix="publish-") as scratch:
        card = Path(scratch) / CARD
        card.write_text(_with_data_files(files[CARD].read_text(encoding="utf-8")), encoding="utf-8")
        files[CARD] = card
        sizes = {name: path.stat().st_size for name, path in sorted(files.items())}
        if dry_run:
            return Publication(destination.repo_id, sizes)
        remote = look(destination)
        require_replaceable(remote, lambda name: bool(SHARD.fullmatch(name) or BESIDE.fullmatch(name)))
        rows = read_manifest(directory)["rows"]
        pushed = push(files, destination, remote, message=f"Publish a corpus of {rows:,} images")
    return Publication(pushed.repo_id, sizes, pushed.commit, pushed.url, pushed.pull_request)


def pull_corpus(repo_id: str, directory: str | Path, *, revision: str = MAIN, token: str | None = None) -> Dataset:
    """The corpus of a repository, downloaded to `directory` and checked against its manifest.

    What has arrived before an interruption is not downloaded again.

    Raises:
        ValueError: a repository that holds no corpus, or whose shards are not those of its manifest.
        PublishingError: the Hub or the network.
    """
    directory = Path(directory)
    try:
        snapshot_download(
            repo_id, repo_type="dataset", revision=revision, local_dir=directory, allow_patterns=PULLED, token=token
        )
    except HUB_ERRORS as error:
        raise PublishingError(
            f"{repo_id} could not be pulled: {reason_of(error)}. What has arrived stays in {directory}; run again."
        ) from error
    for name, record in read_manifest(directory)["shards"].items():
        if not SHARD.fullmatch(record["file"]):
            raise ValueError(
                f"{repo_id}: shard {name!r} lies at {record['file']!r}, and not in `data`. Do not use it."
            )
        _require_checksum(directory / record["file"], record["sha256"])
    return load_corpus(directory)


def _files_of(directory: Path) -> dict[str, Path]:
    """What a corpus consists of, if it is finished: a half-built one must not get out."""
    load_corpus(directory)
    if not (directory / CARD).is_file():
        raise ValueError(
            f"{directory} has no card, {CARD}: where images and captions come from, and under which "
            "licences. Build the corpus with one (`card=` of `build_corpus`), or write it."
        )
    shards = [record["file"] for record in read_manifest(directory)["shards"].values()]
    beside = [path.name for path in directory.iterdir() if path.is_file() and BESIDE.fullmatch(path.name)]
    return {name: directory / name for name in [*shards, *beside]}


def _with_data_files(text: str) -> str:
    """The card, with front matter that names the shards: by their names alone, one could be taken for a split."""
    card = DatasetCard(text)
    if card.data.get("configs"):
        return text
    card.data["configs"] = [{"config_name": "default", "data_files": "data/*.parquet"}]
    return f"{str(card).rstrip()}\n"


def _require_checksum(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing, though {MANIFEST} lists it. The repository is not a whole corpus.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(f"{path} has the checksum {found}, {MANIFEST} says {expected}: it is not what was built.")
