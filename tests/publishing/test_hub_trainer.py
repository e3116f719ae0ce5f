"""`HolisticCLIPTrainer(push_to_hub=True)`: the result of a training on a Hub on loopback, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.publishing.inventory import ALLOWED
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer.arguments import require_mergeable
from hub_answers import TOKEN
from hub_server import LoopbackHub, connect
from hub_storage import Blob, Repository

MakeTrainer = Callable[..., HolisticCLIPTrainer]
PUSHING: dict[str, Any] = {"push_to_hub": True, "hub_model_id": "trained", "hub_token": TOKEN}


@pytest.fixture(autouse=True)
def online(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(hub, monkeypatch, tmp_path)


@pytest.mark.slow
def test_the_result_is_published_once(hub: LoopbackHub, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        **PUSHING, hub_private_repo=True, ema_decay=0.5, max_steps=4, save_strategy="steps", save_steps=2
    )
    assert trainer.hub_model_id == "ada/trained" and not hub.repositories
    trainer.train()
    repository = hub.repositories["model", "ada/trained"]
    assert [commit.title for commit in repository.history("main")] == ["End of training", "initial commit"]
    files = repository.at("main").files
    assert all(ALLOWED.fullmatch(name) for name in files) and repository.private
    weights, state = load(files["model.safetensors"].content), trainer.model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], value) for name, value in state.items())
    assert "learning_rate" in files["README.md"].content.decode()


def test_nothing_is_made_before_there_is_a_result(hub: LoopbackHub, make_trainer: MakeTrainer) -> None:
    make_trainer(**PUSHING)
    assert not hub.repositories and {method for _, method, _ in hub.requests} <= {"GET"}


def test_whether_it_can_be_pushed_is_asked_before_training(hub: LoopbackHub, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="No token to push trained with"):
        make_trainer(**(PUSHING | {"hub_token": None}))
    theirs = Repository("model", "ada/trained")
    theirs._add("refs/heads/main", None, "theirs", {"config.json": Blob(b'{"model_type": "bert"}', False)})
    hub.repositories["model", "ada/trained"] = theirs
    with pytest.raises(ValueError, match="repository of a model of type 'bert'"):
        make_trainer(**PUSHING)


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_the_state_of_the_optimizer_stays_here(make_trainer: MakeTrainer, strategy: str) -> None:
    with pytest.raises(ValueError, match="would put the optimizer's state on the Hub"):
        make_trainer(**PUSHING, hub_strategy=strategy)


def test_a_push_that_fails_leaves_the_model_here(hub: LoopbackHub, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(**PUSHING)
    hub.break_at("whoami", status=503, times=20)
    with pytest.raises(RuntimeError, match="could not be asked about ada/trained"):
        trainer.train()
    saved = load((Path(trainer.args.output_dir) / "model.safetensors").read_bytes())
    assert all(torch.equal(saved[name], value) for name, value in trainer.model.state_dict().items())


@pytest.fixture
def make_adapted(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> Callable[[Any], HolisticCLIPTrainer]:
    """A trainer that pushes a model with an adapter of PEFT, of the given settings, and saves nothing before."""
    peft = pytest.importorskip("peft")

    def make(settings: Any) -> HolisticCLIPTrainer:
        model = make_model(perspectives=["short", "colour", "shape"])
        options = {"max_steps": 2, "warmup_steps": 0, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
        options |= {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, **PUSHING}
        args = HolisticCLIPTrainingArguments(str(tmp_path / "run"), **options)
        return HolisticCLIPTrainer(
            peft.get_peft_model(model, settings), args, processing_class=processor, train_dataset=corpus
        )

    return make


def test_an_adapter_is_merged_and_saved_before_anything_can_fail(
    hub: LoopbackHub, make_adapted: Callable[[Any], HolisticCLIPTrainer], pixel_values: torch.Tensor
) -> None:
    peft = pytest.importorskip("peft")
    trainer = make_adapted(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    hub.break_at("whoami", status=503, times=20)
    with pytest.raises(RuntimeError, match="could not be asked about ada/trained"):
        trainer.train()
    folder, trained = Path(trainer.args.output_dir), trainer.model.eval()
    with torch.no_grad():
        expected = trained.get_image_features(pixel_values).branch_embeds
        found = HolisticCLIPModel.from_pretrained(folder).eval().get_image_features(pixel_values).branch_embeds
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    factors = load((folder / "adapter" / "adapter_model.safetensors").read_bytes())
    assert factors and all("lora_" in name for name in factors)
    assert any("lora_" in name for name, _ in trained.named_parameters()), "training may go on"


def test_an_adapter_in_shards_is_refused_before_training(make_model: Callable[..., HolisticCLIPModel]) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules=["q_proj"]))
    require_mergeable(model, sharded=False)
    require_mergeable(make_model(), sharded=True)
    with pytest.raises(ValueError, match="adapter of PEFT with sharded weights; expected whole weights"):
        require_mergeable(model, sharded=True)


def test_a_token_is_neither_shown_nor_saved(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(**PUSHING)
    args = trainer.args
    for shown in (repr(args), str(args), args.to_json_string(), str(args.to_dict()), str(args.to_sanitized_dict())):
        assert TOKEN not in shown
    trainer.save_model()
    saved = (Path(args.output_dir) / "training_args.bin").read_bytes()
    assert TOKEN.encode() not in saved and args.hub_token == TOKEN
