"""Verbs in shards by datatrove: four workers, one of them killed, and the result of a run without shards."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.evaluation.records import load_records

pytest.importorskip("datatrove")
from training.shards import Shards, Verb  # noqa: E402

CHECKOUT = Path(__file__).parents[2]
TASKS = 4


def test_a_refused_command_is_not_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verb = Verb(("corpus", "folder", str(tmp_path / "absent"), "--output", str(tmp_path / "corpus")))
    with pytest.raises(RuntimeError, match=r"--shard 0/2` ended with code 2. Mend what it says"):
        list(verb.run(None, 0, 2))
    said = capfd.readouterr()
    assert said.out.count("ended with code 2") == 1 and "absent" in said.err


@pytest.mark.parametrize("command", [(), ("corpus", "folder", "photos", "--shard", "0/2")])
def test_what_cannot_be_divided_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a verb of holistic-clip without --shard"):
        Shards(command, tasks=2, logs=tmp_path)()
    assert not list(tmp_path.iterdir())


def write_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    drawn = random.Random(0)
    for number in range(count):
        Image.frombytes("RGB", (64, 64), drawn.randbytes(64 * 64 * 3)).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"a {number % 9} square")
    return folder


def run(verb: str, *options: str | Path) -> None:
    parse(verb, [*map(str, options)])()


def run_in_shards(logs: Path, lock: Path, *options: str | Path) -> int:
    """Run a verb in shards; kill that of the third as soon as `lock` is there, and return how often it died."""
    command = [sys.executable, "-m", "training.shards", "--tasks", str(TASKS), "--logs", str(logs)]
    log = logs.with_suffix(".txt")
    with log.open("w") as file:
        alike = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many threads as here, or sums of floats would differ
        engine = subprocess.Popen(
            [*command, "--", *map(str, options)], cwd=CHECKOUT, env=alike, stdout=file, stderr=file
        )
        while engine.poll() is None:
            if (pid := process_of(f"2/{TASKS}", options)) and lock.exists():
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        assert engine.wait(500) == 0, log.read_text()[-3000:]
    return log.read_text().count(f"shard 2/{TASKS} ended with code -9")


def process_of(shard: str, options: tuple[str | Path, ...]) -> int | None:
    """Find the process of a shard of this very command."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            given = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if shard in given and set(map(str, options)) <= set(given):
            return int(folder.name)
    return None


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def told(path: Path) -> dict[tuple[object, ...], float]:
    return {record.key: record.value for record in load_records(path)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", 400)


@pytest.fixture
def model(make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    for part in (make_model(perspectives=["short", "colour", "shape"]), processor):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="/proc tells the process to kill")


@pytest.mark.slow
@needs_proc
def test_a_corpus_by_four_workers_one_of_them_killed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, shared = tmp_path / "whole" / "corpus", tmp_path / "shared" / "corpus"
    build = ["corpus", "folder", photos, "--rows-per-shard", "20", "--no-report", "--title", "Noise"]
    monkeypatch.setattr(sys, "argv", ["holistic-clip", *map(str, [*build, "--output", shared])])  # told by the card
    run(*build, "--output", whole)
    assert run_in_shards(tmp_path / "logs", shared / f".2-of-{TASKS}.lock", *build, "--output", shared) == 1
    assert contents(shared) == contents(whole)


@pytest.mark.slow
@needs_proc
def test_an_index_by_four_workers_one_of_them_killed(photos: Path, model: Path, tmp_path: Path) -> None:
    index = ["search", "index", photos, "--model", model]
    run(*index, "--index", tmp_path / "whole")
    shared = tmp_path / "shared"
    assert run_in_shards(tmp_path / "logs", shared / f".2-of-{TASKS}.lock", *index, "--index", shared) <= 1
    assert contents(shared) == contents(tmp_path / "whole")


@pytest.mark.slow
@needs_proc
def test_an_evaluation_by_four_workers_one_of_them_killed(photos: Path, model: Path, tmp_path: Path) -> None:
    run("corpus", "folder", photos, "--no-report", "--output", tmp_path / "corpus")
    measure = ["evaluate", "--model", model, "--corpus", tmp_path / "corpus", "--split", "train", "--batch-size", "8"]
    run(*measure, "--output", tmp_path / "whole.json")
    encoded = tmp_path / "encoded"
    given = [*measure, "--encoded", encoded, "--output", tmp_path / "shared.json"]
    assert run_in_shards(tmp_path / "logs", encoded / f".2-of-{TASKS}.lock", *given) == 1
    found, expected = (told(tmp_path / name) for name in ("shared.json", "whole.json"))
    assert found == expected and len(found) > 10
