"""Fine-tuning in folds: how photos are dealt, and how their queries are pooled, against plain loops."""

import random
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from holistic_clip_hf.evaluation.ranking import DIRECTIONS, IMAGE_TO_TEXT, TEXT_TO_IMAGE
from holistic_clip_hf.storage import write_json
from training.photos_study import (
    DEFAULT,
    STUDY,
    ZERO_SHOT,
    Folds,
    PhotoStudy,
    Way,
    deal,
    load_folds,
    load_photo_study,
    missing_runs,
    require_rows,
)
from training.photos_tables import (
    PAGE,
    PRECISION,
    RECALL,
    Asked,
    Measured,
    photos_page,
    pool,
    sort_ways,
    units_of,
)
from training.study import append_result, load_results

ROOT = Path(__file__).parents[2]
PERSPECTIVES = ["short", "category"]


def test_photos_are_dealt_evenly_and_near_duplicates_together() -> None:
    photos = [f"{number:03}.png" for number in range(103)]
    alike = [[5, 50, 99], [7, 8]]
    folds = deal(photos, alike, 5)
    sizes = Counter(folds.fold)
    assert set(sizes) == set(range(5)) and max(sizes.values()) - min(sizes.values()) <= 3
    for group in alike:
        assert len({folds.fold[number] for number in group}) == 1
        assert {folds.group[number] for number in group} == {group[0]}
    held_out = Counter[str]()
    for fold in range(5):
        splits = folds.splits(fold, 0.1)
        held_out.update(photo for photo, split in zip(photos, splits, strict=True) if split == "test")
        assert [split == "test" for split in splits] == [each == fold for each in folds.fold]
        assert 10 <= splits.count("validation") <= 13
        for group in alike:
            assert len({splits[number] for number in group}) == 1
    assert held_out == Counter(photos)
    assert deal(photos, alike, 5) == folds, "the same each time"


def drawn_interval(values: list[float], units: list[int], draws: int = 4_000) -> tuple[float, float]:
    """Return the percentile interval of the mean by loops: whole units are drawn, and their values counted."""
    generator, by_unit = random.Random(3), dict[int, list[float]]()
    for value, unit in zip(values, units, strict=True):
        by_unit.setdefault(unit, []).append(value)
    means = []
    for _ in range(draws):
        drawn = [value for unit in generator.choices(list(by_unit), k=len(by_unit)) for value in by_unit[unit]]
        means.append(statistics.fmean(drawn))
    means.sort()
    return means[round(0.025 * draws)], means[round(0.975 * draws)]


def test_an_interval_draws_whole_units() -> None:
    """As loops do; values of one unit that are alike widen it, beside values that are independent."""
    generator = np.random.default_rng(5)
    units = [number // 4 for number in range(240)]
    values = (generator.normal(size=60).repeat(4) + 0.1 * generator.normal(size=240) + 0.2).tolist()
    found = pool(values, units)
    low, high = drawn_interval(values, units)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    alone = pool(values, list(range(240)))
    assert (found.high - found.low) / (alone.high - alone.low) == pytest.approx(2, rel=0.15), "root of 4"


def test_photos_that_share_a_caption_are_one_unit() -> None:
    folds = Folds([f"{number}.png" for number in range(7)], [0] * 7, [0, 1, 2, 3, 4, 4, 6])
    owners = {
        "short": {TEXT_TO_IMAGE: [[0], [1], [2], [3], [4], [5], [6]]},
        "category": {TEXT_TO_IMAGE: [[3, 1], [1, 6], [0], [2, 4]]},
    }
    assert units_of([{"owners": owners}], folds) == [0, 1, 2, 1, 2, 2, 1]


def row_of(generator: random.Random, way: str, base: str, fold: int, branches: list[str]) -> dict[str, Any]:
    """Return a record of six photos of a fold: titles of their own, and two kinds."""
    numbers = list(range(6 * fold, 6 * fold + 6))
    texts = {"short": [[number] for number in numbers], "category": [numbers[:4], numbers[4:]]}
    owners = {name: {TEXT_TO_IMAGE: texts[name], IMAGE_TO_TEXT: [[each] for each in numbers]} for name in texts}
    scores: dict[str, Any] = {}
    for score in ("fused", *branches):
        for name, asked in owners.items():
            for direction, queries in asked.items():
                ranks = [generator.randrange(9) for _ in queries]
                found = {"ranks": ranks, "precision": [1 / (1 + rank) for rank in ranks]}
                scores.setdefault(score, {}).setdefault(name, {})[direction] = found
    more = {"base_hash": base, "changes": {}, "similarity": 0.5 + 0.1 * fold if branches else None}
    return {"way": way, "base": base, "fold": fold, "owners": owners, "scores": scores, **more}


@pytest.fixture
def study(tmp_path: Path) -> PhotoStudy:
    """A study of two bases and two folds, whose records are drawn."""
    captions = {"title": "short", "kind": "category"}
    bases = {"one": "runs/one", "two": "runs/two"}
    made = PhotoStudy(tmp_path / "photos.yaml", "Photos", "photos", captions, 2, 0.1, bases, {DEFAULT: Way()})
    generator = random.Random(1)
    for way, base, fold in made.runs():
        branches = [] if way == ZERO_SHOT and base == "two" else PERSPECTIVES
        append_result(made.results, row_of(generator, way, base, fold, branches))
    folds = Folds([f"{number:02}.png" for number in range(12)], [0] * 6 + [1] * 6, list(range(12)))
    write_json(made.results.with_name("folds.json"), vars(folds))
    return made


@pytest.mark.parametrize("metric", [RECALL, PRECISION])
@pytest.mark.parametrize("directions", [DIRECTIONS, (TEXT_TO_IMAGE,), (IMAGE_TO_TEXT,)])
@pytest.mark.parametrize("perspectives", [["short"], ["category"], PERSPECTIVES])
def test_queries_are_paired_and_pooled(
    study: PhotoStudy, metric: str, directions: tuple[str, ...], perspectives: list[str]
) -> None:
    """Own branch less another, and tuned less base, query by query, in loops over records."""
    rows = load_results(study.results)
    ways = sort_ways(study, load_folds(study), rows)
    asked = Asked(perspectives, metric, directions)

    def value(row: dict[str, Any], score: str, perspective: str, direction: str, query: int) -> float:
        branch = score if score in row["scores"] else "fused"
        found = row["scores"][branch][perspective][direction]
        return float(found["ranks"][query] < 5) if metric == RECALL else found["precision"][query]

    by_name, gained, units = [], [], []
    before = {(row["base"], row["fold"]): row for row in rows if row["way"] == ZERO_SHOT}
    for row in rows:
        if row["way"] != DEFAULT:
            continue
        for perspective in perspectives:
            for direction in directions:
                for query, owners in enumerate(row["owners"][perspective][direction]):
                    place = perspective, direction, query
                    by_name.append(value(row, "short", *place) - value(row, "category", *place))
                    base = before[row["base"], row["fold"]]
                    gained.append(value(row, "fused", *place) - value(base, "fused", *place))
                    units.append(owners[0] - owners[0] % 6 + (4 if owners[0] % 6 >= 4 else 0))
    for values, found in (
        (by_name, ways[DEFAULT].gain("short", ways[DEFAULT], "category", asked)),
        (gained, ways[DEFAULT].gain("fused", ways[ZERO_SHOT], "fused", asked)),
    ):
        assert found.mean == pytest.approx(statistics.fmean(values))
        assert found == pool(values, units)


def test_the_page_is_rendered_from_records(study: PhotoStudy) -> None:
    rows = load_results(study.results)
    page = photos_page(study, load_folds(study), rows)
    default = [row for row in rows if row["way"] == DEFAULT]
    hits = [
        rank < 5
        for row in default
        for direction in DIRECTIONS
        for rank in row["scores"]["short"]["short"][direction]["ranks"]
    ]
    (line,) = (line for line in page.splitlines() if line.startswith("| all | 4 | short | both |"))
    assert line.split("|")[5].strip() == f"{100 * statistics.fmean(hits):.1f}"
    assert "over 4 units of photos" in page and "What was tried" not in page
    assert "| 0.55 (0.60) |" in page
    assert Measured(default, [0] * 12).best_other("short", Asked(["short"], RECALL)) == "category"


def test_records_of_another_plan_are_refused(study: PhotoStudy) -> None:
    rows = load_results(study.results)
    require_rows(study, rows)
    assert missing_runs(study, None, None) == []
    for change, message in (
        ({"way": "other"}, "expected a run of"),
        ({"fold": 2}, "expected a run of"),
        ({"changes": {"training": {"seed": 1}}}, "by other changes"),
        ({"base_hash": "0"}, "other weights than before"),
    ):
        with pytest.raises(ValueError, match=message):
            require_rows(study, [*rows[:-1], {**rows[-1], **change}])
    study.results.write_text("".join(study.results.read_text().splitlines(keepends=True)[:-1]))
    assert missing_runs(study, None, None) == [(DEFAULT, "two", 1)]
    assert missing_runs(study, [ZERO_SHOT], None) == missing_runs(study, None, ["one"]) == []


def test_a_plan_is_read_or_refused(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / STUDY).read_text())
    for change, message in (
        ({"ways": {}}, "expected 'default' without changes"),
        ({"ways": {"default": {"changes": {"training": {"seed": 1}}}}}, "expected 'default' without changes"),
        ({"ways": {"default": {}, "zero_shot": {}}}, "none called 'zero_shot'"),
        ({"ways": {"default": {}, "other": {"changes": {"corpus": "x"}}}}, "unknown keys corpus"),
        ({"ways": {"default": {}, "other": {"bases": ["nothing"]}}}, "`bases` has 'nothing'"),
        ({"fold": 3}, "Did you mean folds"),
    ):
        path = tmp_path / "photos.yaml"
        path.write_text(yaml.safe_dump({**content, **change}))
        with pytest.raises(ValueError, match=message):
            load_photo_study(path)


def test_the_recorded_page_is_that_of_its_records() -> None:
    study = load_photo_study(ROOT / STUDY)
    rows = load_results(study.results)
    require_rows(study, rows)
    assert study.results.with_name(PAGE).read_text() == photos_page(study, load_folds(study), rows)
