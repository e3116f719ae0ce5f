"""What the loopback Hub (`hub_server`) answers to each kind of request, and who may ask for it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from hub_storage import DATE, LARGE_SUFFIXES, Blob, HubError, Repository

USER, OTHER_USER = "ada", "bob"
TOKEN, READ_TOKEN, OTHER_TOKEN = "hf_ada_writes", "hf_ada_reads", "hf_bob_writes"


class Account(NamedTuple):
    user: str
    can_write: bool


class Answer(NamedTuple):
    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


class Call(NamedTuple):
    """One request: the matched parts of its path, its query, headers and body, and who asks."""

    parts: dict[str, str]
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    account: Account | None

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else {}


ACCOUNTS = {TOKEN: Account(USER, True), READ_TOKEN: Account(USER, False), OTHER_TOKEN: Account(OTHER_USER, True)}


@dataclass
class HubState:
    """All that the Hub holds: repositories by kind and name, contents of large files by checksum."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)

    def add_folder(self, kind: str, name: str, folder: Path, *, private: bool = False) -> Repository:
        """Commit all files of a folder to a repository, as a push would, without one."""
        found = self.repositories.setdefault((kind, name), Repository(kind, name, private))
        files = {
            path.relative_to(folder).as_posix(): Blob(path.read_bytes(), path.name.endswith(LARGE_SUFFIXES))
            for path in folder.rglob("*")
            if path.is_file()
        }
        self.uploads |= {blob.sha256: blob.content for blob in files.values()}
        found._add("refs/heads/main", found.refs["refs/heads/main"], "files of a folder", files)
        return found

    def repository(self, call: Call, *, write: bool = False) -> Repository:
        """The repository that a call is about, if the caller may read it, and write to it."""
        account, key = call.account, (call.parts.get("kind") or "model", call.parts["name"])
        found = self.repositories.get(key)
        if found is None or (found.private and (account is None or account.user != found.owner)):
            if account is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and account is None:
            raise HubError(401, "Invalid username or password.")
        if write and account is not None and not (account.can_write and account.user == found.owner):
            raise HubError(403, "You don't have the required permissions to perform this action")
        return found

    def page(self, repository: Repository) -> str:
        return f"{self.url}/{'' if repository.kind == 'model' else 'datasets/'}{repository.name}"


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, (("Content-Type", "application/json"),))


def whoami(hub: HubState, call: Call) -> Answer:
    if call.account is None:
        raise HubError(401, "Invalid username or password.")
    role = "write" if call.account.can_write else "read"
    token = {"accessToken": {"displayName": "test", "role": role}}
    return _json({"type": "user", "name": call.account.user, "fullname": call.account.user, "orgs": [], "auth": token})


def create(hub: HubState, call: Call) -> Answer:
    asked, account = call.json, call.account
    if account is None:
        raise HubError(401, "Invalid username or password.")
    kind, owner = asked.get("type") or "model", asked.get("organization") or account.user
    if owner != account.user or not account.can_write:
        raise HubError(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}")
    name = f"{owner}/{asked['name']}"
    is_private = asked.get("private") or asked.get("visibility") == "private"
    fresh = Repository(kind, name, bool(is_private))
    if (kind, name) in hub.repositories:
        raise HubError(409, f"You already created this {kind} repo", url=hub.page(fresh))
    hub.repositories[kind, name] = fresh
    return _json({"url": hub.page(fresh), "name": name})


def delete(hub: HubState, call: Call) -> Answer:
    asked = call.json
    name = f"{asked.get('organization') or USER}/{asked['name']}"
    parts = {"kind": asked.get("type") or "model", "name": name}
    found = hub.repository(call._replace(parts=parts), write=True)
    del hub.repositories[found.kind, found.name]
    return _json({})


def info(hub: HubState, call: Call) -> Answer:
    return _json(hub.repository(call).describe(call.parts.get("revision") or "main"))


def preupload(hub: HubState, call: Call) -> Answer:
    repository = hub.repository(call, write="create_pr" not in call.query)
    there, files = repository.at(call.parts["revision"]).files, []
    for file in call.json["files"]:
        path = file["path"]
        mode = "lfs" if path.endswith(LARGE_SUFFIXES) or file["size"] > 10 * 2**20 else "regular"
        oid = there[path].etag if path in there else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return _json({"files": files})


def batch(hub: HubState, call: Call) -> Answer:
    if call.account is None:
        raise HubError(401, "Invalid username or password.")
    hub.repository(call)
    objects = []
    for wanted in call.json["objects"]:
        actions = {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}
        actions |= {"verify": {"href": f"{hub.url}/lfs/{wanted['oid']}/verify"}}
        objects.append({**wanted, **({} if wanted["oid"] in hub.uploads else {"actions": actions})})
    return _json({"transfer": "basic", "objects": objects})


def upload(hub: HubState, call: Call) -> Answer:
    if Blob(call.body, True).sha256 != call.parts["sha256"]:
        raise HubError(400, "The content does not have the announced checksum")
    hub.uploads[call.parts["sha256"]] = call.body
    return Answer()


def verify(hub: HubState, call: Call) -> Answer:
    if len(hub.uploads.get(call.parts["sha256"], b"")) != call.json["size"]:
        raise HubError(404, "The object is not there")
    return _json({})


def commit(hub: HubState, call: Call) -> Answer:
    create_pr = "create_pr" in call.query
    repository = hub.repository(call, write=not create_pr)
    lines = [json.loads(line) for line in call.body.splitlines()]
    made, ref = repository.commit(call.parts["revision"], lines, uploads=hub.uploads, create_pr=create_pr)
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{hub.page(repository)}/commit/{made.oid}"}
    pull_request = f"{hub.page(repository)}/discussions/{ref.rpartition('/')[2]}"
    return _json(answer | ({"pullRequestUrl": pull_request} if create_pr else {}))


def branch(hub: HubState, call: Call) -> Answer:
    hub.repository(call, write=True).add_branch(call.parts["revision"], call.json.get("startingPoint") or "main")
    return _json({}, 201)


def tag(hub: HubState, call: Call) -> Answer:
    hub.repository(call, write=True).add_tag(call.json["tag"], call.parts["revision"])
    return _json({}, 201)


def delete_ref(hub: HubState, call: Call) -> Answer:
    folder = "heads" if call.parts["what"] == "branch" else "tags"
    hub.repository(call, write=True).remove(f"refs/{folder}/{call.parts['revision']}")
    return _json({})


def refs(hub: HubState, call: Call) -> Answer:
    return _json(hub.repository(call).list_refs(with_pull_requests="include_prs" in call.query))


def tree(hub: HubState, call: Call) -> Answer:
    is_recursive = call.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    folder = call.parts.get("path") or ""
    return _json(hub.repository(call).tree(call.parts["revision"], folder, is_recursive=is_recursive))


def paths(hub: HubState, call: Call) -> Answer:
    is_form = "urlencoded" in call.headers.get("content-type", "")
    wanted = parse_qs(call.body.decode()).get("paths", []) if is_form else call.json["paths"]
    return _json(hub.repository(call).paths(call.parts["revision"], wanted))


def commits(hub: HubState, call: Call) -> Answer:
    history = hub.repository(call).history(call.parts["revision"])
    return _json([{"id": c.oid, "title": c.title, "message": "", "date": DATE, "authors": []} for c in history])


def download(hub: HubState, call: Call) -> Answer:
    """Small files come from here; large ones by a redirection to where contents lie."""
    made, blob = hub.repository(call).file(call.parts["revision"], call.parts["path"])
    headers = [("X-Repo-Commit", made.oid), ("Accept-Ranges", "bytes"), ("ETag", f'"{blob.etag}"')]
    if not blob.is_large:
        return _part_of(blob.content, call, headers)
    headers += [("X-Linked-Size", str(len(blob.content))), ("X-Linked-Etag", f'"{blob.sha256}"')]
    elsewhere = hub.url.replace(
        "127.0.0.1", "localhost"
    )  # another host, as the Hub's contents are: no token goes there
    return Answer(b"", 302, (*headers, ("Location", f"{elsewhere}/content/{blob.sha256}")))


def content(hub: HubState, call: Call) -> Answer:
    sha256 = call.parts["sha256"]
    if sha256 not in hub.uploads:
        raise HubError(404, "No such object")
    return _part_of(hub.uploads[sha256], call, [("ETag", f'"{sha256}"'), ("Accept-Ranges", "bytes")])


def _part_of(body: bytes, call: Call, headers: list[tuple[str, str]]) -> Answer:
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("range", ""))
    if asked is None:
        return Answer(body, 200, tuple(headers))
    start, end = int(asked[1]), min(int(asked[2] or len(body) - 1), len(body) - 1)
    if start > end:
        raise HubError(416, "Range not satisfiable")
    return Answer(body[start : end + 1], 206, (*headers, ("Content-Range", f"bytes {start}-{end}/{len(body)}")))


class Route(NamedTuple):
    """A kind of request; `stage` is the name under which it is logged and broken."""

    stage: str
    methods: str
    path: re.Pattern[str]
    answer: Callable[[HubState, Call], Answer]


def _route(stage: str, methods: str, path: str, answer: Callable[[HubState, Call], Answer]) -> Route:
    parts = {"ID": "(?P<name>[^/]+/[^/]+)", "API": "/api/(?P<kind>model|dataset)s/ID", "REV": "(?P<revision>[^/]+)"}
    for short in ("API", "ID", "REV"):
        path = path.replace(short, parts[short])
    return Route(stage, methods, re.compile(path), answer)


ROUTES = [
    _route("whoami", "GET", "/api/whoami-v2", whoami),
    _route("create", "POST", "/api/repos/create", create),
    _route("delete", "DELETE", "/api/repos/delete", delete),
    _route("validate", "POST", "/api/validate-yaml", lambda hub, call: _json({"errors": [], "warnings": []})),
    _route("info", "GET", "API(/revision/REV)?", info),
    _route("preupload", "POST", "API/preupload/REV", preupload),
    _route("batch", "POST", r"/(?P<kind>dataset)?(s/)?ID\.git/info/lfs/objects/batch", batch),
    _route("upload", "PUT", "/lfs/(?P<sha256>[0-9a-f]{64})", upload),
    _route("verify", "POST", "/lfs/(?P<sha256>[0-9a-f]{64})/verify", verify),
    _route("commit", "POST", "API/commit/REV", commit),
    _route("branch", "POST", "API/branch/REV", branch),
    _route("tag", "POST", "API/tag/REV", tag),
    _route("delete-ref", "DELETE", "API/(?P<what>branch|tag)/REV", delete_ref),
    _route("refs", "GET", "API/refs", refs),
    _route("tree", "GET", "API/tree/REV(/(?P<path>.+))?", tree),
    _route("paths", "POST", "API/paths-info/REV", paths),
    _route("commits", "GET", "API/commits/REV", commits),
    _route("download", "GET HEAD", "/(?P<kind>dataset)?(s/)?ID/resolve/REV/(?P<path>.+)", download),
    _route("content", "GET HEAD", "/content/(?P<sha256>[0-9a-f]{64})", content),
]
