"""Branches as stock models: every one that is one, in transformers' own class, and every other one refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.exporting import export_stock, stock_folder, to_clip, to_siglip
from holistic_clip_hf.exporting.verification import ExportError, ProbeImages
from holistic_clip_hf.initialization import from_clip, from_siglip

NAMES = ["short", "style", "shape"]
WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CLOSE = {"rtol": 0.0, "atol": 1e-6}
MakeModel = Callable[..., HolisticCLIPModel]
MakeTokens = Callable[..., tuple[Tensor, Tensor]]


@torch.no_grad()
def assert_is_the_branch(stock: Any, model: HolisticCLIPModel, index: int, pixels: Tensor, ids: Tensor) -> None:
    """Vectors and logits of the stock class, whose scale is left out, against the branch's."""
    found = stock(input_ids=ids, pixel_values=pixels)
    images = model.get_image_features(pixels).branch_embeds[:, index]
    texts = model.get_text_features(ids).text_embeds
    torch.testing.assert_close(found.image_embeds, images, **CLOSE)
    torch.testing.assert_close(found.text_embeds, texts, **CLOSE)
    bias = 0 if model.logit_bias is None else model.logit_bias
    expected = model.logit_scale.exp() * images @ texts.T + bias
    scale = model.logit_scale.exp()
    torch.testing.assert_close(found.logits_per_image / scale, expected / scale, **CLOSE)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("branch", NAMES)
def test_every_branched_mlp_is_a_clip(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor, branch: str, layers: int
) -> None:
    model = make_model(perspectives=NAMES, vision={"branch_type": "mlp", "num_branch_layers": layers})
    clip = to_clip(model, branch)
    assert type(clip) is CLIPModel
    assert_is_the_branch(clip, model, NAMES.index(branch), pixel_values, make_tokens([5, 9])[0])


def test_the_anchor_and_a_single_branch_are_clips(
    make_model: MakeModel, make_tokens: MakeTokens, pixel_values: Tensor
) -> None:
    ids = make_tokens([5, 9])[0]
    anchored = make_model(perspectives=NAMES, vision={"branch_isolation": "anchored"})
    assert_is_the_branch(to_clip(anchored, "short"), anchored, 0, pixel_values, ids)
    single = make_model(perspectives=["web"], vision={"num_branches": 1})
    assert_is_the_branch(to_clip(single), single, 0, pixel_values, ids)
    square = make_model(perspectives=["web"], vision={"num_branches": 1}, projection_dim=32, visual_projection=False)
    assert_is_the_branch(to_clip(square), square, 0, pixel_values, ids)


def randomise(model: nn.Module) -> Any:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_metaclip_leaves_as_metaclip(make_tokens: MakeTokens, pixel_values: Tensor) -> None:
    """Its texts end at a token whose id is not the highest."""
    text = {**WIDTH, "vocab_size": 560, "eos_token_id": 2, "pad_token_id": 1}
    vision = {**WIDTH, "image_size": 32, "patch_size": 8}
    config = MetaClip2Config(text_config=text, vision_config=vision, projection_dim=16)
    branches = {"branch_type": "mlp", "num_branch_layers": 1}
    model = from_clip(randomise(MetaClip2Model(config)), perspectives=NAMES, vision_config=branches)
    randomise(model)
    ids = torch.tensor([[7, 300, 9, 2], [8, 2, 1, 1]])
    stock = to_clip(model, "shape")
    assert type(stock) is MetaClip2Model
    assert_is_the_branch(stock, model, 2, pixel_values, ids)


@pytest.fixture
def siglip(session_tokenizer: Any) -> SiglipModel:
    text = {**WIDTH, "vocab_size": len(session_tokenizer), "max_position_embeddings": 24}
    text |= {"pad_token_id": session_tokenizer.pad_token_id, "eos_token_id": session_tokenizer.eos_token_id}
    return randomise(
        SiglipModel(SiglipConfig(text_config=text, vision_config={**WIDTH, "image_size": 32, "patch_size": 8}))
    )


def probes_of(siglip: SiglipModel, **vision: Any) -> HolisticCLIPModel:
    pad = siglip.config.text_config.pad_token_id
    model = from_siglip(siglip, perspectives=NAMES, pad_token_id=pad, vision_config=vision)
    return randomise(model)


@pytest.mark.parametrize("branched", [False, True])
@pytest.mark.parametrize("branch", NAMES)
def test_every_probe_is_a_siglip(siglip: SiglipModel, pixel_values: Tensor, branch: str, branched: bool) -> None:
    model = probes_of(siglip, branched_head_mlp=branched)
    stock = to_siglip(model, branch)
    assert type(stock) is SiglipModel
    ids = torch.randint(0, 500, (2, 24))
    assert_is_the_branch(stock, model, NAMES.index(branch), pixel_values, ids)


VISIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "style", "is one of 3 class tokens, which patches see otherwise than CLIP's one .*'isolated'"),
    ({"branch_isolation": "strict"}, "short", "is one of 3 class tokens"),
    ({"branch_isolation": "open"}, "short", "is one of 3 class tokens"),
    (
        {"branch_isolation": "anchored"},
        "style",
        "a class token that patches do not see.*Take the first branch",
    ),
    ({"branch_type": "probe"}, "style", "is a probe, which CLIP has not"),
    ({"branch_type": "mlp", "patch_stem": "convolutional"}, "style", "`patch_stem='convolutional'`, which CLIP has"),
    ({"branch_type": "mlp"}, None, "`branch` is None; expected one of 'short', 'style', 'shape', since what all"),
    ({"branch_type": "mlp"}, "colour", "`branch` is 'colour'; expected one of 'short', 'style', 'shape'. Name one"),
]


@pytest.mark.parametrize(("vision", "branch", "message"), VISIONS)
def test_what_is_not_a_clip_is_refused(
    make_model: MakeModel, vision: dict[str, Any], branch: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        to_clip(make_model(perspectives=NAMES, vision=vision), branch)


def test_other_towers_and_objectives_are_refused(make_model: MakeModel, siglip: SiglipModel) -> None:
    model = make_model(perspectives=NAMES, vision={"branch_type": "mlp"}, objective="sigmoid")
    with pytest.raises(ValueError, match="a bias of logits .*which CLIP has not"):
        to_clip(model, "style")
    with pytest.raises(ValueError, match="a vision tower of type 'siglip_vision_model'.*the layout 'siglip'"):
        to_clip(probes_of(siglip), "style")
    with pytest.raises(ValueError, match="The model has a vision tower that is CLIP's; expected SigLIP's towers"):
        to_siglip(model, "style")
    with pytest.raises(ValueError, match="a head of other sizes than the tower's"):
        to_siglip(probes_of(siglip, patch_norm=True), "style")


PLAIN = """
import sys

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

torch.set_num_threads(1)
model = AutoModel.from_pretrained(sys.argv[1]).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1])
given = processor(images=Image.open(sys.argv[2]), text=["a red square"], padding="max_length", return_tensors="pt")
with torch.no_grad():
    torch.save(model(**given).image_embeds, sys.argv[3])
sys.stdout.write(f"{type(model).__module__} {type(processor).__name__}")
"""


@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_the_folder_is_one_of_plain_transformers(
    make_model: MakeModel,
    siglip: SiglipModel,
    processor: HolisticCLIPProcessor,
    red_square: Image.Image,
    without_the_package: Callable[..., str],
    tmp_path: Path,
    layout: str,
) -> None:
    model = make_model(perspectives=NAMES, vision={"branch_type": "mlp"}) if layout == "clip" else probes_of(siglip)
    if layout == "siglip":
        images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
        processor = HolisticCLIPProcessor(images, processor.tokenizer)
    folder, picture, vectors = tmp_path / "export", tmp_path / "red.png", tmp_path / "vectors.pt"
    differences = export_stock(model, processor, folder, layout=layout, branch="style")
    assert max(differences.values()) < 1e-6 and len(differences) == 3
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "preprocessor_config.json"} < names
    assert not any(name.endswith(".py") for name in names)
    for path in folder.glob("*.json"):
        assert "olistic" not in path.read_text() and "auto_map" not in path.read_text(), path
    kinds = [json.loads((folder / name).read_text()) for name in ("processor_config.json", "preprocessor_config.json")]
    assert kinds[1]["image_processor_type"] == ("CLIPImageProcessor" if layout == "clip" else "SiglipImageProcessor")
    assert kinds[0]["image_processor"]["image_processor_type"] == kinds[1]["image_processor_type"]
    red_square.save(picture)
    printed = without_the_package(PLAIN, folder, picture, vectors).splitlines()[-1]
    kind = "CLIP" if layout == "clip" else "Siglip"
    assert printed == f"transformers.models.{layout}.modeling_{layout} {kind}Processor"
    with torch.no_grad():
        expected = model.get_image_features(**processor(images=red_square, return_tensors="pt")).branch_embeds[:, 1]
    torch.testing.assert_close(torch.load(vectors), expected, rtol=1e-5, atol=1e-5)


def test_a_folder_is_kept_and_a_wrong_export_is_not(
    make_model: MakeModel, processor: HolisticCLIPProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(perspectives=NAMES, vision={"branch_type": "mlp"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="which holds notes.txt; expected a new or empty folder"):
        export_stock(model, processor, tmp_path / "mine", layout="clip", branch="style")
    with pytest.raises(ValueError, match="`layout` is 'coreml'; expected one of 'clip', 'siglip'"):
        export_stock(model, processor, tmp_path / "new", layout="coreml", branch="style")

    def of_another_branch(model: HolisticCLIPModel, branch: str | None) -> CLIPModel:
        return to_clip(model, "short")

    monkeypatch.setitem(stock_folder.LAYOUTS, "clip", (of_another_branch, stock_folder.CLIPProcessor))
    with pytest.raises(ExportError, match="image vectors by .*; expected at most 1e-06. Nothing was kept"):
        export_stock(model, processor, tmp_path / "new", layout="clip", branch="style")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_weights_of_half_precision_stay_so(
    make_model: MakeModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    model = make_model(perspectives=NAMES, vision={"branch_type": "mlp"}).to(torch.bfloat16)
    export_stock(model, processor, tmp_path / "half", layout="clip", branch="shape")
    assert AutoModel.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert AutoProcessor.from_pretrained(tmp_path / "half").tokenizer.model_max_length == 24


def test_a_branch_is_held_against_the_users_images(
    make_model: MakeModel, processor: HolisticCLIPProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Transparent ones and those of another shape, nine in all, which are two batches."""
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for number in range(9):
        Image.new("RGBA", (40 + 9 * number, 60), (20 * number, 90, 200, 255 - 20 * number)).save(
            photos / "more" / f"{number}.png"
        )
    (photos / "broken.png").write_bytes(b"no image")
    model = make_model(perspectives=NAMES, vision={"branch_type": "mlp"})
    options = {"layout": "clip", "branch": "style"}
    differences = export_stock(model, processor, tmp_path / "export", verify_images=photos, **options)
    assert max(differences.values()) < 1e-6 and "broken.png is left out" in caplog.text
    seen = [len(batch) for batch in ProbeImages(processor, photos).batches()]
    assert seen == [8, 1] and len(ProbeImages(processor, photos)) == 9
    for path, message in ((tmp_path / "none", "is not a folder"), (tmp_path / "export", "no image can be read")):
        with pytest.raises(ValueError, match=f"`verify_images` is .*{path.name}, .*{message}"):
            export_stock(model, processor, tmp_path / "other", verify_images=path, **options)
    assert not (tmp_path / "other").exists()
