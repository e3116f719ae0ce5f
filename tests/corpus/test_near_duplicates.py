"""Near-duplicates of a corpus: found, listed, and, if that is wanted, never on both sides of a split."""

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from holistic_clip_hf.corpus import near_duplicates
from holistic_clip_hf.corpus.build import MANIFEST, NEAR_DUPLICATES, load_corpus, read_manifest
from holistic_clip_hf.corpus.card import CorpusFacts
from holistic_clip_hf.corpus.from_sources import build_from_sources
from holistic_clip_hf.corpus.near_duplicates import NearDuplicates, find_near_duplicates
from holistic_clip_hf.corpus.plan import BuildSettings, make_plan
from holistic_clip_hf.images.sources import Item

NUM_PICTURES = 30


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST)


def variant(number: int, kind: str) -> bytes:
    """Return a picture as it is, as a smaller JPEG of its mirror image, or half a file."""
    image, file = picture(number), io.BytesIO()
    if kind == "copy":
        ImageOps.mirror(image.resize((48, 48))).save(file, "JPEG", quality=80)
    else:
        image.save(file, "PNG")
    return file.getvalue()[: 40 if kind == "torn" else None]


class Pictures:
    """A source of pictures, each with a copy and a torn file; `splits` are those that it gives."""

    name = "pictures"

    def __init__(self, splits: dict[str, str] | None = None, stop_at: int = 10**9) -> None:
        self.splits, self.stop_at = splits or {}, stop_at
        self.read_so_far: list[str] = []

    def items(self) -> Iterator[Item]:
        caption = {"perspective": "short", "text": "a picture", "source": "test"}
        for kind in ("whole", "copy", "torn"):
            for number in range(NUM_PICTURES):
                name = f"{kind}-{number}"
                yield Item(name, name, "1", [caption], split=self.splits.get(name, ""))

    def read(self, place: str) -> bytes:
        if len(self.read_so_far) >= self.stop_at:
            raise KeyboardInterrupt
        self.read_so_far.append(place)
        kind, number = place.split("-")
        return variant(int(number), kind)


def construct(directory: Path, source: Pictures | None = None, near_duplicates: str = "report") -> dict[str, str]:
    """Build with half of the images to be tested on, and return the split of each row."""
    settings = BuildSettings(validation=0.2, test=0.3, near_duplicates=near_duplicates, rows_per_shard=7)
    build_from_sources(directory, [source or Pictures()], settings, facts=CorpusFacts("P"), diversity=False)
    rows = load_corpus(directory)
    return dict(zip(rows["image_id"], rows["split"], strict=True))


def listed(directory: Path) -> list[list[str]]:
    return json.loads((directory / NEAR_DUPLICATES).read_text())["groups"]


EXPECTED = [[f"whole-{number}", f"copy-{number}"] for number in range(NUM_PICTURES)]


def test_they_are_counted_listed_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        splits = construct(tmp_path / "corpus")
    assert listed(tmp_path / "corpus") == EXPECTED
    assert construct(tmp_path / "ignored", near_duplicates="ignore") == splits, "reporting moves nothing"
    assert not (tmp_path / "ignored" / NEAR_DUPLICATES).exists()
    leaks = {
        (here, there): sum(
            {splits[one], splits[other]} == {here, there} and 1 * (splits[one] == here) + (splits[other] == here) or 0
            for one, other in EXPECTED
        )
        for here, there in (("test", "train"), ("test", "validation"), ("validation", "train"), ("train", "test"))
    }
    assert min(leaks.values()) > 1
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert "60 images are one picture with others" in card and "30 groups of up to 2, each" in card
    for (here, there), count in leaks.items():
        assert f"| {here} | {there} | {count} |" in card
        told = f"{count} images of {here} are near-duplicates of images of {there}, listed in"
        assert (told in caplog.text) == ((here, there) != ("train", "test"))
    assert "They were not looked for." in (tmp_path / "ignored" / "README.md").read_text()
    assert not list((tmp_path / "corpus").glob("thumbnails-*"))


def test_grouped_they_share_a_split_and_others_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = construct(tmp_path / "reported")
    caplog.clear()
    after = construct(tmp_path / "grouped", near_duplicates="group")
    assert before.keys() == after.keys()
    for whole, copy in EXPECTED:
        chosen = min((whole, copy), key=lambda name: hashlib.sha256(f"near-duplicates {name}".encode()).digest()[:8])
        assert after[whole] == after[copy] == before[chosen]
    assert "near-duplicates" not in caplog.text
    assert "No group lies in two splits." in (tmp_path / "grouped" / "README.md").read_text()
    for name, record in read_manifest(tmp_path / "grouped")["shards"].items():
        assert record["rows"] <= 7 and set(record["columns"]["split"]) <= {name.split("-")[0]}


class MostlyOnePicture(Pictures):
    """The same source, but that most of its images are its first picture."""

    def read(self, place: str) -> bytes:
        kind, number = place.split("-")
        return variant(max(int(number) - 20, 0), kind)


def test_a_split_that_is_mostly_one_picture_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = construct(tmp_path, MostlyOnePicture(), near_duplicates="group")
    alike = {splits[f"{kind}-{number}"] for kind in ("whole", "copy") for number in range(21)}
    assert len(alike) == 1, "42 of 60 share a split"
    (split,) = alike
    rows = sum(found == split for found in splits.values())
    assert f"42 of the {rows} images of {split} are one chain of near-duplicates" in caplog.text
    assert caplog.text.count("one chain") == 1
    assert "10 groups of up to 42, each" in (tmp_path / "README.md").read_text()


def test_splits_that_a_source_gives_stay(tmp_path: Path) -> None:
    given = {"whole-0": "test", "copy-1": "train", "whole-2": "train", "copy-2": "test", "copy-3": "validation"}
    splits = construct(tmp_path, Pictures(given), near_duplicates="group")
    assert {name: splits[name] for name in given} == given
    assert (splits["copy-0"], splits["whole-1"], splits["whole-3"]) == ("test", "train", "validation")


def test_fingerprints_of_earlier_versions_hold(tmp_path: Path) -> None:
    settings = BuildSettings()
    told = asdict(settings)
    del told["near_duplicates"]
    digest = hashlib.sha256(json.dumps([1, told, ""]).encode())
    with make_plan([Pictures()], settings) as plan:
        for entry in plan.all_entries():
            captions = json.dumps(entry.captions)
            digest.update(json.dumps([entry.image_id, 0, entry.place, captions, entry.split, "1"]).encode())
        assert plan.fingerprint == digest.hexdigest()
    for treatment in ("ignore", "group"):
        with make_plan([Pictures()], BuildSettings(near_duplicates=treatment)) as plan:
            assert (plan.fingerprint == digest.hexdigest()) == (treatment == "ignore")
    with pytest.raises(ValueError, match="`near_duplicates` is 'drop'; expected one of group, report, ignore"):
        BuildSettings(near_duplicates="drop")


def test_a_whole_corpus_is_not_looked_through_again(tmp_path: Path) -> None:
    construct(tmp_path, near_duplicates="group")
    source = Pictures()
    construct(tmp_path, source, near_duplicates="group")
    assert source.read_so_far == []


def test_a_stopped_look_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_AT_ONCE", 10)
    with pytest.raises(KeyboardInterrupt):
        construct(tmp_path / "stopped", Pictures(stop_at=55), near_duplicates="group")
    kept = sorted((tmp_path / "stopped").glob("thumbnails-*.npy"))
    assert 2 <= len(kept) <= 5
    source = Pictures()
    construct(tmp_path / "stopped", source, near_duplicates="group")
    assert source.read_so_far[0] == f"copy-{10 * len(kept) - 30}", "what was seen is not read for a thumbnail again"
    construct(tmp_path / "whole", near_duplicates="group")
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file() and path.name not in (".lock", MANIFEST):
            assert path.read_bytes() == (tmp_path / "stopped" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_those_of_any_corpus_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    construct(tmp_path, near_duplicates="ignore")
    expected = {frozenset(group) for group in EXPECTED}
    assert {frozenset(group) for group in find_near_duplicates(tmp_path).groups} == expected
    assert {frozenset(group) for group in listed(tmp_path)} == expected
    assert not list(tmp_path.glob("thumbnails-*"))
    with monkeypatch.context() as patched:
        patched.setattr(near_duplicates, "load_corpus", None)  # nothing is read again
        assert {frozenset(group) for group in find_near_duplicates(tmp_path).groups} == expected
    changed = (tmp_path / NEAR_DUPLICATES).read_text().replace('"fingerprint": "', '"fingerprint": "0')
    (tmp_path / NEAR_DUPLICATES).write_text(changed.replace("whole-0", "another"))
    assert {frozenset(group) for group in find_near_duplicates(tmp_path).groups} == expected


def test_those_of_a_corpus_that_may_not_be_written_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    construct(tmp_path / "corpus", near_duplicates="ignore")
    before = sorted(path.name for path in (tmp_path / "corpus").iterdir())
    monkeypatch.setattr("os.access", lambda *_: False)
    assert len(find_near_duplicates(tmp_path / "corpus").groups) == NUM_PICTURES
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == before


def test_near_duplicates_of_some_images() -> None:
    found = NearDuplicates([["a", "b", "c"], ["d", "e"], ["f", "g"]])
    assert found.image_ids == set("abcdefg")
    assert found.beside(["a", "b", "d", "x"]) == {"c", "e"}
    assert found.among({"a": "train", "c": "test", "d": "test", "e": "test"}).leaks() == {
        ("test", "train"): 1,
        ("train", "test"): 1,
    }


def test_what_cannot_be_read_is_like_nothing(tmp_path: Path) -> None:
    """Neither like each other nor like what is black."""
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    given = [None, file.getvalue(), b"torn", None, file.getvalue()]
    groups = near_duplicates.group_images(tmp_path, "key", len(given), lambda start: iter(given[start:]), workers=1)
    assert [group.tolist() for group in groups] == [[1, 4]]
