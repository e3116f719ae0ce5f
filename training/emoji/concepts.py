# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Concepts that the emoji depict: Emojibase's list, and which drawing of an artist shows which of them."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_COMPONENT_GROUP = "component"  # skin tones and hair: parts of an emoji, not emoji


# Names by which an artist calls its drawings where neither the label nor another set helps. None: not to be used,
# because the drawing shows something else than its name says today.
_NAMES_BY_HAND: dict[str, dict[str, str | None]] = {
    "noto-v1": {"pistol": None},
    "emojione": {"pistol": None},
    "emojione-v1": {"pistol": None},
    "openmoji": {"scroll": None},
    "streamline-emojis": {"pistol": None, "turkey": None},
    "fxemoji": {
        "bow": None,
        "cat": "cat face",
        "catside": "cat",
        "couple": None,
        "dog": "dog face",
        "dogside": "dog",
        "down": None,
        "hand": "raised hand",
        "mouse": "mouse face",
        "personalcomputer": None,
        "pig": "pig face",
        "pistol": None,
        "pouting": "enraged face",
        "sunglasses": "smiling face with sunglasses",
        "tiger": "tiger face",
        "up": None,
        "wave": None,
        "whale": "spouting whale",
    },
}


@dataclass(frozen=True)
class Concept:
    """One thing an emoji can depict, drawn by several artists."""

    code_point: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def slug(self) -> str:
        """The label as a file-name-safe identifier, unique among the concepts."""
        return slugify(self.label)


def slugify(text: str) -> str:
    """Lower-case words joined by hyphens: `keycap: #` becomes `keycap-number-sign`."""
    spelled = text.lower().replace("#", " number sign").replace("*", " asterisk")
    return re.sub(r"[^\w]+", "-", re.sub("['’.]", "", spelled)).strip("-")


def normalize_code_point(code_point: str) -> str:
    """Return a code point in upper case, without the emoji-presentation selector, which the sets write or leave out as
    they please.
    """
    return re.sub(r"-?\bFE0F\b", "", code_point.upper())


def read_concepts(emojibase: Mapping[str, bytes]) -> dict[str, Concept]:
    """Return all concepts of Emojibase by normalised code point, from `en/data.json` and `meta/groups.json`."""
    groups = json.loads(emojibase["meta/groups.json"])
    concepts = {}
    for entry in json.loads(emojibase["en/data.json"]):
        group = groups["groups"].get(str(entry.get("group")), _COMPONENT_GROUP)
        if group != _COMPONENT_GROUP:
            code_point = normalize_code_point(entry["hexcode"])
            subgroup = groups["subgroups"][str(entry["subgroup"])]
            concepts[code_point] = Concept(code_point, entry["label"], tuple(entry.get("tags", ())), group, subgroup)
    return concepts


def read_unicode_names(emojibase: Mapping[str, bytes]) -> dict[str, str]:
    """Return the formal Unicode names by normalised code point, from `meta/unicode-names.json`."""
    names = json.loads(emojibase["meta/unicode-names.json"])
    return {normalize_code_point(code_point): name for code_point, name in names.items()}


def match_code_points(artist: str, characters: Mapping[str, str], concepts: Iterable[str]) -> dict[str, str]:
    """Map code point to drawing for a set that comes with its own map (`characters`: code point to drawing)."""
    known = set(concepts)
    refused = _NAMES_BY_HAND.get(artist, {})
    matched: dict[str, str] = {}
    for code_point, name in characters.items():
        if (normalized := normalize_code_point(code_point)) in known and name not in refused:
            matched.setdefault(normalized, name)
    return matched


def match_names(
    artist: str,
    names: Mapping[str, str],
    concepts: Mapping[str, Concept],
    vocabularies: Iterable[Mapping[str, set[str]]],
) -> dict[str, str]:
    """Map code point to drawing for a set known by names only (`names`: name to drawing).

    A vocabulary maps the key of a name (see `name_key`) to code points. The first vocabulary that knows a name
    decides; a name that it gives several code points is not used. Each drawing serves one concept, by its own name
    rather than by an alias.
    """
    vocabularies = list(vocabularies)
    labels = {concept.label: {code_point} for code_point, concept in concepts.items()}
    by_hand = _NAMES_BY_HAND.get(artist, {})
    candidates: list[tuple[int, bool, str, str]] = []
    for name in names:
        found = (0, labels.get(by_hand[name] or "", set())) if name in by_hand else _look_up(name, vocabularies)
        is_alias = names[name] != name
        candidates.extend((found[0], is_alias, name, code_point) for code_point in found[1] if len(found[1]) == 1)
    matched: dict[str, str] = {}
    for _, _, name, code_point in sorted(candidates):
        if code_point in concepts and code_point not in matched and names[name] not in matched.values():
            matched[code_point] = names[name]
    return matched


def _look_up(name: str, vocabularies: list[Mapping[str, set[str]]]) -> tuple[int, set[str]]:
    """Return the rank of the match and its code points; variants (`doughnut-1`) come after the name itself."""
    keys = dict.fromkeys((name_key(name), name_key(re.sub(r"-\d$", "", name))))
    attempts = [vocabulary.get(key) for key in keys for vocabulary in vocabularies]
    return next(((rank, found) for rank, found in enumerate(attempts) if found), (len(attempts), set()))


def name_key(name: str) -> str:
    """Return the letters and digits of a name: sets differ in hyphens, capitals and apostrophes."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("&", "and"))


def build_vocabulary(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Name key to code points, from (name, code point) pairs."""
    vocabulary: dict[str, set[str]] = defaultdict(set)
    for name, code_point in pairs:
        vocabulary[name_key(name)].add(normalize_code_point(code_point))
    return dict(vocabulary)


def read_shortcodes(emojibase: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Read (shortcode, code point) pairs from `en/shortcodes/emojibase.json`."""
    pairs: list[tuple[str, str]] = []
    for code_point, names in json.loads(emojibase["en/shortcodes/emojibase.json"]).items():
        pairs.extend((name, code_point) for name in ([names] if isinstance(names, str) else names))
    return pairs
