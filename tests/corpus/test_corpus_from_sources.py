"""Corpora from sources: rows, splits and shards, what is left out and why, and builds that are killed or run full."""

import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from holistic_clip_hf.corpus import build
from holistic_clip_hf.corpus.build import MANIFEST, count_perspectives, load_corpus, open_split, read_manifest
from holistic_clip_hf.corpus.card import CorpusFacts
from holistic_clip_hf.corpus.diversity import word_similarity
from holistic_clip_hf.corpus.from_sources import JoinedSource, SimilarCaptions, build_from_sources
from holistic_clip_hf.corpus.plan import BuildSettings
from holistic_clip_hf.images.decoding import ImageLimits
from holistic_clip_hf.images.folders import ImageFolder, ListedImages
from holistic_clip_hf.images.left_out import usable_captions
from holistic_clip_hf.images.sources import Item, Skipped

FACTS = CorpusFacts("Squares", license="cc0-1.0", languages=("en",), description="Drawn here.")
ALL_TRAIN = {"validation": 0.0, "test": 0.0}


def png(level: int, side: int = 16, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (level % 256, level // 256, 0)).save(file, "PNG", **options)
    return file.getvalue()


def caption(text: str, perspective: str = "short", source: str = "test") -> dict[str, str]:
    return {"perspective": perspective, "text": text, "source": source}


class Squares:
    """A source of squares; `changes` replaces items, `reading` replaces what reading some of them gives."""

    name = "squares"

    def __init__(self, count: int, changes: dict[int, Item | Skipped] | None = None, **reading: Any) -> None:
        self.count = count
        self.changes = changes or {}
        self.reading = reading

    def items(self) -> Iterator[Item | Skipped]:
        for number in range(self.count):
            item = Item(f"s{number}", str(number), "1", [caption(f"square {number}")])
            yield self.changes.get(number, item)

    def read(self, place: str) -> bytes:
        answer = self.reading.get(f"s{place}", None)
        if isinstance(answer, Exception):
            raise answer
        return png(int(place)) if answer is None else answer


def construct(directory: Path, *sources: Any, similar: SimilarCaptions | None = None, **settings: Any) -> Any:
    """Build without the report, and load."""
    chosen = BuildSettings(**{**ALL_TRAIN, **settings})
    build_from_sources(directory, sources, chosen, facts=FACTS, similar=similar, diversity=False)
    return load_corpus(directory)


def left_out(directory: Path) -> dict[str, str]:
    manifest = read_manifest(directory)
    listed = [*manifest["skipped"], *(item for shard in manifest["shards"].values() for item in shard["skipped"])]
    assert manifest["num_skipped"] == len(listed) == sum(manifest["reasons"].values())
    return {item["item"]: item["reason"] for item in listed}


def test_splits_follow_the_hash_and_every_reader_finds_them(tmp_path: Path) -> None:
    construct(tmp_path, Squares(80), validation=0.2, test=0.3)
    expected: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in (f"s{number}" for number in range(80)):
        share = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16
        expected["test" if share < 0.3 else "validation" if share >= 0.8 else "train"].append(name)
    assert min(map(len, expected.values())) > 8
    whole = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    streamed = load_dataset(str(tmp_path), streaming=True)
    for split, names in expected.items():
        assert whole[split]["image_id"] == names and set(whole[split]["split"]) == {split}
        row = next(iter(streamed[split]))
        assert (row["image_id"], row["captions"]) == (names[0], [caption(f"square {names[0][1:]}")])
        assert np.asarray(row["image"])[0, 0].tolist() == [int(names[0][1:]), 0, 0]
        assert open_split(tmp_path, split, split_column="split")["image_id"] == names
    assert read_manifest(tmp_path)["columns"]["split"] == {split: len(names) for split, names in expected.items()}


def test_an_image_stays_in_its_split(tmp_path: Path) -> None:
    few = construct(tmp_path / "few", Squares(40), validation=0.2, test=0.2)
    many = construct(tmp_path / "many", Squares(60), validation=0.4, test=0.2)
    before, after = (dict(zip(corpus["image_id"], corpus["split"], strict=True)) for corpus in (few, many))
    moved = {(before[name], after[name]) for name in before if before[name] != after[name]}
    assert moved == {("train", "validation")}, "more validation takes from training only"


def test_a_source_may_know_its_splits(tmp_path: Path) -> None:
    items = {number: Item(f"s{number}", str(number), "1", [caption("x")], split="test") for number in (1, 3)}
    assert construct(tmp_path, Squares(4, items))["split"] == ["train", "train", "test", "test"]
    wrong = {0: items[1]._replace(split="dev")}
    with pytest.raises(ValueError, match="'s1' says it is of split 'dev'; expected one of"):
        construct(tmp_path, Squares(1, wrong))


def test_shards_are_bounded_by_rows_and_by_bytes(tmp_path: Path) -> None:
    construct(tmp_path / "rows", Squares(5), rows_per_shard=2)
    shards = read_manifest(tmp_path / "rows")["shards"]
    assert {name: shard["rows"] for name, shard in shards.items()} == {
        "train-00000-of-00003": 2,
        "train-00001-of-00003": 2,
        "train-00002-of-00003": 1,
    }
    sized = {
        n: Item(f"s{n}", str(n), "1", [caption("x")], num_bytes=size) for n, size in enumerate((60, 30, 30, 200, 9))
    }
    construct(tmp_path / "bytes", Squares(5, sized), bytes_per_shard=100)
    assert [shard["rows"] for shard in read_manifest(tmp_path / "bytes")["shards"].values()] == [2, 1, 1, 1]


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "truncated.png": (png(1, side=200)[:-60], "does not decode"),
    "empty.jpg": (b"", "0 bytes"),
    "one.png": (png(1, side=1), "too small"),
    "page.png": (b"<html>", "no image"),
}


def test_bad_images_are_listed_and_the_others_are_rows(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("1", (30_000, 50)).save(images / "wide.png")
    Image.new("CMYK", (20, 20), (0, 255, 0, 0)).save(images / "print.jpg")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(images / "moving.gif", save_all=True, append_images=frames[1:])
    for name, (data, _) in BAD_FILES.items():
        (images / name).write_bytes(data)
    listed = ["wide.png", "print.jpg", "moving.gif", *BAD_FILES, "gone.png", "print.jpg"]
    lines = [json.dumps({"file_name": name, "text": name}) for name in listed]
    lines += [
        '{"file_name": "lone.png", "text": "half \\ud800"}',
        '{"file_name": "long.png", "text": "%s"}' % ("x" * 100_000),
    ]
    for name in ("lone.png", "long.png"):
        (images / name).write_bytes(png(7))
    (images / "metadata.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"file_name": "\xff"}')
    corpus = construct(tmp_path / "corpus", ListedImages(images / "metadata.jsonl", {"text": "web"}))
    assert corpus["image_id"] == ["print.jpg", "moving.gif"]
    assert [len(each) for each in corpus["captions"]] == [2, 1], "the second row of an image is its second caption"
    colours = [np.asarray(image.convert("RGB")).astype(int)[5, 5] for image in corpus["image"]]
    assert np.abs(colours[0] - [255, 0, 255]).max() < 4 and colours[1].tolist() == [255, 0, 0]
    found = left_out(tmp_path / "corpus")
    expected = {name: reason for name, (_, reason) in BAD_FILES.items()} | {
        "wide.png": "too many pixels: 30,000 x 50 pixels",
        "gone.png": "no such file",
        "lone.png, web": "caption is not UTF-8",
        "lone.png": "no caption",
        "long.png, web": "caption too long: 100,000 bytes",
        "long.png": "no caption",
        "metadata.jsonl:12": "not in UTF-8; name the encoding of the list, with `--encoding latin-1`",
    }
    assert found.keys() == expected.keys()
    assert {name: reason for name, reason in found.items() if not reason.startswith(expected[name])} == {}


def test_captions_are_chosen_checked_and_compared(tmp_path: Path) -> None:
    captions = [caption("a dog on grass"), caption("A dog, on grass!", "web"), caption(" ", "style")]
    captions += [caption("Grass.", "background"), caption("another", "short"), caption("other", "short", "else")]
    source = Squares(1, {0: Item("s0", "0", "1", captions)})
    similar = SimilarCaptions(0.9, word_similarity, "words")
    (row,) = construct(tmp_path, source, perspectives=("web", "short", "style"), similar=similar)
    assert row["captions"] == [caption("A dog, on grass!", "web"), caption("other", "short", "else")]
    found = left_out(tmp_path)
    assert found.pop("s0, style") == "caption is empty"
    reasons = read_manifest(tmp_path)["reasons"]
    assert reasons.pop("second caption of this perspective from one source") == 1
    assert reasons == {"caption is empty": 1, "caption says the same as another": 1}
    with pytest.raises(ValueError, match=r"\['detail'\], which no caption has; expected among background, short"):
        construct(tmp_path, source, perspectives=("detail",))


@pytest.mark.parametrize("text", ["nan", "NaN", "null", "<NA>"])
def test_a_missing_value_of_a_table_is_not_a_caption(tmp_path: Path, text: str) -> None:
    """As pandas reads a gap and writes it again. It is listed, and "nano" and "a naan" are captions."""
    (tmp_path / "photos").mkdir()
    table = [["file_name", "text", "style"], ["a.png", text, "nano"], ["b.png", "a naan", "drawn"]]
    table.append(["c.png", text, ""])
    for number, (name, *_) in enumerate(table[1:]):
        (tmp_path / "photos" / name).write_bytes(png(number))
    (tmp_path / "photos" / "metadata.csv").write_text("\n".join(map(",".join, table)))
    source = ListedImages(tmp_path / "photos" / "metadata.csv", {"text": "web", "style": "style"})
    corpus = construct(tmp_path / "corpus", source)
    assert [[each["text"] for each in row] for row in corpus["captions"]] == [["nano"], ["a naan", "drawn"]]
    reason = f"caption is a missing value of a table: {text}"
    assert left_out(tmp_path / "corpus") == {"a.png, web": reason, "c.png, web": reason, "c.png": "no caption"}
    faults: dict[str, str] = {}
    assert usable_captions("a", [{"perspective": "web", "text": text}], faults) == [] and "a, web" in faults


def test_nothing_to_build_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No image of squares has a caption; 2 left out: no caption. Give"):
        construct(tmp_path, Squares(2, {n: Item(f"s{n}", "0", "1") for n in range(2)}))
    with pytest.raises(ValueError, match="has a caption; it is empty"):
        construct(tmp_path, Squares(0))
    for wrong in ({"validation": 0.5, "test": 0.5}, {"test": -0.1}, {"rows_per_shard": 0}):
        with pytest.raises(ValueError, match="expected"):
            BuildSettings(**{**ALL_TRAIN, **wrong})


def test_a_corpus_in_which_no_image_is_readable_is_refused(tmp_path: Path) -> None:
    message = r"would have no rows; expected .* Left out are no image \(2\). Correct the source"
    with pytest.raises(ValueError, match=message):
        construct(tmp_path, Squares(2, s0=b"no image", s1=b"<html>"))
    assert not (tmp_path / MANIFEST).exists()
    assert construct(tmp_path, Squares(1))["image_id"] == ["s0"], "built again once an image is readable"


def test_captions_beyond_the_report_are_refused_before_the_work(tmp_path: Path) -> None:
    """Of an image with 70 captions of one perspective, each from a source of its own."""
    item = Item("s0", "0", "1", [caption(f"text {number}", source=f"s-{number}") for number in range(70)])
    settings = BuildSettings(**ALL_TRAIN)
    with pytest.raises(ValueError, match=r"70 pairs of perspective and source, .*'s-69'.* at most 64 .*`--no-report`"):
        build_from_sources(tmp_path, [Squares(1, {0: item})], settings, facts=FACTS)
    assert not list(tmp_path.rglob("*.parquet"))
    assert len(construct(tmp_path, Squares(1, {0: item}))["captions"][0]) == 70


def test_an_error_of_the_system_stops_the_build_one_of_the_source_does_not(tmp_path: Path) -> None:
    broken = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        construct(tmp_path, Squares(3, s1=broken))
    corpus = construct(tmp_path, Squares(4, s1=OSError("does not draw: no size"), s2=FileNotFoundError(2, "gone")))
    assert corpus["image_id"] == ["s0", "s3"]
    assert left_out(tmp_path) == {"s1": "does not draw: no size", "s2": "no such file"}


def test_long_lists_go_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MOST_LISTED", 2)
    changes: dict[int, Item | Skipped] = {0: Skipped("x", "no reason: 1"), 1: Skipped("y", "no reason: 2")}
    construct(tmp_path, Squares(3, changes))
    assert len(left_out(tmp_path)) == 2 and not (tmp_path / "skipped.jsonl").exists()
    construct(tmp_path, Squares(4, changes, s3=b"no image"))
    manifest = read_manifest(tmp_path)
    assert (manifest["num_skipped"], manifest["reasons"]) == (3, {"no reason": 2, "no image": 1})
    lines = (tmp_path / manifest["skipped_file"]).read_text().splitlines()
    assert [json.loads(line)["item"] for line in lines] == ["x", "y", "s3"] and "skipped" not in manifest
    construct(tmp_path, Squares(3, changes))
    assert not (tmp_path / "skipped.jsonl").exists()


def test_the_limits_of_images_are_settings(tmp_path: Path) -> None:
    corpus = construct(tmp_path, Squares(2, s0=png(0, side=17)), limits=ImageLimits(max_side=16))
    assert corpus["image_id"] == ["s1"] and left_out(tmp_path) == {"s0": "too many pixels: 17 x 17 pixels"}


def contents(directory: Path) -> dict[str, bytes]:
    names = [*directory.glob("data/*"), directory / MANIFEST, directory / "README.md"]
    return {path.name: path.read_bytes() for path in names}


def test_a_disk_that_runs_full_costs_one_shard(tmp_path: Path) -> None:
    """The second shard is written to /dev/full, which is what a full disk answers."""
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is on Linux only")
    construct(tmp_path / "undisturbed", Squares(6), rows_per_shard=2)
    full = tmp_path / "full"
    (full / "data").mkdir(parents=True)
    name = next((tmp_path / "undisturbed/data").glob("train-00001*")).name
    (full / "data" / f".{name}.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"The disk of .* is full while writing {name}. Free space") as caught:
        construct(full, Squares(6), rows_per_shard=2)
    assert caught.value.errno == errno.ENOSPC
    (first,) = (full / "data").iterdir()
    written_at = first.stat().st_mtime_ns
    construct(full, Squares(6), rows_per_shard=2)
    assert first.stat().st_mtime_ns == written_at and contents(full) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_builds_killed_at_random_moments_end_with_the_same_bytes(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(150):
        Image.effect_noise((100, 100), 50).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"noise {number}")
    (images / "7.png").write_bytes(b"no image")
    sources, settings = [ImageFolder(images)], BuildSettings(rows_per_shard=5, validation=0.2, test=0.2)
    options = {"facts": FACTS, "diversity": False}
    started = time.monotonic()
    build_from_sources(tmp_path / "undisturbed", sources, settings, **options)
    seconds = time.monotonic() - started
    killed, draw, shards = tmp_path / "killed", random.Random(0), []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([build_from_sources.__module__])  # imported once, not for every process
    for _ in range(20):
        process = context.Process(target=build_from_sources, args=(killed, sources, settings), kwargs=options)
        left_behind = set(killed.glob("data/.*.partial"))
        process.start()
        while process.is_alive() and left_behind >= set(killed.glob("data/.*.partial")):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, seconds / 3))
        process.kill()
        process.join()
        shards.append(len(list(killed.glob("data/*.parquet"))))
    assert len(set(shards)) > 3 and shards == sorted(shards), f"kills come amid the work, no shard is lost: {shards}"
    build_from_sources(killed, sources, settings, **options)
    assert contents(killed) == contents(tmp_path / "undisturbed")
    assert count_perspectives(load_corpus(killed)) == {"short": 149}
    assert sorted(path.name for path in killed.iterdir()) == [".lock", "README.md", MANIFEST, "data"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "output", "relation"),
    [("data", ".", "around the source"), ("data", "data", "the source itself"), ("data", "data/out", "inside the")],
)
def test_a_corpus_is_not_built_over_its_images(tmp_path: Path, source: str, output: str, relation: str) -> None:
    folder = tmp_path / "project" / source
    folder.mkdir(parents=True)
    (tmp_path / "project" / "README.md").write_text("mine")
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    (folder / "a.txt").write_text("a square")
    before = files_of(tmp_path)
    for images in (ImageFolder(folder), JoinedSource(ImageFolder(folder), list)):
        with pytest.raises(ValueError, match=f"`output` is .*, which is {relation}.*Name another folder"):
            build_from_sources(tmp_path / "project" / output, [images], facts=CorpusFacts("t"), diversity=False)
    assert files_of(tmp_path) == before
