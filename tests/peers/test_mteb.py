"""mteb evaluates a model through the adapter, and finds what our own retrieval finds."""

import json
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
from holistic_clip_hf.publishing.model_card import CardFacts, save_facts
from holistic_clip_hf.publishing.mteb_results import MODELS_FILE, write_mteb_results

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


COMMIT = "0123456789abcdef0123456789abcdef01234567"
FACTS = CardFacts(
    "me/tiny-1",
    "tiny",
    license="cc-by-sa-4.0",
    base_model="openai/clip-vit-base-patch32",
    code_url="https://example.com/code",
)


@pytest.fixture
def checkpoint(make_model: MakeModel, processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    for part in (make_model(), processor):
        part.save_pretrained(tmp_path / "checkpoint")
    save_facts(tmp_path / "checkpoint" / "card_facts.json", FACTS)
    return tmp_path / "checkpoint"


def test_results_lie_as_mteb_reads_them_and_are_kept(
    checkpoint: Path, tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [Drawings(), MockZeroShotClassificationTask()]
    output = tmp_path / "out"
    folder = write_mteb_results(checkpoint, output, tasks[:1], revision=COMMIT, languages=["eng-Latn"])
    assert folder == output / "results" / "me__tiny-1" / COMMIT
    names = {path.name for path in folder.iterdir()}
    assert names == {"MockAny2AnyRetrievalT2I.json", "model_meta.json", "run_settings.jsonl"}
    written = (folder / "MockAny2AnyRetrievalT2I.json").read_bytes()

    # A second run adds what is missing and computes nothing again.
    monkeypatch.setattr(Drawings, "evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    write_mteb_results(checkpoint, output, tasks, revision=COMMIT, languages=["eng-Latn"])
    assert (folder / "MockAny2AnyRetrievalT2I.json").read_bytes() == written
    cache = mteb.ResultCache(output)
    found = {task.metadata.name: cache.load_task_result(task.metadata.name, "me/tiny-1", COMMIT) for task in tasks}
    assert all(result is not None and 0 <= result.get_score() <= 1 for result in found.values())

    meta = json.loads((folder / "model_meta.json").read_text())
    model = make_model()
    assert meta["name"] == "me/tiny-1" and meta["revision"] == COMMIT and meta["loader"] == "load_mteb_encoder"
    assert meta["n_parameters"] == sum(each.numel() for each in model.parameters()) and meta["embed_dim"] == 16
    assert meta["n_embedding_parameters"] == model.config.text_config.vocab_size * 32
    assert (meta["license"], meta["adapted_from"]) == ("cc-by-sa-4.0", "openai/clip-vit-base-patch32")
    assert meta["reference"] == "https://huggingface.co/me/tiny-1" and meta["similarity_fn_name"] == "dot"
    assert meta["public_training_code"] == "https://example.com/code" and meta["languages"] == ["eng-Latn"]


def test_the_entry_of_mtebs_registry_loads_the_checkpoint(
    checkpoint: Path, tmp_path: Path, processor: HolisticCLIPProcessor, make_model: MakeModel
) -> None:
    write_mteb_results(checkpoint, tmp_path / "out", [Drawings()], revision=COMMIT)
    names: dict[str, Any] = {}
    exec((tmp_path / "out" / MODELS_FILE).read_text(), names)
    meta = names["tiny_1"]
    assert meta.name == "me/tiny-1" and meta.revision == COMMIT and meta.embed_dim == 16
    encoder = meta.loader(str(checkpoint), device="cpu")
    texts = encoder.encode([{"text": TEXTS[:3]}, {"text": TEXTS[3:]}])
    with torch.no_grad():
        expected = make_model().get_text_features(**processor(text=TEXTS, return_tensors="pt")).pooler_output
    torch.testing.assert_close(texts, expected, rtol=1e-5, atol=1e-6)


def test_results_need_a_name_on_the_hub(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`tasks` is empty"):
        write_mteb_results(checkpoint, tmp_path / "out", [], revision=COMMIT)
    save_facts(checkpoint / "card_facts.json", CardFacts("tiny", "tiny"))
    with pytest.raises(ValueError, match="`repo_id` is 'tiny'; expected owner/name"):
        write_mteb_results(checkpoint, tmp_path / "out", [], revision=COMMIT)
    assert not (tmp_path / "out").exists()
