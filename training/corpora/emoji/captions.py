"""The captions of a drawing: five perspectives of different granularity, some of them absent for some drawings."""

from collections.abc import Iterator

import numpy as np

from .concepts import Concept
from .palette import describe_palette

PERSPECTIVES = {
    "short": "the name of what is drawn",
    "nouns": "words that go with it, separated by commas",
    "category": "the kind of thing it is, and the larger group",
    "palette": "the colours of this very drawing, measured from its pixels",
    "gloss": "a dictionary definition; absent where no sense is certain",
}

_GROUPS = {
    "smileys-emotion": "smileys and emotion",
    "people-body": "people and body",
    "animals-nature": "animals and nature",
    "food-drink": "food and drink",
    "travel-places": "travel and places",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
    "flags": "flags",
}
# Emojibase writes some subgroups as head-first keys; those that read badly are spelled out.
_SUBGROUPS = {
    "cat-face": "cat faces",
    "monkey-face": "monkey faces",
    "heart": "hearts",
    "emotion": "signs of emotion",
    "hand-fingers-open": "hands with open fingers",
    "hand-fingers-partial": "hands with some fingers",
    "hand-single-finger": "hands with a single finger",
    "hand-fingers-closed": "hands with closed fingers",
    "hand-prop": "hands holding something",
    "hands": "pairs of hands",
    "person": "persons",
    "person-gesture": "persons making a gesture",
    "person-role": "persons with a role or job",
    "person-fantasy": "fantasy persons",
    "person-activity": "persons doing something",
    "person-sport": "persons doing sport",
    "person-resting": "persons at rest",
    "person-symbol": "person symbols",
    "family": "families and couples",
    "animal-mammal": "mammals",
    "animal-bird": "birds",
    "animal-amphibian": "amphibians",
    "animal-reptile": "reptiles",
    "animal-marine": "sea animals",
    "animal-bug": "bugs",
    "plant-flower": "flowers",
    "plant-other": "plants",
    "food-fruit": "fruit",
    "food-vegetable": "vegetables",
    "food-prepared": "prepared food",
    "food-asian": "Asian food",
    "food-sweet": "sweets",
    "drink": "drinks",
    "place-map": "maps",
    "place-geographic": "landscapes",
    "place-building": "buildings",
    "place-religious": "religious places",
    "place-other": "other places",
    "transport-ground": "transport on the ground",
    "transport-water": "transport on the water",
    "transport-air": "transport in the air",
    "sky-weather": "sky and weather",
    "event": "festive events",
    "award-medal": "awards and medals",
    "arts-crafts": "arts and crafts",
    "musical-instrument": "musical instruments",
    "light-video": "light and video",
    "book-paper": "books and paper",
    "tool": "tools",
    "other-object": "other objects",
    "transport-sign": "transport signs",
    "warning": "warning signs",
    "arrow": "arrows",
    "av-symbol": "audio and video symbols",
    "other-symbol": "other symbols",
    "keycap": "keycaps",
    "alphanum": "letter and number signs",
    "geometric": "geometric shapes",
    "phone": "phones",
    "computer": "computers",
    "lock": "locks and keys",
    "game": "games",
}


def write_captions(concept: Concept, pixels: np.ndarray, gloss: str | None) -> list[dict[str, str]]:
    """The captions of one drawing, given its RGBA pixels (height, width, 4) and the definition, if one is certain."""
    texts = {
        "short": (concept.label, "emojibase"),
        "nouns": (", ".join(_nouns(concept)), "emojibase"),
        "category": (_category(concept), "emojibase"),
        "palette": (describe_palette(pixels), "pixels"),
        "gloss": (gloss or "", "wordnet"),
    }
    return [{"perspective": name, "text": text, "source": source} for name, (text, source) in texts.items() if text]


def _nouns(concept: Concept) -> Iterator[str]:
    seen = {concept.label.lower()}
    for tag in concept.tags:
        if tag.lower() not in seen:
            seen.add(tag.lower())
            yield tag


def _category(concept: Concept) -> str:
    subgroup = concept.subgroup
    if subgroup.startswith("face-"):
        readable = f"faces, {subgroup.removeprefix('face-').replace('-', ' or ')}"
    else:
        readable = _SUBGROUPS.get(subgroup, subgroup.replace("-", " "))
    return f"{readable}, from {_GROUPS[concept.group]}"
