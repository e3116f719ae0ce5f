"""Images and texts to vectors, by a stand-in model: order, batches, modes, and what cannot be encoded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Image
from safetensors.torch import load_file, save_file
from test_retrieval import DRAWINGS, WORDS, KeywordModel, corpus, measure, processor

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.evaluation.encoding import encode_images, encode_texts, load_checkpoint


def test_images_keep_their_order_and_shapes():
    embeddings = encode_images(KeywordModel(), processor, corpus((2, 0, 3)), batch_size=2)

    assert embeddings.shape == (3, 2, len(WORDS))
    words = [[WORDS[index] for index in row] for row in embeddings.argmax(dim=-1).tolist()]
    assert words == [list(DRAWINGS[index][0]) for index in (2, 0, 3)]


def test_texts_are_encoded_once_put_back_in_order_and_of_unit_length():
    model, texts = KeywordModel(), ["owl photo", "fox", "owl photo", "fox cat flat photo", "cat", "fox"]
    embeds = encode_texts(model, processor, texts, batch_size=2)

    assert model.seen_texts == [2, 2]
    assert torch.allclose(embeds.norm(dim=-1), torch.ones(len(texts)))
    # One-hot sums of the words; the padding word is word 0 and carries no meaning in this model.
    held = [{WORDS[index] for index in row.nonzero().flatten().tolist()} - {"<pad>"} for row in embeds]
    assert held == [set(text.split()) for text in texts]


def test_texts_of_like_length_share_a_batch():
    lengths = []

    def measuring(text, **options):
        lengths.append([len(one.split()) for one in text])
        return processor(text=text, **options)

    encode_texts(KeywordModel(), measuring, ["fox owl cat", "fox", "owl fox cat", "owl"], batch_size=2)
    assert lengths == [[1, 1], [3, 3]]


def test_model_is_in_evaluation_mode_without_gradients_and_then_as_before():
    model = KeywordModel()
    model.train()
    model.frozen.eval()
    measure(model)

    assert model.seen_modes and not any(model.seen_modes)
    assert model.training and not model.frozen.training


def test_model_is_as_before_also_after_an_error():
    model = KeywordModel().train()
    with pytest.raises(ValueError, match="not in tuple"):
        encode_texts(model, processor, ["unknown"], batch_size=1)
    assert model.training and torch.is_grad_enabled()


def test_a_caption_without_an_image_is_refused_by_its_row():
    rows = (
        corpus()
        .add_column("number", range(4))
        .map(lambda row: row | {"image": None if row["number"] == 2 else row["image"]})
    )
    with pytest.raises(ValueError, match="Row 2: the row has no image. Repair"):
        measure(dataset=rows)
    torn = (
        corpus()
        .cast_column("image", Image(decode=False))
        .map(lambda row: {"image": {"bytes": b"GIF89a", "path": None}})
    )
    with pytest.raises(ValueError, match="Row 0: .*Repair the image, or leave the row out"):
        measure(dataset=torn.cast_column("image", Image()))


@pytest.mark.parametrize("what", ["image", "text"])
def test_vectors_that_are_not_finite_are_refused(what, monkeypatch):
    model, method = KeywordModel(), f"get_{what}_features"
    whole = getattr(model, method)

    def broken(**given):
        output = whole(**given)
        embeds = next(iter(vars(output).values()))
        embeds[-1] = torch.nan
        return output

    monkeypatch.setattr(model, method, broken)
    number = "row 2" if what == "image" else "number 3"  # the last of the first batch
    with pytest.raises(ValueError, match=f"vectors are not finite, first that of the {what} .*{number}"):
        measure(model)


def test_nothing_to_encode_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        encode_images(KeywordModel(), processor, corpus().select([]), batch_size=1)
    with pytest.raises(ValueError, match="no texts"):
        encode_texts(KeywordModel(), processor, [], batch_size=1)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_has_at_least_one_row(batch_size):
    with pytest.raises(ValueError, match=f"`batch_size` is {batch_size}; expected 1 or more"):
        encode_images(KeywordModel(), processor, corpus((2, 0)), batch_size=batch_size)
    with pytest.raises(ValueError, match=f"`batch_size` is {batch_size}; expected 1 or more"):
        encode_texts(KeywordModel(), processor, ["owl"], batch_size=batch_size)


def test_a_weight_of_another_shape_is_refused(make_model: Callable[..., HolisticCLIPModel], tmp_path: Path) -> None:
    make_model(perspectives=["a", "b", "c"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "text_model.encoder.layers.0.layer_norm2.weight"
    save_file({**weights, name: weights[name][None]}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="whose weights are damaged"):
        load_checkpoint(tmp_path)
