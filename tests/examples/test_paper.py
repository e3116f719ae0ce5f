"""Claims of the paper, held against records made by hand, whose differences are known."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from holistic_clip_hf.evaluation.records import Record, capture_provenance, load_records, save_records
from training import paper
from training.paper import (
    HOLDS,
    NOT_TOLD,
    OPPOSITE,
    PAGE,
    Claim,
    Finding,
    Untested,
    find_difference,
    find_ratio,
    load_claims,
    load_rows,
    paper_page,
    records_path,
)

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "training/studies/paper_claims.yaml"
SLOTS = ["short", "gloss"]
ARTISTS = ["ann", "bob", "cid"]


def claim(method: str, against: str, **parts: Any) -> Claim:
    return Claim(
        **{"claim": "More is better", "source": "Table 1", "paper": "+1.0", "asked": ["short"], **parts},
        method=method,
        against=against,
    )


def result(method: str, replicate: int, **by: float) -> dict[str, Any]:
    """A finished run: recall by score, a twentieth more by `gloss`, and image to text as much less."""
    numbers = {
        f"fused, {score}": {
            slot: {
                "text_to_image": {"recall@5": value + 0.05 * place},
                "image_to_text": {"recall@5": 1 - value},
            }
            for place, slot in enumerate(SLOTS)
        }
        for score, value in by.items()
    }
    return {"model": method, "replicate": replicate, "numbers": numbers}


def record(model: str, value: float, low: float, high: float, *, against: str = "one") -> Record:
    return Record(
        **vars(capture_provenance(model=model, dataset="drawn", split="test", seed=0)),
        metric="perplexity_ratio",
        value=value,
        task="captioning",
        details={"perspective": "short", "against": against},
        confidence_interval=(low, high),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of claims, two studies whose runs are finished, and records of captioners for two seeds."""
    shared = {
        "recipe": str(ROOT / "training/studies/emoji_recipe.yaml"),
        "column": "artist",
        "perspectives": SLOTS,
        "training": {},
    }
    method = {"perspectives": ["all"], "slots": SLOTS}
    studies = {"old": (ARTISTS, ["clip", "one"]), "new": (ARTISTS[:2], ["five"])}
    for name, (held_out, methods) in studies.items():
        study = {**shared, "held_out": held_out, "methods": dict.fromkeys(methods, method)}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(study))
        (tmp_path / name).mkdir()
    write_rows(
        tmp_path / "old",
        [result(method, replicate, mean=0.1 * replicate) for replicate in range(3) for method in ("clip", "one")],
    )
    write_rows(
        tmp_path / "new",
        [result("five", replicate, mean=0.1 * replicate + 0.02, max=0.1 * replicate) for replicate in range(2)],
    )
    content = {
        "studies": [str(tmp_path / f"{name}.yaml") for name in studies],
        "captioners": str(ROOT / "training/downstream/clipcap_emoji.yaml"),
        "seeds": [0, 1],
        "retrieval": [vars(claim("five", "one"))],
        "captioning": [vars(claim("holistic_branches", "one_to_many", paper=""))],
        "untested": [vars(Untested("It sees", "Table 6", "No model."))],
    }
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "clipcap_emoji").mkdir()
    for name in ("results.json", "results_seed_1.json"):
        save_records(
            tmp_path / "clipcap_emoji" / name,
            [record(model, 0.9, 0.8, 0.95, against="one_to_many") for model in ("holistic_branches", "one_to_many")],
        )
    return tmp_path


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_sign_of_a_difference_is_that_of_its_interval() -> None:
    """Gains of 1.9, 2 and 2.1 points: 4.303 of Student's t times 0.1 by the root of three, 0.2. Of 1, 2, 3: 2.5."""
    rows = []
    for replicate, (sure, unsure) in enumerate(((0.019, 0.01), (0.02, 0.02), (0.021, 0.03))):
        rows += [
            result("one", replicate, mean=0.1 * replicate),
            result("sure", replicate, mean=0.1 * replicate + sure),
            result("unsure", replicate, mean=0.1 * replicate + unsure),
        ]
    half = 100 * 4.303 * 0.001 / math.sqrt(3)
    assert f"{half:.1f}" == "0.2" and f"{10 * half:.1f}" == "2.5"
    for method, direction, expected in (
        ("sure", "text_to_image", Finding("**+2.0 ± 0.2**", HOLDS)),
        ("sure", "image_to_text", Finding("**-2.0 ± 0.2**", OPPOSITE)),
        ("unsure", "text_to_image", Finding("+2.0 ± 2.5", NOT_TOLD)),
    ):
        assert find_difference(rows, claim(method, "one"), "short", direction) == (expected, 3)


def test_two_scores_of_one_method_are_compared() -> None:
    rows = [result("five", replicate, mean=0.1, max=0.06 + 0.001 * replicate) for replicate in range(3)]
    found = find_difference(rows, claim("five", "five", against_by="fused, max"), "one caption", "text_to_image")
    assert found == (Finding("**+3.9 ± 0.2**", HOLDS), 3)
    found = find_difference(rows, claim("five", "five", by="fused, max"), "gloss", "text_to_image")
    assert found == (Finding("**-3.9 ± 0.2**", OPPOSITE), 3)
    with pytest.raises(ValueError, match="'More is better' has no replicate with `five`, least and `five`, asked by"):
        find_difference(rows, claim("five", "five", by="fused, least"), "short", "text_to_image")


def test_a_ratio_spans_the_intervals_of_all_seeds() -> None:
    """Geometric mean of 0.8 and 0.9; turned round, of their inverses."""
    seeds = [[record("two", 0.8, 0.7, 0.85)], [record("two", 0.9, 0.88, 0.95)]]
    assert find_ratio(seeds, claim("two", "one"), "short") == Finding(
        f"**{math.sqrt(0.72):.3f} [0.700, 0.950]**", HOLDS
    )
    assert find_ratio(seeds, claim("one", "two"), "short") == Finding(
        f"**{1 / math.sqrt(0.72):.3f} [{1 / 0.95:.3f}, {1 / 0.7:.3f}]**", OPPOSITE
    )
    seeds[1] = [record("two", 0.9, 0.8, 1.01)]
    assert find_ratio(seeds, claim("two", "one"), "short").verdict == NOT_TOLD
    with pytest.raises(ValueError, match="has no record of the perplexity_ratio of two and one, gloss; expected one"):
        find_ratio(seeds, claim("two", "one"), "gloss")


def test_a_page_is_made_of_records_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gains of exactly 2 points in two artists, the third of which only one study has; nothing is trained."""
    paper.main(["--claims", str(folder / "claims.yaml"), "--output-dir", str(folder / "runs")])
    page = (folder / "new" / PAGE).read_text(encoding="utf-8")
    assert (
        "| More is better | Table 1 | +1.0 | `five` against `one` | short | 2 | **+2.0 ± 0.0**, holds "
        "| **-2.0 ± 0.0**, opposite |\n"
    ) in page
    assert "| `holistic_branches` against `one_to_many` | short | 2 | **0.900 [0.800, 0.950]**, holds |\n" in page
    assert (
        "Of 2 differences that the paper has: 1 times *holds*, 1 times *opposite*, 0 times *not told apart*." in page
    )
    assert "| It sees | Table 6 | No model. |\n" in page
    assert not (folder / "runs").exists() and capsys.readouterr().out.strip() == str(folder / "new" / PAGE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claimz": []}, "unknown keys claimz"),
        (
            {"retrieval": [vars(claim("six", "one"))]},
            "'More is better': `method` is 'six'; expected one of clip",
        ),
        ({"retrieval": [vars(claim("five", "six"))]}, "'More is better': `against` is 'six'; expected one of clip"),
        ({"retrieval": [vars(claim("five", "one", asked=["smell"]))]}, "`asked` is 'smell'; expected one of short,"),
        ({"captioning": [vars(claim("clip", "six"))]}, "`against` is 'six'; expected one of one_to_many"),
        ({"untested": [{"claim": "It sees", "source": "Table 6"}]}, "untested: missing keys why"),
        ({"seeds": ["one"]}, "`seeds` is"),
    ],
)
def test_a_claim_that_names_nothing_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    content = yaml.safe_load((folder / "claims.yaml").read_text())
    (folder / "claims.yaml").write_text(yaml.safe_dump({**content, **change}))
    with pytest.raises(ValueError) as refusal:
        load_claims(folder / "claims.yaml")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("held_out", ["bob", "ann"], "which holds out or asks otherwise than .*old.yaml; expected the same"),
        ("methods", {"one": {"perspectives": ["all"], "slots": SLOTS}}, "`studies` has 'one' in .*; expected each"),
    ],
)
def test_studies_that_cannot_be_paired_are_refused(folder: Path, key: str, value: Any, message: str) -> None:
    content = yaml.safe_load((folder / "new.yaml").read_text())
    (folder / "new.yaml").write_text(yaml.safe_dump({**content, key: value}))
    with pytest.raises(ValueError, match=message):
        load_claims(folder / "claims.yaml")


def test_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    claims = load_claims(folder / "claims.yaml")
    write_rows(folder / "new", [result("five", 0, mean=0.1)])
    with pytest.raises(ValueError, match="results.jsonl lacks 1 runs; expected replicate 1 of 'five' among"):
        load_rows(claims)
    write_rows(folder / "new", [result("five", replicate, mean=0.1) for replicate in range(2)])
    records_path(claims, 1).unlink()
    with pytest.raises(ValueError, match="`checkpoint` of captioner 'holistic_branches' is .*; expected a trained mo"):
        paper.finish(claims, folder / "runs")


def test_the_page_is_that_of_the_records() -> None:
    claims = load_claims(CLAIMS)
    records = [load_records(records_path(claims, seed)) for seed in claims.seeds]
    page = claims.studies[-1].results.with_name(PAGE)
    assert paper_page(claims, load_rows(claims), records) == page.read_text(encoding="utf-8")
