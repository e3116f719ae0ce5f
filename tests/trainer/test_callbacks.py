"""The moving average of the weights: what it is, when it is used, and that resuming does not lose it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState

from holistic_clip_hf.trainer import HolisticCLIPTrainer
from holistic_clip_hf.trainer.callbacks import EMA_NAME, MovingAverage
from holistic_clip_hf.trainer.resuming import WHOLE_NAME

MakeTrainer = Callable[..., HolisticCLIPTrainer]


class History(TrainerCallback):
    """The weights at the start and after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def note(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})

    on_train_begin = on_step_end = note


def test_training_ends_with_the_average(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4}
    trainer = make_trainer(ema_decay=0.3, **options)
    history = History()
    trainer.add_callback(history)
    trainer.train()
    average = history.weights[0]
    for step, weights in enumerate(history.weights[1:], start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    found = {name: weight.detach() for name, weight in trainer.model.named_parameters()}
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-6)
    # A checkpoint holds both: the weights to go on from, and their average.
    state = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert torch.equal(state["logit_scale"], history.weights[-1]["logit_scale"])
    assert torch.equal(load_file(tmp_path / "checkpoint-4" / EMA_NAME)["logit_scale"], found["logit_scale"])


def test_evaluation_sees_the_average(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    trainer = make_trainer(ema_decay=0.99, evaluation=corpus, eval_strategy="steps", eval_steps=2, max_steps=2)
    trainer.train()
    during = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        during, abs=1e-6
    )  # the average is what training ended with


def test_resuming_brings_the_average_back(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "ema_decay": 0.9}
    whole = make_trainer(train=corpus, **options)
    whole.train()
    resumed = make_trainer({"seed": 5}, train=corpus, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = dict(whole.model.named_parameters())
    assert [name for name, weight in resumed.model.named_parameters() if not torch.equal(weight, expected[name])] == []
    for name in (EMA_NAME, WHOLE_NAME):
        (tmp_path / "checkpoint-2" / name).unlink()
    with pytest.raises(ValueError, match="trained without `ema_decay`"):
        make_trainer(train=corpus, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_early_stopping_ends_with_the_best(
    make_trainer: MakeTrainer, corpus: Dataset, ema_decay: float | None
) -> None:
    """A learning rate that spoils the model: recall falls, training stops, and the best weights come back."""
    metric = "image_to_text_recall@5"
    trainer = make_trainer(
        {"fused_weight": 0.0},
        evaluation=corpus,
        max_steps=12,
        learning_rate=0.3,
        ema_decay=ema_decay,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=True,
    )
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    history = [entry[f"eval_{metric}"] for entry in trainer.state.log_history if f"eval_{metric}" in entry]
    assert trainer.state.global_step < 12 and trainer.state.best_metric == max(history) > min(history)
    assert trainer.evaluate()[f"eval_{metric}"] == max(history)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_average_is_kept_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """A weight that goes from 1 to 1.5 at the first step, and stays there for 5,000."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    model.weight.data.fill_(1.0)
    average, state = MovingAverage(model, 0.999), TrainerState()
    average.on_train_begin(None, state, None)
    model.weight.data.fill_(1.5)
    left = 1.0
    for state.global_step in range(1, 5001):
        average.on_step_end(None, state, None)
        left *= min(0.999, (1 + state.global_step) / (10 + state.global_step))
    assert average.average["weight"].dtype == torch.float32
    assert average.average["weight"].item() == pytest.approx(1.5 - 0.5 * left, abs=1e-4)
    average.save(tmp_path)
    save_file({"weight": torch.full((1, 1), 1.25, dtype=torch.bfloat16)}, tmp_path / EMA_NAME)  # of an earlier version
    average.load(tmp_path)
    assert average.average["weight"].dtype == torch.float32
    average.on_train_end(None, state, None)
    assert model.weight.dtype == dtype and model.weight.item() == 1.25


def test_statistics_of_a_batch_norm_are_averaged_with_its_weights(tmp_path: Path) -> None:
    """By a plain loop: what the norm measured after each step, at the decay of that step."""
    norm = nn.BatchNorm1d(2)
    norm.bias.requires_grad_(False)
    average, state, expected = MovingAverage(norm, 0.5), TrainerState(), torch.zeros(2)
    average.on_train_begin(None, state, None)
    for state.global_step in range(1, 4):
        norm(torch.randn(8, 2) + 5)
        decay = min(0.5, (1 + state.global_step) / (10 + state.global_step))
        expected = decay * expected + (1 - decay) * norm.running_mean
        average.on_step_end(None, state, None)
    assert average.average.keys() == {"weight", "running_mean", "running_var"}
    measured = norm.running_mean.clone()
    with average.in_place():
        torch.testing.assert_close(norm.running_mean, expected)
    assert torch.equal(norm.running_mean, measured) and not torch.equal(measured, expected)
    average.save(tmp_path)
    average.load(tmp_path)
    average.on_train_end(None, state, None)
    torch.testing.assert_close(norm.running_mean, expected)
