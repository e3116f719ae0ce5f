# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""The emoji corpus: the same concepts drawn by many artists, each drawing with captions from several perspectives."""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, Value
from tqdm import tqdm

from holistic_clip_hf.corpus.build import build_corpus, corpus_features, is_whole
from holistic_clip_hf.images.decoding import open_image
from holistic_clip_hf.images.sources import Skipped
from training.emoji.captions import write_captions
from training.emoji.card import render_card
from training.emoji.concepts import (
    Concept,
    build_vocabulary,
    match_code_points,
    match_names,
    read_concepts,
    read_shortcodes,
    read_unicode_names,
)
from training.emoji.drawings import IconSet, draw
from training.emoji.glosses import WordNet
from training.emoji.packages import Package, cache_root, fetch, load_packages, read_members
from training.emoji.splits import name_family, split_by_artist, split_by_family

logger = logging.getLogger(__name__)


_EMOJIBASE_MEMBERS = (
    "en/data.json",
    "en/shortcodes/emojibase.json",
    "meta/groups.json",
    "meta/unicode-names.json",
)


_WORDNET_MEMBERS = ("dict/data.noun", "dict/index.noun")


_SETS_WITH_CHARACTERS = ("noto", "fluent-emoji-flat", "twemoji", "openmoji")


_SETS_WITH_OLD_NAMES = ("fxemoji",)  # older than today's labels: Unicode names and shortcodes are tried as well


_EXAMPLE = "1F98A"  # fox


_BYTES_PER_DRAWING_AT_96 = 12_000  # parquet and its memory-mapped copy


@dataclass(frozen=True)
class Sources:
    """All that the rows are made from, read."""

    concepts: Mapping[str, Concept]
    sets: Mapping[str, IconSet]
    drawings: Mapping[str, Mapping[str, str]]
    definitions: Mapping[str, str | None]

    def artists_of(self, code_point: str) -> list[str]:
        """Return the artists who draw this concept."""
        return [artist for artist, drawings in self.drawings.items() if code_point in drawings]


def build_emoji_corpus(cache_dir: Path | None = None, *, image_size: int = 96) -> Path:
    """Return the directory of the emoji corpus, built unless it is whole; read it with `load_corpus`.

    Downloads and the corpus lie under `cache_dir` (default: `$HOLISTIC_CLIP_CACHE`, or the user's cache).
    """
    root = Path(cache_dir) if cache_dir is not None else cache_root()
    artists, texts = load_packages()
    directory = root / "corpora" / f"emoji-{image_size}px"
    fingerprint = _fingerprint(artists | texts, image_size)
    if is_whole(directory, fingerprint):
        return directory
    sources = _read_sources(artists, texts, root / "packages")
    about = {
        "concepts": len(sources.concepts),
        "image_size": image_size,
        "packages": {name: asdict(package) for name, package in (artists | texts).items()},
        "example": _example(sources, image_size),
    }
    build_corpus(
        directory,
        {artist: partial(_draw_artist, sources, artist, image_size) for artist in sources.sets},
        _features(),
        fingerprint=fingerprint,
        about=about,
        card=render_card,
        counted=("artist_split", "family_split"),
        required_bytes=_BYTES_PER_DRAWING_AT_96 * len(artists) * len(sources.concepts) * image_size**2 // 96**2,
    )
    return directory


def _features() -> Features:
    columns = ("artist", "concept", "label", "group", "subgroup", "family", "artist_split", "family_split")
    return corpus_features(**{column: Value("string") for column in columns})


def _fingerprint(packages: Mapping[str, Package], image_size: int) -> str:
    """Return a hash of the pinned packages, this recipe's own source, the renderer and the size."""
    digest = hashlib.sha256(f"{image_size} {version('resvg_py')} ".encode())
    digest.update(" ".join(f"{name}:{package.sha512}" for name, package in packages.items()).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        if source.name != "packages.py":  # decides how packages are fetched; what is in them is in their checksums
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _read_sources(artists: dict[str, Package], texts: dict[str, Package], tarballs: Path) -> Sources:
    fetched = {name: fetch(package, tarballs) for name, package in tqdm((artists | texts).items(), desc="packages")}
    sets = {artist: _read_set(artist, package, fetched[artist]) for artist, package in artists.items()}
    concepts, drawings = _match(sets, read_members(fetched["emojibase"], _EMOJIBASE_MEMBERS))
    wordnet = WordNet.read(read_members(fetched["wordnet"], _WORDNET_MEMBERS))
    definitions = {code_point: wordnet.define(concept) for code_point, concept in concepts.items()}
    return Sources(concepts, sets, drawings, definitions)


def _read_set(artist: str, package: Package, tarball: Path) -> IconSet:
    characters = ["chars.json"] if artist in _SETS_WITH_CHARACTERS else []
    icons = IconSet.read(read_members(tarball, ["icons.json", "info.json", *characters]))
    if icons.license != package.license:
        raise ValueError(
            f"{package.package}@{package.version}: got the licence {icons.license!r}, expected {package.license!r} as "
            "pinned. Read the licence, then correct packages.json."
        )
    return icons


def _match(
    sets: Mapping[str, IconSet], emojibase: Mapping[str, bytes]
) -> tuple[dict[str, Concept], dict[str, dict[str, str]]]:
    """Return the concepts that every set with a character map draws, and each artist's drawings of them."""
    known = read_concepts(emojibase)
    by_code_point = {name: match_code_points(name, sets[name].characters, known) for name in _SETS_WITH_CHARACTERS}
    shared = set.intersection(*map(set, by_code_point.values()))
    concepts = {code_point: concept for code_point, concept in known.items() if code_point in shared}
    labels = build_vocabulary((concept.label, code_point) for code_point, concept in concepts.items())
    vocabularies = [labels, build_vocabulary(_names_with_code_points(sets))]
    formal_names = ((name, code_point) for code_point, name in read_unicode_names(emojibase).items())
    old_names = [build_vocabulary(formal_names), build_vocabulary(read_shortcodes(emojibase))]
    drawings = {}
    for artist, icons in sets.items():
        if artist in by_code_point:
            drawings[artist] = {code_point: by_code_point[artist][code_point] for code_point in concepts}
        else:
            looked_up_in = vocabularies + (old_names if artist in _SETS_WITH_OLD_NAMES else [])
            drawings[artist] = match_names(artist, icons.names(), concepts, looked_up_in)
    return concepts, drawings


def _names_with_code_points(sets: Mapping[str, IconSet]) -> Iterator[tuple[str, str]]:
    """Return (name, code point) of every drawing and alias in the sets that know the code points."""
    for artist in _SETS_WITH_CHARACTERS:
        code_points = {drawing: code_point for code_point, drawing in sets[artist].characters.items()}
        for name, drawing in sets[artist].names().items():
            if drawing in code_points:
                yield name, code_points[drawing]


def _draw_artist(sources: Sources, artist: str, image_size: int) -> Iterator[dict[str, Any] | Skipped]:
    for code_point, concept in tqdm(sources.concepts.items(), desc=f"drawing {artist}"):
        drawing = sources.drawings[artist].get(code_point)
        if drawing is None:
            yield Skipped(concept.slug, "not drawn by this artist")
            continue
        try:
            png = draw(sources.sets[artist].svg(drawing), image_size)
        except ValueError as error:
            yield Skipped(concept.slug, f"does not draw: {error}")
            continue
        yield _row(sources, artist, concept, png)


def _row(sources: Sources, artist: str, concept: Concept, png: bytes) -> dict[str, Any]:
    family = name_family(concept)
    image_id = f"{artist}/{concept.slug}"
    pixels = np.asarray(open_image(png).convert("RGBA"))
    return {
        "image_id": image_id,
        "image": {"bytes": png, "path": f"{image_id.replace('/', '-')}.png"},
        "captions": write_captions(concept, pixels, sources.definitions[concept.code_point]),
        "artist": artist,
        "concept": concept.slug,
        "label": concept.label,
        "group": concept.group,
        "subgroup": concept.subgroup,
        "family": family,
        "artist_split": split_by_artist(concept.slug, artist, sources.artists_of(concept.code_point)),
        "family_split": split_by_family(family),
    }


def _example(sources: Sources, image_size: int) -> dict[str, str]:
    """Return the captions of one drawing, for the card."""
    artist = next(iter(sources.sets))
    png = draw(sources.sets[artist].svg(sources.drawings[artist][_EXAMPLE]), image_size)
    captions = _row(sources, artist, sources.concepts[_EXAMPLE], png)["captions"]
    return {caption["perspective"]: caption["text"] for caption in captions}
