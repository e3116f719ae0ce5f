"""The plan of a corpus: what its fingerprint stands for, and that it is the same at every call."""

from collections.abc import Iterator
from typing import Any

import pytest

from holistic_clip_hf.corpus.plan import BuildSettings, make_plan, split_of
from holistic_clip_hf.images.decoding import ImageLimits
from holistic_clip_hf.images.sources import Item, Skipped

CAPTION = {"perspective": "short", "text": "one", "source": "test"}
ITEM = Item("a", "place", "stamp", [CAPTION])


class Given:
    name = "given"

    def __init__(self, *items: Item | Skipped) -> None:
        self._items = items

    def items(self) -> Iterator[Item | Skipped]:
        yield from self._items

    def read(self, place: str) -> bytes:
        raise AssertionError("a plan reads no image")


def fingerprint(*items: Item | Skipped, options: str = "", **settings: Any) -> str:
    with make_plan([Given(*items)], BuildSettings(**settings), options) as plan:
        return plan.fingerprint


def test_whatever_decides_the_rows_is_in_the_fingerprint() -> None:
    same = fingerprint(ITEM)
    assert same == fingerprint(ITEM) and len(same) == 64
    other = [
        fingerprint(ITEM._replace(image_id="b")),
        fingerprint(ITEM._replace(place="elsewhere")),
        fingerprint(ITEM._replace(stamp="later")),
        fingerprint(ITEM._replace(split="test")),
        *(fingerprint(ITEM._replace(captions=[{**CAPTION, field: "other"}])) for field in CAPTION),
        fingerprint(ITEM, ITEM._replace(image_id="b")),
        fingerprint(ITEM, options="words 0.9"),
        fingerprint(ITEM, limits=ImageLimits(min_side=9)),
        fingerprint(ITEM, validation=0.1),
        fingerprint(ITEM, rows_per_shard=7),
    ]
    assert len({same, *other}) == 1 + len(other)


def test_a_plan_lists_what_it_leaves_out() -> None:
    items = [Skipped("line 1", "torn"), ITEM, ITEM, ITEM._replace(image_id=" "), ITEM._replace(image_id="half \ud800")]
    with make_plan([Given(*items)], BuildSettings()) as plan:
        assert list(plan.skipped()) == [
            Skipped("line 1", "torn"),
            Skipped("a", "image id came before"),
            Skipped(" ", "image id is empty or not UTF-8"),
            Skipped(ascii("half \ud800"), "image id is empty or not UTF-8"),
        ]
        assert [entry.image_id for shard in range(len(plan.shards)) for entry in plan.entries(shard)] == ["a"]


@pytest.mark.parametrize(("test", "validation"), [(0.0, 0.0), (0.3, 0.1), (0.5, 0.5)])
def test_shares_are_what_they_say(test: float, validation: float) -> None:
    splits = [split_of(f"image {number}", test=test, validation=validation) for number in range(20_000)]
    for name, share in (("test", test), ("validation", validation)):
        assert abs(splits.count(name) / 20_000 - share) < 0.015, "four standard errors of 20,000 draws"
