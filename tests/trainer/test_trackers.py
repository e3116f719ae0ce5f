"""Trackers that people use get the trainer's numbers, each where it is installed; nothing leaves this machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from holistic_clip_hf.trainer import HolisticCLIPTrainer

MakeTrainer = Callable[..., HolisticCLIPTrainer]


def train(make_trainer: MakeTrainer, corpus: Dataset, tracker: str) -> HolisticCLIPTrainer:
    trainer = make_trainer(evaluation=corpus, eval_strategy="steps", eval_steps=2, max_steps=2, report_to=tracker)
    trainer.train()
    return trainer


def logged(trainer: HolisticCLIPTrainer, name: str) -> float:
    (value,) = (log[name] for log in trainer.state.log_history if name in log)
    return value


def test_tensorboard(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = train(make_trainer, corpus, "tensorboard")
    (file,) = (tmp_path / "board").rglob("events.*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    for shown, name in (("eval/branch_similarity", "eval_branch_similarity"), ("eval/loss", "eval_loss")):
        (scalar,) = events.Scalars(shown)
        assert scalar.value == pytest.approx(logged(trainer, name), rel=1e-5)
    assert len(events.Scalars("train/loss")) == 2


def test_wandb_offline(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    trainer = train(make_trainer, corpus, "wandb")
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert summary["eval/branch_similarity"] == pytest.approx(logged(trainer, "eval_branch_similarity"))


def test_trackio(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read as it is imported
    pytest.importorskip("trackio")
    train(make_trainer, corpus, "trackio")
    assert any((tmp_path / "trackio").rglob("*")), "a local database"
