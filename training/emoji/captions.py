# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions of a drawing: five perspectives of different granularity, some of them absent for some drawings.

One of them names the colours, measured from the pixels and said as a person would say them.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from training.emoji.concepts import Concept

# Colour terms, with light and dark variants, by a few sRGB prototypes each; the nearest in OKLab names a pixel.
_PROTOTYPES = {
    "black": "000000 1c1c1c 262b30 2b2b3a",
    "dark gray": "404040 50555c 585f66 46505a",
    "gray": "808080 8c8c94 969ca0 6e7478",
    "blue gray": "587890 5c7a94 607d8b 546e7a 7890a4",
    "light gray": "c0c0c0 d2d6da c8d0d8 b4bac0 dcdcdc",
    "white": "ffffff f5f5f5 eef2f5 fff8f0",
    "red": "ff0000 e0202a f44336 dd2e44 c62828 ff5050",
    "dark red": "8b0000 a01a22 781c2c",
    "orange": "ff8c00 f4900c ff7043 ff6d00 f57c00 ffa030",
    "yellow": "ffff00 ffcc4d ffdc3c fcd53f ffe680 fbc02d f2c418",
    "dark yellow": "c89614 b8860b d4a017",
    "cream": "fff3c4 ffecb3 faf0d2 f5e6c8",
    "beige": "e0c8a0 d7b98c e6cfb0",
    "peach": "ffcba4 f7dece ffd2b4 fabf96 f3d2a2",
    "brown": "8b4513 795548 965028 a0603c 8d6e63 b06c3c c1694f",
    "dark brown": "4e2e1e 5d4037 3e2723 662113",
    "light brown": "bf8c5f c68642 d2a06e b48a64",
    "green": "00a000 4caf50 3e9e3a 77b255 5c9e31 43a047 00d26a 558b2f 689f38 7cb342",
    "dark green": "145a14 1b5e20 3e721d 2e5b30 006040",
    "light green": "9ccc65 a6d388 b4e650 c5e1a5 90ee90",
    "olive": "808000 827717 6b6b2e",
    "teal": "008080 00897b 009688 1c9a9a",
    "turquoise": "40e0d0 26c6da 00e0d8 50d2c8 3cc8c8",
    "light blue": "add8e6 87ceeb bbddf5 81d4fa 8cd0f5 b3e5fc",
    "blue": "0000ff 1e88e5 3b88c3 226699 0288d1 1565c0 55acee 03a9f4 4060f0",
    "dark blue": "00008b 0d3b66 1a237e 14285a 263f6b 283593",
    "purple": "800080 9c27b0 744eaa 7e57c2 673ab7 8d65c5 a040d0",
    "dark purple": "3b1259 4a148c 402060",
    "light purple": "b39ddb c8a2e8 ce93d8 d2b4f0 cdc4d6",
    "pink": "ff69b4 ea596e f48fb1 f4abba ec407a f8bbd0 ff8fab ffb6c1",
    "magenta": "ff00ff e0108c c2185b be1482",
}


_LEVELS = 32  # per channel, in the look-up table from sRGB to term


_SMALLEST_SHARE = 0.06


_MOST_COLOURS = 4


def describe_palette(pixels: np.ndarray) -> str:
    """Return the dominating colours of an RGBA image (height, width, 4), by area: `mostly yellow, with a little
    white`.

    Transparent pixels count by their alpha. Raises `ValueError` when all are fully transparent.
    """
    terms = list(_PROTOTYPES)
    levels = pixels[..., :3].astype(np.intp) * _LEVELS // 256
    term_of_pixel = _term_table()[levels[..., 0], levels[..., 1], levels[..., 2]]
    areas = np.bincount(term_of_pixel.ravel(), weights=pixels[..., 3].ravel(), minlength=len(terms))
    if not areas.any():
        raise ValueError("The image has no opaque pixel; expected one with something drawn. Skip it.")
    shares = areas / areas.sum()
    order = np.argsort(-shares, kind="stable")[:_MOST_COLOURS]
    return _phrase([(terms[term], float(shares[term])) for term in order if shares[term] >= _SMALLEST_SHARE])


def _phrase(shares: list[tuple[str, float]]) -> str:
    first, first_share = shares[0]
    if len(shares) == 1:
        return f"all {first}"
    rest = [f"a little {term}" if share < 0.1 else term for term, share in shares[1:]]
    if first_share >= 0.5:
        return f"mostly {first}, with {_join(rest)}"
    return _join([first, *rest])


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


@cache
def _term_table() -> np.ndarray:
    """Return the index of the colour term of every coarse sRGB cell: (levels, levels, levels)."""
    prototypes = [(term, code) for term, codes in enumerate(_PROTOTYPES.values()) for code in codes.split()]
    colours = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for _, code in prototypes])
    centres = (np.arange(_LEVELS) + 0.5) * (256 / _LEVELS)
    cells = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    squared = ((_oklab(cells) - _oklab(colours)) ** 2).sum(-1)
    term_of_prototype = np.array([term for term, _ in prototypes])
    return term_of_prototype[squared.argmin(-1)].reshape(_LEVELS, _LEVELS, _LEVELS)


def _oklab(srgb: np.ndarray) -> np.ndarray:
    """Convert sRGB in 0..255 to OKLab (https://bottosson.github.io/posts/oklab/), in which equal steps look equal."""
    value = np.asarray(srgb, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_lms.T) @ to_lab.T


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
    """Return the captions of one drawing, given its RGBA pixels (height, width, 4) and the definition, if one is
    certain.
    """
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
