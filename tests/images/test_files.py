"""Files of strangers: pipes, devices and sparse files are never waited for, and a row is followed nowhere unasked."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.captioning.captioner import Reply, Work, caption_images
from holistic_clip_hf.captioning.perspectives import load_perspectives
from holistic_clip_hf.captioning.store import CaptionStore
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.corpus.build import build_corpus, corpus_features, load_corpus, read_manifest
from holistic_clip_hf.evaluation.encoding import encode_images
from holistic_clip_hf.images.archives import TarShards
from holistic_clip_hf.images.decoding import UnreadableImageError, decode_image
from holistic_clip_hf.images.files import ROOTS, RefusedPathError, allow_folder, read_file, read_named
from holistic_clip_hf.images.folders import ImageFolder, ListedImages
from holistic_clip_hf.images.sources import Item, Skipped, Source
from holistic_clip_hf.images.tables import DatasetImages, TableSource, undecoded
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator

SPARSE = 30 * 2**30


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def nothing_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOTS, "")


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """One image, and what hangs or kills whoever reads it."""
    folder = tmp_path / "traps"
    folder.mkdir()
    (folder / "good.png").write_bytes(png())
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "lost.png").symlink_to("nowhere.png")
    (folder / "folder.png").mkdir()
    with open(folder / "sparse.png", "wb") as file:
        file.truncate(SPARSE)
    (folder / "said.png").write_bytes(png())
    os.mkfifo(folder / "said.txt")
    (folder / "long.png").write_bytes(png())
    with open(folder / "long.txt", "wb") as file:
        file.truncate(SPARSE)
    (folder / "good.txt").write_text("a square")
    return folder


REASONS = {
    "pipe.png": "not a regular file",
    "zero.png": "not a regular file",
    "lost.png": "no such file",
    "sparse.png": "file too large: 32,212,254,720 bytes",
}


def test_a_builder_is_not_held_up(traps: Path, tmp_path: Path) -> None:
    parse("corpus", ["folder", str(traps), "--output", str(tmp_path / "corpus"), "--no-report"])()
    assert load_corpus(tmp_path / "corpus")["image_id"] == ["good.png"]
    found = {each["item"]: each["reason"] for each in read_manifest(tmp_path / "corpus")["skipped"]}
    assert found.pop("said.png").startswith("its text cannot be read: ")
    assert found.pop("long.png").startswith("its text cannot be read: ")
    assert found == REASONS


def test_a_list_is_not_held_up(traps: Path) -> None:
    names = ["good.png", "folder.png", *REASONS]
    (traps / "list").write_text("image,caption\n" + "".join(f"{name},x\n" for name in names))
    found = {each.item: each.reason for each in ListedImages(traps / "list").items() if isinstance(each, Skipped)}
    assert found == {**REASONS, "folder.png": "not a regular file"}


class Listener:
    captioner, revision, weights, settings = "listener", "1", "", {}

    def answer(self, work: Iterable[Work]) -> Generator[Reply, None, None]:
        for each in work:
            yield Reply(each.image_id, each.perspectives[0], "A red square.")


def test_a_captioner_is_not_held_up(traps: Path, tmp_path: Path) -> None:
    caption_images(ImageFolder(traps), load_perspectives(None, ["short"]), Listener(), tmp_path / "rows")
    assert {row.image_id: row.status for row in CaptionStore(tmp_path / "rows").rows()} == {"good.png": "ok"}


@pytest.mark.parametrize("make", [ImageFolder, partial(ListedImages, image_column="image")])
def test_a_file_that_became_a_trap_after_it_was_listed(make: Callable[..., Source], tmp_path: Path) -> None:
    for name in ("pipe.png", "sparse.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "list.csv").write_text("image\npipe.png\nsparse.png\n")
    source = make(tmp_path if make is ImageFolder else tmp_path / "list.csv")
    places = [item.place for item in source.items() if isinstance(item, Item)]
    (tmp_path / "pipe.png").unlink()
    os.mkfifo(tmp_path / "pipe.png")
    os.truncate(tmp_path / "sparse.png", SPARSE)
    for place in places:
        with pytest.raises(OSError, match="not a regular file|file too large") as caught:
            source.read(place)
        assert caught.value.errno is None, "of this image alone: the build goes on"


def test_lists_that_are_traps_are_refused(traps: Path) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        ListedImages(traps / "pipe.png")
    with pytest.raises(ValueError, match="has zero bytes"):
        list(ListedImages(traps / "sparse.png").items())
    with open(traps / "one_line.jsonl", "w+b") as file:
        file.write(b'{"image": "')
        file.truncate(SPARSE)
    with pytest.raises(ValueError, match="has zero bytes|over 16,777,216 letters"):
        list(ListedImages(traps / "one_line.jsonl").items())
    with open(traps / "late.csv", "w+b") as file:
        file.write(b"image,caption\n" + b"good.png,a square\n" * 9_000)
        file.truncate(SPARSE)
    with pytest.raises(ValueError, match="over 16,777,216 letters"):
        list(ListedImages(traps / "late.csv").items())
    with open(traps / "object.json", "w+b") as file:
        file.write(b'{"images":\n [' + b" " * 2**16)
        file.truncate(SPARSE)
    with pytest.raises(ValueError, match="cannot be read whole .*too large"):
        list(ListedImages(traps / "object.json").items())


def test_a_sparse_member_of_an_archive_is_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = SPARSE
        archive.addfile(info)
    os.truncate(tmp_path / "0.tar", SPARSE + 10_240)
    (item,) = TarShards([tmp_path / "0.tar"]).items()
    assert item == Skipped("0/a", "file too large: 32,212,254,720 bytes")


def test_an_unsorted_archive_says_so(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for ending, data in (("png", png()), ("txt", b"text")):
            for number in range(2):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    found = [item.reason for item in TarShards([tmp_path / "0.tar"]).items() if isinstance(item, Skipped)]
    assert found == ["its files do not follow each other; sort the archive, e.g. with `tar --sort=name`"] * 2


def test_contents_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="file too large: 5 bytes"):
        read_file(tmp_path / "file", 4)


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a server of one image, and what it was asked for."""
    requests: list[str] = []
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "kitten.png").write_bytes(png())

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/kitten.png", requests
    server.shutdown()
    server.server_close()


@pytest.fixture
def strangers(asked: tuple[str, list[str]], tmp_path: Path) -> dict[str, str]:
    """Paths that a stranger's rows may name."""
    secret = tmp_path / "private" / "scan.png"
    secret.parent.mkdir()
    secret.write_bytes(png())
    given = tmp_path / "given"
    given.mkdir()
    (given / "link.png").symlink_to(secret)
    return {
        "an address": asked[0],
        "a chain": f"simplecache::{asked[0]}",
        "a file": str(secret),
        "an address of a file": f"file://{secret}",
        "a way out": str(given / ".." / "private" / "scan.png"),
        "a link": str(given / "link.png"),
        "a pipe": "/dev/stdin",
    }


def corpus_of(path: str) -> Dataset:
    caption = {"perspective": "short", "text": "a kitten", "source": "test"}
    row = {"image_id": "k", "image": {"bytes": None, "path": path}, "captions": [caption]}
    return Dataset.from_list([row], features=corpus_features())


def test_a_row_is_followed_nowhere(strangers: dict[str, str], asked: tuple[str, list[str]], tmp_path: Path) -> None:
    for path in strangers.values():
        with pytest.raises(RefusedPathError, match="its path is"):
            read_named(path, [tmp_path / "given"])
        with pytest.raises(UnreadableImageError, match="its path is"):
            decode_image({"bytes": None, "path": path}, [tmp_path / "given"])
        with pytest.raises(UnreadableImageError, match="its path is"):
            next(iter(undecoded(corpus_of(path).with_format("numpy"))))
        with pytest.raises(OSError, match="its path is"):
            DatasetImages(corpus_of(path)).read("k")
        with pytest.raises(OSError, match="its path is"):
            TableSource(corpus_of(path), {}, name="x", folders=[tmp_path / "given"]).read("0")
    assert asked[1] == []


def test_training_and_evaluation_follow_no_row(
    strangers: dict[str, str],
    asked: tuple[str, list[str]],
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
) -> None:
    model = make_model(perspectives=["short", "main_object", "style"])
    captions = corpus_of("x").select_columns("captions")[0]["captions"]
    good = {"image_id": "g", "image": Image.new("RGB", (16, 16)), "captions": captions}
    for path in strangers.values():
        row = {**corpus_of(path).cast_column("image", ImageFeature(decode=False))[0]}
        batch = HolisticCLIPCollator(processor, ["short"])([row, good])
        assert "its path is" in batch["left_out"]["k"]
        with pytest.raises(ValueError, match="None of 1 images is readable, such as k: .*its path is"):
            encode_images(model, processor, corpus_of(path), batch_size=1)
    assert asked[1] == []


def test_the_builder_embeds_no_file_of_this_machine(
    strangers: dict[str, str], asked: tuple[str, list[str]], tmp_path: Path
) -> None:
    """A data set in parquet, as a stranger hands it on."""
    rows = [{"image": {"bytes": None, "path": path}, "caption": name} for name, path in strangers.items()]
    rows.append({"image": {"bytes": png(), "path": None}, "caption": "good"})
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    (tmp_path / "given" / "set").mkdir()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "given/set/train-00000-of-00001.parquet"
    )
    parse("corpus", ["dataset", str(tmp_path / "given/set"), "--output", str(tmp_path / "out"), "--no-report"])()
    corpus = load_corpus(tmp_path / "out")
    assert [each["captions"][0]["text"] for each in corpus] == ["good"]
    reasons = read_manifest(tmp_path / "out")["reasons"]
    assert reasons == {
        "its path is an address, which is not fetched": 2,
        "its path is not below an allowed folder": 5,
    }
    assert asked[1] == []


def test_rows_that_are_built_are_followed_nowhere(
    strangers: dict[str, str], asked: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption = {"perspective": "short", "text": "a kitten", "source": "test"}
    for number, path in enumerate(strangers.values()):
        for column in ("image", "mask"):
            good = {"bytes": png(), "path": None}
            row = {"image_id": "k", "image": good, "mask": good, "captions": [caption]}
            rows = [{**row, column: {"bytes": None, "path": path}}]
            features, out = corpus_features(mask=ImageFeature()), tmp_path / f"{column}{number}"
            with pytest.raises(RefusedPathError, match="its path is"):
                build_corpus(out, {"all": lambda rows=rows: rows}, features, fingerprint="1")  # type: ignore[misc]
    assert asked[1] == []
    monkeypatch.setenv(ROOTS, str(tmp_path / "private"))
    rows = [{**row, "image": strangers["a file"]}]
    corpus = build_corpus(tmp_path / "yours", {"all": lambda: rows}, features, fingerprint="1")
    assert corpus.cast_column("image", ImageFeature(decode=False))[0]["image"]["bytes"] == png()


def test_a_folder_of_images_is_a_data_set_of_its_own_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        (tmp_path / "photos" / split / "a.png").write_bytes(png())
        (tmp_path / "photos" / split / "metadata.csv").write_text("file_name,text\na.png,a square\n")
    options = ["--output", str(tmp_path / "out"), "--no-report"]
    parse("corpus", ["dataset", str(tmp_path / "photos"), *options])()
    assert load_corpus(tmp_path / "out")["captions"][0][0]["text"] == "a square"


def test_what_is_yours_is_allowed_by_name(
    strangers: dict[str, str], asked: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = asked[0].rpartition("/")[0]
    monkeypatch.setenv(ROOTS, f"{tmp_path / 'private'};{address}")
    for name in ("an address", "a file", "a way out", "a link"):
        assert read_named(strangers[name]) == png(), name
    assert set(asked[1]) == {"/kitten.png"}
    away = [
        f"{address}.example.org/kitten.png",
        f"{address}/../kitten.png",
        f"{address}/kitten.png::file:///etc/hosts",
    ]
    for path in (*away, strangers["a chain"]):
        with pytest.raises(RefusedPathError):
            read_named(path)


def test_a_folder_is_allowed_for_the_processes_that_load_data(strangers: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):
        allow_folder(tmp_path / "private")
    assert os.environ[ROOTS] == str(tmp_path / "private")
    assert read_named(strangers["a file"]) == png()
    read = f"from holistic_clip_hf.images.files import read_named; print(len(read_named({strangers['a file']!r})))"
    told = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True).stdout
    assert int(told) == len(png())
    with pytest.raises(ValueError, match="without a semicolon"):
        allow_folder("a;b")


def test_the_caches_of_the_hub_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a data set of image files, the rows name files in the cache, which are links to its blobs."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "datasets--me--photos" / "snapshots" / "1"
    (snapshot.parents[1] / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs" / "abc").write_bytes(png())
    (snapshot / "a.png").symlink_to("../../blobs/abc")
    assert read_named(str(snapshot / "a.png")) == png()


def test_a_stream_of_image_files_is_read_below_an_allowed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png"}) + "\n")
    rows = undecoded(load_dataset("imagefolder", data_dir=str(tmp_path), split="train", streaming=True))
    monkeypatch.setenv(ROOTS, str(tmp_path))
    assert decode_image(next(iter(rows))["image"]).size == (16, 16)
