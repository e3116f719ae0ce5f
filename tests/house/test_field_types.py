"""Types of values from files, by the hints of the fields that take them."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal

import pytest

from holistic_clip_hf.field_types import fits, in_words


class Pace(Enum):
    SLOW = "slow"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (float, [1, 1.5, 1e-5], ["1", True, None, [1.0]]),
        (int, [0, -3], [1.0, "1", False, None]),
        (bool, [True, False], [0, "yes", None]),
        (str, ["", "a"], [1, False, ["a"], None]),
        (float | None, [None, 2], ["2", False]),
        (list[str], [[], ["a", "b"]], ["short", ["a", 1], {"a": 1}, None]),
        (dict[str, float], [{}, {"a": 1}], [{"a": "b"}, [], "a"]),
        (Mapping[str, float], [{}, {"a": 1}], [{"a": "b"}, [], 1]),
        (Sequence[str], [[], ["a"]], ["a", [1], None]),
        (dict[str, float] | str, [{"a": 1}, "{}"], [1, ["a"]]),
        (tuple[str, ...], [[], ["a"], ["a", "b", "c"]], [["a", 1], "ab", 0.5]),
        (tuple[float, float], [[0.5, 1]], [[0.5], [1, 2, 3], "ab", ["a", "b"], 0.5]),
        (Pace | str, ["slow"], [False, 1]),
        (Literal["a", "b"], ["a"], ["c", 1]),
        (Any, [None, 1, "a", [True], False], []),
    ],
    ids=str,
)
def test_values_by_type(kind: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not fits(value, kind)] == []
    assert [value for value in bad if fits(value, kind)] == []


def test_types_in_words() -> None:
    kinds = {
        tuple[float, float]: "a list of 2, each a number",
        tuple[str, ...]: "a list, each a text",
        Pace | str: "a text",
        bool: "true or false",
    }
    assert {kind: in_words(kind) for kind in kinds} == kinds
