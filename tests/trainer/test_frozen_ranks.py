"""Two processes on cached states train and measure as one on pixels, and one of them computes the states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from training_ranks import run_jobs

BELOW = ["vision_model.embeddings.*", "vision_model.pre_layrnorm.*", "vision_model.encoder.*"]


def test_ranks_share_states(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> None:
    make_model(vision={"branch_type": "probe"}, perspectives=["short", "colour", "shape"]).save_pretrained(
        tmp_path / "model"
    )
    processor.save_pretrained(tmp_path / "processor")
    rows = corpus.select([number % 8 for number in range(24)])
    rows.map(lambda row, number: {"image_id": f"{number}"}, with_indices=True).save_to_disk(tmp_path / "corpus")
    common: dict[str, Any] = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    common["train_sampling_strategy"] = "sequential"
    frozen = {"freeze_tower": True, "states_folder": str(tmp_path / "states"), "states_dtype": "float32"}
    jobs = {
        name: {
            "ranks": ranks,
            "evaluate": True,
            "arguments": {
                **common,
                **options,
                "per_device_train_batch_size": 8 // ranks,
                "per_device_eval_batch_size": 4 // ranks,
            },
        }
        for name, ranks, options in (("pixels", 2, {"frozen": BELOW}), ("cached", 2, frozen))
    }
    found = run_jobs(tmp_path, jobs)
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == [".lock", "eval", "train"]
    for rank in (0, 1):
        pixels, states = found["pixels"][rank], found["cached"][rank]
        for name, weight in pixels["weights"].items():
            torch.testing.assert_close(states["weights"][name], weight, rtol=1e-6, atol=1e-6)
        for name, value in pixels["metrics"].items():
            if "recall" in name or name == "eval_loss":
                assert states["metrics"][name] == pytest.approx(value, abs=1e-6)
    before = HolisticCLIPModel.from_pretrained(tmp_path / "model").state_dict()
    probe = "vision_model.head.probe"
    assert not torch.equal(found["cached"][0]["weights"][probe], before[probe])
