# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Traits of a drawing that its captions name, by facet: what can be asked for, and which perspective says it."""

import re
from collections.abc import Callable, Mapping, Sequence

from holistic_clip_hf.words import words_of

# The perspective that says each. No caption says a count or a style: they cannot be asked for here.
FACETS = {"colour": "palette", "kind": "category", "group": "category", "object": "short", "keyword": "nouns"}
# What `captions.describe_palette` writes around the colours.
_AMOUNT = re.compile(r"^(?:all|mostly|a little) ")
_BETWEEN = re.compile(r", with |, | and ")


def drawing_traits(captions: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, list[frozenset[str]]]:
    """Return the traits of N drawings by facet, from their captions by perspective.

    >>> drawing_traits({name: [["mostly dark red"]] for name in FACETS.values()})["colour"]
    [frozenset({'dark red'})]
    """
    return {
        facet: [
            frozenset(trait for text in texts for trait in _TRAITS[facet](text)) for texts in captions[perspective]
        ]
        for facet, perspective in FACETS.items()
    }


def _colours(palette: str) -> list[str]:
    return [_AMOUNT.sub("", part) for part in _BETWEEN.split(palette)]


def _category(category: str) -> list[str]:
    return category.rsplit(", from ", 1)


_TRAITS: dict[str, Callable[[str], list[str]]] = {
    "colour": _colours,
    "kind": lambda category: _category(category)[:1],
    "group": lambda category: _category(category)[1:],
    "object": words_of,
    "keyword": lambda nouns: nouns.split(", "),
}
