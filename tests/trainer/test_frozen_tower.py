"""A frozen tower: nothing of it changes, and its cached states train and measure as its images do."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModel, ResNetConfig, TrainerCallback

from conftest import CORPUS_SLOTS, IMAGE_SIZE, MAX_LENGTH, randomise
from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer.augmentation import Augmentation

MakeTrainer = Callable[..., HolisticCLIPTrainer]
PROBES = {"vision": {"branch_type": "probe"}, "diversity_threshold": 0.0}
BELOW = ["vision_model.embeddings.*", "vision_model.pre_layrnorm.*", "vision_model.encoder.*"]
EXACT = {"rtol": 1e-6, "atol": 1e-6}


def resnet(processor: HolisticCLIPProcessor) -> HolisticCLIPModel:
    """A tower with batch norm, whose running statistics are not those of a fresh one."""
    tower = ResNetConfig(hidden_sizes=[8, 32], depths=[1, 1], embedding_size=8, layer_type="basic")
    tokenizer = processor.tokenizer
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = HolisticCLIPConfig(
        vision_config={"backbone_config": tower, "image_size": IMAGE_SIZE},
        text_config={
            **text,
            **{name: getattr(tokenizer, name) for name in names},
            "vocab_size": len(tokenizer),
            "max_position_embeddings": MAX_LENGTH,
        },
        projection_dim=16,
        perspectives=CORPUS_SLOTS,
    )
    model = HolisticCLIPModel(config)
    randomise(model)
    model.train()
    with torch.no_grad():
        seeded = torch.Generator().manual_seed(3)
        model.get_image_features(torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE, generator=seeded))
    return model


def arguments(folder: Path, **options: Any) -> HolisticCLIPTrainingArguments:
    common = {"max_steps": 3, "learning_rate": 1e-2, "warmup_steps": 0, "per_device_train_batch_size": 4}
    common |= {"per_device_eval_batch_size": 4, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    return HolisticCLIPTrainingArguments(str(folder), **(common | options))


def gradients(trainer: HolisticCLIPTrainer) -> dict[str, Tensor]:
    """The gradients of the last step."""
    found: dict[str, Tensor] = {}

    class Take(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    trainer.add_callback(Take())
    trainer.train()
    return found


@pytest.mark.parametrize("frozen", [["vision_model.backbone.*"], ["vision_model.*"]], ids=str)
def test_frozen_batch_norms_keep_their_statistics(
    processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path, frozen: list[str]
) -> None:
    model = resnet(processor)
    before = copy.deepcopy(model.vision_model.backbone.state_dict())
    args = arguments(tmp_path, frozen=frozen)
    HolisticCLIPTrainer(model, args, processing_class=processor, train_dataset=corpus).train()
    after = model.vision_model.backbone.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_batch_norms_that_are_trained_go_on_averaging(
    processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> None:
    model = resnet(processor)
    norm = next(each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d))
    before, args = norm.running_mean.clone(), arguments(tmp_path, frozen=["text_model.*"])
    HolisticCLIPTrainer(model, args, processing_class=processor, train_dataset=corpus).train()
    assert not torch.equal(norm.running_mean, before)


def test_nothing_is_dropped_in_a_frozen_tower(make_trainer: MakeTrainer) -> None:
    dropping = {"branch_type": "probe", "attention_dropout": 0.5, "patch_dropout": 0.5}
    trainer = make_trainer({**PROBES, "vision": dropping}, frozen=BELOW, max_steps=4)
    seen: list[Tensor] = []
    trainer.model.vision_model.encoder.register_forward_hook(lambda *given: seen.append(given[2].last_hidden_state))
    trainer.train()  # two epochs of two steps, of which the first and the third see other images
    rows = [row for states in seen for row in states]
    assert len(rows) == 16 and rows[0].shape == (17, 32)
    alike = [sum(torch.allclose(row, other, atol=1e-5) for other in rows) for row in rows]
    assert alike == [2] * 16


@pytest.mark.parametrize("kind", ["own", "resnet"])
@pytest.mark.parametrize("size", [None, 2])
def test_gradients_are_those_on_pixels(
    make_trainer: MakeTrainer,
    processor: HolisticCLIPProcessor,
    corpus: Dataset,
    tmp_path: Path,
    kind: str,
    size: int | None,
) -> None:
    def trainer_of(**options: Any) -> HolisticCLIPTrainer:
        if kind == "own":
            return make_trainer(PROBES, gradient_cache_size=size, max_steps=1, **options)
        args = arguments(tmp_path, gradient_cache_size=size, max_steps=1, **options)
        return HolisticCLIPTrainer(resnet(processor), args, processing_class=processor, train_dataset=corpus)

    expected = gradients(trainer_of(frozen=BELOW if kind == "own" else ["vision_model.backbone.*"]))
    cached = trainer_of(freeze_tower=True, states_folder=str(tmp_path / "states"), states_dtype="float32")
    found = gradients(cached)
    assert found.keys() == expected.keys() and "vision_model.head.branch_probe" in found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **EXACT)


def test_no_step_runs_the_tower(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path) -> None:
    trainer = make_trainer(
        PROBES, evaluation=corpus, freeze_tower=True, states_folder=str(tmp_path / "states"), eval_strategy="epoch"
    )
    calls: list[int] = []
    trainer.model.vision_model.encoder.register_forward_hook(lambda *given: calls.append(len(given[1][0])))
    trainer.train()
    assert calls == [8, 8]  # each image of both sets once
    again = make_trainer(PROBES, evaluation=corpus, freeze_tower=True, states_folder=str(tmp_path / "states"))
    again.model.vision_model.encoder.register_forward_hook(lambda *given: calls.append(len(given[1][0])))
    again.train()
    assert calls == [8, 8]


def test_the_result_is_a_normal_checkpoint_of_equal_recall(
    make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"evaluation": corpus, "weight_decay": 0.0, "max_steps": 6}
    trainer = make_trainer(
        PROBES, freeze_tower=True, states_folder=str(tmp_path / "states"), states_dtype="float32", **options
    )
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    tower = tuple(pattern.removesuffix("*") for pattern in BELOW)
    assert moved == {name for name in before if not name.startswith(tower) and not name.endswith("k_proj.bias")} | {
        name for name in moved if name.endswith("k_proj.bias")
    }
    cached = trainer.evaluate()
    on_pixels = trainer.evaluate(corpus)
    trainer.save_model(str(tmp_path / "model"))
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    plain = make_trainer(PROBES, evaluation=corpus)
    plain.model.load_state_dict(loaded.state_dict())
    elsewhere = plain.evaluate()
    measured = [name for name in cached if "recall" in name or name in ("eval_loss", "eval_branch_similarity")]
    assert len(measured) > 8
    for name in measured:
        assert cached[name] == pytest.approx(on_pixels[name], abs=1e-6)
        assert cached[name] == pytest.approx(elsewhere[name], abs=1e-6)


def test_training_on_pixels_and_on_states_end_alike(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"optim": "sgd", "weight_decay": 0.0, "max_steps": 4, "captions_per_image": 2}
    augmentation = Augmentation(size=IMAGE_SIZE, scale=(0.3, 0.9))
    expected = make_trainer(PROBES, augmentation=augmentation, frozen=BELOW, **options)
    expected.train()
    cached = make_trainer(
        PROBES,
        augmentation=augmentation,
        freeze_tower=True,
        states_folder=str(tmp_path / "states"),
        states_dtype="float32",
        augmented_views=2,  # four steps of four of eight rows are two epochs
        **options,
    )
    cached.train()
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == [".lock", "train-0", "train-1"]
    for name, weight in expected.model.named_parameters():
        torch.testing.assert_close(cached.model.get_parameter(name), weight, **EXACT)


def test_several_sets_are_evaluated_by_their_names(make_trainer: MakeTrainer, corpus: Dataset, tmp_path: Path) -> None:
    sets = {"all": corpus, "some/of them": corpus.select(range(4))}
    trainer = make_trainer(
        PROBES, train=corpus, evaluation=sets, freeze_tower=True, states_folder=str(tmp_path / "states")
    )
    calls: list[int] = []
    trainer.model.vision_model.encoder.register_forward_hook(lambda *given: calls.append(len(given[1][0])))
    metrics = trainer.evaluate()
    assert {"eval_all_loss", "eval_some/of them_loss"} <= metrics.keys() and calls == [8, 8, 4]
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == [".lock", "eval-0", "eval-1", "train"]
    assert trainer.evaluate("all")["eval_loss"] == pytest.approx(metrics["eval_all_loss"], abs=1e-6)


def test_views_take_turns(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(
        PROBES,
        augmentation=Augmentation(size=IMAGE_SIZE, scale=(0.3, 0.9)),
        freeze_tower=True,
        states_folder=str(tmp_path / "states"),
        augmented_views=2,
    )
    trainer._prepare_states()
    rows = [trainer.train_dataset[row] for row in range(4)]
    found = []
    for trainer.data_collator.epoch in range(3):
        found.append(trainer.data_collator(rows)["tower_states"])
    assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[1], atol=1e-2)
    assert found[0].dtype == torch.float16


def test_captions_about_colour_are_missing_where_the_view_is_recoloured(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    slots = make_trainer(PROBES).data_collator.slots
    trainer = make_trainer(
        PROBES,
        augmentation=Augmentation(size=IMAGE_SIZE, recolouring=0.5, colour_perspectives=(slots[1],)),
        freeze_tower=True,
        states_folder=str(tmp_path / "states"),
        augmented_views=2,
    )
    trainer._prepare_states()
    pixels, numbers = trainer.data_collator.for_pixels(), range(len(trainer.train_dataset))
    with_pixels, cached = list(trainer.train_dataset.rows), [trainer.train_dataset[number] for number in numbers]
    images = make_trainer(PROBES).train_dataset
    told = []
    for epoch in range(4):
        pixels.epoch, trainer.data_collator.epoch = epoch % 2, epoch
        shown = pixels([{**row, "image": images[number]["image"]} for number, row in enumerate(with_pixels)])
        told.append(trainer.data_collator(cached)["caption_mask"])
        assert torch.equal(told[-1], shown["caption_mask"])
        assert told[-1][:, 0].all() and 0 < told[-1][:, 1].sum() < len(numbers)
    assert torch.equal(told[0], told[2]) and not torch.equal(told[0], told[1])


def test_workers_read_the_same(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    def weights(workers: int) -> dict[str, Tensor]:
        trainer = make_trainer(
            PROBES,
            freeze_tower=True,
            states_folder=str(tmp_path / f"states-{workers}"),
            dataloader_num_workers=workers,
        )
        trainer.train()
        return trainer.model.state_dict()

    alone, shared = weights(0), weights(2)
    assert all(torch.equal(alone[name], shared[name]) for name in alone)
    files = [(tmp_path / f"states-{workers}" / "train" / "states.bin").read_bytes() for workers in (0, 2)]
    assert files[0] == files[1]
