# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Dictionary definitions: the WordNet noun sense that agrees with the kind of thing the emoji shows, or none."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from training.emoji.concepts import Concept

# Subgroup to words of which the sense, or something that it is a kind of, must have one. Subgroups that are not listed
# (faces, gestures, most symbols) have labels that WordNet does not define as pictured. Precision before coverage.
_KINDS = {
    "animal-mammal": "mammal",
    "monkey-face": "mammal",
    "animal-bird": "bird",
    "animal-amphibian": "amphibian",
    "animal-reptile": "reptile mythical_monster",
    "animal-marine": "fish aquatic_mammal mollusk crustacean invertebrate seal shell",
    "animal-bug": "arthropod invertebrate web",
    "plant-flower": "flower angiosperm bouquet arrangement",
    "plant-other": "plant leaf plant_organ fungus nest",
    "food-fruit": "edible_fruit solanaceous_vegetable drupe relish",
    "food-vegetable": "vegetable edible_nut edible_fruit herb root fungus food",
    "food-prepared": "food foodstuff",
    "food-asian": "food foodstuff",
    "food-sweet": "food foodstuff",
    "drink": "beverage vessel",
    "dishware": "tableware kitchen_utensil vessel",
    "place-geographic": "geological_formation land natural_elevation tract",
    "place-building": "structure building",
    "place-religious": "structure building",
    "place-other": "structure ride",
    "transport-ground": "vehicle conveyance roller_skate skateboard way signal",
    "transport-water": "vessel craft anchor buoy",
    "transport-air": "craft vehicle satellite seat parachute",
    "hotel": "baggage",
    "time": "timepiece clock",
    "sky-weather": "celestial_body star weather atmospheric_phenomenon canopy precipitation ice fire",
    "event": "decoration lantern box paper explosive tree",
    "award-medal": "award",
    "sport": "ball game_equipment sports_equipment equipment clothing skate",
    "game": "game_equipment plaything playing_card puzzle device",
    "arts-crafts": "thread tool knot needle",
    "clothing": "clothing garment footwear headdress jewelry bag optical_instrument cosmetic fastener",
    "sound": "device",
    "musical-instrument": "musical_instrument",
    "phone": "electronic_equipment device telephone",
    "computer": "computer peripheral device memory_device electronic_device",
    "light-video": "device equipment lamp light",
    "book-paper": "publication product book sheet",
    "writing": "writing_implement",
    "office": "device case instrument receptacle",
    "lock": "lock device fastener",
    "tool": "tool weapon device implement",
    "science": "instrument scientific_instrument apparatus laboratory_ware",
    "medical": "device medicine instrument support",
    "household": "furniture device fixture implement container structure",
    "body-parts": "body_part organ",
    "person-fantasy": "imaginary_being spiritual_being",
    "person-role": "person worker",
    "zodiac": "sign_of_the_zodiac",
}


# Labels whose first sense of the right kind is not what is drawn: the kind that is, or none.
_KINDS_BY_HAND = {
    "black cat": "",
    "chains": "ligament",
    "coconut": "edible_nut",
    "desert": "tract",
    "dolphin": "toothed_whale",
    "dragon": "mythical_monster",
    "dragon face": "mythical_monster",
    "hammer": "hand_tool",
    "hedgehog": "insectivore",
    "hook": "mechanical_device",
    "hut": "",
    "lollipop": "candy",
    "lotus": "water_lily",
    "peanuts": "edible_nut",
    "phoenix": "mythical_being",
    "pick": "edge_tool",
    "shield": "armor",
    "soft ice cream": "",
    "star": "plane_figure",
    "toilet": "plumbing_fixture",
    "tram": "self-propelled_vehicle",
    "unicorn": "imaginary_being",
    "wheel": "machine",
    "wind face": "",
}


# Lexicographer files (https://wordnet.princeton.edu/documentation/lexnames5wn) in which a picturable sense can stand.
_LEXICOGRAPHER_FILES = {
    "animal": 5, "artifact": 6, "body": 8, "cognition": 9, "food": 13, "location": 15,
    "object": 17, "person": 18, "phenomenon": 19, "plant": 20,
}  # fmt: skip


_FILES_OF_KIND = {
    "animal": ("animal",),
    "monkey": ("animal",),
    "plant": ("plant", "object"),
    "food": ("food", "plant"),
    "drink": ("food", "artifact"),
    "body": ("body",),
    "place": ("artifact", "object"),
    "sky": ("object", "phenomenon"),
    "person": ("person", "cognition"),
    "zodiac": ("location",),
}


@dataclass(frozen=True)
class Sense:
    """One noun synset: what it is called, what it is a kind of, and its definition."""

    lexicographer_file: int
    words: tuple[str, ...]
    hypernyms: tuple[str, ...]
    definition: str


@dataclass(frozen=True)
class WordNet:
    """WordNet's nouns."""

    senses: Mapping[str, Sense]
    index: Mapping[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def read(cls, members: Mapping[str, bytes]) -> "WordNet":
        """Read `dict/data.noun` and `dict/index.noun` (https://wordnet.princeton.edu/documentation/wndb5wn)."""
        senses = dict(map(_parse_sense, _records(members["dict/data.noun"])))
        index = {}
        for line in _records(members["dict/index.noun"]):
            lemma, _, count, *_ = fields = line.split()
            index[lemma] = tuple(fields[len(fields) - int(count) :])
        return cls(senses, index)

    def define(self, concept: Concept) -> str | None:
        """Return the definition of the most frequent sense of the label that is of the concept's kind."""
        by_hand = _KINDS_BY_HAND.get(concept.label)
        kinds = set((_KINDS.get(concept.subgroup, "") if by_hand is None else by_hand).split())
        kind_of_file = _FILES_OF_KIND.get(concept.subgroup.split("-")[0], ("artifact",))
        files = {_LEXICOGRAPHER_FILES[name] for name in kind_of_file}
        for lemma in _lemmas(concept):
            for offset in self.index.get(lemma, ()):
                of_right_file = by_hand is not None or self.senses[offset].lexicographer_file in files
                if of_right_file and kinds & self._kinds_of(offset):
                    return self.senses[offset].definition
        return None

    def _kinds_of(self, offset: str) -> set[str]:
        """Return the words of the sense and of all that it is a kind of."""
        words: set[str] = set()
        pending, seen = [offset], set()
        while pending:
            current = pending.pop()
            if current not in seen:
                seen.add(current)
                words.update(word.lower() for word in self.senses[current].words)
                pending.extend(self.senses[current].hypernyms)
        return words


def _records(data: bytes) -> Iterable[str]:
    """Return the lines after the licence, which is indented."""
    return (line for line in data.decode().split("\n") if line and not line.startswith(" "))


def _parse_sense(line: str) -> tuple[str, Sense]:
    record, _, gloss = line.partition(" | ")
    offset, file_number, _, word_count, *fields = record.split()
    after_words = 2 * int(word_count, 16)
    pointers = fields[after_words + 1 :]
    hypernyms = tuple(pointers[i + 1] for i in range(0, 4 * int(fields[after_words]), 4) if pointers[i] in ("@", "@i"))
    definition = re.split(r'[;:]\s*"', gloss)[0].strip().rstrip(";:")
    return offset, Sense(int(file_number), tuple(fields[:after_words:2]), hypernyms, definition)


def _lemmas(concept: Concept) -> Iterator[str]:
    """Yield the label as WordNet would list it: as it stands, without ` face`, and in the singular."""
    label = concept.label.lower().replace("’", "'")
    for form in dict.fromkeys((label, label.removesuffix(" face"))):
        lemma = form.replace(" ", "_")
        yield lemma
        yield lemma.replace("_", "-")
        if lemma.endswith("s") and not lemma.endswith("ss"):
            yield lemma[:-1]
