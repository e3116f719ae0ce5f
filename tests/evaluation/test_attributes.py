"""Attribute queries: what they ask for by hand, and their numbers by enumeration of every draw."""

from itertools import combinations
from math import comb

import pytest
import torch

from holistic_clip_hf.evaluation.attributes import (
    BOTH,
    ONE,
    WITHOUT,
    AttributeQuery,
    QueryRules,
    Wish,
    attribute_queries,
    expected_recall,
    incorrect_ahead,
    measure_query,
    score_queries,
)

COLOURS = [{"red"}, {"red", "white"}, {"blue"}, {"blue"}, {"red"}, set()]
KINDS = [{"cat"}, {"dog"}, {"cat"}, {"dog"}, {"dog"}, {"cat"}]
TRAITS = {"colour": COLOURS, "kind": KINDS}


def rights(form: str, **options: int) -> dict[str, tuple[int, ...]]:
    queries = attribute_queries(TRAITS, QueryRules(**{"most": 100, "fewest": 1, "num_negatives": 1, **options}))
    return {str(query): query.relevant for query in queries if query.form == form}


def test_queries_ask_for_what_images_have() -> None:
    assert rights(ONE) == {
        "colour: blue": (2, 3),
        "colour: red": (0, 1, 4),
        "colour: white": (1,),
        "kind: cat": (0, 2, 5),
        "kind: dog": (1, 3, 4),
    }
    # Every white image is a dog, so "white" alone would do.
    assert rights(BOTH) == {
        "colour: blue; kind: cat": (2,),
        "colour: blue; kind: dog": (3,),
        "colour: red; kind: cat": (0,),
        "colour: red; kind: dog": (1, 4),
    }
    found = rights(WITHOUT)
    assert found["kind: dog; not colour: red"] == (3,) and found["kind: cat; not colour: blue"] == (0, 5)
    assert found["colour: red; not kind: dog"] == (0,)
    # No dog is left without these; nothing is red and yellow, so it would not matter.
    assert "colour: white; not kind: dog" not in found and "kind: cat; not colour: white" not in found


def test_queries_need_right_and_wrong_images_and_are_the_same_each_time() -> None:
    assert rights(ONE, fewest=3) == {"colour: red": (0, 1, 4), "kind: cat": (0, 2, 5), "kind: dog": (1, 3, 4)}
    assert rights(ONE, num_negatives=4) == {"colour: blue": (2, 3), "colour: white": (1,)}
    kept = rights(BOTH, most=2)
    assert len(kept) == 2 and kept.items() <= rights(BOTH).items() and kept == rights(BOTH, most=2)
    with pytest.raises(ValueError, match=r"`traits` has \{'colour': 6, 'kind': 1\} images; expected as many"):
        attribute_queries({"colour": COLOURS, "kind": [{"cat"}]}, QueryRules())


def test_recall_is_the_mean_over_every_draw() -> None:
    """Three wrong images of seven drawn, in all 35 ways."""
    scores = torch.tensor([0.5, 0.9, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1, 0.85])  # rows 0 and 8 are right
    wrong = scores[1:8].tolist()
    for k in (1, 2, 3, 4):
        expected = []
        for own in (0.85, 0.5):
            draws = [sum(score >= own for score in draw) < k for draw in combinations(wrong, 3)]
            assert len(draws) == comb(7, 3)
            expected.append(sum(draws) / len(draws))
        ahead = incorrect_ahead(scores, (0, 8))
        assert ahead.tolist() == [1, 3], "a tie counts against the right one"
        assert expected_recall(ahead, 7, k=k, num_negatives=3).tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="`num_wrong` is 7; expected 99 or more"):
        expected_recall(torch.tensor([1]), 7)


def test_precision_looks_at_all_images() -> None:
    """Right ones stand at places 1, 3 and 7 of eight."""
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    found = measure_query(scores, AttributeQuery((Wish("colour", "red"),), (0, 2, 6)), num_negatives=1)
    assert found.precision == pytest.approx(2 / 5)
    assert found.average_precision == pytest.approx((1 / 1 + 2 / 3 + 3 / 7) / 3)
    # Of five wrong images one is drawn, and k is 5: it never matters.
    assert found.recall == 1.0


def test_what_is_not_wanted_counts_against() -> None:
    asked = []

    def score(wish: Wish) -> torch.Tensor:
        asked.append(wish.text)
        return {"red": torch.tensor([1.0, 2.0]), "cat": torch.tensor([10.0, 30.0])}[wish.text]

    red, cat = Wish("colour", "red"), Wish("kind", "cat")
    queries = [
        AttributeQuery((red,), (0,)),
        AttributeQuery((red, cat), (0,)),
        AttributeQuery((cat, Wish("colour", "red", is_wanted=False)), (0,)),
    ]
    assert score_queries(queries, score).tolist() == [[1.0, 2.0], [11.0, 32.0], [9.0, 28.0]]
    assert asked == ["red", "cat"], "each is scored once"
    assert score_queries(queries, score, unwanted_weight=0.5)[2].tolist() == [9.5, 29.0]
