"""Benchmarks keep no number of a machine that was busy with something else, and name the peers that are missing."""

import importlib.util
import itertools
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def measure(tmp_path: Path) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "_measure.py"
    spec = importlib.util.spec_from_file_location("_measure", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)  # anew for each test, since it remembers what a run measured
    spec.loader.exec_module(module)
    module.RESULTS = tmp_path / "results"
    return module


def test_cases_take_turns_and_the_first_round_warms_up(measure: ModuleType) -> None:
    ran: list[str] = []
    clock = itertools.count().__next__
    seconds = measure.interleaved({name: lambda name=name: ran.append(name) for name in "ab"}, 2, clock)
    assert ran == ["a", "b"] * 3 and seconds == {"a": [1, 1], "b": [1, 1]}


def test_a_ratio_is_the_median_of_quotients_within_rounds(measure: ModuleType) -> None:
    # The machine slowed down by ten in the second round: the quotients are 2, 2.2 and 1.8.
    seconds = {"ours": [2.0, 22.0, 1.8], "peer": [1.0, 10.0, 1.0]}
    assert measure.ratio(seconds, "ours", "peer") == pytest.approx(2.0)
    measure.write_record("made_up", {"value": 1})
    found = json.loads((measure.RESULTS / "made_up.json").read_text())
    assert found["value"] == 1 and found["uncertainties"] == {
        "ours / peer": pytest.approx(1.57 * 0.2 / 3**0.5 / 2, abs=5e-4)
    }


def test_more_rounds_make_a_ratio_more_certain(measure: ModuleType) -> None:
    noise = [0.9, 1.0, 1.1, 1.0]
    few, many = ({"ours": noise * times, "peer": [1.0] * 4 * times} for times in (1, 16))
    assert measure.median_and_uncertainty(few, "ours", "peer") == (1.0, pytest.approx(1.57 * 0.05 / 2))
    assert measure.median_and_uncertainty(many, "ours", "peer")[1] < 0.3 * 1.57 * 0.05


def test_a_record_of_a_busy_machine_is_not_written(measure: ModuleType) -> None:
    measure.ratio({"ours": [1.0, 1.0, 1.0], "peer": [1.0, 1.0, 1.0]}, "ours", "peer")
    measure.write_record("made_up", {"value": 1})
    measure.ratio({"ours": [1.0, 1.2, 0.9], "peer": [1.0, 1.0, 1.0]}, "ours", "peer")
    with pytest.raises(
        SystemExit,
        match=r"Not written: .*made_up.json. Medians are uncertain by more than 10%: ours / peer, 2 \(± 14%\)",
    ):
        measure.write_record("made_up", {"value": 2})
    assert json.loads((measure.RESULTS / "made_up.json").read_text())["value"] == 1


def test_a_peer_that_is_not_installed_is_named(measure: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.find_peer("json") is json and measure.find_peer("no_such_peer") is None
    assert capsys.readouterr().out == "left out: no_such_peer is not installed\n"
    measure.write_record("made_up", {})
    assert json.loads((measure.RESULTS / "made_up.json").read_text())["peers_left_out"] == ["no_such_peer"]
