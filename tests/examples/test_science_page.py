"""The page of the attribute study is rendered from its records, and docs/science.md tells no number but the pages'."""

import re
from pathlib import Path

from training.attribute_tables import PAGE, load_found, study_page
from training.study import load_results, load_study

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "training/studies/attributes.yaml"
GAIN = re.compile(r"[+-]\d+\.\d %\s\[[+-]\d+\.\d, [+-]\d+\.\d\]")


def test_the_page_is_that_of_the_records() -> None:
    study = load_study(STUDY)
    page = study_page(study, load_found(study), load_results(study.results))
    assert page == (study.results.parent / PAGE).read_text(encoding="utf-8")


def test_science_tells_the_numbers_of_the_pages() -> None:
    told = (ROOT / "docs/science.md").read_text(encoding="utf-8")
    gains = {" ".join(gain.split()) for gain in GAIN.findall(told)}
    page = (STUDY.with_suffix("") / PAGE).read_text(encoding="utf-8")
    assert gains and all(gain in page for gain in gains), gains - {gain for gain in gains if gain in page}
    of_artists = (ROOT / "training/studies/emoji/README.md").read_text(encoding="utf-8")
    of_paper = (ROOT / "training/studies/paper" / PAGE).read_text(encoding="utf-8")
    points = set(re.findall(r"[+-]\d+\.\d ± \d+\.\d", told))
    assert points and all(point in of_artists + of_paper for point in points)
    ratios = set(re.findall(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", told))
    assert ratios and all(ratio in of_paper for ratio in ratios)
    shares = re.findall(r"\| (\d\d\.\d) \|", told)
    assert shares and all(f"| {share} |" in page for share in shares)
