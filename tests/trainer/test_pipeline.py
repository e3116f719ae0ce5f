"""The whole way: eight drawings with three captions each are learnt by heart, saved, loaded and searched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoProcessor, CLIPTokenizer

from conftest import COLOURS, IMAGE_SIZE, MAX_LENGTH, SHAPES
from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.trainer import HolisticCLIPTrainer, HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator

SLOTS = ["short", "detail", "style"]


@pytest.fixture
def distinct(corpus: Dataset) -> Dataset:
    """The drawings with captions that no two of them share, whatever the perspective."""

    def describe(row: dict[str, Any]) -> dict[str, Any]:
        colour, shape = row["image_id"].split("-")
        texts = [f"a {colour} {shape}", f"one {shape} on white, all in {colour}", f"drawn flat: {colour}, {shape}"]
        pairs = zip(SLOTS, texts, strict=True)
        return {"captions": [{"perspective": name, "text": text, "source": "test"} for name, text in pairs]}

    return corpus.map(describe)


def fresh_model(tokenizer: CLIPTokenizer) -> HolisticCLIPModel:
    tower = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_LENGTH}
    tokens |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = HolisticCLIPConfig(
        text_config={**tower, **tokens, "pad_token_id": tokenizer.pad_token_id, "hidden_act": "gelu"},
        vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=32,
        perspectives=SLOTS,
    )
    return HolisticCLIPModel(config)


@pytest.fixture
def trainer(processor: HolisticCLIPProcessor, distinct: Dataset, tmp_path: Path) -> HolisticCLIPTrainer:
    args = HolisticCLIPTrainingArguments(
        str(tmp_path / "run"),
        max_steps=200,
        learning_rate=3e-3,
        warmup_steps=10,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=3,
        logging_steps=20,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    model = fresh_model(processor.tokenizer)
    return HolisticCLIPTrainer(model, args, processing_class=processor, train_dataset=distinct, eval_dataset=distinct)


def test_drawings_are_learnt_by_heart(trainer: HolisticCLIPTrainer, distinct: Dataset, tmp_path: Path) -> None:
    before = trainer.evaluate()
    assert before["eval_text_to_image_recall@1"] < 0.6
    trainer.train()
    metrics = trainer.evaluate()
    for name in ("text_to_image_recall@1", "image_to_text_recall@1"):
        assert [metrics[f"eval_{slot}_{name}"] for slot in SLOTS] == [1.0, 1.0, 1.0]
        assert metrics[f"eval_{name}"] == 1.0
    assert metrics["eval_loss"] < before["eval_loss"] / 2
    trainer.save_model(str(tmp_path / "saved"))

    model = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=False).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=False)
    batch = HolisticCLIPCollator(processor, SLOTS)(list(distinct))
    del batch["image_ids"], batch["image_mask"], batch["left_out"]
    with torch.no_grad():
        found, expected = model(**batch), trainer.model.eval()(**batch)
    state = trainer.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found.branch_embeds, expected.branch_embeds, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=1e-5, atol=1e-6)
    for branch in range(3):  # each branch by itself, on what it was trained to read
        similarity = found.branch_embeds[:, branch] @ found.text_embeds[:, branch].T
        assert similarity.argmax(dim=1).tolist() == similarity.argmax(dim=0).tolist() == list(range(8))
    texts = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    inputs = processor(images=list(distinct["image"]), text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    assert output.logits_per_image.argmax(dim=1).tolist() == list(range(8))
    assert output.logits_per_text.argmax(dim=1).tolist() == list(range(8))
