"""A saved checkpoint works for people who never heard of this package: its code travels with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor

PARTS = ("backbone", "configuration", "loss", "modeling", "options", "processing", "streaming", "text", "vision")
TRAVELLING = {f"{part}_holistic_clip.py" for part in PARTS}
STAGED = TRAVELLING | {"config.json", "model.safetensors", "processor_config.json"}
STAGED |= {"tokenizer.json", "tokenizer_config.json"}
CAPTIONS = [["a red circle", None, "drawn <|endoftext|> flat"]]

SCRIPT = """
import json
import sys

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor

torch.set_num_threads(1)
folder = sys.argv[1]
facts = {}
for auto in (AutoConfig, AutoModel, AutoProcessor):
    try:
        auto.from_pretrained(folder, trust_remote_code=False)
        facts[auto.__name__] = "loaded"
    except ValueError as error:
        facts[auto.__name__] = str(error)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
facts["modules"] = [type(one).__module__ for one in (config, config.vision_config, model, processor)]
facts["names"] = [type(one).__name__ for one in (config, config.vision_config, model, processor)]
facts["perspectives"] = config.perspectives
facts["package"] = "holistic_clip_hf" in sys.modules
with Image.open(sys.argv[2]) as image:
    images = processor(images=image, return_tensors="pt")
batch = {**images, **processor.nested_captions(json.loads(sys.argv[3]))}
with torch.no_grad():
    output = model(**batch, return_loss=True)
    flat = model(**processor(text=["a red circle", "a"], padding=True, return_tensors="pt"), **images)
numbers = [output.branch_embeds, output.text_embeds, output.loss, flat.logits_per_image]
torch.save((numbers, model.state_dict()), sys.argv[4])
model.save_pretrained(sys.argv[5])
processor.save_pretrained(sys.argv[5])
sys.stdout.write(json.dumps(facts))
"""


def expected_numbers(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, path: Path) -> list[torch.Tensor]:
    images = processor(images=Image.open(path), return_tensors="pt")
    with torch.no_grad():
        output = model(**images, **processor.nested_captions(CAPTIONS), return_loss=True)
        flat = model(**processor(text=["a red circle", "a"], padding=True, return_tensors="pt"), **images)
    return [output.branch_embeds, output.text_embeds, output.loss, flat.logits_per_image]


@pytest.fixture(scope="module", params=["cls", "probe"])
def model(make_model: Callable[..., HolisticCLIPModel], request: pytest.FixtureRequest) -> HolisticCLIPModel:
    return make_model(perspectives=["short", "colour", "shape"], vision={"branch_type": request.param})


@pytest.fixture
def staged(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_folder_holds_exactly_what_is_needed(staged: Path) -> None:
    assert {str(path.relative_to(staged)) for path in staged.rglob("*")} == STAGED
    auto_map = json.loads((staged / "config.json").read_text())["auto_map"]
    assert auto_map["AutoConfig"] == "configuration_holistic_clip.HolisticCLIPConfig"
    model = "modeling_holistic_clip.HolisticCLIPModel"
    assert auto_map["AutoModel"] == auto_map["AutoModelForZeroShotImageClassification"] == model


def test_stranger_loads_it_and_gets_the_same_numbers(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    staged: Path,
    red_square: Image.Image,
    without_the_package: Callable[..., str],
    tmp_path: Path,
) -> None:
    picture, numbers, again = tmp_path / "red.png", tmp_path / "numbers.pt", tmp_path / "again"
    red_square.save(picture)
    printed = without_the_package(SCRIPT, staged, picture, json.dumps(CAPTIONS), numbers, again)
    facts = json.loads(printed.splitlines()[-1])
    assert facts["package"] is False
    assert all(module.startswith("transformers_modules.") for module in facts["modules"]), facts["modules"]
    names = ["HolisticCLIPConfig", "HolisticCLIPVisionConfig", "HolisticCLIPModel", "HolisticCLIPProcessor"]
    assert facts["names"] == names
    assert facts["perspectives"] == ["short", "colour", "shape"]
    for auto in ("AutoConfig", "AutoModel", "AutoProcessor"):
        assert "trust_remote_code=True" in facts[auto], f"{auto} {facts[auto]}"
    found_numbers, state = torch.load(numbers)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    # Weights are bitwise the same; sums over them may differ in the last bit, by where they lie in memory.
    for found, expected in zip(found_numbers, expected_numbers(model, processor, picture), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    # What the stranger saves can be passed on.
    assert {str(path.relative_to(again)) for path in again.rglob("*")} == STAGED
    for name in TRAVELLING:
        assert (again / name).read_text() == (staged / name).read_text()


ODD_FOLDERS = ["my model", "v1.2", "3", "class", "a+b (copy)", "épreuve", "-x", "x.py", "__init__"]

LOAD_EACH = """
import sys

import torch
from transformers import AutoModel, AutoProcessor

torch.set_num_threads(1)
sums = []
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    with torch.no_grad():
        sums.append(model.get_text_features(**processor(text="a red circle", return_tensors="pt"))[1].sum().item())
print(*sums)
"""


def test_the_folder_may_have_any_name(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    staged: Path,
    without_the_package: Callable[..., str],
    tmp_path: Path,
) -> None:
    """transformers makes a module of a folder's name."""
    folders = [tmp_path / name for name in ODD_FOLDERS]
    for folder in folders:
        shutil.copytree(staged, folder)
    found = [float(word) for word in without_the_package(LOAD_EACH, *folders).splitlines()[-1].split()]
    with torch.no_grad():
        expected = model.get_text_features(**processor(text="a red circle", return_tensors="pt")).pooler_output.sum()
    assert found == pytest.approx([expected.item()] * len(ODD_FOLDERS), rel=1e-5)
