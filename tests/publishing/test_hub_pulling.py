"""Pulling a published checkpoint: a pinned revision, offline from a warm cache, and with the package imported."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import WITHOUT_THE_PACKAGE
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from hub_answers import OTHER_TOKEN
from hub_server import LoopbackHub, run_client
from hub_storage import Repository

pytestmark = pytest.mark.slow
TEXT = "a red square"

PULL = """
import json, sys, torch
from transformers import AutoModel, AutoProcessor
torch.set_num_threads(1)
options = json.loads(sys.argv[2])
model = AutoModel.from_pretrained("ada/clip", **options)
processor = AutoProcessor.from_pretrained("ada/clip", **options)
with torch.inference_mode():
    found = model.get_text_features(**processor(text=[sys.argv[1]], return_tensors="pt")).pooler_output
print(json.dumps([found.tolist(), type(model).__module__]))
"""

REFUSED = """
import json
from transformers import AutoModel
try:
    AutoModel.from_pretrained("ada/clip", trust_remote_code=True)
except OSError as error:
    print(json.dumps([str(error)]))
"""


@pytest.fixture
def models(make_model: Callable[..., HolisticCLIPModel]) -> list[HolisticCLIPModel]:
    return [make_model(seed=seed, perspectives=["short", "colour", "shape"]) for seed in (0, 1)]


@pytest.fixture
def published(
    hub: LoopbackHub, models: list[HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path
) -> Repository:
    """Two commits of a private repository, the first of them tagged."""
    for place, model in enumerate(models):
        folder = tmp_path / f"{place}"
        for part in (model, processor):
            part.save_pretrained(folder)
        repository = hub.add_folder("model", "ada/clip", folder, private=True)
        if place == 0:
            repository.add_tag("v1", "main")
    return repository


def expected(model: HolisticCLIPModel, processor: HolisticCLIPProcessor) -> torch.Tensor:
    with torch.inference_mode():
        return model.get_text_features(**processor(text=[TEXT], return_tensors="pt")).pooler_output


def pull(hub: LoopbackHub, script: str, home: Path, **options: str | bool) -> tuple[torch.Tensor, str]:
    settings = {"HF_HUB_OFFLINE": "1"} if options.pop("offline", False) else {}
    printed = run_client(hub, script, TEXT, json.dumps(options), home=home, **settings)
    numbers, module = json.loads(printed.splitlines()[-1])
    return torch.tensor(numbers), module


def test_without_the_package_pinned_and_offline(
    hub: LoopbackHub,
    published: Repository,
    models: list[HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
) -> None:
    pinned = {"trust_remote_code": True, "revision": published.at("v1").oid}
    found, module = pull(hub, WITHOUT_THE_PACKAGE + PULL, tmp_path / "home", **pinned)
    assert module.startswith("transformers_modules.ada.clip.")
    torch.testing.assert_close(found, expected(models[0], processor), rtol=1e-6, atol=1e-6)
    asked = len(hub.requests)
    offline, _ = pull(hub, WITHOUT_THE_PACKAGE + PULL, tmp_path / "home", offline=True, **pinned)
    assert torch.equal(offline, found) and len(hub.requests) == asked


def test_with_the_package_nothing_has_to_be_trusted(
    hub: LoopbackHub,
    published: Repository,
    models: list[HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
) -> None:
    found, module = pull(hub, f"import holistic_clip_hf\n{PULL}", tmp_path / "home")
    assert module == "holistic_clip_hf.modeling_holistic_clip"
    torch.testing.assert_close(found, expected(models[1], processor), rtol=1e-6, atol=1e-6)
    assert not any(path.endswith(".py") for _, method, path in hub.requests if method == "GET")


def test_a_private_checkpoint_is_for_its_owner(hub: LoopbackHub, published: Repository, tmp_path: Path) -> None:
    (message,) = json.loads(run_client(hub, REFUSED, home=tmp_path, token=OTHER_TOKEN).splitlines()[-1])
    assert "is not a local folder and is not a valid model identifier" in message and "token" in message
