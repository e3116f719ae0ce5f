# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Splits of the emoji: drawings held out by artist, and by families of concepts that look or are called alike."""

import re
from collections.abc import Collection

from holistic_clip_hf.storage import stable_number
from training.emoji.concepts import Concept

TEST_ARTIST = "openmoji"


# Subgroups whose concepts differ in a colour, a direction or who is shown, and nothing else.
_FAMILY_SUBGROUPS = {
    "heart": "heart",
    "cat-face": "cat face",
    "monkey-face": "wise monkey",
    "family": "couple or family",
    "keycap": "keycap",
    "arrow": "arrow",
}


# Concepts whose whole label matches belong to one family. The first match decides.
_FAMILIES = {
    "keycap": r"input numbers",
    "clock face": r".* o’clock|.*-thirty",
    "person": r"((older |old |deaf )?(person|man|woman)|boy|girl|child|baby)(: .*)?",
    "royalty": r"prince|princess|person with crown",
    "claus": r"(santa|mrs\.?|mx) claus",
    "merperson": r"mer(man|maid|person)",
    "grinning face": r"(grinning|beaming)( squinting)? face.*",
    "kissing face": r"kissing face.*|face blowing a kiss",
    "winking face": r"winking face.*",
    "smiling face": r"(slightly )?smiling face( with (smiling eyes|tear|halo|hearts|heart-eyes))?|upside-down face",
    "face with tongue": r"(squinting )?face with tongue",
    "frowning face": r"(slightly )?frowning face.*",
    "crying face": r"(loudly )?crying face",
    "face with horns": r".* face with horns",
    "head shaking": r"head shaking .*",
    "skull": r"skull.*",
    "bubble": r".*(speech|thought|anger) (balloon|bubble)",
    "pointing hand": r".*\bindex pointing .*",
    "fist": r".*\bfist",
    "thumb": r"thumbs (up|down)",
    "sideways hand": r"(left|right)wards (pushing )?hand|palm (up|down) hand",
    "ear": r"ear( with hearing aid)?",
    "eye": r"eyes?",
    "bust": r"busts? in silhouette",
    "camel": r"(two-hump )?camel",
    "chick": r".*\bchick",
    "bird in one colour": r"bird|black bird",
    "nest": r".*nest( with eggs)?",
    "tree": r"(evergreen|deciduous) tree",
    "clover": r"shamrock|four leaf clover",
    "apple": r"(red|green) apple",
    "mushroom": r"(brown )?mushroom",
    "beer mug": r"beer mug|clinking beer mugs",
    "fork and knife": r"fork and knife.*",
    "ice cream": r"(soft )?ice cream",
    "globe": r"globe .*",
    "mountain": r"(snow-capped )?mountain|mount fuji",
    "house": r"(derelict )?house( with garden)?|houses",
    "post office": r"(japanese )?post office",
    "castle": r"(japanese )?castle",
    "sunset or cityscape": r"sunrise.*|sunset|cityscape.*|night with stars|foggy",
    "train": r".*\btrain|metro|light rail|railway car|monorail|tram( car)?|station|mountain railway",
    "vehicle from the front": r"(oncoming )?(bus|police car|taxi|automobile)",
    "wheelchair": r"(manual|motorized) wheelchair",
    "traffic light": r"(horizontal|vertical) traffic light",
    "boat": r"motor boat|speedboat",
    "airplane": r"(small )?airplane.*",
    "hourglass": r"hourglass.*",
    "clock": r".* clock|stopwatch",
    "moon": r".*\bmoon( face)?",
    "star": r"(glowing |shooting )?star",
    "sun": r"sun( with face)?",
    "sun behind cloud": r"sun behind .*",
    "cloud": r"cloud( with .*)?",
    "umbrella": r"(closed )?umbrella.*",
    "snowman": r"snowman.*",
    "medal": r"(1st|2nd|3rd) place medal|(sports|military) medal",
    "ribbon": r"(reminder )?ribbon",
    "ticket": r"(admission )?tickets?",
    "ball for bats": r"(base|soft)ball",
    "football": r"(american|rugby) football",
    "card suit": r"(spade|heart|diamond|club) suit",
    "glasses": r"(sun)?glasses",
    "shoe": r".*\b(shoe|sandal|boot)",
    "speaker": r".*speaker.*",
    "bell": r"bell( with slash)?",
    "musical note": r"musical (notes?|score)",
    "microphone": r"(studio )?microphone",
    "drum": r"(long )?drum",
    "mobile phone": r"mobile phone.*",
    "telephone": r"telephone( receiver)?",
    "battery": r"(low )?battery",
    "disk": r"(computer|floppy|optical) disk|dvd",
    "movie camera": r"(movie|video) camera",
    "camera": r"camera( with flash)?",
    "magnifying glass": r"magnifying glass .*",
    "book": r"(closed|green|blue|orange|red|open) book|books|notebook.*|ledger",
    "page": r"page .*",
    "newspaper": r".*newspaper",
    "bookmark": r"bookmark.*",
    "banknote": r".*banknote",
    "envelope": r"(incoming )?envelope( with arrow)?|e-mail",
    "tray": r"(in|out)box tray",
    "mailbox": r".*mailbox.*",
    "pen": r"(fountain )?pen|black nib",
    "folder": r"(open )?file folder",
    "calendar": r".*calendar",
    "chart": r"(bar chart|chart (in|de)creasing.*)",
    "pushpin": r"(round )?pushpin",
    "paperclip": r"paperclip|linked paperclips",
    "ruler": r".* ruler",
    "lock": r"(un)?locked.*",
    "key": r"(old )?key",
    "hammer": r"hammer.*",
    "chain": r"(broken )?chains?",
    "toilet sign": r"(wo)?men’s room|restroom",
    "arrow button": (
        r"(fast |fast-)?(up|down|upwards|downwards|reverse|forward|play|pause|play or pause|stop|record|eject) button"
        r"|.*track button"
    ),
    "repeat button": r"repeat .*button",
    "brightness button": r"(dim|bright) button",
    "check mark": r"check (mark|box).*",
    "cross mark": r"cross mark.*|multiply",
    "curly loop": r"(double )?curly loop",
    "exclamation or question": r"(?>.*?(exclamation|question)).*mark",
    "blood type button": r"(a|b|o|ab) button \(blood type\)",
    "letter button": r"input .*|(cl|cool|free|id|new|ng|ok|p|sos|up!|vs) button|circled m|information",
    "japanese button": r"japanese “.*” button",
    "circle": r"(\w+ )*circle|radio button",
    "square": r"(\w+[- ])*square( button)?",
    "diamond shape": r"(large|small) (blue|orange) diamond",
    "triangle shape": r"red triangle pointed (up|down)",
    "plain flag": r"(black|white|rainbow|transgender|pirate|chequered|triangular) flag|crossed flags",
}


_COMPILED = {family: re.compile(pattern) for family, pattern in _FAMILIES.items()}


_GENDER = re.compile(r"\b(man|woman|person|men|women|people)\b(?!’)")


_DIRECTION = re.compile(r"facing (?:right|left)$")


def name_family(concept: Concept) -> str:
    """Return the family of a concept, whose drawings are so alike that they must lie in one split."""
    if concept.subgroup in _FAMILY_SUBGROUPS:
        return _FAMILY_SUBGROUPS[concept.subgroup]
    label = concept.label.lower()
    for family, pattern in _COMPILED.items():
        if pattern.fullmatch(label):
            return family
    stripped = _GENDER.sub("", _without_direction(label))
    if concept.group == "animals-nature":
        stripped = stripped.removesuffix(" face")
    return re.sub(r"\s+", " ", stripped).strip(" :,") or label


def _without_direction(label: str) -> str:
    """Return `kneeling person` of `kneeling person: facing right`.

    The pattern leaves the spaces out, since it would try every way to share them out between both sides of the colon.
    """
    direction = _DIRECTION.search(label)
    return label[: direction.start()].rstrip().removesuffix(":").rstrip() if direction else label


def split_by_family(family: str) -> str:
    """Return `train`, `validation` or `test` for all concepts of a family, about 80 / 10 / 10."""
    part = _fraction(f"family:{family}")
    if part < 0.8:
        return "train"
    return "validation" if part < 0.9 else "test"


def split_by_artist(concept: str, artist: str, artists: Collection[str]) -> str:
    """Return `test` for the held-out artist, else `train`, or `validation` for one drawing of a quarter of the
    concepts.

    `artists` are all that draw the concept; a concept that one training artist draws alone stays in `train`.
    """
    if artist == TEST_ARTIST:
        return "test"
    training_artists = sorted(set(artists) - {TEST_ARTIST})
    if len(training_artists) < 2 or _fraction(f"validated:{concept}") >= 0.25:
        return "train"
    chosen = min(training_artists, key=lambda name: _fraction(f"drawing:{concept}:{name}"))
    return "validation" if artist == chosen else "train"


def _fraction(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone, on every machine and in every run."""
    return stable_number(text) / 2**64
