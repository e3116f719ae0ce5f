# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint to the Hub so that it works for everybody: staged, verified, pushed in one commit, pulled, verified."""

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from ..configuration_holistic_clip import HolisticCLIPConfig
from .card_facts import CardFacts
from .inventory import ALLOWED, require_own_code, require_safe_folder
from .push import Pushed, push
from .remote import HUB_ERRORS, Destination, PublishingError, Remote, look, reason_of, require_replaceable
from .staging import MAX_SHARD_SIZE, facts_of, require_checkpoint, stage
from .stranger import measure
from .verification import VerificationError, verify

logger = logging.getLogger(__name__)

CONFIG = "config.json"


@dataclass(frozen=True)
class Publication:
    """What was published, or, without a commit, would be: `files` with their sizes in bytes."""

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
    with tempfile.TemporaryDirectory(prefix="publish-") as scratch:
        staged = Path(scratch) / "staged"
        files = stage(checkpoint, staged, facts, max_shard_size=max_shard_size)
        logger.info("Staged %d files, %d bytes; loading them as a stranger would", len(files), sum(files.values()))
        expected = measure(str(checkpoint))
        verify(staged, expected, scratch=Path(scratch) / "before")
        if remote is None:
            return Publication(repo_id, files)
        paths = {name: staged / name for name in files}
        pushed = push(paths, destination, remote, message=message or f"Publish {facts.title}")
        logger.info("Pushed commit %s; pulling it to load it again", pushed.commit)
        _verify_pulled(pushed, destination, expected, Path(scratch) / "after")
    return Publication(pushed.repo_id, files, pushed.commit, pushed.url, pushed.pull_request)


def require_publishable(destination: Destination) -> Remote:
    """What is at the destination, if a checkpoint may be pushed there; nothing is made or changed.

    Raises:
        ValueError: no token that may write, or the repository of another model, or of something that is none.
        PublishingError: the Hub cannot be asked.
    """
    remote = look(destination)
    if CONFIG in remote.files:
        there = _model_type(remote, destination)
        if there != HolisticCLIPConfig.model_type:
            raise ValueError(
                f"{remote.repo_id} is the repository of a model of type {there!r}, not "
                f"{HolisticCLIPConfig.model_type!r}. Choose another name. Nothing was sent."
            )
    require_replaceable(remote, lambda name: ALLOWED.fullmatch(name) is not None)
    return remote


def _model_type(remote: Remote, destination: Destination) -> str | None:
    token = destination.require_token()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = hf_hub_download(remote.repo_id, CONFIG, revision=remote.head, local_dir=folder, token=token)
            return json.loads(Path(path).read_text(encoding="utf-8")).get("model_type")
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
        raise PublishingError(f"{there}, whole; pulling it again failed: {reason_of(error)}.") from error
    settings = {"HF_ENDPOINT": HfApi().endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    try:
        require_safe_folder(pulled)
        require_own_code(pulled)
        verify(pushed.repo_id, expected, scratch=scratch, revision=pushed.commit, settings=settings)
    except (ValueError, VerificationError) as error:
        raise VerificationError(
            f"{there}, which is not what was pushed; take it back or push again. {error}"
        ) from error
