# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Where a push goes, and what is there: repositories of the Hub as a push finds them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

# The base of all that its HTTP library raises, whichever library a release of the client uses.
from huggingface_hub.errors import HTTPError  # isort: skip

MAIN = "main"
ATTRIBUTES = ".gitattributes"
# The client wraps what fails in its threads into a RuntimeError.
HUB_ERRORS = (HTTPError, OSError, RuntimeError)


class PublishingError(RuntimeError):
    """What the Hub or the network did not let through; the message says what is on the Hub now."""


@dataclass(frozen=True)
class Destination:
    """Where a push goes.

    Args:
        repo_id: `owner/name`; without an owner, the token's.
        kind: `model` or `dataset`.
        private: of a new repository; None leaves it to the owner's settings.
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
        if self.create_pr and (self.revision != MAIN or self.tag is not None):
            raise ValueError(
                "A pull request goes to `main` and gets its tag when it is merged: got `create_pr` with "
                f"revision={self.revision!r}, tag={self.tag!r}. Leave out one or the other."
            )

    def require_token(self) -> str:
        """The token; `ValueError` where there is none."""
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
    """What is at the destination; writes nothing.

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
    """Whether a file on the Hub has the content of a file here, by its checksum."""
    size = path.stat().st_size
    if size != file.size:
        return False
    with path.open("rb") as content:
        if file.lfs is not None:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.lfs.sha256
        digest = hashlib.sha1(b"blob %d\0" % size + content.read(), usedforsecurity=False)
    return digest.hexdigest() == file.blob_id


def list_refs(api: HfApi, repo_id: str, kind: str) -> dict[str, str]:
    """Commit by full name of each branch, tag and pull request."""
    refs = api.list_repo_refs(repo_id, repo_type=kind, include_pull_requests=True)
    return {ref.ref: ref.target_commit for ref in [*refs.branches, *refs.tags, *(refs.pull_requests or [])]}


def list_files(api: HfApi, repo_id: str, kind: str, revision: str | None) -> dict[str, RepoFile]:
    """The files of a revision, by path."""
    try:
        entries = api.list_repo_tree(repo_id, repo_type=kind, revision=revision, recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    except RevisionNotFoundError:  # a repository without a commit
        return {}


def reason_of(error: BaseException) -> str:
    """In words, with what the Hub itself says."""
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
