"""Records: what they refuse, that a file of them merges by measurement, and what they say of the run."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest

from holistic_clip_hf.evaluation import records as records_module
from holistic_clip_hf.evaluation.records import (
    Provenance,
    Record,
    capture_provenance,
    command_as_typed,
    load_records,
    save_records,
)

PROVENANCE = Provenance(
    model="emoji",
    dataset="drawings",
    split="test",
    seed=0,
    command="python -m training.evaluate",
    commit="0123abc",
    uncommitted_changes=False,
    versions={"torch": "2.13.0"},
    timestamp="2026-01-02T03:04:05+00:00",
)


def recall(value: float = 0.5, **changes) -> Record:
    details = {"perspective": "style", "direction": "text_to_image", "branch": "fused", "k": changes.pop("k", 1)}
    record = Record(
        **vars(PROVENANCE),
        metric="recall",
        value=value,
        task="retrieval",
        details=details,
        counts={"n_queries": 12, "n_candidates": 34},
        chance=0.1,
        confidence_interval=(0.25, 0.75),
    )
    return replace(record, **changes)


def test_a_file_gives_back_what_was_saved(tmp_path):
    saved = [recall(0.1 + 0.2, k=5), recall(metric="median_rank", confidence_interval=None, chance=None, commit=None)]
    save_records(tmp_path / "new" / "results.json", saved)

    loaded = load_records(tmp_path / "new" / "results.json")
    assert sorted(loaded, key=lambda record: record.metric, reverse=True) == saved
    assert loaded[0].confidence_interval is None and loaded[1].confidence_interval == (0.25, 0.75)


def test_a_second_run_replaces_its_own_records_only(tmp_path):
    path = tmp_path / "results.json"
    save_records(path, [recall(0.5), recall(0.6, model="other")])
    # All that may change between two runs of one measurement.
    later = {
        "timestamp": "2027-01-01T00:00:00+00:00",
        "commit": "fff",
        "command": "python x",
        "versions": {},
        "seed": 1,
    }
    again = recall(0.7, counts={"n_queries": 13}, chance=0.2, confidence_interval=None, **later)
    save_records(path, [again])

    assert load_records(path) == [again, recall(0.6, model="other")]


@pytest.mark.parametrize("name", ["model", "dataset", "split", "task", "metric"])
def test_another_measurement_stands_beside(tmp_path, name):
    path = tmp_path / "results.json"
    save_records(path, [recall()])
    save_records(path, [recall(**{name: "another"})])
    save_records(path, [recall(k=5)])

    assert len(load_records(path)) == 3


def test_order_of_a_file_is_by_key_and_numbers_sort_as_numbers(tmp_path):
    mixed = recall(k="all")
    records = [recall(k=10), recall(model="z"), recall(k=1), recall(k=5), mixed]
    save_records(tmp_path / "forward.json", records)
    for record in reversed(records):
        save_records(tmp_path / "one_by_one.json", [record])

    assert (tmp_path / "forward.json").read_bytes() == (tmp_path / "one_by_one.json").read_bytes()
    loaded = load_records(tmp_path / "forward.json")
    assert [record.details["k"] for record in loaded] == [1, 5, 10, "all", 1]
    assert loaded[-1].model == "z"


def test_two_records_of_one_measurement_in_one_call_are_refused(tmp_path):
    with pytest.raises(ValueError, match="recall@1.*Tell them apart in `details`"):
        save_records(tmp_path / "results.json", [recall(0.5), recall(0.6)])
    assert not (tmp_path / "results.json").exists()


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    save_records(path, [recall()])
    before = path.read_bytes()

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_records(path, [recall(k=5)])
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "0.5", True])
def test_only_finite_numbers_are_recorded(bad):
    with pytest.raises(ValueError, match="value of recall@1.*finite"):
        recall(bad)
    with pytest.raises(ValueError, match="confidence interval of recall@1.*finite"):
        recall(confidence_interval=(0.1, bad))
    if bad is not None:
        with pytest.raises(ValueError, match="chance of recall@1.*finite"):
            recall(chance=bad)


@pytest.mark.parametrize("name", ["model", "dataset", "split", "task", "metric", "command", "timestamp"])
@pytest.mark.parametrize("bad", ["", None])
def test_a_record_needs_its_names(name, bad):
    with pytest.raises(ValueError, match=f"`{name}` is"):
        recall(**{name: bad})


def test_details_are_scalars():
    with pytest.raises(ValueError, match="Detail `branches` is"):
        recall(details={"branches": ["a", "b"]})


def row(**changes) -> dict:
    return {**asdict(recall()), **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "is not a list. Expected a file that `holistic-clip evaluate`"),
        (json.dumps([row(), {"metric": "recall"}]), "Record 1 .*missing keys chance"),
        (json.dumps([row(colour="red")]), "Record 0 .*unknown keys colour"),
        (json.dumps([3]), "Record 0 .*got 3; expected keys and values"),
        (json.dumps([row(value=math.nan)]), "Record 0 .*finite"),
        (json.dumps([row(confidence_interval=[0.5])]), "Record 0 .*two numbers"),
        (json.dumps([row(details=None)]), "Record 0 .*`details`"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_records(path)


def test_provenance_of_this_process():
    provenance = capture_provenance(model="m", dataset="d", split="s", seed=3)

    assert (provenance.model, provenance.dataset, provenance.split, provenance.seed) == ("m", "d", "s", 3)
    assert provenance.command.startswith("python ")
    assert sys.executable not in provenance.command.split()[0]
    assert provenance.versions["torch"] == version("torch")
    assert provenance.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert provenance.timestamp.endswith("+00:00")


def copy_of_the_module(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = checkout / "records.py"
    copy.write_text("# a copy\n")
    monkeypatch.setattr(records_module, "__file__", str(copy))


def git(checkout: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=checkout, check=True, capture_output=True, text=True).stdout


def found_commit() -> tuple[str | None, bool | None]:
    provenance = capture_provenance(model="m", dataset="d", split="s", seed=0)
    return provenance.commit, provenance.uncommitted_changes


def test_commit_of_a_checkout_and_whether_it_was_changed(tmp_path, monkeypatch):
    copy_of_the_module(tmp_path, monkeypatch)
    assert found_commit() == (None, None)  # no checkout

    git(tmp_path, "init", "--quiet")
    (tmp_path / "mine.txt").write_text("of whoever has the package installed here")
    git(tmp_path, "add", "mine.txt")
    git(tmp_path, "commit", "--quiet", "--message", "mine")
    assert found_commit() == (None, None)  # a checkout, but not of this package

    git(tmp_path, "add", "records.py")
    git(tmp_path, "commit", "--quiet", "--message", "ours")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert found_commit() == (head, False)

    results = tmp_path / "study" / "results.jsonl"
    results.parent.mkdir()
    results.touch()
    results.with_name("attribute_results.jsonl").touch()
    git(tmp_path, "add", "study")
    git(tmp_path, "commit", "--quiet", "--message", "results")
    results.with_name("attribute_results.jsonl").write_text("{}")
    results.write_text("{}")  # what is being measured does not change because its numbers are written down
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert found_commit() == (head, False)

    (tmp_path / "records.py").write_text("# changed\n")
    assert found_commit() == (head, True)


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert found_commit() == (None, None)


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["bin/python3", "bin/holistic-clip", "evaluate", "a b"], "holistic-clip evaluate 'a b'"),
        (["bin/python3", "-m", "training.emoji", "--seed", "1"], "python -m training.emoji --seed 1"),
        (["python", "study.py"], "python study.py"),
        (["python"], "python"),
        (["python", "/data/ada/study.py"], "python .../study.py"),
        (
            ["python", "x.py", str(Path.cwd() / "runs" / "a"), "coco=/data/ada/coco"],
            "python x.py runs/a coco=.../coco",
        ),
        (["python", "x.py", r"C:\\Users\\ada\\runs", "/"], "python x.py .../runs ..."),
        (
            ["python", "x.py", "--hub-token", "abc", "--api_key=abc", "--tokenizer", "t"],
            "python x.py --hub-token ... --api_key=... --tokenizer t",
        ),
        (["python", "x.py", "hf_abcdefghijklmnop", "k=sk-proj-0123456789"], "python x.py ... k=..."),
        (["python", "x.py", "https://ada:word@hub.example/x"], "python x.py https://...@hub.example/x"),
    ],
)
def test_the_command_of_a_record_names_no_path_of_this_machine(arguments, typed):
    assert command_as_typed(arguments) == typed


SAVER = """
import sys
from holistic_clip_hf.evaluation.records import Recorder, capture_provenance, save_records
recorder = Recorder(capture_provenance(model=sys.argv[2], dataset="squares", split="test", seed=0), "retrieval")
sys.stdin.readline()
for k in range(1, 6):
    save_records(sys.argv[1], [recorder.record("recall", 0.5, {"k": k}, {"n_queries": 8})])
"""


def test_six_processes_into_one_file_keep_all(tmp_path):
    path = tmp_path / "results.json"
    command = [sys.executable, "-c", SAVER, str(path)]
    savers = [subprocess.Popen([*command, f"model-{n}"], stdin=subprocess.PIPE, text=True) for n in range(6)]
    for saver in savers:
        saver.stdin.write("\n")
        saver.stdin.flush()
    assert [saver.wait() for saver in savers] == [0] * 6
    found = {(record.model, record.details["k"]) for record in load_records(path)}
    assert found == {(f"model-{n}", k) for n in range(6) for k in range(1, 6)}
