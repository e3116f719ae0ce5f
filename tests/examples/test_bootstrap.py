"""Gains and their intervals, against closed forms."""

from typing import Any

import numpy as np
import pytest

from holistic_clip_hf.evaluation.attributes import BOTH, FORMS, ONE
from training.bootstrap import ALL, Entry, Found

MINE, THEIRS = Entry("ours", "by_name"), Entry("one_to_many", "vector")


def asked(count: int, form: str = ONE, facets: str = "colour") -> list[dict[str, Any]]:
    return [{"query": f"{facets} {form} {number}", "form": form, "facets": facets} for number in range(count)]


def test_what_is_alike_in_every_query_has_no_interval() -> None:
    """Recalls differ widely between queries and replicates, and mine is a tenth more in each."""
    generator = np.random.default_rng(1)
    theirs = {replicate: generator.random(30).tolist() for replicate in range(4)}
    mine = {replicate: [1.1 * value for value in values] for replicate, values in theirs.items()}
    found = Found(dict.fromkeys(range(4), asked(30)), {MINE: mine, THEIRS: theirs})
    gain = found.gain(MINE, THEIRS, ONE)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1)) and gain.replicates == 4
    assert str(gain) == "**+10.0 % [+10.0, +10.0]**"


def test_queries_are_drawn() -> None:
    """Hits of 400 queries: the interval of a share of one quarter, by its standard deviation."""
    mine, theirs = [1.0] * 100 + [0.0] * 300, [0.5] * 400
    found = Found({0: asked(400)}, {MINE: {0: mine}, THEIRS: {0: theirs}})
    gain = found.gain(MINE, THEIRS, ONE)
    assert gain.value == pytest.approx(0.25 / 0.5 - 1)
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5 / 0.5
    assert (gain.high - gain.low) / 2 == pytest.approx(half, rel=0.1)


def test_replicates_are_drawn_and_paired() -> None:
    """Of two replicates each draw has one twice in half of the cases: both ends are those of a single one."""
    queries = {0: asked(1), 1: asked(1), 2: asked(1)}
    mine, theirs = {0: [0.6], 1: [0.9], 2: [0.1]}, {0: [0.5], 1: [0.5]}
    found = Found(queries, {MINE: mine, THEIRS: theirs})
    gain = found.gain(MINE, THEIRS, ONE)
    assert gain.replicates == 2, "only theirs that both have"
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.5, 0.2, 0.8))
    assert str(found.gain(THEIRS, THEIRS, ONE)) == "+0.0 % [+0.0, +0.0]"


def test_facets_and_forms_count_alike() -> None:
    queries = [*asked(3), *asked(1, facets="kind"), *asked(2, BOTH, "colour and kind")]
    values = [0.3, 0.3, 0.3, 0.9, 0.0, 0.4]
    third = asked(1, FORMS[2], "kind and colour")
    found = Found({0: [*queries, *third]}, {MINE: {0: [*values, 0.5]}})
    assert found.mean(MINE, ONE) == pytest.approx((0.3 + 0.9) / 2) and found.mean(MINE, BOTH) == pytest.approx(0.2)
    assert found.mean(MINE, ALL) == pytest.approx((0.6 + 0.2 + 0.5) / 3)
    assert found.facets(MINE, ONE) == pytest.approx({"colour": 0.3, "kind": 0.9})
