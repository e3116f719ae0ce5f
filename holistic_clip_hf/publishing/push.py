# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""A folder to the Hub in one commit: all of it arrives, or nothing; an error says which, and why."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from .remote import (
    ATTRIBUTES,
    HUB_ERRORS,
    MAIN,
    Destination,
    PublishingError,
    Remote,
    is_same,
    list_files,
    list_refs,
    reason_of,
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pushed:
    """What a push has put where."""

    repo_id: str
    commit: str
    url: str
    pull_request: str | None


def push(files: Mapping[str, Path], destination: Destination, remote: Remote, *, message: str) -> Pushed:
    """One commit of `files`, local paths by name in the repository, on top of what `remote.look` saw.

    Every file of the repository that is none of `files` is deleted in the same commit: see `require_replaceable`.
    Where the Hub's answer is lost on the way, what is there decides whether the commit has arrived.

    Raises:
        PublishingError: it has not; the message says why, and what is on the Hub now.
    """
    attempt = _Attempt(HfApi(token=destination.require_token()), destination, remote)
    parent = attempt.prepare()
    added = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
    stale = sorted(set(remote.files) - set(files) - {ATTRIBUTES})
    commit, pull_request = attempt.commit(added, stale, parent, message)
    attempt.tag(commit)
    url = f"{attempt.api.endpoint}/{'' if remote.kind == 'model' else 'datasets/'}{remote.repo_id}"
    return Pushed(remote.repo_id, commit, url, pull_request)


class _Attempt:
    """A push under way, and what can be said of it when it fails."""

    def __init__(self, api: HfApi, destination: Destination, remote: Remote) -> None:
        self.api = api
        self.destination = destination
        self.remote = remote
        self.repository: dict[str, Any] = {"repo_id": remote.repo_id, "repo_type": remote.kind}

    def prepare(self) -> str | None:
        """Make the repository and the branch, where they are missing; the commit to build on."""
        api, branch, head = self.api, self.destination.revision, self.remote.head
        if head is None:
            is_private = self.destination.private
            self._run("Making the repository", lambda: api.create_repo(**self.repository, private=is_private))
            head = self._run("Asking for its first commit", lambda: api.repo_info(**self.repository).sha)
        if f"refs/heads/{branch}" not in self.remote.refs and branch != MAIN:
            self._run("Making the branch", lambda: api.create_branch(**self.repository, branch=branch, exist_ok=True))
        return head

    def commit(
        self, added: list[CommitOperationAdd], stale: list[str], parent: str | None, message: str
    ) -> tuple[str, str | None]:
        """The id of the commit and the address of its pull request, if it has one."""
        create_pr = self.destination.create_pr
        where = {
            **self.repository,
            "create_pr": create_pr,
            "revision": None if create_pr else self.destination.revision,
        }
        self._run("Uploading", lambda: self.api.preupload_lfs_files(additions=added, free_memory=False, **where))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*map(CommitOperationDelete, stale), *added]
        try:
            made = self.api.create_commit(operations=operations, commit_message=message, parent_commit=parent, **where)
            return made.oid, made.pr_url
        except HUB_ERRORS as error:
            arrived = self._arrived(added)
            if arrived is None:
                raise self._failure("Committing", error) from error
            logger.warning("The Hub's answer was lost (%s), but the commit has arrived", reason_of(error))
            return arrived, None

    def tag(self, commit: str) -> None:
        tag = self.destination.tag
        if tag is not None:
            self._run("Tagging", lambda: self.api.create_tag(**self.repository, tag=tag, revision=commit), commit)

    def _run(self, what: str, call: Callable[[], Result], commit: str | None = None) -> Result:
        try:
            return call()
        except HUB_ERRORS as error:
            raise self._failure(what, error, commit) from error

    def _failure(self, what: str, error: Exception, commit: str | None = None) -> PublishingError:
        there = f"On the Hub is all the rest, as commit {commit}." if commit else self._now_there()
        return PublishingError(f"{what} failed: {reason_of(error)}. {there}")

    def _now_there(self) -> str:
        repo_id, head = self.remote.repo_id, self.remote.head
        where = f"{repo_id}, {self.destination.revision}"
        try:
            refs = list_refs(self.api, self.remote.repo_id, self.remote.kind)
        except RepositoryNotFoundError:
            return f"There is no {repo_id} on the Hub: nothing has arrived."
        except HUB_ERRORS:
            before = f"commit {head}" if head else "nothing"
            return f"The Hub cannot be asked; before, {where} was {before}, and only a whole commit can change that."
        if head is None:
            return f"On the Hub is the new repository {repo_id}, and nothing in it: run again to fill it."
        now = refs.get(f"refs/heads/{self.destination.revision}", head)
        if now == head:
            return f"On the Hub, {where} is what it was: commit {head}."
        return f"On the Hub, {where} was moved by somebody else, from commit {head} to {now}."

    def _arrived(self, added: list[CommitOperationAdd]) -> str | None:
        """The commit of a reference that is new or moved since `look` and holds just these files."""
        here = {addition.path_in_repo: Path(str(addition.path_or_fileobj)) for addition in added}
        try:
            refs = list_refs(self.api, self.remote.repo_id, self.remote.kind)
            for ref, commit in refs.items():
                if self.remote.refs.get(ref) == commit or commit == self.remote.head:
                    continue
                there = list_files(self.api, self.remote.repo_id, self.remote.kind, commit)
                names = set(there) - {ATTRIBUTES}
                if names == set(here) and all(is_same(here[name], there[name]) for name in names):
                    return commit
        except HUB_ERRORS as error:
            logger.warning("What is on the Hub could not be asked: %s", reason_of(error))
        return None
