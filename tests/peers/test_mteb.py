"""mteb evaluates a model through the adapter, and finds what our own retrieval finds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import pytest
import torch
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.mocks.mock_tasks.retrieval import MockAny2AnyRetrievalI2TTask, MockAny2AnyRetrievalT2ITask
from mteb.mocks.mock_tasks.zeroshot_classification import MockZeroShotClassificationTask
from PIL import Image
from torch import nn

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.adapters import mteb_encoder
from holistic_clip_hf.evaluation.ranking import recall_at, retrieval_ranks

MakeModel = Callable[..., HolisticCLIPModel]
TEXTS = [f"a {colour} {shape}" for colour in ("red", "green", "blue", "yellow") for shape in ("square", "circle")]


def images() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8, generator=generator).numpy())
        for _ in TEXTS
    ]


class Drawings(MockAny2AnyRetrievalT2ITask):
    """Text to image, one right image each."""

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        super().load_data()
        data = self.dataset["default"]["test"]
        data["queries"] = Dataset.from_dict({"id": [f"q{index}" for index in range(len(TEXTS))], "text": TEXTS})
        data["corpus"] = Dataset.from_dict({"id": [f"d{index}" for index in range(len(TEXTS))], "image": images()})
        data["relevant_docs"] = {f"q{index}": {f"d{index}": 1} for index in range(len(TEXTS))}


@pytest.mark.parametrize("options", [{"fusion": "mean"}, {"fusion": "routed"}], ids=["mean", "routed"])
def test_recall_equals_ours(make_model: MakeModel, processor: HolisticCLIPProcessor, options: dict[str, Any]) -> None:
    model = make_model(**options)
    if model.branch_fusion.router is not None:
        nn.init.normal_(model.branch_fusion.router.weight, std=4.0)
    encoder = mteb_encoder(model, processor, name="me/tiny")
    assert issubclass(Drawings, AbsTaskRetrieval)
    (found,) = mteb.evaluate(encoder, Drawings(), cache=None, show_progress_bar=False).task_results
    scores = found.scores["test"][0]
    with torch.no_grad():
        texts = model.get_text_features(**processor(text=TEXTS, return_tensors="pt")).pooler_output
        pictures = model.get_image_features(**processor(images=images(), return_tensors="pt")).pooler_output
    ranks = retrieval_ranks(texts, pictures, torch.arange(len(TEXTS))[:, None].expand(-1, 2))
    for k, recall in recall_at(ranks, (1, 3, 5)).items():
        assert scores[f"recall_at_{k}"] == pytest.approx(recall, abs=1e-4)
    assert 0 < recall_at(ranks, (5,))[5] < 1


@pytest.mark.parametrize("task", [MockAny2AnyRetrievalI2TTask, MockZeroShotClassificationTask])
def test_other_kinds_of_tasks_run(make_model: MakeModel, processor: HolisticCLIPProcessor, task: Any) -> None:
    encoder = mteb_encoder(make_model(), processor, name="me/tiny")
    (found,) = mteb.evaluate(encoder, task(), cache=None, show_progress_bar=False).task_results
    assert 0 <= found.get_score() <= 1


def test_a_task_without_texts_or_images_is_refused(
    make_model: MakeModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    encoder = mteb_encoder(make_model(), processor, name="me/tiny")
    with pytest.raises(ValueError, match=r"fusion is 'max'.*Expected is centroid, mean, weighted or routed"):
        mteb_encoder(make_model(fusion="max"), processor, name="me/tiny")
    with pytest.raises(ValueError, match=r"A batch has \['audio'\]; expected `text`, `image` or both"):
        encoder.encode([{"audio": [0]}])
