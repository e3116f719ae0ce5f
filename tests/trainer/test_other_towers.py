"""Models with towers of other families through all that comes behind: training, recall, search, card, publishing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.nn import functional as F
from transformers import (
    BertConfig,
    CLIPTokenizer,
    PreTrainedConfig,
    ResNetConfig,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    SiglipImageProcessorPil,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from conftest import CORPUS_SLOTS, IMAGE_SIZE, draw, randomise
from holistic_clip_hf import (
    HolisticCLIPConfig,
    HolisticCLIPModel,
    HolisticCLIPProcessor,
    HolisticCLIPTrainer,
    HolisticCLIPTrainingArguments,
    HolisticSiglipConfig,
    HolisticSiglipModel,
    SearchIndex,
    evaluate_retrieval,
    index_images,
)
from holistic_clip_hf.demo.explanation import AskedTerm, Explainer
from holistic_clip_hf.evaluation.encoding import load_checkpoint
from holistic_clip_hf.evaluation.records import capture_provenance, save_records
from holistic_clip_hf.evaluation.segmentation import Windows, score_pixels
from holistic_clip_hf.images.folders import FolderImages
from holistic_clip_hf.publishing.checkpoint import require_checkpoint
from holistic_clip_hf.publishing.model_card import write_model_card
from holistic_clip_hf.search.query import Term

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
MOST_PATCHES = 16


@pytest.fixture(params=["siglip", "naflex", "resnet and bert"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def processor(kind: str, tokenizer: CLIPTokenizer) -> HolisticCLIPProcessor:
    if kind == "naflex":
        return HolisticCLIPProcessor(Siglip2ImageProcessorPil(patch_size=8, max_num_patches=MOST_PATCHES), tokenizer)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return HolisticCLIPProcessor(SiglipImageProcessorPil(size=size), tokenizer)


@pytest.fixture
def model(kind: str, tokenizer: CLIPTokenizer) -> HolisticCLIPModel:
    texts = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "pad_token_id": tokenizer.pad_token_id}
    if kind in ("siglip", "naflex"):
        text = SiglipTextConfig(**TOWER, **texts, bos_token_id=1, eos_token_id=2)
        vision: PreTrainedConfig = SiglipVisionConfig(**TOWER, image_size=IMAGE_SIZE, patch_size=8)
        if kind == "naflex":
            vision = Siglip2VisionConfig(**TOWER, num_patches=MOST_PATCHES, patch_size=8)
        made: HolisticCLIPModel = HolisticSiglipModel(
            HolisticSiglipConfig(
                text_config=text, vision_config=vision, projection_dim=32, perspectives=CORPUS_SLOTS, fusion="routed"
            )
        )
    else:
        resnet = ResNetConfig(hidden_sizes=[8, 32], depths=[1, 1], embedding_size=8, layer_type="basic")
        made = HolisticCLIPModel(
            HolisticCLIPConfig(
                text_config=BertConfig(**TOWER, **texts),
                text_pooling="mean",
                vision_config={"backbone_config": resnet, "image_size": IMAGE_SIZE},
                projection_dim=16,
                perspectives=CORPUS_SLOTS,
            )
        )
    randomise(made)
    return made


def test_the_whole_road(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = HolisticCLIPTrainingArguments(
        str(tmp_path / "model"),
        max_steps=2,
        learning_rate=1e-2,
        warmup_steps=0,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_checkpointing=isinstance(model, HolisticSiglipModel),
        learning_rate_multipliers={"*.branch_*": 3.0},
        eval_strategy="steps",
        eval_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = HolisticCLIPTrainer(
        model, arguments, processing_class=processor, train_dataset=corpus, eval_dataset=corpus
    )
    trainer.train()
    still = [n for n, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    assert not still
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    require_checkpoint(folder)
    loaded, loaded_processor = load_checkpoint(str(folder))
    assert type(loaded) is type(model)

    run = capture_provenance(model="checkpoint", dataset="shapes", split="test", seed=0)
    records = evaluate_retrieval(loaded, loaded_processor, corpus, provenance=run, perspectives=CORPUS_SLOTS)
    assert {record.value for record in records if record.label == "recall@10"} == {1.0}
    save_records(folder / "results.json", records)
    card = write_model_card(folder).read_text()
    assert f"{model.config.vision_config.backbone.model_type}, " in card and "3 probes" in card

    photos = tmp_path / "photos"
    photos.mkdir()
    for row in corpus.select(range(3)):
        row["image"].save(photos / f"{row['image_id']}.png")
    index_images(tmp_path / "index", FolderImages(photos), loaded, loaded_processor)
    found = SearchIndex(tmp_path / "index", loaded, loaded_processor).search([Term("a red square")], k=3)
    with torch.no_grad():
        images = loaded_processor(images=[row["image"] for row in corpus.select(range(3))], return_tensors="pt")
        text = loaded_processor(text=["a red square"], return_tensors="pt")
        expected = loaded.fused_similarity(
            loaded.get_image_features(**images).branch_embeds,
            loaded.get_text_features(**text).text_embeds,
        )[:, 0]
    assert [hit.score for hit in found] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-5)


@torch.no_grad()
def test_an_image_of_any_shape_is_explained(
    kind: str, model: HolisticCLIPModel, processor: HolisticCLIPProcessor
) -> None:
    picture, captions = draw("red", "square").resize((40, 20)), [("short", "a red square"), ("style", "drawn flat")]
    model.eval()
    made = processor(images=[picture], return_tensors="pt")
    texts = processor(text=[text for _, text in captions], return_tensors="pt", padding=True)
    asked = AskedTerm(Term("a red square"), {model.config.perspectives[1]: 1.0})
    found = Explainer(model, processor).inspect(picture, [asked], captions)
    expected = model.get_image_features(**made).branch_embeds[0] @ model.get_text_features(**texts).text_embeds.T
    assert found.matching is not None
    torch.testing.assert_close(found.matching.similarity, expected, rtol=1e-5, atol=1e-6)
    is_naflex = kind == "naflex"
    grid = made["spatial_shapes"][0].tolist() if is_naflex else model.vision_model.patch_grid(IMAGE_SIZE, IMAGE_SIZE)
    assert (grid[0] < grid[1]) == is_naflex
    maps = [*found.attention, *found.terms[0].maps, *found.words]
    assert len(maps) == len(model.config.perspectives) + 1 + 2
    assert {tuple(each.values.shape) for each in maps} == {tuple(grid)}
    assert found.seen.size == picture.size


@torch.no_grad()
def test_an_image_of_any_tower_is_segmented(model: HolisticCLIPModel, processor: HolisticCLIPProcessor) -> None:
    model.eval()
    colours = np.random.default_rng(0).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    classes = F.normalize(
        torch.randn(3, model.config.projection_dim, generator=torch.Generator().manual_seed(5)), dim=1
    )
    pixels = torch.from_numpy((colours / 127.5 - 1).astype(np.float32)).permute(2, 0, 1)[None]
    patches = F.normalize(model.get_patch_features(pixels).patch_embeds[0], dim=-1)
    side = IMAGE_SIZE // model.vision_model.config.patch_size
    scores = (patches @ classes.T).T.reshape(1, 3, side, side)
    expected = F.interpolate(scores, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")[0]
    windows = Windows(short_side=IMAGE_SIZE)
    found = score_pixels(model, processor, Image.fromarray(colours), classes, windows, "class_path")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
