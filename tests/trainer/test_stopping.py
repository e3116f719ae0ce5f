"""Training that is stopped by a signal, cut short, or started twice, and how it goes on."""

import json
import logging
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from holistic_clip_hf.locks import InUseError, hold_lock
from holistic_clip_hf.stopping import Stopped
from holistic_clip_hf.trainer import HolisticCLIPTrainer
from holistic_clip_hf.trainer.resuming import WHOLE_NAME, find_lack, last_whole_checkpoint

MakeTrainer = Callable[..., HolisticCLIPTrainer]
# Five epochs of two steps; a recall that best checkpoints are chosen by, at every end of an epoch.
OPTIONS: dict[str, Any] = {
    "max_steps": -1,
    "num_train_epochs": 5,
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "metric_for_best_model": "text_to_image_recall@5",
    "load_best_model_at_end": True,
    "save_total_limit": 1,
    "ema_decay": 0.9,
}


class Signals(TrainerCallback):
    """Sends this process a signal when a step begins."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.signum)


def weights_of(trainer: HolisticCLIPTrainer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("step", [0, 4, 5, 9], ids=["first", "in-an-epoch", "end-of-an-epoch", "last"])
def test_a_signal_saves_after_the_step_and_going_on_ends_alike(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path, signum: int, step: int
) -> None:
    whole = make_trainer(evaluation=corpus, **OPTIONS)
    whole.train()
    before = signal.getsignal(signum)
    stopped = make_trainer(evaluation=corpus, **OPTIONS, output_dir=str(tmp_path / "stopped"))
    stopped.add_callback(Signals(signum, step))
    with pytest.raises(Stopped) as ended:
        stopped.train()
    assert signal.getsignal(signum) is before
    assert ended.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[signal.Signals(signum)]
    saved = tmp_path / "stopped" / f"checkpoint-{step + 1}"
    assert f"after step {step + 1} of 10, which is saved as {saved}. Give the same command" in str(ended.value)
    assert find_lack(saved) == "" and last_whole_checkpoint(tmp_path / "stopped") == saved
    resumed = make_trainer(evaluation=corpus, **OPTIONS, output_dir=str(tmp_path / "stopped"))
    resumed.train(resume_from_checkpoint=True)
    expected = weights_of(whole)
    moved = [name for name, weight in weights_of(resumed).items() if not torch.equal(weight, expected[name])]
    assert moved == []
    assert resumed.state.global_step == 10 and resumed.state.best_metric == whole.state.best_metric

    def of_evaluations(trainer: HolisticCLIPTrainer) -> list[tuple[int, float]]:
        return [(entry["step"], entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry]

    assert of_evaluations(resumed) == of_evaluations(whole)


def test_callbacks_added_later_hear_of_the_checkpoint_that_a_stop_saves(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    heard: list[int] = []

    class Listener(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            heard.append(state.global_step)

    trainer = make_trainer(max_steps=4, save_strategy="steps", save_steps=3)
    trainer.callback_handler.callbacks.insert(0, Listener())
    trainer.add_callback(Signals(signal.SIGINT, 1))
    trainer.add_callback(Listener())
    with pytest.raises(Stopped, match="after step 2 of 4"):
        trainer.train()
    assert heard == [2, 2] and (tmp_path / "left_out.json").exists() is False


@pytest.mark.slow
def test_ten_kills_change_nothing(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path) -> None:
    options = {**OPTIONS, "num_train_epochs": 30, "save_total_limit": 2}
    whole = make_trainer(evaluation=corpus, **options, output_dir=str(tmp_path / "whole"))
    began = time.monotonic()
    whole.train()
    seconds = time.monotonic() - began

    def go_on() -> HolisticCLIPTrainer:
        trainer = make_trainer(evaluation=corpus, **options, output_dir=str(tmp_path / "killed"))
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(tmp_path / "killed") is not None)
        return trainer

    draw, steps = random.Random(0), []
    for _ in range(10):
        process = multiprocessing.get_context("fork").Process(target=go_on)
        process.start()
        process.join(draw.uniform(0.2, 0.4) * seconds)
        process.kill()
        process.join()
        found = last_whole_checkpoint(tmp_path / "killed")
        steps.append(0 if found is None else int(found.name.split("-")[1]))
    assert steps == sorted(steps) and len(set(steps)) > 2, "it was killed on the way"
    expected = weights_of(whole)
    moved = [name for name, weight in weights_of(go_on()).items() if not torch.equal(weight, expected[name])]
    assert moved == []


def test_a_finished_run_takes_no_further_step(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Whose last step is in the midst of an epoch."""
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(**options)
    whole.train()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    expected = weights_of(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(resumed).items())
    assert resumed.state.global_step == 3


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which is not installed in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_who_saves_nothing_is_stopped_at_once_and_told(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=4)
    trainer.add_callback(Signals(signal.SIGINT, 1))
    with pytest.raises(Stopped, match="after step 1 of 4. Nothing of it is saved, since .* is 'no'") as ended:
        trainer.train()
    assert ended.value.exit_code == 130
    assert trainer.state.global_step == 1 and not list(tmp_path.glob("checkpoint-*"))


def test_a_second_ctrl_c_stops_at_once(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holistic_clip_hf.stopping._ECHO_SECONDS", 0.0)
    trainer = make_trainer(max_steps=4, save_strategy="steps")
    for _ in range(2):
        trainer.add_callback(Signals(signal.SIGINT, 1))
    with pytest.raises(Stopped) as ended:
        trainer.train()
    assert str(ended.value) == "" and trainer.state.global_step == 1


@pytest.mark.parametrize("workers", [1])
def test_a_signal_to_all_processes_lets_the_step_end(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path, workers: int
) -> None:
    """As a terminal and clusters send it: to the workers that decode images, too."""

    class ToWorkers(Signals):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == self.step:
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                assert children
                for process in (*map(int, children), os.getpid()):
                    os.kill(process, self.signum)

    trainer = make_trainer(max_steps=4, save_strategy="steps", dataloader_num_workers=workers)
    trainer.add_callback(ToWorkers(signal.SIGTERM, 2))
    with pytest.raises(Stopped, match="after step 3 of 4"):
        trainer.train()


@pytest.fixture
def saved(make_trainer: MakeTrainer, tmp_path: Path) -> Path:
    """A folder with three whole checkpoints."""
    make_trainer(max_steps=3, save_strategy="steps", save_steps=1).train()
    return tmp_path


def test_a_marker_lists_all_files(saved: Path) -> None:
    checkpoint = saved / "checkpoint-3"
    listed = json.loads((checkpoint / WHOLE_NAME).read_text())
    there = {path.name: path.stat().st_size for path in checkpoint.iterdir() if path.name != WHOLE_NAME}
    assert listed == {"processes": 1, "files": there}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(there)


DAMAGES: list[tuple[str, Callable[[Path], Any], str, bool]] = [
    ("optimizer.pt", Path.unlink, "optimizer.pt is missing", False),
    ("scheduler.pt", Path.unlink, "scheduler.pt is missing", False),
    ("rng_state.pth", Path.unlink, "rng_state.pth is missing", False),
    ("model.safetensors", Path.unlink, "the weights are missing", False),
    ("trainer_state.json", Path.unlink, "trainer_state.json is missing", False),
    ("optimizer.pt", lambda path: os.truncate(path, 5_000), r"optimizer.pt has 5,000 bytes instead of [\d,]+", True),
    ("model.safetensors", lambda path: os.truncate(path, 9_000), "model.safetensors has 9,000 bytes instead", True),
    ("rng_state.pth", lambda path: os.truncate(path, 0), "rng_state.pth has 0 bytes instead of", True),
    ("trainer_state.json", lambda path: os.truncate(path, 40), "trainer_state.json has 40 bytes instead", True),
    ("tokenizer.json", Path.unlink, "tokenizer.json is missing", True),
    (WHOLE_NAME, lambda path: path.write_text("{"), "whole.json is damaged", True),
    (WHOLE_NAME, lambda path: path.write_text("[]"), "whole.json is damaged", True),
]


@pytest.mark.parametrize("has_marker", [True, False], ids=["marked", "of-before"])
@pytest.mark.parametrize(("name", "damage", "lack", "needs_marker"), DAMAGES)
def test_what_is_not_whole_is_passed_over_by_name(
    make_trainer: MakeTrainer,
    saved: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], Any],
    lack: str,
    needs_marker: bool,
    has_marker: bool,
) -> None:
    if not has_marker:
        for marker in saved.glob(f"*/{WHOLE_NAME}"):
            marker.unlink()
        if name in (WHOLE_NAME, "tokenizer.json"):
            assert last_whole_checkpoint(saved) == saved / "checkpoint-3"
            return
        lack = f"{name} is cut short" if needs_marker else lack
    damage(saved / "checkpoint-3" / name)
    assert re.fullmatch(f"{lack}.*", find_lack(saved / "checkpoint-3"))
    with caplog.at_level(logging.WARNING):
        assert last_whole_checkpoint(saved) == saved / "checkpoint-2"
    assert re.search(rf"checkpoint-3 is not whole and is passed over: {lack}", caplog.text)
    message = rf"`resume_from_checkpoint` is .*checkpoint-3, which is not whole \({lack}.*\); expected a checkpoint"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=3).train(resume_from_checkpoint=str(saved / "checkpoint-3"))
    assert len([found for found in caplog.messages if "is passed over" in found]) == 1


def test_saving_again_begins_with_what_makes_it_unfinished(
    make_trainer: MakeTrainer, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else old and new files, killed between them, would be one checkpoint."""
    trainer = make_trainer(max_steps=3, save_strategy="steps", save_steps=1)

    def killed(output_dir: str) -> None:
        assert find_lack(Path(output_dir)) == "trainer_state.json is missing"
        raise MemoryError

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(MemoryError):
        trainer.train(resume_from_checkpoint=str(saved / "checkpoint-2"))
    assert last_whole_checkpoint(saved) == saved / "checkpoint-2"


def test_older_checkpoints_go_when_the_new_one_is_complete(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between their removal and the marker finds a checkpoint all of whose files open."""

    def rotate(**kwargs: Any) -> None:
        found = sorted(tmp_path.glob("checkpoint-*"))[-1]
        assert find_lack(found) == "" and not (found / WHOLE_NAME).exists()
        seen.append(found.name)

    seen: list[str] = []
    monkeypatch.setattr("transformers.trainer.rotate_checkpoints", rotate)
    make_trainer(max_steps=2, save_strategy="steps", save_steps=1, save_total_limit=1).train()
    assert seen == ["checkpoint-1", "checkpoint-2"]


HOLDER = """
import sys, time
from pathlib import Path
from holistic_clip_hf.locks import hold_lock
with hold_lock(Path(sys.argv[1]) / ".lock"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_two_trainings_into_one_output(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    other = holder(tmp_path, 60)
    message = rf"{re.escape(str(tmp_path))} is being written by process {other.pid} since 20.*; expected one process"
    trainer = make_trainer(max_steps=1)
    before = weights_of(trainer)
    with pytest.raises(InUseError, match=message):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(trainer).items())
    other.kill()
    other.wait()
    trainer.train()
    assert (tmp_path / ".lock").read_bytes() == b"", "nobody is named after the end"


def test_a_lock_waits_for_what_a_dead_process_has_forked(tmp_path: Path) -> None:
    """The workers of a data loader notice the end of a killed training within seconds, and hold its lock till then."""
    code = "import os, sys, time\n" + HOLDER.replace("print(", "child = os.fork()\n    child and print(")
    code = code.replace("time.sleep(float(sys.argv[2]))", "time.sleep(2 if child == 0 else 60)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    began = time.monotonic()
    with hold_lock(tmp_path / ".lock"):
        assert time.monotonic() - began < 20


def test_a_lock_that_waits_and_a_folder_made_for_it(tmp_path: Path) -> None:
    other = holder(tmp_path / "one", 1)
    with hold_lock(tmp_path / "one" / ".lock", wait=math.inf):
        assert other.wait() == 0
    assert not (tmp_path / "one").exists() or os.listdir(tmp_path / "one") == [".lock"]
    with pytest.raises(RuntimeError), hold_lock(tmp_path / "two" / ".lock"):
        raise RuntimeError
    assert not (tmp_path / "two").exists()


def test_a_stop_saves_all_of_it_where_checkpoints_hold_weights_alone(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "save_only_model": True}
    whole = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    assert not (tmp_path / "whole" / "checkpoint-3" / "optimizer.pt").exists()
    stopped = make_trainer(**options)
    stopped.add_callback(Signals(signal.SIGTERM, 1))
    with pytest.raises(Stopped):
        stopped.train()
    assert stopped.args.save_only_model
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    assert not (tmp_path / "checkpoint-3" / "optimizer.pt").exists()
    torch.testing.assert_close(weights_of(resumed), weights_of(whole), rtol=0, atol=0)
