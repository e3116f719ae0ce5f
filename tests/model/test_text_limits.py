"""Tokenizers as people have them: without a limit of length, and padding in front."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, pipeline

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.encoding import encode_texts, load_checkpoint
from holistic_clip_hf.trainer import HolisticCLIPTrainer

MakeModel = Callable[..., HolisticCLIPModel]
UNLIMITED = int(1e30)  # what transformers sets where a tokenizer says nothing
LONG = "a red square on white, drawn flat " * 9
TEXTS = ["a red square", "a blue circle on white, drawn flat"]


@pytest.fixture
def unlimited(processor: HolisticCLIPProcessor) -> HolisticCLIPProcessor:
    """A processor whose tokenizer cuts nothing, of a model of 24 positions."""
    processor.tokenizer.model_max_length = UNLIMITED
    return processor


def test_a_checkpoint_limits_its_texts_to_its_positions(
    make_model: MakeModel, unlimited: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    unlimited.save_pretrained(tmp_path)
    for loaded in (
        HolisticCLIPProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False),
        load_checkpoint(tmp_path)[1],
    ):
        assert loaded.tokenizer.model_max_length == 24
        ids = loaded(text=LONG, return_tensors="pt")["input_ids"]
        assert ids.shape == (1, 24) and ids[0, -1] == model.config.text_config.eos_token_id
        assert loaded.num_truncated == 1
        assert encode_texts(model, loaded, [LONG, "a red square"], batch_size=2).isfinite().all()


def test_a_limit_of_the_tokenizer_itself_is_kept(
    make_model: MakeModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    processor.tokenizer.model_max_length = 9
    make_model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert HolisticCLIPProcessor.from_pretrained(tmp_path).tokenizer.model_max_length == 9


def test_a_processor_without_a_model_has_no_limit(unlimited: HolisticCLIPProcessor, tmp_path: Path) -> None:
    unlimited.save_pretrained(tmp_path)
    assert HolisticCLIPProcessor.from_pretrained(tmp_path).tokenizer.model_max_length == UNLIMITED


@pytest.mark.parametrize("limit", [UNLIMITED, 100, 24, 9])
def test_training_cuts_texts_at_the_positions(
    make_trainer: Callable[..., HolisticCLIPTrainer],
    corpus: Dataset,
    processor: HolisticCLIPProcessor,
    tmp_path: Path,
    limit: int,
) -> None:
    """One long caption of one image; the checkpoint keeps the limit."""

    def lengthen(row: dict[str, Any], index: int) -> dict[str, Any]:
        first, *others = row["captions"]
        return {"captions": [{**first, "text": LONG if index == 2 else first["text"]}, *others]}

    processor.tokenizer.model_max_length = limit
    rows = corpus.map(lengthen, with_indices=True)
    trainer = make_trainer(train=rows, evaluation=rows, max_steps=2)
    trainer.train()
    trainer.evaluate()
    assert processor.tokenizer.model_max_length == min(limit, 24)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = HolisticCLIPProcessor.from_pretrained(tmp_path / "saved")
    assert loaded.tokenizer.model_max_length == min(limit, 24)


def test_a_processor_pads_behind_whatever_its_tokenizer_would(
    make_model: MakeModel, processor: HolisticCLIPProcessor
) -> None:
    model = make_model()
    expected = processor(text=TEXTS, return_tensors="pt")
    nested = processor.nested_captions([[text] for text in TEXTS])
    processor.tokenizer.padding_side = "left"
    found = processor(text=TEXTS, return_tensors="pt")
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found["attention_mask"], expected["attention_mask"])
    assert not found["attention_mask"].all(), "one of them is padded"
    again = processor.nested_captions([[text] for text in TEXTS])
    assert all(torch.equal(again[name], value) for name, value in nested.items())
    torch.testing.assert_close(
        model.get_text_features(**found).text_embeds, model.encode_captions(**nested)[:, 0], rtol=1e-5, atol=1e-6
    )


def test_texts_padded_in_front_are_refused_everywhere(
    make_model: MakeModel, processor: HolisticCLIPProcessor, red_square: Image.Image
) -> None:
    """Said by the call, by the tokenizer, and by pipelines, which use the tokenizer by itself."""
    model, tokenizer = make_model(), processor.tokenizer
    pixel_values = processor(images=red_square, return_tensors="pt")["pixel_values"]
    asked = processor(text=TEXTS, return_tensors="pt", padding_side="left")
    tokenizer.padding_side = "left"
    own = tokenizer(TEXTS, return_tensors="pt", padding=True)
    message = "padded in front; expected padding behind.*`padding_side` to 'right'"
    for given in (asked, own):
        assert not given["attention_mask"][0, 0]
        with pytest.raises(ValueError, match=message):
            model.get_text_features(**given)
        with pytest.raises(ValueError, match=message):
            model(**given, pixel_values=pixel_values)
        with pytest.raises(ValueError, match=message):
            model.encode_captions(given["input_ids"][:, None], given["attention_mask"][:, None])
    model.get_text_features(**tokenizer(TEXTS[:1], return_tensors="pt", padding=True))  # nothing is padded
    parts: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "device": "cpu"}
    pictures = {"image_processor": CLIPImageProcessor(size=32, crop_size=32)}
    with pytest.raises(ValueError, match="padded in front"):
        pipeline("zero-shot-image-classification", **parts, **pictures)(
            red_square, candidate_labels=TEXTS, hypothesis_template="{}"
        )
    with pytest.raises(ValueError, match="padded in front"):
        pipeline("feature-extraction", **parts)(TEXTS, batch_size=2)
