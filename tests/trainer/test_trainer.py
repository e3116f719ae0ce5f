"""The trainer: what moves, what is clamped and logged, what evaluation sees, and that resuming changes nothing."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer.augmentation import Augmentation
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator
from reference import loss_of

MakeModel = Callable[..., HolisticCLIPModel]
MakeTrainer = Callable[..., HolisticCLIPTrainer]
SLOTS = ["short", "colour", "shape"]


def weights(model: HolisticCLIPModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "vision", [{}, {"branch_type": "mlp"}, {"branch_type": "probe"}, {"patch_stem": "convolutional"}], ids=str
)
def test_every_parameter_moves(make_trainer: MakeTrainer, vision: dict[str, Any]) -> None:
    trainer = make_trainer({"vision": vision, "diversity_threshold": 0.0}, weight_decay=0.0)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    still = [name for name in before if torch.equal(before[name], after[name])]
    # What is added to every key alike changes no attention.
    assert [name for name in still if not name.endswith("k_proj.bias")] == []
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize(("start", "expected"), [(5.0, math.log(20)), (-1.0, 0.0)])
def test_temperature_is_clamped(make_trainer: MakeTrainer, start: float, expected: float) -> None:
    trainer = make_trainer(logit_scale_max=20.0, max_steps=1, learning_rate=1e-5)
    trainer.model.logit_scale.data.fill_(start)
    trainer.train()
    assert trainer.model.logit_scale.item() == pytest.approx(expected, abs=1e-6)


def test_parts_of_the_loss_are_logged(make_trainer: MakeTrainer) -> None:
    options = {"diversity_weight": 0.5, "diversity_threshold": 0.0, "fused_weight": 2.0}
    trainer = make_trainer(options, max_steps=3)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [1, 2, 3]
    for entry in logs:
        assert entry["diversity"] > 0
        total = entry["contrastive"] + 2.0 * entry["fused"] + 0.5 * entry["diversity"]
        assert entry["loss"] == pytest.approx(total, abs=3e-4)
    assert logs[-1]["logit_scale"] == pytest.approx(trainer.model.logit_scale.exp().item())
    seldom = make_trainer(options, max_steps=3, logging_steps=3)
    seldom.train()
    mean = sum(entry["contrastive"] for entry in logs) / 3
    assert seldom.state.log_history[0]["contrastive"] == pytest.approx(mean, abs=1e-5)


def score_by_loops(one: Tensor, other: Tensor, scale: float | None) -> float:
    """Of two vectors, their product. Of branches and a text, the greatest, or weighted by their softmax at a scale."""
    branches, text = (one, other) if one.ndim > other.ndim else (other, one)
    products = (branches @ text).reshape(-1)
    if len(products) == 1:
        return float(products)
    return float(products.max() if scale is None else (scale * products).softmax(dim=0) @ products)


def recall_by_loops(
    queries: list[Tensor], candidates: list[Tensor], correct: list[set[int]], k: int, scale: float | None = None
) -> float:
    hits = 0
    for query, right in zip(queries, correct, strict=True):
        scores = [score_by_loops(query, candidate, scale) for candidate in candidates]
        best = max(scores[index] for index in right)
        hits += sum(score > best for index, score in enumerate(scores) if index not in right) < k
    return hits / len(queries)


def recalls_of_slot(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, rows: list[dict[str, Any]], slot: str
) -> dict[str, float]:
    """Everything encoded one by one; equal texts are one text, which all its images are right for."""
    pixels = [processor(images=row["image"], return_tensors="pt")["pixel_values"] for row in rows]
    is_linear = model.config.fusion not in ("max", "softmax")
    features = [model.get_image_features(values) for values in pixels]
    images = [(each.pooler_output if is_linear else each.branch_embeds)[0].detach() for each in features]
    owned = [next((c["text"] for c in row["captions"] if c["perspective"] == slot), None) for row in rows]
    texts = sorted({text for text in owned if text})
    tokens = [processor(text=[text], return_tensors="pt")["input_ids"] for text in texts]
    embeds = [model.get_text_features(ids).pooler_output[0].detach() for ids in tokens]
    images_of = [{index for index, text in enumerate(owned) if text == one} for one in texts]
    askers = [image for image, text in zip(images, owned, strict=True) if text]
    text_of = [{texts.index(text)} for text in owned if text]
    scale = model.logit_scale.exp().item() if model.config.fusion == "softmax" else None
    found = {}
    for k in (1, 5, 10):
        found[f"text_to_image_recall@{k}"] = recall_by_loops(embeds, images, images_of, k, scale)
        found[f"image_to_text_recall@{k}"] = recall_by_loops(askers, embeds, text_of, k, scale)
    return found


@pytest.mark.parametrize("fusion", ["centroid", "mean", "routed", "max", "softmax"])
def test_evaluation_equals_a_recomputation(
    make_trainer: MakeTrainer, processor: HolisticCLIPProcessor, corpus: Dataset, fusion: str
) -> None:
    def lose_one(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"captions": [c for c in row["captions"] if (index, c["perspective"]) != (2, "shape")]}

    seven = corpus.select(range(7)).map(lose_one, with_indices=True)  # batches of four and three
    slots = SLOTS[::-1]
    trainer = make_trainer({"fusion": fusion}, evaluation=seven, slots=slots)
    metrics = trainer.evaluate()
    assert trainer.args.dataloader_drop_last is True
    model, rows, means = trainer.model.eval(), list(seven), {}
    for slot in SLOTS:
        for name, value in recalls_of_slot(model, processor, rows, slot).items():
            assert metrics[f"eval_{slot}_{name}"] == pytest.approx(value), (slot, name)
            means.setdefault(name, []).append(value)
    for name, values in means.items():
        assert metrics[f"eval_{name}"] == pytest.approx(sum(values) / 3)
    assert 0 < metrics["eval_text_to_image_recall@5"] < 1, "neither trivial"
    losses = []
    for part in (rows[:4], rows[4:]):
        batch = HolisticCLIPCollator(processor, slots)(part)
        del batch["image_ids"], batch["image_mask"], batch["left_out"]
        output = model(**batch)
        given = {name: batch[name] for name in ("caption_mask", "caption_ids")}
        given |= {"branch_of_slot": [2, 1, 0], "fused_weight": 1.0, "fusion": fusion, "routing": output.routing}
        loss = loss_of(output.branch_embeds, output.text_embeds, output.logit_scale, **given)
        losses.append(loss.total.item())
    assert metrics["eval_loss"] == pytest.approx((4 * losses[0] + 3 * losses[1]) / 7, rel=1e-5)


def test_loss_only_evaluation(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    trainer = make_trainer(evaluation=corpus, prediction_loss_only=True)
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    assert not [name for name in metrics if "recall" in name]


def test_evaluation_without_a_slot_says_so(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    """Before training, not after an hour of it."""
    plain = [{**row, "captions": row["captions"][:1]} for row in corpus]
    names = {caption["perspective"] for row in plain for caption in row["captions"]}
    assert names == {"short"}
    evaluation = Dataset.from_list(plain, features=corpus.features)
    with pytest.raises(
        ValueError, match=r"`eval_dataset` has no caption of \['colour', 'shape'\]; expected some of short"
    ):
        make_trainer(evaluation=evaluation)
    with pytest.raises(ValueError, match=r"`train_dataset` has no caption of \['style'\]"):
        make_trainer(slots=[*SLOTS, "style"])


def test_several_gpus_in_one_process_are_refused(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HolisticCLIPTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        make_trainer()


def test_prediction_sees_every_row_without_augmentation(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    trainer = make_trainer(augmentation=Augmentation(size=32, scale=(0.1, 0.2)))
    batches = list(trainer.get_test_dataloader(corpus.select(range(7))))
    assert [len(batch["pixel_values"]) for batch in batches] == [4, 3]
    expected = trainer.processing_class(images=corpus[:4]["image"], return_tensors="pt")["pixel_values"]
    assert torch.equal(batches[0]["pixel_values"], expected)


def test_workers_that_stay_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first epoch for ever"):
        HolisticCLIPTrainingArguments(str(tmp_path), dataloader_num_workers=1, dataloader_persistent_workers=True)


def test_accumulating_the_same_batch_is_one_batch(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    four = corpus.select(range(4))
    thrice = corpus.select([0, 1, 2, 3] * 3)
    options = {"optim": "sgd", "weight_decay": 0.0, "learning_rate": 0.1, "max_steps": 1}
    options["train_sampling_strategy"] = "sequential"
    once, accumulated = (
        make_trainer(train=four, **options),
        make_trainer(train=thrice, gradient_accumulation_steps=3, **options),
    )
    start = weights(once.model)
    once.train()
    accumulated.train()
    expected, found = weights(once.model), weights(accumulated.model)
    assert (expected["visual_projection.weight"] - start["visual_projection.weight"]).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [2, 3])
def test_resuming_changes_nothing(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path, step: int) -> None:
    """Random windows and shuffling included: two steps per epoch, stopped after an epoch and in the middle of one."""
    corpus = corpus.select(range(8))
    augmentation = Augmentation(size=32, scale=(0.3, 0.9))
    options = {"augmentation": augmentation, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(train=corpus, **options)
    whole.train()
    torch.manual_seed(99)
    resumed = make_trainer({"seed": 5}, train=corpus, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert resumed.state.global_step == 4
    found, expected = weights(resumed.model), weights(whole.model)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_checkpoint_loads(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    model = AutoModel.from_pretrained(tmp_path / "checkpoint-1", trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(tmp_path / "checkpoint-1", trust_remote_code=False)
    assert type(model) is HolisticCLIPModel and type(processor) is HolisticCLIPProcessor
    batch = HolisticCLIPCollator(processor, SLOTS)(list(corpus))
    del batch["image_ids"], batch["image_mask"], batch["left_out"]
    found, expected = model.eval()(**batch), trainer.model.eval()(**batch)
    state = trainer.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found.branch_embeds, expected.branch_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=1e-5, atol=1e-6)


def test_one_branch_takes_all_slots(make_trainer: MakeTrainer) -> None:
    options = {"vision": {"num_branches": 1}, "perspectives": ["all"]}
    trainer = make_trainer(options, slots=SLOTS)
    assert trainer.branch_of_slot == [-1, -1, -1]
    trainer.train()
    assert trainer.state.global_step == 2
    assert make_trainer(slots=["shape", "colour", "short"]).branch_of_slot == [2, 1, 0]


def test_impossible_temperature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`logit_scale_max` is 0.5"):
        HolisticCLIPTrainingArguments(str(tmp_path), logit_scale_max=0.5)


def test_branch_without_a_slot_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=r"No slot trains the branches \['colour', 'shape'\]"):
        make_trainer(slots=["short"])


def test_a_loss_that_is_no_number_stops_with_the_images(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    trainer = make_trainer(train=corpus.select(range(4)), per_device_train_batch_size=4)
    with torch.no_grad():
        trainer.model.visual_projection.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="The loss is nan at step 0, on the images") as caught:
        trainer.train()
    assert all(image_id in str(caught.value) for image_id in corpus["image_id"][:4])


def test_accumulation_says_what_it_does_not_do(make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(gradient_accumulation_steps=2, gradient_cache_size=2)
    make_trainer()
    assert not [record for record in caplog.records if record.name.startswith("holistic_clip_hf")]
    make_trainer(gradient_accumulation_steps=2)
    assert "only from those of its own micro-batch of 4" in caplog.text


def test_an_image_alone_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="an image alone has no other"):
        make_trainer(per_device_train_batch_size=1)


@pytest.mark.parametrize("matching", ["aligned", "free", "balanced"])
def test_shares_of_branches_are_logged_where_captions_choose(make_trainer: MakeTrainer, matching: str) -> None:
    trainer = make_trainer({"matching": matching}, max_steps=1)
    trainer.train()
    shares = {name: value for name, value in trainer.state.log_history[0].items() if name.startswith("share_of_")}
    if matching == "aligned":
        assert shares == {}
        return
    assert shares.keys() == {f"share_of_{name}" for name in SLOTS}
    assert sum(shares.values()) == pytest.approx(1.0)
    if matching == "balanced":  # four images of three captions: four for each branch
        assert list(shares.values()) == pytest.approx([1 / 3] * 3, abs=0.1)


@pytest.fixture
def trained(make_trainer: MakeTrainer) -> Callable[..., dict[str, Tensor]]:
    """Weights after training with dropout, which draws of the same random numbers as everything else."""

    def train(**options: Any) -> dict[str, Tensor]:
        trainer = make_trainer({"vision": {"patch_dropout": 0.5}}, **options)
        trainer.train()
        return weights(trainer.model)

    return train


def test_evaluation_does_not_disturb_training(trained: Callable[..., dict[str, Tensor]], corpus: Dataset) -> None:
    expected = trained()
    found = trained(evaluation=corpus, eval_strategy="steps", eval_steps=1)
    assert [name for name, weight in found.items() if not torch.equal(weight, expected[name])] == []


def test_nothing_to_resume_from_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint that all 1 processes have saved to its end"):
        make_trainer().train(resume_from_checkpoint=True)
