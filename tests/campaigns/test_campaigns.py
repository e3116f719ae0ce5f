"""A few tries of each campaign, so that the scripts do not rot; `make campaigns` runs them whole."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import _frame  # noqa: E402
import _nonsense  # noqa: E402
import _table  # noqa: E402
from _child import Child, Ended, Place, run  # noqa: E402

QUICK = ("tars", "configurations", "weights", "recipes", "records", "manifests", "images")
FEW = 2
WELL = Ended(code=0, said="", printed="", seconds=1.0, mebibytes=0)


def start(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE), *words, "--records", str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_few_tries_of_the_quick_campaigns(tmp_path: Path) -> None:
    ran = start(tmp_path, *QUICK, "--tries", str(FEW), "--journals", str(tmp_path / "journals"))
    assert ran.returncode == 0, ran.stderr[-4000:]
    for name in QUICK:
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["tries"] == FEW == record["finished"] + record["refused"], record["faults"]


@pytest.mark.slow
def test_a_few_tries_of_the_others(tmp_path: Path) -> None:
    others = ("kills", "full_disks", "two_processes", "mistakes")
    ran = start(tmp_path, *others, "--tries", "2", "--journals", str(tmp_path / "journals"))
    assert ran.returncode == 0, ran.stderr[-4000:]


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (WELL, "finished"),
        (WELL._replace(code=2, said="holistic-clip corpus: `a` is b; expected c."), "refused"),
        (WELL._replace(code=2, said="\nsomething else"), "traceback"),
        (WELL._replace(code=1, said="Traceback (most recent call last):\n  a\nholistic-clip: x"), "traceback"),
        (WELL._replace(code=None), "hung"),
        (WELL._replace(code=-11), "crashed"),
        (WELL._replace(mebibytes=10**6), "memory"),
        (WELL._replace(foreign=("os.system touch",)), "foreign"),
    ],
)
def test_judgement(ended: Ended, kind: str) -> None:
    assert _frame.judge(ended, "a try").kind == kind


def test_a_result_that_is_wrong_is_lost() -> None:
    outcome = _frame.judge(WELL, "a try", wrong=lambda: "one row is missing")
    assert (outcome.kind, outcome.told) == ("lost", "one row is missing")


def test_what_a_child_does_is_seen(tmp_path: Path) -> None:
    place = Place(tmp_path / "try").make()
    code = place.given / "evil.py"
    code.write_text("x = 1")

    def foreign() -> None:
        exec(compile(code.read_text(), str(code), "exec"))
        subprocess.run(["true"], check=True)

    told = run(foreign, place, 20).foreign
    assert any("evil.py" in each for each in told) and any("true" in each for each in told)
    assert run(lambda: place.canary.touch(), place, 20).foreign == ("the canary was written",)


def test_a_child_that_hangs_or_is_killed(tmp_path: Path) -> None:
    place = Place(tmp_path / "try").make()
    assert run(lambda: __import__("time").sleep(60), place, 0.3).code is None
    child = Child(lambda: __import__("time").sleep(60), place)
    child.kill()
    assert child.wait(20).code == -9


def test_memory_is_measured(tmp_path: Path) -> None:
    ended = run(lambda: bytearray(b"x") * 400_000_000, Place(tmp_path / "try").make(), 60)
    assert 300 < ended.mebibytes < 500


def test_surroundings_tell_what_changed(tmp_path: Path) -> None:
    place = Place(tmp_path / "try").make()
    before = _frame.surroundings(place)
    (place.out / "written").touch()
    assert _frame.changed(before, _frame.surroundings(place)) == ""
    (place.beside / "letter.txt").write_text("Changed.")
    (place.given / "new").touch()
    assert _frame.changed(before, _frame.surroundings(place)) == "changed: beside/letter.txt, given/new"


def test_an_interrupted_campaign_goes_on(tmp_path: Path) -> None:
    tried: list[int] = []

    def attempt(shared: Path, place: Place, draw: random.Random) -> _frame.Outcome:
        tried.append(draw.randrange(10**9))
        return _frame.Outcome("finished", str(tried[-1]))

    campaign = _frame.Campaign("none", "nothing", 4, attempt, lambda shared: None)
    runner = _frame.Runner(campaign, 7, tmp_path / "records", tmp_path / "work", tmp_path / "journals")
    first = runner.outcomes(2)
    with open(tmp_path / "journals" / "none.jsonl", "a") as journal:
        journal.write('\n{"try": 2, "kin')  # as a kill leaves it
    assert runner.outcomes(4)[:2] == first and len(tried) == 4 == len(set(tried))
    assert runner.record(runner.outcomes(4))["finished"] == 4 and len(tried) == 4


def test_nonsense_depends_on_the_seed_alone() -> None:
    text = json.dumps({"a": {"b": [1, 2.0, "c"]}, "d": None}).encode()
    drawn = [[_nonsense.nonsense(text, random.Random(seed)) for seed in range(200)] for _ in range(2)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 60


def test_the_table_says_what_the_records_say(tmp_path: Path) -> None:
    record = {
        "about": "a|b",
        "tries": 7,
        "tries_of_the_whole_campaign": 9,
        "kills": 1_200,
        "finished": 3,
        "refused": 1,
    }
    record |= {"lost": 1, "hung": 0, "traceback": 1, "crashed": 1, "foreign": 0, "memory": 0, "commit": "abc"}
    (tmp_path / "two_words.json").write_text(json.dumps(record))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{_table.BEGIN}\nold\n{_table.END}\nafter\n")
    _table.write(page, tmp_path)
    text = page.read_text()
    assert "| two words | a\\|b | 7 (1,200 kills) of 9 | 3 | 1 | 1 | 0 | 2 | 0 | 0 |" in text
    assert "Measured at `abc`." in text and "old" not in text and text.endswith("after\n")


def test_the_page_shows_the_records_that_are_kept() -> None:
    assert _table.table(HERE / "results") in (HERE.parents[1] / "SECURITY.md").read_text()
