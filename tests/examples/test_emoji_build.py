"""The emoji corpus from end to end, on packages of four concepts made here; nothing is fetched."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_emoji_packages import write_tarball
from test_emoji_texts import DATA, INDEX

from holistic_clip_hf.corpus.build import load_corpus, read_manifest
from training.drawing import build_on_all_cores
from training.emoji import build
from training.emoji.build import build_emoji_corpus
from training.emoji.packages import Package

EMOJI = {"1F98A": "fox", "1F987": "bat", "1F3C3": "person running", "1F534": "red circle", "1F9FF": "nazar amulet"}
COLOURS = {"noto": "#00f", "fluent-emoji-flat": "#0a0", "twemoji": "#ff0", "openmoji": "#fff", "fxemoji": "#f00"}


def emojibase() -> dict[str, Any]:
    data = [
        {"label": label, "hexcode": code, "tags": ["thing", label], "group": 3, "subgroup": 34}
        for code, label in EMOJI.items()
    ]
    groups = {"groups": {"3": "animals-nature"}, "subgroups": {"34": "animal-mammal"}}
    names = {"1F98A": "FOX FACE", "1F534": "LARGE RED CIRCLE"}
    return {
        "en/data.json": data,
        "meta/groups.json": groups,
        "meta/unicode-names.json": names,
        "en/shortcodes/emojibase.json": {},
    }


def icons(artist: str) -> dict[str, Any]:
    """Every artist draws squares of one colour; fxemoji goes by old names, and its fox is blank."""
    body = f'<rect width="16" height="16" fill="{COLOURS[artist]}"/>'
    drawings = {label.replace(" ", "-"): {"body": body} for label in EMOJI.values()}
    if artist == "openmoji":
        del drawings["nazar-amulet"]
    characters = {code.lower() + "-fe0f": label.replace(" ", "-") for code, label in EMOJI.items()}
    if artist == "fxemoji":
        drawings = {"largeredcircle": {"body": body}, "fox": {"body": ""}, "unknown": {"body": body}}
    characters = {code: name for code, name in characters.items() if name in drawings}
    info = {"license": {"spdx": "MIT"}}
    return {"icons.json": {"icons": drawings}, "info.json": info, "chars.json": characters}


def pack(directory: Path, name: str, members: dict[str, bytes]) -> Package:
    package = Package(
        name, "1.0.0", "", name.title(), "Someone", "https://example.org", "MIT", "https://example.org/l"
    )
    sha512 = write_tarball(
        directory / package.tarball_name, {f"package/{key}": value for key, value in members.items()}
    )
    return Package(**{**package.__dict__, "sha512": sha512})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds all tarballs, with pins that fit them, and no npm to fetch others."""
    tarballs = tmp_path / "packages"
    tarballs.mkdir()

    def encode(members: dict[str, Any]) -> dict[str, bytes]:
        return {name: json.dumps(value).encode() for name, value in members.items()}

    artists = {artist: pack(tarballs, artist, encode(icons(artist))) for artist in COLOURS}
    wordnet = pack(tarballs, "wordnet", {"dict/data.noun": DATA.encode(), "dict/index.noun": INDEX.encode()})
    texts = {"emojibase": pack(tarballs, "emojibase", encode(emojibase())), "wordnet": wordnet}
    monkeypatch.setattr(build, "load_packages", lambda: (artists, texts))
    monkeypatch.setenv("PATH", "")
    return tmp_path


def test_rows_of_every_artist(cache: Path) -> None:
    corpus = load_corpus(build_emoji_corpus(cache, image_size=16))
    assert len(corpus) == 4 * 4 + 1  # the amulet is not a concept, because openmoji lacks it; fxemoji draws the circle
    rows = {row["image_id"]: row for row in corpus}
    fox = rows["noto/fox"]
    assert (np.asarray(fox["image"]) == [0, 0, 255, 255]).all() and fox["image"].size == (16, 16)
    assert {caption["perspective"]: caption["text"] for caption in fox["captions"]} == {
        "short": "fox",
        "nouns": "thing",
        "category": "mammals, from animals and nature",
        "palette": "all blue",
        "gloss": "alert mammal with a bushy tail",
    }
    assert {key: fox[key] for key in ("artist", "concept", "label", "group", "subgroup", "family")} == {
        "artist": "noto",
        "concept": "fox",
        "label": "fox",
        "group": "animals-nature",
        "subgroup": "animal-mammal",
        "family": "fox",
    }
    assert rows["fxemoji/red-circle"]["family"] == "circle"


def test_the_palette_differs_by_artist_and_the_other_texts_do_not(cache: Path) -> None:
    corpus = load_corpus(build_emoji_corpus(cache, image_size=16))
    bats = [row for row in corpus.remove_columns("image") if row["concept"] == "bat"]
    said = [{caption["perspective"]: caption["text"] for caption in row["captions"]} for row in bats]
    assert {texts.pop("palette") for texts in said} == {"all blue", "all green", "all yellow", "all white"}
    assert all(texts == said[0] for texts in said)


def test_splits_hold_for_the_whole_corpus(cache: Path) -> None:
    corpus = load_corpus(build_emoji_corpus(cache, image_size=16)).remove_columns("image")
    for row in corpus:
        assert (row["artist_split"] == "test") == (row["artist"] == "openmoji")
    for family in set(corpus["family"]):
        assert len({row["family_split"] for row in corpus if row["family"] == family}) == 1
    for concept in set(corpus["concept"]):
        assert "train" in {row["artist_split"] for row in corpus if row["concept"] == concept}


def test_what_is_missing_or_blank_is_listed(cache: Path) -> None:
    manifest = read_manifest(build_emoji_corpus(cache, image_size=16))
    skipped = {item["item"]: item["reason"] for item in manifest["shards"]["fxemoji"]["skipped"]}
    assert skipped == {
        "fox": "does not draw: draws nothing",
        "bat": "not drawn by this artist",
        "person-running": "not drawn by this artist",
    }
    assert not manifest["shards"]["noto"]["skipped"]
    assert manifest["about"]["concepts"] == 4


def test_the_card_has_the_real_counts_and_licences(cache: Path) -> None:
    card = (build_emoji_corpus(cache, image_size=16) / "README.md").read_text()
    assert "17 drawings of 4 concepts by 5 artists" in card
    assert "| [Fxemoji](https://example.org) | 1 | Someone | `fxemoji@1.0.0` | [MIT](https://example.org/l) |" in card
    assert "| short | 17 | the name of what is drawn | fox |" in card
    assert "| fxemoji | 2 | not drawn by this artist |" in card


def digests(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_second_build_reads_nothing_and_a_fresh_one_is_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = build_emoji_corpus(cache, image_size=16)
    before = digests(directory)
    (directory / "corpus.json").unlink()
    for shard in (directory / "data").iterdir():
        shard.unlink()
    assert digests(build_emoji_corpus(cache, image_size=16)) == before

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a whole corpus was read again")

    monkeypatch.setattr(build, "_read_sources", refuse)
    assert build_emoji_corpus(cache, image_size=16) == directory


def test_a_changed_licence_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artists, texts = build.load_packages()
    artists["noto"] = Package(**{**artists["noto"].__dict__, "license": "Apache-2.0"})
    monkeypatch.setattr(build, "load_packages", lambda: (artists, texts))
    with pytest.raises(ValueError, match="noto@1.0.0: got the licence 'MIT', expected 'Apache-2.0'"):
        build_emoji_corpus(cache, image_size=16)


@pytest.mark.slow
def test_one_process_and_two_draw_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    def contents(directory: Path) -> dict[str, bytes]:
        return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}

    one = contents(build_on_all_cores(cache, image_size=16, workers=1))
    assert one == contents(build_emoji_corpus(cache, image_size=16)) and len(one) > len(COLOURS)
    (cache / "corpora").rename(tmp_path / "drawn")
    finished: list[str] = []
    with pytest.MonkeyPatch.context() as patch:  # whoever finishes finds all drawings
        patch.setattr(build, "_draw_artist", lambda sources, artist, size: finished.append(artist))
        assert contents(build_on_all_cores(cache, image_size=16, workers=2)) == one
    assert not finished
