"""Refusals before the first step: weights that cannot learn, and texts that would be read where they do not end."""

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import CLIPProcessor

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor, LossOptions
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments

SLOTS = ["short", "colour", "shape"]
LEGACY = 2


@pytest.fixture
def trainer_of(corpus: Dataset, tmp_path: Path) -> Callable[..., HolisticCLIPTrainer]:
    def make(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, **arguments: Any) -> HolisticCLIPTrainer:
        options = {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4, "save_strategy": "no"}
        options |= {"use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-3}
        args = HolisticCLIPTrainingArguments(str(tmp_path / "run"), **(options | arguments))
        return HolisticCLIPTrainer(model, args, processing_class=processor, train_dataset=corpus)

    return make


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_refused(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    trainer_of: Callable[..., HolisticCLIPTrainer],
    tmp_path: Path,
    dtype: torch.dtype,
) -> None:
    """What transformers loads by itself from a checkpoint that was saved in half precision."""
    make_model(perspectives=SLOTS).to(dtype).save_pretrained(tmp_path)
    model = HolisticCLIPModel.from_pretrained(tmp_path)
    assert model.dtype == dtype
    message = rf"`model` has weights of {dtype}; expected torch.float32, .*Load it with `from_pretrained\(..., dtype="
    with pytest.raises(ValueError, match=message):
        trainer_of(model, processor)
    trainer_of(HolisticCLIPModel.from_pretrained(tmp_path, dtype=torch.float32), processor).train()
    # A tower that is not trained may be what it is.
    frozen = HolisticCLIPModel.from_pretrained(tmp_path, dtype=torch.float32)
    frozen.text_model.to(dtype)
    trainer_of(frozen, processor, frozen=["text_model.*"])


@pytest.mark.parametrize("said", [LEGACY, 7, None], ids=["old", "wrong", "missing"])
def test_a_tokenizer_that_ends_texts_elsewhere_is_refused(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    trainer_of: Callable[..., HolisticCLIPTrainer],
    said: int | None,
) -> None:
    text = {"vocab_size": 49408, "eos_token_id": 49407} if said is None else {"eos_token_id": said}
    model = make_model(perspectives=SLOTS, text=text)
    if said == LEGACY:  # the tokenizer's highest id is its end token: both mean the same
        trainer_of(model, processor)
        processor.tokenizer.add_tokens(["unheard"])
    end, where = processor.tokenizer.eos_token_id, "the highest id" if said == LEGACY else r"token \d+"
    with pytest.raises(ValueError, match=rf"ends texts with token {end} of \d+, and the model reads them at {where};"):
        trainer_of(model, processor)


def test_training_leaves_texts_where_they_are_read(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    trainer_of: Callable[..., HolisticCLIPTrainer],
    tmp_path: Path,
) -> None:
    """transformers aligns the configuration with the tokenizer when training begins."""
    model = make_model(perspectives=SLOTS, text={"eos_token_id": LEGACY})
    words = ["a red square", "one circle, drawn flat"]
    flat, nested = processor(text=words, return_tensors="pt"), processor.nested_captions([[word] for word in words])

    def vectors(model: HolisticCLIPModel) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            packed = model.eval().encode_captions(nested["input_ids"], nested["attention_mask"])[:, 0]
            return model.get_text_features(**flat).text_embeds, packed

    before = vectors(copy.deepcopy(model))
    trainer_of(model, processor, learning_rate=0.0).train()
    assert model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    for found in (*vectors(model), *vectors(HolisticCLIPModel.from_pretrained(tmp_path))):
        torch.testing.assert_close(found, before[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, before[1], rtol=1e-5, atol=1e-5)


def test_parameters_without_a_gradient_are_not_looked_for(tmp_path: Path) -> None:
    assert HolisticCLIPTrainingArguments(str(tmp_path)).ddp_find_unused_parameters is False


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "vision", [{}, {"branch_type": "mlp"}, {"branch_type": "probe"}, {"num_branches": 1}], ids=str
)
@pytest.mark.parametrize("fused", [{"fusion": "routed"}, {"fusion": "routed", "fused_weight": 0.0}, {}], ids=str)
def test_every_trained_parameter_has_a_gradient(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    trainer_of: Callable[..., HolisticCLIPTrainer],
    objective: str,
    vision: dict[str, Any],
    fused: dict[str, Any],
) -> None:
    """Data parallel training waits for each; a router of one branch, or one that no loss reaches, gets none."""
    names = ["all"] if vision.get("num_branches") == 1 else SLOTS
    model, reached = make_model(vision=vision, perspectives=names, objective=objective, **fused), set()
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    trainer_of(model, processor, slots=SLOTS, max_steps=1).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert reached == trained
    routed = fused == {"fusion": "routed"} and vision.get("num_branches") != 1
    assert any("router" in name for name in trained) == routed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logit_scale_max": math.nan}, "`logit_scale_max` is nan; expected 1 or more"),
        ({"learning_rate_multipliers": {"text_model.*": math.nan}}, "has {'text_model.*': nan}; expected 0 or more"),
        ({"learning_rate_multipliers": {"text_model.*": math.inf}}, "has {'text_model.*': inf}; expected 0 or more"),
        ({"learning_rate_multipliers": {"text_model.*": -1.0}}, "has {'text_model.*': -1.0}; expected 0 or more"),
        ({"ema_decay": math.nan}, "`ema_decay` is nan"),
    ],
)
def test_arguments_that_are_not_numbers_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HolisticCLIPTrainingArguments(str(tmp_path), **arguments)


@pytest.mark.parametrize("name", ["fused_weight", "diversity_weight", "diversity_threshold"])
def test_options_of_the_loss_are_numbers(name: str) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"`{name}` is {value}; expected"):
            LossOptions(**{name: value})


def test_parts_of_the_inherited_trainer_that_do_not_go_with_it_are_refused(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> None:
    model = make_model(perspectives=SLOTS)
    stock = CLIPProcessor(processor.image_processor, processor.tokenizer)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def make(part: Any = processor, multipliers: dict[str, float] | None = None, **given: Any) -> HolisticCLIPTrainer:
        options = {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4, "save_strategy": "no"}
        options |= {"use_cpu": True, "disable_tqdm": True, "learning_rate_multipliers": multipliers or {}}
        args = HolisticCLIPTrainingArguments(str(tmp_path), **options)
        return HolisticCLIPTrainer(model, args, processing_class=part, train_dataset=corpus, **given)

    with pytest.raises(ValueError, match="`processing_class` is CLIPProcessor; expected HolisticCLIPProcessor.*Make"):
        make(stock)
    with pytest.raises(ValueError, match="`model_init` is given; expected `model` alone"):
        make(model_init=lambda: model)
    with pytest.raises(ValueError, match="`learning_rate_multipliers` have no effect.*Leave the multipliers out"):
        make(multipliers={"text_model.*": 0.1}, optimizers=(sgd, None))
    trainer = make(optimizers=(sgd, None))
    other = corpus.rename_column("captions", "texts")
    for measure in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match=r"`eval_dataset` has no column \['captions'\]; it has .*rename, or"):
            measure(other)
