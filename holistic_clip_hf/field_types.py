# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Types of values that were read from a file, held against the type hints of the fields that take them."""

import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from .storage import shown

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "keys and values",
    list: "a list",
    type(None): "nothing",
}
_AS_FILES_HAVE = {Mapping: dict, Sequence: list}


def require_types(where: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Refuse a value from a file that is of another type than its field's.

    Args:
        where: Name of the file and of the place in it, for the message.
        values: Values by name of their field.
        kinds: Type hints of the fields; a name that is not among them takes any value.

    Raises:
        ValueError: a value of another type.
    """
    for key, value in values.items():
        if not fits(value, kinds.get(key, Any)):
            remedy = " Put it between quotes." if isinstance(value, bool) else ""  # YAML reads `no` as false
            raise ValueError(
                f"{where}: `{key}` is {shown(value)}; expected {in_words(kinds[key])}. Correct it.{remedy}"
            )


def _taken_apart(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without its arguments, as a file has it, and these."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is tuple and inner[1:] == (...,):  # of any length
        return list, inner[:1]
    return _AS_FILES_HAVE.get(origin, origin), inner


def fits(value: Any, kind: Any) -> bool:
    """Tell whether a value from a file may be given to a field of this type. A type that no file spells takes
    any value.

    >>> fits(1, float), fits(True, int), fits("fast", float), fits(["short"], list[str])
    (True, False, False, True)
    """
    origin, inner = _taken_apart(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if isinstance(value, bool) or origin is bool:  # before int, of which Python's are a kind
        return isinstance(value, bool) and origin in (bool, Any)
    if origin is float:
        return isinstance(value, int | float)
    if origin is list:
        return isinstance(value, list) and all(fits(each, *inner) for each in value if inner)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, inner[1]) for each in value.values() if inner)
    if _is_enum(origin):
        return isinstance(value, str)
    return origin not in _WORDS or isinstance(value, origin)


def in_words(kind: Any) -> str:
    """Say which values fit a type, for an error.

    >>> in_words(float | None), in_words(list[str])
    ('a number or nothing', 'a list, each a text')
    """
    origin, inner = _taken_apart(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(in_words, inner)))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"a list of {len(inner)}, each {in_words(inner[0])}"
    if origin is list and inner:
        return f"a list, each {in_words(inner[0])}"
    return "a text" if _is_enum(origin) else _WORDS.get(origin, "another value")


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)
