"""Pushing a folder to a Hub on loopback: one commit or none, and an error that says what is there now.

The client runs in this process here; in one of its own, with nothing set but the environment, in `test_publish.py`.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from holistic_clip_hf.publishing.push import Destination, PublishingError, Pushed, look, push, require_replaceable
from hub_answers import OTHER_TOKEN, READ_TOKEN, TOKEN
from hub_server import LoopbackHub, connect
from hub_storage import Blob, Repository

CLIP = Destination("ada/clip", token=TOKEN)
FILES = {"config.json": b"{}", "one.safetensors": bytes(3000), "two.safetensors": bytes(range(256)) * 20}


@pytest.fixture(autouse=True)
def online(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(hub, monkeypatch, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "folder", FILES)


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def push_all(folder: Path, destination: Destination = CLIP) -> Pushed:
    remote = look(destination)
    files = {name: folder / name for name in os.listdir(folder)}
    return push(files, destination, remote, message="Publish clip")


def existing(hub: LoopbackHub, files: dict[str, bytes] | None = None, **options: bool) -> Repository:
    repository = Repository("model", "ada/clip", **options)
    blobs = {name: Blob(content, name.endswith(".safetensors")) for name, content in (files or {}).items()}
    repository._add("refs/heads/main", repository.refs["refs/heads/main"], "before", blobs)
    hub.repositories["model", "ada/clip"] = repository
    return repository


def contents(repository: Repository, revision: str = "main") -> dict[str, bytes]:
    return {n: blob.content for n, blob in repository.at(revision).files.items() if n != ".gitattributes"}


def test_a_new_repository_gets_one_commit(hub: LoopbackHub, folder: Path) -> None:
    pushed = push_all(folder, replace(CLIP, private=True, tag="v1"))
    repository = hub.repositories["model", "ada/clip"]
    assert contents(repository) == contents(repository, "v1") == FILES
    assert repository.private
    assert [commit.title for commit in repository.history("main")] == ["Publish clip", "initial commit"]
    assert pushed == Pushed("ada/clip", repository.at("main").oid, f"{hub.url}/ada/clip", None)


def test_a_name_alone_is_in_the_tokens_namespace(hub: LoopbackHub, folder: Path) -> None:
    assert push_all(folder, Destination("clip", token=TOKEN)).repo_id == "ada/clip"


def test_what_is_replaced_goes_in_the_same_commit(hub: LoopbackHub, folder: Path) -> None:
    repository = existing(hub, {"old.safetensors": b"old", "config.json": b"{}"})
    before = repository.at("main").oid
    push_all(folder)
    assert contents(repository) == FILES and repository.at("main").parent == before
    assert contents(repository, before) == {"old.safetensors": b"old", "config.json": b"{}"}


def test_the_same_again_changes_nothing(hub: LoopbackHub, folder: Path) -> None:
    first = push_all(folder)
    assert push_all(folder).commit == first.commit
    assert hub.stages().count("commit") == 1 and hub.stages().count("upload") == 2


def test_another_branch(hub: LoopbackHub, folder: Path) -> None:
    repository = existing(hub, {"config.json": b"{}"})
    push_all(folder, replace(CLIP, revision="next"))
    assert contents(repository, "next") == FILES and contents(repository) == {"config.json": b"{}"}
    push_all(folder, replace(CLIP, revision="next"))  # it is there now


def test_a_pull_request(hub: LoopbackHub, folder: Path) -> None:
    repository = existing(hub, {"config.json": b"{}"})
    pushed = push_all(folder, replace(CLIP, create_pr=True))
    assert contents(repository, "refs/pr/1") == FILES and contents(repository) == {"config.json": b"{}"}
    assert pushed.commit == repository.at("refs/pr/1").oid
    assert pushed.pull_request == f"{hub.url}/ada/clip/discussions/1"


def test_a_data_set(hub: LoopbackHub, folder: Path) -> None:
    pushed = push_all(folder, replace(CLIP, kind="dataset"))
    assert contents(hub.repositories["dataset", "ada/clip"]) == FILES and pushed.url.endswith("/datasets/ada/clip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": None}, "No token to push ada/clip with"),
        ({"token": "hf_mistyped"}, "does not know this token"),
        ({"token": READ_TOKEN}, "may only read"),
        ({"tag": "v0"}, "has a tag 'v0' already"),
        ({"private": True}, "is public, and `private` asks"),
    ],
)
def test_refused_before_anything_is_sent(
    hub: LoopbackHub, options: dict[str, str | bool | None], message: str
) -> None:
    existing(hub).add_tag("v0", "main")
    with pytest.raises(ValueError, match=message):
        look(replace(CLIP, **options))
    assert {method for _, method, _ in hub.requests} <= {"GET"}


@pytest.mark.parametrize("options", [{"tag": "v1"}, {"revision": "next"}])
def test_a_pull_request_has_neither_branch_nor_tag(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="A pull request goes to `main`"):
        replace(CLIP, create_pr=True, **options)


def test_the_token_is_not_shown() -> None:
    assert TOKEN not in repr(CLIP)


def test_files_of_another_kind_are_not_replaced(hub: LoopbackHub) -> None:
    existing(hub, {"config.json": b"", "thesis.pdf": b"", "a.bin": b""})
    with pytest.raises(ValueError, match=r"do not belong beside what is pushed: a.bin, thesis.pdf\. Delete them"):
        require_replaceable(look(CLIP), lambda name: name.endswith(".json"))


# Stage that fails, how, and what the error says: of the reason, and of the Hub.
BROKEN_NEW = [
    ("whoami", {"cut": "before"}, "could not be asked about ada/clip.*Nothing was sent", None),
    ("create", {"cut": "before"}, "Making the repository failed", "There is no ada/clip on the Hub"),
    ("create", {"status": 500}, "the Hub answered 500", "There is no ada/clip on the Hub"),
    ("create", {"cut": "after"}, "Making the repository failed", "the new repository ada/clip, and nothing in it"),
    ("preupload", {"cut": "middle"}, "Uploading failed", "the new repository ada/clip, and nothing in it"),
    ("upload", {"cut": "middle"}, "Uploading failed", "the new repository ada/clip, and nothing in it"),
]
BROKEN_OLD = [
    ("preupload", {"status": 503}, "Uploading failed: the Hub answered 503", "what it was"),
    ("batch", {"status": 507, "message": "full"}, r"no space left for it \(507: full\)", "what it was"),
    ("upload", {"status": 413, "message": "too large"}, r"no space left for it \(413", "what it was"),
    ("upload", {"cut": "before"}, "Uploading failed", "what it was"),
    ("verify", {"cut": "middle"}, "Uploading failed", "what it was"),
    ("commit", {"cut": "before"}, "Committing failed", "what it was"),
    ("commit", {"cut": "middle"}, "Committing failed", "what it was"),
    ("commit", {"status": 500}, "Committing failed: the Hub answered 500", "what it was"),
    ("commit", {"status": 403, "message": "Storage limit reached"}, "does not allow it.*Storage limit", "what it was"),
]


@pytest.mark.parametrize(("stage", "fault", "reason", "there"), BROKEN_NEW)
def test_a_first_push_that_breaks(
    hub: LoopbackHub, folder: Path, stage: str, fault: dict[str, str], reason: str, there: str | None
) -> None:
    hub.break_at(stage, times=20, **fault)
    with pytest.raises(PublishingError, match=f"(?s){reason}.*{there or ''}"):
        push_all(folder)
    assert all(not contents(repository) for repository in hub.repositories.values())
    hub.faults.clear()
    push_all(folder)  # the same call again
    assert contents(hub.repositories["model", "ada/clip"]) == FILES


@pytest.mark.parametrize(("stage", "fault", "reason", "there"), BROKEN_OLD)
def test_a_later_push_that_breaks(
    hub: LoopbackHub, folder: Path, stage: str, fault: dict[str, str], reason: str, there: str
) -> None:
    repository = existing(hub, {"config.json": b"before"})
    before = repository.at("main").oid
    hub.break_at(stage, times=20, **fault)
    with pytest.raises(PublishingError, match=f"(?s){reason}.*ada/clip, main is {there}: commit {before}"):
        push_all(folder)
    assert repository.at("main").oid == before and len(repository.commits) == 2
    hub.faults.clear()
    push_all(folder)
    assert contents(repository) == FILES


def test_a_hub_that_is_gone(hub: LoopbackHub, folder: Path) -> None:
    head = existing(hub, {"config.json": b"before"}).at("main").oid
    remote = look(CLIP)
    for stage in ("commit", "refs"):
        hub.break_at(stage, cut="before", times=20)
    with pytest.raises(
        PublishingError, match=f"cannot be asked; before, ada/clip, main was commit {head}, and only a"
    ):
        push({"config.json": folder / "config.json"}, CLIP, remote, message="Publish clip")


def test_a_second_try_sends_only_what_is_missing(hub: LoopbackHub, folder: Path) -> None:
    hub.break_at("commit", cut="before")
    with pytest.raises(PublishingError):
        push_all(folder)
    sent = hub.stages().count("upload")
    push_all(folder)
    assert sent == hub.stages().count("upload") == 2


@pytest.mark.parametrize("options", [{}, {"create_pr": True}])
def test_a_lost_answer_is_looked_up(
    hub: LoopbackHub, folder: Path, options: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    repository = existing(hub, {"config.json": b"before"})
    hub.break_at("commit", cut="after")
    pushed = push_all(folder, replace(CLIP, **options))
    assert contents(repository, pushed.commit) == FILES
    assert "answer was lost" in caplog.text


def test_somebody_else_was_faster(hub: LoopbackHub, folder: Path) -> None:
    repository = existing(hub, {"config.json": b"before"})
    remote = look(CLIP)
    faster = repository._add("refs/heads/main", remote.head, "faster", {"config.json": Blob(b"theirs", False)})
    with pytest.raises(
        PublishingError, match=f"somebody else has pushed since.*from commit {remote.head} to {faster.oid}"
    ):
        push({"config.json": folder / "config.json"}, CLIP, remote, message="Publish clip")
    assert contents(repository) == {"config.json": b"theirs"}


def test_a_strangers_repository(hub: LoopbackHub, folder: Path) -> None:
    existing(hub, {"config.json": b"before"})
    with pytest.raises(PublishingError, match=r"does not allow it with this token \(403.*is what it was"):
        push_all(folder, replace(CLIP, token=OTHER_TOKEN))


def test_a_tag_that_breaks_leaves_the_commit(hub: LoopbackHub, folder: Path) -> None:
    hub.break_at("tag", status=500)
    with pytest.raises(PublishingError, match="Tagging failed.*On the Hub is all the rest, as commit"):
        push_all(folder, replace(CLIP, tag="v1"))
    assert contents(hub.repositories["model", "ada/clip"]) == FILES
