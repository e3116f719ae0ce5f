"""A corpus to a Hub on loopback and back: whole, checked, and as `datasets` reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf.corpus.build import build_corpus, load_corpus
from holistic_clip_hf.publishing.hub import publish_corpus, pull_corpus
from holistic_clip_hf.publishing.push import Destination, PublishingError
from hub_answers import TOKEN
from hub_server import LoopbackHub, connect, run_client
from hub_storage import Blob, Repository

DRAWINGS = Destination("ada/drawings", kind="dataset", token=TOKEN)
CARD = "---\nlicense: cc0-1.0\n---\n\n# Drawings\n"

# Unmodified `datasets`, with nothing set but the environment.
READ = """
import json
from datasets import load_dataset
whole = load_dataset("ada/drawings")
stream = load_dataset("ada/drawings", split="train", streaming=True)
row = next(iter(stream))
print(json.dumps({
    "splits": {name: part.num_rows for name, part in whole.items()},
    "ids": whole["train"]["image_id"][:],
    "streamed": [row["image_id"] for row in stream],
    "first": [row["image"].size, row["captions"]],
}))
"""


@pytest.fixture(autouse=True)
def online(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(hub, monkeypatch, tmp_path)


@pytest.fixture
def built(corpus: Dataset, tmp_path: Path) -> Path:
    """Two shards, one of them with a name that `datasets` would take for a split."""
    parts = {name: corpus.select(rows) for name, rows in (("artist", range(5)), ("test-artist", range(5, 8)))}
    shards = {name: part.__iter__ for name, part in parts.items()}
    build_corpus(tmp_path / "built", shards, corpus.features, fingerprint="v1", card=lambda manifest: CARD)
    return tmp_path / "built"


def test_rows_come_back_to_everybody(hub: LoopbackHub, built: Path, corpus: Dataset, tmp_path: Path) -> None:
    published = publish_corpus(built, DRAWINGS)
    there = hub.repositories["dataset", "ada/drawings"].at("main")
    assert there.oid == published.commit and there.title == "Publish a corpus of 8 images"
    assert set(there.files) == {*published.files, ".gitattributes"}
    shards = {f"data/{path.name}": path.read_bytes() for path in (built / "data").iterdir()}
    assert {name: there.files[name].content for name in shards} == shards
    assert all(there.files[name].is_large for name in shards)
    found = json.loads(run_client(hub, READ, home=tmp_path / "home").splitlines()[-1])
    assert found["splits"] == {"train": 8}
    assert found["ids"] == found["streamed"] == corpus["image_id"][:]
    assert found["first"] == [[32, 32], corpus[0]["captions"]]
    pulled = pull_corpus("ada/drawings", tmp_path / "pulled", token=TOKEN)
    assert pulled.to_dict() == load_corpus(built).to_dict()
    assert (tmp_path / "pulled" / "README.md").read_text().endswith("# Drawings\n")


def test_what_is_sent_is_shown_before(hub: LoopbackHub, built: Path) -> None:
    shown = publish_corpus(built, DRAWINGS, dry_run=True)
    assert not hub.requests and shown.commit is None
    assert {"README.md", "corpus.json"} < set(shown.files) and len(shown.files) == 4
    assert shown.files["corpus.json"] == (built / "corpus.json").stat().st_size
    assert publish_corpus(built, DRAWINGS).files == shown.files


def test_a_card_that_names_its_files_stays_as_it_is(built: Path, hub: LoopbackHub) -> None:
    text = CARD.replace("---\n\n", "configs:\n- config_name: small\n  data_files: data/artist-*\n---\n\n")
    (built / "README.md").write_text(text)
    publish_corpus(built, DRAWINGS)
    assert hub.repositories["dataset", "ada/drawings"].at("main").files["README.md"].content == text.encode()


def test_a_changed_corpus_replaces_the_old_one(hub: LoopbackHub, built: Path, corpus: Dataset, tmp_path: Path) -> None:
    publish_corpus(built, DRAWINGS)
    shards = {"all": corpus.select(range(2)).__iter__}
    build_corpus(built, shards, corpus.features, fingerprint="v2", card=lambda manifest: CARD)
    publish_corpus(built, DRAWINGS)
    there = hub.repositories["dataset", "ada/drawings"].at("main").files
    assert [name.split("-")[0] for name in there if name.startswith("data/")] == ["data/all"]
    assert pull_corpus("ada/drawings", tmp_path / "pulled", token=TOKEN)["image_id"][:] == corpus["image_id"][:2]


def test_half_a_corpus_is_not_published(hub: LoopbackHub, built: Path) -> None:
    next((built / "data").glob("artist-*")).unlink()
    with pytest.raises(ValueError, match="Shard 'artist' of .*got no file"):
        publish_corpus(built, DRAWINGS)
    assert not hub.requests


def test_a_corpus_without_a_card_is_not_published(hub: LoopbackHub, built: Path) -> None:
    (built / "README.md").unlink()
    with pytest.raises(ValueError, match="has no card, README.md.*licences"):
        publish_corpus(built, DRAWINGS)
    assert not hub.requests


def test_what_nobody_asked_for_stays(hub: LoopbackHub, built: Path) -> None:
    picture = Image.new("RGB", (3, 2), "red")
    for name in ("shown.png", "tagged.png", "diversity.png", "private.png", "scan_of_passport.png"):
        picture.save(built / name)
    (built / "README.md").write_text(CARD + "![a](shown.png) <img src='tagged.png'> `private.png`\n")
    (built / "LICENSE").write_text("CC0")
    (built / "notes.jsonl").write_text("{}")
    sent = publish_corpus(built, DRAWINGS, dry_run=True).files
    beside = {name for name in sent if not name.startswith("data/")}
    assert beside == {"README.md", "corpus.json", "LICENSE", "shown.png", "tagged.png", "diversity.png"}


@pytest.mark.parametrize("name", ["data", "data/shard", "README.md", "corpus.json", "diversity.png", "shown.png"])
def test_links_in_a_corpus_are_not_followed(hub: LoopbackHub, built: Path, tmp_path: Path, name: str) -> None:
    for picture in ("shown.png", "diversity.png"):
        Image.new("RGB", (3, 2), "red").save(built / picture)
    (built / "README.md").write_text(CARD + "![a](shown.png)\n")
    path = next((built / "data").glob("artist-*")) if name == "data/shard" else built / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{path.name} is a symbolic link; expected a file or folder of its own"):
        publish_corpus(built, DRAWINGS, dry_run=True)


def test_files_of_a_corpus_are_what_their_names_say(hub: LoopbackHub, built: Path) -> None:
    cases = {
        "diversity.png": (b"-----BEGIN OPENSSH PRIVATE KEY-----", "is not a PNG by its bytes"),
        "diversity.json": (b"-----BEGIN", "is not JSON"),
        "skipped.jsonl": (b"{}\nkey", "is not JSON"),
        "LICENSE": (b"\x80\x02cos\nsystem", "is not text in UTF-8"),
    }
    for name, (content, message) in cases.items():
        (built / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            publish_corpus(built, DRAWINGS, dry_run=True)
        (built / name).unlink()
    manifest = json.loads((built / "corpus.json").read_text())
    manifest["shards"]["artist"]["file"] = "../artist.parquet"
    (built / "corpus.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="names the shard '../artist.parquet'; expected one in `data`"):
        publish_corpus(built, DRAWINGS, dry_run=True)


def test_another_data_set_is_not_replaced(hub: LoopbackHub, built: Path) -> None:
    theirs = Repository("dataset", "ada/drawings")
    theirs._add("refs/heads/main", None, "theirs", {"train.csv": Blob(b"a,b", False)})
    hub.repositories["dataset", "ada/drawings"] = theirs
    with pytest.raises(ValueError, match=r"do not belong beside what is pushed: train\.csv"):
        publish_corpus(built, DRAWINGS)
    assert list(theirs.at("main").files) == ["train.csv"]


def test_a_pull_goes_on_where_it_was_cut(hub: LoopbackHub, built: Path, tmp_path: Path) -> None:
    publish_corpus(built, DRAWINGS)
    hub.break_at("content", cut="middle", times=40)  # more often than the client tries
    with pytest.raises(PublishingError, match=r"(?s)could not be pulled: .*stays in .*run again"):
        pull_corpus("ada/drawings", tmp_path / "pulled", token=TOKEN)
    assert (tmp_path / "pulled" / "README.md").is_file() and not list((tmp_path / "pulled").glob("data/*.parquet"))
    hub.faults.clear()
    assert len(pull_corpus("ada/drawings", tmp_path / "pulled", token=TOKEN)) == 8
    fetched = hub.stages().count("content")
    pull_corpus("ada/drawings", tmp_path / "pulled", token=TOKEN)
    assert hub.stages().count("content") == fetched


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["shards"]["artist"].update(sha256="0" * 64), "has the checksum"),
        (lambda manifest: manifest["shards"]["artist"].update(file="../../etc/passwd"), "not in `data`"),
        (lambda manifest: manifest["shards"]["artist"].update(file="data/gone.parquet"), "is missing"),
    ],
)
def test_a_pulled_corpus_that_is_not_what_was_built(
    hub: LoopbackHub, built: Path, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    publish_corpus(built, DRAWINGS)
    repository = hub.repositories["dataset", "ada/drawings"]
    files = dict(repository.at("main").files)
    manifest = json.loads(files["corpus.json"].content)
    change(manifest)
    files["corpus.json"] = Blob(json.dumps(manifest).encode(), False)
    repository._add("refs/heads/main", None, "tampered", files)
    with pytest.raises(ValueError, match=message):
        pull_corpus("ada/drawings", tmp_path / "pulled", token=TOKEN)


def test_a_repository_without_a_corpus(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories["dataset", "ada/drawings"] = Repository("dataset", "ada/drawings")
    with pytest.raises(ValueError, match=r"holds no corpus; expected corpus\.json"):
        pull_corpus("ada/drawings", tmp_path / "pulled", token=TOKEN)
    with pytest.raises(PublishingError, match="ada/gone could not be pulled"):
        pull_corpus("ada/gone", tmp_path / "gone", token=TOKEN)


@pytest.mark.parametrize("name", ["README.md", "corpus.json", "cat.png", "data/mine.parquet"])
def test_a_pull_overwrites_no_files_of_others(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    (tmp_path / "pulled" / name).parent.mkdir(parents=True)
    (tmp_path / "pulled" / name).write_text("{}")
    with pytest.raises(ValueError, match=f"`output` is .*pulled, which holds {name}; expected a new or empty folder"):
        pull_corpus("ada/drawings", tmp_path / "pulled", token=TOKEN)
    assert (tmp_path / "pulled" / name).read_text() == "{}" and not hub.requests
