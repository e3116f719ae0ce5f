"""`evaluate` loads our modules by path, offline, and they say what the functions behind them say."""

from collections.abc import Iterator
from pathlib import Path

import evaluate
import pytest
import torch

import holistic_clip_hf

MODULES = Path(holistic_clip_hf.__file__).parent / "evaluation" / "modules"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`evaluate` copies what it loads; once for all tests, since Python finds the copies in one place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


def load(name: str, tmp_path: Path) -> evaluate.Metric:
    return evaluate.load(str(MODULES / name), cache_dir=str(tmp_path / "cache"))


def test_every_module_has_the_name_of_its_folder() -> None:
    folders = [folder for folder in MODULES.iterdir() if (folder / "__init__.py").is_file()]
    assert folders and all((folder / f"{folder.name}.py").is_file() for folder in folders)


def test_retrieval(tmp_path: Path) -> None:
    metric = load("image_text_retrieval", tmp_path)
    metric.add_batch(predictions=[0, 4], references=[1, 1])
    metric.add_batch(predictions=[9, 0], references=[1, 2])
    assert metric.compute(num_candidates=10, ks=(1, 5)) == {
        "recall@1": 0.5,
        "recall@5": 0.75,
        "median_rank": 3.0,
        "chance_recall@1": pytest.approx((1 + 1 + 1 + 2) / 40),
        "chance_recall@5": pytest.approx((0.5 + 0.5 + 0.5 + 1 - 5 * 4 / 90) / 4),
        "chance_median_rank": pytest.approx(5.0, abs=1),
    }


def test_segmentation(tmp_path: Path) -> None:
    metric = load("zero_shot_segmentation", tmp_path)
    found = metric.compute(predictions=[[0, 0, 1, 1], [2, 2]], references=[[0, 1, 1, 255], [0, 0]], num_classes=4)
    # Class 0: one right, one said wrongly, two missed; class 1: one right, one missed; 2: twice wrong; 3: never.
    assert found["iou"] == [pytest.approx(1 / 4), pytest.approx(1 / 2), 0.0, None]
    assert found["mean_iou"] == pytest.approx(3 / 8)
    assert found["pixel_accuracy"] == pytest.approx(2 / 5)
    assert torch.tensor(found["mean_iou"]).isfinite()
    for given in ({"predictions": [[3]], "references": [[0]]}, {"predictions": [[0]], "references": [[-1]]}):
        with pytest.raises(ValueError, match="beyond the 3 classes"):
            load("zero_shot_segmentation", tmp_path).compute(**given, num_classes=3)


def test_classification(tmp_path: Path) -> None:
    metric = load("zero_shot_classification", tmp_path)
    metric.add_batch(predictions=[0, 0, 3], references=[2, 2, 2])
    metric.add_batch(predictions=[5], references=[0])
    # Class 2: two of three at first, all among five; class 0: never.
    assert metric.compute(num_classes=8, ks=(1, 5)) == {
        "accuracy@1": 0.5,
        "accuracy@5": 0.75,
        "mean_per_class_accuracy": pytest.approx((2 / 3 + 0) / 2),
        "chance_accuracy@1": 1 / 8,
        "chance_accuracy@5": 5 / 8,
    }
    with pytest.raises(ValueError, match="beyond the 2 classes"):
        load("zero_shot_classification", tmp_path).compute(predictions=[0], references=[2], num_classes=2)
