"""What a corpus gives way to: its own sources, with more photos or captions. Other sources need `--replace`."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from holistic_clip_hf.captioning.store import CaptionRow, CaptionStore
from holistic_clip_hf.cli.main import main
from holistic_clip_hf.corpus.build import load_corpus, open_split
from holistic_clip_hf.corpus.card import CorpusFacts
from holistic_clip_hf.corpus.from_sources import build_from_sources
from holistic_clip_hf.images.folders import ImageFolder

Run = Callable[..., str]


def photos(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (16, 16), (20 * number, 90, 90)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name}")
    return folder


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(*options)`: build `corpus`; the refusal, or nothing."""

    def build(*options: object) -> str:
        given = ["corpus", *map(str, options), "--output", str(tmp_path / "corpus"), "--no-report"]
        try:
            main(given)
        except SystemExit as ended:
            assert ended.code == 2
            return capsys.readouterr().err
        return ""

    return build


def ids(folder: Path) -> list[str]:
    return sorted(load_corpus(str(folder / "corpus"))["image_id"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_corpus_of_other_photos_stays_unless_told(run: Run, tmp_path: Path) -> None:
    mine, other = photos(tmp_path / "mine", "a", "b"), photos(tmp_path / "other", "c")
    assert run("folder", mine) == ""
    before = contents(tmp_path / "corpus")
    said = run("folder", other)
    assert "`--output` is" in said and "built from mine; expected" in said and "give `--replace`" in said
    assert contents(tmp_path / "corpus") == before and ids(tmp_path) == ["a.png", "b.png"]
    assert run("folder", other, "--replace") == "" and ids(tmp_path) == ["c.png"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"fingerprint": 1, "shards": []}'])
def test_a_damaged_manifest_is_mended_by_the_same_build_alone(run: Run, tmp_path: Path, damage: str) -> None:
    mine, other = photos(tmp_path / "mine", "a", "b"), photos(tmp_path / "other", "c")
    run("folder", mine)
    whole = contents(tmp_path / "corpus")
    (tmp_path / "corpus" / "corpus.json").write_text(damage)
    damaged = contents(tmp_path / "corpus")
    assert "whose corpus.json is damaged" in run("folder", other) and contents(tmp_path / "corpus") == damaged
    assert run("folder", mine) == "" and contents(tmp_path / "corpus") == whole
    (tmp_path / "corpus" / "corpus.json").write_text(damage)
    assert run("folder", other, "--replace") == "" and ids(tmp_path) == ["c.png"]


BUILD = """
import sys
from holistic_clip_hf.cli.main import main
import holistic_clip_hf.corpus.from_sources
sys.stdin.readline()
main(["corpus", "folder", sys.argv[1], "--output", sys.argv[2], "--no-report"])
"""


def test_two_builds_into_one_output_lose_nothing(tmp_path: Path) -> None:
    """Of other photos: one is there, whole, and the other is refused."""
    folders = [photos(tmp_path / name, *(f"{name}{n}" for n in range(30))) for name in ("mine", "other")]
    builds = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(folder), str(tmp_path / "corpus")],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for build in builds:
        assert build.stdin is not None
        build.stdin.write("\n")
        build.stdin.flush()
    said = [build.communicate()[1] for build in builds]
    codes = [build.returncode for build in builds]
    assert sorted(codes) == [0, 2], said
    (won, lost) = ("mine", "other") if codes == [0, 2] else ("other", "mine")
    assert f"which holds a corpus built from {won}" in said[codes.index(2)], (lost, said)
    assert ids(tmp_path) == sorted(f"{won}{n}.png" for n in range(30))


def test_the_same_sources_go_on_with_more_photos_and_captions(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = photos(tmp_path / "mine", "a")
    assert run("folder", mine) == ""
    photos(mine, "a", "b")
    monkeypatch.chdir(tmp_path)
    assert run("folder", "mine", "--name", "called otherwise") == "" and ids(tmp_path) == ["a.png", "b.png"]
    with CaptionStore("rows").writer() as writer:
        writer.add(CaptionRow("b.png", "detail", "A whole b.", "vlm", "1", "0", "ok"))
    assert run("folder", mine, "--rows", "rows") == ""
    assert "built from rows; expected" in run("folder", mine)
    (mine / "metadata.csv").write_text("file_name,alt\na.png,an a\nb.png,\n")
    assert run("folder", mine, "--rows", "rows", "--caption", "alt=web") == ""
    assert {caption["perspective"] for row in load_corpus("corpus") for caption in row["captions"]} == {
        "web",
        "detail",
    }


def test_a_corpus_that_moved_is_whole_and_one_of_before_is_known_by_names(run: Run, tmp_path: Path) -> None:
    mine, manifest = photos(tmp_path / "mine", "a"), tmp_path / "corpus/corpus.json"
    assert run("folder", mine) == ""
    assert str(tmp_path) not in json.dumps(json.loads(manifest.read_text())["about"]["origins"])
    moved = mine.rename(tmp_path / "moved")
    assert run("folder", moved, "--name", "mine") == "", "nothing is to be replaced"
    photos(moved, "a", "b")
    assert "built from mine" in run("folder", moved, "--name", "mine")
    told = json.loads(manifest.read_text())
    del told["about"]["origins"]
    manifest.write_text(json.dumps(told))
    assert "built from mine" in run("folder", moved)
    assert run("folder", moved, "--name", "mine") == ""


def test_python_is_asked_too(tmp_path: Path) -> None:
    for name, replace in (("one", False), ("two", True)):
        source = ImageFolder(photos(tmp_path / name, name))
        if replace:
            with pytest.raises(ValueError, match="built from one; expected .*, or give `replace`"):
                build_from_sources(str(tmp_path / "corpus"), [source], facts=CorpusFacts("My"), diversity=False)
        build_from_sources(
            str(tmp_path / "corpus"), [source], facts=CorpusFacts("My"), diversity=False, replace=replace
        )
        assert ids(tmp_path) == [f"{name}.png"]


def test_a_split_without_rows_is_told_at_once_and_when_it_is_missed(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "holistic_clip_hf"):
        run("folder", photos(tmp_path / "mine", "a"))
    assert "No row is in the split test, by its share of 0.05. Raise `--test`" in caplog.text
    with pytest.raises(ValueError, match=r"expected train. Name another split, as with `--split`, or .*`--test 0.2`"):
        open_split(str(tmp_path / "corpus"), "test")


def test_images_that_are_all_too_small_leave_no_folder(run: Run, tmp_path: Path) -> None:
    said = run("folder", photos(tmp_path / "mine", "a", "b"), "--min-side", "5000")
    assert "would have no rows" in said and "too small (2)" in said
    assert not (tmp_path / "corpus").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_not_utf_8_is_told_at_the_start(tmp_path: Path) -> None:
    folder = photos(tmp_path / "mine", "a").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    for verb in (["corpus"], ["caption", "--model", "m"]):
        with pytest.raises(SystemExit) as ended:
            main([verb[0], "folder", str(folder), "--output", str(tmp_path / "out"), *verb[1:]])
        assert ended.value.code == 2 and not (tmp_path / "out").exists()
    with pytest.raises(
        ValueError,
        match=r"`root` is '.*caf\\udce9', whose name is not UTF-8; expected one that is.",
    ):
        ImageFolder(folder)
    with pytest.raises(ValueError, match="`output` is .*, whose name is not UTF-8"):
        source = [ImageFolder(photos(tmp_path / "mine", "a"))]
        build_from_sources(folder / "corpus", source, facts=CorpusFacts("My"), diversity=False)


def test_a_list_that_is_not_read_is_named(tmp_path: Path) -> None:
    folder = photos(tmp_path / "mine", "a")
    (folder / "a.txt").unlink()
    for name, advice in (
        ("", "Put a text beside each image"),
        ("metadata.csv", "metadata.csv is not read here"),
    ):
        if name:
            (folder / name).write_text("file_name,title\na.png,an a\n")
        with pytest.raises(ValueError, match=advice):
            build_from_sources(tmp_path / "c", [ImageFolder(folder)], facts=CorpusFacts("My"), diversity=False)
