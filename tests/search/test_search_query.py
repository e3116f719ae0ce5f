"""The one-line language of queries, and which images a filter lets answer."""

import math
import time

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from holistic_clip_hf.search import FUSED, Filter, Term, parse_query
from holistic_clip_hf.search.query import MOST_LETTERS, MOST_TERMS, as_terms

NAMES = ["main_object", "background", "style"]
TABLE = pa.table(
    {
        "image_id": ["a/one.png", "a/[two].png", "b/A.png", "b/c/d.png"],
        "artist": ["ann", "bob", "ann", None],
        "year": [1999, 2024, 2024, 2025],
        "is_photo": [True, False, True, False],
    }
)
COLUMNS = ["artist", "year", "is_photo"]


def told(text: str) -> list[tuple[str, str | None, float]]:
    return [(term.perspective, term.text, term.weight) for term in parse_query(text, NAMES)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog", [(FUSED, "a dog", 1)]),
        (
            "main object: a dog; background: snow; not style: drawing",
            [("main_object", "a dog", 1), ("background", "snow", 1), ("style", "drawing", -1)],
        ),
        ("MAIN-Object :dog;", [("main_object", "dog", 1)]),
        ("not a drawing", [(FUSED, "a drawing", -1)]),
        ("NOT style:drawing^0.5", [("style", "drawing", -0.5)]),
        ("snow ^ 2; fused: ice", [(FUSED, "snow", 2), (FUSED, "ice", 1)]),
        ("notable dogs", [(FUSED, "notable dogs", 1)]),
        ("nothing; not not", [(FUSED, "nothing", 1), (FUSED, "not", -1)]),
        ('"not a sign: 10:30; x^2"^3', [(FUSED, "not a sign: 10:30; x^2", 3)]),
        ('style: "a ""quoted"" word"', [("style", 'a "quoted" word', 1)]),
        ('not "not"', [(FUSED, "not", -1)]),
        ("сова; 猫^1e-1", [(FUSED, "сова", 1), (FUSED, "猫", 0.1)]),
        ("style: two\nlines", [("style", "two\nlines", 1)]),
    ],
)
def test_the_language(text: str, expected: list[tuple[str, str, float]]) -> None:
    assert told(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty.*background: snow"),
        (" ; ;", "empty"),
        ("style:", "has no word"),
        ("not ;dog", "has no word|is not a term"),
        ("styl: x", "perspective is 'styl'; expected one of main_object, background, style, fused.*mean 'style'"),
        ("a sign that says: stop", "perspective is 'a sign that says'.*double quotes"),
        ("dog^", "weight of 'dog\\^' is ''"),
        ("dog^0", "expected a number above 0"),
        ("dog^-1", "Write `not`"),
        ("dog^nan", "weight.*'nan'"),
        ("dog^inf", "weight.*'inf'"),
        ("dog^1e999", "weight.*'1e999'"),
        ('"dog', "does not close"),
        ('a "dog" b', "is not a term"),
        ("dog^2^3", "is not a term"),
        ("x" * (MOST_LETTERS + 1), "4,001 letters"),
        (";".join("x" * (MOST_TERMS + 1)), "33 terms"),
    ],
)
def test_what_is_not_the_language_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_query(text, NAMES)


@pytest.mark.parametrize("text", [":" * 4_000, "^" * 4_000, "a" * 2_000 + " " * 2_000, "not " * 1_000, ": ^" * 1_300])
def test_no_query_takes_long(text: str) -> None:
    try:
        parse_query(text, NAMES)
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("query", ['"{}', "{}: a dog", "a dog^{}", "{}^0", "a^b^{}", 'a "{}"', "not {}^x"])
def test_a_message_shows_the_ends_of_a_long_query(query: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_query(query.format("x" * 3_900), ["style"])
    assert 50 < len(str(raised.value)) < 700 and "xxx...xxx" in str(raised.value)


EXAMPLE = Image.new("RGB", (2, 2))


@pytest.mark.parametrize(
    ("text", "without", "expected"),
    [
        ("", (), []),
        (" ; ", (), []),
        ("but style: a drawing", ("style",), [("style", "a drawing", 1)]),
        ("BUT not style: drawing^2; a dog", ("style",), [("style", "drawing", -2), (FUSED, "a dog", 1)]),
        ("but at night", (), [(FUSED, "at night", 1)]),
        ("but fused: at night", (), [(FUSED, "at night", 1)]),
        (
            'but main object: "a ""but"" ; b"; but style: x; style: y',
            ("main_object", "style"),
            [("main_object", 'a "but" ; b', 1), ("style", "x", 1), ("style", "y", 1)],
        ),
        ("butter; style: but", (), [(FUSED, "butter", 1), ("style", "but", 1)]),
    ],
)
def test_an_example_and_what_is_wanted_otherwise(
    text: str, without: tuple[str, ...], expected: list[tuple[str, str, float]]
) -> None:
    example, *rest = parse_query(text, NAMES, like=EXAMPLE)
    assert example == Term(image=EXAMPLE, without=without)
    assert [(term.perspective, term.text, term.weight) for term in rest] == expected


def test_but_is_a_word_without_an_example() -> None:
    assert told("but at night") == [(FUSED, "but at night", 1)]
    with pytest.raises(ValueError, match="perspective is 'but style'; expected one of .*Did you mean 'style'"):
        parse_query("but style: drawing", NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("but style: a; but background: b; but main object: c", "wants every perspective otherwise.*one to compare"),
        ("but style:", "has no word"),
        ("but not ", "has no word"),
        ("but but style: x", "perspective is 'but style'"),
    ],
)
def test_what_cannot_be_wanted_otherwise(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_query(text, NAMES, like=EXAMPLE)


def test_terms_are_checked() -> None:
    for weight in (0, math.nan, math.inf, True):
        with pytest.raises(ValueError, match=r"weight of 'style: dog'"):
            Term("dog", perspective="style", weight=weight)
    with pytest.raises(ValueError, match="both, or neither"):
        Term()
    with pytest.raises(ValueError, match="both, or neither"):
        Term("dog", Image.new("RGB", (1, 1)))
    with pytest.raises(ValueError, match="perspective is 'colour'"):
        as_terms(Term("dog", perspective="colour"), NAMES)
    with pytest.raises(ValueError, match="perspective is 'colour'"):
        as_terms(Term(image=EXAMPLE, without=("colour",)), NAMES)
    for given in ({"text": "dog"}, {"image": EXAMPLE, "perspective": "style"}):
        with pytest.raises(ValueError, match="leaves out style; expected that of an example image of all branches"):
            Term(**given, without=("style",))
    with pytest.raises(ValueError, match="no terms"):
        as_terms([], NAMES)
    assert as_terms(Term("dog", perspective="Main object"), NAMES) == [Term("dog", perspective="main_object")]


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        (Filter(), [0, 1, 2, 3]),
        (Filter({"artist": "ann"}), [0, 2]),
        (Filter({"artist": ["ann", "bob"], "year": 2024}), [1, 2]),
        (Filter({"year": ["1999", "2025"]}), [0, 3]),
        (Filter({"is_photo": True}), [0, 2]),
        (Filter({"artist": "nobody"}), []),
        (Filter(path="a/*"), [0, 1]),
        (Filter(path="*.png"), [0, 1, 2, 3]),
        (Filter(path=["*one.png", "b/c/*"]), [0, 3]),
        (Filter(path="a/[[]two].png"), [1]),
        (Filter(path="b/a.png"), []),
        (Filter({"artist": "ann"}, path="b/*"), [2]),
        (Filter(path="one"), []),
    ],
)
def test_filters(condition: Filter, rows: list[int]) -> None:
    assert np.flatnonzero(condition.mask(TABLE, COLUMNS)).tolist() == rows


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"colour": "red"}, "no column 'colour'.*expected artist, year, is_photo"),
        ({"image_id": "a/one.png"}, "no column 'image_id'"),
        ({"year": "last"}, "'year' holds int64"),
        ({"year": [1999, "x"]}, "'year' holds int64"),
    ],
)
def test_filters_that_no_column_can_meet(condition: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filter(condition).mask(TABLE, COLUMNS)
    with pytest.raises(ValueError, match="'artist' is empty"):
        Filter({"artist": []})


# Regular expressions that may share out spaces in several ways took 30 s for the first of these.
@pytest.mark.parametrize(
    "text",
    [
        " " * 200 + 'a"b"',
        " " * 3_990 + 'a"b"',
        "not " * 999 + '"',
        "a" * 3_990 + '^"b"',
        ";" * 31 + " " * 3_900 + '"a" b',
    ],
)
def test_hostile_queries_are_read_at_once(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(ValueError, match="is not a term|does not close"):
        parse_query(text, ["short"])
    assert time.process_time() - begin < 0.1
