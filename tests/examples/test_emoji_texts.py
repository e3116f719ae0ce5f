"""Concepts, their drawings by name, captions and definitions, from a hand-written Emojibase and WordNet."""

import json

import numpy as np
import pytest

from training.emoji.captions import PERSPECTIVES, write_captions
from training.emoji.concepts import (
    Concept,
    build_vocabulary,
    match_code_points,
    match_names,
    normalize_code_point,
    read_concepts,
    read_shortcodes,
    slugify,
)
from training.emoji.glosses import WordNet

RED = np.full((4, 4, 4), [255, 0, 0, 255], dtype=np.uint8)


def concept(
    label: str, subgroup: str, group: str = "objects", tags: tuple[str, ...] = (), code: str = "1F600"
) -> Concept:
    return Concept(code, label, tags, group, subgroup)


def by_code(*concepts: Concept) -> dict[str, Concept]:
    return {one.code_point: one for one in concepts}


@pytest.mark.parametrize(
    ("given", "normal"),
    [("2764-FE0F", "2764"), ("1f3f3-fe0f-200d-1f308", "1F3F3-200D-1F308"), ("0023-FE0F-20E3", "0023-20E3")],
)
def test_code_points_lose_the_presentation_selector(given: str, normal: str) -> None:
    assert normalize_code_point(given) == normal


@pytest.mark.parametrize(
    ("label", "slug"),
    [
        ("grinning face", "grinning-face"),
        ("keycap: #", "keycap-number-sign"),
        ("keycap: *", "keycap-asterisk"),
        ("woman’s boot", "womans-boot"),
        ("A button (blood type)", "a-button-blood-type"),
        ("Mrs. Claus", "mrs-claus"),
    ],
)
def test_slugs(label: str, slug: str) -> None:
    assert slugify(label) == slug


def test_concepts_are_emoji_and_not_their_components() -> None:
    data = [
        {"label": "fox", "hexcode": "1F98A", "tags": ["animal"], "group": 3, "subgroup": 34},
        {"label": "light skin tone", "hexcode": "1F3FB", "group": 2, "subgroup": 32},
        {"label": "regional indicator A", "hexcode": "1F1E6"},
    ]
    groups = {
        "groups": {"2": "component", "3": "animals-nature"},
        "subgroups": {"32": "skin-tone", "34": "animal-mammal"},
    }
    read = read_concepts({"en/data.json": json.dumps(data).encode(), "meta/groups.json": json.dumps(groups).encode()})
    assert read == {"1F98A": Concept("1F98A", "fox", ("animal",), "animals-nature", "animal-mammal")}


def test_shortcodes_may_be_one_or_several() -> None:
    raw = json.dumps({"1F98A": ["fox", "fox_face"], "1F431": "cat_face"}).encode()
    pairs = [("fox", "1F98A"), ("fox_face", "1F98A"), ("cat_face", "1F431")]
    assert read_shortcodes({"en/shortcodes/emojibase.json": raw}) == pairs


def test_code_points_are_matched_with_and_without_selector_and_refused_by_hand() -> None:
    characters = {"2764-fe0f": "red-heart", "1f98a": "fox", "e000": "extra", "1f4dc": "scroll"}
    known = ["2764", "1F98A", "1F4DC"]
    assert match_code_points("noto", characters, known) == {"2764": "red-heart", "1F98A": "fox", "1F4DC": "scroll"}
    assert match_code_points("openmoji", characters, known) == {"2764": "red-heart", "1F98A": "fox"}


FOX = concept("fox", "animal-mammal", code="F0")
CRICKET = concept("cricket", "animal-bug", code="C0")
CRICKET_GAME = concept("cricket game", "sport", code="C1")
FACE = concept("cat face", "animal-mammal", code="CA")
LABELS = build_vocabulary((one.label, one.code_point) for one in (FOX, CRICKET, CRICKET_GAME, FACE))


def matched(names: dict[str, str], artist: str = "noto-v1", **more: set[str]) -> dict[str, str]:
    return match_names(artist, names, by_code(FOX, CRICKET, CRICKET_GAME, FACE), [LABELS, more])


def test_names_are_looked_up_whatever_their_spelling() -> None:
    assert matched({"Fox": "Fox", "catface": "catface"}) == {"F0": "Fox", "CA": "catface"}


def test_a_drawing_is_matched_by_its_own_name_before_an_alias_and_once() -> None:
    assert matched({"cricket-game": "cricket-game", "cricket": "cricket-game"}) == {"C1": "cricket-game"}


def test_the_first_vocabulary_decides_and_ambiguous_names_are_left() -> None:
    assert matched({"vixen": "vixen", "fox": "fox"}, vixen={"F0"}) == {"F0": "fox"}
    assert matched({"vixen": "vixen"}, vixen={"F0"}) == {"F0": "vixen"}
    assert matched({"vixen": "vixen"}, vixen={"F0", "C0"}) == {}


def test_of_numbered_variants_the_first_is_taken_after_the_plain_name() -> None:
    assert matched({"fox-2": "fox-2", "fox-1": "fox-1"}) == {"F0": "fox-1"}
    assert matched({"fox-1": "fox-1", "fox": "fox"}) == {"F0": "fox"}


def test_some_names_are_matched_by_hand() -> None:
    assert matched({"cat": "cat", "pistol": "pistol"}, "fxemoji", pistol={"F0"}) == {"CA": "cat"}


def texts(one: Concept, gloss: str | None = None) -> dict[str, str]:
    return {caption["perspective"]: caption["text"] for caption in write_captions(one, RED, gloss)}


def test_captions_of_every_perspective_with_their_sources() -> None:
    fox = concept("fox", "animal-mammal", "animals-nature", tags=("animal", "Fox", "face", "animal"))
    assert write_captions(fox, RED, "a sly animal") == [
        {"perspective": "short", "text": "fox", "source": "emojibase"},
        {"perspective": "nouns", "text": "animal, face", "source": "emojibase"},
        {"perspective": "category", "text": "mammals, from animals and nature", "source": "emojibase"},
        {"perspective": "palette", "text": "all red", "source": "pixels"},
        {"perspective": "gloss", "text": "a sly animal", "source": "wordnet"},
    ]
    assert set(texts(fox, "a sly animal")) == set(PERSPECTIVES)


def test_what_is_not_known_is_absent() -> None:
    assert set(texts(concept("fox", "animal-mammal", "animals-nature", tags=("FOX",)))) == {
        "short",
        "category",
        "palette",
    }


@pytest.mark.parametrize(
    ("subgroup", "group", "category"),
    [
        ("face-smiling", "smileys-emotion", "faces, smiling, from smileys and emotion"),
        ("face-neutral-skeptical", "smileys-emotion", "faces, neutral or skeptical, from smileys and emotion"),
        ("food-fruit", "food-drink", "fruit, from food and drink"),
        ("dishware", "food-drink", "dishware, from food and drink"),
    ],
)
def test_categories_are_readable(subgroup: str, group: str, category: str) -> None:
    assert texts(concept("thing", subgroup, group))["category"] == category


# offset, lexicographer file, type, word count, (word, id)..., pointer count, (symbol, offset, type, 0000)... | gloss
DATA = """\
  1 This is the licence
00000001 03 n 01 entity 0 000 | that which exists
00000010 05 n 01 mammal 0 001 @ 00000001 n 0000 | warm-blooded animal
00000020 18 n 01 trickster 0 001 @ 00000001 n 0000 | a sly person; "he is a fox"
00000030 05 n 02 fox 0 red_fox 0 001 @ 00000010 n 0000 | alert mammal with a bushy tail; "the fox ran"; "foxes"
00000040 06 n 01 bat 1 001 @ 00000001 n 0000 | a club used for hitting a ball
00000050 05 n 01 bat 0 002 + 00000040 n 0000 @ 00000010 n 0000 | nocturnal mammal that flies: "a bat"
"""
INDEX = """\
  1 This is the licence
bat n 2 2 @ + 2 1 00000040 00000050
fox n 2 1 @ 2 1 00000020 00000030
trickster n 1 1 @ 1 0 00000020
"""


@pytest.mark.parametrize(
    ("label", "subgroup", "gloss"),
    [
        ("fox", "animal-mammal", "alert mammal with a bushy tail"),
        ("Fox face", "animal-mammal", "alert mammal with a bushy tail"),
        ("foxs", "animal-mammal", "alert mammal with a bushy tail"),
        ("bat", "animal-mammal", "nocturnal mammal that flies"),
        ("fox", "animal-bird", None),
        ("fox", "face-smiling", None),
        ("badger", "animal-mammal", None),
        ("trickster", "animal-mammal", None),
    ],
)
def test_a_definition_is_of_the_kind_that_is_drawn_or_absent(label: str, subgroup: str, gloss: str | None) -> None:
    wordnet = WordNet.read({"dict/data.noun": DATA.encode(), "dict/index.noun": INDEX.encode()})
    assert wordnet.define(concept(label, subgroup)) == gloss


def test_a_line_separator_of_unicode_ends_no_record_of_wordnet() -> None:
    data = DATA.replace("bushy tail", "bushy\u2028tail")
    wordnet = WordNet.read({"dict/data.noun": data.encode(), "dict/index.noun": INDEX.encode()})
    assert wordnet.define(concept("fox", "animal-mammal")) == "alert mammal with a bushy\u2028tail"
