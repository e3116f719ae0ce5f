# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Push of files to the Hub in one commit: all of them arrive, or nothing. An error says which, and why."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..storage import checksum

MAIN = "main"
ATTRIBUTES = ".gitattributes"
# The client wraps what fails in its threads into a RuntimeError.
HUB_ERRORS = (HTTPError, OSError, RuntimeError)


class PublishingError(RuntimeError):
    """Refusal by the Hub or the network. The message says what is on the Hub now."""


@dataclass(frozen=True)
class Destination:
    """Destination of a push.

    Args:
        repo_id: `owner/name`; without an owner, the token's.
        kind: `model` or `dataset`.
        private: Privacy of a new repository; None leaves it to the owner's settings.
        revision: the branch; a new one starts from `main`.
        tag: set on the new commit.
        create_pr: open a pull request to `main` instead of committing to it.
        token: default: the one that `hf auth login` or `HF_TOKEN` left.
    """

    repo_id: str
    kind: str = "model"
    private: bool | None = None
    revision: str = MAIN
    tag: str | None = None
    create_pr: bool = False
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ValueError(
                f"`repo_id` is {self.repo_id!r}; expected owner/name of letters, digits, '-', '_' and '.'. Correct it."
            ) from error
        if self.create_pr and (self.revision != MAIN or self.tag is not None):
            raise ValueError(
                "A pull request goes to `main` and gets its tag when it is merged: got `create_pr` with "
                f"revision={self.revision!r}, tag={self.tag!r}. Leave out one or the other."
            )

    def require_token(self) -> str:
        """Return the token; `ValueError` without one."""
        token = self.token or get_token()
        if not token:
            raise ValueError(
                f"No token to push {self.repo_id} with. Run `hf auth login`, or set HF_TOKEN, with a token that may "
                "write. Nothing was sent."
            )
        return token


class Remote(NamedTuple):
    """A repository before a push: its name in full, the commit to build on, its files, and all references."""

    repo_id: str
    kind: str
    head: str | None
    files: Mapping[str, RepoFile]
    refs: Mapping[str, str]


def look(destination: Destination) -> Remote:
    """Look at what is at the destination; writes nothing.

    Raises:
        ValueError: no token, one that the Hub does not know or that may not write, a tag that exists, or a public
            repository where a private one is asked for.
        PublishingError: the Hub cannot be asked.
    """
    api, kind = HfApi(token=destination.require_token()), destination.kind
    try:
        user = _who(api)
        repo_id = destination.repo_id if "/" in destination.repo_id else f"{user}/{destination.repo_id}"
        try:
            info = api.repo_info(repo_id, repo_type=kind)
        except RepositoryNotFoundError:
            return Remote(repo_id, kind, None, {}, {})
        refs = list_refs(api, repo_id, kind)
        head = refs.get(f"refs/heads/{destination.revision}", info.sha)
        files = list_files(api, repo_id, kind, head)
    except HUB_ERRORS as error:
        raise PublishingError(
            f"The Hub could not be asked about {destination.repo_id}: {reason_of(error)}. Nothing was sent."
        ) from error
    if f"refs/tags/{destination.tag}" in refs:
        raise ValueError(f"{repo_id} has a tag {destination.tag!r} already. Choose another, or delete it there.")
    if destination.private and not info.private:
        raise ValueError(
            f"{repo_id} is public, and `private` asks for a private repository. Change it in its settings, or choose "
            "another name. Nothing was sent."
        )
    return Remote(repo_id, kind, head, files, refs)


def _who(api: HfApi) -> str:
    try:
        account = api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise ValueError(
            "The Hub does not know this token: it is mistyped, expired or revoked. Make one that may write under "
            "Settings, Access Tokens, then run `hf auth login`. Nothing was sent."
        ) from error
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError("This token may only read. Make one that may write. Nothing was sent.")
    return account["name"]


def require_replaceable(remote: Remote, is_ours: Callable[[str], bool]) -> None:
    """Raise `ValueError` where the repository holds files of another kind than what is pushed would replace."""
    foreign = sorted(name for name in remote.files if name != ATTRIBUTES and not is_ours(name))
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise ValueError(
            f"{remote.repo_id} holds files that do not belong beside what is pushed: {shown}. Delete them there, or "
            "choose another name. Nothing was sent."
        )


def is_same(path: Path, file: RepoFile) -> bool:
    """Tell whether a file on the Hub has the content of a file here, by its checksum."""
    size = path.stat().st_size
    if size != file.size:
        return False
    if file.lfs is not None:
        return checksum(path) == file.lfs.sha256
    digest = hashlib.sha1(b"blob %d\0" % size + path.read_bytes(), usedforsecurity=False)
    return digest.hexdigest() == file.blob_id


def list_refs(api: HfApi, repo_id: str, kind: str) -> dict[str, str]:
    """Commit by full name of each branch, tag and pull request."""
    refs = api.list_repo_refs(repo_id, repo_type=kind, include_pull_requests=True)
    return {ref.ref: ref.target_commit for ref in [*refs.branches, *refs.tags, *(refs.pull_requests or [])]}


def list_files(api: HfApi, repo_id: str, kind: str, revision: str | None) -> dict[str, RepoFile]:
    """Return the files of a revision, by path."""
    try:
        entries = api.list_repo_tree(repo_id, repo_type=kind, revision=revision, recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    except RevisionNotFoundError:  # a repository without a commit
        return {}


def reason_of(error: BaseException) -> str:
    """Say why, with what the Hub itself says."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return reason_of(error.__cause__)
    if not isinstance(error, HfHubHTTPError):
        return f"{str(error).rstrip('.') or 'the connection broke'} ({type(error).__name__})"
    status, said = error.response.status_code, error.server_message or str(error)
    if status in (413, 507):
        return f"the Hub has no space left for it ({status}: {said})"
    if status in (409, 412):
        return f"somebody else has pushed since ({status}: {said})"
    if status in (401, 403):
        return f"the Hub does not allow it with this token ({status}: {said})"
    return f"the Hub answered {status}: {said.rstrip('.')}"


logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pushed:
    """Result of a push."""

    repo_id: str
    commit: str
    url: str
    pull_request: str | None


def push(files: Mapping[str, Path], destination: Destination, remote: Remote, *, message: str) -> Pushed:
    """Push one commit of `files`, local paths by name in the repository, on top of what `remote.look` saw.

    Every other file of the repository is deleted in the same commit; see `require_replaceable`. If the Hub's answer is
    lost on the way, the repository itself says whether the commit has arrived.

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
        """Return the id of the commit and the address of its pull request, if it has one."""
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
        """Return the commit of a reference that is new or moved since `look` and holds just these files."""
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
