"""Towers of other families: SigLIP and MetaCLIP 2 against transformers' own models, backbones against their states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPTokenizer,
    PreTrainedModel,
    ResNetConfig,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    T5Config,
    Tipsv2Config,
    Tipsv2Model,
    pipeline,
)

from families import (
    BACKBONES,
    END,
    GRIDS,
    PADDING,
    PATCHES,
    TOKENS,
    TOWER,
    full_length,
    make_metaclip,
    make_model,
    make_siglip,
    make_texts,
    randomise,
    side_of,
)
from holistic_clip_hf import (
    HolisticBackboneVisionConfig,
    HolisticBackboneVisionModel,
    HolisticCLIPConfig,
    HolisticCLIPForImageClassification,
    HolisticCLIPModel,
    HolisticCLIPProcessor,
    HolisticSiglipConfig,
    HolisticSiglipModel,
)
from holistic_clip_hf.initialization import from_backbone, from_clip, from_siglip, make_processor
from holistic_clip_hf.visualization import branch_attention, branch_relevance, patch_grid

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
every_backbone = pytest.mark.parametrize("name", BACKBONES)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def named_as_ours(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """SigLIP's names as ours, written out a second time."""
    found = {}
    for name, value in named.items():
        if "in_proj" in name:
            for index, letter in enumerate("qkv"):
                part = name.split("in_proj_")[1]
                found[f"vision_model.head.attention.{letter}_proj.{part}"] = value[32 * index : 32 * (index + 1)]
        elif name.startswith("vision_model.") and "head" not in name:
            found["vision_model.backbone." + name.removeprefix("vision_model.")] = value
        else:
            found[name] = value.squeeze() if name.startswith("logit") else value
    return found


def test_one_probe_is_siglip(images: Tensor) -> None:
    stock = make_siglip()
    ours = from_siglip(stock, perspectives=["all"])
    assert (type(ours), ours.config.model_type) == (HolisticSiglipModel, "holistic_siglip")
    ids, mask = make_texts([4, 9, 6, 11])
    theirs = stock(input_ids=full_length(ids), pixel_values=images, return_loss=True)
    found = ours(input_ids=ids, attention_mask=mask, pixel_values=images, return_loss=True)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds", "loss"):
        torch.testing.assert_close(found[name], theirs[name], **CLOSE)
    found.loss.backward()
    theirs.loss.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    expected = named_as_ours({name: p.grad for name, p in stock.named_parameters()})
    assert gradients.keys() == expected.keys()
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vision", [{}, {"branched_head_mlp": True}], ids=["probes", "branched MLPs"])
def test_copies_are_siglip(images: Tensor, vision: dict[str, Any]) -> None:
    stock = make_siglip()
    ours = from_siglip(stock, perspectives=["a", "b", "c"], vision_config=vision)
    expected = F.normalize(stock.get_image_features(images).pooler_output, dim=-1)
    found = ours.get_image_features(images)
    for branch in range(3):
        torch.testing.assert_close(found.branch_embeds[:, branch], expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(found.pooler_output, expected, rtol=2e-6, atol=2e-6)
    apart = from_siglip(stock, perspectives=["a", "b", "c"], vision_config=vision, perturbation=0.5)
    found = apart.get_image_features(images).branch_embeds
    torch.testing.assert_close(found[:, 0], expected, rtol=2e-6, atol=2e-6)
    assert (found[:, 1] - found[:, 2]).abs().max() > 1e-2


def test_left_out_the_perspectives_are_the_papers() -> None:
    assert from_siglip(make_siglip()).config.perspectives[:2] == ["web", "detail"]


def test_padding_changes_no_text() -> None:
    stock = make_siglip()
    ours = from_siglip(stock, perspectives=["all"])
    ids, mask = make_texts([4, 9, 6, 11])
    expected = F.normalize(stock.get_text_features(full_length(ids)).pooler_output, dim=-1)
    junk = torch.where(mask.bool(), ids, 7)
    for found in (
        ours.get_text_features(ids).text_embeds,
        ours.get_text_features(full_length(ids)).text_embeds,
        ours.get_text_features(junk, mask).text_embeds,
        ours.encode_captions(junk[:, None], mask[:, None])[:, 0],
    ):
        torch.testing.assert_close(found, expected, **CLOSE)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = ours.get_text_features(ids[row : row + 1, :length]).text_embeds
        torch.testing.assert_close(alone[0], expected[row], **CLOSE)
    captions = ours.encode_captions(
        junk.view(2, 2, -1),
        mask.view(2, 2, -1),
        torch.tensor([[True, False], [True, True]]),
        torch.tensor([[5, 0], [6, 7]]),
    )
    torch.testing.assert_close(captions[1], expected[2:], **CLOSE)
    assert not captions[0, 1].any()


def test_pipeline_answers_as_siglips(tokenizer: CLIPTokenizer, red_square: Image.Image) -> None:
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_token_id}
    stock = make_siglip(**size, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id)
    tokenizer.model_input_names = ["input_ids"]  # as SigLIP's, which gives no mask
    parts = {"tokenizer": tokenizer, "image_processor": SiglipImageProcessorPil(size={"height": 32, "width": 32})}
    labels = ["a red square", "a blue circle", "a green square, drawn flat"]
    theirs, ours = (
        pipeline("zero-shot-image-classification", model=model, **parts)(red_square, candidate_labels=labels)
        for model in (stock, from_siglip(stock, perspectives=["a", "b"]))
    )
    assert {each["label"]: each["score"] for each in ours} == pytest.approx(
        {each["label"]: each["score"] for each in theirs}, abs=1e-6
    )


def test_siglip_saves_and_loads(images: Tensor, tmp_path: Path) -> None:
    ours = from_siglip(make_siglip(), perspectives=["a", "b"], perturbation=0.5)
    ours.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert (
        type(loaded) is HolisticSiglipModel
        and loaded.config.to_dict() == AutoModel.from_pretrained(tmp_path).config.to_dict()
    )
    state = ours.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    ids, mask = make_texts([4, 9])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": images}
    assert torch.equal(loaded(**batch).logits_per_image, ours(**batch).logits_per_image)


STRANGER = """
import sys
import torch
from transformers import AutoModel

torch.set_num_threads(1)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
batch = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(**batch).logits_per_image, sys.argv[3])
"""


@pytest.mark.parametrize("name", ["siglip", "dinov3", "resnet"])
def test_a_stranger_loads_it(
    name: str, images: Tensor, without_the_package: Callable[..., str], tmp_path: Path
) -> None:
    model = from_siglip(make_siglip(), perspectives=["a", "b"]) if name == "siglip" else make_model(name)
    ids, mask = make_texts([4, 9])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": images}
    model.save_pretrained(tmp_path / "model")
    torch.save(batch, tmp_path / "batch.pt")
    without_the_package(STRANGER, tmp_path / "model", tmp_path / "batch.pt", tmp_path / "logits.pt")
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(**batch).logits_per_image, **CLOSE)


def test_padding_of_siglip_2_is_gemmas() -> None:
    assert from_siglip(make_siglip(), perspectives=["a"]).config.text_config.pad_token_id == PADDING
    assert from_siglip(make_siglip(), perspectives=["a"], pad_token_id=5).config.text_config.pad_token_id == 5
    with torch.device("meta"):
        large = SiglipModel(SiglipConfig(text_config={**TOWER, "vocab_size": 256_000}, vision_config=TOWER))
    with pytest.raises(ValueError, match="meta device"):  # reached behind the padding's rule
        from_siglip(large, perspectives=["a"])


def test_what_is_no_siglip_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is of model type 'bert'; expected 'siglip' or 'siglip2'"):
        from_siglip(tmp_path)
    headless = make_siglip()
    headless.config.vision_config.vision_use_head = False
    with pytest.raises(ValueError, match="no pooling head"):
        from_siglip(headless)
    with pytest.raises(ValueError, match="`objective` is 'softmax'; expected 'sigmoid'"):
        from_siglip(make_siglip(), objective="softmax")


def test_texts_that_siglip_cannot_read_are_refused() -> None:
    ours = from_siglip(make_siglip(), perspectives=["a"])
    ids, mask = make_texts([4, 9])
    with pytest.raises(ValueError, match="padded in front"):
        ours.get_text_features(ids, mask.flip(-1))
    with pytest.raises(ValueError, match="reads every text from the first position"):
        ours.get_text_features(ids, mask, torch.arange(9)[None])
    with pytest.raises(ValueError, match="Texts of 13 tokens for a model of 12 positions"):
        ours.get_text_features(full_length(ids, 13))


@pytest.mark.parametrize("names", [["all"], ["a", "b", "c"]], ids=len)
def test_metaclip_2_keeps_its_answer(images: Tensor, names: list[str]) -> None:
    stock = make_metaclip()
    ours = from_clip(stock, perspectives=names)
    ids, mask = make_texts([4, 9, 6, 11], end=2)
    theirs = stock(input_ids=ids, attention_mask=mask, pixel_values=images, return_loss=True)
    found = ours(input_ids=ids, attention_mask=mask, pixel_values=images, return_loss=True)
    for name in ("logits_per_image", "image_embeds", "text_embeds", *(["loss"] if len(names) == 1 else [])):
        torch.testing.assert_close(found[name], theirs[name], rtol=2e-6, atol=2e-6)
    packed = ours.encode_captions(ids[:, None], mask[:, None])[:, 0]
    torch.testing.assert_close(packed, theirs.text_embeds, rtol=2e-6, atol=2e-6)
    assert ours.config.text_config.eos_token_id == 2
    ours.resize_token_embeddings(70)
    assert ours.config.text_config.eos_token_id == 2


def test_metaclip_2_saves_and_loads(images: Tensor, tmp_path: Path) -> None:
    stock = make_metaclip()
    ours = from_clip(stock, perspectives=["a", "b"])
    ours.save_pretrained(tmp_path)
    loaded = HolisticCLIPModel.from_pretrained(tmp_path)
    ids, mask = make_texts([4, 9], end=2)
    assert torch.equal(loaded.get_text_features(ids, mask)[1], ours.get_text_features(ids, mask)[1])
    with pytest.raises(ValueError, match="texts without the end token 2"):
        loaded.get_text_features(ids[:, :2])


@every_backbone
@torch.no_grad()
def test_probes_read_the_patches_of_any_backbone(name: str) -> None:
    model, images = make_model(name), torch.randn(2, 3, 64, 64)
    tower = model.vision_model
    kind = {"image_size": 64} if name in ("siglip", "vit", "swin") else {}
    stock = AutoModel.from_config(type(BACKBONES[name])(**{**BACKBONES[name].to_dict(), **kind})).eval()
    if kind:  # their positions, tables or buffers belong to a size
        images = images[..., :32, :32]
        stock = AutoModel.from_config(BACKBONES[name]).eval()
    missing = stock.load_state_dict(tower.backbone.state_dict(), strict=False).missing_keys
    assert all("head" in key or "pooler" in key for key in missing)
    states = stock(images).last_hidden_state
    side = GRIDS.get(name, 8) * images.shape[-1] // 64
    if states.ndim == 4:
        assert states.shape[2:] == (side, side)
        states = torch.stack([states[:, :, row, column] for row in range(side) for column in range(side)], dim=1)
    output = tower(images, interpolate_pos_encoding=True)
    torch.testing.assert_close(output.last_hidden_state, states[:, states.shape[1] - side**2 :], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.branch_embeds, tower.head(tower.patch_norm(output.last_hidden_state)))
    assert patch_grid(model, images) == (side, side)
    maps = branch_attention(model, images)
    assert maps.shape == (2, 3, side**2)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3))
    with torch.enable_grad():
        assert branch_relevance(model, images, torch.randn(1, 16)).shape == (2, 3, 1, side**2)
    assert model.get_patch_features(images, interpolate_pos_encoding=True).patch_embeds.shape == (2, side**2, 16)


@every_backbone
def test_any_backbone_trains_alone_and_comes_back(name: str, tmp_path: Path) -> None:
    model, images = make_model(name, fusion="routed"), torch.randn(4, 3, side_of(name), side_of(name))
    ids, mask = make_texts([4, 9, 6, 11, 5, 7, 8, 10, 4, 6, 5, 9])
    nested = {"input_ids": ids.view(4, 3, -1), "attention_mask": mask.view(4, 3, -1)}
    model.train()(pixel_values=images, return_loss=True, **nested).loss.backward()
    assert not [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    with torch.no_grad():
        model.eval()
        before = model.get_image_features(images).branch_embeds
        model.vision_model.head.branch_probe[0, 0] += 1.0
        change = (model.get_image_features(images).branch_embeds - before).abs().amax(dim=(0, 2))
        assert change[1] > 1e-3 and change[0] == change[2] == 0
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    batch = {"input_ids": ids[:3], "attention_mask": mask[:3], "pixel_values": images}
    torch.testing.assert_close(loaded(**batch).logits_per_image, model(**batch).logits_per_image, **CLOSE)
    alone = HolisticBackboneVisionModel.from_pretrained(tmp_path)
    torch.testing.assert_close(alone(images).branch_embeds, model.vision_model(images).branch_embeds, **CLOSE)


def test_a_tower_alone_goes_under_a_classifier(images: Tensor, tmp_path: Path) -> None:
    tower = make_model("siglip").vision_model
    tower.save_pretrained(tmp_path)
    model = HolisticCLIPForImageClassification.from_pretrained(tmp_path, num_labels=2).eval()
    branches = tower(images).branch_embeds.flatten(1)
    torch.testing.assert_close(model(images).logits, model.classifier(branches), **CLOSE)


@pytest.mark.parametrize("name", ["siglip", "dinov3", "tips"])
@torch.no_grad()
def test_rollout_through_a_backbone(name: str, images: Tensor) -> None:
    model = make_model(name)
    found = branch_attention(model, images, rollout=True)
    model.set_attn_implementation("eager")
    layers = model.vision_model(images, output_attentions=True).attentions
    one, two = ((layer.mean(dim=1) + torch.eye(layer.shape[-1])) / 2 for layer in layers)
    expected = branch_attention(model, images) @ (two @ one)[:, -16:, -16:]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_rollout_without_attention_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="no attention of all patches to all"):
        branch_attention(make_model("resnet"), images, rollout=True)


def read_by_hand(pooling: str, states: Tensor, length: int) -> Tensor:
    return {"mean": states[:length].mean(dim=0), "cls": states[0], "eos": states[4], "last": states[length - 1]}[
        pooling
    ]


@pytest.mark.parametrize("pooling", ["mean", "cls", "eos", "last"])
@torch.no_grad()
def test_any_text_encoder_is_read_by_its_rule(pooling: str) -> None:
    bert = BertConfig(**TOWER, **TOKENS, eos_token_id=END)
    model = randomise(make_model("siglip", text_config=bert, text_pooling=pooling))
    stock = BertModel(bert, add_pooling_layer=False).eval()
    stock.load_state_dict(model.text_model.backbone.state_dict())
    ids, mask = make_texts([6, 9, 7])
    ids[:, 4] = END  # the first end token is read
    found = model.get_text_features(ids, mask).text_embeds
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        states = stock(ids[row : row + 1, :length]).last_hidden_state[0]
        expected = F.normalize(model.text_projection(read_by_hand(pooling, states, length)), dim=-1)
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)
    nested = model.encode_captions(ids[:, None], mask[:, None])
    torch.testing.assert_close(nested[:, 0], found, rtol=1e-5, atol=1e-6)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"text_config": BertConfig(**TOWER)}, "`text_pooling` is None; expected one of 'mean', 'cls'"),
    ({"text_config": BertConfig(**TOWER), "text_pooling": "max"}, "`text_pooling` is 'max'; expected one of"),
    ({"text_pooling": "mean"}, "`text_pooling` is 'mean' and `text_config` of model type 'clip_text_model'"),
    (
        {"text_config": SiglipTextConfig(**{**TOWER, **TOKENS, "pad_token_id": None})},
        "`text_config.pad_token_id` is None; expected the id of the tokenizer's padding",
    ),
    ({"vision_config": CLIPConfig()}, "a model of several towers; expected that of one"),
    ({"vision_config": {"backbone_config": SiglipConfig()}}, "a model of several towers"),
    ({"vision_config": {"backbone_config": {"model_type": "abacus"}}}, "`backbone_config` is of model type 'abacus'"),
    (
        {"vision_config": {"backbone_config": SiglipVisionConfig(**TOWER), "hidden_size": 64}},
        "`hidden_size` is 64; expected the width of the backbone's states, which is 32",
    ),
    ({"vision_config": {"backbone_config": ResNetConfig(), "branch_type": "cls"}}, "`branch_type` is 'cls' and the"),
    ({"vision_config": {"backbone_config": ResNetConfig(), "patch_dropout": 0.5}}, "`patch_dropout` is 0.5"),
    ({"visual_projection": False}, "`visual_projection` is False and `projection_dim` is 512; expected the width"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_contradictions_of_towers_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HolisticCLIPConfig(**fields)


def test_a_tower_without_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="'t5' has no encoder of its own"):
        HolisticCLIPModel(HolisticCLIPConfig(text_config=T5Config(d_model=32, num_layers=1), text_pooling="mean"))


def test_states_without_patches_are_refused(images: Tensor) -> None:
    """A backbone of one state per image, or of patches of another size than is said."""
    config = HolisticBackboneVisionConfig(backbone_config=BACKBONES["vit"], patch_size=4)
    with pytest.raises(ValueError, match=r"gives states of shape \(4, 17, 32\).*with the 64 patches of 4 pixels"):
        HolisticBackboneVisionModel(config)(images)


def test_fields_follow_the_backbone() -> None:
    found = HolisticCLIPConfig(vision_config=BACKBONES["resnet"], perspectives=["a", "b"]).vision_config
    assert (found.hidden_size, found.patch_size, found.image_size, found.num_branches) == (32, 8, 224, 2)
    assert (found.num_attention_heads, found.intermediate_size, found.patch_norm) == (1, 128, True)
    siglip = HolisticSiglipConfig(vision_config={**TOWER, **PATCHES}, text_config=TOWER, projection_dim=32)
    vision = siglip.vision_config
    assert isinstance(vision, HolisticBackboneVisionConfig) and isinstance(siglip.text_config, SiglipTextConfig)
    assert (vision.num_attention_heads, vision.intermediate_size, vision.patch_norm) == (2, 48, False)
    assert siglip.objective == "sigmoid" and not siglip.visual_projection
    assert HolisticSiglipConfig.from_dict(siglip.to_dict()).to_dict() == siglip.to_dict()


@pytest.mark.parametrize("name", ["dinov3", "resnet", "convnext"])
@pytest.mark.parametrize("texts", ["clip", "siglip", "bert"])
@torch.no_grad()
def test_any_two_towers_are_joined(name: str, texts: str, tmp_path: Path) -> None:
    tower = AutoModel.from_config(BACKBONES[name]).eval()
    tower.save_pretrained(tmp_path)
    text: PreTrainedModel = make_metaclip()
    if texts == "siglip":
        text = make_siglip()
    if texts == "bert":
        text = BertModel(BertConfig(**TOWER, **TOKENS), add_pooling_layer=False).eval()
    pooling = "mean" if texts == "bert" else None
    vision = {"image_size": side_of(name)}
    model = from_backbone(tmp_path, text, text_pooling=pooling, perspectives=["a", "b"], vision_config=vision, seed=1)
    images = torch.randn(2, 3, side_of(name), side_of(name))
    states = tower(images).last_hidden_state
    patches = states.flatten(2).mT if states.ndim == 4 else states
    found = model.vision_model(images).last_hidden_state
    torch.testing.assert_close(found, patches[:, patches.shape[1] - found.shape[1] :], rtol=1e-5, atol=1e-5)
    ids, mask = make_texts([4, 9], end=2)
    embeds = model.get_text_features(ids, mask).text_embeds
    if texts == "clip":
        expected = text.get_text_features(ids, mask).pooler_output
    elif texts == "siglip":
        expected = text.get_text_features(full_length(ids)).pooler_output
    else:
        expected = model.text_projection(model.text_model(ids, mask).pooler_output)
    torch.testing.assert_close(embeds, F.normalize(expected, dim=-1), **CLOSE)
    again = from_backbone(tower, text, text_pooling=pooling, perspectives=["a", "b"], vision_config=vision, seed=1)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def test_texts_of_tips_are_its_own() -> None:
    """Its rule is a mean over tokens; padding counts in none of them."""
    towers = {"text_config": {**TOWER, **TOKENS, "pad_token_id": 0}, "vision_config": BACKBONES["tips"].to_dict()}
    stock = randomise(Tipsv2Model(Tipsv2Config(**towers)))
    model = from_backbone(
        stock, stock, text_pooling="mean", text_projection=False, projection_dim=32, perspectives=["web", "synthetic"]
    )
    ids, mask = make_texts([4, 9])
    expected = F.normalize(stock.get_text_features(ids, mask).pooler_output, dim=-1)
    torch.testing.assert_close(model.get_text_features(ids, mask).text_embeds, expected, **CLOSE)


def test_what_is_left_out_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="holistic_clip_hf"):
        from_backbone(make_siglip(), make_metaclip(), perspectives=["a"])
    assert "The SiglipModel: left out, since" in caplog.text and "head.probe" in caplog.text


def test_towers_that_cannot_be_joined_are_refused() -> None:
    with pytest.raises(ValueError, match="`text_pooling` is None; expected one of 'mean'"):
        from_backbone(make_siglip(), BertModel(BertConfig(**TOWER)))
    with pytest.raises(ValueError, match="with the 64 patches of 4 pixels at the end"):
        from_backbone(AutoModel.from_config(BACKBONES["vit"]), make_metaclip(), vision_config={"patch_size": 4})
    with pytest.raises(ValueError, match="`model` is a dict"):
        from_backbone({}, make_metaclip())


def test_processors_come_along(tokenizer: CLIPTokenizer, red_square: Image.Image, tmp_path: Path) -> None:
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    stock = make_siglip(vocab_size=len(tokenizer), **ends)
    for part in (stock, tokenizer, SiglipImageProcessorPil(size={"height": 32, "width": 32})):
        part.save_pretrained(tmp_path)
    model = from_siglip(tmp_path, perspectives=["a", "b"])
    assert model.config.text_config.pad_token_id == tokenizer.pad_token_id
    processor = make_processor(model, tmp_path)
    assert isinstance(processor, HolisticCLIPProcessor) and processor.tokenizer.model_max_length == 12
    batch = processor(images=[red_square], text=["a red square", "a green circle on white"], return_tensors="pt")
    assert model(**batch).logits_per_image.shape == (1, 2)
    SiglipImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"gives \(1, 3, 24, 24\); expected images of 32 x 32 pixels"):
        make_processor(model, tmp_path)
    with pytest.raises(ValueError, match="expected at most 60, which the text encoder knows"):
        SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
        make_processor(from_siglip(make_siglip(), perspectives=["a"]), tmp_path)
