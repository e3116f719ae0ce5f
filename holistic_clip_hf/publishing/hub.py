# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints and corpora to the Hub and back.

A checkpoint is staged, verified, pushed in one commit, pulled, and verified again, so that it works for everybody. A
corpus is its parquet shards, the manifest that makes them whole, and the card.
"""

import logging
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import DatasetCard, HfApi, hf_hub_download, snapshot_download

from ..checkpoint_files import MAX_JSON_BYTES
from ..configuration_holistic_clip import MODEL_TYPES
from ..corpus.build import MANIFEST, load_corpus, read_manifest, require_corpus_folder
from ..stopping import cleaning_up
from ..storage import checksum, parse_json, require_own_folder
from .checkpoint import MAX_SHARD_SIZE, VerificationError, facts_of, require_checkpoint, stage, verify
from .inventory import ALLOWED, require_own_code, require_png, require_safe_folder
from .model_card import CardFacts
from .push import (
    HUB_ERRORS,
    MAIN,
    Destination,
    PublishingError,
    Pushed,
    Remote,
    look,
    push,
    reason_of,
    require_replaceable,
)
from .stranger import measure

logger = logging.getLogger(__name__)

CONFIG = "config.json"


@dataclass(frozen=True)
class Publication:
    """Files that were published or, without a commit, would be, with their sizes in bytes."""

    repo_id: str
    files: Mapping[str, int]
    commit: str | None = None
    url: str = ""
    pull_request: str | None = None


def publish(
    checkpoint: str | Path,
    destination: str | Destination,
    *,
    facts: CardFacts | None = None,
    message: str = "",
    max_shard_size: str = MAX_SHARD_SIZE,
    dry_run: bool = False,
) -> Publication:
    """Publish the folder of a checkpoint: one commit, which loads for people without this package.

    Staged and pulled again, it is loaded in a fresh interpreter, elsewhere, without the package, by `AutoModel`,
    `AutoProcessor` and two pipelines, and gives the numbers that it gives here. `destination` is a name, or a
    `Destination` with private, revision, tag, pull request. `facts` is what the card says beside configuration and
    records; by default the checkpoint's `card_facts.json`, with the destination's name. `dry_run` stages and
    verifies, and asks nobody.

    Raises:
        ValueError: no checkpoint of ours, no token that may write, or a repository of something else.
        VerificationError: it does not load, or gives other numbers.
        PublishingError: the Hub or the network; the message says what is on the Hub now.

    Example: `publish("runs/emoji/holistic", Destination("someone/holistic-clip-emoji", private=True, tag="v1"))`.
    """
    checkpoint = Path(checkpoint)
    destination = Destination(destination) if isinstance(destination, str) else destination
    require_checkpoint(checkpoint)
    remote = None if dry_run else require_publishable(destination)
    repo_id = destination.repo_id if remote is None else remote.repo_id
    facts = facts_of(checkpoint, repo_id) if facts is None else replace(facts, repo_id=repo_id)
    with cleaning_up(), tempfile.TemporaryDirectory(prefix="publish-") as scratch:
        staged = Path(scratch) / "staged"
        files = stage(checkpoint, staged, facts, max_shard_size=max_shard_size)
        logger.info("Staged %d files, %d bytes; loading them as a stranger would", len(files), sum(files.values()))
        expected = measure(str(checkpoint), trust_remote_code=False)
        verify(staged, expected, scratch=Path(scratch) / "before")
        if remote is None:
            return Publication(repo_id, files)
        paths = {name: staged / name for name in files}
        pushed = push(paths, destination, remote, message=message or f"Publish {facts.title}")
        logger.info("Pushed commit %s; pulling it to load it again", pushed.commit)
        _verify_pulled(pushed, destination, expected, Path(scratch) / "after")
    return Publication(pushed.repo_id, files, pushed.commit, pushed.url, pushed.pull_request)


def require_publishable(destination: Destination) -> Remote:
    """Look at what is at the destination, and refuse if a checkpoint may not be pushed there. Nothing is made or
    changed.

    Raises:
        ValueError: no token that may write, or the repository of another model, or of something else.
        PublishingError: the Hub cannot be asked.
    """
    remote = look(destination)
    if CONFIG in remote.files:
        there = _model_type(remote, destination)
        if there not in MODEL_TYPES:
            raise ValueError(
                f"{remote.repo_id} is the repository of a model of type {there!r}, not "
                f"{' or '.join(map(repr, MODEL_TYPES))}. Choose another name. Nothing was sent."
            )
    require_replaceable(remote, lambda name: ALLOWED.fullmatch(name) is not None)
    return remote


def _model_type(remote: Remote, destination: Destination) -> str | None:
    token = destination.require_token()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = hf_hub_download(remote.repo_id, CONFIG, revision=remote.head, local_dir=folder, token=token)
            return parse_json(Path(path).read_text(encoding="utf-8")).get("model_type")
    except HUB_ERRORS as error:
        raise PublishingError(
            f"{CONFIG} of {remote.repo_id} could not be read: {reason_of(error)}. Nothing was sent."
        ) from error


def _verify_pulled(pushed: Pushed, destination: Destination, expected: Mapping[str, Any], scratch: Path) -> None:
    there = f"On the Hub is {pushed.repo_id}, commit {pushed.commit}"
    token = destination.require_token()
    try:
        cache = scratch / "home" / "hub"  # where the stranger's client will look
        pulled = snapshot_download(pushed.repo_id, revision=pushed.commit, cache_dir=cache, token=token)
    except HUB_ERRORS as error:
        raise PublishingError(f"{there}, whole, but it could not be pulled again ({reason_of(error)}).") from error
    settings = {"HF_ENDPOINT": HfApi().endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    try:
        require_safe_folder(pulled)
        require_own_code(pulled)
        verify(pushed.repo_id, expected, scratch=scratch, revision=pushed.commit, settings=settings)
    except (ValueError, VerificationError) as error:
        raise VerificationError(
            f"{there}, which is not what was pushed; take it back or push again. {error}"
        ) from error


CARD = "README.md"
SHARD = re.compile(r"data/[^/\\]+\.parquet")
# Beside the shards: the manifest, the card and its pictures and reports, licences.
BESIDE = re.compile(r"(corpus|diversity|skipped)\.jsonl?|[A-Za-z0-9_-]+\.png|README\.md|LICENSE|NOTICE")
# Of these, what a build writes or takes over, and the pictures that a card shows, in Markdown or as a tag.
BUILT = (
    MANIFEST,
    CARD,
    "skipped.jsonl",
    "diversity.json",
    "diversity.png",
    "near_duplicates.json",
    "LICENSE",
    "NOTICE",
)
SHOWN = re.compile(r"(?:\]\(|src=[\"'])([A-Za-z0-9_-]{1,100}\.png)(?=[)\"' ])")
CLIENT = ".cache/huggingface"  # where the Hub's client keeps account in a folder that it downloads to
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
    files = files_of_corpus(directory)
    with cleaning_up(), tempfile.TemporaryDirectory(prefix="publish-") as scratch:
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
    """Return the corpus of a repository, downloaded to `directory` and checked against its manifest.

    What has arrived before an interruption is not downloaded again.

    Raises:
        ValueError: a repository that holds no corpus, or whose shards are not those of its manifest; a folder that
            holds other things.
        PublishingError: the Hub or the network.
    """
    directory = Path(directory)
    _require_pullable(directory)
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


def _require_pullable(directory: Path) -> None:
    """Refuse a folder that holds anything but a corpus, or what the Hub's client notes that it downloaded there."""
    if (directory / MANIFEST).is_file():
        require_corpus_folder(directory)
        return
    noted = directory / CLIENT / "download"

    def is_ours(path: str) -> bool:
        is_noted = any((noted / f"{path}.{ending}").is_file() for ending in ("metadata", "lock"))
        return is_noted or path.startswith(f"{CLIENT}/")

    require_own_folder(directory, is_ours, holds="a corpus")


def files_of_corpus(directory: Path) -> dict[str, Path]:
    """List what a corpus consists of, if it is finished. A half-built one must not get out.

    That is what a build writes and, of pictures, those that the card shows. Other files that lie there stay.

    Raises:
        ValueError: a corpus that is not finished, has no card or was changed since it was built.
    """
    shards = [record["file"] for record in read_manifest(directory)["shards"].values()]
    for name in shards:
        if not SHARD.fullmatch(name):
            raise ValueError(f"{MANIFEST} of {directory} names the shard {name!r}; expected one in `data`. Build it.")
    if not (directory / CARD).is_file():
        raise ValueError(
            f"{directory} has no card, {CARD}: where images and captions come from, and under which "
            "licences. Build the corpus with one (`card=` of `build_corpus`), or write it."
        )
    names = [*shards, *(name for name in BUILT if (directory / name).is_file())]
    _require_no_links(directory, [CARD, *names])  # before anything is read
    text = _read_text(directory / CARD)
    names += sorted({name for name in SHOWN.findall(text) if (directory / name).is_file()} - set(names))
    _require_no_links(directory, names)
    for name in names:
        _require_kind(directory / name)
    load_corpus(directory)
    return {name: directory / name for name in names}


def _require_no_links(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        path = directory / name
        for each in (path, *path.parents[: len(Path(name).parts) - 1]):
            if each.is_symlink():
                raise ValueError(
                    f"{each} is a symbolic link; expected a file or folder of its own, since all that is published "
                    "has to lie in the corpus. Put it there, or leave it out."
                )


def _require_kind(path: Path) -> None:
    """Refuse a file whose content is not what its name says."""
    if path.suffix == ".png":
        require_png(path)
    elif path.suffix != ".parquet":
        text = _read_text(path)
        for line in text.splitlines() if path.suffix == ".jsonl" else [text] if path.suffix == ".json" else []:
            try:
                parse_json(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} is not JSON ({error}). Build the corpus again, or leave it out.") from error


def _read_text(path: Path) -> str:
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; expected at most {MAX_JSON_BYTES:,}. Shorten it.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8; expected what its name says. Leave it out.") from error


def _with_data_files(text: str) -> str:
    """Name the shards in the card's front matter, since by its name alone one could be taken for a split."""
    card = DatasetCard(text)
    if card.data.get("configs"):
        return text
    card.data["configs"] = [{"config_name": "default", "data_files": "data/*.parquet"}]
    return f"{str(card).rstrip()}\n"


def _require_checksum(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing, though {MANIFEST} lists it. The repository is not a whole corpus.")
    if (found := checksum(path)) != expected:
        raise ValueError(f"{path} has the checksum {found}, {MANIFEST} says {expected}: it is not what was built.")
