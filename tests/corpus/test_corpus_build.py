"""The corpus builder: what a row may be, and that a corpus is either whole or refused."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Value
from PIL import Image

from holistic_clip_hf import storage
from holistic_clip_hf.corpus.build import (
    MANIFEST,
    build_corpus,
    corpus_features,
    count_perspectives,
    is_whole,
    load_corpus,
    read_manifest,
    validate_row,
)
from holistic_clip_hf.images.sources import Skipped
from holistic_clip_hf.storage import checksum

FEATURES = corpus_features(artist=Value("string"))


def caption(perspective: str = "short", text: str = "a square", source: str = "test") -> dict[str, str]:
    return {"perspective": perspective, "text": text, "source": source}


def row(name: str, captions: list[dict[str, str]] | None = None) -> dict[str, Any]:
    image = Image.new("RGBA", (4, 4), (len(name), 0, 0, 128))
    return {"image_id": name, "image": image, "captions": captions or [caption()], "artist": "one"}


def shard(*names: str) -> Any:
    return lambda: [row(name) for name in names]


def build_two(directory: Path, fingerprint: str = "v1", **options: Any) -> Dataset:
    shards = {"one": shard("a", "bb"), "two": shard("ccc")}
    return build_corpus(directory, shards, FEATURES, fingerprint=fingerprint, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": " "}, "is ' '; expected.*not empty"),
        ({"image": None}, "has no image"),
        ({"captions": [caption(text="")]}, "caption text ''.*Leave a missing caption out"),
        ({"captions": [caption(perspective=" ")]}, "caption perspective ' '"),
        ({"captions": [{"perspective": "short", "text": "x"}]}, "fields.*expected.*source"),
        ({"captions": [caption(), caption(text="other")]}, "two captions.*'short'.*'test'.*Drop one"),
    ],
)
def test_malformed_rows_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_row({**row("a"), **change})


def test_one_perspective_from_two_sources_is_fine() -> None:
    validate_row(row("a", [caption(), caption(source="other")]))


def test_extra_columns_may_not_shadow_the_core() -> None:
    with pytest.raises(ValueError, match="captions"):
        corpus_features(captions=Value("string"))


def test_corpus_holds_the_rows_as_given(tmp_path: Path) -> None:
    corpus = build_two(tmp_path / "corpus")
    assert corpus["image_id"] == ["a", "bb", "ccc"]
    assert corpus.features == FEATURES
    assert corpus[1]["captions"] == [caption()]
    assert np.asarray(corpus[1]["image"]).tolist() == [[[2, 0, 0, 128]] * 4] * 4


def test_perspectives_are_counted_also_after_a_selection(tmp_path: Path) -> None:
    rows = [row("a", [caption("short"), caption("gloss")]), row("bb", [caption("gloss")]), row("ccc")]
    corpus = build_corpus(tmp_path, {"all": lambda: rows}, FEATURES, fingerprint="v1")
    assert count_perspectives(corpus) == {"gloss": 2, "short": 2}
    assert count_perspectives(corpus.select([1, 2])) == {"gloss": 1, "short": 1}
    assert read_manifest(tmp_path)["perspectives"] == {"gloss": 2, "short": 2}


def test_counting_reads_no_image(tmp_path: Path) -> None:
    broken = {**row("a"), "image": {"bytes": b"no picture", "path": None}}
    corpus = build_corpus(tmp_path, {"all": lambda: [broken]}, FEATURES, fingerprint="v1")
    assert count_perspectives(corpus) == {"short": 1}


def test_manifest_tells_counts_skips_and_what_it_is_about(tmp_path: Path) -> None:
    shards = {"one": lambda: [row("a"), Skipped("b", "draws nothing")], "two": shard("ccc")}
    build_corpus(tmp_path, shards, FEATURES, fingerprint="v1", about={"license": "MIT"}, counted=["artist"])
    manifest = read_manifest(tmp_path)
    assert (manifest["rows"], manifest["columns"], manifest["about"]) == (
        2,
        {"artist": {"one": 2}},
        {"license": "MIT"},
    )
    assert manifest["shards"]["one"]["skipped"] == [{"item": "b", "reason": "draws nothing"}]


def test_a_whole_corpus_is_not_built_again(tmp_path: Path) -> None:
    build_two(tmp_path)

    def untouched() -> Iterator[Any]:
        raise AssertionError("a finished shard was asked for its rows")
        yield

    build_corpus(tmp_path, {"one": untouched, "two": untouched}, FEATURES, fingerprint="v1")
    assert is_whole(tmp_path, "v1")


def test_a_failed_build_keeps_finished_shards_and_is_not_a_corpus(tmp_path: Path) -> None:
    calls = []

    def first() -> list[dict[str, Any]]:
        calls.append("one")
        return [row("a"), row("bb")]

    bad = {"one": first, "two": lambda: [row("ccc"), {**row("d"), "captions": [caption(text="")]}]}
    with pytest.raises(ValueError, match="'d'"):
        build_corpus(tmp_path, bad, FEATURES, fingerprint="v1")
    with pytest.raises(ValueError, match="half-built.*Build the corpus again"):
        load_corpus(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    corpus = build_corpus(tmp_path, {"one": first, "two": shard("ccc")}, FEATURES, fingerprint="v1")
    assert (corpus["image_id"], calls) == (["a", "bb", "ccc"], ["one"])


def test_a_changed_fingerprint_rebuilds_and_the_old_corpus_stays_until_then(tmp_path: Path) -> None:
    build_two(tmp_path)
    with pytest.raises(ZeroDivisionError):
        build_corpus(tmp_path, {"one": lambda: [row(str(1 / 0))]}, FEATURES, fingerprint="v2")
    assert load_corpus(tmp_path)["image_id"] == ["a", "bb", "ccc"]
    assert build_corpus(tmp_path, {"one": shard("z")}, FEATURES, fingerprint="v2")["image_id"] == ["z"]
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_a_changed_shard_is_refused_then_repaired(tmp_path: Path) -> None:
    build_two(tmp_path)
    path = next((tmp_path / "data").glob("two-*"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"'two'.*bytes.*Delete {re.escape(MANIFEST)}"):
        load_corpus(tmp_path)
    assert build_two(tmp_path)["image_id"] == ["a", "bb", "ccc"]
    path.unlink()
    with pytest.raises(ValueError, match="'two'.*no file"):
        load_corpus(tmp_path)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no corpus.*Build"):
        load_corpus(tmp_path)


def test_the_card_is_there_before_the_manifest(tmp_path: Path) -> None:
    def card(manifest: dict[str, Any]) -> str:
        assert not (tmp_path / MANIFEST).exists()
        return f"{manifest['rows']} rows"

    build_two(tmp_path, card=card)
    assert (tmp_path / "README.md").read_text() == "3 rows"


def test_too_little_space_is_said_up_front(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="needs .* MB. Free space") as caught:
        build_two(tmp_path, required_bytes=10**18)
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full while writing one-.*Free space and run again"):
        build_two(tmp_path)
    assert not list((tmp_path / "data").iterdir())
    monkeypatch.undo()
    assert len(build_two(tmp_path)) == 3


def build_slowly(directory: Path, pause: float) -> None:
    def slow() -> Iterator[dict[str, Any]]:
        for index in range(250):
            if index == 240:
                (directory.with_suffix(".reached")).touch()
                time.sleep(pause)
            yield row("s" * (index + 1))

    build_corpus(directory, {"one": shard("a", "bb"), "two": slow}, FEATURES, fingerprint="v1")


def kill_a_build(directory: Path) -> None:
    """Start it in a process of its own and kill that in the second of two shards."""
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [tests, tests.parent, tests.parent.parent]))}
    program = "import sys, test_corpus_build as t; t.build_slowly(t.Path(sys.argv[1]), pause=60)"
    process = subprocess.Popen([sys.executable, "-c", program, str(directory)], env=environment)
    deadline = time.monotonic() + 120
    while not (directory.with_suffix(".reached")).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_build_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    kill_a_build(killed)
    finished = next((killed / "data").glob("one-*.parquet"))
    written_at = finished.stat().st_mtime_ns
    with pytest.raises(ValueError, match="half-built"):
        load_corpus(killed)
    build_slowly(killed, pause=0)
    build_slowly(undisturbed, pause=0)
    assert finished.stat().st_mtime_ns == written_at
    assert json.loads((killed / MANIFEST).read_text()) == json.loads((undisturbed / MANIFEST).read_text())
    contents = [{path.name: path.read_bytes() for path in (d / "data").iterdir()} for d in (killed, undisturbed)]
    assert contents[0] == contents[1]
    assert len(load_corpus(killed)) == 252


def originals(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    for name in ("README.md", "data/cat.jpg", "data/metadata.csv", "data/mine-0123abcd.parquet", "data/.x.1.partial"):
        (project / name).write_text("mine")
    before = originals(project)
    with pytest.raises(ValueError, match="`output` is .*project, which holds .*; expected a new or empty folder"):
        build_two(project)
    assert originals(project) == before
    build_two(tmp_path / "corpus")
    for name in ("notes.txt", "data/mine.parquet", "data/mine-0123abcd.parquet"):
        (tmp_path / "corpus" / name).write_text("mine")
    build_two(tmp_path / "corpus", fingerprint="v2")
    assert {name for name, content in originals(tmp_path / "corpus").items() if content == b"mine"} == {
        "notes.txt",
        "data/mine.parquet",
        "data/mine-0123abcd.parquet",
    }
    assert len(list((tmp_path / "corpus" / "data").glob("*.parquet"))) == 4  # the shards of the first build are gone


@pytest.mark.parametrize("content", ["{", '"a string"', '{"name": "my own corpus"}'])
def test_a_manifest_of_others_is_no_leave_to_overwrite(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    (tmp_path / "cat.jpg").write_text("mine")
    with pytest.raises(ValueError, match="which holds (cat.jpg|corpus.json)"):
        build_two(tmp_path)
    assert (tmp_path / MANIFEST).read_text() == content


def test_a_file_is_not_a_folder_for_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "corpus").write_text("mine")
    with pytest.raises(ValueError, match="which is a file; expected a folder for a corpus"):
        build_two(tmp_path / "corpus")


@pytest.mark.parametrize("name", [MANIFEST, "skipped.jsonl", "diversity.png", "README.md"])
@pytest.mark.parametrize("content", ['{"name": "my own corpus"}', "{"])
def test_a_name_that_a_corpus_has_is_not_proof_of_one(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"`output` is .*, which holds {name}; expected a new or empty folder"):
        build_two(tmp_path)
    assert originals(tmp_path) == {name: content.encode()}


def test_a_damaged_manifest_of_ours_is_made_anew(tmp_path: Path) -> None:
    build_two(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    (tmp_path / ".lock").unlink()  # as another system may leave it
    assert len(build_two(tmp_path)) == 3


def recolour(path: Path) -> None:
    """Change one letter of an image id, by which the file stays readable and as long as it was."""
    good = path.read_bytes()
    changed = good.replace(b"ccc", b"ccd")
    assert changed != good
    path.write_bytes(changed)


@pytest.mark.parametrize("damage", [recolour, lambda path: path.write_bytes(bytes(path.stat().st_size))])
def test_a_shard_of_the_right_length_with_other_contents_is_named(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    before = build_two(tmp_path)[:]
    _, second = sorted((tmp_path / "data").glob("*.parquet"))
    damage(second)
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(ValueError, match=rf"of which data/{second.name} changed since the build; .* Build the "):
            load_corpus(tmp_path)
    assert build_two(tmp_path)[:] == before  # it is written again


def test_a_manifest_that_names_files_of_others_has_none_removed(tmp_path: Path) -> None:
    build_two(tmp_path / "corpus")
    manifest = json.loads((tmp_path / "corpus" / MANIFEST).read_text())
    shard = manifest["shards"]["two"]
    mine = tmp_path / "mine-0123abcd.parquet"
    mine.write_bytes((tmp_path / "corpus" / shard["file"]).read_bytes())
    shard |= {"file": "data/../../mine-0123abcd.parquet", "sha256": "0" * 64}
    (tmp_path / "corpus" / MANIFEST).write_text(json.dumps(manifest))
    assert not is_whole(tmp_path / "corpus", "v1") and mine.exists()
    assert len(build_two(tmp_path / "corpus")) == 3 and mine.exists()


def test_a_shard_is_read_again_once_it_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is counted; a copy, a move and a new time are other states, an unchanged file is not."""
    monkeypatch.setenv("HOLISTIC_CLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "_SETTLED_NANOSECONDS", 0)
    read: list[str] = []
    monkeypatch.setattr(storage, "checksum", lambda path: read.append(path.name) or checksum(path))
    build_two(tmp_path / "corpus")
    first, second = sorted(path.name for path in (tmp_path / "corpus" / "data").glob("*.parquet"))
    assert sorted(read) == [first, second]
    load_corpus(tmp_path / "corpus")
    assert len(read) == 2
    os.utime(tmp_path / "corpus" / "data" / second)
    load_corpus(tmp_path / "corpus")
    assert read[2:] == [second]
    shutil.copytree(tmp_path / "corpus", tmp_path / "copy")
    load_corpus(tmp_path / "copy")
    assert sorted(read[3:]) == [first, second]


def test_a_shard_is_read_without_a_cache_to_remember_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("not a folder")
    monkeypatch.setenv("HOLISTIC_CLIP_CACHE", str(tmp_path / "cache"))
    assert len(build_two(tmp_path / "corpus")) == 3


def test_a_shards_count_of_another_type_is_damage(tmp_path: Path) -> None:
    build_two(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    next(iter(manifest["shards"].values()))["num_skipped"] = [[]]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="corpus.json is damaged"):
        load_corpus(tmp_path)


WRONG = [{"columns": {"split": " "}}, {"about": [[]]}, {"about": {"name": 5}}, {"reasons": {"x": []}}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_field_of_another_type_is_damage(tmp_path: Path, wrong: dict[str, Any]) -> None:
    build_two(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, **wrong}))
    with pytest.raises(ValueError, match="corpus.json is damaged"):
        load_corpus(tmp_path)
