"""Images and texts to vectors, by a stand-in model: order, batches, modes, and what cannot be encoded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from safetensors.torch import load_file, save_file
from test_retrieval import DRAWINGS, WORDS, KeywordModel, corpus, measure, processor

from holistic_clip_hf import HolisticCLIPModel
from holistic_clip_hf.evaluation.encoding import encode_images, encode_texts, load_checkpoint


def test_images_keep_their_order_and_shapes():
    encoded = encode_images(KeywordModel(), processor, corpus((2, 0, 3)), batch_size=2)
    embeddings = encoded.branch_embeds
    assert encoded.rows.tolist() == [0, 1, 2] and not encoded.left_out

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


def torn(place: int, image: dict | None) -> Dataset:
    """The drawings with another image in a row."""
    rows = corpus().cast_column("image", Image(decode=False)).to_list()
    rows[place]["image"] = image
    return Dataset.from_list(rows, features=corpus().features)


@pytest.mark.parametrize("image", [None, {"bytes": b"GIF89a", "path": None}, {"bytes": b"", "path": None}], ids=str)
@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_an_image_that_does_not_decode_is_left_out_and_named(image, batch_size, caplog):
    encoded = encode_images(KeywordModel(), processor, torn(2, image), batch_size=batch_size)
    expected = encode_images(KeywordModel(), processor, corpus((0, 1, 3)), batch_size=batch_size)
    assert torch.equal(encoded.branch_embeds, expected.branch_embeds)
    assert encoded.rows.tolist() == [0, 1, 3] and list(encoded.left_out) == ["2"]
    said = [record.getMessage() for record in caplog.records]
    assert [message.partition(":")[0] for message in said] == ["2 is left out", "Images and captions left out"]
    without_ids = torn(2, image).remove_columns("image_id")
    assert list(encode_images(KeywordModel(), processor, without_ids, batch_size=9).left_out) == ["row 2"]


def test_an_image_that_the_processor_refuses_is_left_out():
    def refusing(images=None, **options):
        if any(image.getpixel((0, 0))[0] == WORDS.index("owl") for image in images):
            raise ValueError("owls are not read")
        return processor(images=images, **options)

    encoded = encode_images(KeywordModel(), refusing, corpus(), batch_size=9)
    assert encoded.rows.tolist() == [0, 2, 3]
    assert encoded.left_out == {"1": "the processor refuses it: owls are not read"}


def test_no_image_at_all_is_refused():
    with pytest.raises(ValueError, match="None of 1 images is readable, such as 2: the row has no"):
        encode_images(KeywordModel(), processor, torn(2, None).select([2]), batch_size=2)


def test_an_image_leaves_with_its_captions():
    """What is measured is what a corpus without the row gives; the records count what is missing."""
    found, expected = measure(dataset=torn(1, None)), measure(dataset=corpus((0, 2, 3)))
    assert {key: record.value for key, record in found.items()} == {key: r.value for key, r in expected.items()}
    for key, record in found.items():
        assert dict(record.counts) == {**expected[key].counts, "n_unusable": 1}
        assert "n_unusable" not in expected[key].counts


@pytest.mark.parametrize("text", ["", " \n", "&nbsp;", "\u200b\ufeff", None])
def test_a_blank_caption_is_left_out_and_named(text, caplog):
    rows = corpus().cast_column("image", Image(decode=False)).to_list()
    rows[1]["captions"][0]["text"] = text
    found = measure(dataset=Dataset.from_list(rows, features=corpus().features))
    del rows[1]["captions"][0]
    expected = measure(dataset=Dataset.from_list(rows, features=corpus().features))
    assert {key: record.value for key, record in found.items()} == {key: r.value for key, r in expected.items()}
    assert all(record.counts["n_unusable"] == 1 for record in found.values())
    assert "1, object is left out: its text is " in caplog.text


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
    with pytest.raises(ValueError, match=r"the shape \(1, 32\); the configuration asks for \(32,\)"):
        load_checkpoint(tmp_path)
