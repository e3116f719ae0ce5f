"""The verb that builds corpora: every kind of source by its options, and what it prints and refuses."""

import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from holistic_clip_hf.captioning.store import CaptionRow, CaptionStore
from holistic_clip_hf.cli.corpus import BuildOptions
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.cli.sources import parse_columns
from holistic_clip_hf.corpus.build import load_corpus, read_manifest
from training.debian import corpora
from training.debian.__main__ import Debian
from training.debian.packages import DebianPackage

Build = Callable[..., dict[str, list[tuple[str, str, str]]]]


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(png())
    (folder / "a.txt").write_text("beside a")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Build:
    def build(*options: object) -> dict[str, list[tuple[str, str, str]]]:
        """The corpus: by image id, the perspective, text and source of its captions."""
        given = [str(option) for option in options]
        output = ["--output", str(tmp_path / "corpus"), "--no-report", "--validation", "0", "--test", "0", "--replace"]
        parse("corpus", [*given, *output])()
        rows = load_corpus(tmp_path / "corpus").remove_columns("image")
        return {row["image_id"]: [tuple(caption.values()) for caption in row["captions"]] for row in rows}

    return build


def test_columns_as_they_are_typed() -> None:
    expected = {"alt": "web", "captions": ["short", "detail"], "style": "style"}
    assert parse_columns(["alt=web", "captions=short,detail", "style"]) == expected
    with pytest.raises(ValueError, match="'alt' twice"):
        parse_columns(["alt=web", "alt=short"])


def test_a_folder(
    images: Path,
    run: Build,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", ["bin/holistic-clip", "corpus", "folder", "my photos"])
    assert run("folder", images, "--title", "Mine", "--license", "cc-by-4.0") == {
        "a.png": [("short", "beside a", "images")]
    }
    printed = capsys.readouterr().out
    assert "1 no caption" in printed and "1 rows" in printed and printed.endswith(f"{tmp_path / 'corpus'}\n")
    card = (tmp_path / "corpus/README.md").read_text()
    assert "# Mine" in card and "license: cc-by-4.0" in card and "\nholistic-clip corpus folder 'my photos'\n" in card


def test_a_folder_with_metadata_and_caption_rows(images: Path, run: Build, tmp_path: Path) -> None:
    (images / "metadata.csv").write_text("file_name,alt\na.png,an a\nb.png,\n")
    store = CaptionStore(tmp_path / "rows")
    with store.writer() as writer:
        writer.add(CaptionRow("b.png", "detail", "A whole b.", "vlm", "1", "0", "ok"))
        writer.add(CaptionRow("a.png", "detail", "An a", "vlm", "1", "0", "cut"))
    assert run("folder", images, "--caption", "alt=web", "--rows", tmp_path / "rows", "--name", "mine") == {
        "a.png": [("web", "an a", "mine"), ("detail", "An a", "vlm")],
        "b.png": [("detail", "A whole b.", "vlm")],
    }
    options = ["--perspectives", "detail", "web", "--drop-similar", "0.9"]
    found = run("folder", images, "--caption", "alt=web", "--rows", tmp_path / "rows", "--name", "mine", *options)
    assert found["a.png"] == [("detail", "An a", "vlm")]
    with pytest.raises(ValueError, match="expected a folder of caption rows"):
        run("folder", images, "--rows", tmp_path / "none")


def test_lists(images: Path, run: Build) -> None:
    lines = [{"image": f"{name}.png", "caption": ["w", f"d {name}"]} for name in "ab"]
    (images.parent / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    captions = [("web", "w", "m"), ("detail", "d a", "m")]
    official = ["official", images.parent / "list.jsonl", "--root", images, "--positions", "web", "detail"]
    assert run(*official, "--name", "m")["a.png"] == captions
    listed = ["list", images.parent / "list.jsonl", "--root", images, "--image-column", "image", "--name", "m"]
    assert run(*listed, "--caption", "caption=web,detail")["a.png"] == captions


def test_archives_and_data_sets(run: Build, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00.tar", "w") as archive:
        for name, data in (("x.png", png()), ("x.txt", b"an x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert run("tar", tmp_path / "00.tar", "--caption", "txt=web", "--name", "m") == {"00/x": [("web", "an x", "m")]}
    table = Dataset.from_dict({"picture": [png()], "key": ["k"], "said": [["one", "two"]]})
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "hub/data/train-00000-of-00001.parquet"))
    options = ["--image-column", "picture", "--id-column", "key", "--caption", "said=short", "--name", "m"]
    for name in ("saved", "hub"):
        expected = {"k": [("short", "one", "m-0"), ("short", "two", "m-1")]}
        assert run("dataset", tmp_path / name, *options) == expected


def test_packages_of_debian(run: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stamps = tmp_path / "unpacked/usr/share/tuxpaint/stamps/animals"
    stamps.mkdir(parents=True)
    (stamps / "frog.png").write_bytes(png())
    (stamps / "frog.txt").write_text("A frog.\n")

    def unpack(package: DebianPackage, cache: Path) -> Path:
        assert (package.name, cache) == ("tuxpaint-stamps-default", tmp_path / "cache/packages")
        return tmp_path / "unpacked"

    monkeypatch.setattr(corpora, "unpack", unpack)
    options = BuildOptions(report=False, validation=0, test=0)
    Debian("tuxpaint", tmp_path / "corpus", tmp_path / "cache", options)()
    rows = load_corpus(tmp_path / "corpus").remove_columns("image")
    found = {row["image_id"]: [tuple(caption.values()) for caption in row["captions"]] for row in rows}
    assert found == {"animals/frog": [("short", "A frog.", "tuxpaint"), ("category", "animals", "tuxpaint")]}
    assert read_manifest(tmp_path / "corpus")["about"]["license"] == "gpl-2.0"


def test_fashion_mnist_keeps_its_test_split() -> None:
    assert (BuildOptions().validation, BuildOptions().test) == (0.05, 0.05)
    assert (Debian("fashion_mnist").test_share(), Debian("tuxpaint").test_share()) == (0.0, 0.05)


def test_an_output_is_needed(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("corpus", ["folder", str(images)])
    assert ended.value.code == 2 and "--output" in capsys.readouterr().err


def test_a_corpus_is_not_built_into_the_data_set_that_it_is_made_of(run: Build, images: Path, tmp_path: Path) -> None:
    run("folder", images)
    before = {path: path.read_bytes() for path in (tmp_path / "corpus").rglob("*") if path.is_file()}
    for dataset in (tmp_path / "corpus", tmp_path / "corpus" / "data"):
        with pytest.raises(ValueError, match="`output` is .*corpus, which is (the source itself|around the source)"):
            run("dataset", dataset, "--id-column", "image_id")
    assert {path: path.read_bytes() for path in (tmp_path / "corpus").rglob("*") if path.is_file()} == before
    table = Dataset.from_dict({"picture": [png()]})
    table.save_to_disk(str(tmp_path / "corpus" / "saved"))
    with pytest.raises(ValueError, match="around the source"):
        run("dataset", tmp_path / "corpus" / "saved", "--image-column", "picture")


def test_a_corpus_in_shares(images: Path, run: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "b.txt").write_text("beside b")
    options = ["folder", str(images), "--rows-per-shard", "1", "--validation", "0", "--test", "0"]
    for index in range(2):
        parse("corpus", [*options, "--output", str(tmp_path / "corpus"), "--shard", f"{index}/2"])()
        assert "1 of 2 files of" in capsys.readouterr().out
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus" / "data").iterdir()}
    assert len(written) == 2
    assert run(*options[:-4]) == {f"{name}.png": [("short", f"beside {name}", "images")] for name in "ab"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus" / "data").iterdir()} == written
    with pytest.raises(ValueError, match="`shard` is '2/2'; expected i/n"):
        run(*options[:-4], "--shard", "2/2")
