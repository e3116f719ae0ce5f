"""Models with towers of other families through all that comes behind: training, recall, search, card, publishing."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
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

from conftest import CORPUS_SLOTS, IMAGE_SIZE, randomise
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
from holistic_clip_hf.evaluation.encoding import load_checkpoint
from holistic_clip_hf.evaluation.records import capture_provenance, save_records
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
