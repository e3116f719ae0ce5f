"""What is frozen, decayed, and trained at which rate."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from holistic_clip_hf.trainer import HolisticCLIPTrainer

MakeTrainer = Callable[..., HolisticCLIPTrainer]
MAPS = ["q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc1", "mlp.fc2"]


@pytest.mark.parametrize("branch_type", ["cls", "mlp", "probe"])
def test_what_decays(make_trainer: MakeTrainer, branch_type: str) -> None:
    trainer = make_trainer({"vision": {"branch_type": branch_type}}, weight_decay=0.3)
    expected = {"text_model.embeddings.token_embedding.weight", "vision_model.embeddings.patch_embedding.weight"}
    expected |= {"visual_projection.weight", "text_projection.weight"}
    for tower, layer, part in [(t, n, m) for t in ("text", "vision") for n in (0, 1) for m in MAPS]:
        inside = part if part.startswith("mlp") else f"self_attn.{part}"
        expected.add(f"{tower}_model.encoder.layers.{layer}.{inside}.weight")
    if branch_type == "probe":
        read = ("q_proj", "k_proj", "v_proj", "out_proj")
        expected |= {f"vision_model.head.attention.{name}.weight" for name in read}
        expected |= {f"vision_model.head.mlp.{name}.weight" for name in ("fc1", "fc2")}
    if branch_type == "mlp":
        expected |= {f"vision_model.encoder.layers.1.mlp.branch_fc2.{h}.weight" for h in (0, 1)}
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    decayed = {names[id(p)] for group in groups for p in group["params"] if group["weight_decay"] == 0.3}
    others = {names[id(p)] for group in groups for p in group["params"] if group["weight_decay"] == 0.0}
    assert decayed == expected
    assert decayed | others == set(names.values()) and not decayed & others


def test_frozen_layers_stay_and_the_rest_moves(make_trainer: MakeTrainer) -> None:
    frozen = ["text_model.*", "vision_model.embeddings.*", "vision_model.encoder.layers.0.*"]
    trainer = make_trainer({"diversity_threshold": 0.0}, frozen=frozen, weight_decay=0.0)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    stays = ("text_model.", "vision_model.embeddings.", "vision_model.encoder.layers.0.")
    # The keys' bias moves no attention: its gradient is zero up to rounding, but Adam rescales it.
    assert moved == {name for name in before if not name.startswith(stays)}


@pytest.mark.parametrize("fused_weight", [0.0, 1.0])
def test_a_router_moves_where_there_is_a_fused_term(make_trainer: MakeTrainer, fused_weight: float) -> None:
    trainer = make_trainer({"fusion": "routed", "fused_weight": fused_weight})
    before = copy.deepcopy(trainer.model.branch_fusion.state_dict())
    trainer.train()
    after = trainer.model.branch_fusion.state_dict()
    for name in ("router.weight", "router.bias"):
        assert torch.equal(after[name], before[name]) == (fused_weight == 0)


def test_learning_rates_by_pattern(make_trainer: MakeTrainer) -> None:
    multipliers = {"text_model.*bias": 0.0, "text_model.*": 0.1, "vision_model.encoder.layers.[0-1].*": 0.5}
    trainer = make_trainer(learning_rate=0.01, learning_rate_multipliers=multipliers, weight_decay=0.2)
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    found = {}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert found.keys() == set(names.values())
    assert found["text_model.encoder.layers.0.mlp.fc1.weight"] == (pytest.approx(0.001), 0.2)
    assert found["text_model.encoder.layers.0.mlp.fc1.bias"] == (0.0, 0.0)
    assert found["vision_model.encoder.layers.1.mlp.fc1.weight"] == (pytest.approx(0.005), 0.2)
    assert found["vision_model.embeddings.class_embedding"] == (pytest.approx(0.01), 0.0)
    assert found["logit_scale"] == (pytest.approx(0.01), 0.0)


def test_rates_follow_the_schedule(make_trainer: MakeTrainer) -> None:
    options: dict[str, Any] = {"max_steps": 2, "lr_scheduler_type": "linear", "weight_decay": 0.0, "optim": "sgd"}
    trainer = make_trainer(learning_rate_multipliers={"text_model.*": 0.0}, **options)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    stayed = {name for name, weight in trainer.model.named_parameters() if torch.equal(weight, before[name])}
    assert stayed >= {name for name in before if name.startswith("text_model.")}
    assert "text_projection.weight" not in stayed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frozen": ["text_tower.*"]}, r"`frozen`: no parameter fits 'text_tower.\*'"),
        ({"frozen": ["*"]}, "leaves no parameter to train"),
        ({"learning_rate_multipliers": {"visual.*": 0.1}}, "`learning_rate_multipliers`: no parameter fits"),
        ({"learning_rate_multipliers": {"text_model.*": -1.0}}, "-1.0}; expected 0 or more"),
    ],
)
def test_mistaken_patterns_are_refused(make_trainer: MakeTrainer, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(**arguments).create_optimizer()
