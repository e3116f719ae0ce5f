"""Pages of studies are rendered from their records, and docs/science.md tells no other number."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from training import attribute_tables, study_tables
from training.attribute_tables import change_table, load_found
from training.bootstrap import Entry, Found
from training.study import Study, load_results, load_study

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "training/studies"
OF_ATTRIBUTES, OF_CAPTIONS = (
    ("attributes", "branches", "branches_emoji"),
    {"tuxpaint": "one_to_many", "matryoshka": "plain", "branches_tuxpaint": "ours"},
)
GAIN = re.compile(r"[+-]\d+\.\d %\s\[[+-]\d+\.\d, [+-]\d+\.\d\]")
POINTS = re.compile(r"[+-]?\d+\.\d ± \d+\.\d")


def study_of(name: str) -> Study:
    return load_study(STUDIES / f"{name}.yaml")


def pages(names: Sequence[str]) -> str:
    return "\n".join((STUDIES / name / study_tables.PAGE).read_text(encoding="utf-8") for name in names)


@pytest.mark.parametrize("name", OF_ATTRIBUTES)
def test_the_page_of_attributes_is_that_of_the_records(name: str) -> None:
    study = study_of(name)
    assert attribute_tables.study_page(study, load_found(study), load_results(study.results)) == pages([name])


@pytest.mark.parametrize("name", OF_CAPTIONS)
def test_the_page_of_captions_is_that_of_the_records(name: str) -> None:
    study = study_of(name)
    assert study_tables.study_page(study, load_results(study.results), OF_CAPTIONS[name]) == pages([name])


def mean_recall(found: Found, entry: Entry, replicate: int) -> float:
    """Average queries within facets, facets within forms, and forms."""
    forms: dict[str, dict[str, list[float]]] = {}
    for query, recall in zip(found.queries[replicate], found.recalls[entry][replicate], strict=True):
        forms.setdefault(query["form"], {}).setdefault(query["facets"], []).append(recall)
    of_forms = [statistics.fmean(map(statistics.fmean, facets.values())) for facets in forms.values()]
    return statistics.fmean(of_forms)


def test_changes_are_compared_way_by_way() -> None:
    """Each line of the table is the quotient of means over the replicates that both methods have."""
    study = study_of("branches")
    found = load_found(study)
    lines = change_table(study, found, "ours").splitlines()[2:]
    told = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[-1] for line in lines}
    assert len(told) == len(lines) > 2 and not any("one to many" in label and "by name" in label for label in told)
    for entry in found.recalls:
        over = Entry("ours", entry.way)
        if entry.method != "ours":
            shared = found.recalls[entry].keys() & found.recalls[over].keys()
            mine, theirs = (sum(mean_recall(found, each, replicate) for replicate in shared) for each in (entry, over))
            gain = told[attribute_tables.label_of(study, entry)]
            assert float(gain.strip("*").split(" %")[0]) == pytest.approx(100 * (mine / theirs - 1), abs=0.051)


def test_science_tells_the_numbers_of_the_pages() -> None:
    told = (ROOT / "docs/science.md").read_text(encoding="utf-8")
    gains = {" ".join(gain.split()) for gain in GAIN.findall(told)}
    of_attributes = pages(OF_ATTRIBUTES)
    assert gains and all(gain in of_attributes for gain in gains), gains - set(GAIN.findall(of_attributes))
    of_captions = pages(["emoji", "paper", "branches", "branches_emoji", *OF_CAPTIONS])
    points = set(POINTS.findall(told))
    assert points and all(point in of_captions for point in points), points - set(POINTS.findall(of_captions))
    ratios = set(re.findall(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", told))
    assert ratios and all(ratio in of_captions for ratio in ratios)
    shares = re.findall(r"\| (\d\d\.\d) \|", told)
    assert shares and all(f"| {share} |" in of_attributes for share in shares)
