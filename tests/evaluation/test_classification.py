"""The vision tower under one linear, for supervised fine-tuning."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from holistic_clip_hf import HolisticCLIPForImageClassification, HolisticCLIPModel

MakeModel = Callable[..., HolisticCLIPModel]


@pytest.fixture(params=["cls", "mlp", "probe"])
def checkpoint(
    make_model: MakeModel, request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[HolisticCLIPModel, Path]:
    model = make_model(vision={"branch_type": request.param}, perspectives=["short", "style", "web"])
    model.save_pretrained(tmp_path / "joint")
    return model, tmp_path / "joint"


def test_it_takes_the_vision_tower_of_a_joint_checkpoint(
    checkpoint: tuple[HolisticCLIPModel, Path], pixel_values: Tensor, tmp_path: Path
) -> None:
    model, folder = checkpoint
    model.vision_model.save_pretrained(tmp_path / "tower")
    for source in (folder, tmp_path / "tower"):
        found, report = HolisticCLIPForImageClassification.from_pretrained(
            source, num_labels=5, output_loading_info=True
        )
        assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
        assert not report["unexpected_keys"]
        for name, value in model.vision_model.state_dict().items():
            assert torch.equal(found.vision_model.state_dict()[name], value), name
        assert found.classifier.weight.shape == (5, 3 * 32)
        assert found.classifier.weight.std() > 0 and found.classifier.bias.abs().max() == 0


@pytest.mark.parametrize("num_branches", [1, 3])
def test_a_vision_tower_alone_is_no_joint_model(make_model: MakeModel, tmp_path: Path, num_branches: int) -> None:
    make_model(vision={"num_branches": num_branches}).vision_model.save_pretrained(tmp_path)
    assert HolisticCLIPForImageClassification.from_pretrained(tmp_path).config.num_branches == num_branches
    with pytest.raises(ValueError, match="a vision tower alone"):
        HolisticCLIPModel.from_pretrained(tmp_path)


def test_logits_are_a_linear_of_all_branches(
    checkpoint: tuple[HolisticCLIPModel, Path], pixel_values: Tensor, tmp_path: Path
) -> None:
    model, folder = checkpoint
    classifier = HolisticCLIPForImageClassification.from_pretrained(folder, num_labels=5).eval()
    branches = model.vision_model(pixel_values).branch_embeds  # (N, H, E)
    expected = classifier.classifier.bias.expand(4, 5)
    for index in range(3):
        expected = expected + branches[:, index] @ classifier.classifier.weight[:, 32 * index : 32 * (index + 1)].T
    labels = torch.tensor([0, 4, 2, 2])
    output = classifier(pixel_values, labels=labels)
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, F.cross_entropy(expected, labels), rtol=1e-5, atol=1e-5)
    output.loss.backward()
    assert [name for name, parameter in classifier.named_parameters() if parameter.grad is None] == []

    classifier.save_pretrained(tmp_path / "classifier")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier", trust_remote_code=False).eval()
    assert type(again) is HolisticCLIPForImageClassification
    assert torch.equal(again(pixel_values).logits, output.logits)
    assert set(again.config.auto_map) == {"AutoConfig", "AutoModelForImageClassification"}


def test_it_fine_tunes(checkpoint: tuple[HolisticCLIPModel, Path], pixel_values: Tensor) -> None:
    classifier = HolisticCLIPForImageClassification.from_pretrained(checkpoint[1], num_labels=4).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    labels = torch.arange(4)
    for _ in range(20):
        optimizer.zero_grad()
        classifier(pixel_values, labels=labels).loss.backward()
        optimizer.step()
    assert classifier.eval()(pixel_values).logits.argmax(dim=1).tolist() == [0, 1, 2, 3]
