"""Adapters of peft in the trainer: a run that is resumed ends as one that was never interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from holistic_clip_hf import HolisticCLIPProcessor
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments

peft = pytest.importorskip("peft")
SLOTS = ["short", "colour", "shape"]


def lora_trainer(
    make_model: Any, processor: HolisticCLIPProcessor, corpus: Dataset, folder: Path, seed: int
) -> HolisticCLIPTrainer:
    """Factors are drawn by the seed, so that what is not loaded on resuming would show."""
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["visual_projection"], init_lora_weights=False
    )
    options: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-2, "warmup_steps": 0, "logging_steps": 1}
    options |= {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2, "use_cpu": True}
    return HolisticCLIPTrainer(
        peft.get_peft_model(make_model(perspectives=SLOTS), settings),
        HolisticCLIPTrainingArguments(str(folder), disable_tqdm=True, **options),
        processing_class=processor,
        train_dataset=corpus,
    )


def test_a_resumed_adapter_ends_as_if_it_never_stopped(
    make_model: Any, processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> None:
    def weights(trainer: HolisticCLIPTrainer) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}

    whole = lora_trainer(make_model, processor, corpus, tmp_path, seed=1)
    start = weights(whole)
    whole.train()
    expected = weights(whole)
    moved = {name for name, value in expected.items() if not torch.equal(value, start[name])}
    assert {name for name in moved if "lora_" in name} and all(
        "lora_" in name or "modules_to_save" in name for name in moved
    )
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").is_file()
    resumed = lora_trainer(make_model, processor, corpus, tmp_path, seed=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found = weights(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
