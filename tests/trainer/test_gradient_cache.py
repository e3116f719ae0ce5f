"""Gradient caching: the gradients of the whole batch, from pieces, with every random draw repeated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.trainer import HolisticCLIPTrainer
from holistic_clip_hf.trainer.gradient_cache import split_batch

MakeTrainer = Callable[..., HolisticCLIPTrainer]


def ragged(corpus: Dataset) -> Dataset:
    """Image 0 has no caption at all, image 3 lacks its second, image 5 its third."""

    def drop(row: dict[str, Any], index: int) -> dict[str, Any]:
        lost = {0: {0, 1, 2}, 3: {1}, 5: {2}}.get(index, set())
        return {"captions": [caption for place, caption in enumerate(row["captions"]) if place not in lost]}

    return corpus.map(drop, with_indices=True)


def gradients(trainer: HolisticCLIPTrainer, rows: Dataset) -> tuple[Tensor, dict[str, Tensor]]:
    """Of one training step on these rows."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator(list(rows))
    torch.manual_seed(3)
    loss = trainer.training_step(trainer.model, batch)
    return loss, {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("size", [1, 3, 8, 99])
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"vision": {"branch_type": "mlp"}},
        {"vision": {"branch_type": "probe"}},
        {"objective": "sigmoid"},
        {"matching": "balanced"},
        {"fusion": "routed", "fused_weight": 1.0},
        {"fused_weight": 1.0, "matryoshka_dims": [4, 8]},
    ],
    ids=["cls", "mlp", "probe", "sigmoid", "balanced", "routed", "matryoshka"],
)
def test_gradients_are_those_of_the_whole_batch(
    make_trainer: MakeTrainer, corpus: Dataset, model: dict[str, Any], size: int
) -> None:
    options = {**model, "diversity_threshold": 0.0}
    whole, cached = make_trainer(options), make_trainer(options, gradient_cache_size=size)
    rows = ragged(corpus)
    expected_loss, expected = gradients(whole, rows)
    loss, found = gradients(cached, rows)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    assert expected["logit_scale"].abs() > 1e-3 and expected["visual_projection.weight"].abs().max() > 1e-3
    assert ("logit_bias" in expected) == (model == {"objective": "sigmoid"})
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: n + text)


def whole_graph(trainer: HolisticCLIPTrainer, rows: Dataset, size: int) -> dict[str, Tensor]:
    """The oracle where something is random: all pieces encoded in one graph, in order, and one backward pass."""
    model: nn.Module = trainer.model.train()
    model.zero_grad()
    batch = trainer.data_collator(list(rows))
    torch.manual_seed(3)
    with trainer.compute_loss_context_manager():
        outputs = [trainer._encode(model, piece) for piece in split_batch(batch, size)]
        embeds = [torch.cat([output[name] for output in outputs]) for name in ("branch_embeds", "text_embeds")]
        trainer._loss_of(embeds, [outputs[0].logit_scale], batch, True).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "arguments", [{}, {"activation_checkpointing": True}, {"bf16": True}], ids=["plain", "checkpointing", "bf16"]
)
def test_random_draws_are_repeated(make_trainer: MakeTrainer, corpus: Dataset, arguments: dict[str, Any]) -> None:
    tower = {"attention_dropout": 0.3}
    options = {"vision": {**tower, "patch_dropout": 0.5}, "text": tower}
    trainer = make_trainer(options, gradient_cache_size=3, **arguments)
    if trainer.args.activation_checkpointing:
        trainer.model.activation_checkpointing_enable()
    expected = whole_graph(trainer, corpus, size=3)
    _, found = gradients(trainer, corpus)
    _, again = gradients(trainer, corpus)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: n + text)
        assert torch.equal(found[name], again[name]), name
    _, other = gradients(make_trainer(options), corpus)  # drawn for all images at once
    assert (other["visual_projection.weight"] - found["visual_projection.weight"]).abs().max() > 1e-3


def test_every_image_is_encoded_in_pieces(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    trainer = make_trainer(gradient_cache_size=3)
    seen: list[tuple[int, bool]] = []

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append((len(output), torch.is_grad_enabled()))

    trainer.model.vision_model.embeddings.register_forward_hook(note)
    gradients(trainer, corpus)
    assert seen == [(3, False), (3, False), (2, False), (3, True), (3, True), (2, True)]


def test_frozen_text_tower(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    """A tower without a graph: nothing to send back, and the rest as in the whole batch."""
    options: dict[str, Any] = {"frozen": ["text_model.*", "text_projection.*"]}
    results = []
    for trainer in (make_trainer(**options), make_trainer(gradient_cache_size=3, **options)):
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, trainer.data_collator(list(corpus)))
        results.append({name: weight.grad for name, weight in trainer.model.named_parameters()})
    expected, found = results
    assert {name for name, gradient in found.items() if gradient is None} == {
        name for name in expected if name.startswith("text_")
    }
    trained = [name for name, gradient in expected.items() if gradient is not None]
    torch.testing.assert_close(
        {name: found[name] for name in trained}, {name: expected[name] for name in trained}, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rows", [8, 6])
def test_the_last_accumulation_of_an_epoch_may_be_smaller(
    make_trainer: MakeTrainer, corpus: Dataset, rows: int
) -> None:
    """Of eight rows by two, three batches are a step, and the fourth is one of its own; with six nothing is left."""
    options: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 2, "max_steps": -1}
    options |= {"num_train_epochs": 2, "gradient_accumulation_steps": 3, "train": corpus.select(range(rows))}
    whole, cached = make_trainer(**options), make_trainer(gradient_cache_size=1, **options)
    start: HolisticCLIPModel = make_trainer(**options).model
    whole.train()
    cached.train()
    assert whole.state.global_step == cached.state.global_step == (4 if rows == 8 else 2)
    expected = dict(whole.model.named_parameters())
    assert (expected["visual_projection.weight"] - start.visual_projection.weight).abs().max() > 1e-3
    torch.testing.assert_close(dict(cached.model.named_parameters()), expected, rtol=1e-4, atol=1e-5)


def test_training_with_it_ends_where_training_without_it_does(make_trainer: MakeTrainer, corpus: Dataset) -> None:
    options: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 8, "max_steps": 3}
    whole, cached = make_trainer(**options), make_trainer(gradient_cache_size=3, **options)
    start: HolisticCLIPModel = make_trainer(**options).model
    whole.train()
    cached.train()
    expected = dict(whole.model.named_parameters())
    assert (expected["visual_projection.weight"] - start.visual_projection.weight).abs().max() > 1e-3
    torch.testing.assert_close(dict(cached.model.named_parameters()), expected, rtol=1e-4, atol=1e-5)
    assert cached.state.log_history[0]["contrastive"] == pytest.approx(
        whole.state.log_history[0]["contrastive"], abs=1e-5
    )
