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

from holistic_clip_hf.captioning.rows import CaptionRow
from holistic_clip_hf.captioning.store import CaptionStore
from holistic_clip_hf.corpus.build import load_corpus, read_manifest
from training import build_corpus
from training.corpora.debian import corpora
from training.corpora.debian.packages import DebianPackage
from training.corpora.sources import parse_columns

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
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    def build(*options: object) -> dict[str, list[tuple[str, str, str]]]:
        """The corpus: by image id, the perspective, text and source of its captions."""
        given = [str(option) for option in options]
        output = ["--output", str(tmp_path / "corpus"), "--no-report", "--validation", "0", "--test", "0"]
        monkeypatch.setattr(sys, "argv", ["build_corpus.py", *given, *output])
        build_corpus.main()
        rows = load_corpus(tmp_path / "corpus").remove_columns("image")
        return {row["image_id"]: [tuple(caption.values()) for caption in row["captions"]] for row in rows}

    return build


def test_columns_as_they_are_typed() -> None:
    expected = {"alt": "web", "captions": ["short", "detail"], "style": "style"}
    assert parse_columns(["alt=web", "captions=short,detail", "style"]) == expected
    with pytest.raises(ValueError, match="'alt' twice"):
        parse_columns(["alt=web", "alt=short"])


def test_a_folder(images: Path, run: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("folder", images, "--title", "Mine", "--license", "cc-by-4.0") == {
        "a.png": [("short", "beside a", "images")]
    }
    printed = capsys.readouterr().out
    assert "1 no caption" in printed and "1 rows" in printed and printed.endswith(f"{tmp_path / 'corpus'}\n")
    card = (tmp_path / "corpus/README.md").read_text()
    assert "# Mine" in card and "license: cc-by-4.0" in card and f"build_corpus folder {images}" in card


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
    with pytest.raises(ValueError, match="no folder; expected caption rows"):
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
    found = run("tuxpaint", "--cache-dir", tmp_path / "cache")
    assert found == {"animals/frog": [("short", "A frog.", "tuxpaint"), ("category", "animals", "tuxpaint")]}
    assert read_manifest(tmp_path / "corpus")["about"]["license"] == "gpl-2.0"


def test_options_of_one_command_do_not_change_anothers() -> None:
    parser = build_corpus.make_parser()
    assert parser.parse_args(["fashion_mnist"]).test == 0
    assert parser.parse_args(["folder", "x"]).test == parser.parse_args(["tuxpaint"]).test == 0.05


def test_without_a_source_it_is_the_emoji(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def build(cache: Path | None, *, image_size: int) -> Path:
        asked.append((cache, image_size))
        raise SystemExit

    monkeypatch.setattr(build_corpus, "build_emoji_corpus", build)
    for given in ([], ["--image-size", "32"], ["emoji", "--cache-dir", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["build_corpus.py", *given])
        with pytest.raises(SystemExit):
            build_corpus.main()
    assert asked == [(None, 96), (None, 32), (tmp_path, 96)]


def test_an_output_is_needed(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["build_corpus.py", "folder", str(images)])
    with pytest.raises(ValueError, match="no --output"):
        build_corpus.main()
