"""What the loopback Hub (`hub_server`) stores: repositories of commits of files, branches, tags and pull requests."""

import base64
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DATE = "2026-01-01T00:00:00.000Z"
LARGE_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".arrow")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()
UPSTREAM_HAS_CHANGED = "A commit has happened since. Please refresh and try again."


class HubError(Exception):
    """An answer other than 2xx: status, the Hub's code for it, and its message."""

    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class Blob(NamedTuple):
    """One file's content; a large one is known to git by a pointer alone."""

    content: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1\n"
        return f"{head}oid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        stored = self.pointer if self.is_large else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.oid


class Commit(NamedTuple):
    """All files at one time."""

    oid: str
    parent: str | None
    title: str
    files: Mapping[str, Blob]


@dataclass
class Repository:
    """One repository: `refs` maps `refs/heads/main`, `refs/tags/v1`, `refs/pr/1` to commit ids."""

    kind: str
    name: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    counter: Iterable[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self._add("refs/heads/main", None, "initial commit", {".gitattributes": Blob(GIT_ATTRIBUTES, False)})

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    def _add(self, ref: str, parent: str | None, title: str, files: Mapping[str, Blob]) -> Commit:
        text = f"{self.kind} {self.name} {ref} {parent} {title} {sorted((n, b.oid) for n, b in files.items())}"
        oid = hashlib.sha1(f"{text} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, dict(files))
        self.refs[ref] = oid
        return self.commits[oid]

    def ref_of(self, revision: str) -> str | None:
        """The full name of a branch, tag or pull request."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def at(self, revision: str) -> Commit:
        """The commit that a name or an id (its first seven digits do) stands for."""
        ref = self.ref_of(revision)
        if ref is not None:
            return self.commits[self.refs[ref]]
        found = [oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found[0]]

    def file(self, revision: str, path: str) -> tuple[Commit, Blob]:
        commit = self.at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        return commit, commit.files[path]

    def commit(
        self, revision: str, lines: list[dict[str, Any]], *, uploads: Mapping[str, bytes], create_pr: bool
    ) -> tuple[Commit, str]:
        """Apply a commit's lines whole, or raise and change nothing; the commit and the ref that it is on."""
        header, base = lines[0]["value"], self.at(revision)
        if header.get("parentCommit") not in (None, base.oid):
            raise HubError(412, UPSTREAM_HAS_CHANGED)
        ref = f"refs/pr/{next(iter(self.counter))}" if create_pr else self.ref_of(revision)
        if ref is None or ref.startswith("refs/tags/"):
            raise HubError(400, f"Cannot commit to {revision}: it is not a branch")
        files = dict(base.files)
        for line in lines[1:]:
            _apply(files, line["key"], line["value"], uploads)
        return self._add(ref, base.oid, header["summary"], files), ref

    def add_branch(self, name: str, starting_point: str) -> None:
        if f"refs/heads/{name}" in self.refs:
            raise HubError(409, "Reference already exists")
        self.refs[f"refs/heads/{name}"] = self.at(starting_point).oid

    def add_tag(self, name: str, revision: str) -> None:
        if f"refs/tags/{name}" in self.refs:
            raise HubError(409, f"Tag {name} already exists")
        self.refs[f"refs/tags/{name}"] = self.at(revision).oid

    def remove(self, ref: str) -> None:
        if self.refs.pop(ref, None) is None:
            raise HubError(404, f"No such reference: {ref}", "RevisionNotFound")

    def history(self, revision: str) -> list[Commit]:
        chain, commit = [], self.at(revision)
        while True:
            chain.append(commit)
            if commit.parent is None:
                return chain
            commit = self.commits[commit.parent]

    def tree(self, revision: str, folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
        """Files and folders below a folder, as the Hub lists them."""
        files = self.at(revision).files
        prefix = f"{folder}/" if folder else ""
        below = [path for path in files if path.startswith(prefix)]
        if folder and not below:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        entries: dict[str, dict[str, Any]] = {}
        for path in sorted(below):
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                name = prefix + "/".join(parts[:depth])
                if is_recursive or depth == 1:
                    oid = hashlib.sha1(name.encode()).hexdigest()
                    entries.setdefault(name, {"type": "directory", "oid": oid, "size": 0, "path": name})
            if is_recursive or len(parts) == 1:
                entries[path] = describe_file(path, files[path])
        return list(entries.values())

    def paths(self, revision: str, wanted: Iterable[str]) -> list[dict[str, Any]]:
        """Those of the wanted files and folders that are there."""
        everything = {entry["path"]: entry for entry in self.tree(revision, "", is_recursive=True)}
        return [everything[path] for path in wanted if path in everything]

    def describe(self, revision: str) -> dict[str, Any]:
        """What the Hub says of a repository at a revision."""
        commit = self.at(revision)
        facts = {"id": self.name, "author": self.owner, "sha": commit.oid, "private": self.private, "gated": False}
        facts |= {"disabled": False, "lastModified": DATE, "createdAt": DATE, "downloads": 0, "likes": 0, "tags": []}
        return {**facts, "siblings": [{"rfilename": path} for path in sorted(commit.files)]}

    def list_refs(self, *, with_pull_requests: bool) -> dict[str, list[dict[str, str]]]:
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/"}
        kinds |= {"pullRequests": "refs/pr/"} if with_pull_requests else {}
        return {
            kind: [
                {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
                for ref, oid in self.refs.items()
                if ref.startswith(prefix)
            ]
            for kind, prefix in kinds.items()
        }


def describe_file(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content)}
    if blob.is_large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return entry


def _apply(files: dict[str, Blob], key: str, value: dict[str, Any], uploads: Mapping[str, bytes]) -> None:
    path = value["path"]
    if key == "file":
        files[path] = Blob(base64.b64decode(value["content"]), False)
    elif key == "lfsFile":
        if value["oid"] not in uploads:
            raise HubError(400, f"Your push was rejected because the LFS pointer of {path} has no object")
        files[path] = Blob(uploads[value["oid"]], True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation {key}")
